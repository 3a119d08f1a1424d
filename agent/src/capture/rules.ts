/** Decides what a capture host does next for a job: pure, from its journal record alone. */
import { type JobState, isOver } from '@sluice/protocol/job'
import type { CaptureJob } from '../journal.ts'

export const captureDuties = [
  'delete-spool',
  'announce',
  'upload',
  'handle-source-stored',
  'fetch-result',
  'handle-source',
  'confirm-delivery',
  'wipe-seed',
  'finish',
  'wait',
] as const
export type CaptureDuty = (typeof captureDuties)[number]

/** A job in one of these states has had its result, if it ever had one. */
const afterAnalysis: readonly JobState[] = [
  'analysed',
  'deleting',
  'deleted',
  'deleted-unconfirmed',
]

/** Without a result there is none to come: a source is then kept. */
const hopeless: readonly JobState[] = ['refused', 'lost']

/**
 * The next duty for a job, most urgent first. Deletion comes before everything: nothing may hold up
 * the removal of a spool that someone ordered.
 *
 * `noResult` is set when the control plane says that it has no result for the job and never will.
 */
export function nextDuty(job: CaptureJob): CaptureDuty {
  if (job.spoolDeleteWanted && !job.spoolGone) return 'delete-spool'
  if (job.step === 'over') return 'wait'
  if (job.step === 'sealed' && !job.spoolDeleteWanted) return 'announce'
  const state = job.remoteState
  const waiting = state === undefined || state === 'announced' || state === 'uploading'
  if (job.step === 'announced' && waiting && !job.spoolDeleteWanted) return 'upload'
  const delivered = job.resultPath !== undefined
  if (mayHandleWhenStored(job)) return 'handle-source-stored'
  if (!delivered && !job.noResult && state !== undefined && afterAnalysis.includes(state))
    return 'fetch-result'
  if (delivered && !job.sourceDone) return 'handle-source'
  if (delivered && !job.deliveryConfirmed) return 'confirm-delivery'
  const settled = delivered || job.noResult || (state !== undefined && hopeless.includes(state))
  const ended = state !== undefined && (isOver(state) || state === 'deleting')
  if (settled && job.spoolGone && !job.seedGone) return 'wipe-seed'
  if (job.spoolGone && job.seedGone && (ended || settled)) return 'finish'
  return 'wait'
}

/** `stored` is an explicit choice: the source may go once the stored object was read back whole. */
function mayHandleWhenStored(job: CaptureJob): boolean {
  return (
    job.source.when === 'stored' &&
    job.source.action !== 'keep' &&
    !job.sourceDone &&
    !job.spoolDeleteWanted &&
    job.resultPath === undefined &&
    (job.remoteState === 'stored' || job.remoteState === 'leased')
  )
}
