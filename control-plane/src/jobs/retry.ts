/** Lets a failed job be tried again on an operator's word. */
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import { refuseHeld } from '../deletion/intent.ts'
import { dropDuties } from '../deletion/store.ts'
import type { JobDeps } from './deps.ts'
import { tellCaptureHost } from './fail.ts'
import { changeState, existingJob, freshStart, hasKey, type JobRow } from './store.ts'

/**
 * Lets a failed job be leased again, with all its tries.
 *
 * @throws SluiceError `job.not_found`; `job.held`; `request.conflict` unless it is failed; `job.lost` when its
 * key no longer exists.
 */
export async function retryJob(
  deps: JobDeps,
  order: { jobId: JobId; actor: Actor },
): Promise<JobRow> {
  return deps.database.write(async (tx) => {
    const job = await existingJob(tx.sql, order.jobId)
    refuseHeld(job)
    if (job.state !== 'failed' || job.storedAtMs === null)
      throw new SluiceError('request.conflict', `job ${job.id} is ${job.state}, not failed`, {
        hint: 'Only a failed job whose archive is stored can be tried again.',
      })
    if (!(await hasKey(tx.sql, job.id)))
      throw new SluiceError('job.lost', `the key of job ${job.id} no longer exists`, {
        hint: 'Submit the media again.',
      })
    const atMs = deps.now()
    await dropDuties(tx, { jobId: job.id, kinds: ['job.expire', 'job.expiry-notice'], atMs })
    await changeState(
      tx,
      {
        jobId: job.id,
        from: 'failed',
        to: 'stored',
        actor: order.actor,
        atMs,
        set: freshStart,
        detail: { retried: true },
      },
      deps.changes,
    )
    await tellCaptureHost(deps, tx, { job, state: 'stored' })
    return existingJob(tx.sql, job.id)
  })
}
