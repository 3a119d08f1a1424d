/**
 * Carries a begun purge to its end, as the duty `purge.conclude`: epoch rolled, orders for every
 * single job given in pages, and at last its document. Each step is safe to do twice.
 */
import {
  commandId,
  type AgentId,
  obligationId,
  type ObligationId,
  type PurgeId,
  purgeId,
} from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Command } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Transaction } from '../database/database.ts'
import type { Outcome } from '../deletion/engine.ts'
import { spoolCommand, wipeCommand } from '../deletion/intent.ts'
import type { Obligation } from '../deletion/rules.ts'
import { setCommand } from '../deletion/store.ts'
import { type BulkOrder, commandById, enqueueCommands, isOpenCommand } from '../fleet/store.ts'
import type { Keys } from '../keys/keys.ts'
import { withRoom } from './begin.ts'
import { conclude, type ConcludeParts } from './conclude.ts'
import type { Reserve } from './reserve.ts'
import { lookAgainMs } from './rules.ts'
import {
  changePurge,
  hurryKeys,
  objectsAbsentAtMs,
  openOf,
  orderPage,
  type OwedByAgent,
  purgeById,
  type PurgedJob,
  type PurgeRow,
  setCommands,
  unordered,
} from './store.ts'

export type CarryOutParts = ConcludeParts & {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
  keys: Pick<Keys, 'rollNow'>
  /** An intent may have found room where a roll finds none. */
  reserve: Pick<Reserve, 'free'>
}

/** Worker of `purge.conclude`. A full disk does not stop it while there is a reserve to free. */
export async function carryOut(parts: CarryOutParts, owed: Obligation): Promise<Outcome> {
  return withRoom(parts, () => carryOn(parts, owed))
}

async function carryOn(parts: CarryOutParts, owed: Obligation): Promise<Outcome> {
  const { database, now } = parts
  const id = purgeId.parse(owed.subjectId)
  const purge = await database.read((sql) => purgeById(sql, id))
  if (purge?.state !== 'running' || purge.intentAtMs === null) return 'settled'
  await Promise.all([destroyKeys(parts, purge), orderJobs(parts, purge)])
  await noteObjects(parts, id)
  const open = await database.read(async (sql) => openOf(sql, id))
  if (open.jobs + open.agents + open.unordered > 0)
    return { waitMs: lookAgainMs(now() - purge.intentAtMs) }
  await conclude(parts, { purgeId: id, obligation: owed })
  return 'settled'
}

async function destroyKeys(parts: CarryOutParts, purge: PurgeRow): Promise<void> {
  if (purge.keysUnrecoverableAtMs !== null) return
  const { destroyedAtMs } = await parts.keys.rollNow()
  const keysUnrecoverableAtMs = Math.max(destroyedAtMs, purge.intentAtMs ?? 0)
  await parts.database.write(async (tx) => {
    await changePurge(tx, { id: purge.id, from: 'running' }, { keysUnrecoverableAtMs })
    hurryKeys(tx, purge.id, parts.now())
    tx.afterCommit(() => parts.changes.emit('obligation'))
  })
}

/** Makes the duties of single jobs due and orders their holders, behind the emergency lane. */
async function orderJobs(parts: CarryOutParts, purge: PurgeRow): Promise<void> {
  for (let ordered: number = limits.purgePageJobs; ordered >= limits.purgePageJobs;)
    ordered = await parts.database.write((tx) => orderOnePage(parts, tx, purge))
}

