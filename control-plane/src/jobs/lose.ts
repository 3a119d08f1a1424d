/** Gives up a job whose key, object or only spool is gone before there was a result. */
import type { JobId } from '@sluice/protocol/ids'
import type { Problem } from '@sluice/protocol/messages'
import type { Queries } from '../database/database.ts'
import { type JobDeps, system } from './deps.ts'
import { failJob } from './fail.ts'
import { jobById, type JobRow } from './store.ts'

/** States that may become `lost` by themselves; a lease has to end first. */
const losable: ReadonlySet<JobRow['state']> = new Set([
  'announced',
  'uploading',
  'stored',
  'failed',
  'frozen',
])

/**
 * Makes a job `lost` if what it needs is really gone.
 *
 * @param lost.still Looks at the job's fresh row, in the transaction that decides.
 * @returns Whether it is lost now; false when it moved on meanwhile.
 */
export async function loseJob(
  deps: JobDeps,
  lost: { jobId: JobId; what: string; still: (sql: Queries, job: JobRow) => Promise<boolean> },
): Promise<boolean> {
  return deps.database.write(async (tx) => {
    const job = await jobById(tx.sql, lost.jobId)
    if (!job || job.heldAtMs !== null || !losable.has(job.state)) return false
    if (!(await lost.still(tx.sql, job))) return false
    const problem: Problem = {
      code: 'job.lost',
      message: `the ${lost.what} of this job no longer exists`,
      hint: 'Submit the media again.',
      retry: 'never',
    }
    await failJob(deps, tx, { job, from: job.state, to: 'lost', problem, actor: system })
    return true
  })
}
