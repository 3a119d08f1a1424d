/** Deletes what nobody knows of, once its quarantine is over, and believes only a second look. */
import { SluiceError } from '@sluice/protocol/errors'
import {
  type AgentId,
  type EpochId,
  type FindingId,
  type JobId,
  purgeId,
} from '@sluice/protocol/ids'
import { isOver } from '@sluice/protocol/job'
import type { Command } from '@sluice/protocol/messages'
import { objectKey } from '@sluice/protocol/object-keys'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Transaction } from '../database/database.ts'
import { spoolCommand } from '../deletion/intent.ts'
import type { Outcome, SubjectWorker } from '../deletion/engine.ts'
import type { Obligation } from '../deletion/rules.ts'
import {
  deleteJobKey,
  jobById,
  markDone,
  obligationsOfJob,
  receiptOfObligation,
  setCommand,
} from '../deletion/store.ts'
import { enqueueCommand, hasOpenCommand, isOpenCommand } from '../fleet/store.ts'
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
    const end = over ? 'gone' : await remove(deps, finding, obligation)
    if (end === 'waits') return { waitMs: deps.lookAgainMs }
    await settle(deps, { obligation, finding, end })
    return 'settled'
  }
}

async function remove(deps: OrphanDeps, finding: FindingRow, duty: Obligation): Promise<End> {
  const { kind } = finding
  if (kind === 'orphan.object') return removeObject(deps, finding)
  if (kind === 'orphan.upload') return removeUpload(deps, finding)
  if (kind === 'orphan.key') return removeKey(deps, finding)
  if (kind === 'orphan.spool') return removeSpool(deps, finding, duty)
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

/**
 * Asks the capture host. For a job it owes to delete, by that order again: its receipt is as good the
 * second time. For one that this database never knew as its job, by an order of its own, which names
 * the job alone; the receipt of that ends it.
 */
async function removeSpool(
  deps: OrphanDeps,
  { id, agentId, jobId }: FindingRow,
  duty: Obligation,
): Promise<End> {
  const { database } = deps
  if (agentId === null || jobId === null) return 'gone'
  return database.write(async (tx) => {
    if (await receiptOfObligation(tx.sql, duty.id)) return 'deleted'
    const job = await jobById(tx.sql, jobId)
    const isIts = job?.captureAgentId === agentId
    // It was announced after all.
    if (isIts && !isOver(job.state)) return 'gone'
    const owed = isIts ? await obligationsOfJob(tx.sql, jobId) : []
    const spool = owed.find((one) => one.kind === 'spool.delete')
    if (isIts && spool) await askForSpool(deps, tx, { agentId, command: spoolCommand(job, spool) })
    else await orderAway(deps, tx, { findingId: id, agentId, jobId, duty })
    return 'waits'
  })
}

async function askForSpool(
  { changes, now }: OrphanDeps,
  tx: Transaction,
  ask: { agentId: AgentId; command: ReturnType<typeof spoolCommand> },
): Promise<void> {
  const { agentId, command } = ask
  const { jobId } = command
  const open = await hasOpenCommand(
    tx.sql,
    agentId,
    (other) => other.type === 'spool.delete' && other.jobId === jobId,
  )
  if (!open) await enqueueCommand(tx, { agentId, lane: 'control', command, atMs: now() }, changes)
}

async function orderAway(
  { changes, now }: OrphanDeps,
  tx: Transaction,
  order: { findingId: FindingId; agentId: AgentId; jobId: JobId; duty: Obligation },
): Promise<void> {
  const { findingId, agentId, jobId, duty } = order
  if (duty.commandId !== null && (await isOpenCommand(tx.sql, duty.commandId))) return
  const command: Command = {
    type: 'purge',
    purgeId: purgeId.parse(findingId),
    obligationId: duty.id,
    everything: false,
    jobIds: [jobId],
  }
  const asked = { agentId, lane: 'control', command, atMs: now() } as const
  await setCommand(tx, duty.id, await enqueueCommand(tx, asked, changes))
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
