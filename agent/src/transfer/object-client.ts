/** Sends one request under a grant: https only, always verified, our certificate only to the control plane. */
import { getCACertificates } from 'node:tls'
import { Agent, request } from 'undici'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Grant } from '@sluice/protocol/messages'
import type { Identity } from '../enrol.ts'
import { keyExchangeGroups } from '../key-exchange.ts'

export type ObjectAnswer = {
  status: number
  /** Header values by lower-case name; of a repeated header the first. */
  headers: Readonly<Record<string, string | undefined>>
  body: Buffer
}

export type ObjectClient = AsyncDisposable & {
  /**
   * Sends one request, without redirects or retries.
   *
   * @param options.range Inclusive byte positions, as in RFC 9110 section 14.1.2.
   * @param options.bodyBytesMax A longer answer ends the request.
   * @throws SluiceError `store.unreachable` (later) when no whole answer came,
   * `download.mismatch` when it was longer than it may be.
   */
  send(options: {
    grant: Grant
    method: 'GET' | 'PUT'
    body?: Uint8Array
    range?: { first: number; last: number }
    bodyBytesMax: number
    signal?: AbortSignal
  }): Promise<ObjectAnswer>
}

/** One silent minute ends a request: presigned URLs are short-lived, and a retry costs one part. */
const silenceMs = 60_000

/**
 * @param options.storageAuthorities PEM of further authorities the object store may be known by.
 */
export function createObjectClient(options: {
  identity: Pick<Identity, 'agentUrl' | 'tlsOptions' | 'generation'>
  storageAuthorities?: string
  connectionsMax?: number
}): ObjectClient {
  const { identity } = options
  const controlPlane = new URL(identity.agentUrl).origin
  const pool = { connections: options.connectionsMax ?? 8, pipelining: 1 }
  let ours: { generation: number; agent: Agent } | undefined
  let theirs: { generation: number; agent: Agent } | undefined

  function agentFor(origin: string): Agent {
    const generation = identity.generation()
    const { ca, cert, key } = identity.tlsOptions()
    // Two trusts that never mix: the control plane is known by its own authority alone.
    if (origin === controlPlane) {
      if (ours?.generation !== generation) {
        void ours?.agent.close()
        ours = { generation, agent: new Agent({ ...pool, connect: strict({ ca, cert, key }) }) }
      }
      return ours.agent
    }
    if (theirs?.generation !== generation) {
      void theirs?.agent.close()
      const roots = [...ca, ...getCACertificates('default'), ...getCACertificates('system')]
      const extra = options.storageAuthorities ? [options.storageAuthorities] : []
      const connect = strict({ ca: [...new Set([...roots, ...extra])] })
      theirs = { generation, agent: new Agent({ ...pool, connect }) }
    }
    return theirs.agent
  }

  return {
    async send({ grant, method, body, range, bodyBytesMax, signal }) {
      const url = new URL(grant.url)
      if (url.protocol !== 'https:')
        throw new SluiceError('store.insecure', 'a grant does not name an https address')
      const headers: Record<string, string> = { ...grant.headers }
      // Part of the signature, but named by the connection itself.
      delete headers['host']
      if (range) headers['range'] = `bytes=${range.first}-${range.last}`
      try {
        const answer = await request(url, {
          dispatcher: agentFor(url.origin),
          method,
          headers,
          body: body ?? null,
          signal: signal ?? null,
          headersTimeout: silenceMs,
          bodyTimeout: silenceMs,
        })
        const chunks: Buffer[] = []
        let bytes = 0
        for await (const chunk of answer.body as AsyncIterable<Buffer>) {
          bytes += chunk.length
          if (bytes > bodyBytesMax)
            throw new SluiceError(
              'download.mismatch',
              `the store answers more than ${bodyBytesMax} bytes`,
            )
          chunks.push(chunk)
        }
        return {
          status: answer.statusCode,
          headers: firstValues(answer.headers),
          body: Buffer.concat(chunks, bytes),
        }
      } catch (cause) {
        if (cause instanceof SluiceError) throw cause
        if (signal?.aborted) throw signal.reason
        // The error of the client may quote the URL, and with it the signature.
        const code = errnoOf(cause)
        throw new SluiceError('store.unreachable', `the object store at ${url.host}: ${code}`, {
          retry: 'later',
          hint: 'Check the network and, for certificate errors, "storageCaFile".',
        })
      }
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([ours?.agent.destroy(), theirs?.agent.destroy()])
    },
  }
}

function strict<T extends object>(trust: T) {
  return {
    ...trust,
    minVersion: 'TLSv1.3' as const,
    ecdhCurve: keyExchangeGroups,
    timeout: limits.requestTimeoutMs,
    allowH2: false,
  }
}

function firstValues(headers: Record<string, string | string[] | undefined>) {
  const pairs = Object.entries(headers).map(([name, value]) => [
    name.toLowerCase(),
    Array.isArray(value) ? value[0] : value,
  ])
  return Object.fromEntries(pairs) as Record<string, string | undefined>
}

function errnoOf(error: unknown): string {
  const codes = [error, error instanceof Error ? error.cause : undefined].flatMap((each) =>
    each instanceof Error && 'code' in each && typeof each.code === 'string' ? [each.code] : [],
  )
  return codes[0] ?? 'the request failed'
}
