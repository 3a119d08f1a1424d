/** Deletes what nobody knows of, once its quarantine is over, and believes only a second look. */
import { SluiceError } from '@sluice/protocol/errors'
import type { JobId, EpochId } from '@sluice/protocol/ids'
import { isOver } from '@sluice/protocol/job'
import { objectKey } from '@sluice/protocol/object-keys'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { spoolCommand } from '../deletion/intent.ts'
import type { Outcome, SubjectWorker } from '../deletion/engine.ts'
import type { Obligation } from '../deletion/rules.ts'
import { deleteJobKey, jobById, markDone, obligationsOfJob } from '../deletion/store.ts'
import { enqueueCommand, hasOpenCommand } from '../fleet/store.ts'
import type { EpochKeyStore } from '../keys/epoch-key-store.ts'
import type { Keys } from '../keys/keys.ts'
import { isAbsent, type ObjectStore, type Replicas } from '../storage/object-store.ts'
import {
  endFinding,
  epochsWithKey,
  findingById,
  type FindingRow,
  jobByObjectKey,
  strangeKeyRows,
} from './store.ts'

export type OrphanDeps = {
  database: Database
  changes: Changes
  now: () => number
  store: Pick<ObjectStore, 'deleteAll' | 'remains' | 'abortUpload'>
  replicas: Replicas
  epochKeys: Pick<EpochKeyStore, 'list' | 'destroy'>
  keys: Pick<Keys, 'rollNow'>
  turns: { take<T>(key: string, work: () => Promise<T>): Promise<T> }
  /** How long until a spool that was asked to go is looked at again: the next sweep sees it. */
  lookAgainMs: number
}

/** `waits`: it was asked to go; a later look tells whether it is. */
type End = 'deleted' | 'gone' | 'waits'

/** The worker of `orphan.delete`. */
export function orphanWorker(deps: OrphanDeps): SubjectWorker {
  return async (obligation): Promise<Outcome> => {
    const finding = await deps.database.read((sql) => findingById(sql, obligation.subjectId ?? ''))
    // It was gone, and came back as another finding, with a duty of its own.
    if (!finding) {
      await deps.database.write((tx) => markDone(tx, obligation.id, deps.now()))
      return 'settled'
    }
    const over = finding.endedAtMs !== null || finding.state === 'kept'
    const end = over ? 'gone' : await remove(deps, finding)
    if (end === 'waits') return { waitMs: deps.lookAgainMs }
    await settle(deps, { obligation, finding, end })
    return 'settled'
  }
}

async function remove(deps: OrphanDeps, finding: FindingRow): Promise<End> {
  const { kind } = finding
  if (kind === 'orphan.object') return removeObject(deps, finding)
  if (kind === 'orphan.upload') return removeUpload(deps, finding)
  if (kind === 'orphan.key') return removeKey(deps, finding)
  if (kind === 'orphan.spool') return removeSpool(deps, finding)
  // Reported only: there is nothing here that could be deleted.
  return 'gone'
}

/** Splits a subject, which names the replica first unless it lies in the store itself. */
function whereOf(deps: OrphanDeps, subject: string) {
  const [first = '', ...rest] = subject.split(' ')
  if (objectKey.safeParse(first).success)
    return { store: deps.store, key: objectKey.parse(first), storeUploadId: rest[0] ?? '' }
  const store = deps.replicas.stores.get(first)
  if (!store)
    throw new SluiceError('store.unreachable', `no replica ${first} is configured any more`, {
      retry: 'later',
      hint: 'Put it back into storage.replicas: an orphan in it is still to be deleted.',
    })
  return { store, key: objectKey.parse(rest[0]), storeUploadId: rest[1] ?? '' }
}

async function removeObject(deps: OrphanDeps, { subject }: FindingRow): Promise<End> {
  const { store, key } = whereOf(deps, subject)
  return deps.turns.take(key, async () => {
    const job = await deps.database.read((sql) => jobByObjectKey(sql, key))
    if (job && !isOver(job.state)) return 'gone'
    if (isAbsent(await store.remains(key))) return 'gone'
    await store.deleteAll(key)
    if (isAbsent(await store.remains(key))) return 'deleted'
    throw new SluiceError('store.refused', 'an orphan is still in the store', {
      retry: 'later',
      hint: 'Look whether the bucket has versions, locks or replication.',
    })
  })
}

async function removeUpload(deps: OrphanDeps, { subject }: FindingRow): Promise<End> {
  const { store, key, storeUploadId } = whereOf(deps, subject)
  const job = await deps.database.read((sql) => jobByObjectKey(sql, key))
  if (job?.openUploads.includes(storeUploadId) === true) return 'gone'
  await store.abortUpload({ key, storeUploadId })
  return 'deleted'
}

async function removeKey(deps: OrphanDeps, { subject }: FindingRow): Promise<End> {
  const [what, id = ''] = subject.split(' ')
  if (what === 'epoch') {
    const known = await deps.database.read((sql) => epochsWithKey(sql))
    if (known.includes(id)) return 'gone'
    await deps.epochKeys.destroy(id as EpochId)
    return 'deleted'
  }
  const jobId = id as JobId
  const dropped = await deps.database.write(async (tx) => {
    const strange = await strangeKeyRows(tx.sql, Number.MAX_SAFE_INTEGER)
    return strange.includes(jobId) && (await deleteJobKey(tx, jobId))
  })
  if (!dropped) return 'gone'
  await deps.keys.rollNow()
  return 'deleted'
}

/** Asks the capture host again; its receipt for the job's own duty is as good the second time. */
async function removeSpool(deps: OrphanDeps, { agentId, jobId }: FindingRow): Promise<End> {
  const { database, changes, now } = deps
  if (agentId === null || jobId === null) return 'gone'
  await database.write(async (tx) => {
    const job = await jobById(tx.sql, jobId)
    const owed = await obligationsOfJob(tx.sql, jobId)
    const spool = owed.find((one) => one.kind === 'spool.delete')
    if (job?.captureAgentId !== agentId || !isOver(job.state) || !spool) return
    const open = await hasOpenCommand(
      tx.sql,
      agentId,
      (command) => command.type === 'spool.delete' && command.jobId === jobId,
    )
    if (open) return
    const command = spoolCommand(job, spool)
    await enqueueCommand(tx, { agentId, lane: 'control', command, atMs: now() }, changes)
  })
  return 'waits'
}

async function settle(
  deps: OrphanDeps,
  settled: { obligation: Obligation; finding: FindingRow; end: 'deleted' | 'gone' },
): Promise<void> {
  const { obligation, finding, end } = settled
  const atMs = deps.now()
  await deps.database.write(async (tx) => {
    await markDone(tx, obligation.id, atMs)
    if (finding.state === 'kept' || !(await endFinding(tx, finding.id, { state: end, atMs })))
      return
    if (end === 'gone') return
    await appendAudit(tx, {
      atMs,
      type: 'orphan.deleted',
      actor: { kind: 'system' },
      site: '*',
      detail: { findingId: finding.id, finding: finding.kind, subject: finding.subject },
    })
  })
}
