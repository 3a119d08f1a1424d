/**
 * The child process of one lease: the only place of a node where its job key and its plaintext ever
 * are. It has no network and no files but the ciphertext its parent hands it, and its end wipes both.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { openSync, readlinkSync } from 'node:fs'
import type { MediumEntry } from '@sluice/protocol/manifest'
import type { Problem } from '@sluice/protocol/messages'
import { encodeSignedResult, type Result } from '@sluice/protocol/result'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { errorOf } from '../problem.ts'
import { exposeMedia } from './expose.ts'
import {
  sealedRangeBytesMax,
  toChild,
  type FromChild,
  type LeaseOrder,
  type ToChild,
} from './lease-messages.ts'
import { mountMedia, type MediaMount } from './media-mount.ts'
import { openArchive, type OpenArchive } from './open-archive.ts'
import { asProblem } from './problem.ts'
import { analyseDirectory, analyseStream, encodeResult, type AnalyserRun } from './run.ts'

type Parent = {
  send: (message: FromChild) => void
  /** The next message of this type; each is sent at most once. */
  receive: <T extends ToChild['type']>(type: T) => Promise<Extract<ToChild, { type: T }>>
  readSealed: (offset: number, length: number) => Promise<Uint8Array>
}

function connectToParent(): Parent {
  assert.ok(process.connected, 'a lease has a parent')
  const waiting = new Map<string, PromiseWithResolvers<ToChild>>()
  let reads = 0

  function slot(name: string): PromiseWithResolvers<ToChild> {
    const found = waiting.get(name) ?? Promise.withResolvers<ToChild>()
    waiting.set(name, found)
    return found
  }

  function nameOf(message: ToChild): string {
    const answer = message.type === 'range' || message.type === 'no-range'
    return answer ? `range ${message.id}` : message.type
  }

  process.on('message', (raw) => {
    const message = toChild.parse(raw)
    slot(nameOf(message)).resolve(message)
  })
  // Without its parent a lease has no deadline and no one who wipes: it ends at once.
  process.on('disconnect', () => process.exit(1))

  const send = (message: FromChild): void => void process.send?.(message)

  async function readRange(offset: number, length: number): Promise<Uint8Array> {
    const id = reads++
    send({ type: 'read', id, offset, length })
    const name = `range ${id}`
    const answer = await slot(name).promise
    waiting.delete(name)
    if (answer.type === 'range') return answer.sealed
    assert.equal(answer.type, 'no-range')
    throw errorOf(answer.problem)
  }

  return {
    send,
    async receive(type) {
      const message = await slot(type).promise
      return message as Extract<ToChild, { type: typeof type }>
    },
    async readSealed(offset, length) {
      if (length <= sealedRangeBytesMax) return await readRange(offset, length)
      const pieces: Uint8Array[] = []
      for (let done = 0; done < length;) {
        const wanted = Math.min(length - done, sealedRangeBytesMax)
        const piece = await readRange(offset + done, wanted)
        if (piece.length !== wanted) break
        pieces.push(piece)
        done += wanted
      }
      return Buffer.concat(pieces)
    },
  }
}

/** Receives the job key and opens the archive with it; both seed and key are zeroed on return. */
async function openLeased(parent: Parent, order: LeaseOrder): Promise<OpenArchive> {
  const { jobId, leaseId, fence, nodeId, sealedHeader, sealedBytes, analyser } = order
  const { seed, publicKey } = makeReceiverKeyPair()
  let key: Buffer | undefined
  try {
    parent.send({ type: 'public-key', publicKey })
    const { envelope, deadlineAtMs } = await parent.receive('envelope')
    const fields = { jobId, nodeId, leaseId, fence, deadlineAtMs }
    key = openEnvelope({
      purpose: 'job-key-lease',
      ...fields,
      sealedHeaderHash: Uint8Array.from(sealedHeaderHash(sealedHeader)),
      seed,
      envelope,
    })
    const read = parent.readSealed
    return await openArchive({
      jobId,
      analyser: analyser.name,
      key,
      sealedHeader,
      sealedBytes,
      read,
    })
  } finally {
    seed.fill(0)
    key?.fill(0)
  }
}

async function analyse(
  parent: Parent,
  order: LeaseOrder,
  archive: OpenArchive,
  leashDescriptor: number,
): Promise<Result['media']> {
  const { analyser, isolation, mediaMount } = order
  const { media } = archive.manifest
  let position = 0
  let mediumBytes = 0
  const run: AnalyserRun = {
    analyser,
    isolation,
    leashDescriptor,
    ran: (counts) =>
      parent.send({ type: 'analysed', medium: position, bytes: mediumBytes, ...counts }),
  }
  if (analyser.input === 'directory') {
    assert.ok(mediaMount !== undefined)
    const bytesMax = analyser.mediaBytesMax
    const read = (entry: MediumEntry) => archive.readMedium(entry)
    await exposeMedia({ directory: mediaMount.folder, media, read, bytesMax })
    position = media.length
    mediumBytes = media.reduce((total, entry) => total + entry.bytes, 0)
    return await analyseDirectory(run, media, mediaMount.folder)
  }
  const outputs: Result['media'] = []
  for (const entry of media) {
    position += 1
    mediumBytes = entry.bytes
    // A piece is not zeroed here: the pipe to the analyser may still hold it. This process's end does.
    outputs.push(await analyseStream(run, entry, archive.readMedium(entry)))
  }
  return outputs
}

/** A mount that others saw could outlive this process, or be copied into a namespace of theirs. */
async function mountForOurselves(mount: MediaMount): Promise<void> {
  const namespaceOf = (pid: number): string => readlinkSync(`/proc/${pid}/ns/mnt`)
  assert.notEqual(namespaceOf(process.pid), namespaceOf(process.ppid), 'its mounts are its own')
  await mountMedia(mount)
}

async function carryOut(parent: Parent): Promise<void> {
  const { order } = await parent.receive('order')
  const { jobId, leaseId, nodeId } = order
  // Never closed: this process belongs to the lease until it ends.
  const leash = openSync(order.leash, 'r')
  // Before the key is asked for: without a place in memory there is nothing to open it for.
  if (order.mediaMount !== undefined) await mountForOurselves(order.mediaMount)
  using archive = await openLeased(parent, order)
  const result = encodeResult(order.analyser, await analyse(parent, order, archive, leash))
  let signed: Buffer | undefined
  try {
    const resultSha256 = createHash('sha256').update(result).digest('hex')
    parent.send({ type: 'sign', resultSha256, finishedAtMs: Date.now() })
    const { statement, certificate } = await parent.receive('statement')
    signed = encodeSignedResult({ statement, certificate, result })
    const sealed = sealEnvelope({
      purpose: 'result',
      jobId,
      nodeId,
      leaseId,
      recipient: Buffer.from(archive.manifest.resultPublicKey, 'base64url'),
      plaintext: signed,
    })
    parent.send({ type: 'result', sealed })
  } finally {
    result.fill(0)
    signed?.fill(0)
  }
}

const parent = connectToParent()
try {
  await carryOut(parent)
} catch (error) {
  const problem: Problem = asProblem(error)
  parent.send({ type: 'failed', problem })
}
// The parent kills this process and looks whether it is gone; until then nothing more happens here.
