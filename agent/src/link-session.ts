/** One connection of the channel, from the handshake to its end: greets, beats, notices silence, checks every frame. */
import type { IncomingMessage } from 'node:http'
import { SluiceError } from '@sluice/protocol/errors'
import { decodeFrame, encodeFrame } from '@sluice/protocol/frame'
import { limits } from '@sluice/protocol/limits'
import {
  type DownMessage,
  type Hello,
  type LeaseRef,
  type UpMessage,
  downMessage,
  problem as problemSchema,
  protocolVersions,
} from '@sluice/protocol/messages'
import { WebSocket } from 'ws'
import { z } from 'zod'
import type { Identity } from './identity.ts'
import { keyExchangeGroups } from './key-exchange.ts'
import { errorOf } from './problem.ts'

/** A lease the control plane has renewed. */
export type RenewedLease = LeaseRef & { remainingMs: number }

export type LeaseKeeping = {
  /** The leases to name in the next heartbeat. */
  named: () => LeaseRef[]
  /**
   * Told of every answer. A lease named in that heartbeat and not in `renewed` is over.
   *
   * @param sentAtMs Monotonic milliseconds (`performance.now`) from before the heartbeat was sent:
   * the deadline is `sentAtMs + remainingMs`.
   */
  renewed: (renewed: RenewedLease[], sentAtMs: number, named: LeaseRef[]) => void
}

export type LinkTiming = {
  heartbeatMs: number
  linkSilenceMs: number
  requestTimeoutMs: number
  reconnectMsMin: number
  reconnectMsMax: number
}

/** Messages of an established link that the session does not answer itself. */
export type LinkMessage = Extract<DownMessage, { type: 'command' | 'reply' }>
export type Welcome = Extract<DownMessage, { type: 'welcome' }>

export type SessionEnd = {
  /** Why it ended; `channel.closed` (later) when the other side just closed it. */
  problem: SluiceError
  /** How long it was established; undefined if it never was. */
  establishedMs: number | undefined
}

export type Session = {
  send(message: UpMessage, attachment?: Uint8Array): void
  heartbeat(): void
  close(problem: SluiceError): void
  readonly ended: Promise<SessionEnd>
}

export function openSession(options: {
  identity: Identity
  hello: Hello
  leases: LeaseKeeping | undefined
  timing: LinkTiming
  now: () => number
  monotonicMs: () => number
  onWelcome: (session: Session, welcome: Welcome) => void
  onMessage: (message: LinkMessage, attachment: Buffer | undefined) => void
}): Session {
  const { identity, timing, monotonicMs } = options
  const url = new URL('/v1/channel', identity.agentUrl)
  url.protocol = 'wss:'
  const socket = new WebSocket(url, {
    ...identity.tlsOptions(),
    minVersion: 'TLSv1.3',
    ecdhCurve: keyExchangeGroups,
    maxPayload: limits.frameBytesMax,
    perMessageDeflate: false,
    handshakeTimeout: timing.requestTimeoutMs,
    followRedirects: false,
  })
  const { promise: ended, resolve: resolveEnded } = Promise.withResolvers<SessionEnd>()
  /** Heartbeats without an answer yet, oldest first: an answer counts from the oldest one. */
  const beats: { sentAtMs: number; named: LeaseRef[] }[] = []
  let reason: SluiceError | undefined
  let establishedAtMs: number | undefined
  let heardAtMs = monotonicMs()
  let beatTimer: NodeJS.Timeout | undefined

  const session: Session = {
    ended,
    send(message, attachment) {
      if (socket.readyState === WebSocket.OPEN) socket.send(encodeFrame(message, attachment))
    },
    heartbeat() {
      if (establishedAtMs === undefined) return
      const named = options.leases?.named() ?? []
      beats.push({ sentAtMs: monotonicMs(), named })
      session.send({ type: 'heartbeat', atMs: options.now(), leases: named })
    },
    close(problem) {
      reason ??= problem
      // A peer that does not answer the closing handshake is not waited for.
      if (socket.readyState === WebSocket.OPEN) socket.close(1000)
      setTimeout(() => socket.terminate(), 500).unref()
    },
  }

  function watchSilence(): void {
    if (monotonicMs() - heardAtMs < timing.linkSilenceMs) return
    reason ??= new SluiceError('channel.timeout', 'the control plane has fallen silent', {
      retry: 'later',
    })
    socket.terminate()
  }
  const silenceTimer = setInterval(watchSilence, Math.max(10, timing.linkSilenceMs / 30))

  function receive(message: DownMessage, attachment: Buffer | undefined): void {
    if (message.type === 'goodbye') return session.close(errorOf(message.problem))
    if (establishedAtMs === undefined) return welcomed(message)
    switch (message.type) {
      case 'welcome':
        throw new SluiceError('channel.malformed', 'a second welcome')
      case 'heartbeat': {
        const beat = beats.shift()
        if (!beat) throw new SluiceError('channel.malformed', 'an answer to no heartbeat')
        return options.leases?.renewed(message.leases, beat.sentAtMs, beat.named)
      }
      case 'command':
      case 'reply':
        return options.onMessage(message, attachment)
    }
  }

  function welcomed(message: DownMessage): void {
    if (message.type !== 'welcome')
      throw new SluiceError('channel.malformed', `${message.type} before welcome`)
    if (!protocolVersions.some((version) => version === message.version))
      throw new SluiceError(
        'version.unsupported',
        `the control plane (${message.build}) speaks protocol ${message.version}, this agent does not`,
        { hint: 'Upgrade the older of the two.' },
      )
    if (message.agentId !== identity.agentId)
      throw new SluiceError('channel.malformed', 'the control plane greets another agent')
    establishedAtMs = monotonicMs()
    options.onWelcome(session, message)
    session.heartbeat()
    beatTimer = setInterval(() => session.heartbeat(), timing.heartbeatMs)
  }

  socket.on('open', () => session.send(options.hello))
  socket.on('message', (data, isBinary) => {
    heardAtMs = monotonicMs()
    // After an own decision to close, what still comes in is not for us.
    if (reason) return
    try {
      const frame = decodeFrame(bytesOf(data), isBinary)
      const parsed = downMessage.safeParse(frame.message)
      if (!parsed.success)
        throw new SluiceError('channel.malformed', 'a message this agent does not know', {
          retry: 'later',
          cause: parsed.error,
        })
      receive(parsed.data, frame.attachment)
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error
      session.close(error)
    }
  })
  socket.on('ping', () => (heardAtMs = monotonicMs()))
  socket.on('pong', () => (heardAtMs = monotonicMs()))
  socket.on('unexpected-response', (_request, response) => {
    readRefusal(response)
      .then((problem) => (reason ??= problem))
      .catch((error: unknown) => (reason ??= unreachable(error, identity, options.now())))
      .finally(() => socket.terminate())
  })
  socket.on('error', (error) => (reason ??= unreachable(error, identity, options.now())))
  socket.on('close', () => {
    clearInterval(silenceTimer)
    clearInterval(beatTimer)
    resolveEnded({
      problem:
        reason ??
        new SluiceError('channel.closed', 'the control plane closed the link', { retry: 'later' }),
      establishedMs: establishedAtMs === undefined ? undefined : monotonicMs() - establishedAtMs,
    })
  })
  return session
}

