/** Does what an emergency purge orders of a capture host, and tells of the jobs that it will not finish. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { type JobId, jobId } from '@sluice/protocol/ids'
import { problemOf } from '../problem.ts'
import type { PurgeWork } from '../purge.ts'
import { type CaptureParts, createErrand } from './capture-parts.ts'
import type { JobWork } from './job-work.ts'
import { removeUndelivered } from './open-result.ts'
import { forgetOldest } from './over.ts'
import { purgeSpools, takeFromJournal } from './purge.ts'
import type { Sealing } from './sealing.ts'
import { spooledJobs } from './spool.ts'

/** @param on.wiped Told when the spool has room again and what was owed for sealing is gone. */
export function createPurgeWork(
  { spoolDir, resultsDir, job }: CaptureParts,
  on: { sealing: Sealing; work: JobWork; wiped: () => void },
): PurgeWork {
  const { sealing, work } = on
  return {
    async prepare(order) {
      const folders = await spooledJobs(spoolDir)
      return (draft, atMs) => {
        const found = takeFromJournal(draft, order, { folders, atMs })
        forgetOldest(draft)
        return found
      }
    },
    async wipe({ jobIds, everything }) {
      const named = new Set(jobIds)
      await sealing.stop(named)
      // What the journal knows by now came after the order, or was delivered and is named in it.
      const isLater = (id: JobId) => !named.has(id) && (job(id) !== undefined || sealing.isAt(id))
      const folders = everything ? await spooledJobs(spoolDir) : []
      const ids = [...named, ...folders.filter((id) => !named.has(id) && !isLater(id))]
      await work.stop(ids)
      for (const id of ids) if (!job(id)?.resultPath) await removeUndelivered(resultsDir, id)
      const checked = await purgeSpools(spoolDir, ids, { everything, isLater })
      on.wiped()
      return ['sealing and uploads ended', 'undelivered results removed', ...checked]
    },
  }
}

/** @returns Tells the control plane that it need not wait for the upload of what a purge has taken. */
export function createAbandonment(parts: CaptureParts): () => void {
  const { journal, link, signal } = parts
  return createErrand(parts, async () => {
    const left = Object.entries(journal.data.purgedJobs).filter(([, { abandon: owed }]) => owed)
    for (const [key] of left) {
      const id = jobId.parse(key)
      const gone = new SluiceError('spool.damaged', 'its spool was removed by a purge')
      try {
        await link.request('job.abandon', { jobId: id, problem: problemOf(gone) }, { signal })
      } catch (error) {
        // A job that it never heard of needs no word.
        if (!isSluiceError(error) || error.retry === 'later') throw error
      }
      await journal.change((draft) => {
        const found = draft.purgedJobs[id]
        if (found) found.abandon = false
      })
    }
  })
}
