/** Ends a try: the job waits again, is kept as failed, or is lost; its capture host is told. */
import type { Actor } from '@sluice/protocol/audit-event'
import type { JobState } from '@sluice/protocol/job'
import type { Problem } from '@sluice/protocol/messages'
import type { Transaction } from '../database/database.ts'
import { addObligation, dropDuties } from '../deletion/store.ts'
import { enqueueCommand } from '../fleet/store.ts'
import type { JobDeps } from './deps.ts'
import { keepUntil } from './rules.ts'
import { changeState, type JobRow } from './store.ts'

/**
 * Makes a job `failed` or `lost` in the caller's transaction. What is left of it is kept for its
 * time; then the same deletion runs. The only copy of a medium never expires unannounced.
 *
 * @throws SluiceError `request.conflict` when the job is no longer in `from`.
 */
export async function failJob(
  deps: JobDeps,
  tx: Transaction,
  failed: { job: JobRow; from: JobState; to: 'failed' | 'lost'; problem: Problem; actor: Actor },
): Promise<void> {
  const { job, from, to, problem, actor } = failed
  const atMs = deps.now()
  const expiresAtMs = await keepForItsTime(deps, tx, job)
  await changeState(
    tx,
    {
      jobId: job.id,
      from,
      to,
      actor,
      atMs,
      set: {
        expiresAtMs,
        problemCode: problem.code,
        problemMessage: problem.message,
        frozenFrom: null,
      },
      detail: { code: problem.code },
    },
    deps.changes,
  )
  await tellCaptureHost(deps, tx, { job, state: to, problem, expiresAtMs })
}

/**
 * Owes the end of a job's time, counted from now, in the caller's transaction.
 *
 * @returns When that is.
 */
export async function keepForItsTime(deps: JobDeps, tx: Transaction, job: JobRow): Promise<number> {
  const atMs = deps.now()
  const { expiresAtMs, noticeAtMs } = keepUntil(job, atMs, deps.failedJobKeepMs)
  await dropDuties(tx, { jobId: job.id, kinds: ['job.expire', 'job.expiry-notice'], atMs })
  const owed = { jobId: job.id, site: job.site, state: 'due', atMs } as const
  await addObligation(
    tx,
    { ...owed, kind: 'job.expire', nextTryAtMs: expiresAtMs, deadlineAtMs: expiresAtMs + 60_000 },
    deps.changes,
  )
  if (noticeAtMs !== undefined)
    await addObligation(
      tx,
      {
        ...owed,
        kind: 'job.expiry-notice',
        nextTryAtMs: noticeAtMs,
        deadlineAtMs: noticeAtMs + 60_000,
      },
      deps.changes,
    )
  return expiresAtMs
}

/** Queues a notice about a job for its capture host. */
export async function tellCaptureHost(
  deps: JobDeps,
  tx: Transaction,
  notice: { job: JobRow; state: JobState; problem?: Problem; expiresAtMs?: number },
): Promise<void> {
  const { job, state, problem, expiresAtMs } = notice
  await enqueueCommand(
    tx,
    {
      agentId: job.captureAgentId,
      lane: 'work',
      atMs: deps.now(),
      command: {
        type: 'job.notice',
        jobId: job.id,
        state,
        ...(problem === undefined ? {} : { problem }),
        ...(expiresAtMs === undefined ? {} : { expiresAtMs }),
      },
    },
    deps.changes,
  )
}

/** The problem a job failed with, as it was written down. */
export function problemOfJob(job: JobRow): Problem | undefined {
  if (!job.problemCode) return undefined
  return { code: job.problemCode, message: job.problemMessage ?? '', retry: 'never' }
}
