/** Turns failures into the problems that travel on the channel, and back. */
import { SluiceError } from '@sluice/protocol/errors'
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
