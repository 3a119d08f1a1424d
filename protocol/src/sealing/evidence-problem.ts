/** The three ways in which a signed document does not hold, in words. */
import { SluiceError } from '../errors.ts'

/** It contradicts itself, or is not what it says. */
export function invalid(why: string, cause?: unknown): SluiceError {
  return new SluiceError('evidence.invalid', `it does not hold: ${why}`, { cause })
}

/** Somebody or something is missing from it. */
export function incomplete(why: string): SluiceError {
  return new SluiceError('evidence.incomplete', `it is incomplete: ${why}`)
}

/** Somebody speaks in it who may not. */
export function untrusted(why: string): SluiceError {
  return new SluiceError('evidence.untrusted', `it is not to be trusted: ${why}`)
}
