import assert from 'node:assert/strict'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { Hono } from 'hono'
import { SluiceError } from '@sluice/protocol/errors'
import {
  type AgentId,
  epochId,
  type JobId,
  jobId,
  leaseId,
  principalId,
  tokenId,
} from '@sluice/protocol/ids'
import type { JobState } from '@sluice/protocol/job'
import { type ObjectKey, objectKeyFrom } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import { ed25519Signer } from '@sluice/protocol/sealing/dsse'
import type { AccessEnv } from '../access/rules.ts'
import { eq } from '../database/drizzle.ts'
import {
  agents,
  alerts,
  auditEvents,
  jobKeys,
  jobs,
  leases,
  obligations,
} from '../database/schema.ts'
import { createObligationEngine } from '../deletion/engine.ts'
import { addObligation } from '../deletion/store.ts'
import { openEvidence } from '../deletion/evidence.ts'
import { joined, testGround, testJobDeps } from '../doubles.ts'
import { openCommands } from '../fleet/store.ts'
import { acceptPurgeReceipt } from '../purge/receipts.ts'
import { purgeReceiptBy } from '../purge/world.test-setup.ts'
import { openDirectoryStore } from '../storage/directory-store.ts'
import { claimKey } from '../storage/claim.ts'
import { type Counts, lookAtStore } from './look.ts'
import { loseFound } from './losses.ts'
import { orphanWorker } from './orphans.ts'
import { sweepRoutes } from './routes.ts'
import { pageOfFindings, sweepById } from './store.ts'
import { createSweeps } from './sweep.ts'

const hourMs = 3_600_000
const actor = { kind: 'principal', id: newId(principalId, 1) } as const

