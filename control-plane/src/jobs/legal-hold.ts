/** Keeps a job from every deletion but a purge that names held jobs: one person sets a hold, two lift it. */
import { SluiceError } from '@sluice/protocol/errors'
import { type ApprovalId, type JobId, legalHoldId, type PrincipalId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { type Approved, askApproval } from '../access/approvals.ts'
import type { Access } from '../access/rules.ts'
import { appendAudit } from '../audit/store.ts'
import type { Transaction } from '../database/database.ts'
import { changeJob, dropDuties } from '../deletion/store.ts'
import type { JobDeps } from './deps.ts'
import { keepForItsTime, tellCaptureHost } from './fail.ts'
import { thawJob } from './hold.ts'
import { closeLease } from './leases.ts'
import { mayBeHeld } from './rules.ts'
import {
  addLegalHold,
  changeState,
  endLegalHold,
  existingJob,
  type JobRow,
  openLease,
} from './store.ts'

/**
 * Puts a job under legal hold. A running lease ends, nothing expires, and the job is frozen where it
 * is; one that is lost stays lost, with what is left of it.
 *
 * @throws SluiceError `job.not_found`; `request.conflict` when it is held already, or its deletion
 * has begun.
 */
export async function holdJob(
  deps: JobDeps,
  order: { jobId: JobId; principalId: PrincipalId; reason: string },
): Promise<JobRow> {
  const { jobId, principalId, reason } = order
  return deps.database.write(async (tx) => {
    const job = await existingJob(tx.sql, jobId)
    if (job.heldAtMs !== null)
      throw new SluiceError('request.conflict', `job ${jobId} is under legal hold already`)
    if (!mayBeHeld(job.state))
      throw new SluiceError('request.conflict', `job ${jobId} is ${job.state}`, {
        hint: 'Once the deletion of a job has begun, nothing of it can be kept any more.',
      })
    const atMs = deps.now()
    await dropDuties(tx, { jobId, kinds: ['job.expire', 'job.expiry-notice'], atMs })
    await freezeForHold(deps, tx, { job, principalId, atMs })
    const id = newId(legalHoldId, atMs)
    await addLegalHold(tx, { id, jobId, reason, setBy: principalId, setAtMs: atMs })
    await appendAudit(tx, {
      atMs,
      type: 'job.held',
      actor: { kind: 'principal', id: principalId },
      site: job.site,
      jobId,
      detail: { holdId: id, state: job.state, reason },
    })
    tx.afterCommit(() => deps.changes.emit('job', jobId))
    return existingJob(tx.sql, jobId)
  })
}

async function freezeForHold(
  deps: JobDeps,
  tx: Transaction,
  held: { job: JobRow; principalId: PrincipalId; atMs: number },
): Promise<void> {
  const { job, principalId, atMs } = held
  const set = { heldAtMs: atMs, expiresAtMs: null }
  if (job.state === 'frozen' || job.state === 'lost') {
    await changeJob(tx, { id: job.id, from: job.state }, set)
    return
  }
  const lease = job.state === 'leased' ? await openLease(tx.sql, job.id) : undefined
  if (lease) await closeLease(deps, tx, { job, lease, reason: 'revoked' })
  await changeState(
    tx,
    {
      jobId: job.id,
      from: job.state,
      to: 'frozen',
      actor: { kind: 'principal', id: principalId },
      atMs,
      set: { ...set, frozenFrom: job.state, frozenByHold: true },
      detail: { held: true },
    },
    deps.changes,
  )
  await tellCaptureHost(deps, tx, { job, state: 'frozen' })
}

/**
 * Asks for the second person who lifts a hold.
 *
 * @throws SluiceError `request.conflict` when the job is not held; what `askApproval` throws.
 */
export async function askLift(
  deps: Pick<JobDeps, 'database' | 'changes' | 'now'>,
  order: { jobId: JobId; access: Access; reason: string },
): Promise<ApprovalId> {
  const { jobId, access, reason } = order
  return deps.database.write(async (tx) => {
    const { site } = await heldJob(tx, jobId)
    const operation = { kind: 'hold.lift', jobId } as const
    return askApproval(tx, { operation, access, site, reason, atMs: deps.now() }, deps.changes)
  })
}

/**
 * Lifts a hold two people agreed to lift. What was frozen for it alone goes on where it was, and
 * what expires gets its whole time again; what was also locked waits for its release.
 *
 * @throws SluiceError `request.conflict` when the job is not held any more.
 */
export async function liftHold(
  deps: JobDeps,
  tx: Transaction,
  approved: Approved<'hold.lift'>,
): Promise<void> {
  const { operation, askedBy, approvedBy, approvalId, atMs } = approved
  const job = await heldJob(tx, operation.jobId)
  const actor = { kind: 'principal', id: approvedBy } as const
  await changeJob(tx, { id: job.id, from: job.state }, { heldAtMs: null, frozenByHold: false })
  await endLegalHold(tx, job.id, { liftAskedBy: askedBy, liftedBy: approvedBy, liftedAtMs: atMs })
  await appendAudit(tx, {
    atMs,
    type: 'job.hold-lifted',
    actor,
    site: job.site,
    jobId: job.id,
    detail: { approvalId, askedBy },
  })
  if (job.state === 'frozen' && job.frozenByHold) await thawJob(deps, tx, { job, actor })
  else if (job.state === 'lost') {
    const expiresAtMs = await keepForItsTime(deps, tx, job)
    await changeJob(tx, { id: job.id, from: 'lost' }, { expiresAtMs })
  }
  tx.afterCommit(() => deps.changes.emit('job', job.id))
}

async function heldJob(tx: Transaction, id: JobId): Promise<JobRow> {
  const job = await existingJob(tx.sql, id)
  if (job.heldAtMs === null)
    throw new SluiceError('request.conflict', `job ${id} is not under legal hold`)
  return job
}
