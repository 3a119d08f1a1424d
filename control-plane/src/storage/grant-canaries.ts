/**
 * Proves that an access key opens nothing any more. S3 cannot take a URL back, but it refuses every
 * URL whose key is gone. So each key signs one URL that nobody else has, a canary: once the store
 * no longer knows who signed it, every other grant of that key is dead too.
 */
import { createHash } from 'node:crypto'
import { type Dispatcher, request } from 'undici'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

export type S3Credentials = { accessKeyId: string; secretAccessKey: string }

/** How long a grant may hold, by a clock of the store that is off as much as an agent's may be. */
const grantMsMax = Math.max(limits.uploadGrantMs, limits.readGrantMs) + limits.clockSkewMsMax
/** A canary outlives every grant that was signed while it was the newest of its key. */
const canaryMs = 2 * grantMsMax
/** Asked this often, each time over a new connection: one machine of the store may know it already. */
const askTimes = 3
const answerBytesMax = 64 * 1024
/** What S3 answers for a key that is gone, and for one whose secret was replaced. */
const unknownSigner = /<Code>(?:InvalidAccessKeyId|SignatureDoesNotMatch)<\/Code>/

type KeyUse = {
  canary: string
  canaryMadeAtMs: number
  firstUsedAtMs: number
  lastUsedAtMs: number
}

export type GrantCanaries = {
  /** Is told of a key before anything is signed with it. */
  use(credentials: S3Credentials): Promise<void>
  /**
   * Whether no grant signed before an instant can be used any more. Grants of an earlier process may
   * be out under a key that this one never saw: until those are over by themselves the answer is no.
   *
   * @throws SluiceError `store.unreachable` (`later`) when the store does not answer.
   */
  areDead(signedBeforeMs: number): Promise<boolean>
}

export function createGrantCanaries(options: {
  /** A URL that reads nothing, signed with these credentials for so long. */
  sign: (credentials: S3Credentials, lifeMs: number) => Promise<string>
  /** A dispatcher that keeps no connection. */
  dispatcher: Dispatcher
  timeoutMs: number
  now: () => number
}): GrantCanaries {
  const { now } = options
  const startedAtMs = now()
  const uses = new Map<string, KeyUse>()

  return {
    async use(credentials) {
      const { accessKeyId, secretAccessKey } = credentials
      const name = createHash('sha256').update(`${accessKeyId} ${secretAccessKey}`).digest('base64')
      const atMs = now()
      const known = uses.get(name)
      if (known && atMs - known.canaryMadeAtMs < grantMsMax) {
        known.lastUsedAtMs = atMs
        return
      }
      const canary = await options.sign(credentials, canaryMs)
      const firstUsedAtMs = known?.firstUsedAtMs ?? atMs
      uses.set(name, { canary, canaryMadeAtMs: atMs, firstUsedAtMs, lastUsedAtMs: atMs })
      for (const [other, use] of uses) if (use.lastUsedAtMs + grantMsMax < atMs) uses.delete(other)
    },

    async areDead(signedBeforeMs) {
      if (now() < startedAtMs + grantMsMax) return false
      for (const { canary, firstUsedAtMs, lastUsedAtMs } of [...uses.values()]) {
        if (firstUsedAtMs >= signedBeforeMs || lastUsedAtMs + grantMsMax < now()) continue
        if (!(await isRefused(canary))) return false
      }
      return true
    },
  }

  async function isRefused(canary: string): Promise<boolean> {
    for (let asked = 0; asked < askTimes; asked += 1) {
      const { status, text } = await ask(canary)
      if (status >= 500) throw unreachable(`it answered ${status}`)
      if (status !== 403 || !unknownSigner.test(text)) return false
    }
    return true
  }

  async function ask(url: string): Promise<{ status: number; text: string }> {
    try {
      const { dispatcher, timeoutMs } = options
      const signal = AbortSignal.timeout(timeoutMs)
      const { statusCode, body } = await request(url, { dispatcher, signal })
      let text = ''
      for await (const chunk of body as AsyncIterable<Buffer>) {
        text += chunk.toString('latin1')
        if (text.length > answerBytesMax) break
      }
      return { status: statusCode, text }
    } catch (cause) {
      throw unreachable(cause instanceof Error ? cause.message : 'no answer', cause)
    }
  }
}

function unreachable(why: string, cause?: unknown): SluiceError {
  return new SluiceError(
    'store.unreachable',
    `the store cannot be asked about old grants: ${why}`,
    {
      retry: 'later',
      hint: 'Check that the endpoint is up and that its certificate is trusted.',
      cause,
    },
  )
}
