import assert from 'node:assert/strict'
import { createPublicKey, generateKeyPairSync, randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { eq } from '../database/drizzle.ts'
import { certificateStatement } from '@sluice/protocol/certificate'
import { type ErrorCode, isSluiceError, SluiceError } from '@sluice/protocol/errors'
import {
  agentId,
  type AgentId,
  approvalId,
  epochId,
  jobId,
  type JobId,
  leaseId,
  principalId,
  tokenId,
} from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Command } from '@sluice/protocol/messages'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import { type Receipt, receiptOf } from '@sluice/protocol/receipt'
import { type DsseEnvelope, ed25519Signer, signStatement } from '@sluice/protocol/sealing/dsse'
import { verifyCertificate } from '@sluice/protocol/sealing/verify-certificate'
import { receiptPayloadType } from '@sluice/protocol/sealing/verify-receipt'
import { verifyWriteOff } from '@sluice/protocol/sealing/verify-write-off'
import type { Access } from '../access/rules.ts'
import {
  agents,
  auditEvents,
  commands,
  epochs,
  jobKeys,
  jobs,
  leases,
  type ObligationKind,
  obligations,
  receipts,
  results,
} from '../database/schema.ts'
import { onDisk } from '../database/full-disk.test-setup.ts'
import { testGround, type TestGround } from '../doubles.ts'
import { writeRetryMs } from '../database/write-failure.ts'
import { acknowledge } from '../fleet/store.ts'
import { createTurns } from '../jobs/turns.ts'
import { createObligationEngine, type DeletionParts } from './engine.ts'
import { type Evidence, openEvidence } from './evidence.ts'
import { beginDeletion } from './intent.ts'
import { destroyKey } from './job-key.ts'
import { acceptReceipt } from './receipts.ts'
import { type Obligation, progressOfDuty } from './rules.ts'
import {
  addObligation,
  certificateOfJob,
  countProgress,
  dutiesOfJob,
  jobById,
  makeDue,
  markDone,
  obligationById,
  obligationsOfJob,
  pageOfDuties,
  receiptsOfJob,
  writeOffText,
} from './store.ts'
import { askWriteOff, writeOff } from './write-off.ts'

const withCode = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)
const headerSha256 = 'ab'.repeat(32)

type Holder = { id: AgentId; signer: ReturnType<typeof ed25519Signer> }

type World = {
  ground: TestGround
  evidence: Evidence
  capture: Holder
  node: Holder
  /** Keys the store still has an object under. */
  objects: Set<string>
  problems: SluiceError[]
  parts: DeletionParts
}

async function makeWorld(t: TestContext): Promise<World> {
  const ground = await testGround()
  const folder = await mkdtemp(join(tmpdir(), 'sluice-evidence-'))
  t.after(async () => {
    await ground[Symbol.asyncDispose]()
    await rm(folder, { recursive: true })
  })
  const evidence = await openEvidence(folder)
  const objects = new Set<string>()
  const problems: SluiceError[] = []
  const parts: DeletionParts = {
    ...ground,
    evidence,
    keys: {
      levelSince: () => Promise.resolve({ level: 'Clear', reason: 'a test says so' } as const),
      roll: () => Promise.resolve({ destroyedAtMs: ground.now() }),
    },
    store: {
      deleteAll: (key) => Promise.resolve(void objects.delete(key)),
      remains: (key) =>
        Promise.resolve({ objects: objects.has(key) ? 1 : 0, versions: 0, uploads: 0 }),
    },
    replicas: { stores: new Map(), settleMs: 0 },
    turns: createTurns(),
    expireJob: () => Promise.resolve(),
    noticeExpiry: () => Promise.resolve(),
    others: {},
    report: (_, problem) => void problems.push(problem),
    random: () => 0.5,
  }
  const capture = await enrol(ground, 'capture')
  const node = await enrol(ground, 'gpu')
  await ground.database.write(async ({ sql }) => {
    await sql
      .insert(epochs)
      .values({ id: newId(epochId, ground.now()), createdAtMs: 0, state: 'current' })
  })
  return { ground, evidence, capture, node, objects, problems, parts }
}

async function enrol(ground: TestGround, role: 'capture' | 'gpu'): Promise<Holder> {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  const signer = ed25519Signer(privateKey, publicKey)
  const id = newId(agentId, ground.now())
  await ground.database.write(async ({ sql }) => {
    await sql.insert(agents).values({
      id,
      name: id,
      role,
      site: 'north',
      labels: {},
      publicKey: publicKey.export({ format: 'der', type: 'spki' }),
      publicKeyId: signer.keyId,
      joinedAtMs: ground.now(),
      certificateExpiresAtMs: ground.now() + 30 * limits.certificateMs,
    })
  })
  return { id, signer }
}

/** A job as it is when its result has just become durable: one finished lease, nothing deleted. */
async function analysedJob(world: World): Promise<JobId> {
  const { ground, capture, node, objects } = world
  const { changes } = ground
  const atMs = ground.now()
  const id = newId(jobId, atMs)
  const lease = newId(leaseId, atMs)
  const objectKey = `a/${randomBytes(16).toString('hex')}` as ObjectKey
  objects.add(objectKey)
  await ground.database.write(async (tx) => {
    await tx.sql.insert(jobs).values({
      id,
      site: 'north',
      captureAgentId: capture.id,
      analyser: 'example',
      state: 'analysed',
      mediaCount: 1,
      sealedBytes: 1000,
      sealedHeader: Buffer.alloc(56),
      sealedHeaderSha256: headerSha256,
      spoolSha256: headerSha256,
      source: { action: 'keep', when: 'result' },
      objectKey,
      sealedAtMs: atMs,
      announcedAtMs: atMs,
      stateChangedAtMs: atMs,
      fence: 1,
    })
    const [epoch] = await tx.sql.select().from(epochs)
    await tx.sql.insert(jobKeys).values({ jobId: id, epochId: epoch!.id, wrapped: randomBytes(60) })
    await tx.sql.insert(leases).values({
      id: lease,
      jobId: id,
      nodeId: node.id,
      fence: 1,
      grantedAtMs: atMs,
      deadlineAtMs: atMs,
      endedAtMs: atMs,
      endReason: 'finished',
    })
    await tx.sql.insert(results).values({
      jobId: id,
      leaseId: lease,
      nodeId: node.id,
      fence: 1,
      sealed: randomBytes(50),
      sealedSha256: headerSha256,
      sealedBytes: 50,
      receivedAtMs: atMs,
      expiresAtMs: atMs + limits.resultKeepMs,
    })
    const owed = { jobId: id, site: 'north', state: 'waiting', atMs } as const
    await addObligation(
      tx,
      { ...owed, kind: 'spool.delete', holder: { kind: 'capture-spool', id: capture.id } },
      changes,
    )
    await addObligation(tx, { ...owed, kind: 'object.delete' }, changes)
    await addObligation(tx, { ...owed, kind: 'key.destroy' }, changes)
    await addObligation(
      tx,
      {
        ...owed,
        kind: 'lease.wipe',
        leaseId: lease,
        holder: { kind: 'gpu-lease', id: node.id },
      },
      changes,
    )
    await addObligation(tx, { ...owed, kind: 'result.deliver', state: 'due' }, changes)
  })
  return id
}

