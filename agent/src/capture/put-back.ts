/** What becomes of a submission whose sealing failed: it waits again, it is refused, or its bad source is. */
import type { SluiceError } from '@sluice/protocol/errors'
import { type SubmissionId, submissionId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import type { JournalData, Submission } from '../journal.ts'
import { problemOf } from '../problem.ts'
import type { CaptureParts } from './capture-parts.ts'
import { forgetContents } from './contents.ts'
import { forgetOldest } from './over.ts'

/** A source that keeps failing in ways that may pass is tried this often. */
const sealAttemptsMax = 5
/** What passes without anybody's doing, or once somebody looks after the host. */
const patientWith: ReadonlySet<string> = new Set([
  'spool.full',
  'host.disk_full',
  'scan.unavailable',
  'scan.stale',
  'scan.unsafe',
])
/** Caused by one source of several, or by their sum, without a word about which. */
const ofSomeSource: ReadonlySet<string> = new Set(['internal', 'object.too_large'])

type Failure = {
  problem: SluiceError
  /** The source that caused it, by its place, where one is known. */
  blamed?: number | undefined
  atMs: number
}

/** @returns The submission as it is now, and the one that its bad source became. */
export function putBack(draft: JournalData, which: SubmissionId, failure: Failure): Submission[] {
  const { problem } = failure
  const current = draft.submissions[which]
  if (!current || current.state === 'purged') return []
  // No room and no scanner are no fault of the source, and no reason to ever give up.
  const patient = patientWith.has(problem.code)
  const again = problem.retry === 'later' && (patient || current.attempts < sealAttemptsMax)
  const aside = again ? undefined : setAside(draft, current, failure)
  current.state = again || aside ? 'waiting' : 'refused'
  if (current.state === 'refused') forgetContents(draft, which)
  if (aside) aside.problem = problemOf(problem)
  else current.problem = problemOf(problem)
  delete current.jobId
  forgetOldest(draft)
  return structuredClone(aside ? [current, aside] : [current])
}

/**
 * A watched folder's batch was put together by nobody: one bad source is refused by itself, and
 * the others go on without it; where none can be blamed, half of them go on as a batch of their
 * own. Who names files together gets them together, or not at all.
 */
function setAside(
  draft: JournalData,
  batch: Submission,
  { problem, blamed, atMs }: Failure,
): Submission | undefined {
  const { length } = batch.sources
  if (batch.origin !== 'watch' || length < 2) return undefined
  if (blamed === undefined && !ofSomeSource.has(problem.code)) return undefined
  const sources =
    blamed === undefined
      ? batch.sources.splice(Math.ceil(length / 2))
      : batch.sources.splice(blamed, 1)
  const aside: Submission = {
    ...structuredClone(batch),
    ...{ submissionId: newId(submissionId, atMs), sources, attempts: 0 },
    state: blamed === undefined ? 'waiting' : 'refused',
  }
  delete aside.jobId
  delete batch.problem
  batch.attempts = 0
  draft.submissions[aside.submissionId] = aside
  return aside
}

/** Tells people what became of what was put back. */
export function tellPutBack(
  { events, progress }: Pick<CaptureParts, 'events' | 'progress'>,
  after: readonly Submission[],
  problem: SluiceError,
): void {
  for (const each of after) {
    if (each.state === 'refused') {
      events.submissionRefused(each, problem)
      progress({ submissionId: each.submissionId, stage: 'refused' })
    } else events.sealingPutOff(each, problem)
  }
}
