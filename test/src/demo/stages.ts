/** The demo's jobs on their way: handed in, stored, analysed, deleted, each stage shown as it goes. */

import { stat } from 'node:fs/promises'
import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import type { SubmissionView } from '@sluice/agent/capture/present'
import { submissionView } from '@sluice/agent/capture/present'
import { jobDetail } from '@sluice/protocol/api-fleet'
import type { JobDetail } from '@sluice/protocol/api-fleet'
import type { JobId } from '@sluice/protocol/ids'
import { submissionId } from '@sluice/protocol/ids'
import type { JobState } from '@sluice/protocol/job'

import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import type { Progress, Stage } from './progress.ts'
import { sizeOf } from './progress.ts'

/** Normalising a film takes the longest. */
const storedMsMax = 120_000
const deletedMsMax = 120_000
const lookMs = 120

export type DemoJob = { jobId: JobId; file: string; name: string; fileBytes: number }

const onItsWay: readonly JobState[] = ['announced', 'uploading', 'stored', 'leased']
const afterUpload: readonly JobState[] = ['stored', 'leased', 'analysed', 'deleting', 'deleted']
const afterResult: readonly JobState[] = ['analysed', 'deleting', 'deleted']

/** The gate would not let a file pass; nothing of it was sealed. */
export class RefusedError extends Error {
  readonly hint: string | undefined
  constructor(problem: { code: string; message: string; hint?: string | undefined }) {
    super(`refused: ${problem.message} (${problem.code})`)
    this.hint = problem.hint
  }
}

/**
 * Hands in each file as a job of its own and waits until all are stored.
 *
 * @throws RefusedError when the gate refuses one; Error when one fails or takes too long.
 */
export async function sealAndUpload(parts: {
  fleet: Fleet
  capture: FleetAgent
  files: readonly string[]
  progress: Progress
}): Promise<DemoJob[]> {
  const { fleet, capture, files, progress } = parts
  const handedIn = await capture.ask({ type: 'submit', groups: files.map((file) => [file]) })
  const ids = handedIn.map((line) =>
    submissionId.parse((line as Partial<SubmissionView>).submissionId),
  )
  const end = performance.now() + storedMsMax
  for (;;) {
    const views = await viewsOf(capture, ids)
    const sealed = views.flatMap((view) => (isSealed(view) && view.jobId ? [view.jobId] : []))
    const jobs = await detailsOf(fleet, sealed)
    const stored = jobs.filter((job) => afterUpload.includes(job.state))
    const bytes = (all: readonly JobDetail[]) =>
      all.length === 0 ? '' : sizeOf(all.reduce((sum, job) => sum + job.sealedBytes, 0))
    const sealing = views.reduce((sum, view) => sum + sealedShare(view), 0)
    const uploading = views.reduce((sum, view) => sum + uploadedShare(view), 0)
    progress.show([
      stageOf('seal', sealing, files.length, bytes(jobs)),
      stageOf('upload', Math.max(uploading, stored.length), files.length, bytes(stored)),
    ])
    if (stored.length === files.length) return await withFiles(views)
    requireHope(jobs, end)
    await sleep(lookMs)
  }
}

async function viewsOf(capture: FleetAgent, ids: readonly string[]): Promise<SubmissionView[]> {
  const [status] = await capture.ask({ type: 'status' })
  const said = (status as { submissions?: unknown }).submissions
  const submissions = submissionView.array().parse(said)
  const views = ids.flatMap((id) => submissions.find((view) => view.submissionId === id) ?? [])
  for (const { stage, problem } of views)
    if (stage === 'refused' && problem !== undefined) throw new RefusedError(problem)
  return views
}

async function withFiles(views: readonly SubmissionView[]): Promise<DemoJob[]> {
  const jobs: DemoJob[] = []
  for (const { jobId, files } of views) {
    const [file] = files
    if (jobId === undefined || file === undefined) throw new Error('a stored job has no file')
    jobs.push({ jobId, file, name: basename(file), fileBytes: (await stat(file)).size })
  }
  return jobs
}

