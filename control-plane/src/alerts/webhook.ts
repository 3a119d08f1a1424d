/** Posts alerts to the one channel there is: signed, over verified TLS, bounded in time and bytes. */
import { readFile } from 'node:fs/promises'
import { Agent, request } from 'undici'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { readSecretFile } from '@sluice/protocol/process/secret'
import {
  bodyOf,
  checkAnswer,
  type Message,
  secretBytesMax,
  secretBytesMin,
  signedHeaders,
} from './rules.ts'

export type AlertChannel = AsyncDisposable & {
  /**
   * One try.
   *
   * @returns The status the receiver answered, 2xx.
   * @throws SluiceError `alert.undelivered` when it refused, redirected or did not answer in time.
   */
  send(message: Message, signal?: AbortSignal): Promise<number>
}

type WebhookOptions = {
  /** https; http only to this host. */
  url: string
  /** The raw key, 24 to 64 bytes, 0600; read anew at every try, so that a rotated one counts. */
  secretFile: string
  /** PEM of the authorities to trust instead of those of the system. */
  caFile?: string | undefined
  now: () => number
  timeoutMs?: number
}

/** @throws SluiceError `config.invalid` or `host.unsafe_file` when its secret cannot be used. */
export async function openWebhook(options: WebhookOptions): Promise<AlertChannel> {
  const { url, secretFile, caFile, now, timeoutMs = limits.alertTimeoutMs } = options
  ;(await readKey(secretFile))[Symbol.dispose]()
  const ca = caFile === undefined ? undefined : await readFile(caFile, 'utf8')
  const dispatcher = new Agent({
    connect: { minVersion: 'TLSv1.2', timeout: timeoutMs, ...(ca === undefined ? {} : { ca }) },
    maxResponseSize: limits.alertAnswerBytesMax,
    connections: 4,
    keepAliveTimeout: 1000,
  })

  return {
    async send(message, signal) {
      const body = bodyOf(message)
      using key = await readKey(secretFile)
      const headers = signedHeaders({ id: message.id, body, atMs: now() }, key.bytes)
      const over = AbortSignal.timeout(timeoutMs)
      try {
        const answer = await request(url, {
          ...{ method: 'POST', body, headers, dispatcher },
          signal: signal === undefined ? over : AbortSignal.any([signal, over]),
        })
        // Read to its end within the bounds; what it says is of no interest.
        for await (const piece of answer.body) void piece
        checkAnswer(answer.statusCode)
        return answer.statusCode
      } catch (cause) {
        if (isSluiceError(cause)) throw cause
        throw unreachable(cause)
      }
    },
    [Symbol.asyncDispose]: () => dispatcher.destroy(),
  }
}

async function readKey(path: string) {
  const key = await readSecretFile(path, secretBytesMax)
  if (key.bytes.length >= secretBytesMin) return key
  key[Symbol.dispose]()
  throw new SluiceError('config.invalid', `${path} holds fewer than ${secretBytesMin} bytes`, {
    hint: `Make one: head -c 32 /dev/urandom > ${path}`,
  })
}

function unreachable(cause: unknown): SluiceError {
  const { code, name } = cause as NodeJS.ErrnoException
  const why = name === 'TimeoutError' ? 'no answer in time' : (code ?? 'no answer')
  return new SluiceError('alert.undelivered', `the alert channel cannot be reached: ${why}`, {
    retry: 'later',
    hint: 'Is the receiver up, and its certificate one that alerts.webhook.caFile vouches for?',
    cause,
  })
}
