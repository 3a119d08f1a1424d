/** Translates failures into what an agent is told of them. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Problem } from '@sluice/protocol/messages'
import { isWriteFailure, writeFailure } from '../database/write-failure.ts'

/**
 * @returns The expected failure behind `error`, or undefined for a bug. A disk that is full or
 * broken is expected: the transaction was rolled back, and the agent asks again later.
 */
export function expectedFailure(error: unknown): SluiceError | undefined {
  if (error instanceof SluiceError) return error
  return isWriteFailure(error) ? writeFailure(error) : undefined
}

export function problemOf(error: SluiceError): Problem {
  return {
    code: error.code,
    message: error.message.slice(0, limits.errorTextCharsMax),
    retry: error.retry,
    ...(error.hint === undefined ? {} : { hint: error.hint.slice(0, limits.errorTextCharsMax) }),
  }
}
