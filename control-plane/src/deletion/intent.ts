/** Begins the deletion of a job: one transaction after which it can only end, whatever crashes. */
import { SluiceError } from '@sluice/protocol/errors'
import type { Actor } from '@sluice/protocol/audit-event'
import type { JobId } from '@sluice/protocol/ids'
import { type JobState, mayBecome } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Transaction } from '../database/database.ts'
import { cancelCommands, enqueueCommand } from '../fleet/store.ts'
import type { DeletionReason, Obligation } from './rules.ts'
import {
  addObligation,
  changeJob,
  deleteJobKey,
  dropDuties,
  endOpenLeases,
  jobById,
  leasesOfJob,
  type LeaseRow,
  makeDue,
  obligationsOfJob,
  setCommand,
} from './store.ts'

export type DeletionIntent = {
  jobId: JobId
  /** The state it was decided in; the first decision wins. */
  from: JobState
  reason: DeletionReason
  actor: Actor
  atMs: number
}

/**
 * Turns a job into one that is being deleted: state, key row gone, leases ended, every holder's duty
 * due, orders to capture host and nodes queued, audit event; all in the caller's transaction.
 * The duties of announcement (`spool.delete`, `object.delete`, `replica.delete`, `key.destroy`) and of
 * each lease (`lease.wipe`) exist already, waiting. There is no way back.
 *
 * @throws SluiceError `job.not_found`; `job.held`; `request.conflict` when it is no longer in `from`
 * or must not be deleted from there.
 */
export async function beginDeletion(
  tx: Transaction,
  intent: DeletionIntent,
  changes: Changes,
): Promise<void> {
  const { jobId, from } = intent
  const job = await jobById(tx.sql, jobId)
  if (!job) throw new SluiceError('job.not_found', `no job ${jobId}`)
  refuseHeld(job)
  // A clock that was set back must not make the end of a job older than its beginning.
  const atMs = Math.max(intent.atMs, job.announcedAtMs)
  const changed =
    mayBecome(from, 'deleting') &&
    (await changeJob(
      tx,
      { id: jobId, from },
      {
        state: 'deleting',
        intentAtMs: atMs,
        stateChangedAtMs: atMs,
        keysUnusableAtMs: atMs,
        expiresAtMs: null,
        frozenFrom: null,
      },
    ))
  if (!changed)
    throw new SluiceError('request.conflict', `job ${jobId} is ${job.state} and was not deleted`, {
      hint: 'Look at its state again; another decision came first.',
    })
  await deleteJobKey(tx, jobId)
  for (const lease of await endOpenLeases(tx, jobId, atMs))
    await appendAudit(tx, {
      atMs,
      type: 'lease.ended',
      actor: intent.actor,
      site: job.site,
      jobId,
      agentId: lease.nodeId,
      detail: { leaseId: lease.id, fence: lease.fence, reason: 'deleted' },
    })
  await dropDuties(tx, { jobId, kinds: ['job.expire', 'job.expiry-notice'], atMs })
  await makeDue(
    tx,
    { jobId, kinds: ['spool.delete', 'object.delete', 'replica.delete', 'key.destroy'], atMs },
    changes,
  )
  const leases = await leasesOfJob(tx.sql, jobId)
  const owed = await obligationsOfJob(tx.sql, jobId)
  await orderSpoolDeletion(tx, { job, owed, atMs }, changes)
  for (const lease of leases) await orderWipe(tx, { job, lease, owed, atMs }, changes)
  if (!owed.some((one) => one.kind === 'certificate.issue'))
    await addObligation(
      tx,
      { jobId, site: job.site, kind: 'certificate.issue', state: 'waiting', atMs },
      changes,
    )
  await appendAudit(tx, {
    atMs,
    type: 'job.state-changed',
    actor: intent.actor,
    site: job.site,
    jobId,
    detail: { from, to: 'deleting', reason: intent.reason },
  })
  tx.afterCommit(() => changes.emit('job', jobId))
}

/** @throws SluiceError `job.held`: only a purge that names held jobs touches it. */
export function refuseHeld(job: { id: JobId; heldAtMs: number | null }): void {
  if (job.heldAtMs === null) return
  throw new SluiceError('job.held', `job ${job.id} is under legal hold`, {
    hint: `Two people lift it; the first runs: sluice jobs lift ${job.id}`,
  })
}

type Order = {
  job: NonNullable<Awaited<ReturnType<typeof jobById>>>
  owed: readonly Obligation[]
  atMs: number
}

async function orderSpoolDeletion(tx: Transaction, order: Order, changes: Changes): Promise<void> {
  const spool = order.owed.find((one) => one.kind === 'spool.delete' && one.state !== 'done')
  if (!spool) return
  const { job, atMs } = order
  const command = spoolCommand(job, spool)
  const sent = { agentId: job.captureAgentId, lane: 'control', atMs, command } as const
  await setCommand(tx, spool.id, await enqueueCommand(tx, sent, changes))
}

/**
 * A lease that finished is wiped by its node without being told, so the engine only reminds it
 * after a while; any other is told at once.
 */
async function orderWipe(
  tx: Transaction,
  order: Order & { lease: LeaseRow },
  changes: Changes,
): Promise<void> {
  const { job, lease, atMs } = order
  const wipe = order.owed.find((one) => one.kind === 'lease.wipe' && one.leaseId === lease.id)
  if (!wipe || wipe.state === 'done') return
  const finished = lease.endReason === 'finished'
  await makeDue(
    tx,
    {
      jobId: job.id,
      kinds: ['lease.wipe'],
      leaseId: lease.id,
      atMs,
      nextTryAtMs: finished ? atMs + limits.wipeReminderMs : atMs,
    },
    changes,
  )
  if (finished) return
  await cancelCommands(tx, {
    agentId: lease.nodeId,
    atMs,
    matches: (command) => command.type === 'lease.offer' && command.leaseId === lease.id,
  })
  const command = wipeCommand({ job, lease, wipe })
  const sent = { agentId: lease.nodeId, lane: 'control', atMs, command } as const
  await setCommand(tx, wipe.id, await enqueueCommand(tx, sent, changes))
}

/** The order to delete a spool and confirm it. */
export function spoolCommand(
  job: Pick<Order['job'], 'id' | 'sealedHeaderSha256'>,
  spool: Pick<Obligation, 'id'>,
) {
  const { id: jobId, sealedHeaderSha256 } = job
  return { type: 'spool.delete', jobId, sealedHeaderSha256, obligationId: spool.id } as const
}

/** The order to stop, wipe and confirm one lease. */
export function wipeCommand(order: {
  job: Pick<Order['job'], 'id' | 'sealedHeaderSha256'>
  lease: Pick<LeaseRow, 'id' | 'fence' | 'endReason'>
  wipe: Pick<Obligation, 'id'>
}) {
  const { job, lease, wipe } = order
  const reasons = {
    finished: 'finished',
    failed: 'expired',
    declined: 'expired',
    expired: 'expired',
    revoked: 'revoked',
    deleted: 'deleted',
  } as const
  return {
    type: 'lease.end',
    jobId: job.id,
    leaseId: lease.id,
    fence: lease.fence,
    sealedHeaderSha256: job.sealedHeaderSha256,
    wipeObligationId: wipe.id,
    reason: reasons[lease.endReason ?? 'deleted'],
  } as const
}