const begin = (world: World, id: JobId, from: 'analysed' | 'stored' | 'leased' = 'analysed') =>
  world.ground.database.write((tx) =>
    beginDeletion(
      tx,
      {
        jobId: id,
        from,
        reason: 'analysed',
        actor: { kind: 'system' },
        atMs: world.ground.now(),
      },
      world.ground.changes,
    ),
  )

/** Lets an engine work until nothing is due. */
async function work(world: World, changed: Partial<DeletionParts> = {}): Promise<void> {
  await using engine = createObligationEngine({ ...world.parts, ...changed })
  engine.start()
  await engine.idle()
}

async function duty(world: World, id: JobId, kind: ObligationKind): Promise<Obligation> {
  const all = await world.ground.database.read((sql) => obligationsOfJob(sql, id))
  const found = all.find((one) => one.kind === kind)
  assert(found, kind)
  return found
}

const deliver = (world: World) =>
  world.ground.database.write(({ sql }) =>
    sql
      .update(results)
      .set({ deliveredAtMs: world.ground.now() })
      .then(() => undefined),
  )

/** An agent's receipt for its duty. */
async function receiptFor(
  world: World,
  id: JobId,
  kind: 'spool.delete' | 'lease.wipe',
  changed: Partial<Receipt> = {},
  sha256 = headerSha256,
): Promise<{ holder: Holder; envelope: DsseEnvelope }> {
  const spool = kind === 'spool.delete'
  const holder = spool ? world.capture : world.node
  const obligation = await duty(world, id, kind)
  const receipt: Receipt = {
    jobId: id,
    obligationId: obligation.id,
    holder: { kind: spool ? 'capture-spool' : 'gpu-lease', id: holder.id },
    ...(obligation.leaseId === null ? {} : { leaseId: obligation.leaseId, fence: 1 }),
    method: spool ? 'unlink' : 'process-exit',
    checked: ['looked again'],
    startedAtMs: world.ground.now(),
    wipedAtMs: world.ground.now(),
    ...changed,
  }
  const statement = receiptOf(receipt, sha256)
  return { holder, envelope: signStatement(receiptPayloadType, statement, holder.signer) }
}

async function confirm(
  world: World,
  id: JobId,
  kind: 'spool.delete' | 'lease.wipe',
): Promise<void> {
  const { holder, envelope } = await receiptFor(world, id, kind)
  await acceptReceipt(world.parts, holder.id, envelope)
}

const stateOf = async (world: World, id: JobId) =>
  (await world.ground.database.read((sql) => jobById(sql, id)))?.state

const certificateOf = (world: World, id: JobId) =>
  world.ground.database.read((sql) => certificateOfJob(sql, id))

async function openOrders(world: World, agent: AgentId): Promise<Command[]> {
  const rows = await world.ground.database.read((sql) =>
    sql.select().from(commands).where(eq(commands.agentId, agent)),
  )
  return rows
    .filter((row) => row.ackedAtMs === null && row.cancelledAtMs === null)
    .map((row) => row.body)
}

const eventsOf = async (world: World, type: string) =>
  (await world.ground.database.read((sql) => sql.select().from(auditEvents))).filter(
    (event) => event.type === type,
  )

describe('beginDeletion', () => {
  it('ends the key, makes every duty due, orders the holders, and has no way back', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await assert.rejects(begin(world, id, 'stored'), withCode('request.conflict'))
    assert.equal((await duty(world, id, 'key.destroy')).state, 'waiting')
    await begin(world, id)
    assert.equal(await stateOf(world, id), 'deleting')
    const owed = await world.ground.database.read((sql) => obligationsOfJob(sql, id))
    const waiting = owed.filter((one) => one.state === 'waiting').map((one) => one.kind)
    assert.deepEqual(waiting, ['certificate.issue'])
    assert.equal((await world.ground.database.read((sql) => sql.select().from(jobKeys))).length, 0)
    const orders = await openOrders(world, world.capture.id)
    assert.deepEqual(
      orders.map((order) => order.type),
      ['spool.delete'],
    )
    await assert.rejects(begin(world, id), withCode('request.conflict'))
  })

  it('ends a lease that still holds, and its node is told to wipe at once', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await world.ground.database.write(async ({ sql }) => {
      await sql.update(jobs).set({ state: 'leased' })
      await sql.update(leases).set({ endedAtMs: null, endReason: null })
    })
    await begin(world, id, 'leased')
    const [lease] = await world.ground.database.read((sql) => sql.select().from(leases))
    assert.equal(lease?.endReason, 'deleted')
    const [order] = await openOrders(world, world.node.id)
    assert.equal(order?.type === 'lease.end' && order.reason, 'deleted')
    assert.equal((await eventsOf(world, 'lease.ended')).length, 1)
    await confirm(world, id, 'lease.wipe')
  })

  it('leaves nothing behind when its transaction fails', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    const { database, changes } = world.ground
    const failing = database.write(async (tx) => {
      await beginDeletion(
        tx,
        { jobId: id, from: 'analysed', reason: 'analysed', actor: { kind: 'system' }, atMs: 1 },
        changes,
      )
      throw new Error('a later statement failed')
    })
    await assert.rejects(failing)
    assert.equal(await stateOf(world, id), 'analysed')
    assert.equal((await duty(world, id, 'key.destroy')).state, 'waiting')
    assert.deepEqual(await openOrders(world, world.capture.id), [])
  })
})

