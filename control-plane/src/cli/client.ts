/** Speaks the operator's API: over TLS with the authority of the login, or over the owner's socket. */
import { X509Certificate } from 'node:crypto'
import { Agent, type Dispatcher, request } from 'undici'
import type { z } from 'zod'
import { problemDocument, type TokenContent } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { commandId } from '@sluice/protocol/ids'

export type Client = AsyncDisposable & {
  get<T extends z.ZodType>(path: string, reply: T): Promise<z.output<T>>
  post<T extends z.ZodType>(path: string, body: object, reply: T): Promise<z.output<T>>
  /** An answer that is no JSON of ours, byte for byte. */
  bytes(path: string, bytesMax: number): Promise<Buffer>
  /** The same, as it comes, for what may be larger than memory. */
  pieces(path: string): AsyncGenerator<Uint8Array>
  /** Server-sent events after `afterId`, until `signal` or the server ends them. */
  events(
    path: string,
    options: { afterId: string; signal: AbortSignal },
  ): AsyncGenerator<{ id: string; type: string; data: string }>
}

/** Pages and documents of the API; streams and certificates have bounds of their own. */
const replyBytesMax = 16 * 1024 * 1024
const eventBytesMax = 64 * 1024

/** A client for whoever logged in. It trusts the authority in the token and no other. */
export function apiClient(login: TokenContent): Client {
  const { secret, url } = login
  const ca = new X509Certificate(Buffer.from(login.ca, 'base64')).toString()
  const dispatcher = new Agent({
    connect: { ca, minVersion: 'TLSv1.3' },
    headersTimeout: limits.requestTimeoutMs,
    bodyTimeout: limits.requestTimeoutMs,
  })
  return client({ origin: new URL(url).origin, dispatcher, authorization: `Bearer ${secret}` })
}

/** A client for the owner of a data directory. */
export function adminClient(socketPath: string): Client {
  const dispatcher = new Agent({ connect: { socketPath } })
  return client({ origin: 'http://localhost', dispatcher })
}

function client(options: { origin: string; dispatcher: Agent; authorization?: string }): Client {
  const { origin, dispatcher, authorization } = options
  const base: Record<string, string> = authorization === undefined ? {} : { authorization }

  async function send(
    path: string,
    more: Omit<Dispatcher.RequestOptions, 'origin' | 'path' | 'method' | 'headers'> & {
      method?: 'GET' | 'POST'
      headers?: Record<string, string>
      bodyTimeout?: number
    } = {},
  ) {
    let response
    try {
      response = await request(`${origin}${path}`, {
        ...more,
        dispatcher,
        headers: { ...base, ...more.headers },
      })
    } catch (cause) {
      throw unreachable(origin, cause)
    }
    if (response.statusCode >= 300) throw await failureOf(response)
    return response
  }

  return {
    async get(path, reply) {
      return reply.parse(JSON.parse((await readAll(await send(path), replyBytesMax)).toString()))
    },
    async post(path, body, reply) {
      const headers = {
        'content-type': 'application/json',
        'idempotency-key': newId(commandId, Date.now()),
      }
      const answer = await send(path, { method: 'POST', headers, body: JSON.stringify(body) })
      return reply.parse(JSON.parse((await readAll(answer, replyBytesMax)).toString()))
    },
    bytes: async (path, bytesMax) => readAll(await send(path), bytesMax),
    async *pieces(path) {
      const answer = await send(path)
      for await (const piece of answer.body) yield piece as Uint8Array
    },
    async *events(path, { afterId, signal }) {
      const headers = { accept: 'text/event-stream', 'last-event-id': afterId }
      // The server shows every few seconds that it lives.
      const answer = await send(path, { headers, signal, bodyTimeout: limits.linkSilenceMs })
      let text = ''
      for await (const piece of answer.body) {
        text += Buffer.from(piece as Uint8Array).toString('utf8')
        const blocks = text.split('\n\n')
        text = blocks.pop() ?? ''
        if (text.length > eventBytesMax) throw malformed()
        for (const block of blocks) {
          const event = { id: '', type: 'message', data: '' }
          for (const line of block.split('\n')) {
            if (line.startsWith('id: ')) event.id = line.slice(4)
            if (line.startsWith('event: ')) event.type = line.slice(7)
            if (line.startsWith('data: ')) event.data += line.slice(6)
          }
          if (event.data !== '') yield event
        }
      }
    },
    [Symbol.asyncDispose]: () => dispatcher.close(),
  }
}

async function readAll(
  response: { body: AsyncIterable<unknown> },
  bytesMax: number,
): Promise<Buffer> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of response.body) {
    const buffer = Buffer.from(piece as Uint8Array)
    bytes += buffer.length
    if (bytes > bytesMax) throw malformed()
    pieces.push(buffer)
  }
  return Buffer.concat(pieces)
}

function malformed(): SluiceError {
  return new SluiceError('control_plane.unreachable', 'the answer is not one of a control plane', {
    hint: 'Compare the versions of this tool and of the control plane.',
  })
}

async function failureOf(response: Dispatcher.ResponseData): Promise<SluiceError> {
  const text = (await readAll(response, replyBytesMax)).toString('utf8')
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new SluiceError('control_plane.unreachable', `status ${response.statusCode}`, { cause })
  }
  const problem = problemDocument.safeParse(value)
  if (!problem.success) return malformed()
  const { code, detail, hint, retry } = problem.data
  return new SluiceError(code, detail, { retry, ...(hint === undefined ? {} : { hint }) })
}

function unreachable(origin: string, cause: unknown): SluiceError {
  const { code = 'no answer' } = cause as NodeJS.ErrnoException
  const tls = /CERT|SIGNATURE|ERR_TLS|SELF_SIGNED|ALTNAME/.test(code)
  return new SluiceError('control_plane.unreachable', `${origin}: ${code}`, {
    retry: 'later',
    hint: tls
      ? 'Its certificate is not from the authority of your login: log in again with a new token.'
      : 'Is `sluice serve` running there, and is this its address?',
    cause,
  })
}
