/** Says in our own words why a decoder ended without a result; its own words are never shown. */
import { SluiceError } from '@sluice/protocol/errors'
import type { SandboxExit } from '../sandbox.ts'

/**
 * Does nothing when the decoder ended well, or when it wasn't the decoder that ended it.
 *
 * @param what The kind of medium, for the message.
 * @throws SluiceError `media.timeout`, `media.too_large`, `media.decoder_failed`, or for an exit code
 *   other than 0 what `failedCode` says.
 */
export function requireDecoderEnd(
  exit: SandboxExit,
  what: 'picture' | 'film' | 'sound',
  failedCode: 'media.decoder_failed' | 'media.corrupt' = 'media.decoder_failed',
): void {
  switch (exit.outcome) {
    case 'ok':
    // Its output was not what it should be: whoever stopped reading has said why.
    case 'abandoned':
      return
    case 'timeout':
      throw new SluiceError('media.timeout', `the ${what} took too long to decode`, {
        hint: 'It may be hostile, or this host too slow; try it on its own.',
      })
    case 'memory':
    case 'output':
      throw new SluiceError(
        'media.too_large',
        `the ${what} needs more memory than a decoder may have`,
        {
          hint: 'Scale it down or split it first.',
        },
      )
    case 'aborted':
      throw new SluiceError('media.decoder_failed', `the ${what} was not finished`, {
        retry: 'later',
        hint: 'The agent was stopping; it is taken up again when the agent runs.',
      })
    case 'processes':
      throw brokeDown(what)
    case 'failed':
      if (failedCode === 'media.corrupt' && exit.signal === null && (exit.code ?? 0) < 128) {
        throw new SluiceError('media.corrupt', `the ${what} is damaged or cut short`, {
          hint: 'Copy it from the camera again; damaged media are not sealed.',
        })
      }
      throw brokeDown(what)
  }
}

function brokeDown(what: string): SluiceError {
  return new SluiceError('media.decoder_failed', `the decoder of the ${what} broke down`, {
    hint: 'The file may be hostile; look at it on a machine that has nothing to lose.',
  })
}
