/** An agent moved by hand: it joins with a real token, and says over real mutual TLS whatever a test wants. */

import { randomUUIDv7 } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { join as joinPath } from 'node:path'

import { join } from '@sluice/agent/enrol'
import type { RenewableIdentity } from '@sluice/agent/enrol'
import type { Identity } from '@sluice/agent/identity'
import { keyExchangeGroups } from '@sluice/agent/key-exchange'
import { decodeToken } from '@sluice/protocol/api'
import { decodeFrame, encodeFrame } from '@sluice/protocol/frame'
import { limits } from '@sluice/protocol/limits'
import type {
  Command,
  CommandType,
  DownMessage,
  Hello,
  LeaseRef,
  NodeOffer,
  Problem,
  UpMessage,
} from '@sluice/protocol/messages'
import { downMessage, protocolVersions } from '@sluice/protocol/messages'
import { WebSocket } from 'ws'

import { waitFor } from './fleet-daemon.ts'
import type { Fleet } from './fleet.ts'
import { fleetSite } from './fleet.ts'

/** What a hand-driven node says it can do, unless it is said otherwise. */
export function offerOf(...analysers: readonly string[]): NodeOffer {
  return {
    analysers: analysers.map((name) => ({ name, version: '1' })),
    leasesMax: 64,
    memoryLevel: 'no-swap',
    isolation: 'none',
  }
}

/** Trades a fresh token of the fleet for an identity; no process is started. */
export async function joinByHand(
  fleet: Fleet,
  options: { name: string; role: 'capture' | 'gpu'; site?: string },
): Promise<RenewableIdentity> {
  const { name, role, site = fleetSite } = options
  const made = await fleet.ask('/v1/join-tokens', { body: { role, site, name } })
  const token = decodeToken('join', (made as { token: string }).token)
  const stateDir = joinPath(fleet.root, name)
  await mkdir(stateDir, { mode: 0o700 })
  return await join({ stateDir, token })
}

/** What came of one request. */
export type Reply = { body?: unknown; problem?: Problem; attachment?: Buffer }

/** How a link ended: what the control plane said before, and the close code of the WebSocket. */
export type LinkEnd = { goodbye: Problem | undefined; code: number }

export type CommandOf<T extends CommandType> = Extract<Command, { type: T }>

export type HandDriven = AsyncDisposable & {
  readonly identity: Identity
  /** Named in every heartbeat from now on. */
  leases: LeaseRef[]
  /** Every answer to a heartbeat, newest last. */
  readonly beats: Extract<DownMessage, { type: 'heartbeat' }>[]
  /** Sends a heartbeat now, and waits for its answer. */
  beat(): Promise<Extract<DownMessage, { type: 'heartbeat' }>>
  /** Asks without checking the question. */
  request(type: string, body: unknown, attachment?: Uint8Array): Promise<Reply>
  /** As it is: no frame is made of it. */
  sendRaw(data: string | Uint8Array): void
  /** The newest command of this type for that job; it is acknowledged. */
  command<T extends CommandType>(
    type: T,
    fits: (command: CommandOf<T>) => boolean,
    timeoutMs?: number,
  ): Promise<CommandOf<T>>
  readonly ended: Promise<LinkEnd>
}

/**
 * Connects and says hello.
 *
 * @param options.hello Instead of a good hello; `null` says nothing at all.
 * @param options.record Is given every frame in both directions, as it is inside TLS.
 * @throws Error with the status, when the connection is refused.
 */
