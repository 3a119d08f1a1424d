/** Reports how a lease ended: its result, or why there is none. */
import { createHash } from 'node:crypto'
import { isSluiceError } from '@sluice/protocol/errors'
import type { LeaseRef, Problem } from '@sluice/protocol/messages'
import { type AnalysisParts, type Live, refOf } from './analysis-parts.ts'
import type { LeaseOutcome } from './lease.ts'
import { asProblem } from './problem.ts'

/** @returns Why there is no result, if there is none. */
export async function report(
  parts: AnalysisParts,
  lease: Live,
  outcome: LeaseOutcome,
): Promise<Problem | undefined> {
  const ref = refOf(lease.offer)
  let problem: Problem | undefined
  if (outcome.type === 'result') {
    const sealedResultSha256 = createHash('sha256').update(outcome.sealed).digest('hex')
    const signal = AbortSignal.any([lease.end.signal, parts.closing.signal])
    const body = { ...ref, sealedResultSha256 }
    try {
      await parts.link.request('lease.result', body, { attachment: outcome.sealed, signal })
      return undefined
    } catch (error) {
      problem = asProblem(lease.end.signal.aborted ? lease.end.signal.reason : error)
    }
  } else problem = outcome.problem
  await reportFailure(parts, ref, problem)
  return problem
}

/** A failure the control plane does not want to hear of any more is no news: the lease was over. */
export async function reportFailure(
  { link, closing }: AnalysisParts,
  ref: LeaseRef,
  problem: Problem,
): Promise<void> {
  try {
    await link.request('lease.fail', { ...ref, problem }, { signal: closing.signal })
  } catch (error) {
    if (!closing.signal.aborted && !isSluiceError(error)) throw error
  }
}