/** A control plane's database and a real directory store, with whatever a test puts there. */
async function makeWorld(t: TestContext) {
  const ground = await testGround()
  const folder = await mkdtemp(join(tmpdir(), 'sluice-sweep-'))
  const store = await openDirectoryStore({ folder, origin: () => 'https://x', now: ground.now })
  const deps = { ...(await testJobDeps(ground)), store }
  const capture = await joined(ground, 'capture')
  const node = await joined(ground, 'gpu')
  const copy = await openDirectoryStore({
    folder: join(folder, 'copy'),
    origin: () => 'https://x',
    now: ground.now,
  })
  const epochKeys = { kept: new Set<string>(), destroyed: [] as string[] }
  const connected = new Set<AgentId>()
  let rolls = 0
  const problems: SluiceError[] = []
  const away = { store: false }
  const sweeps = await createSweeps({
    ...deps,
    epochKeys: { list: async () => [...epochKeys.kept] as never },
    places: [
      {
        async list(after) {
          if (away.store) throw new SluiceError('store.unreachable', 'away', { retry: 'later' })
          return store.list(after)
        },
        isThere: async ({ objectKey }) => (await store.head(objectKey)) !== undefined,
      },
      { name: 'paris', list: (after) => copy.list(after), isThere: async () => true },
    ],
    connected: () => [...connected],
    lose: (difference) => loseFound(deps, difference),
    everyMs: 24 * hourMs,
    graceMs: 72 * hourMs,
    offlineMaxMs: 14 * 24 * hourMs,
    answerMs: 2000,
    report: (problem) => void problems.push(problem),
  })
  const worker = orphanWorker({
    ...deps,
    store,
    replicas: { stores: new Map([['paris', copy]]), settleMs: 0 },
    epochKeys: {
      list: async () => [...epochKeys.kept] as never,
      destroy: async (id) => {
        epochKeys.kept.delete(id)
        epochKeys.destroyed.push(id)
      },
    },
    keys: {
      rollNow: async () => {
        rolls += 1
        return { destroyedAtMs: ground.now() }
      },
    },
    lookAgainMs: 24 * hourMs,
  })
  const evidence = await openEvidence(join(folder, 'evidence'))
  const engine = createObligationEngine({
    ...deps,
    store,
    evidence,
    keys: {
      levelSince: () => Promise.resolve({ level: 'Clear', reason: 'a test says so' } as const),
      roll: async () => ({ destroyedAtMs: ground.now() }),
    },
    expireJob: async () => undefined,
    noticeExpiry: async () => undefined,
    others: { 'orphan.delete': worker, 'alert.deliver': async () => ({ waitMs: hourMs }) },
    report: (_, problem) => void problems.push(problem),
  })
  t.after(async () => {
    await engine[Symbol.asyncDispose]()
    await sweeps[Symbol.asyncDispose]()
    await store[Symbol.asyncDispose]()
    await copy[Symbol.asyncDispose]()
    await ground[Symbol.asyncDispose]()
    await rm(folder, { recursive: true })
  })

  async function addJob(state: JobState, more: Partial<typeof jobs.$inferInsert> = {}) {
    const id = more.id ?? newId(jobId, ground.now())
    const key = objectKeyFrom(randomBytes(16))
    await ground.database.write(async (tx) => {
      await tx.sql.insert(jobs).values({
        id,
        site: 'north',
        captureAgentId: capture.id,
        analyser: 'example',
        state,
        mediaCount: 1,
        sealedBytes: 10,
        sealedHeader: randomBytes(56),
        sealedHeaderSha256: 'a'.repeat(64),
        spoolSha256: 'b'.repeat(64),
        source: { action: 'keep', when: 'result' },
        objectKey: key,
        sealedAtMs: ground.now(),
        announcedAtMs: ground.now(),
        stateChangedAtMs: ground.now(),
        ...more,
      })
      const about = { jobId: id, site: 'north', state: 'waiting', atMs: ground.now() } as const
      await addObligation(tx, { ...about, kind: 'spool.delete' }, ground.changes)
    })
    return { id, key }
  }
  const addKey = (id: JobId) =>
    ground.database.write((tx) =>
      tx.sql
        .insert(jobKeys)
        .values({ jobId: id, epochId: newId(epochId, 1), wrapped: randomBytes(60) })
        .then(() => undefined),
    )
  /** An object with one part, as a completed upload leaves it. */
  async function putObject(key: ObjectKey, root = folder) {
    const at = join(root, 'objects', key.slice(2, 4), key.slice(2))
    await mkdir(at, { recursive: true })
    await writeFile(join(at, `00001-10-${'0'.repeat(32)}`), randomBytes(10))
  }
  const stateOf = (id: JobId) =>
    ground.database.read(
      async (sql) => (await sql.select().from(jobs)).find((j) => j.id === id)?.state,
    )
  const findings = () =>
    ground.database.read((sql) => pageOfFindings(sql, { open: true, itemsMax: 100 }))
  const kindsFound = async () => (await findings()).map(({ kind }) => kind).toSorted()
  async function sweep(dryRun = false) {
    const { id } = await sweeps.begin({ dryRun, trigger: 'asked', actor })
    await sweeps.idle()
    return (await ground.database.read((sql) => sweepById(sql, id)))!
  }
  async function workOff() {
    engine.start()
    await engine.idle()
  }
  return {
    ...{ ground, store, capture, node, epochKeys, connected, sweeps, problems, away },
    ...{ addJob, addKey, putObject, stateOf, findings, kindsFound, sweep, workOff },
    copy,
    putCopy: (key: ObjectKey) => putObject(key, join(folder, 'copy')),
    rolls: () => rolls,
  }
}

