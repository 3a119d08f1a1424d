/** Ends a job, and keeps in the journal only the newest of what has ended. */
import type { CaptureJob, JournalData } from '../journal.ts'
import type { CaptureParts } from './capture-parts.ts'

/** Ended jobs, and refused submissions, that stay in the journal for `status`. */
const overKept = 500

export async function finish(parts: CaptureParts, current: CaptureJob): Promise<void> {
  await parts.journal.change((draft) => {
    const found = draft.jobs[current.jobId]
    if (found) found.step = 'over'
    forgetOldest(draft)
  })
  parts.events.jobOver(current)
  parts.tell(current, 'over')
}

/** Keeps the newest of what has ended, and everything that has not. */
export function forgetOldest(draft: JournalData): void {
  const over = Object.values(draft.jobs)
    .filter((each) => each.step === 'over')
    .toSorted((left, right) => right.updatedAtMs - left.updatedAtMs)
  for (const each of over.slice(overKept)) {
    delete draft.jobs[each.jobId]
    delete draft.submissions[each.submissionId]
  }
  const refused = Object.values(draft.submissions)
    .filter((each) => each.state === 'refused' || each.state === 'purged')
    .toSorted((left, right) => right.createdAtMs - left.createdAtMs)
  for (const each of refused.slice(overKept)) delete draft.submissions[each.submissionId]
}