function isSealed({ stage }: SubmissionView): boolean {
  return !['waiting', 'normalise', 'seal', 'refused'].includes(stage)
}

/** Half for the gate, half for the sealing itself. */
function sealedShare(view: SubmissionView): number {
  if (isSealed(view)) return 1
  return view.stage === 'seal' ? 0.5 + share(view) / 2 : share(view) / 2
}

function uploadedShare(view: SubmissionView): number {
  if (view.stage === 'upload') return Math.min(0.99, share(view))
  return isSealed(view) && view.stage !== 'announce' ? 1 : 0
}

function share({ done = 0, total = 0 }: SubmissionView): number {
  return total === 0 ? 0 : Math.min(1, done / total)
}

/** Waits until a node has analysed all jobs and all of them are deleted, with every duty done. */
export async function analyseAndDelete(parts: {
  fleet: Fleet
  jobs: readonly DemoJob[]
  progress: Progress
}): Promise<JobDetail[]> {
  const { fleet, progress } = parts
  const ids = parts.jobs.map((job) => job.jobId)
  const total = ids.length
  const end = performance.now() + deletedMsMax
  for (;;) {
    const jobs = await detailsOf(fleet, ids)
    const deleted = jobs.filter((job) => job.state === 'deleted')
    const analysed = jobs.filter((job) => afterResult.includes(job.state))
    const leased = jobs.filter((job) => job.state === 'leased').length
    const owed = jobs.flatMap((job) => job.obligations).filter((one) => one.state !== 'done')
    const note = analysed.length === 0 ? '' : owed.length === 0 ? 'nothing owed' : owedNote(owed)
    progress.show([
      stageOf(
        'analyse',
        analysed.length + leased * 0.5,
        total,
        leased > 0 ? `${leased} leased` : '',
      ),
      stageOf('delete', deletedShare(jobs), total, note),
    ])
    if (deleted.length === total) return jobs
    requireHope(jobs, end)
    await sleep(lookMs)
  }
}

/** What is still owed, by kind, as `2 key.destroy`. */
function owedNote(owed: readonly { kind: string }[]): string {
  const kinds = Map.groupBy(owed, (one) => one.kind)
  const counts = [...kinds].map(([kind, all]) => `${all.length} ${kind}`)
  return `owed: ${counts.toSorted().join(', ')}`
}

/** Jobs deleted, and of the others the share of duties that are done. */
function deletedShare(jobs: readonly JobDetail[]): number {
  return jobs.reduce((sum, job) => {
    if (job.state === 'deleted') return sum + 1
    if (!afterResult.includes(job.state)) return sum
    const done = job.obligations.filter((one) => one.state === 'done').length
    return sum + Math.min(0.99, done / Math.max(1, job.obligations.length))
  }, 0)
}

function stageOf(title: string, done: number, total: number, note: string): Stage {
  return { title, done, total, note }
}

/** A job that was sealed but not announced yet is known to its capture agent alone. */
async function detailsOf(fleet: Fleet, ids: readonly JobId[]): Promise<JobDetail[]> {
  const details = await Promise.all(
    ids.map(async (jobId) => {
      const { status, body } = await fleet.call(`/v1/jobs/${jobId}`)
      return status === 200 ? [jobDetail.parse(body)] : []
    }),
  )
  return details.flat()
}

function requireHope(jobs: readonly JobDetail[], end: number): void {
  const hopeless = jobs.find(
    (job) => !onItsWay.includes(job.state) && !afterResult.includes(job.state),
  )
  const says = (job: JobDetail) =>
    `job ${job.id} is ${job.state}${job.problem ? ` (${job.problem.code}: ${job.problem.message})` : ''}` +
    job.obligations
      .filter((one) => one.state !== 'done')
      .map((one) => `\n  owed: ${one.kind} ${one.state} ${one.lastError ?? ''}`)
      .join('')
  if (hopeless !== undefined) throw new Error(says(hopeless))
  if (performance.now() > end) throw new Error(`it takes too long:\n${jobs.map(says).join('\n')}`)
}