describe('a sweep', () => {
  it('finds nothing where all is as it should be', async (t) => {
    const world = await makeWorld(t)
    for (const state of ['stored', 'leased', 'failed'] as const) {
      const { id, key } = await world.addJob(state, { storedAtMs: 1 })
      await world.addKey(id)
      await world.putObject(key)
    }
    const uploading = await world.addJob('uploading')
    await world.addKey(uploading.id)
    await world.addJob('deleted')
    const { state, counts } = await world.sweep()
    assert.equal(state, 'ended')
    assert.deepEqual(counts, {
      keyRows: 4,
      epochKeys: 0,
      jobs: 5,
      objects: 3,
      versions: 0,
      uploads: 0,
      agentsNotSeen: 2,
    })
    assert.deepEqual(await world.findings(), [])
  })

  it('quarantines an orphan, and deletes it when its time is over', async (t) => {
    const world = await makeWorld(t)
    const stranger = objectKeyFrom(randomBytes(16))
    const gone = await world.addJob('deleted')
    await world.putObject(stranger)
    await world.putObject(gone.key)
    await world.store.createUpload(stranger)
    const { counts } = await world.sweep()
    assert.equal(counts['orphan.object'], 2)
    assert.equal(counts['orphan.upload'], 1)
    assert.ok((await world.findings()).every(({ state }) => state === 'quarantined'))
    await world.workOff()
    assert.equal((await world.store.list()).entries.length > 0, true, 'it rests first')
    world.ground.clock.nowMs += 73 * hourMs
    world.ground.changes.emit('obligation')
    await world.workOff()
    assert.deepEqual((await world.store.list()).entries, [])
    assert.deepEqual(await world.findings(), [])
    const owed = await world.ground.database.read((sql) => sql.select().from(obligations))
    assert.ok(owed.filter(({ kind }) => kind === 'orphan.delete').every((o) => o.state === 'done'))
    const audit = await world.ground.database.read((sql) => sql.select().from(auditEvents))
    assert.ok(audit.some(({ type }) => type === 'orphan.deleted'))
  })

  it('finds what a replica kept, and misses nothing that a replica never had', async (t) => {
    const world = await makeWorld(t)
    const [live, gone] = [
      await world.addJob('stored', { storedAtMs: 1 }),
      await world.addJob('deleted'),
    ]
    await world.addKey(live.id)
    await world.putObject(live.key)
    await world.putCopy(gone.key)
    await world.copy.createUpload(gone.key)
    await world.sweep()
    const subjects = (await world.findings()).map(({ subject }) =>
      subject.slice(0, 'paris a/'.length),
    )
    assert.deepEqual(subjects, ['paris a/', 'paris a/'])
    assert.equal(await world.stateOf(live.id), 'stored')
    world.ground.clock.nowMs += 73 * hourMs
    await world.workOff()
    assert.deepEqual((await world.copy.list()).entries, [])
    assert.equal((await world.store.list()).entries.length, 1)
    assert.deepEqual(await world.findings(), [])
  })

  it('leaves alone what became known while it rested', async (t) => {
    const world = await makeWorld(t)
    const key = objectKeyFrom(randomBytes(16))
    await world.putObject(key)
    await world.sweep()
    await world.addJob('stored', { objectKey: key, storedAtMs: 1 })
    world.ground.clock.nowMs += 73 * hourMs
    await world.workOff()
    assert.notEqual(await world.store.head(key), undefined)
    assert.deepEqual(await world.findings(), [])
  })

  it('forgets the duty of a finding that was gone and came back', async (t) => {
    const world = await makeWorld(t)
    const key = objectKeyFrom(randomBytes(16))
    await world.putObject(key)
    await world.sweep()
    const [first] = await world.findings()
    await world.store.deleteAll(key)
    await world.sweep()
    assert.deepEqual(await world.findings(), [])
    world.ground.clock.nowMs += hourMs
    await world.putObject(key)
    await world.sweep()
    const [again] = await world.findings()
    assert.notEqual(again?.id, first?.id)
    const stateOfDuty = async (id: string | undefined) => {
      const owed = await world.ground.database.read((sql) => sql.select().from(obligations))
      return owed.find(({ subjectId }) => subjectId === id)?.state
    }
    world.ground.clock.nowMs += 71.5 * hourMs
    await world.workOff()
    assert.deepEqual([await stateOfDuty(first?.id), await stateOfDuty(again?.id)], ['done', 'due'])
    assert.notEqual(await world.store.head(key), undefined, 'it rests its whole time again')
    world.ground.clock.nowMs += hourMs
    world.ground.changes.emit('obligation')
    await world.workOff()
    assert.deepEqual((await world.store.list()).entries, [])
  })

  it('deletes what was kept once a person wants it gone after all', async (t) => {
    const world = await makeWorld(t)
    await world.putObject(objectKeyFrom(randomBytes(16)))
    await world.sweep()
    const [finding] = await world.findings()
    const api = new Hono<AccessEnv>()
    const who = { principalId: actor.id, principal: 'anna', tokenId: newId(tokenId, 1) }
    const access = { ...who, sites: 'all', rights: [] } as const
    api.use(async (c, next) => (c.set('access', access), next()))
    api.route('/', sweepRoutes({ ...world.ground, sweeps: world.sweeps }))
    const decide = async (word: 'keep' | 'delete') => {
      const init = { method: 'POST', body: '{}', headers: { 'content-type': 'application/json' } }
      const answer = await api.request(`/v1/sweep-findings/${finding?.id}/${word}`, init)
      assert(answer.ok, await answer.text())
    }
    await decide('keep')
    world.ground.clock.nowMs += 73 * hourMs
    await world.workOff()
    assert.equal((await world.store.list()).entries.length, 1, 'control: kept')
    await decide('delete')
    await world.workOff()
    assert.deepEqual((await world.store.list()).entries, [])
    assert.deepEqual(await world.findings(), [])
  })

  it('changes nothing when it is a dry run', async (t) => {
    const world = await makeWorld(t)
    const lost = await world.addJob('stored', { storedAtMs: 1 })
    await world.addKey(lost.id)
    await world.putObject(objectKeyFrom(randomBytes(16)))
    const { counts } = await world.sweep(true)
    assert.equal(counts['orphan.object'], 1)
    assert.equal(counts['missing.object'], 1)
    assert.equal(await world.stateOf(lost.id), 'stored')
    assert.ok((await world.findings()).every(({ state }) => state === 'reported'))
    world.ground.clock.nowMs += 73 * hourMs
    await world.workOff()
    assert.equal((await world.store.list()).entries.length, 1)
    // The control: for real, both follow.
    await world.sweep()
    assert.equal(await world.stateOf(lost.id), 'lost')
    world.ground.clock.nowMs += 73 * hourMs
    world.ground.changes.emit('obligation')
    await world.workOff()
    assert.deepEqual((await world.store.list()).entries, [])
  })

  it('reports losses: an object, a key, and tells an administrator', async (t) => {
    const world = await makeWorld(t)
    const noObject = await world.addJob('stored', { storedAtMs: 1 })
    await world.addKey(noObject.id)
    const noKey = await world.addJob('stored', { storedAtMs: 1 })
    await world.putObject(noKey.key)
    const held = await world.addJob('stored', { storedAtMs: 1, heldAtMs: 1 })
    await world.addKey(held.id)
    const { counts } = await world.sweep()
    assert.equal(counts['missing.object'], 2)
    assert.equal(counts['missing.key'], 1)
    assert.equal(await world.stateOf(noObject.id), 'lost')
    assert.equal(await world.stateOf(noKey.id), 'lost')
    assert.equal(await world.stateOf(held.id), 'stored', 'nothing moves a held job')
    const told = await world.ground.database.read((sql) => sql.select().from(alerts))
    assert.deepEqual(
      told.map(({ type }) => type),
      ['sweep.problems'],
    )
  })

  it('destroys keys that nobody should have any more, at once', async (t) => {
    const world = await makeWorld(t)
    const over = await world.addJob('deleted')
    await world.addKey(over.id)
    world.epochKeys.kept.add(newId(epochId, 5))
    await world.sweep()
    assert.deepEqual(await world.kindsFound(), ['orphan.key', 'orphan.key'])
    await world.workOff()
    assert.deepEqual(await world.ground.database.read((sql) => sql.select().from(jobKeys)), [])
    assert.equal(world.rolls(), 1)
    assert.equal(world.epochKeys.destroyed.length, 1)
  })

  it('does not take a place for clean that it could not see', async (t) => {
    const world = await makeWorld(t)
    await world.putObject(objectKeyFrom(randomBytes(16)))
    await world.sweep()
    world.away.store = true
    const { counts } = await world.sweep()
    assert.equal(counts['placesNotSeen'], 1)
    assert.deepEqual(await world.kindsFound(), ['orphan.object'], 'what was found stays found')
    assert.equal(world.problems.length, 1)
  })

  it('runs once at a time', async (t) => {
    const world = await makeWorld(t)
    const first = world.sweeps.begin({ dryRun: false, trigger: 'asked', actor })
    await assert.rejects(
      world.sweeps.begin({ dryRun: false, trigger: 'asked', actor }),
      (error) => error instanceof SluiceError && error.code === 'request.conflict',
    )
    await first
    await world.sweeps.idle()
  })
})

