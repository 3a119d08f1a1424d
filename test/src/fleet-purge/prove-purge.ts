/** Purges a whole fleet, watches from outside how fast that goes, and holds the system to everything but time. */

import assert from 'node:assert/strict'
import { createPublicKey } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'

import { dataDirectoryAt } from '@sluice/control-plane/data-directory'
import { publicName } from '@sluice/control-plane/deletion/evidence'
import { decodeToken } from '@sluice/protocol/api'
import { purgeDetail } from '@sluice/protocol/api-purge'
import type { PurgeDetail } from '@sluice/protocol/api-purge'
import type { PurgeId } from '@sluice/protocol/ids'
import type { PurgeCertificate } from '@sluice/protocol/purge-certificate'
import { verifyPurgeCertificate } from '@sluice/protocol/sealing/verify-purge'
import { Agent, request } from 'undici'

import { waitFor } from '../tools/fleet-daemon.ts'
import { startFleet } from '../tools/fleet.ts'
import type { Fleet } from '../tools/fleet.ts'
import { fateEnvironment } from '../tools/doomed-fleet.ts'
import { makeSecurityPerson } from '../tools/people.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'
import { measureBroadcast } from './bare-broadcast.ts'
import { epochMs, type Follow, type Followed } from './follow-purge.ts'
import { startHolders } from './real-holders.ts'
import { connectSimulated, enrolAgents, forEach, pemOf } from './simulated-agents.ts'
import type { SimulatedAgent, SimulatedLink } from './simulated-agents.ts'

/** Far beyond what is promised: what is late is shown by the table, and never fails a test. */
const patienceMs = 300_000

type Spread = { p50: number; p99: number; max: number }

export type PurgeFigures = {
  /** Agents that were connected when the purge began. */
  connected: number
  /** Milliseconds from the second person's word. */
  durableMs: number
  ackMs: Spread
  signedMs: Spread
  /** Milliseconds from the intent until the epoch key was destroyed. */
  keysGoneMs: number
  /** The same agents, by a bare broadcast in the same run. */
  bareMs: Spread
}

export type FleetSize = {
  simulated: number
  /** Of the simulated ones: away when the purge begins. */
  away: number
  real: { captures: number; nodes: number }
  /** Some of the real ones die by kill -9 in front of the n-th effect of the purge, and come back. */
  deaths?: boolean
}

/** Runs one purge of everything over a fleet of its own. */
export async function provePurge(size: FleetSize): Promise<PurgeFigures> {
  await using fates = await makeTemporaryDirectory('fates')
  await using fleet = await startFleet({
    name: 'purge',
    ...(size.deaths === true ? { env: fateEnvironment(fates.path) } : {}),
    controlPlane: { allowSwap: true, purge: { aloneJobsMax: 0 } },
  })
  const { controlPlane } = fleet
  const paths = dataDirectoryAt(controlPlane.dataDirectory)
  await controlPlane.stop()
  const agents = await enrolAgents(controlPlane.dataDirectory, size.simulated)
  const [away, present] = [agents.slice(0, size.away), agents.slice(size.away)]
  const { env, root: folder } = fleet
  const bareMs = await measureBroadcast({
    ...{ agents: present, authority: paths.authority, folder, env },
  })
  await controlPlane.start()
  const asker = await makeSecurityPerson(fleet, 'anna')
  await makeSecurityPerson(fleet, 'ben')
  await using holders = await startHolders(fleet, {
    ...size.real,
    ...(size.deaths === true ? { fates: fates.path } : {}),
  })
  await using links = new AsyncDisposableStack()
  const connect = async (agent: SimulatedAgent): Promise<SimulatedLink> =>
    links.use(await connectSimulated(agent, controlPlane.agentUrl))
  const connected = await forEach(present, connect)
  await holders.proveHeld()

  const why = ['--reason', 'the building was entered']
  const asked = purgeDetail.parse(await asker.ask('purge', 'everything', ...why))
  assert.equal(asked.state, 'waiting')
  await using ben = await speakAs(fleet, 'ben')
  const all = agents.length + holders.agents.length
  const online = all - away.length - holders.away
  await holders.arm()
  // Who dies on the way answers in its next life, and is not measured.
  const seen = await followPurge(paths.database, online - holders.doomed, () =>
    ben.post(`/v1/approvals/${asked.approvalId ?? ''}/give`),
  )
  await holders.revive()
  await Promise.all(connected.map((link) => link.confirmed))

  // Only what is away is missing, and nothing says otherwise.
  const running = await detailOf(fleet, asked.id)
  assert.deepEqual([running.state, running.agents], ['running', all])
  await waitFor('only those away to be silent', 60_000, async () =>
    (await detailOf(fleet, asked.id)).silentCount === all - online ? true : undefined,
  )
  await assert.rejects(certificateOf(fleet, asked.id), /evidence|certificate/)

  const late = await forEach(away, connect)
  holders.letBack()
  await Promise.all(late.map((link) => link.confirmed))
  for (const link of late) assert.equal(link.heard[0], 'purge', 'it comes before everything else')
  const concluded = await waitFor('the purge to be concluded', patienceMs, async () => {
    const detail = await detailOf(fleet, asked.id)
    return detail.state === 'concluded' ? detail : undefined
  })
  await holders.proveEmpty()
  const certificate = await certificateOf(fleet, asked.id)
  const answered = [...connected, ...late]
  const confirmed = new Set(certificate.agents.map(({ agentId }) => agentId as string))
  for (const { id } of [...agents, ...holders.agents]) assert.ok(confirmed.has(id), id)
  assert.equal(certificate.agents.length, all)
  for (const link of answered) assert.equal(link.obeyed.size, 1, 'one order each')
  assert.equal(certificate.jobsCount, holders.jobs)
  return {
    connected: online - holders.doomed,
    ...seen,
    keysGoneMs: (concluded.keysUnrecoverableAtMs ?? 0) - (concluded.intentAtMs ?? 0),
    bareMs: spreadOf(bareMs),
  }
}

