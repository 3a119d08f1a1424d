/** Gives up the jobs that a sweep found without what they need, if that is still so. */
import type { JobId } from '@sluice/protocol/ids'
import type { JobDeps } from '../jobs/deps.ts'
import { loseJob } from '../jobs/lose.ts'
import { hasKey } from '../jobs/store.ts'
import { type Difference, needsKey, needsObject, needsSpool } from './rules.ts'

/** @returns Whether the job is lost now. */
export async function loseFound(deps: JobDeps, { kind, jobId }: Difference): Promise<boolean> {
  if (jobId === undefined) return false
  const lose = (what: string, still: Parameters<typeof loseJob>[1]['still']) =>
    loseJob(deps, { jobId: jobId satisfies JobId, what, still })
  if (kind === 'missing.object') return lose('object', async (_sql, job) => needsObject(job))
  if (kind === 'missing.spool') return lose('spool', async (_sql, job) => needsSpool(job))
  if (kind === 'missing.key')
    return lose('key', async (sql, job) => needsKey(job.state) && !(await hasKey(sql, job.id)))
  // An orphan is too much of something, not a loss.
  return false
}
