/**
 * Thousands of agents in one process: each with its own key, certificate and TLS connection, speaking the
 * real protocol. They hold nothing, so they confirm an order as fast as the control plane can hear it.
 */

import assert from 'node:assert/strict'
import { generateKeyPairSync, randomUUIDv7 } from 'node:crypto'

import { keyExchangeGroups } from '@sluice/agent/key-exchange'
import { openAuthority } from '@sluice/control-plane/access/authority'
import { insertAgent } from '@sluice/control-plane/access/store'
import { openDataDirectory } from '@sluice/control-plane/data-directory'
import { openDatabase } from '@sluice/control-plane/database/database'
import { decodeFrame, encodeFrame } from '@sluice/protocol/frame'
import { agentId } from '@sluice/protocol/ids'
import type { AgentId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { downMessage, protocolVersions } from '@sluice/protocol/messages'
import type { DownMessage, UpMessage } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { purgeReceiptOf } from '@sluice/protocol/purge-receipt'
import { ed25519Signer, signStatement } from '@sluice/protocol/sealing/dsse'
import {
  orderSha256Of,
  purgeReceiptPayloadType,
} from '@sluice/protocol/sealing/verify-purge-receipt'
import type { PurgeOrder } from '@sluice/protocol/sealing/verify-purge-receipt'
import { WebSocket } from 'ws'

/** Away from the site of real agents: nothing is dispatched to who only pretends. */
const simulatedSite = 'simulated'

export type SimulatedAgent = {
  readonly id: AgentId
  readonly role: 'capture' | 'gpu'
  readonly signer: ReturnType<typeof ed25519Signer>
  /** For `node:tls`. */
  readonly tls: { key: string; cert: string; ca: string }
}

/**
 * Makes agents known to a control plane that does not run: a row and a certificate each, half of them in
 * either role. Joining is tested elsewhere; here it would only take time.
 */
export async function enrolAgents(dataDirectory: string, count: number): Promise<SimulatedAgent[]> {
  const { directory } = await openDataDirectory(dataDirectory)
  const authority = await openAuthority(directory.authority, Date.now)
  await using database = openDatabase(directory.database)
  const made: SimulatedAgent[] = []
  const rows: Parameters<typeof insertAgent>[1][] = []
  for (let number = 0; number < count; number += 1) {
    const { privateKey, publicKey } = generateKeyPairSync('ed25519')
    const id = newId(agentId, Date.now())
    const role = number % 2 === 0 ? 'capture' : 'gpu'
    const spki = publicKey.export({ format: 'der', type: 'spki' })
    const issued = await authority.issueAgent({ agentId: id, role, publicKey: spki })
    const signer = ed25519Signer(privateKey, publicKey)
    made.push({
      ...{ id, role, signer },
      tls: {
        key: privateKey.export({ format: 'pem', type: 'pkcs8' }),
        cert: issued.chain.map(pemOf).join(''),
        ca: authority.pem,
      },
    })
    rows.push({
      ...{ id, role, name: `simulated-${number}`, site: simulatedSite, labels: {} },
      ...{ publicKey: spki, publicKeyId: signer.keyId, joinedAtMs: Date.now() },
      certificateSerial: issued.serial,
      certificateExpiresAtMs: issued.expiresAtMs,
    })
  }
  await database.write(async (tx) => {
    for (const row of rows) await insertAgent(tx, row)
  })
  return made
}

export type SimulatedLink = AsyncDisposable & {
  readonly agent: SimulatedAgent
  /** Types of everything that came after the welcome, in its order. */
  readonly heard: (DownMessage['type'] | PurgeOrder['type'])[]
  /** Orders that it signed, each once, however often they came. */
  readonly obeyed: Map<string, PurgeOrder>
  /** Settles when the control plane has said of its first receipt that it is durable. */
  readonly confirmed: Promise<void>
}

/** Connects, and settles with the welcome. From then on every purge is acknowledged and confirmed. */
export async function connectSimulated(
  agent: SimulatedAgent,
  agentUrl: string,
): Promise<SimulatedLink> {
  const socket = openSocket(agent, new URL('/v1/channel', agentUrl))
  const heard: SimulatedLink['heard'] = []
  const obeyed: SimulatedLink['obeyed'] = new Map()
  const welcomed = Promise.withResolvers<void>()
  const confirmed = Promise.withResolvers<void>()
  const ended = Promise.withResolvers<void>()
  let beating: NodeJS.Timeout | undefined

  const send = (message: UpMessage): void => socket.send(encodeFrame(message))
  const request = (receipt: ReturnType<typeof receiptFor>): void =>
    send({
      ...{ type: 'request', requestId: randomUUIDv7(), request: 'receipt' },
      body: { receipt },
    })

  function receive(message: DownMessage): void {
    if (message.type === 'welcome') return welcomed.resolve()
    heard.push(message.type === 'command' ? (message.command.type as 'purge') : message.type)
    if (message.type === 'command') {
      const { seq, commandId, command } = message
      send({ type: 'ack', seq, commandId })
      if (command.type !== 'purge') return
      obeyed.set(command.obligationId, command)
      signInTurn(() => request(receiptFor(agent, command)))
    } else if (message.type === 'reply') {
      if (message.problem === undefined) confirmed.resolve()
      else confirmed.reject(new Error(`refused: ${JSON.stringify(message.problem)}`))
    }
  }

  socket.on('open', () =>
    send({
      ...{ type: 'hello', versions: [...protocolVersions], build: 'simulated' },
      ...{ role: agent.role, atMs: Date.now(), instanceId: randomUUIDv7(), lastSeq: 0 },
      ...(agent.role === 'gpu'
        ? { offer: { analysers: [], leasesMax: 1, memoryLevel: 'no-swap', isolation: 'none' } }
        : {}),
    }),
  )
  socket.on('message', (data, isBinary) =>
    receive(downMessage.parse(decodeFrame(data as Buffer, isBinary).message)),
  )
  let failure: Error | undefined
  socket.on('error', (error) => (failure = error))
  socket.on('close', (code) => {
    clearInterval(beating)
    const why = failure ?? new Error(`the link of ${agent.id} was closed with ${code}`)
    welcomed.reject(why)
    confirmed.reject(why)
    ended.resolve()
  })
  // Whoever waits hears of it; a link that ends with the test disappoints nobody.
  confirmed.promise.catch(() => undefined)
  await welcomed.promise
  beating = setInterval(
    () => send({ type: 'heartbeat', atMs: Date.now(), leases: [] }),
    limits.heartbeatMs,
  )
  return {
    ...{ agent, heard, obeyed, confirmed: confirmed.promise },
    async [Symbol.asyncDispose]() {
      clearInterval(beating)
      socket.terminate()
      await ended.promise
    },
  }
}

const unsigned: (() => void)[] = []

/**
 * One receipt whenever there is no frame to read: agents on hosts of their own sign while others acknowledge,
 * and none waits for the signatures of the others.
 */
function signInTurn(sign: () => void): void {
  unsigned.push(sign)
  if (unsigned.length > 1) return
  const next = (): void => {
    unsigned[0]?.()
    unsigned.shift()
    if (unsigned.length > 0) setImmediate(next)
  }
  setImmediate(next)
}

/** A WebSocket as an agent opens it. */
export function openSocket({ tls }: Pick<SimulatedAgent, 'tls'>, url: URL): WebSocket {
  const secure = new URL(url)
  secure.protocol = 'wss:'
  return new WebSocket(secure, {
    ...tls,
    minVersion: 'TLSv1.3',
    ecdhCurve: keyExchangeGroups,
    perMessageDeflate: false,
    handshakeTimeout: 120_000,
  })
}

/** Works on all of them, `atOnce` at a time, so that no listen queue runs over. */
export async function forEach<T, R>(
  items: readonly T[],
  work: (item: T) => Promise<R>,
  atOnce = 64,
): Promise<R[]> {
  const done: R[] = []
  for (let from = 0; from < items.length; from += atOnce)
    done.push(...(await Promise.all(items.slice(from, from + atOnce).map(work))))
  return done
}

function receiptFor(agent: SimulatedAgent, order: PurgeOrder) {
  const { purgeId, obligationId, everything } = order
  assert.ok(everything, 'it has nothing to choose from')
  const atMs = Date.now()
  const predicate = {
    ...{ purgeId, obligationId, agentId: agent.id, everything },
    ...{ spoolsWiped: 0, draftsWiped: 0, leasesEnded: 0, resultsWiped: 0 },
    ...{ checked: ['nothing was held'], startedAtMs: atMs, wipedAtMs: atMs },
  }
  const statement = purgeReceiptOf(predicate, orderSha256Of(order))
  return signStatement(purgeReceiptPayloadType, statement, agent.signer)
}

export function pemOf(der: Buffer): string {
  const lines = der.toString('base64').match(/.{1,64}/g) ?? []
  return ['-----BEGIN CERTIFICATE-----', ...lines, '-----END CERTIFICATE-----', ''].join('\n')
}