describe('a deletion in replicas', () => {
  const settleMs = 15 * 60_000

  /** A job that is being deleted, and whose holders have all confirmed but the store's replicas. */
  async function copiedJob(t: TestContext, places: readonly string[]) {
    const world = await makeWorld(t)
    const { ground } = world
    const id = await analysedJob(world)
    const copies = new Map(places.map((place) => [place, new Set(world.objects)]))
    const [key] = world.objects
    assert(key !== undefined)
    await ground.database.write(async (tx) => {
      const owed = { jobId: id, site: 'north', state: 'waiting', atMs: ground.now() } as const
      for (const subjectId of places)
        await addObligation(tx, { ...owed, kind: 'replica.delete', subjectId }, ground.changes)
    })
    const stores = new Map(
      [...copies].map(([place, held]) => [
        place,
        {
          deleteAll: (one: ObjectKey) => Promise.resolve(void held.delete(one)),
          remains: (one: ObjectKey) =>
            Promise.resolve({ objects: held.has(one) ? 1 : 0, versions: 0, uploads: 0 }),
          abortUpload: () => Promise.resolve(),
        },
      ]),
    )
    await begin(world, id)
    await deliver(world)
    await confirm(world, id, 'spool.delete')
    await confirm(world, id, 'lease.wipe')
    const open = async () => {
      const all = await ground.database.read((sql) => obligationsOfJob(sql, id))
      return all.filter((one) => one.kind === 'replica.delete' && one.state !== 'done')
    }
    const pass = async (ms: number, changed: Partial<DeletionParts> = {}) => {
      ground.clock.nowMs += ms
      await work(world, { replicas: { stores, settleMs }, ...changed })
    }
    return { world, id, key, copies, stores, open, pass }
  }

  it('is proven by each, named in the certificate, and not before a late copy had its time', async (t) => {
    const { world, id, key, copies, open, pass } = await copiedJob(t, ['paris', 'rome'])
    await pass(0)
    assert.deepEqual(
      [...copies.values()].map((held) => held.size),
      [0, 0],
      'deleted at once',
    )
    assert.equal((await duty(world, id, 'object.delete')).state, 'done')
    assert.equal((await open()).length, 2)
    // A copy that was under way arrives now.
    copies.get('rome')?.add(key)
    await pass(settleMs)
    assert.equal(copies.get('rome')?.size, 0)
    assert.deepEqual(
      (await open()).map(({ subjectId }) => subjectId),
      ['rome'],
    )
    assert.equal(await stateOf(world, id), 'deleting')
    await pass(settleMs)
    assert.equal(await stateOf(world, id), 'deleted')
    const text = await certificateOf(world, id)
    const pinned = createPublicKey(world.evidence.publicKeyPem)
    const { holders } = verifyCertificate(Buffer.from(text!), pinned)
    const places = holders.flatMap(({ holder }) => holder.place ?? [])
    assert.deepEqual(places.toSorted(), ['paris', 'rome'])
  })

  it('does not count before the store itself is empty', async (t) => {
    const { world, id, open, pass } = await copiedJob(t, ['paris'])
    const store: DeletionParts['store'] = {
      ...world.parts.store,
      deleteAll: () =>
        Promise.reject(new SluiceError('store.unreachable', 'down', { retry: 'later' })),
    }
    for (let looks = 0; looks < 3; looks += 1) await pass(settleMs, { store })
    assert.equal((await open()).length, 1)
    await pass(settleMs)
    assert.equal((await duty(world, id, 'object.delete')).state, 'done')
    assert.equal((await open()).length, 1, 'the time of a late copy begins now')
    await pass(settleMs)
    assert.equal(await stateOf(world, id), 'deleted')
  })

  it('stays owed while a replica fails, and when it is not configured any more', async (t) => {
    const { world, id, open, pass, stores } = await copiedJob(t, ['paris', 'rome'])
    const down = new SluiceError('store.refused', 'no', { retry: 'later' })
    const failing = { ...stores.get('paris')!, deleteAll: () => Promise.reject(down) }
    const replicas = { stores: new Map([['paris', failing]]), settleMs }
    for (let looks = 0; looks < 3; looks += 1) await pass(settleMs, { replicas })
    const codes = (await open()).map((one) => `${one.subjectId} ${one.lastErrorCode}`)
    assert.deepEqual(codes.toSorted(), ['paris store.refused', 'rome store.unreachable'])
    assert.equal(await stateOf(world, id), 'deleting')
    assert.equal(await certificateOf(world, id), undefined)
    await pass(settleMs)
    await pass(settleMs)
    assert.equal(await stateOf(world, id), 'deleted')
  })
})

