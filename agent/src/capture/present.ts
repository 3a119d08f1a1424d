/** How submissions look to the person who made them: one view from journal and live progress. */
import { type JobState, jobState } from '@sluice/protocol/job'
import { jobId, submissionId } from '@sluice/protocol/ids'
import { problem } from '@sluice/protocol/messages'
import { z } from 'zod'
import type { CaptureJob, JournalData, Submission } from '../journal.ts'

export const stages = [
  'waiting',
  'normalise',
  'seal',
  'announce',
  'upload',
  'stored',
  'analyse',
  'result',
  'delete',
  'over',
  'refused',
  'failed',
  'purged',
] as const
export const stage = z.enum(stages)
export type Stage = z.infer<typeof stage>

/** Live counts of a stage: sources, or bytes; `total` 0 while it is not known. */
export type StageCounts = { stage: Stage; done: number; total: number }

export const submissionView = z.strictObject({
  submissionId,
  jobId: jobId.optional(),
  analyser: z.string(),
  files: z.array(z.string()),
  createdAtMs: z.int(),
  stage,
  done: z.int().optional(),
  total: z.int().optional(),
  /** The job's state at the control plane, as last heard. */
  jobState: jobState.optional(),
  sealedBytes: z.int().optional(),
  resultPath: z.string().optional(),
  problem: problem.optional(),
  sourceProblem: problem.optional(),
  expiresAtMs: z.int().optional(),
})
export type SubmissionView = z.infer<typeof submissionView>

/** Where a submission stands, from what is durable. */
export function stageOf(submission: Submission, job: CaptureJob | undefined): Stage {
  if (submission.state === 'refused') return 'refused'
  if (submission.state === 'purged' && !job?.resultPath) return 'purged'
  if (!job) return submission.state === 'sealing' ? 'normalise' : 'waiting'
  if (job.step === 'over') return job.resultPath ? 'over' : 'failed'
  if (job.resultPath) return job.spoolGone ? 'over' : 'delete'
  if (job.noResult) return 'failed'
  return job.remoteState === undefined ? 'announce' : stageByState[job.remoteState]
}

const stageByState: Readonly<Record<JobState, Stage>> = {
  announced: 'upload',
  uploading: 'upload',
  stored: 'stored',
  frozen: 'stored',
  leased: 'analyse',
  analysed: 'result',
  deleting: 'result',
  deleted: 'result',
  'deleted-unconfirmed': 'result',
  failed: 'failed',
  refused: 'failed',
  lost: 'failed',
}

/** Whether waiting for a submission makes no more sense: its result is here, or won't be by itself. */
export function isSettled(view: SubmissionView): boolean {
  const { stage: at } = view
  return view.resultPath !== undefined || at === 'refused' || at === 'failed' || at === 'purged'
}

/** @returns undefined when the journal does not know the submission (any more). */
export function presentSubmission(
  data: JournalData,
  id: Submission['submissionId'],
  live?: StageCounts,
): SubmissionView | undefined {
  const submission = data.submissions[id]
  if (!submission) return undefined
  const job = submission.jobId ? data.jobs[submission.jobId] : undefined
  const durable = stageOf(submission, job)
  // Live counts belong to their stage; sealing is one durable state with two live ones.
  const counts = live?.stage === durable || submission.state === 'sealing' ? live : undefined
  return withoutUndefined({
    submissionId: submission.submissionId,
    jobId: submission.jobId,
    analyser: submission.analyser,
    files: submission.sources.map((source) => source.path),
    createdAtMs: submission.createdAtMs,
    stage: counts?.stage ?? durable,
    done: counts?.done,
    total: counts?.total,
    jobState: job?.remoteState,
    sealedBytes: job?.sealedBytes,
    resultPath: job?.resultPath,
    problem: job?.problem ?? submission.problem,
    sourceProblem: job?.sourceProblem,
    expiresAtMs: job?.expiresAtMs,
  })
}

function withoutUndefined(view: object): SubmissionView {
  return JSON.parse(JSON.stringify(view)) as SubmissionView
}