async function orderOnePage(
  parts: CarryOutParts,
  tx: Transaction,
  purge: PurgeRow,
): Promise<number> {
  const { changes, now } = parts
  const page = unordered(tx.sql, purge.id, limits.purgePageJobs)
  if (page.length === 0) return 0
  const atMs = now()
  const asked = orderPage(tx, {
    purgeId: purge.id,
    jobIds: page.map((job) => job.id),
    newIds: page.map(() => newId(obligationId, atMs)),
    atMs,
    reminderAtMs: atMs + limits.wipeReminderMs,
  })
  const jobs = new Map(page.map((job) => [job.id, job]))
  const orders = asked.flatMap((owed) => orderOf(owed, jobs.get(owed.jobId), atMs))
  enqueueCommands(tx, orders, atMs, changes)
  setCommands(
    tx,
    orders.map((order) => ({ id: order.owed, commandId: order.id })),
  )
  for (const job of page) await tellOfJob(tx, purge, job)
  for (const { leaseId, nodeId, fence, endReason, endedAtMs, jobId } of asked) {
    if (endReason !== 'deleted' || endedAtMs !== purge.intentAtMs || nodeId === null) continue
    await appendAudit(tx, {
      atMs: purge.intentAtMs ?? atMs,
      type: 'lease.ended',
      actor: { kind: 'system' },
      site: jobs.get(jobId)?.site ?? purge.site,
      jobId,
      agentId: nodeId,
      detail: { leaseId: leaseId ?? '', fence: fence ?? 0, reason: 'deleted' },
    })
  }
  tx.afterCommit(() => {
    changes.emit('obligation')
    const [first] = page
    if (first) changes.emit('job', first.id)
  })
  return page.length
}

/** The job's own event; that it belongs to the purge is in the chain since the intent. */
async function tellOfJob(tx: Transaction, purge: PurgeRow, job: PurgedJob): Promise<void> {
  if (job.fromState === 'deleting') return
  await appendAudit(tx, {
    atMs: purge.intentAtMs ?? purge.requestedAtMs,
    type: 'job.state-changed',
    actor: { kind: 'principal', id: purge.approvedBy ?? purge.requestedBy },
    site: job.site,
    jobId: job.id,
    detail: { from: job.fromState, to: 'deleting', reason: 'purged', purgeId: purge.id },
  })
}

function orderOf(
  owed: OwedByAgent,
  job: PurgedJob | undefined,
  atMs: number,
): (BulkOrder & { owed: ObligationId })[] {
  if (!job) return []
  const order = (agentId: AgentId, command: Command) => [
    { id: newId(commandId, atMs), agentId, lane: 'control' as const, command, owed: owed.id },
  ]
  if (owed.kind === 'spool.delete') return order(job.captureAgentId, spoolCommand(job, owed))
  const { leaseId, nodeId, fence, endReason } = owed
  if (leaseId === null || nodeId === null || fence === null) return []
  // A lease that finished is wiped without being told; the engine reminds its node after a while.
  if (endReason === 'finished') return []
  const lease = { id: leaseId, fence, endReason }
  return order(nodeId, wipeCommand({ job, lease, wipe: owed }))
}

async function noteObjects(parts: CarryOutParts, id: PurgeId): Promise<void> {
  const absent = await parts.database.read((sql) => objectsAbsentAtMs(sql, id))
  const purge = await parts.database.read((sql) => purgeById(sql, id))
  if (!purge || purge.objectsAbsentAtMs !== null) return
  const atMs = purge.jobs === 0 ? purge.intentAtMs : absent
  if (atMs == null) return
  await parts.database.write(async (tx) => {
    await changePurge(tx, { id, from: 'running' }, { objectsAbsentAtMs: atMs })
  })
}

/** Worker of `purge.agent`: the receipt settles it; until then the order is there, once. */
export async function remindAgent(
  parts: Pick<CarryOutParts, 'database' | 'changes' | 'now'>,
  owed: Obligation,
): Promise<Outcome> {
  const { database, changes, now } = parts
  await database.write(async (tx) => {
    const { agentId, commandId: asked } = owed
    if (agentId === null || asked === null) return
    if (await isOpenCommand(tx.sql, asked)) return
    const earlier = await commandById(tx.sql, asked)
    if (!earlier) return
    const id = newId(commandId, now())
    const order = { id, agentId, lane: 'emergency', command: earlier.body } as const
    enqueueCommands(tx, [order], now(), changes)
    await setCommand(tx, owed.id, id)
  })
  return { waitMs: limits.wipeReminderMs }
}
