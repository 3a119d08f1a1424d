/** The one connection to the control plane: it comes back by itself, repeats requests and applies no command twice. */
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { CommandId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import {
  type AgentRequest,
  type Command,
  type CommandType,
  type NodeOffer,
  type RequestBody,
  type RequestReply,
  type RequestType,
  attachmentBytesMax,
  protocolVersions,
  requests,
} from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { backoffMs } from '@sluice/protocol/process/retry'
import { z } from 'zod'
import type { Identity } from './identity.ts'
import { type Journal, handledCommandsMax } from './journal.ts'
import {
  type LeaseKeeping,
  type LinkMessage,
  type LinkTiming,
  type Session,
  type SessionEnd,
  openSession,
} from './link-session.ts'
import { errorOf, problemOf } from './problem.ts'

export type { LeaseKeeping, LinkTiming, RenewedLease } from './link-session.ts'

export type CommandOf<T extends CommandType> = Extract<Command, { type: T }>

/** `refused`: the control plane does not want this agent (see `problem`); it is asked again slowly. */
export type LinkState = 'connecting' | 'connected' | 'refused' | 'closed'

export type ControlLink = AsyncDisposable & {
  readonly state: LinkState
  /** Why the last connection failed or was refused; undefined while connected. */
  readonly problem: SluiceError | undefined
  /**
   * Asks the control plane, again on every new connection, until there is a reply.
   *
   * @throws SluiceError The reply's problem; `channel.malformed` for a reply of another shape;
   * `channel.closed` when the link is closed for good. `options.signal` ends the waiting.
   *
   * `options.urgent` goes out before everything that waits, and beyond the bound.
   */
  request<T extends RequestType>(
    type: T,
    body: RequestBody<T>,
    options?: { attachment?: Uint8Array; signal?: AbortSignal; urgent?: boolean },
  ): Promise<{ body: RequestReply<T>; attachment?: Buffer }>
  /**
   * Registers what carries out a command; before `start`. It resolves when the effect, or the duty
   * it became, is durable here: only then is the command acknowledged. It may be called again with
   * a command it already saw, after a crash. What it throws goes back with the acknowledgement;
   * with `retry: 'later'` it is called again after a while instead.
   */
  onCommand<T extends CommandType>(
    type: T,
    carryOut: (command: CommandOf<T>, signal: AbortSignal) => Promise<void>,
  ): void
  /** Runs after every welcome, before and beside everything else; before `start`. */
  onConnected(run: () => void): void
  /** Runs whenever `state` has changed. */
  onState(run: (state: LinkState) => void): void
  /** Puts leases into the heartbeats of a GPU node; before `start`. */
  keepLeases(keeping: LeaseKeeping): void
  /** Sends a heartbeat at once, so that a new lease is renewed early. */
  heartbeatNow(): void
  /** Connects anew, at once; for a renewed certificate. */
  reconnect(): void
  /** Begins to connect. */
  start(): void
}

export type ControlLinkOptions = {
  identity: Identity
  journal: Journal
  build: string
  /** What a GPU node offers; read at every connection. */
  offer?: () => NodeOffer
  events: LinkEvents
  now?: () => number
  /** Monotonic milliseconds. */
  monotonicMs?: () => number
  random?: () => number
  /** Other bounds than those of `limits`, for tests. */
  timing?: Partial<LinkTiming>
}

/** What is worth a log line; one function per event. */
export type LinkEvents = {
  linkConnected(build: string): void
  linkLost(problem: SluiceError): void
  clockSkewed(skewMs: number): void
  commandRefused(command: Command, problem: unknown): void
}

type PendingRequest = {
  urgent: boolean
  frame: AgentRequest
  attachment: Uint8Array | undefined
  /** Monotonic; undefined while not sent on the present session. */
  sentAtMs: number | undefined
  settle: (reply: { body: unknown; attachment: Buffer | undefined } | SluiceError) => void
}

/** Fewer than the control plane takes, so that a burst never closes the link. */
const requestsInFlightMax = 32

/** These do not mend by themselves in seconds; the agent asks again about once a minute. */
const refusals = new Set([
  'identity.revoked',
  'identity.unknown',
  'version.unsupported',
  'access.forbidden',
])

export function createControlLink(options: ControlLinkOptions): ControlLink {
  const { identity, journal, events } = options
  const now = options.now ?? Date.now
  const monotonicMs = options.monotonicMs ?? (() => performance.now())
  const random = options.random ?? Math.random
  const timing: LinkTiming = { ...limits, ...options.timing }
  const closing = new AbortController()
  const instanceId = newId(z.uuidv7(), now())
  const pending = new Map<string, PendingRequest>()
  const carriers = new Map<CommandType, (command: Command, signal: AbortSignal) => Promise<void>>()
  const atWork = new Set<CommandId>()
  const whenConnected: (() => void)[] = []
  const whenState: ((state: LinkState) => void)[] = []
  let leases: LeaseKeeping | undefined
  let state: LinkState = 'connecting'
  let problem: SluiceError | undefined
  let session: Session | undefined
  let established: Session | undefined
  let wantsNow = false
  let running: Promise<void> | undefined

  function become(next: LinkState): void {
    if (state === next) return
    state = next
    for (const run of whenState) run(next)
  }

  // ---------------------------------------------------------------- requests

  /** Sends what waits, in the order it was asked, as far as the bound allows. */
  function flush(): void {
    if (!established) return
    let inFlight = 0
    const all = [...pending.values()]
    for (const each of [
      ...all.filter(({ urgent }) => urgent),
      ...all.filter(({ urgent }) => !urgent),
    ]) {
      if (inFlight >= requestsInFlightMax && !each.urgent) return
      inFlight += 1
      const old = each.sentAtMs !== undefined && monotonicMs() - each.sentAtMs
      if (old !== false && old < timing.requestTimeoutMs) continue
      each.sentAtMs = monotonicMs()
      established.send(each.frame, each.attachment)
    }
  }

  function request<T extends RequestType>(
    type: T,
    body: RequestBody<T>,
    asked: { attachment?: Uint8Array; signal?: AbortSignal; urgent?: boolean } = {},
  ): Promise<{ body: RequestReply<T>; attachment?: Buffer }> {
    const requestId = newId(z.uuidv7(), now())
    return new Promise((resolve, reject) => {
      if (closing.signal.aborted) return reject(linkClosed())
      if (asked.signal?.aborted) return reject(asked.signal.reason as Error)
      const giveUp = () => {
        pending.delete(requestId)
        reject(asked.signal?.reason as Error)
      }
      asked.signal?.addEventListener('abort', giveUp, { once: true })
      pending.set(requestId, {
        // The table pairs each type with its body; the union can't follow a type parameter.
        frame: { type: 'request', requestId, request: type, body } as unknown as AgentRequest,
        attachment: asked.attachment,
        urgent: asked.urgent ?? false,
        sentAtMs: undefined,
        settle(reply) {
          pending.delete(requestId)
          asked.signal?.removeEventListener('abort', giveUp)
          try {
            resolve(checkReply(type, reply))
          } catch (error) {
            reject(error)
          }
        },
      })
      flush()
    })
  }

  // ---------------------------------------------------------------- commands

  function registerCarrier<T extends CommandType>(
    type: T,
    carryOut: (command: CommandOf<T>, signal: AbortSignal) => Promise<void>,
  ): void {
    carriers.set(type, (command, signal) => carryOut(command as CommandOf<T>, signal))
  }

  async function obey(message: Extract<LinkMessage, { type: 'command' }>): Promise<void> {
    const { seq, commandId, command } = message
    const acknowledge = (failure?: SluiceError) =>
      established?.send({
        type: 'ack',
        seq,
        commandId,
        ...(failure ? { problem: problemOf(failure) } : {}),
      })
    if (journal.data.handledCommands.includes(commandId)) return acknowledge()
    if (atWork.has(commandId)) return
    // What an emergency orders overtakes everything that is under way, also its bound.
    if (atWork.size >= limits.commandsInFlightMax && message.lane !== 'emergency')
      return session?.close(new SluiceError('channel.too_large', 'too many commands at once'))
    atWork.add(commandId)
    try {
      const failure = await carryOutDurably(message)
      if (closing.signal.aborted) return
      if (failure) events.commandRefused(command, failure)
      acknowledge(failure)
    } finally {
      atWork.delete(commandId)
    }
  }

  /** @returns Why the command can't be carried out, ever; undefined when it was. */
  async function carryOutDurably(
    message: Extract<LinkMessage, { type: 'command' }>,
  ): Promise<SluiceError | undefined> {
    let failure: SluiceError | undefined
    for (let attempt = 0; !closing.signal.aborted; attempt += 1) {
      try {
        failure = await carryOutOnce(message.command)
        await journal.change(
          (draft) => {
            draft.handledCommands.push(message.commandId)
            draft.handledCommands.splice(0, draft.handledCommands.length - handledCommandsMax)
            draft.lastSeq = Math.max(draft.lastSeq, message.seq)
          },
          { urgent: message.lane === 'emergency' },
        )
        return failure
      } catch (error) {
        if (closing.signal.aborted) return undefined
        if (!isSluiceError(error)) throw error
        events.commandRefused(message.command, error)
      }
      const waitMs = backoffMs(attempt, { minMs: 1000, maxMs: timing.reconnectMsMax }, random())
      await sleep(waitMs, undefined, { signal: closing.signal }).catch(() => {
        // Closing: the loop ends, and the command comes again after the next start.
      })
    }
    return undefined
  }

  async function carryOutOnce(command: Command): Promise<SluiceError | undefined> {
    const carryOut = carriers.get(command.type)
    if (!carryOut)
      return new SluiceError('request.invalid', `an agent of this role knows no ${command.type}`)
    try {
      await carryOut(command, closing.signal)
      return undefined
    } catch (error) {
      if (isSluiceError(error) && error.retry === 'never') return error
      throw error
    }
  }

  // ---------------------------------------------------------------- connecting

  function receive(message: LinkMessage, attachment: Buffer | undefined): void {
    if (message.type === 'command') return void obey(message)
    const asked = pending.get(message.requestId)
    // Late answers to what nobody waits for any more are no error.
    if (!asked) return
    asked.settle(message.problem ? errorOf(message.problem) : { body: message.body, attachment })
    flush()
  }

  async function connectOnce(): Promise<SessionEnd> {
    const opened = openSession({
      identity,
      hello: {
        type: 'hello',
        versions: [...protocolVersions],
        build: options.build,
        role: identity.role,
        atMs: now(),
        instanceId,
        lastSeq: journal.data.lastSeq,
        ...(options.offer ? { offer: options.offer() } : {}),
      },
      leases,
      timing,
      now,
      monotonicMs,
      onWelcome(welcomed, welcome) {
        established = welcomed
        problem = undefined
        const skewMs = welcome.atMs - now()
        if (Math.abs(skewMs) > limits.clockSkewMsMax) events.clockSkewed(skewMs)
        events.linkConnected(welcome.build)
        become('connected')
        for (const run of whenConnected) run()
        flush()
      },
      onMessage: receive,
    })
    session = opened
    if (closing.signal.aborted) opened.close(linkClosed())
    // Also what the reply to which was lost on the way is asked again, in time.
    const repeat = setInterval(flush, timing.requestTimeoutMs / 2)
    try {
      return await opened.ended
    } finally {
      clearInterval(repeat)
      session = undefined
      established = undefined
      for (const each of pending.values()) each.sentAtMs = undefined
    }
  }

  async function keepConnected(): Promise<void> {
    for (let attempt = 0; !closing.signal.aborted; attempt += 1) {
      const end = await connectOnce()
      if (closing.signal.aborted) return
      if (wantsNow) {
        wantsNow = false
        continue
      }
      problem = end.problem
      events.linkLost(end.problem)
      const refused = refusals.has(end.problem.code)
      become(refused ? 'refused' : 'connecting')
      if (end.establishedMs !== undefined && end.establishedMs >= timing.heartbeatMs) attempt = 0
      const bounds = { minMs: timing.reconnectMsMin, maxMs: timing.reconnectMsMax }
      const waitMs = refused
        ? timing.reconnectMsMax * (1 - random() / 2)
        : backoffMs(attempt, bounds, random())
      await sleep(waitMs, undefined, { signal: closing.signal }).catch(() => {
        // Closing: the loop ends.
      })
    }
  }

  return {
    get state() {
      return state
    },
    get problem() {
      return problem
    },
    request,
    onCommand: registerCarrier,
    onConnected: (run) => void whenConnected.push(run),
    onState: (run) => void whenState.push(run),
    keepLeases: (keeping) => void (leases = keeping),
    heartbeatNow: () => established?.heartbeat(),
    reconnect() {
      if (!session) return
      wantsNow = true
      session.close(new SluiceError('channel.closed', 'connecting anew', { retry: 'later' }))
    },
    start: () => void (running ??= keepConnected()),
    async [Symbol.asyncDispose]() {
      closing.abort()
      session?.close(linkClosed())
      await running
      for (const each of pending.values()) each.settle(linkClosed())
      become('closed')
    },
  }
}

function linkClosed(): SluiceError {
  return new SluiceError('channel.closed', 'the agent is ending', { retry: 'later' })
}

function checkReply<T extends RequestType>(
  type: T,
  reply: { body: unknown; attachment: Buffer | undefined } | SluiceError,
): { body: RequestReply<T>; attachment?: Buffer } {
  if (reply instanceof SluiceError) throw reply
  const parsed = requests[type].reply.safeParse(reply.body)
  const attachmentMax = attachmentBytesMax.reply[type] ?? 0
  if (!parsed.success || (reply.attachment?.length ?? 0) > attachmentMax)
    throw new SluiceError('channel.malformed', `the reply to ${type} has another shape`, {
      retry: 'later',
      cause: parsed.error,
    })
  const body = parsed.data as RequestReply<T>
  return reply.attachment ? { body, attachment: reply.attachment } : { body }
}