describe('a deletion', () => {
  it('ends in a certificate that verifies offline, once every holder has confirmed', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    await work(world)
    assert.equal(world.objects.size, 0)
    assert.equal(await stateOf(world, id), 'deleting')
    await deliver(world)
    await confirm(world, id, 'spool.delete')
    await confirm(world, id, 'lease.wipe')
    world.ground.clock.nowMs += limits.resultKeepMs
    await work(world)
    assert.equal(await stateOf(world, id), 'deleted')
    const text = await certificateOf(world, id)
    const pinned = createPublicKey(world.evidence.publicKeyPem)
    const summary = verifyCertificate(Buffer.from(text!), pinned)
    assert.equal(summary.jobId, id)
    assert.deepEqual(summary.holders.map(({ holder }) => holder.kind).toSorted(), [
      'capture-spool',
      'gpu-lease',
      'job-key',
      'object-store',
      'result-blob',
    ])
    const [result] = await world.ground.database.read((sql) => sql.select().from(results))
    assert.equal(result?.sealed, null)
    assert.equal((await eventsOf(world, 'certificate.issued')).length, 1)
    assert.deepEqual(world.problems, [])
  })

  it('keeps an undelivered result until its time is over', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    await confirm(world, id, 'spool.delete')
    await confirm(world, id, 'lease.wipe')
    await work(world)
    world.ground.clock.nowMs += limits.resultKeepMs - 1
    await work(world)
    assert.equal(await stateOf(world, id), 'deleting')
    const held = () => world.ground.database.read((sql) => sql.select().from(results))
    assert.ok((await held())[0]?.sealed)
    world.ground.clock.nowMs += 1
    await work(world)
    assert.equal((await held())[0]?.sealed, null)
    assert.equal(await stateOf(world, id), 'deleted')
  })

  it('is never certified with anything wrong at any one holder', async (t) => {
    const kinds = ['spool.delete', 'lease.wipe', 'object.delete', 'key.destroy', 'result.deliver']
    for (const kind of kinds as ObligationKind[])
      for (const fault of ['none', ...faults] as const) {
        const world = await makeWorld(t)
        const id = await analysedJob(world)
        await deliver(world)
        await begin(world, id)
        const last = kind === 'lease.wipe' ? 'spool.delete' : 'lease.wipe'
        await confirm(world, id, last === 'lease.wipe' ? 'spool.delete' : 'lease.wipe')
        await work(world)
        // The evidence key has no end that could be forgotten or over.
        const own = kind !== 'spool.delete' && kind !== 'lease.wipe'
        if (own && (fault === 'expired' || fault === 'timeless')) continue
        // Behind the engine's back, as a bug or a hand in the database would.
        if (fault !== 'none') await spoil(world, id, await duty(world, id, kind), fault)
        await confirm(world, id, last)
        await world.ground.database.write((tx) =>
          makeDue(
            tx,
            { jobId: id, kinds: ['certificate.issue'], atMs: world.ground.now() },
            world.ground.changes,
          ),
        )
        await work(world)
        const issued = (await certificateOf(world, id)) !== undefined
        assert.equal(issued, fault === 'none', `${kind}: ${fault}`)
        assert.equal(await stateOf(world, id), fault === 'none' ? 'deleted' : 'deleting')
        const refusals = world.problems.filter(({ code }) => code.startsWith('evidence.'))
        assert.equal(refusals.length > 0, fault !== 'none')
      }
  })
})

const faults = [
  'missing',
  'forged',
  'another key',
  'not done',
  'written off',
  'another holder',
  'expired',
  'timeless',
] as const

async function spoil(
  world: World,
  id: JobId,
  obligation: Obligation,
  fault: (typeof faults)[number],
): Promise<void> {
  const { ground } = world
  await ground.database.write(async (tx) => {
    await markDone(tx, obligation.id, ground.now())
    const mine = eq(receipts.obligationId, obligation.id)
    const owed = eq(obligations.id, obligation.id)
    if (fault === 'not done') {
      const later = ground.now() + limits.obligationOverdueMs
      await tx.sql.update(obligations).set({ state: 'due', nextTryAtMs: later }).where(owed)
      return
    }
    if (fault === 'another holder') {
      const holder = { kind: 'capture-spool', id: newId(agentId, ground.now()) } as const
      await tx.sql.update(obligations).set({ holder }).where(owed)
      return
    }
    if (fault === 'expired' || fault === 'timeless') {
      const set = fault === 'expired' ? { signerNotAfterMs: 1 } : { signerNotAfterMs: null }
      await tx.sql
        .update(receipts)
        .set({ ...set, receivedAtMs: ground.now() })
        .where(mine)
      return
    }
    const row = (await receiptsOfJob(tx.sql, id)).find((one) => one.obligationId === obligation.id)
    if (!row || fault === 'missing' || fault === 'written off') {
      await tx.sql.delete(receipts).where(mine)
      if (fault === 'written off')
        await tx.sql.update(obligations).set({ writtenOffAtMs: ground.now() }).where(owed)
      return
    }
    const envelope = JSON.parse(row.envelope) as DsseEnvelope
    const { privateKey, publicKey } = generateKeyPairSync('ed25519')
    const forger = ed25519Signer(privateKey, publicKey)
    if (fault === 'another key') {
      const statement = JSON.parse(Buffer.from(envelope.payload, 'base64').toString()) as never
      const forged = signStatement(receiptPayloadType, statement, forger)
      await tx.sql
        .update(receipts)
        .set({
          envelope: JSON.stringify(forged),
          signerKeyId: forger.keyId,
          signerPublicKey: publicKey.export({ format: 'der', type: 'spki' }),
        })
        .where(mine)
      return
    }
    const sig = Buffer.from(envelope.signatures[0]!.sig, 'base64')
    sig[7]! ^= 1
    envelope.signatures[0]!.sig = sig.toString('base64')
    await tx.sql
      .update(receipts)
      .set({ envelope: JSON.stringify(envelope) })
      .where(mine)
  })
}

describe('destroyKey', () => {
  it('says what was done to the epoch key where that lay', async (t) => {
    const { ground, parts } = await makeWorld(t)
    const checkedWith = async (store: 'file' | 'pkcs11') => {
      const keys = {
        async roll() {
          const destroyedAtMs = ground.now()
          const id = newId(epochId, destroyedAtMs)
          const destroyed = {
            id,
            createdAtMs: 0,
            state: 'destroyed',
            destroyedAtMs,
            store,
          } as const
          await ground.database.write(async ({ sql }) => sql.insert(epochs).values(destroyed))
          return { destroyedAtMs }
        },
      }
      const { checked } = await destroyKey({ ...parts, keys }, { id: newId(jobId, ground.now()) })
      ground.clock.nowMs += 1000
      return checked.join(', ')
    }
    assert.match(await checkedWith('file'), /old epoch key overwritten and read back/)
    const onToken = await checkedWith('pkcs11')
    assert.match(onToken, /destroyed in the HSM/)
    assert.doesNotMatch(onToken, /overwritten/)
  })
})

