/** Freezes the jobs of a revoked agent, and lets frozen ones go on. */
import assert from 'node:assert/strict'
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId, JobId } from '@sluice/protocol/ids'
import type { Transaction } from '../database/database.ts'
import { refuseHeld } from '../deletion/intent.ts'
import { dropDuties } from '../deletion/store.ts'
import type { JobDeps } from './deps.ts'
import { failJob, problemOfJob, tellCaptureHost } from './fail.ts'
import { closeLease, revokeLeases } from './leases.ts'
import { freezableStates, thawedState } from './rules.ts'
import {
  changeState,
  changeUpload,
  existingJob,
  type JobRow,
  jobsInStates,
  lockHeldJobs,
  openLease,
  openUploadsOfAgent,
  uploadById,
} from './store.ts'

/**
 * What a revocation means for jobs, in the transaction that revokes: a capture host's jobs are held,
 * not destroyed; a node's leases end and their jobs wait for another node.
 */
export async function holdJobsOf(
  deps: JobDeps,
  tx: Transaction,
  held: { agentId: AgentId; actor: Actor },
): Promise<void> {
  await revokeLeases(deps, tx, held.agentId)
  const atMs = deps.now()
  await lockHeldJobs(tx, held.agentId)
  for (const job of await jobsInStates(tx.sql, held.agentId, freezableStates)) {
    const lease = job.state === 'leased' ? await openLease(tx.sql, job.id) : undefined
    if (lease) await closeLease(deps, tx, { job, lease, reason: 'revoked' })
    await dropDuties(tx, { jobId: job.id, kinds: ['job.expire', 'job.expiry-notice'], atMs })
    await changeState(
      tx,
      {
        jobId: job.id,
        from: job.state,
        to: 'frozen',
        actor: held.actor,
        atMs,
        set: { frozenFrom: job.state, expiresAtMs: null },
        detail: { agentId: held.agentId },
      },
      deps.changes,
    )
  }
}

/**
 * Aborts every incomplete upload the ledger has of a capture host, so that no grant for a part works
 * any more. One whose store id was never learned is found under the object's key, where nothing else
 * can be before a job is stored.
 *
 * @throws SluiceError `store.unreachable`, `store.refused`: the rest stays open, to be tried again.
 */
export async function abortUploadsOf(deps: JobDeps, agentId: AgentId): Promise<void> {
  for (const { id, jobId } of await deps.database.read((sql) => openUploadsOfAgent(sql, agentId)))
    await deps.turns.take(jobId, async () => {
      const [upload, job] = await deps.database.read(async (sql) => [
        await uploadById(sql, id),
        await existingJob(sql, jobId),
      ])
      if (upload?.state !== 'creating' && upload?.state !== 'open') return
      const { objectKey: key } = job
      if (upload.storeUploadId)
        await deps.store.abortUpload({ key, storeUploadId: upload.storeUploadId })
      else await deps.store.deleteAll(key)
      await deps.database.write((tx) =>
        changeUpload(tx, id, { state: 'aborted', endedAtMs: deps.now() }),
      )
    })
}

/**
 * Lets a frozen job go on from where it was frozen.
 *
 * @throws SluiceError `job.not_found`; `job.held` while it is under legal hold; `request.conflict`
 * unless it is frozen.
 */
export async function releaseJob(
  deps: JobDeps,
  order: { jobId: JobId; actor: Actor },
): Promise<JobRow> {
  return deps.database.write(async (tx) => {
    const job = await existingJob(tx.sql, order.jobId)
    refuseHeld(job)
    if (job.state !== 'frozen' || job.frozenFrom === null)
      throw new SluiceError('request.conflict', `job ${job.id} is ${job.state}, not frozen`)
    await thawJob(deps, tx, { job, actor: order.actor })
    return existingJob(tx.sql, job.id)
  })
}

/** Lets a frozen job go on; a failed one is failed again, with its whole time. */
export async function thawJob(
  deps: JobDeps,
  tx: Transaction,
  thawed: { job: JobRow; actor: Actor },
): Promise<void> {
  const { job, actor } = thawed
  assert(job.frozenFrom, `job ${job.id} was frozen in no state`)
  const to = thawedState(job.frozenFrom)
  if (to === 'failed') {
    const problem = problemOfJob(job) ?? {
      code: 'job.failed',
      message: 'the job had failed before it was frozen',
      retry: 'never',
    }
    return failJob(deps, tx, { job, from: 'frozen', to, problem, actor })
  }
  await changeState(
    tx,
    {
      jobId: job.id,
      from: 'frozen',
      to,
      actor,
      atMs: deps.now(),
      set: { frozenFrom: null },
      detail: { released: true },
    },
    deps.changes,
  )
  return tellCaptureHost(deps, tx, { job, state: to })
}
