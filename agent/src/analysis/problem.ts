/** Turns a failure into what may be said about it to others: expected ones as they are, the rest without words. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { Problem } from '@sluice/protocol/messages'
import { problemOf } from '../problem.ts'

/** Unexpected errors may quote what they met, so nothing of their text is passed on. */
export function asProblem(error: unknown): Problem {
  if (isSluiceError(error)) return problemOf(error)
  // A full disk or a lack of processes says nothing about the job: it may do better elsewhere.
  const { code, errno } = (error ?? {}) as NodeJS.ErrnoException
  if (error instanceof Error && typeof errno === 'number')
    return {
      code: 'analysis.failed',
      message: `The node could not carry out the analysis: ${code}.`,
      hint: 'Look at disk, memory and processes of the node.',
      retry: 'later',
    }
  return {
    code: 'internal',
    message: 'The analysis failed in an unexpected way.',
    hint: 'This is a fault of Sluice itself; please report it with the agent’s version.',
    retry: 'never',
  }
}

/** Somebody else may hold the job by now, or nobody. */
export function lostLease(message: string): SluiceError {
  return new SluiceError('lease.stale', message, { retry: 'later' })
}