describe('acceptReceipt', () => {
  it('takes the same receipt twice and settles once', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    await confirm(world, id, 'lease.wipe')
    await confirm(world, id, 'lease.wipe')
    assert.equal((await eventsOf(world, 'receipt.accepted')).length, 1)
    const [lease] = await world.ground.database.read((sql) => sql.select().from(leases))
    assert.ok(lease?.wipedAtMs)
  })

  it('refuses, and records, that a lease with the key never held anything', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    const keyReleased = (keyReleasedAtMs: number | null) =>
      world.ground.database.write(async ({ sql }) => {
        await sql.update(leases).set({ keyReleasedAtMs })
      })
    await keyReleased(world.ground.now())
    const { envelope } = await receiptFor(world, id, 'lease.wipe', { method: 'never-held' })
    const accept = () => acceptReceipt(world.parts, world.node.id, envelope)
    await assert.rejects(accept(), withCode('evidence.invalid'))
    assert.equal((await duty(world, id, 'lease.wipe')).state, 'due')
    assert.equal((await eventsOf(world, 'receipt.refused')).length, 1)
    await confirm(world, id, 'lease.wipe')
    assert.equal((await duty(world, id, 'lease.wipe')).state, 'done')
  })

  it('refuses, and records, a good receipt of an agent that is revoked or has expired', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    const { envelope } = await receiptFor(world, id, 'lease.wipe')
    const nowMs = world.ground.now()
    const identity = (set: Partial<typeof agents.$inferInsert>) =>
      world.ground.database.write(async ({ sql }) => {
        await sql.update(agents).set(set).where(eq(agents.id, world.node.id))
      })
    const accept = () => acceptReceipt(world.parts, world.node.id, envelope)
    const good = { revokedAtMs: null, certificateExpiresAtMs: nowMs + 1 }
    for (const bad of [
      { revokedAtMs: nowMs },
      { certificateExpiresAtMs: nowMs },
      { certificateExpiresAtMs: null },
    ]) {
      await identity({ ...good, ...bad })
      await assert.rejects(accept(), withCode('evidence.untrusted'), JSON.stringify(bad))
      assert.equal((await duty(world, id, 'lease.wipe')).state, 'due')
    }
    assert.equal((await eventsOf(world, 'receipt.refused')).length, 3)
    await identity(good)
    await accept()
    assert.equal((await duty(world, id, 'lease.wipe')).state, 'done')
  })

  it('counts what an agent signed before it was revoked, and says when that was', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await deliver(world)
    await begin(world, id)
    await confirm(world, id, 'lease.wipe')
    const nowMs = world.ground.now()
    await world.ground.database.write(async ({ sql }) => {
      await sql.update(agents).set({ revokedAtMs: nowMs }).where(eq(agents.id, world.node.id))
    })
    await confirm(world, id, 'spool.delete')
    await work(world)
    const bytes = Buffer.from((await certificateOf(world, id))!)
    verifyCertificate(bytes, world.evidence.publicKey)
    const { payload } = JSON.parse(bytes.toString()) as DsseEnvelope
    const { predicate } = certificateStatement.parse(
      JSON.parse(Buffer.from(payload, 'base64').toString()),
    )
    const signer = predicate.signers.find(({ holderId }) => holderId === world.node.id)
    assert.equal(signer?.revokedAtMs, nowMs + 1)
    assert.equal(signer.notAfterMs, nowMs + 30 * limits.certificateMs)
  })

  it('believes that a lease without the key never held anything', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    const { envelope } = await receiptFor(world, id, 'lease.wipe', { method: 'never-held' })
    await acceptReceipt(world.parts, world.node.id, envelope)
    assert.equal((await duty(world, id, 'lease.wipe')).state, 'done')
  })

  it('refuses, and records, what is not exactly what was asked of whom', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    const other = await analysedJob(world)
    await begin(world, id)
    const wipe = await duty(world, id, 'lease.wipe')
    const elsewhere = await duty(world, other, 'lease.wipe')
    const wrong: [Partial<Receipt>, ErrorCode][] = [
      [{ fence: 2 }, 'evidence.invalid'],
      [{ leaseId: newId(leaseId, 1) }, 'evidence.invalid'],
      [{ jobId: other }, 'evidence.invalid'],
      [{ obligationId: elsewhere.id }, 'evidence.invalid'],
      [{ obligationId: newId(leaseId, 1) as never }, 'request.not_found'],
      [{ holder: { kind: 'gpu-lease', id: world.capture.id } }, 'evidence.invalid'],
      [{ method: 'unlink' }, 'evidence.invalid'],
      [{ wipedAtMs: 0 }, 'evidence.invalid'],
    ]
    for (const [change, code] of wrong) {
      const { envelope } = await receiptFor(world, id, 'lease.wipe', change)
      const accepted = acceptReceipt(world.parts, world.node.id, envelope)
      await assert.rejects(accepted, withCode(code), JSON.stringify(change))
    }
    const otherHeader = await receiptFor(world, id, 'lease.wipe', {}, 'cd'.repeat(32))
    await assert.rejects(
      acceptReceipt(world.parts, world.node.id, otherHeader.envelope),
      withCode('evidence.invalid'),
    )
    const { envelope } = await receiptFor(world, id, 'lease.wipe')
    await assert.rejects(
      acceptReceipt(world.parts, world.capture.id, envelope),
      withCode('evidence.invalid'),
      'another agent may not bring it',
    )
    const forged = signStatement(
      receiptPayloadType,
      JSON.parse(Buffer.from(envelope.payload, 'base64').toString()) as never,
      world.capture.signer,
    )
    await assert.rejects(
      acceptReceipt(world.parts, world.node.id, forged),
      withCode('evidence.untrusted'),
    )
    const after = await world.ground.database.read((sql) => obligationById(sql, wipe.id))
    assert.equal(after?.state, 'due')
    const refusals = await eventsOf(world, 'receipt.refused')
    assert.equal(refusals.length, wrong.length + 3)
    await acceptReceipt(world.parts, world.node.id, envelope)
  })
})