/** The certificate, verified. @throws SluiceError while there is only a report. */
async function certificateOf(fleet: Fleet, id: PurgeId): Promise<PurgeCertificate> {
  const { status, text } = await fleet.call(`/v1/purges/${id}/report`, { role: 'viewer' })
  assert.equal(status, 200, text)
  const trusted = join(dataDirectoryAt(fleet.controlPlane.dataDirectory).evidence, publicName)
  return verifyPurgeCertificate(Buffer.from(text), createPublicKey(await readFile(trusted)))
}

async function detailOf(fleet: Fleet, id: PurgeId): Promise<PurgeDetail> {
  return purgeDetail.parse(await fleet.ask(`/v1/purges/${id}`, { role: 'viewer' }))
}

/** A person whose connection is open already: what is measured is the control plane. */
async function speakAs(
  fleet: Fleet,
  name: string,
): Promise<AsyncDisposable & { post(path: string): Promise<void> }> {
  const file = join(fleet.root, 'tokens', `${name}.token`)
  const token = decodeToken('token', await readFile(file, 'utf8'))
  const dispatcher = new Agent({ connect: { ca: pemOf(Buffer.from(token.ca, 'base64')) } })
  const ask = async (method: 'GET' | 'POST', path: string): Promise<void> => {
    const answer = await request(new URL(path, fleet.controlPlane.operatorUrl), {
      ...{ method, dispatcher },
      headers: { authorization: `Bearer ${token.secret}`, 'content-type': 'application/json' },
      ...(method === 'POST' ? { body: '{}' } : {}),
    })
    const text = await answer.body.text()
    assert.ok(answer.statusCode < 300, text)
  }
  await ask('GET', '/v1/status')
  return {
    post: (path) => ask('POST', path),
    [Symbol.asyncDispose]: () => dispatcher.close(),
  }
}

/**
 * Follows a purge in a thread of its own: this one is busy being the fleet.
 *
 * @param online How many agents are expected to answer now.
 * @returns Milliseconds after `begin` was called.
 */
async function followPurge(
  file: string,
  online: number,
  begin: () => Promise<void>,
): Promise<Pick<PurgeFigures, 'durableMs' | 'ackMs' | 'signedMs'>> {
  const follower = new Worker(new URL('follow-purge.ts', import.meta.url), {
    workerData: { file, online, patienceMs } satisfies Follow,
  })
  try {
    // The first message says that it looks.
    await once(follower, 'message')
    const seen = once(follower, 'message')
    const beganAtMs = epochMs()
    await begin()
    const [followed] = (await seen) as [Followed]
    const passed = (instants: readonly number[]) => instants.map((instant) => instant - beganAtMs)
    return {
      durableMs: followed.durableAtMs - beganAtMs,
      ackMs: spreadOf(passed(followed.ackedAtMs)),
      signedMs: spreadOf(passed(followed.signedAtMs)),
    }
  } finally {
    await follower.terminate()
  }
}

/** @param sorted Milliseconds, rising. */
function spreadOf(sorted: readonly number[]): Spread {
  const at = (part: number): number => sorted[Math.ceil(sorted.length * part) - 1] ?? 0
  return { p50: at(0.5), p99: at(0.99), max: at(1) }
}

/** The table, one row for each fleet. */
export function printable(all: readonly PurgeFigures[]): string {
  const head = ['agents', 'order durable', 'acked p50', 'p99', 'max', 'signed p50', 'p99', 'max']
  const rows = all.map((one) => [
    String(one.connected),
    ms(one.durableMs),
    ...[one.ackMs.p50, one.ackMs.p99, one.ackMs.max].map(ms),
    ...[one.signedMs.p50, one.signedMs.p99, one.signedMs.max].map(ms),
    ms(one.keysGoneMs),
    ms(one.bareMs.max),
    (one.ackMs.max / one.bareMs.max).toFixed(1),
  ])
  const table = [[...head, 'keys gone', 'bare broadcast', 'ratio'], ...rows]
  return table.map((row) => row.map((cell) => cell.padStart(15)).join('')).join('\n')
}

function ms(value: number): string {
  return `${Math.round(value)} ms`
}
