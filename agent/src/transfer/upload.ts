/** Uploads a spool part by part under grants; what the store already holds is asked, not remembered. */
import { createHash } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import type { JobState } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import { backoffMs } from '@sluice/protocol/process/retry'
import type { ControlLink } from '../control-link.ts'
import { type Bucket, fullBucket, takeBytes } from './bandwidth.ts'
import type { LinkSpeed } from './link-speed.ts'
import type { ObjectClient } from './object-client.ts'
import { type Part, planParts } from './part-plan.ts'

export type UploadOptions = {
  jobId: JobId
  /** The sealed archive, open for reading; stays the caller's. */
  archive: FileHandle
  sealedBytes: number
  client: ObjectClient
  link: Pick<ControlLink, 'request'>
  /** Parts on their way at once; each is held in memory. Default 3. */
  partsInParallel?: number
  bandwidth?: Bandwidth
  /** Told how long what was sent took. */
  linkSpeed?: Pick<LinkSpeed, 'record'>
  /** Told of bytes that the store holds; rises to `sealedBytes`. */
  progress?: (heldBytes: number) => void
  signal: AbortSignal
  random?: () => number
}

const triesMax = 8

/** One rate for everything this process uploads. */
export type Bandwidth = {
  readonly bytesPerSecond: number
  wait(bytes: number, signal: AbortSignal): Promise<void>
}

export function limitBandwidth(bytesPerSecond: number): Bandwidth {
  let bucket: Bucket = fullBucket(bytesPerSecond, performance.now())
  return {
    bytesPerSecond,
    async wait(bytes, signal) {
      const taken = takeBytes(bucket, bytes, bytesPerSecond, performance.now())
      bucket = taken.bucket
      if (taken.waitMs > 0) await sleep(taken.waitMs, undefined, { signal })
    },
  }
}

/**
 * Brings a sealed archive into the store and has it completed there.
 *
 * @returns The job's state as the control plane gives it; `stored` when all went well.
 * @throws SluiceError What the control plane answers (`upload.gone`, `job.wrong_state`, …),
 * `store.unreachable` or `upload.refused` (later) when parts did not get through in the tries there
 * are, `store.digest_mismatch` when the store keeps other bytes than were sent.
 */
export async function uploadSpool(options: UploadOptions): Promise<JobState> {
  const { jobId, link, sealedBytes, progress } = options
  const failing = new AbortController()
  const signal = AbortSignal.any([options.signal, failing.signal])
  const begun = await link.request('upload.begin', { jobId }, { signal })
  if (begun.body.state !== 'uploading' && begun.body.state !== 'announced') return begun.body.state
  const parts = planParts(sealedBytes, begun.body.partBytes)
  const held = new Map(begun.body.held.map((each) => [each.part, each]))
  const etags: { part: number; etag: string }[] = []
  let heldBytes = 0
  const waiting = parts.values()
  const startedAt = performance.now()
  let sentBytes = 0

  async function work(): Promise<void> {
    for (const part of waiting) {
      const { etag, isSent } = await bring(options, part, held.get(part.part), signal)
      etags.push({ part: part.part, etag })
      if (isSent) sentBytes += part.bytes
      heldBytes += part.bytes
      progress?.(heldBytes)
    }
  }
  const workers = Array.from({ length: options.partsInParallel ?? 3 }, work)
  try {
    await Promise.all(workers)
  } catch (error) {
    failing.abort(error)
    // The other parts end before the caller closes the archive.
    await Promise.allSettled(workers)
    throw error
  }
  options.linkSpeed?.record({ bytes: sentBytes, elapsedMs: performance.now() - startedAt })
  etags.sort((left, right) => left.part - right.part)
  const completed = await link.request('upload.complete', { jobId, parts: etags }, { signal })
  return completed.body.state
}

/** @returns The part's ETag: MD5 of its bytes, as S3 gives it without encryption of its own. The store may hold it already. */
async function bring(
  options: UploadOptions,
  part: Part,
  held: { bytes: number; etag: string } | undefined,
  signal: AbortSignal,
): Promise<{ etag: string; isSent: boolean }> {
  const body = await readPart(options.archive, part)
  const md5 = createHash('md5').update(body).digest()
  const etag = md5.toString('hex')
  if (held && held.bytes === part.bytes && plainEtag(held.etag) === etag)
    return { etag, isSent: false }
  for (let attempt = 0; ; attempt += 1) {
    try {
      await options.bandwidth?.wait(part.bytes, signal)
      await send(options, part, body, md5, signal)
      return { etag, isSent: true }
    } catch (error) {
      const again = error instanceof SluiceError && error.retry === 'later'
      if (!again || attempt + 1 >= triesMax || signal.aborted) throw error
    }
    const random = (options.random ?? Math.random)()
    await sleep(backoffMs(attempt, { minMs: 200, maxMs: 20_000 }, random), undefined, { signal })
  }
}

/** One try: a fresh grant for exactly these bytes, then the bytes. */
async function send(
  options: UploadOptions,
  { part, bytes }: Part,
  body: Buffer,
  md5: Buffer,
  signal: AbortSignal,
): Promise<void> {
  const { jobId, link, client } = options
  const asked = { part, bytes, md5: md5.toString('base64') }
  const reply = await link.request('upload.grants', { jobId, parts: [asked] }, { signal })
  const grant = reply.body.grants.find((each) => each.part === part)?.grant
  if (!grant) throw new SluiceError('upload.refused', `no grant for part ${part}`)
  const answer = await client.send({
    ...{ grant, method: 'PUT', body, signal },
    bodyBytesMax: limits.requestBodyBytesMax,
  })
  if (answer.status < 200 || answer.status > 299) {
    // 403 may be a grant that ended on the way, 400 a part changed on the way: both go again.
    const never = answer.status === 404 || answer.status === 411 || answer.status === 413
    throw new SluiceError('upload.refused', `the store answers ${answer.status} to part ${part}`, {
      retry: never ? 'never' : 'later',
    })
  }
  const etag = answer.headers['etag']
  if (etag === undefined || plainEtag(etag) !== md5.toString('hex'))
    throw new SluiceError('store.digest_mismatch', `the store keeps other bytes for part ${part}`, {
      retry: 'later',
    })
}

async function readPart(archive: FileHandle, { offset, bytes }: Part): Promise<Buffer> {
  const body = Buffer.allocUnsafeSlow(bytes)
  let filled = 0
  while (filled < bytes) {
    const { bytesRead } = await archive.read(body, filled, bytes - filled, offset + filled)
    if (bytesRead === 0) throw new SluiceError('spool.damaged', 'the spooled archive is cut short')
    filled += bytesRead
  }
  return body
}

/** ETags come quoted, or not (RFC 9110 section 8.8.3). */
function plainEtag(etag: string): string {
  return etag.replaceAll('"', '').toLowerCase()
}
