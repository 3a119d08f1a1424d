/**
 * A purge while any of store, audit sink, alerting, half the fleet and disk is down, in process: the
 * database, the keys, the sink's file and all rules are real, what is beyond them is a double.
 */

import assert from 'node:assert/strict'
import { createPublicKey, randomBytes } from 'node:crypto'
import { copyFile, mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'

import { deliverAlert } from '@sluice/control-plane/alerts/deliver'
import { exportAudit, keepExporting } from '@sluice/control-plane/audit/export'
import { lineOf, sinkFiles } from '@sluice/control-plane/audit/sink'
import { listAudit, verifyAudit } from '@sluice/control-plane/audit/store'
import { onDisk } from '@sluice/control-plane/database/full-disk.test-setup'
import {
  alerts,
  epochs,
  jobKeys,
  leases,
  obligations,
  results,
} from '@sluice/control-plane/database/schema'
import { addObligation, certificateOfJob } from '@sluice/control-plane/deletion/store'
import type { EpochKeyStore } from '@sluice/control-plane/keys/epoch-key-store'
import { createKeyHolder } from '@sluice/control-plane/keys/key-holder'
import type { KeyProcess } from '@sluice/control-plane/keys/key-process-link'
import { createKeys } from '@sluice/control-plane/keys/keys'
import { openSlotFile } from '@sluice/control-plane/keys/slot-file'
import { requestPurge } from '@sluice/control-plane/purge/begin'
import { carryOut, remindAgent } from '@sluice/control-plane/purge/carry-out'
import { documentOf, purgeById } from '@sluice/control-plane/purge/store'
import { makeWorld, type Signing, tokenOf } from '@sluice/control-plane/purge/world.test-setup'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { type JobId, leaseId, type PurgeId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { archiveContext } from '@sluice/protocol/sealing/context'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { createSealer, sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { verifyCertificate } from '@sluice/protocol/sealing/verify-certificate'
import { verifyPurgeCertificate } from '@sluice/protocol/sealing/verify-purge'

import type { Down } from '../tools/downs.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'
import type { SecondVerifier } from '../vectors/certificates.test-setup.ts'

/** Longer than any delay between two tries. */
const longerThanAnyRetryMs = 700_000

/** A job with everything a test must know of it to look for it later. */
type Planted = {
  id: JobId
  jobKey: Buffer
  sealedHeader: Buffer
  /** Who must confirm. */
  agents: Signing[]
  /** Kinds of duty it must have, one for each of its holders. */
  kinds: string[]
}

/** A key process without a process: the same holder, in this one. */
function inProcess(store: EpochKeyStore): KeyProcess {
  const holder = createKeyHolder(store)
  let alive = true
  const operations = Object.entries(holder).map(([name, work]) => [
    name,
    async (request: never) => {
      if (!alive) throw new SluiceError('keys.unavailable', 'ended', { retry: 'later' })
      return (work as (request: never) => Promise<unknown>)(request)
    },
  ])
  return {
    ...(Object.fromEntries(operations) as KeyProcess),
    get alive() {
      return alive
    },
    pid: undefined,
    async [Symbol.asyncDispose]() {
      alive = false
      holder[Symbol.dispose]()
    },
  }
}

/** One control plane in parts, with two hosts, two nodes, and a job in each state that counts. */
export async function makePlace(down: ReadonlySet<Down>) {
  await using cleanup = new AsyncDisposableStack()
  const folder = cleanup.use(await makeTemporaryDirectory('downs'))
  const world = cleanup.use(await makeWorld())
  const { changes, now, clock } = world.ground
  const { disk, database } = onDisk(world.ground.database)
  // The world's own epoch has no key anywhere; the one made now has.
  await database.write(async ({ sql }) => {
    await sql.update(epochs).set({ state: 'destroyed', destroyedAtMs: 0 })
  })
  const slotFile = join(folder.path, 'epoch-keys')
  const slots = cleanup.use(await openSlotFile(slotFile, { overwriteTorn: true }))
  const keys = cleanup.use(
    await createKeys({
      ...{ database, store: slots, now, coalesceMs: 0 },
      startProcess: () => Promise.resolve(inProcess(slots)),
      offlineMsMax: limits.offlineMsMaxDefault,
      report: (problem) => assert.fail(problem),
    }),
  )
  const hosts = [await world.enrol('capture'), await world.enrol('capture')] as const
  const nodes = [await world.enrol('gpu'), await world.enrol('gpu')] as const
  const agents = [...hosts, ...nodes]
  const away = (agent: Signing) => down.has('half the fleet') && agents.indexOf(agent) % 2 === 1
  const isDown = (what: Down) => !healed && down.has(what)
  let healed = false
  let freed = 0

  const own = ['spool.delete', 'object.delete', 'key.destroy']
  const planted: Planted[] = []
  for (const index of [0, 1] as const) {
    const by = hosts[index]
    const leasedTo = nodes[index]
    planted.push(
      await plant({ by }, own),
      await plant({ by, state: 'leased', leasedTo }, [...own, 'lease.wipe']),
    )
  }
  planted.push(await plant({ by: hosts[0], state: 'failed' }, own))
  const all = [...own, 'lease.wipe', 'result.deliver']
  planted.push(await plant({ by: hosts[1], leasedTo: nodes[0] }, all))
  await addResult(planted.at(-1)!)

  /** A job whose key came as every key comes: sealed to a receive key. */
  async function plant(about: Parameters<typeof world.job>[0], kinds: string[]): Promise<Planted> {
    const id = await world.job(about)
    const [receiver] = await keys.supplyReceiveKeys(about.by.id, 0)
    assert(receiver)
    const jobKey = randomBytes(32)
    using sealer = createSealer({ key: jobKey, context: archiveContext(id) })
    const sealedHeader = Buffer.from(sealer.header)
    const { receiveKeyId } = receiver
    const names = { jobId: id, senderId: about.by.id, receiveKeyId }
    const envelope = sealEnvelope({
      ...names,
      purpose: 'job-key-escrow',
      sealedHeaderHash: sealedHeaderHash(sealedHeader),
      recipient: Buffer.from(receiver.publicKey, 'base64url'),
      plaintext: jobKey,
    })
    const wrapped = await keys.openEscrow({ ...names, sealedHeader, envelope })
    await database.write(async ({ sql }) => {
      const bytes = `x'${wrapped.wrapped.toString('hex')}'`
      const to = `epoch_id = '${wrapped.epochId}', wrapped = ${bytes}`
      sql.run(`UPDATE job_keys SET ${to} WHERE job_id = '${id}'`)
    })
    const confirm = about.leasedTo ? [about.by, about.leasedTo] : [about.by]
    return { id, jobKey, sealedHeader, agents: confirm, kinds }
  }

  async function addResult({ id }: Planted): Promise<void> {
    const expiresAtMs = now() + 7 * 86_400_000
    await database.write(async (tx) => {
      const rows = await tx.sql.select().from(leases)
      const lease = rows.find((one) => one.jobId === id)
      assert(lease)
      const { id: held, nodeId, fence } = lease
      await tx.sql.insert(results).values({
        ...{ jobId: id, leaseId: held, nodeId, fence, expiresAtMs },
        ...{ sealed: randomBytes(64), sealedSha256: 'ef'.repeat(32), sealedBytes: 64 },
        receivedAtMs: now(),
      })
      const duty = { jobId: id, site: 'north', kind: 'result.deliver', state: 'due' } as const
      await addObligation(tx, { ...duty, atMs: now(), nextTryAtMs: expiresAtMs }, changes)
    })
  }

  /** What a node does to get a key; the lease itself is not looked at here. */
  async function askKey({ id, sealedHeader }: Planted): Promise<Buffer> {
    const { seed, publicKey } = makeReceiverKeyPair()
    const lease = {
      ...{ jobId: id, nodeId: nodes[0].id, leaseId: newId(leaseId, now()), fence: 1 },
      deadlineAtMs: now() + 60_000,
    }
    const envelope = await keys.sealForLease({ ...lease, sealedHeader, publicKey })
    const hash = sealedHeaderHash(sealedHeader)
    return openEnvelope({
      ...lease,
      purpose: 'job-key-lease',
      sealedHeaderHash: hash,
      seed,
      envelope,
    })
  }

  /** What a thief has who was here: the wrapped keys, and the epoch keys of that moment. */
  async function steal() {
    const copy = join(folder.path, 'stolen-epoch-keys')
    await copyFile(slotFile, copy)
    const rows = await database.read((sql) => sql.select().from(jobKeys))
    return { rows, slotFile: copy }
  }

  /** How many of the stolen keys open with the epoch keys of a slot file. */
  async function opening(rows: (typeof jobKeys.$inferSelect)[], file: string): Promise<number> {
    const copy = join(folder.path, 'tried-epoch-keys')
    await copyFile(file, copy)
    await using store = await openSlotFile(copy, { overwriteTorn: false })
    using holder = createKeyHolder(store)
    let opened = 0
    for (const epochId of await store.list()) {
      await holder.hold({ epochId, mayCreate: false })
      const wrapped = Buffer.concat(rows.map((row) => row.wrapped))
      const ids = rows.map((row) => row.jobId)
      const page = { purpose: 'job-key', epochId, ids, wrapped } as const
      const flags = await holder.verify(page).catch((error: unknown) => {
        if (isSluiceError(error, 'keys.damaged')) return new Uint8Array(ids.length)
        throw error
      })
      opened += flags.filter((flag) => flag === 1).length
    }
    return opened
  }

  const dataDir = join(folder.path, 'data')
  await mkdir(dataDir)
  const sinkFile = join(folder.path, 'audit.jsonl')
  const eventsAfter = (afterSeq: number, items: number) => listAudit(database, { afterSeq, items })
  const noSink = () => Promise.reject(Object.assign(new Error('no sink'), { code: 'EROFS' }))
  const delivered = new Set<string>()
  const channel = {
    send({ id }: { id: string }) {
      if (isDown('alerting'))
        throw new SluiceError('alert.undelivered', 'it is down', { retry: 'later' })
      delivered.add(id)
      return Promise.resolve(204)
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
  const throughStore = <T>(work: () => Promise<T>): Promise<T> =>
    isDown('store')
      ? Promise.reject(new SluiceError('store.unreachable', 'it is down', { retry: 'later' }))
      : work()
  const { evidence, parts } = world
  const reserve = {
    free() {
      freed += 1
      disk.full = false
      return Promise.resolve(true)
    },
  }
  const carry = { database, changes, now, evidence, keys, reserve }

  /** Everybody who is up does what is due; then so much time passes that everything is due again. */
  async function turn(): Promise<void> {
    const sink = {
      ...{ path: sinkFile, dataDir, eventsAfter },
      ...(isDown('audit sink') ? { files: { ...sinkFiles, open: noSink } } : {}),
    }
    const exports = { database, changes, now, sink }
    const report = (error: unknown) => assert.ok(disk.full, String(error))
    await keepExporting({ ...exports, report })[Symbol.asyncDispose]()
    await world.work({
      ...{ database, keys },
      store: {
        deleteAll: (key) => throughStore(() => parts.store.deleteAll(key)),
        remains: (key) => throughStore(() => parts.store.remains(key)),
      },
      others: {
        'purge.agent': (duty) => remindAgent(carry, duty),
        'purge.conclude': (duty) => carryOut(carry, duty),
        'audit.export': (duty) => exportAudit(exports, duty),
        'alert.deliver': (duty, signal) => deliverAlert({ database, now, channel }, duty, signal),
      },
    })
    for (const agent of agents) if (healed || !away(agent)) await world.obey(agent)
    clock.nowMs += longerThanAnyRetryMs
  }

  const kept = cleanup.move()
  return {
    ...{ world, database, planted, agents, turn, askKey, steal, opening, slotFile, delivered },
    ...{ away, sinkFile, eventsAfter },
    /** From now on what is down is down. */
    fail() {
      disk.full = down.has('disk full')
    },
    heal() {
      healed = true
    },
    reserve,
    get freed() {
      return freed
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

type Place = Awaited<ReturnType<typeof makePlace>>

/** Every duty there is, as `kind of whom`, sorted. */
async function dutiesIn({ database }: Place): Promise<string[]> {
  const rows = await database.read((sql) => sql.select().from(obligations))
  return rows
    .filter(({ kind }) => !['certificate.issue', 'job.expire', 'audit.export'].includes(kind))
    .map(({ kind, jobId, agentId, subjectId }) => {
      if (jobId !== null) return `${kind} of ${jobId}`
      return agentId === null ? `${kind} of ${subjectId}` : `${kind} by ${agentId}`
    })
    .toSorted()
}

/** The same list, from what the test itself planted. */
async function dutiesExpected(place: Place, purgeId: string): Promise<string[]> {
  const said = await place.database.read((sql) => sql.select().from(alerts))
  return [
    ...place.planted.flatMap(({ id, kinds }) => kinds.map((kind) => `${kind} of ${id}`)),
    ...place.agents.map(({ id }) => `purge.agent by ${id}`),
    ...said.map(({ id }) => `alert.deliver of ${id}`),
    `purge.conclude of ${purgeId}`,
  ].toSorted()
}

async function certifiedJobs({ database, planted }: Place): Promise<JobId[]> {
  const certified: JobId[] = []
  for (const { id } of planted)
    if (await database.read((sql) => certificateOfJob(sql, id))) certified.push(id)
  return certified.toSorted()
}

export async function askForPurge({ world, database, reserve }: Place): Promise<PurgeId> {
  const principalId = await world.person()
  return requestPurge(
    { ...world.deps, database, reserve },
    {
      ...{ scope: { kind: 'everything' }, reason: 'a test', breakGlass: false },
      includingHeld: false,
      access: {
        ...{ principalId, tokenId: tokenOf(principalId), sites: 'all' },
        rights: [{ role: 'security', site: '*' }],
      },
    },
  )
}

/**
 * A purge while some things are down: all keys are unusable at once, every duty is there, and no certificate
 * comes before everybody confirmed; once all works again, everything comes to its end.
 */
export async function purgeWith(down: ReadonlySet<Down>, second: SecondVerifier): Promise<void> {
  await using place = await makePlace(down)
  const { world, database, planted } = place
  for (const job of planted) assert.deepEqual(await place.askKey(job), job.jobKey, 'the control')
  const stolen = await place.steal()
  assert.equal(await place.opening(stolen.rows, stolen.slotFile), planted.length, 'the control')

  place.fail()
  const id = await askForPurge(place)
  assert.equal(place.freed, down.has('disk full') ? 1 : 0)
  for (const job of planted)
    await assert.rejects(place.askKey(job), (error) => isSluiceError(error, 'keys.destroyed'))
  assert.deepEqual(await dutiesIn(place), await dutiesExpected(place, id))

  // Whatever is down stays down, and everybody else does what they can.
  for (let turn = 0; turn < 2; turn += 1) await place.turn()
  assert.equal(await place.opening(stolen.rows, place.slotFile), 0, 'epoch destroyed')
  assert.equal(await place.opening(stolen.rows, stolen.slotFile), planted.length, 'the control')
  assert.deepEqual(await dutiesIn(place), await dutiesExpected(place, id))
  const complete = planted.filter(({ agents }) => !down.has('store') && !agents.some(place.away))
  assert.deepEqual(await certifiedJobs(place), complete.map((job) => job.id).toSorted())
  const purge = () => database.read((sql) => purgeById(sql, id))
  const document = () => database.read((sql) => documentOf(sql, id, 'purge-certificate'))
  const blocked = down.has('store') || down.has('half the fleet')
  assert.equal((await purge())?.state, blocked ? 'running' : 'concluded')
  assert.equal((await document()) === undefined, blocked, 'a certificate exactly when all is done')
  const raised = await database.read((sql) => sql.select().from(alerts))
  assert.ok(raised.length > 0)
  assert.equal(place.delivered.size > 0, !down.has('alerting'))
  const lines = await readFile(place.sinkFile, 'utf8').catch(() => '')
  assert.equal(lines !== '', !down.has('audit sink'))

  place.heal()
  for (let turn = 0; turn < 3; turn += 1) await place.turn()
  assert.equal((await purge())?.state, 'concluded')
  assert.equal(world.objects.size, 0)
  const text = await document()
  assert(text)
  const trusted = createPublicKey(world.evidence.publicKeyPem)
  assert.equal(verifyPurgeCertificate(Buffer.from(text), trusted).purgeId, id)
  assert.equal(await second.verdict(Buffer.from(text), trusted), 'verified')
  for (const job of planted) {
    const certificate = await database.read((sql) => certificateOfJob(sql, job.id))
    assert(certificate)
    assert.equal(verifyCertificate(Buffer.from(certificate), trusted).jobId, job.id)
  }
  const owed = await database.read((sql) => sql.select().from(obligations))
  const open = owed.filter(({ state, kind }) => state !== 'done' && kind !== 'audit.export')
  assert.deepEqual(open, [])
  const told = await database.read((sql) => sql.select().from(alerts))
  assert.deepEqual([...place.delivered].toSorted(), told.map((alert) => alert.id).toSorted())
  const events = await place.eventsAfter(0, 1_000_000)
  assert.equal(await readFile(place.sinkFile, 'utf8'), events.map(lineOf).join(''))
  assert.equal((await verifyAudit(database)).whole, true)
}