describe('the obligation engine', () => {
  it('keeps the duty to expire until the job has moved on', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    const { ground } = world
    const expiresAtMs = ground.now() + 1000
    await ground.database.write(async (tx) => {
      await tx.sql.update(jobs).set({ state: 'failed', expiresAtMs })
      const owed = { jobId: id, site: 'north', state: 'due', atMs: ground.now() } as const
      await addObligation(tx, { ...owed, kind: 'job.expire' }, ground.changes)
      await addObligation(tx, { ...owed, kind: 'job.expiry-notice' }, ground.changes)
    })
    let noticed = 0
    const noticeExpiry = () => Promise.resolve(void (noticed += 1))
    await work(world, { noticeExpiry })
    assert.equal(noticed, 1)
    assert.equal((await duty(world, id, 'job.expire')).nextTryAtMs, expiresAtMs)
    ground.clock.nowMs = expiresAtMs
    await work(world, {
      expireJob: () =>
        ground.database.write(({ sql }) =>
          sql
            .update(jobs)
            .set({ expiresAtMs: null })
            .then(() => undefined),
        ),
    })
    assert.equal((await duty(world, id, 'job.expire')).state, 'done')
  })

  it('ends at once, although a roll takes its time, and forgets nothing', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    const waiting = Promise.withResolvers<void>()
    const roll = (signal?: AbortSignal): Promise<never> => {
      waiting.resolve()
      const never = Promise.withResolvers<never>()
      const gone = new SluiceError('keys.unavailable', 'ended', { retry: 'later' })
      signal?.addEventListener('abort', () => never.reject(gone))
      return never.promise
    }
    {
      const keys = { ...world.parts.keys, roll }
      await using engine = createObligationEngine({ ...world.parts, keys })
      engine.start()
      await waiting.promise
    }
    assert.equal((await duty(world, id, 'key.destroy')).state, 'due')
    assert.deepEqual(world.problems, [])
  })

  it('tries again with growing waits, through restarts, and drops nothing', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    let up = false
    const store: DeletionParts['store'] = {
      ...world.parts.store,
      deleteAll: (key) =>
        up
          ? world.parts.store.deleteAll(key)
          : Promise.reject(new SluiceError('store.unreachable', 'down', { retry: 'later' })),
    }
    let before = 0
    for (let tries = 1; tries <= 4; tries += 1) {
      await work(world, { store })
      const owed = await duty(world, id, 'object.delete')
      assert.deepEqual(
        [owed.state, owed.attempts, owed.lastErrorCode],
        ['due', tries, 'store.unreachable'],
      )
      const waitMs = owed.nextTryAtMs - world.ground.now()
      assert.ok(waitMs > before)
      before = waitMs
      world.ground.clock.nowMs = owed.nextTryAtMs
    }
    up = true
    await work(world, { store })
    assert.equal((await duty(world, id, 'object.delete')).state, 'done')
  })

  it('does not believe a store that still shows something', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    await work(world, { store: { ...world.parts.store, deleteAll: () => Promise.resolve() } })
    assert.equal((await duty(world, id, 'object.delete')).lastErrorCode, 'store.refused')
  })

  it('raises the alarm for a late duty once, and goes on', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    world.ground.clock.nowMs += limits.obligationOverdueMs
    await work(world)
    await work(world)
    const alarms = await eventsOf(world, 'obligation.overdue')
    const kinds = alarms.map((event) => String(event.detail['obligation']))
    assert.equal(new Set(kinds).size, kinds.length)
    assert.ok(kinds.includes('spool.delete') && kinds.includes('lease.wipe'))
    await confirm(world, id, 'spool.delete')
  })

  it('gives an order again when it was acknowledged without a receipt, and only then', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await begin(world, id)
    const { database } = world.ground
    const spoolOrders = async () => (await openOrders(world, world.capture.id)).length
    await work(world)
    assert.equal(await spoolOrders(), 1)
    const [order] = await database.read((sql) => sql.select().from(commands))
    await database.write((tx) =>
      acknowledge(tx, {
        agentId: order!.agentId,
        seq: order!.seq,
        commandId: order!.id,
        atMs: world.ground.now(),
      }),
    )
    assert.equal(await spoolOrders(), 0)
    world.ground.clock.nowMs += limits.obligationRetryMsMax
    await work(world)
    assert.equal(await spoolOrders(), 1)
    assert.deepEqual(
      (await openOrders(world, world.node.id)).map((one) => one.type),
      ['lease.end'],
    )
  })

  it('is counted as far as each duty has come, from the first to the certificate', async (t) => {
    const world = await makeWorld(t)
    const { database, clock } = world.ground
    const id = await analysedJob(world)
    await analysedJob(world)
    const all = { sites: null, nowMs: clock.nowMs, all: true, itemsMax: 100 }
    /** The words of the job, once the counts are found to be those of all there is. */
    const seen = async () => {
      const words = (await database.read((sql) => pageOfDuties(sql, all))).map(progressOfDuty)
      const counts: Record<string, number> = await database.read(countProgress)
      for (const [word, duties] of Object.entries(counts))
        assert.equal(duties, words.filter((one) => one === word).length, word)
      const mine = await database.read((sql) => dutiesOfJob(sql, id))
      return Object.fromEntries(mine.map((known) => [known.duty.kind, progressOfDuty(known)]))
    }
    assert.deepEqual(new Set(Object.values(await seen())), new Set(['owed']))
    await begin(world, id)
    await work(world)
    assert.equal((await seen())['spool.delete'], 'requested')
    const [order] = await database.read((sql) => sql.select().from(commands))
    const ack = { agentId: order!.agentId, seq: order!.seq, commandId: order!.id }
    await database.write((tx) => acknowledge(tx, { ...ack, atMs: clock.nowMs }))
    assert.equal((await seen())['spool.delete'], 'delivered')
    await confirm(world, id, 'spool.delete')
    const before = await seen()
    assert.deepEqual(
      [before['spool.delete'], before['object.delete'], before['certificate.issue']],
      ['done', 'done', 'owed'],
    )
    await confirm(world, id, 'lease.wipe')
    await deliver(world)
    clock.nowMs += limits.resultKeepMs
    await work(world)
    assert.equal(await stateOf(world, id), 'deleted')
    const { 'certificate.issue': certificate, ...holders } = await seen()
    assert.deepEqual([certificate, ...new Set(Object.values(holders))], ['done', 'proven'])
  })

  it('waits while the disk is full, loses nothing, and goes on when there is room', async (t) => {
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await deliver(world)
    await begin(world, id)
    await confirm(world, id, 'spool.delete')
    await confirm(world, id, 'lease.wipe')
    const { disk, database } = onDisk(world.ground.database)
    t.mock.timers.enable({ apis: ['setTimeout'] })
    let tries = 0
    let nudges = 0
    const store: DeletionParts['store'] = {
      ...world.parts.store,
      deleteAll: async (key) => {
        await world.parts.store.deleteAll(key)
        tries += 1
        // Fills up under the engine: neither the end of this duty nor its try can be written down.
        if (tries === 1) disk.full = true
      },
    }
    await using engine = createObligationEngine({ ...world.parts, database, store })
    engine.start()
    for (; (await stateOf(world, id)) !== 'deleted' && nudges < 500; nudges += 1) {
      if (nudges === 20) disk.full = false
      world.ground.clock.nowMs += writeRetryMs
      t.mock.timers.tick(writeRetryMs)
      await new Promise(setImmediate)
    }
    assert.equal(await stateOf(world, id), 'deleted')
    assert.ok(nudges > 20 && tries > 1, 'it waited for room, and then tried again')
    assert.deepEqual(world.problems, [])
  })

  it('finishes a deletion whichever of its effects fails, once or from then on, before or after', async (t) => {
    for (const when of ['before', 'after'] as const)
      for (const forGood of [false, true])
        for (let at = 1; ; at += 1) if (!(await cutShort(t, { at, when, forGood }))) break
  })
})

