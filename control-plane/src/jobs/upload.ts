/** Brings a sealed archive into the store: ledger row first, grants for parts, completion by us only. */
import { randomUUID } from 'node:crypto'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { RequestBody, RequestReply } from '@sluice/protocol/messages'
import type { LinkAgent } from '../fleet/link.ts'
import type { StoredPart, UploadRef } from '../storage/object-store.ts'
import { byAgent, type JobDeps } from './deps.ts'
import { bytesOfPart, firstWrongPart, partBytesFor } from './rules.ts'
import {
  addUpload,
  changeState,
  changeUpload,
  jobOf,
  type JobRow,
  openUpload,
  type UploadRow,
} from './store.ts'

type BeginReply = RequestReply<'upload.begin'>

/**
 * Opens the upload of a job, or says how far it is. A job that needs no upload any more answers with
 * its state and no parts.
 */
export async function beginUpload(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'upload.begin'>,
): Promise<BeginReply> {
  return deps.turns.take(body.jobId, async () => {
    const { database } = deps
    const job = await database.read((sql) => jobOf(sql, agent.id, body.jobId))
    const partBytes = partBytesFor(job.sealedBytes)
    if (job.state !== 'announced' && job.state !== 'uploading')
      return { state: job.state, partBytes, held: [] }
    const upload = await database.read((sql) => openUpload(sql, job.id))
    if (job.state === 'uploading' && upload?.storeUploadId) {
      const held = await partsOf(deps, refOf(job, upload))
      if (held) return { state: 'uploading', partBytes: upload.partBytes, held }
      // The upload is gone from the store. A crash may have come between completing and saying so.
      if (await isComplete(deps, job)) return storeIt(deps, agent, job, upload)
    }
    if (upload) await giveUp(deps, job, upload)
    await openNew(deps, agent, job, partBytes)
    return { state: 'uploading', partBytes, held: [] }
  })
}

/** The ledger row is durable before the store is asked, so that no upload is ever unknown. */
async function openNew(
  deps: JobDeps,
  agent: LinkAgent,
  job: JobRow,
  partBytes: number,
): Promise<void> {
  const id = randomUUID()
  await deps.database.write(async (tx) => {
    await addUpload(tx, {
      id,
      jobId: job.id,
      objectKey: job.objectKey,
      storeUploadId: null,
      partBytes,
      state: 'creating',
      createdAtMs: deps.now(),
      endedAtMs: null,
    })
  })
  const storeUploadId = await deps.store.createUpload(job.objectKey)
  await deps.database.write(async (tx) => {
    await changeUpload(tx, id, { state: 'open', storeUploadId })
    if (job.state === 'uploading') return
    await changeState(
      tx,
      {
        jobId: job.id,
        from: 'announced',
        to: 'uploading',
        actor: byAgent(agent.id),
        atMs: deps.now(),
      },
      deps.changes,
    )
  })
}

/**
 * Ends an upload that cannot go on. One whose store id was never learned is found under the object's
 * key, where nothing else can be before a job is stored.
 */
async function giveUp(deps: JobDeps, job: JobRow, upload: UploadRow): Promise<void> {
  if (upload.storeUploadId) await deps.store.abortUpload(refOf(job, upload))
  else await deps.store.deleteAll(job.objectKey)
  await deps.database.write((tx) =>
    changeUpload(tx, upload.id, { state: 'aborted', endedAtMs: deps.now() }),
  )
}

/** Grants for parts of the job's open upload, each for exactly the bytes the plan gives it. */
export async function grantParts(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'upload.grants'>,
): Promise<RequestReply<'upload.grants'>> {
  const { job, upload } = await uploading(deps, agent, body.jobId)
  for (const { part, bytes } of body.parts) {
    const expected = bytesOfPart(part, {
      sealedBytes: job.sealedBytes,
      partBytes: upload.partBytes,
    })
    if (bytes !== expected)
      throw new SluiceError(
        'upload.refused',
        `part ${part} has ${expected ?? 'no'} bytes, not ${bytes}`,
      )
  }
  const grants = await Promise.all(
    body.parts.map(async (part) => ({
      part: part.part,
      grant: await deps.store.grantPart(refOf(job, upload), {
        ...part,
        lifeMs: limits.uploadGrantMs,
      }),
    })),
  )
  return { grants }
}

/**
 * Completes the upload once every part is in the store as the agent sent it.
 *
 * @throws SluiceError `upload.refused` naming the first part that is missing or differs (`later`: it
 * can be sent again); `upload.gone` when the store has lost the upload.
 */