function bytesOf(data: Buffer | ArrayBuffer | Buffer[]): Buffer {
  if (Buffer.isBuffer(data)) return data
  return Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data)
}

const refusalBytesMax = 8192

/** The problem document of a refused upgrade, or what its status says. */
async function readRefusal(response: IncomingMessage): Promise<SluiceError> {
  let text = ''
  for await (const chunk of response.setEncoding('utf8')) {
    text += String(chunk)
    if (text.length > refusalBytesMax) break
  }
  const document = z
    .object({ code: z.string(), hint: z.string().optional() })
    .safeParse(jsonOf(text))
  const status = response.statusCode ?? 0
  const fallback = new SluiceError(
    'control_plane.unreachable',
    `the control plane answers ${status}`,
    {
      retry: 'later',
      hint: 'Look at the log of the control plane.',
    },
  )
  if (!document.success) return fallback
  const code = problemSchema.shape.code.safeParse(document.data.code)
  if (!code.success) return fallback
  const { hint } = document.data
  const message = `the control plane refuses this agent (${status})`
  return new SluiceError(code.data, message, hint === undefined ? {} : { hint })
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // Not ours, then: a proxy's page. The status says enough.
    return undefined
  }
}

/** Error codes of OpenSSL that mean: this is not the server we joined. */
const foreignServer = new Set([
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'ERR_TLS_CERT_ALTNAME_INVALID',
  'CERT_SIGNATURE_FAILURE',
])

function unreachable(error: unknown, identity: Identity, nowMs: number): SluiceError {
  if (identity.notAfterMs() <= nowMs)
    return new SluiceError('identity.expired', 'the certificate of this agent has expired', {
      retry: 'later',
      hint: 'It is renewed by itself when the control plane can be reached; else join again with a new token.',
      cause: error,
    })
  const code =
    error instanceof Error && 'code' in error && typeof error.code === 'string'
      ? error.code
      : 'failed'
  const hint = foreignServer.has(code)
    ? 'Its certificate is not from the authority this agent joined: is this the right control plane?'
    : 'Check the address, the network and whether the control plane runs.'
  return new SluiceError('control_plane.unreachable', `no link to the control plane: ${code}`, {
    retry: 'later',
    hint,
    cause: error,
  })
}