type Fault = { at: number; when: 'before' | 'after'; forGood: boolean }

/** @returns Whether the fault was reached. */
async function cutShort(t: TestContext, fault: Fault): Promise<boolean> {
  const world = await makeWorld(t)
  const id = await analysedJob(world)
  await deliver(world)
  await begin(world, id)
  await confirm(world, id, 'spool.delete')
  await confirm(world, id, 'lease.wipe')
  let effects = 0
  const failing = <A extends unknown[], T>(effect: (...args: A) => Promise<T>) =>
    async function run(...args: A): Promise<T> {
      effects += 1
      const hit = effects === fault.at || (fault.forGood && effects > fault.at)
      const failure = new SluiceError('store.unreachable', 'injected', { retry: 'later' })
      if (hit && fault.when === 'before') throw failure
      const value = await effect(...args)
      if (hit) throw failure
      return value
    }
  const { keys, store, turns } = world.parts
  const begun = failing(() => Promise.resolve())
  await work(world, {
    keys: { ...keys, roll: failing(keys.roll) },
    store: { deleteAll: failing(store.deleteAll), remains: failing(store.remains) },
    turns: { take: (key, task) => turns.take(key, () => begun().then(task)) },
  })
  world.ground.clock.nowMs += limits.obligationRetryMsMax
  await work(world)
  assert.equal(await stateOf(world, id), 'deleted', JSON.stringify(fault))
  assert.equal(world.objects.size, 0)
  const text = await certificateOf(world, id)
  verifyCertificate(Buffer.from(text!), world.evidence.publicKey)
  return effects >= fault.at
}

describe('the evidence key', () => {
  it('is made once, private to its owner, with its public half beside it', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-evidence-'))
    t.after(() => rm(folder, { recursive: true }))
    const first = await openEvidence(folder)
    const again = await openEvidence(folder)
    assert.equal(again.keyId, first.keyId)
    assert.equal((await stat(join(folder, 'evidence-key.der'))).mode & 0o777, 0o600)
    const exported = await readFile(join(folder, 'evidence-public.pem'), 'utf8')
    assert.equal(exported, first.publicKeyPem)
  })

  it('is never replaced by a new one when it is damaged', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-evidence-'))
    t.after(() => rm(folder, { recursive: true }))
    await openEvidence(folder)
    await writeFile(join(folder, 'evidence-key.der'), 'damaged')
    await assert.rejects(openEvidence(folder), withCode('host.unsafe_file'))
  })
})

