/** What an emergency purge takes from a capture host: out of the journal in one step, then off the disk. */
import { SluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import type { CaptureJob, JournalData, Submission } from '../journal.ts'
import type { PurgeFound, PurgeOrder } from '../purge.ts'
import { forgetContents } from './contents.ts'
import { deleteSpool, listSpool } from './spool.ts'

/** Purged jobs that are remembered, so that their receipts tell the truth about how they went. */
const purgedMax = 4096

/**
 * Takes the scope of an order out of the journal. Sources stay as they are: they are the customer's,
 * and so are results that were delivered.
 *
 * @param on.folders Jobs that have a folder in the spool, whether or not the journal knows them.
 */
export function takeFromJournal(
  draft: JournalData,
  order: PurgeOrder,
  on: { folders: readonly JobId[]; atMs: number },
): PurgeFound {
  const named = new Set<string>(order.jobIds)
  const counts = { spools: 0, drafts: 0, leases: 0, results: 0 }
  const jobIds = new Set<JobId>()
  const known = new Set(Object.keys(draft.jobs))
  const take = (id: JobId, abandon: boolean): void => {
    jobIds.add(id)
    draft.purgedJobs[id] = { wipedAtMs: on.atMs, abandon }
  }

  for (const job of Object.values(draft.jobs)) {
    const draftOnly = job.step === 'sealed'
    const inTime = draftOnly && isInTime(order, job.sealedAtMs)
    if (!order.everything && !named.has(job.jobId) && !inTime) continue
    if (draftOnly) counts.drafts += 1
    else if (!job.spoolGone) counts.spools += 1
    if (job.resultPath === undefined && !job.seedGone) counts.results += 1
    take(job.jobId, draftOnly)
    forget(draft, job)
  }
  for (const each of Object.values(draft.submissions)) {
    const { state, jobId: id } = each
    if (state === 'waiting' && order.everything) drop(each)
    if (state !== 'sealing') continue
    const begunAtMs = id && bornAtMs(id)
    const inTime = begunAtMs !== undefined && isInTime(order, begunAtMs, on.atMs)
    if (!order.everything && !(id && named.has(id)) && !inTime) continue
    drop(each)
    if (!id) continue
    counts.drafts += 1
    known.add(id)
    take(id, false)
  }
  for (const id of on.folders) {
    if (known.has(id)) continue
    if (!order.everything && !named.has(id) && !isInTime(order, bornAtMs(id))) continue
    counts.drafts += 1
    take(id, false)
  }
  // A purge that reaches drafts has ended every unused receive key of this host.
  if (order.everything || order.sealed !== undefined) draft.receiveKeys = []
  for (const each of Object.values(draft.submissions))
    if (each.state === 'purged') forgetContents(draft, each.submissionId)
  if (order.everything) draft.contents = {}
  forgetOldestPurged(draft)
  return { counts, jobIds: [...jobIds], leaseIds: [] }
}

/** A delivered result is the customer's, and found through its record; any other record goes. */
function forget(draft: JournalData, job: CaptureJob): void {
  const submission = draft.submissions[job.submissionId]
  if (job.resultPath === undefined) {
    delete draft.jobs[job.jobId]
    if (submission) drop(submission)
    return
  }
  const found = draft.jobs[job.jobId]
  if (!found) return
  Object.assign(found, { step: 'over', spoolGone: true, seedGone: true, sourceDone: true })
}

function drop(submission: Submission): void {
  submission.state = 'purged'
}

/** Whether `fromMs…toMs` touches the time of an order. */
function isInTime({ sealed }: PurgeOrder, fromMs: number, toMs = fromMs): boolean {
  return sealed !== undefined && fromMs < sealed.untilMs && toMs >= sealed.fromMs
}

/** When a sealing began, by this host's clock: RFC 9562 section 5.7, the first 48 bits of its id. */
function bornAtMs(id: JobId): number {
  return Number.parseInt(id.replaceAll('-', '').slice(0, 12), 16)
}

function forgetOldestPurged(draft: JournalData): void {
  const oldestFirst = Object.entries(draft.purgedJobs).toSorted(
    ([, one], [, other]) => one.wipedAtMs - other.wipedAtMs,
  )
  const kept = oldestFirst.slice(Math.max(0, oldestFirst.length - purgedMax))
  if (kept.length < oldestFirst.length) draft.purgedJobs = Object.fromEntries(kept)
}

/**
 * Removes the spools of these jobs and looks again; with `everything` at the whole spool.
 *
 * @param scope.isLater Whether a job came after the order.
 * @returns What was looked at, in the words of a receipt.
 * @throws SluiceError `wipe.incomplete` (later) when any is there again.
 */
export async function purgeSpools(
  spoolDir: string,
  ids: readonly JobId[],
  scope: { everything: boolean; isLater: (id: JobId) => boolean },
): Promise<string[]> {
  for (const id of ids) await deleteSpool(spoolDir, id)
  const { jobIds, unnamed } = await listSpool(spoolDir)
  const gone = new Set(ids)
  const left = jobIds.filter((id) => gone.has(id) || (scope.everything && !scope.isLater(id)))
  if (left.length > 0)
    throw new SluiceError('wipe.incomplete', `${left.length} spools are still there`, {
      retry: 'later',
    })
  if (!scope.everything) return ['spools of the scope unlinked and gone']
  const rest = unnamed === 0 ? [] : [`${unnamed} entries that name no job left alone`]
  return ['spools unlinked and gone, no other left from before', ...rest]
}