export async function completeUpload(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'upload.complete'>,
): Promise<RequestReply<'upload.complete'>> {
  return deps.turns.take(body.jobId, async () => {
    const before = await deps.database.read((sql) => jobOf(sql, agent.id, body.jobId))
    if (before.state !== 'uploading') return { state: before.state }
    const { job, upload } = await uploading(deps, agent, body.jobId)
    const held = await partsOf(deps, refOf(job, upload))
    if (held) {
      checkParts(held, body.parts, { sealedBytes: job.sealedBytes, partBytes: upload.partBytes })
      await completeInStore(deps, refOf(job, upload), body.parts)
    }
    if (await isComplete(deps, job)) return storeIt(deps, agent, job, upload)
    await giveUp(deps, job, upload)
    throw new SluiceError('upload.gone', 'the store no longer has this upload', {
      retry: 'later',
      hint: 'Begin the upload again.',
    })
  })
}

function checkParts(
  held: readonly StoredPart[],
  claimed: RequestBody<'upload.complete'>['parts'],
  object: { sealedBytes: number; partBytes: number },
): void {
  const wrong = firstWrongPart(held, claimed, object)
  if (wrong === undefined) return
  throw new SluiceError('upload.refused', `part ${wrong} is missing or differs in the store`, {
    retry: 'later',
    hint: 'Begin the upload again: the answer says which parts the store holds.',
  })
}

async function completeInStore(
  deps: JobDeps,
  upload: UploadRef,
  parts: RequestBody<'upload.complete'>['parts'],
): Promise<void> {
  try {
    await deps.store.completeUpload(
      upload,
      parts.toSorted((left, right) => left.part - right.part),
    )
  } catch (error) {
    // Gone may mean done: the caller looks for the object.
    if (!isSluiceError(error, 'store.not_found')) throw error
  }
}

/** A grant for the capture host to read its own stored object again. */
export async function verifyUpload(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'upload.verify'>,
): Promise<RequestReply<'upload.verify'>> {
  const job = await deps.database.read((sql) => jobOf(sql, agent.id, body.jobId))
  if (job.state !== 'stored' && job.state !== 'leased')
    throw new SluiceError('job.wrong_state', `job ${job.id} is ${job.state}: nothing to read`)
  return { grant: await deps.store.grantRead(job.objectKey, limits.readGrantMs) }
}

async function uploading(
  deps: JobDeps,
  agent: LinkAgent,
  jobId: JobId,
): Promise<{ job: JobRow; upload: UploadRow }> {
  return deps.database.read(async (sql) => {
    const job = await jobOf(sql, agent.id, jobId)
    if (job.state !== 'uploading')
      throw new SluiceError('job.wrong_state', `job ${jobId} is ${job.state}: nothing to upload`)
    const upload = await openUpload(sql, jobId)
    if (!upload?.storeUploadId)
      throw new SluiceError('upload.gone', 'the upload is not open', {
        retry: 'later',
        hint: 'Begin the upload again.',
      })
    return { job, upload }
  })
}

/** @returns Undefined when the store has no such upload any more. */
async function partsOf(deps: JobDeps, upload: UploadRef): Promise<StoredPart[] | undefined> {
  try {
    return await deps.store.listParts(upload)
  } catch (error) {
    if (isSluiceError(error, 'store.not_found')) return undefined
    throw error
  }
}

async function isComplete(deps: JobDeps, job: JobRow): Promise<boolean> {
  return (await deps.store.head(job.objectKey))?.bytes === job.sealedBytes
}

async function storeIt(
  deps: JobDeps,
  agent: LinkAgent,
  job: JobRow,
  upload: UploadRow,
): Promise<BeginReply & RequestReply<'upload.complete'>> {
  const atMs = deps.now()
  await deps.database.write(async (tx) => {
    await changeUpload(tx, upload.id, { state: 'completed', endedAtMs: atMs })
    await changeState(
      tx,
      {
        jobId: job.id,
        from: 'uploading',
        to: 'stored',
        actor: byAgent(agent.id),
        atMs,
        set: { storedAtMs: atMs },
      },
      deps.changes,
    )
  })
  return { state: 'stored', partBytes: upload.partBytes, held: [] }
}

function refOf(job: JobRow, upload: UploadRow): UploadRef {
  return { key: job.objectKey, storeUploadId: upload.storeUploadId ?? '' }
}
