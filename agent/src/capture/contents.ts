/** Remembers which contents were taken, so that the same file under another name is no second job: pure. */
import { limits } from '@sluice/protocol/limits'
import type { SubmissionId } from '@sluice/protocol/ids'
import type { JournalData } from '../journal.ts'

/** The same content for another analyser is other work. */
export function contentKey(sha256: string, analyser: string): string {
  return `${sha256}/${analyser}`
}

/**
 * Whether this content was taken before and may still come, or came, to a result. Jobs share no key
 * and no byte: all that is saved is doing it again.
 */
export function isContentKnown(data: Readonly<JournalData>, key: string): boolean {
  const taken = data.contents[key]
  if (!taken) return false
  const submission = data.submissions[taken.submissionId]
  // Ended and forgotten: what was refused has left this list by then.
  if (!submission) return true
  if (submission.state === 'refused' || submission.state === 'purged') return false
  const job = submission.jobId && data.jobs[submission.jobId]
  if (!job || job.resultPath !== undefined) return true
  return !job.noResult && job.remoteState !== 'refused' && job.remoteState !== 'lost'
}

/** Takes note, in the change that takes the files in; the oldest are forgotten first. */
export function rememberContents(
  draft: JournalData,
  keys: readonly string[],
  by: { submissionId: SubmissionId; atMs: number },
): void {
  if (keys.length === 0) return
  for (const key of keys)
    draft.contents[key] = { submissionId: by.submissionId, takenAtMs: by.atMs }
  const all = Object.entries(draft.contents)
  if (all.length <= limits.contentsRememberedMax) return
  const newest = all
    .toSorted(([, one], [, other]) => other.takenAtMs - one.takenAtMs)
    .slice(0, limits.contentsRememberedMax)
  draft.contents = Object.fromEntries(newest)
}

/** What came to nothing may come again. */
export function forgetContents(draft: JournalData, submissionId: SubmissionId): void {
  for (const [key, taken] of Object.entries(draft.contents))
    if (taken.submissionId === submissionId) delete draft.contents[key]
}