describe('a look at a store', () => {
  it('counts what is not ours, and neither that nor its own mark is an orphan', async (t) => {
    const { ground } = await makeWorld(t)
    const orphan = objectKeyFrom(randomBytes(16))
    const entries = [orphan, 'notes.txt', claimKey].map((key) => ({
      ...{ key, objects: 1, versions: 1, uploads: [] },
    }))
    const counts: Counts = {}
    const told: string[] = []
    await lookAtStore(
      {
        database: ground.database,
        list: async () => ({ entries }),
        isThere: async () => true,
      },
      { counts, tell: async ({ subject }) => void told.push(subject) },
    )
    assert.deepEqual([told, counts['foreign']], [[orphan], 1])
  })
})

describe('an inventory', () => {
  async function connectedWorld(t: TestContext) {
    const world = await makeWorld(t)
    world.connected.add(world.capture.id)
    return world
  }
  async function page(
    world: Awaited<ReturnType<typeof makeWorld>>,
    agent: { id: AgentId; role: 'capture' | 'gpu'; site: string },
    body: { spools?: JobId[]; leases?: { jobId: JobId; leaseId: string; fence: number }[] },
  ) {
    const { id } = await world.sweeps.begin({ dryRun: false, trigger: 'asked', actor })
    const asked = await waitForOrder(world, agent.id)
    assert.deepEqual(asked, { type: 'inventory', sweepId: id })
    await world.sweeps.takeInventory(agent, {
      sweepId: id,
      spools: (body.spools ?? []).map((one) => ({ jobId: one, sealedBytes: 1 })),
      leases: (body.leases ?? []) as never,
      last: true,
    })
    await world.sweeps.idle()
  }
  async function waitForOrder(world: Awaited<ReturnType<typeof makeWorld>>, agent: AgentId) {
    for (;;) {
      const open = await world.ground.database.read((sql) => openCommands(sql, agent))
      const asked = open.find(({ body }) => body.type === 'inventory')
      if (asked) return asked.body
      await new Promise((resolve) => setImmediate(resolve))
    }
  }

  it('shows spools whose job is over, and asks again for their deletion', async (t) => {
    const world = await connectedWorld(t)
    const over = await world.addJob('deleted')
    const live = await world.addJob('stored', { storedAtMs: 1 })
    await world.addKey(live.id)
    await world.putObject(live.key)
    await page(world, world.capture, { spools: [over.id, live.id] })
    assert.deepEqual(await world.kindsFound(), ['orphan.spool'])
    world.ground.clock.nowMs += 73 * hourMs
    await world.workOff()
    const open = await world.ground.database.read((sql) => openCommands(sql, world.capture.id))
    assert.deepEqual(
      open
        .filter(({ body }) => body.type === 'spool.delete')
        .map(({ body }) => (body as { jobId: string }).jobId),
      [over.id],
    )
  })

  it('orders a spool away that no job explains, and ends it with the receipt', async (t) => {
    const world = await connectedWorld(t)
    const { ground, capture } = world
    const { privateKey, publicKey } = generateKeyPairSync('ed25519')
    const host = { ...capture, signer: ed25519Signer(privateKey, publicKey) } as const
    await ground.database.write(async ({ sql }) => {
      await sql
        .update(agents)
        .set({
          publicKey: publicKey.export({ format: 'der', type: 'spki' }),
          publicKeyId: host.signer.keyId,
          certificateExpiresAtMs: ground.now() + 1000 * hourMs,
        })
        .where(eq(agents.id, capture.id))
    })
    const old = newId(jobId, ground.now() - 15 * 24 * hourMs)
    const strange = await joined(ground, 'capture')
    const foreign = await world.addJob('stored', { storedAtMs: 1, captureAgentId: strange.id })
    await world.addKey(foreign.id)
    await world.putObject(foreign.key)
    const young = newId(jobId, ground.now())
    await page(world, capture, { spools: [old, young] })
    assert.deepEqual(
      (await world.findings()).map((found) => found.jobId),
      [old],
      'control: a young draft may still be announced',
    )
    const orders = async () =>
      (await ground.database.read((sql) => openCommands(sql, capture.id)))
        .map(({ body }) => body)
        .filter((body) => body.type === 'purge')
    await world.workOff()
    assert.deepEqual(await orders(), [], 'it rests in quarantine first')
    ground.clock.nowMs += 73 * hourMs
    await world.workOff()
    await world.workOff()
    const [order, ...more] = await orders()
    assert(order)
    assert.deepEqual(more, [], 'asked once')
    assert.deepEqual([order.everything, order.jobIds], [false, [old]])
    const duty = async () =>
      (await ground.database.read((sql) => sql.select().from(obligations))).find(
        ({ id }) => id === order.obligationId,
      )
    assert.deepEqual([(await duty())?.state, (await duty())?.agentId], ['due', capture.id])

    const receipt = purgeReceiptBy(host, order, ground.now())
    await assert.rejects(acceptPurgeReceipt(ground, strange.id, receipt))
    const other = { ...order, jobIds: [young] }
    await assert.rejects(
      acceptPurgeReceipt(ground, capture.id, purgeReceiptBy(host, other, ground.now())),
      { code: 'evidence.invalid' },
    )
    await world.workOff()
    assert.equal((await world.findings()).length, 1, 'nobody has confirmed it yet')
    await acceptPurgeReceipt(ground, capture.id, receipt)
    await world.workOff()
    assert.deepEqual(await world.findings(), [])
    assert.equal((await duty())?.state, 'done')
    const told = await ground.database.read((sql) => sql.select().from(auditEvents))
    assert.deepEqual(
      told.filter(({ type }) => type === 'orphan.deleted').map(({ detail }) => detail['subject']),
      [`${capture.id} ${old}`],
    )
    assert.equal(await world.stateOf(foreign.id), 'stored')
  })

  it('leaves a draft alone that was announced during its quarantine', async (t) => {
    const world = await connectedWorld(t)
    const old = newId(jobId, world.ground.now() - 15 * 24 * hourMs)
    await page(world, world.capture, { spools: [old] })
    assert.deepEqual(await world.kindsFound(), ['orphan.spool'])
    await world.addJob('announced', { id: old })
    world.ground.clock.nowMs += 73 * hourMs
    await world.workOff()
    const open = await world.ground.database.read((sql) => openCommands(sql, world.capture.id))
    assert.deepEqual(
      open.filter(({ body }) => body.type === 'purge'),
      [],
    )
    assert.deepEqual(await world.findings(), [])
  })

  it('shows that the only copy is gone', async (t) => {
    const world = await connectedWorld(t)
    const there = await world.addJob('announced')
    const missing = await world.addJob('uploading')
    for (const { id } of [there, missing]) await world.addKey(id)
    await page(world, world.capture, { spools: [there.id] })
    assert.equal(await world.stateOf(there.id), 'announced')
    assert.equal(await world.stateOf(missing.id), 'lost')
  })

  it('shows a lease that is over and still worked on', async (t) => {
    const world = await connectedWorld(t)
    world.connected.clear()
    world.connected.add(world.node.id)
    const job = await world.addJob('deleted')
    const lease = async (endedAtMs: number | null, fence: number) => {
      const id = newId(leaseId, world.ground.now() + fence)
      await world.ground.database.write(async ({ sql }) => {
        await sql.insert(leases).values({
          ...{ id, jobId: job.id, nodeId: world.node.id, fence },
          grantedAtMs: 1,
          deadlineAtMs: 2,
          endedAtMs,
        })
      })
      return { jobId: job.id, leaseId: id, fence }
    }
    const holds = await lease(null, 1)
    const justEnded = await lease(world.ground.now() - 1000, 2)
    const longOver = await lease(world.ground.now() - hourMs, 3)
    const unknown = { jobId: job.id, leaseId: newId(leaseId, 9), fence: 9 }
    await page(world, world.node, { leases: [holds, justEnded, longOver, unknown] })
    const found = await world.findings()
    assert.deepEqual(
      found.map(({ subject }) => subject.split(' ').at(-1) ?? '').toSorted(),
      [longOver.leaseId, unknown.leaseId].toSorted(),
    )
  })
})
