/**
 * A purge of a fleet of real processes with every combination of store, audit sink, alerting, half the
 * fleet and disk really down. Every run is a row of the table that is printed at the end.
 */

import assert from 'node:assert/strict'
import { createPublicKey, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, before, describe, it } from 'node:test'

import { GetObjectCommand, ListObjectVersionsCommand } from '@aws-sdk/client-s3'
import { claimKey } from '@sluice/control-plane/storage/claim'
import { publicName } from '@sluice/control-plane/deletion/evidence'
import { purgeDetail } from '@sluice/protocol/api-purge'
import type { JobId } from '@sluice/protocol/ids'
import { verifyPurgeCertificate } from '@sluice/protocol/sealing/verify-purge'

import { lookAtHost } from '../demo/host.ts'
import { fillDisk, makeRoom, moveDataTo } from '../tools/data-disk.ts'
import { combinations, type Down, nameOf } from '../tools/downs.ts'
import { copyDataDirectory, openStolen, type StolenCopy } from '../tools/early-copy.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import { type Fleet, type FleetAgent, s3Settings, startFleet } from '../tools/fleet.ts'
import { makeGatedAnalyser } from '../tools/gated-analyser.ts'
import {
  detailOf,
  proveDeleted,
  submit,
  waitUntilReady,
  waitUntilSealed,
} from '../tools/journey.ts'
import { makePicture } from '../tools/pictures.ts'
import { makeRawDisk, needRawDisk, type RawDisk } from '../tools/raw-disk.ts'
import { needS3Server, type S3Server, startS3Server } from '../tools/s3-server.ts'
import { SecondVerifier } from '../vectors/certificates.test-setup.ts'

/** Room for the reserve, and as much beside it. */
const diskBytes = 320 * 1024 * 1024
const waitMsMax = 400_000
const bucket = 'sluice-downs'
const skip = needRawDisk() || needS3Server()

