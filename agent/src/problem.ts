/** Turns failures into the problems that travel on the channel, and back. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Problem } from '@sluice/protocol/messages'

/** The error the other side meant. */
export function errorOf(problem: Problem): SluiceError {
  return new SluiceError(problem.code, problem.message, {
    retry: problem.retry,
    ...(problem.hint === undefined ? {} : { hint: problem.hint }),
  })
}

/** An expected failure as a problem, its texts cut to what a message may carry. */
export function problemOf(error: SluiceError): Problem {
  const cut = (text: string) => text.slice(0, limits.errorTextCharsMax)
  return {
    code: error.code,
    message: cut(error.message),
    ...(error.hint === undefined ? {} : { hint: cut(error.hint) }),
    retry: error.retry,
  }
}

/**
 * Why something could not be wiped yet: an expected failure, or one of the file system.
 *
 * @throws Everything else: a bug.
 */
export function asWipeProblem(error: unknown): SluiceError {
  if (isSluiceError(error)) return error
  const code = error instanceof Error && 'code' in error ? String(error.code) : undefined
  if (code === undefined || !/^E[A-Z0-9]+$/.test(code)) throw error
  return new SluiceError('wipe.incomplete', `the file system refuses the removal: ${code}`, {
    retry: 'later',
    hint: 'The agent tries again by itself. Look at the permissions and the health of that disk.',
    cause: error,
  })
}