export async function connectByHand(
  identity: Identity,
  options: { offer?: NodeOffer; hello?: null; record?: (frame: Buffer) => void } = {},
): Promise<HandDriven> {
  const url = new URL('/v1/channel', identity.agentUrl)
  url.protocol = 'wss:'
  const socket = new WebSocket(url, {
    ...identity.tlsOptions(),
    minVersion: 'TLSv1.3',
    ecdhCurve: keyExchangeGroups,
    perMessageDeflate: false,
  })
  const replies = new Map<string, (reply: Reply) => void>()
  const commands: Command[] = []
  const beats: HandDriven['beats'] = []
  const ended = Promise.withResolvers<LinkEnd>()
  const welcomed = Promise.withResolvers<void>()
  let goodbye: Problem | undefined

  const send = (message: UpMessage, attachment?: Uint8Array): void => {
    const frame = encodeFrame(message, attachment)
    options.record?.(Buffer.from(frame))
    socket.send(frame)
  }

  function receive(message: DownMessage, attachment: Buffer | undefined): void {
    switch (message.type) {
      case 'welcome':
        return welcomed.resolve()
      case 'heartbeat':
        return void beats.push(message)
      case 'goodbye':
        goodbye = message.problem
        return
      case 'command': {
        const { seq, commandId, command } = message
        commands.push(command)
        return send({ type: 'ack', seq, commandId })
      }
      case 'reply': {
        const { requestId, body, problem } = message
        return replies.get(requestId)?.({
          body,
          ...(problem === undefined ? {} : { problem }),
          ...(attachment === undefined ? {} : { attachment }),
        })
      }
    }
  }

  socket.on('message', (data, isBinary) => {
    options.record?.(Buffer.from(data as Buffer))
    const frame = decodeFrame(data as Buffer, isBinary)
    receive(downMessage.parse(frame.message), frame.attachment)
  })
  let failure: Error | undefined
  socket.on('error', (error) => (failure = error))
  socket.on('close', (code) => {
    ended.resolve({ goodbye, code })
    welcomed.reject(failure ?? new Error(`closed with ${code}: ${goodbye?.code ?? ''}`))
  })
  welcomed.promise.catch(() => undefined)

  const heartbeat = (leases: LeaseRef[]): void =>
    send({ type: 'heartbeat', atMs: Date.now(), leases })
  const driven: HandDriven = {
    identity,
    leases: [],
    beats,
    async beat() {
      const before = beats.length
      heartbeat(driven.leases)
      return await waitFor('an answer to a heartbeat', 10_000, async () => beats[before])
    },
    request(type, body, attachment) {
      const requestId = randomUUIDv7()
      const asked = { type: 'request', requestId, request: type, body } as unknown as UpMessage
      const { promise, resolve } = Promise.withResolvers<Reply>()
      replies.set(requestId, resolve)
      send(asked, attachment)
      return Promise.race([
        promise,
        ended.promise.then(({ code }) => {
          throw new Error(`${type}: the link was closed with ${code} (${goodbye?.code ?? ''})`)
        }),
      ])
    },
    sendRaw: (data) => socket.send(data),
    command: (type, fits, timeoutMs = 30_000) =>
      waitFor(`a ${type}`, timeoutMs, async () =>
        commands
          .filter((one): one is CommandOf<typeof type> => one.type === type)
          .findLast((one) => fits(one)),
      ),
    ended: ended.promise,
    async [Symbol.asyncDispose]() {
      clearInterval(beating)
      socket.close(1000)
      setTimeout(() => socket.terminate(), 500).unref()
      await ended.promise
    },
  }
  let beating: NodeJS.Timeout | undefined
  const opened = Promise.withResolvers<void>()
  socket.once('open', opened.resolve)
  await Promise.race([opened.promise, welcomed.promise])
  if (options.hello === null) return driven
  send(helloOf(identity, options.offer))
  await welcomed.promise
  beating = setInterval(() => {
    if (socket.readyState === WebSocket.OPEN) heartbeat(driven.leases)
  }, limits.heartbeatMs)
  return driven
}

/** A good hello of an agent that has never seen a command. */
export function helloOf(identity: Identity, offer?: NodeOffer): Hello {
  return {
    type: 'hello',
    versions: [...protocolVersions],
    build: 'by hand',
    role: identity.role,
    atMs: Date.now(),
    instanceId: randomUUIDv7(),
    lastSeq: 0,
    ...(offer ? { offer } : {}),
  }
}
