/** Begins the deletion of single jobs: on an operator's word, a capture host's, or when their time is over. */
import type { Actor } from '@sluice/protocol/audit-event'
import type { JobId } from '@sluice/protocol/ids'
import type { RequestBody, RequestReply } from '@sluice/protocol/messages'
import { beginDeletion } from '../deletion/intent.ts'
import type { LinkAgent } from '../fleet/link.ts'
import { byAgent, type JobDeps, system, unlessDecided } from './deps.ts'
import { problemOfJob, tellCaptureHost } from './fail.ts'
import { isOnlyCopy } from './rules.ts'
import { changeState, existingJob, jobById, jobOf, type JobRow, refuseOver } from './store.ts'

/**
 * Begins the deletion of a job in whatever state it is.
 *
 * @throws SluiceError `job.not_found`; `job.held`; `request.conflict` when it is being deleted or is gone.
 */
export async function deleteJob(
  deps: JobDeps,
  order: { jobId: JobId; actor: Actor },
): Promise<JobRow> {
  return deps.database.write(async (tx) => {
    const job = await existingJob(tx.sql, order.jobId)
    refuseOver(job)
    await beginDeletion(
      tx,
      {
        jobId: job.id,
        from: job.state,
        reason: 'requested',
        actor: order.actor,
        atMs: deps.now(),
      },
      deps.changes,
    )
    await tellCaptureHost(deps, tx, { job, state: 'deleting' })
    return existingJob(tx.sql, job.id)
  })
}

/** The capture host cannot finish what it announced: the job is refused and deleted. */
export async function abandonJob(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'job.abandon'>,
): Promise<RequestReply<'job.abandon'>> {
  return deps.database.write(async (tx) => {
    const job = await jobOf(tx.sql, agent.id, body.jobId)
    if (job.state !== 'announced' && job.state !== 'uploading') return { state: job.state }
    const atMs = deps.now()
    const actor = byAgent(agent.id)
    await changeState(
      tx,
      {
        jobId: job.id,
        from: job.state,
        to: 'refused',
        actor,
        atMs,
        set: { problemCode: body.problem.code, problemMessage: body.problem.message },
        detail: { code: body.problem.code },
      },
      deps.changes,
    )
    await beginDeletion(
      tx,
      { jobId: job.id, from: 'refused', reason: 'refused', actor, atMs },
      deps.changes,
    )
    return { state: 'deleting' }
  })
}

/**
 * Works off `job.expire`: a failed or lost job whose time is over is deleted; any other has lost
 * the duty's point. Either way the duty is settled afterwards.
 */
export async function expireJob(deps: JobDeps, jobId: JobId): Promise<void> {
  await unlessDecided(
    deps.database.write(async (tx) => {
      const job = await jobById(tx.sql, jobId)
      if (job?.state !== 'failed' && job?.state !== 'lost') return
      if (job.heldAtMs !== null) return
      const atMs = deps.now()
      if (job.expiresAtMs === null || job.expiresAtMs > atMs) return
      const reason = job.state === 'lost' ? 'lost' : 'expired'
      await beginDeletion(tx, { jobId, from: job.state, reason, actor: system, atMs }, deps.changes)
      await tellCaptureHost(deps, tx, { job, state: 'deleting' })
    }),
  )
}

/** Works off `job.expiry-notice`: the capture host hears that the only copy is about to expire. */
export async function noticeExpiry(deps: JobDeps, jobId: JobId): Promise<void> {
  await deps.database.write(async (tx) => {
    const job = await jobById(tx.sql, jobId)
    if (job?.state !== 'failed' || job.expiresAtMs === null || !isOnlyCopy(job)) return
    const problem = problemOfJob(job)
    await tellCaptureHost(deps, tx, {
      job,
      state: 'failed',
      expiresAtMs: job.expiresAtMs,
      ...(problem === undefined ? {} : { problem }),
    })
  })
}
