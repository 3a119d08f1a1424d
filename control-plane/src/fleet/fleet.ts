/** Holds the links of all agents: one each, with commands sent, acknowledged and sent again. */
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { WebSocketServer } from 'ws'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId, CommandId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import {
  type AgentRequest,
  type DownMessage,
  type Heartbeat,
  type Hello,
  type Problem,
  protocolVersions,
} from '@sluice/protocol/messages'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { unlessDiskFails } from '../database/write-failure.ts'
import { acceptLink, type Answer, type Link, type LinkAgent } from './link.ts'
import { createPresence } from './presence.ts'
import { chooseVersion, commandsToSend } from './rules.ts'
import {
  acknowledge,
  agentById,
  forgetConnections,
  markSent,
  openCommands,
  recordGone,
  recordHello,
} from './store.ts'

export type RenewedLeases = Extract<DownMessage, { type: 'heartbeat' }>['leases']

export type FleetDeps = {
  database: Database
  changes: Changes
  now: () => number
  /** This build's version, told to agents. */
  build: string
  /** Works off a request. @throws SluiceError as the agent shall see it. */
  answer(agent: LinkAgent, request: AgentRequest, attachment: Buffer | undefined): Promise<Answer>
  /** Renews the leases a node names, as far as they still hold. */
  renewLeases(agent: LinkAgent, heartbeat: Heartbeat): Promise<RenewedLeases>
  /** Default `limits.linkSilenceMs`. */
  silenceMs?: number
}

export type Fleet = AsyncDisposable & {
  /** Takes an upgrade request of an agent whose certificate, key and row were checked. */
  attach(request: IncomingMessage, socket: Duplex, head: Buffer, agent: LinkAgent): void
  /** Closes an agent's link at once, as after a revocation. */
  disconnect(agent: AgentId, problem: Problem): void
  isConnected: (agent: AgentId) => boolean
  connected: () => AgentId[]
  /** When the last frame of a connected agent came. */
  lastSeenAtMs(agent: AgentId): number | undefined
}