describe('writing off', () => {
  const [one, other] = [newId(principalId, 1), newId(principalId, 2)]
  const access: Access = {
    principalId: one,
    principal: 'anna',
    tokenId: newId(tokenId, 1),
    sites: 'all',
    rights: [{ role: 'security', site: '*' }],
  }
  const ask = (world: World, id: JobId) =>
    askWriteOff(world.parts, { jobId: id, access, reason: 'the node was stolen' })
  const agree = (world: World, id: JobId) =>
    world.ground.database.write((tx) =>
      writeOff(world.parts, tx, {
        approvalId: newId(approvalId, world.ground.now()),
        operation: { kind: 'job.write-off', jobId: id },
        askedBy: one,
        askedAtMs: world.ground.now(),
        approvedBy: other,
        reason: 'the node was stolen',
        atMs: world.ground.now(),
      }),
    )
  const reportOf = (world: World, id: JobId) =>
    world.ground.database.read((sql) => writeOffText(sql, id))

  /** Everything is confirmed but the node's wipe. */
  async function nodeMissing(world: World): Promise<JobId> {
    const id = await analysedJob(world)
    await deliver(world)
    await begin(world, id)
    await confirm(world, id, 'spool.delete')
    await work(world)
    await world.ground.database.write(async ({ sql }) => {
      await sql.update(leases).set({ keyReleasedAtMs: world.ground.now() })
    })
    return id
  }
  const nodeIs = (world: World, set: Partial<typeof agents.$inferInsert>) =>
    world.ground.database.write(async ({ sql }) => {
      await sql.update(agents).set(set).where(eq(agents.id, world.node.id))
    })

  it('ends a job with a signed report of the gap, never with a certificate', async (t) => {
    const world = await makeWorld(t)
    const id = await nodeMissing(world)
    await nodeIs(world, { revokedAtMs: world.ground.now(), lastSeenAtMs: world.ground.now() - 5 })
    await ask(world, id)
    await agree(world, id)
    assert.equal(await stateOf(world, id), 'deleted-unconfirmed')
    assert.equal(await certificateOf(world, id), undefined)
    const text = await reportOf(world, id)
    assert(text)
    const report = verifyWriteOff(Buffer.from(text), world.evidence.publicKey)
    assert.deepEqual([report.askedBy, report.approvedBy, report.jobId], [one, other, id])
    assert(!text.includes('stolen'), 'the reason may name persons')
    const wipe = await duty(world, id, 'lease.wipe')
    assert.deepEqual(report.gaps, [
      {
        obligationId: wipe.id,
        kind: 'gpu-lease',
        agentId: world.node.id,
        leaseId: wipe.leaseId,
        hadKey: true,
        attempts: wipe.attempts,
        leaseDeadlineAtMs: report.gaps[0]?.leaseDeadlineAtMs,
        lastSeenAtMs: report.gaps[0]?.lastSeenAtMs,
        revokedAtMs: report.gaps[0]?.revokedAtMs,
      },
    ])
    assert.equal(report.confirmed.length, 4, 'spool, objects, key and result')
    assert.throws(() => verifyCertificate(Buffer.from(text), world.evidence.publicKey))
    const [event] = await eventsOf(world, 'job.written-off')
    assert.deepEqual([event?.detail['gaps'], event?.detail['withKey']], [1, 1])
    await work(world)
    assert.equal(await certificateOf(world, id), undefined, 'not later either')
    await assert.rejects(agree(world, id), withCode('request.conflict'))
  })

  it('still reminds the holder, and records that it came back after all', async (t) => {
    const world = await makeWorld(t)
    const id = await nodeMissing(world)
    world.ground.clock.nowMs += limits.obligationOverdueMs + limits.wipeReminderMs
    await agree(world, id)
    await work(world)
    const wipe = await duty(world, id, 'lease.wipe')
    assert.equal(wipe.state, 'due')
    assert.equal(wipe.nextTryAtMs, world.ground.now() + limits.writtenOffReminderMs)
    assert.equal((await eventsOf(world, 'obligation.overdue')).length, 0, 'nobody waits for it')
    await confirm(world, id, 'lease.wipe')
    assert.equal((await duty(world, id, 'lease.wipe')).state, 'done')
    await work(world)
    assert.equal(await stateOf(world, id), 'deleted-unconfirmed')
    assert.equal(await certificateOf(world, id), undefined)
  })

  it('waits until the holder is late, revoked or expired', async (t) => {
    const world = await makeWorld(t)
    const id = await nodeMissing(world)
    await assert.rejects(ask(world, id), withCode('request.conflict'))
    await assert.rejects(agree(world, id), withCode('request.conflict'))
    const { certificateExpiresAtMs } = (await agentNow(world))!
    await nodeIs(world, { certificateExpiresAtMs: world.ground.now() })
    await ask(world, id)
    await nodeIs(world, { certificateExpiresAtMs })
    await assert.rejects(ask(world, id), withCode('request.conflict'))
    world.ground.clock.nowMs += limits.obligationOverdueMs + limits.wipeReminderMs
    await ask(world, id)
  })
  const agentNow = (world: World) =>
    world.ground.database.read((sql) =>
      sql.query.agents.findFirst({ where: eq(agents.id, world.node.id) }),
    )

  it('never gives up what the control plane owes itself, nor a job that is not being deleted', async (t) => {
    for (const kind of ['key.destroy', 'object.delete', 'result.deliver'] as const) {
      const world = await makeWorld(t)
      const id = await nodeMissing(world)
      await nodeIs(world, { revokedAtMs: world.ground.now() })
      const reopened = await duty(world, id, kind)
      await world.ground.database.write(async ({ sql }) => {
        await sql.update(obligations).set({ state: 'due' }).where(eq(obligations.id, reopened.id))
      })
      world.ground.clock.nowMs += 2 * limits.obligationOverdueMs
      await assert.rejects(agree(world, id), withCode('request.conflict'), kind)
      assert.equal(await stateOf(world, id), 'deleting')
      assert.equal(await reportOf(world, id), undefined)
    }
    const world = await makeWorld(t)
    const id = await analysedJob(world)
    await nodeIs(world, { revokedAtMs: world.ground.now() })
    await assert.rejects(ask(world, id), withCode('request.conflict'))
  })

  it('leaves nothing behind when its transaction fails', async (t) => {
    const world = await makeWorld(t)
    const id = await nodeMissing(world)
    await nodeIs(world, { revokedAtMs: world.ground.now() })
    const failing = world.ground.database.write(async (tx) => {
      await writeOff(world.parts, tx, {
        approvalId: newId(approvalId, world.ground.now()),
        operation: { kind: 'job.write-off', jobId: id },
        askedBy: one,
        askedAtMs: world.ground.now(),
        approvedBy: other,
        reason: 'x',
        atMs: world.ground.now(),
      })
      throw new SluiceError('host.disk_full', 'here')
    })
    await assert.rejects(failing, withCode('host.disk_full'))
    assert.equal(await stateOf(world, id), 'deleting')
    assert.equal(await reportOf(world, id), undefined)
    assert.equal((await duty(world, id, 'lease.wipe')).writtenOffAtMs, null)
    await confirm(world, id, 'lease.wipe').catch(() => undefined)
    await nodeIs(world, { revokedAtMs: null })
    await confirm(world, id, 'lease.wipe')
    await work(world)
    assert.equal(await stateOf(world, id), 'deleted', 'control: who comes back earns a certificate')
  })
})