describe('a purge of real processes while this is down', { skip, timeout: 3_600_000 }, () => {
  const cleanup = new AsyncDisposableStack()
  let fleet: Fleet
  let s3: S3Server
  let disk: RawDisk
  let second: SecondVerifier
  let hosts: FleetAgent[]
  let nodes: FleetAgent[]
  let receiver: Server
  let port: number
  let sinkFolder: string
  let received = new Set<string>()
  const table: string[] = []

  before(async () => {
    const host = await lookAtHost()
    disk = cleanup.use(await makeRawDisk(diskBytes))
    s3 = cleanup.use(await startS3Server())
    await s3.createBucket(bucket)
    second = cleanup.use(await SecondVerifier.start())
    const outside = cleanup.use(await makeRawDisk(16 * 1024 * 1024))
    sinkFolder = join(outside.path, 'sink')
    await mkdir(sinkFolder)
    const secretFile = join(outside.path, 'alerts.key')
    await writeFile(secretFile, randomBytes(32), { mode: 0o600 })
    receiver = await listen(0)
    cleanup.defer(() => void receiver.close())
    port = (receiver.address() as AddressInfo).port
    const settings = s3Settings(s3, bucket)
    fleet = cleanup.use(
      await startFleet({
        name: 'downs',
        controlPlane: {
          ...settings.controlPlane,
          allowSwap: host.swap,
          alerts: { webhook: { url: `http://127.0.0.1:${port}/`, secretFile } },
          auditSink: { file: join(sinkFolder, 'audit.jsonl') },
          // All of these purges together are far beyond what one person destroys in a day.
          purge: { aloneJobsMax: 100_000 },
        },
      }),
    )
    cleanup.use(await moveDataTo(disk, fleet))
    const gate = await makeGatedAnalyser(join(fleet.root, 'gate'))
    const config = { isolation: host.isolation, allowSwap: host.swap, ...settings.agent }
    const add = (role: 'capture' | 'gpu', name: string) =>
      fleet.addAgent({
        ...{ name, role },
        config: { ...config, ...(role === 'gpu' ? { analysers: [gate.config] } : {}) },
      })
    hosts = [await add('capture', 'host-1'), await add('capture', 'host-2')]
    nodes = [await add('gpu', 'node-1'), await add('gpu', 'node-2')]
    await Promise.all([...hosts, ...nodes].map((agent) => agent.start()))
    // A process that stands still does not end when it is told to.
    cleanup.defer(() => signalHalf('SIGCONT'))
  })
  after(() => cleanup.disposeAsync())

  async function listen(on: number): Promise<Server> {
    const server = createServer((request, response) => {
      received.add(String(request.headers['webhook-id']))
      request.resume()
      response.writeHead(204).end()
    })
    server.listen(on, '127.0.0.1')
    await once(server, 'listening')
    return server
  }

  function signalHalf(signal: NodeJS.Signals): void {
    for (const agent of [hosts[1], nodes[1]]) if (agent?.isRunning) process.kill(agent.pid, signal)
  }

  const away = 'sink-away'
  /** What begins and ends each outage. */
  const outages: Record<Down, { begin(): Promise<void>; end(): Promise<void> }> = {
    store: { begin: () => s3.beginOutage(), end: () => s3.endOutage() },
    'audit sink': {
      begin: () => rename(sinkFolder, join(sinkFolder, '..', away)),
      end: () => rename(join(sinkFolder, '..', away), sinkFolder),
    },
    alerting: {
      async begin() {
        receiver.closeAllConnections()
        receiver.close()
        await once(receiver, 'close')
      },
      async end() {
        receiver = await listen(port)
      },
    },
    'half the fleet': {
      begin: async () => signalHalf('SIGSTOP'),
      end: async () => signalHalf('SIGCONT'),
    },
    'disk full': { begin: () => fillDisk(disk, 0), end: () => makeRoom(disk) },
  }

  async function handIn(host: FleetAgent, name: string, leased: boolean): Promise<JobId> {
    await waitUntilReady(host)
    const picture = await makePicture(join(fleet.root, 'tmp'), name)
    const analyser = leased ? 'gated' : 'offered-by-nobody'
    const [submission = ''] = await submit(host, [picture], { analyser })
    const job = await waitUntilSealed(host, submission)
    await fleet.waitForState(job, [leased ? 'leased' : 'stored'], waitMsMax)
    if (leased)
      await waitFor('the key to be handed out', waitMsMax, async () => {
        const { leases } = await detailOf(fleet, job)
        return leases.at(-1)?.keyReleasedAtMs
      })
    return job
  }

  async function sealedOf(early: StolenCopy): Promise<Map<JobId, Buffer>> {
    const sealed = new Map<JobId, Buffer>()
    for (const { jobId, objectKey } of early.keys) {
      const found = await s3.client.send(new GetObjectCommand({ Bucket: bucket, Key: objectKey }))
      sealed.set(jobId, Buffer.from((await found.Body?.transformToByteArray()) ?? []))
    }
    return sealed
  }

  async function opening(from: {
    early: StolenCopy
    epochs: StolenCopy
    sealed: ReadonlyMap<JobId, Buffer>
  }): Promise<number> {
    let opened = 0
    for (const key of from.early.keys) {
      const sealed = from.sealed.get(key.jobId)
      assert.ok(sealed)
      using job = await openStolen({ key, slotFile: from.epochs.slotFile, sealed })
      if (job !== undefined) opened += 1
    }
    return opened
  }

  /** Every holder that this test made has its duty in the database, done or open. */
  function assertDuties(id: string, stored: readonly JobId[], leased: readonly JobId[]): void {
    const file = join(fleet.controlPlane.dataDirectory, 'sluice.db')
    using database = new DatabaseSync(file, { readOnly: true })
    const rows = database
      .prepare(
        `SELECT kind || ' ' || coalesce(job_id, agent_id, subject_id) AS duty FROM obligations`,
      )
      .all()
    const known = new Set(rows.map((row) => row['duty']))
    const own = ['spool.delete', 'object.delete', 'key.destroy']
    for (const duty of [
      ...[...stored, ...leased].flatMap((job) => own.map((kind) => `${kind} ${job}`)),
      ...leased.map((job) => `lease.wipe ${job}`),
      ...[...hosts, ...nodes].map((agent) => `purge.agent ${agent.id}`),
      `purge.conclude ${id}`,
    ])
      assert.ok(known.has(duty), `${duty} is owed or done`)
  }

  async function purgeWith(down: ReadonlySet<Down>): Promise<void> {
    const [stored, leased]: [JobId[], JobId[]] = [[], []]
    for (const [index, host] of hosts.entries()) {
      stored.push(await handIn(host, `${table.length}-stored-${index}`, false))
      leased.push(await handIn(host, `${table.length}-leased-${index}`, true))
    }
    const ids = [...stored, ...leased]
    await using early = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    const sealed = await sealedOf(early)
    assert.equal(await opening({ early, epochs: early, sealed }), ids.length, 'the control')
    await waitFor('the reserve', waitMsMax, async () => {
      const status = (await fleet.ask('/v1/status')) as { reserve?: string }
      return status.reserve === 'missing' ? undefined : true
    })

    received = new Set()
    for (const what of down) await outages[what].begin()
    const body = { scope: { kind: 'everything' }, reason: 'a test' }
    const { id } = (await fleet.ask('/v1/purges', { role: 'security', body })) as { id: string }
    const show = async () => purgeDetail.parse(await fleet.ask(`/v1/purges/${id}`))
    await using struck = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    assert.deepEqual(struck.keys, [], 'no node is given any of these keys any more')
    assertDuties(id, stored, leased)
    await waitFor('the epoch key to be destroyed', waitMsMax, async () => {
      return (await show()).keysUnrecoverableAtMs
    })
    await using rolled = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    assert.equal(await opening({ early, epochs: rolled, sealed }), 0)

    const blocked = down.has('store') || down.has('half the fleet')
    const stopped = down.has('half the fleet') ? [hosts[1]?.id, nodes[1]?.id] : []
    const during = await waitFor('everybody who is up to be done', waitMsMax, async () => {
      const now = await show()
      if (!blocked) return now.state === 'concluded' ? now : undefined
      return now.silent.every((agent) => stopped.includes(agent.id)) ? now : undefined
    })
    const { text: report } = await fleet.call(`/v1/purges/${id}/report`)
    const trusted = createPublicKey(
      await readFile(join(fleet.controlPlane.dataDirectory, 'evidence', publicName)),
    )
    const verdict = await second.verdict(Buffer.from(report), trusted)
    assert.equal(verdict, blocked ? 'evidence.incomplete' : 'verified')
    assert.equal(during.state, blocked ? 'running' : 'concluded')

    for (const what of [...down].toReversed()) await outages[what].end()
    const ended = await waitFor(`purge ${id} to be concluded`, waitMsMax, async () => {
      const now = await show()
      return now.state === 'concluded' ? now : undefined
    })
    for (const job of ids) await proveDeleted(fleet, job)
    const { text } = await fleet.call(`/v1/purges/${id}/report`)
    assert.equal(verifyPurgeCertificate(Buffer.from(text), trusted).jobsCount, ids.length)
    assert.equal(await second.verdict(Buffer.from(text), trusted), 'verified')
    const left = await s3.client.send(new ListObjectVersionsCommand({ Bucket: bucket }))
    assert.deepEqual(
      left.Versions?.map(({ Key }) => Key),
      [claimKey],
    )
    assert.deepEqual(left.DeleteMarkers ?? [], [])
    await waitFor('every alert and every audit event to be brought', waitMsMax, async () => {
      const page = (await fleet.ask('/v1/obligations?limit=100')) as { items: { kind: string }[] }
      const owed = page.items.filter(({ kind }) => /^(alert\.deliver|audit\.export)$/.test(kind))
      return owed.length === 0 ? true : undefined
    })
    assert.ok(received.size > 0)
    const sink = join(sinkFolder, 'audit.jsonl')
    const judged = await fleet.command(['audit', 'verify', '--file', sink])
    assert.equal(judged.code, 0, judged.stderr)
    const since = (atMs: number | undefined) => `${(atMs ?? 0) - ended.requestedAtMs} ms`
    table.push(
      [
        nameOf(down).padEnd(60),
        `keys unusable ${since(ended.keysUnusableAtMs)}`,
        `unrecoverable ${since(ended.keysUnrecoverableAtMs)}`,
        `meanwhile ${during.state}`,
        `concluded ${since(ended.concludedAtMs)}`,
        'verified twice',
      ].join(' | '),
    )
  }

  for (const down of combinations) it(nameOf(down), () => purgeWith(down))

  it('has passed in every combination', (t) => {
    for (const line of table) t.diagnostic(line)
    assert.equal(table.length, combinations.length)
  })
})