/** Starts with nobody connected, whatever an earlier process left in the database. */
export async function createFleet(deps: FleetDeps): Promise<Fleet> {
  const { database, changes, now } = deps
  const presence = createPresence()
  const links = new Set<Link>()
  const sentOver = new WeakMap<Link, Set<number>>()
  /** Links with orders that wait for room in the window, and those that are being looked at. */
  const waiting = new WeakSet<Link>()
  const sending = new WeakMap<Link, Promise<void>>()
  const server = new WebSocketServer({
    noServer: true,
    maxPayload: limits.frameBytesMax,
    perMessageDeflate: false,
    clientTracking: false,
  })
  let stopped = false
  const sentIds = new Set<CommandId>()
  let noting: Promise<void> | undefined
  await database.write(forgetConnections)

  async function greet(link: Link, hello: Hello): Promise<void> {
    const { agent } = link
    const chosen = chooseVersion(protocolVersions, hello.versions)
    if ('upgrade' in chosen)
      throw new SluiceError('version.unsupported', 'agent and control plane share no version', {
        hint: `Upgrade the ${chosen.upgrade}: the agent is ${hello.build}, the control plane ${deps.build}.`,
      })
    if (hello.role !== agent.role)
      throw new SluiceError('access.forbidden', `this agent joined as ${agent.role}`)
    await database.write(async (tx) => {
      const row = await agentById(tx.sql, agent.id)
      if (!row || row.revokedAtMs !== null) throw revoked()
      await recordHello(tx, row, hello, now())
      await appendAudit(tx, {
        atMs: now(),
        type: 'agent.connected',
        actor: { kind: 'agent', id: agent.id },
        site: agent.site,
        agentId: agent.id,
        detail: { build: hello.build, version: chosen.version },
      })
    })
    if (link.closed) {
      // It went while it was being written down; nobody else will say so.
      if (!presence.isConnected(agent.id))
        await database.write((tx) => recordGone(tx, agent.id, link.lastSeenAtMs))
      return
    }
    presence.arrive(link)?.close({
      code: 'channel.closed',
      message: 'a newer link of this agent has taken over',
      retry: 'never',
    })
    link.send({
      type: 'welcome',
      version: chosen.version,
      build: deps.build,
      agentId: agent.id,
      atMs: now(),
    })
    changes.emit('agent', agent.id)
    await sendCommands(link)
  }

  /** Sends what is owed, one caller at a time: whoever comes meanwhile is served by a second look. */
  function sendCommands(link: Link): Promise<void> {
    const turn = (sending.get(link) ?? Promise.resolve()).then(() => sendOwed(link))
    sending.set(
      link,
      turn.catch(() => undefined),
    )
    return turn
  }

  async function sendOwed(link: Link): Promise<void> {
    const sent = sentOver.get(link) ?? new Set<number>()
    sentOver.set(link, sent)
    // Until the look is over it may be too old for an acknowledgement that comes meanwhile.
    waiting.add(link)
    const open = await database.read((sql) => openCommands(sql, link.agent.id))
    const due = commandsToSend(
      open.map((row) => ({ ...row, row })),
      sent,
      limits.commandsInFlightMax,
    )
    if (open.filter(({ seq }) => !sent.has(seq)).length === due.length) waiting.delete(link)
    if (due.length === 0 || link.closed) return
    for (const { row } of due) {
      sent.add(row.seq)
      link.send({
        type: 'command',
        seq: row.seq,
        commandId: row.id,
        lane: row.lane,
        command: row.body,
      })
    }
    await noteSent(due.map(({ row }) => row.id))
  }

  /** All that is sent before the write has its turn is noted by that one write. */
  function noteSent(ids: readonly CommandId[]): Promise<void> {
    for (const id of ids) sentIds.add(id)
    if (noting) return noting
    const mine = unlessDiskFails(
      database.write(async (tx) => {
        noting = undefined
        const all = [...sentIds]
        sentIds.clear()
        await markSent(tx, all, now())
      }),
    ).finally(() => {
      if (noting !== mine) return
      noting = undefined
      sentIds.clear()
    })
    noting = mine
    return mine
  }

  async function ended(link: Link): Promise<void> {
    links.delete(link)
    if (!presence.leave(link)) return
    await unlessDiskFails(
      database.write(async (tx) => {
        await recordGone(tx, link.agent.id, link.lastSeenAtMs)
        await appendAudit(tx, {
          atMs: now(),
          type: 'agent.disconnected',
          actor: { kind: 'agent', id: link.agent.id },
          site: link.agent.site,
          agentId: link.agent.id,
        })
      }),
    )
    changes.emit('agent', link.agent.id)
  }

  async function answer(
    agent: LinkAgent,
    request: AgentRequest,
    attachment: Buffer | undefined,
  ): Promise<Answer> {
    const row = await database.read((sql) => agentById(sql, agent.id))
    if (!row || row.revokedAtMs !== null) throw revoked()
    return deps.answer(agent, request, attachment)
  }

  function begin(agent: LinkAgent, socket: Parameters<typeof acceptLink>[0]): void {
    const link: Link = acceptLink(socket, agent, {
      now,
      silenceMs: deps.silenceMs ?? limits.linkSilenceMs,
      greet,
      async heartbeat(heartbeat) {
        return {
          type: 'heartbeat',
          atMs: now(),
          leases: heartbeat.leases.length === 0 ? [] : await deps.renewLeases(agent, heartbeat),
        }
      },
      async acknowledge(ack) {
        const acked = { ...ack, agentId: agent.id, problemCode: ack.problem?.code, atMs: now() }
        // Before the receipts that come with it: an order that arrived is not sent again.
        await database.write((tx) => acknowledge(tx, acked), { urgent: true })
        if (waiting.has(link)) await sendCommands(link)
      },
      answer: (request, attachment) => answer(agent, request, attachment),
      ended,
    })
    links.add(link)
  }

  function onCommand(agent: AgentId): void {
    const link = presence.link(agent)
    // A failure to read is a bug and ends the process; a lost send is made good by reconnecting.
    if (link && !stopped) void sendCommands(link)
  }
  changes.on('command', onCommand)

  return {
    attach(request, socket, head, agent) {
      if (stopped) {
        socket.destroy()
        return
      }
      server.handleUpgrade(request, socket, head, (webSocket) => begin(agent, webSocket))
    },
    disconnect(agent, problem) {
      for (const link of links) if (link.agent.id === agent) link.close(problem)
    },
    isConnected: presence.isConnected,
    connected: presence.connected,
    lastSeenAtMs: (agent) => presence.link(agent)?.lastSeenAtMs,
    async [Symbol.asyncDispose]() {
      stopped = true
      changes.off('command', onCommand)
      const closing = [...links]
      for (const link of closing)
        link.close({
          code: 'channel.closed',
          message: 'the control plane is stopping',
          retry: 'later',
        })
      await Promise.all(closing.map((link) => link.settled()))
      for (const link of closing) await sending.get(link)
      server.close()
    },
  }
}

function revoked(): SluiceError {
  return new SluiceError('identity.revoked', 'this agent was revoked', {
    hint: 'Join it again with a new token if it may come back.',
  })
}
