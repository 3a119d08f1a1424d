/** What keys promise on whatever store epoch keys lie, with and without processes of their own. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it, type TestContext } from 'node:test'
import Sqlite from 'better-sqlite3'
import { count, desc, eq, sql as raw } from '../database/drizzle.ts'
import { type ErrorCode, isSluiceError, SluiceError } from '@sluice/protocol/errors'
import {
  agentId,
  type AgentId,
  type EpochId,
  jobId,
  type JobId,
  leaseId,
  receiveKeyId,
  type ReceiveKeyId,
} from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { createEncryptor } from '@sluice/protocol/sealing/aead'
import { archiveContext, lengthPrefixed } from '@sluice/protocol/sealing/context'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { createSealer, sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { type Database, openDatabase } from '../database/database.ts'
import { agents, auditEvents, epochs, jobKeys, jobs, receiveKeys } from '../database/schema.ts'
import { writeRetryMs } from '../database/write-failure.ts'
import { onDisk } from '../database/full-disk.test-setup.ts'
import type { EpochKeyStore } from './epoch-key-store.ts'
import type { EpochKeysPlace } from './epoch-keys-place.ts'
import { createKeyHolder } from './key-holder.ts'
import { wrappedBytes } from './key-operations.ts'
import { type KeyProcess, startKeyProcess } from './key-process-link.ts'
import { createKeys, type Keys } from './keys.ts'
import { epochsIn, storeJobKey } from './store.ts'

const atMs = 1_800_000_000_000
const withCode = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)

/** One kind of store, in data directories of tests. */
export type StoreKind = {
  name: EpochKeyStore['name']
  /** What the key process is started with. */
  placeIn(folder: string): EpochKeysPlace
  open(folder: string): Promise<EpochKeyStore>
  /** Copies what lies in the data directory, as a thief would. */
  copy(from: string, to: string): Promise<void>
}

/** A control plane's keys over a real database and a real store. */
export type World = {
  kind: StoreKind
  folder: string
  database: Database
  store: EpochKeyStore
  capture: AgentId
  node: AgentId
}

export async function makeWorld(t: TestContext, kind: StoreKind): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-keys-'))
  const world = await openWorld(folder, kind)
  t.after(async () => {
    await world.database[Symbol.asyncDispose]()
    for (const id of await world.store.list()) await world.store.destroy(id)
    await world.store[Symbol.asyncDispose]()
    await rm(folder, { recursive: true })
  })
  await world.database.write(async (tx) => {
    for (const [id, role] of [
      [world.capture, 'capture'],
      [world.node, 'gpu'],
    ] as const)
      await tx.sql.insert(agents).values({
        id,
        name: role,
        role,
        site: 'berlin',
        labels: {},
        publicKey: Buffer.from(role),
        publicKeyId: role,
        joinedAtMs: atMs,
      })
  })
  return world
}

export async function openWorld(folder: string, kind: StoreKind): Promise<World> {
  return {
    kind,
    folder,
    database: openDatabase(join(folder, 'sluice.db')),
    store: await kind.open(folder),
    capture: newId(agentId, atMs),
    node: newId(agentId, atMs),
  }
}

/** A key process without a process: the same holder, in this one. */
function inProcess(store: EpochKeyStore): KeyProcess {
  const holder = createKeyHolder(store)
  let alive = true
  const guarded = Object.fromEntries(
    Object.entries(holder).map(([name, work]) => [
      name,
      async (request: never) => {
        if (!alive) throw new SluiceError('keys.unavailable', 'ended', { retry: 'later' })
        return (work as (request: never) => Promise<unknown>)(request)
      },
    ]),
  ) as unknown as KeyProcess
  return {
    ...guarded,
    get alive() {
      return alive
    },
    pid: undefined,
    [Symbol.asyncDispose]() {
      alive = false
      holder[Symbol.dispose]()
      return Promise.resolve()
    },
  }
}

export function makeKeys(world: World, changed: Partial<Parameters<typeof createKeys>[0]> = {}) {
  return createKeys({
    database: world.database,
    store: world.store,
    startProcess: () => Promise.resolve(inProcess(world.store)),
    now: () => atMs,
    offlineMsMax: limits.offlineMsMaxDefault,
    report: (problem) => assert.fail(problem),
    coalesceMs: 0,
    ...changed,
  })
}

/** What a capture host keeps and sends: an archive's header and its key in an envelope. */
export type Sealed = {
  jobId: JobId
  senderId: AgentId
  receiveKeyId: ReceiveKeyId
  sealedHeader: Buffer
  envelope: Buffer
  /** Only here, to compare with. */
  key: Buffer
}

export async function seal(world: World, keys: Keys): Promise<Sealed> {
  const [supplied] = await keys.supplyReceiveKeys(world.capture, limits.receiveKeysPerAgent - 1)
  assert(supplied)
  const id = newId(jobId, atMs)
  const key = randomBytes(32)
  using sealer = createSealer({ key, context: archiveContext(id) })
  const sealedHeader = Buffer.from(sealer.header)
  const names = { jobId: id, senderId: world.capture, receiveKeyId: supplied.receiveKeyId }
  const envelope = sealEnvelope({
    purpose: 'job-key-escrow',
    ...names,
    sealedHeaderHash: Buffer.from(sealedHeaderHash(sealedHeader)),
    recipient: Buffer.from(supplied.publicKey, 'base64url'),
    plaintext: key,
  })
  return { ...names, sealedHeader, envelope, key }
}

export async function announce(world: World, keys: Keys, sealed: Sealed): Promise<void> {
  const wrapped = await keys.openEscrow(sealed)
  await world.database.write(async (tx) => {
    await addJob(tx.sql, world, sealed.jobId)
    await storeJobKey(tx, { ...sealed, key: wrapped })
  })
}

type Sql = Parameters<Parameters<Database['write']>[0]>[0]['sql']

async function addJob(sql: Sql, world: World, id: JobId): Promise<void> {
  await sql.insert(jobs).values({
    id,
    site: 'berlin',
    captureAgentId: world.capture,
    analyser: 'example',
    state: 'announced',
    mediaCount: 1,
    sealedBytes: 1000,
    sealedHeader: Buffer.alloc(56),
    sealedHeaderSha256: '0'.repeat(64),
    spoolSha256: '0'.repeat(64),
    source: { action: 'keep', when: 'result' },
    objectKey: `a/${randomBytes(16).toString('hex')}` as never,
    sealedAtMs: atMs,
    announcedAtMs: atMs,
    stateChangedAtMs: atMs,
  })
}

/** Asks for the job's key as a lease would, and compares. */
export async function opens(world: World, keys: Keys, sealed: Sealed): Promise<boolean> {
  const lease = makeReceiverKeyPair()
  const names = {
    jobId: sealed.jobId,
    nodeId: world.node,
    leaseId: newId(leaseId, atMs),
    fence: 1,
    deadlineAtMs: atMs,
  }
  const envelope = await keys.sealForLease({
    ...names,
    sealedHeader: sealed.sealedHeader,
    publicKey: lease.publicKey,
  })
  const key = openEnvelope({
    purpose: 'job-key-lease',
    ...names,
    sealedHeaderHash: Buffer.from(sealedHeaderHash(sealed.sealedHeader)),
    seed: lease.seed,
    envelope,
  })
  return key.equals(sealed.key)
}

export const deleteKey = (world: World, sealed: Sealed) =>
  world.database.write(async (tx) => {
    await tx.sql.delete(jobKeys).where(eq(jobKeys.jobId, sealed.jobId))
  })

/** The life of a job's key. */
export function testKeys(kind: StoreKind): void {
  it('carries a job key from the capture host to a lease', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world)
    const sealed = await seal(world, keys)
    await announce(world, keys, sealed)
    assert.ok(await opens(world, keys, sealed))
    await assert.rejects(keys.openEscrow(sealed), withCode('keys.destroyed'))
  })

  it('refuses the envelope of another sender, job or header, and a key that was not committed to', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world)
    const sealed = await seal(world, keys)
    await assert.rejects(
      keys.openEscrow({ ...sealed, senderId: world.node }),
      withCode('keys.destroyed'),
    )
    const other = newId(jobId, atMs)
    await assert.rejects(keys.openEscrow({ ...sealed, jobId: other }), withCode('envelope.refused'))
    const header = Buffer.from(sealed.sealedHeader)
    header[40]! ^= 1
    await assert.rejects(
      keys.openEscrow({ ...sealed, sealedHeader: header }),
      withCode('envelope.refused'),
    )
    const [supplied] = await keys.supplyReceiveKeys(world.capture, 255)
    assert(supplied)
    const envelope = sealEnvelope({
      purpose: 'job-key-escrow',
      jobId: sealed.jobId,
      senderId: sealed.senderId,
      receiveKeyId: supplied.receiveKeyId,
      sealedHeaderHash: Buffer.from(sealedHeaderHash(sealed.sealedHeader)),
      recipient: Buffer.from(supplied.publicKey, 'base64url'),
      plaintext: randomBytes(32),
    })
    const lied = { ...sealed, receiveKeyId: supplied.receiveKeyId, envelope }
    await assert.rejects(keys.openEscrow(lied), withCode('keys.escrow_mismatch'))
    await announce(world, keys, sealed)
  })

  it('opens survivors after a roll, and what was deleted before it for nobody', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world)
    const [kept, gone] = [await seal(world, keys), await seal(world, keys)]
    await announce(world, keys, kept)
    await announce(world, keys, gone)
    const before = await world.database.read((sql) => sql.select().from(jobKeys))
    const stolen = before.find((row) => row.jobId === gone.jobId)
    await deleteKey(world, gone)
    // Control: put back as from a copy of the database, it opens until the roll.
    await world.database.write((tx) =>
      tx.sql
        .insert(jobKeys)
        .values(stolen!)
        .then(() => undefined),
    )
    assert.ok(await opens(world, keys, gone))
    await deleteKey(world, gone)
    await keys.roll()
    assert.ok(await opens(world, keys, kept))
    await world.database.write((tx) =>
      tx.sql
        .insert(jobKeys)
        .values(stolen!)
        .then(() => undefined),
    )
    await assert.rejects(opens(world, keys, gone))
    assert.equal((await world.store.list()).length, 1)
  })

  it('opens a kept envelope with a copied data directory before the roll, and with nothing after it', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world)
    const sealed = await seal(world, keys)
    const copy = await mkdtemp(join(tmpdir(), 'sluice-copy-'))
    t.after(() => rm(copy, { recursive: true }))
    // The thief has the database of before, with the receive seed, and the spool's envelope.
    new Sqlite(join(world.folder, 'sluice.db'), { readonly: true }).exec(
      `VACUUM INTO '${join(copy, 'sluice.db')}'`,
    )
    const openWithCopy = async () => {
      await kind.copy(world.folder, copy)
      const stolen = await openWorld(copy, kind)
      try {
        const [epoch] = await stolen.database.read((sql) => epochsIn(sql, 'current'))
        using holder = createKeyHolder(stolen.store)
        await holder.hold({ epochId: epoch!.id, mayCreate: false })
        const [row] = await stolen.database.read((sql) => sql.select().from(receiveKeys))
        const seed = { epochId: row!.epochId, wrapped: row!.wrappedSeed }
        return await holder.openEscrow({ ...sealed, seed })
      } finally {
        await stolen.database[Symbol.asyncDispose]()
        await stolen.store[Symbol.asyncDispose]()
      }
    }
    assert.ok(await openWithCopy(), 'control: it opens')
    await announce(world, keys, sealed)
    await keys.roll()
    await assert.rejects(openWithCopy(), withCode('keys.no_epoch'))
    assert.ok(await opens(world, keys, sealed), 'the control plane itself still has the job')
  })

  it('goes on without a lost epoch key only when told, and claims nothing for what it held', async (t) => {
    const world = await makeWorld(t, kind)
    const before = await makeKeys(world)
    const sealed = await seal(world, before)
    await announce(world, before, sealed)
    await before[Symbol.asyncDispose]()
    await world.store.destroy((await world.store.list())[0]!)
    await assert.rejects(makeKeys(world), withCode('keys.no_epoch'))
    await using keys = await makeKeys(world, { acceptLostKeys: true })
    await assert.rejects(opens(world, keys, sealed), withCode('keys.destroyed'))
    assert.equal((await world.store.list()).length, 1, 'a new epoch has begun')
    assert.equal((await keys.levelSince(0)).level, 'none')
    const log = await world.database.read((sql) => sql.select().from(auditEvents))
    const [lost] = log.filter(({ type }) => type === 'epoch.lost')
    assert.equal(lost?.detail['jobKeys'], 1)
  })
}

/** Everything else that rolls promise. */
export function testRolls(kind: StoreKind): void {
  it('shares one roll among all who ask before it begins', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world, { coalesceMs: 60_000 })
    await keys.roll()
    const waiting = [keys.roll(), keys.roll()]
    await Promise.all([...waiting, keys.rollNow()])
    const destroyed = await world.database.read((sql) => epochsIn(sql, 'destroyed'))
    assert.equal(destroyed.length, 2)
  })

  it('keeps escrow, supply and leases going while it rolls', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world)
    const all: Sealed[] = []
    const work = (async () => {
      for (let index = 0; index < 40; index += 1) {
        const sealed = await seal(world, keys)
        // The transaction refuses a key whose epoch ended meanwhile; the announcement comes again.
        for (let again = true; again;)
          try {
            await announce(world, keys, sealed)
            again = false
          } catch (error) {
            if (!isSluiceError(error, 'keys.destroyed') || error.retry !== 'later') throw error
          }
        all.push(sealed)
        assert.ok(await opens(world, keys, sealed))
      }
    })()
    for (let rolls = 0; rolls < 8; rolls += 1) await keys.roll()
    await work
    for (const sealed of all) assert.ok(await opens(world, keys, sealed))
  })

  it('re-seals and verifies 30,000 survivors page by page', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world)
    const [epoch] = await world.database.read((sql) => epochsIn(sql, 'current'))
    assert(epoch)
    const total = 30_000
    await fillSeeds(world, epoch.id, total)
    await keys.roll()
    const { count: left, damaged } = await survivors(world)
    assert.deepEqual({ left, damaged }, { left: total, damaged: 0 })
  })

  it('drops what no longer opens instead of never rolling again', async (t) => {
    const world = await makeWorld(t, kind)
    await using keys = await makeKeys(world)
    const [kept, hurt] = [await seal(world, keys), await seal(world, keys)]
    await announce(world, keys, kept)
    await announce(world, keys, hurt)
    await world.database.write(async (tx) => {
      await tx.sql
        .update(jobKeys)
        .set({ wrapped: randomBytes(7) })
        .where(eq(jobKeys.jobId, hurt.jobId))
    })
    await keys.roll()
    assert.ok(await opens(world, keys, kept))
    await assert.rejects(opens(world, keys, hurt), withCode('keys.destroyed'))
    assert.equal((await survivors(world)).damaged, 1)
  })

  it('does not start on an epoch key file of another database', async (t) => {
    const world = await makeWorld(t, kind)
    await (await makeKeys(world))[Symbol.asyncDispose]()
    const [epoch] = await world.database.read((sql) => epochsIn(sql, 'current'))
    const other = await makeWorld(t, kind)
    await (await makeKeys(other))[Symbol.asyncDispose]()
    const mixed = { ...world, store: other.store }
    await assert.rejects(makeKeys(mixed), withCode('keys.no_epoch'))
    assert.equal((await other.store.list()).length, 1, 'and destroys nothing')
    assert.deepEqual(await world.store.list(), [epoch!.id])
  })

  it('puts its upkeep off while the disk is full, and makes good for it soon after', async (t) => {
    const world = await makeWorld(t, kind)
    const { disk, database } = onDisk(world.database)
    t.mock.timers.enable({ apis: ['setTimeout'] })
    let nowMs = atMs
    await using stack = new AsyncDisposableStack()
    stack.use(await makeKeys(world, { database, now: () => nowMs }))
    const [first] = await world.database.read((sql) => epochsIn(sql, 'current'))
    disk.full = true
    nowMs += limits.epochAgeMsMax
    t.mock.timers.tick(limits.epochAgeMsMax)
    let current = first
    for (let nudges = 0; current?.id === first?.id && nudges < 500; nudges += 1) {
      await new Promise(setImmediate)
      if (nudges === 20) disk.full = false
      t.mock.timers.tick(nudges < 20 ? 0 : writeRetryMs)
      current = (await world.database.read((sql) => epochsIn(sql, 'current')))[0]
    }
    assert.ok(current && current.id !== first?.id, 'rolled long before another hour went by')
  })
}

/** Receive keys need no job row each, and a roll treats both alike. */
async function fillSeeds(world: World, epoch: EpochId, total: number): Promise<void> {
  const ids = Array.from({ length: total }, () => newId(receiveKeyId, atMs))
  const wrapped = await wrapMany(world.store, epoch, ids)
  await world.database.write(async (tx) => {
    tx.sql.run(raw`INSERT INTO receive_keys
      (id, agent_id, epoch_id, wrapped_seed, public_key, expires_at_ms)
      SELECT value, ${world.capture}, ${epoch}, substr(${wrapped}, key * 60 + 1, 60), x'', ${2 * atMs}
      FROM json_each(${JSON.stringify(ids)})`)
  })
}

/** Wraps random secrets under an epoch, without the cost of a key pair each. */
async function wrapMany(
  store: EpochKeyStore,
  epoch: EpochId,
  ids: ReceiveKeyId[],
): Promise<Buffer> {
  using encryptor = createEncryptor(await store.load(epoch))
  const all = Buffer.alloc(ids.length * wrappedBytes)
  const secret = Buffer.alloc(32, 7)
  for (const [index, id] of ids.entries()) {
    const into = all.subarray(index * wrappedBytes, (index + 1) * wrappedBytes)
    const nonce = randomBytes(12)
    nonce.copy(into)
    const aad = lengthPrefixed(['sluice/receive-seed/1', id, epoch])
    encryptor.encrypt(nonce, secret, into.subarray(12), aad)
  }
  return all
}

async function survivors(world: World): Promise<{ count: number; damaged: number }> {
  return world.database.read(async (sql) => {
    const [current] = await epochsIn(sql, 'current')
    const [rows] = await sql
      .select({ rows: count() })
      .from(receiveKeys)
      .where(eq(receiveKeys.epochId, current!.id))
    const [event] = await sql.select().from(auditEvents).orderBy(desc(auditEvents.seq)).limit(1)
    return { count: rows?.rows ?? 0, damaged: Number(event?.detail['damaged']) }
  })
}

/** Fails the n-th effect, once or from then on; before it happens, or after. */
type Fault = { at: number; when: 'before' | 'after'; forGood: boolean }

function faulty(fault: Fault) {
  let effects = 0
  const around = async <T>(effect: () => Promise<T>): Promise<T> => {
    effects += 1
    const hit = effects === fault.at || (fault.forGood && effects > fault.at)
    const failure = new SluiceError('keys.unavailable', 'injected', { retry: 'never' })
    if (hit && fault.when === 'before') throw failure
    const value = await effect()
    if (hit) throw failure
    return value
  }
  const watched = <T extends object>(target: T, names: readonly (keyof T)[]): T =>
    new Proxy(target, {
      get(from, name) {
        const member = Reflect.get(from, name)
        if (typeof member !== 'function' || !names.includes(name as keyof T)) return member
        return (...args: unknown[]) => around(() => Reflect.apply(member, from, args))
      },
    })
  return { watched, reached: () => effects >= fault.at }
}

/** The n-th effect of a roll fails, for every n. */
export function testRollsCutShort(kind: StoreKind): void {
  for (const when of ['before', 'after'] as const)
    for (const forGood of [false, true])
      it(`is finished at the next start: effect fails ${when}, ${forGood ? 'and all later ones' : 'once'}`, async (t) => {
        for (let at = 1; ; at += 1) if (!(await cutShort(t, kind, { at, when, forGood }))) return
      })
}

/** @returns Whether the fault was reached; then there may be a later one to try. */
async function cutShort(t: TestContext, kind: StoreKind, fault: Fault): Promise<boolean> {
  const world = await makeWorld(t, kind)
  let kept: Sealed
  let gone: Sealed
  let wraps: Buffer[]
  {
    await using keys = await makeKeys(world)
    ;[kept, gone] = [await seal(world, keys), await seal(world, keys)]
    await announce(world, keys, kept)
    await announce(world, keys, gone)
    wraps = (await world.database.read((sql) => sql.select().from(jobKeys))).map(
      (row) => row.wrapped,
    )
    await deleteKey(world, gone)
  }
  const { watched, reached } = faulty(fault)
  const keyEffects = ['hold', 'reseal', 'verify'] as const
  const faultyWorld = {
    ...world,
    database: watched(world.database, ['write']),
    store: watched(world.store, ['destroy', 'list']),
  }
  const rolling = async (): Promise<void> => {
    await using keys = await makeKeys(faultyWorld, {
      startProcess: () =>
        Promise.resolve(watched<KeyProcess>(inProcess(world.store), [...keyEffects])),
    })
    await keys.roll()
  }
  await rolling().catch((error: unknown) => assert.ok(isSluiceError(error)))
  // The crash: all that is left is what is durable.
  await using keys = await makeKeys(world)
  assert.ok(await opens(world, keys, kept), `the survivor opens (${fault.at})`)
  await keys.roll()
  assert.ok(await opens(world, keys, kept))
  const rows = await world.database.read((sql) => sql.select().from(epochs))
  const states = rows.map((row) => row.state).toSorted()
  assert.equal(states.filter((state) => state === 'current').length, 1)
  assert.ok(states.every((state) => state === 'current' || state === 'destroyed'))
  const current = rows.find((row) => row.state === 'current')
  assert.deepEqual(await world.store.list(), [current!.id])
  await opensNever(world, keys, gone, wraps)
  return reached()
}

export async function opensNever(
  world: World,
  keys: Keys,
  gone: Sealed,
  wraps: readonly Buffer[],
): Promise<void> {
  const [current] = await world.database.read((sql) => epochsIn(sql, 'current'))
  for (const wrapped of wraps) {
    await world.database.write((tx) =>
      tx.sql
        .insert(jobKeys)
        .values({ jobId: gone.jobId, epochId: current!.id, wrapped })
        .then(() => undefined),
    )
    await assert.rejects(opens(world, keys, gone), withCode('keys.damaged'))
    await deleteKey(world, gone)
  }
}

/** The same in real processes. */
export function testKeyProcess(kind: StoreKind): void {
  const start =
    (world: World, answerMs: number = limits.requestTimeoutMs) =>
    () =>
      startKeyProcess({ ...kind.placeIn(world.folder), answerMs })

  it('cannot be made to open a debugger by a signal, and has no environment of ours', async (t) => {
    const world = await makeWorld(t, kind)
    const holder = await start(world)()
    t.after(() => holder[Symbol.asyncDispose]())
    const commandLine = await readFile(`/proc/${holder.pid}/cmdline`, 'utf8')
    assert.ok(commandLine.split('\0').includes('--disable-sigusr1'))
    const environment = await readFile(`/proc/${holder.pid}/environ`, 'utf8')
    // The second is where compiled code of ours lies, if the parent has it from there.
    const known =
      /^((NODE_CHANNEL_[A-Z_]+=[a-z0-9]+|NODE_COMPILE_CACHE=[^\0]*|SOFTHSM2_CONF=[^\0]*)\0)*$/
    assert.match(environment, known)
    assert.equal(environment.includes('SOFTHSM2_CONF'), kind.name === 'pkcs11')
  })

  it('does the whole work, is another process after each roll, and starts again when it was killed', async (t) => {
    const world = await makeWorld(t, kind)
    const pids: (number | undefined)[] = []
    await using keys = await makeKeys(world, {
      startProcess: async () => {
        const process = await start(world)()
        pids.push(process.pid)
        return process
      },
    })
    const sealed = await seal(world, keys)
    await announce(world, keys, sealed)
    await keys.roll()
    assert.ok(await opens(world, keys, sealed))
    assert.equal(pids.length, 2)
    assert.equal(new Set(pids).size, 2)
    await assert.rejects(readdir(`/proc/${pids[0]}`), 'the old process is gone and reaped')
    process.kill(pids[1]!, 'SIGKILL')
    assert.ok(await opens(world, keys, sealed))
    assert.equal(pids.length, 3)
  })

  it('says what failed by its code', async (t) => {
    const world = await makeWorld(t, kind)
    await using process = await start(world)()
    const epochId = '01900000-0000-7000-8000-000000000000' as EpochId
    await assert.rejects(process.hold({ epochId, mayCreate: false }), withCode('keys.no_epoch'))
    await process.hold({ epochId, mayCreate: true })
    assert.deepEqual(await world.store.list(), [epochId])
  })

  it('is ended, not waited for, when it does not answer in time', async (t) => {
    const world = await makeWorld(t, kind)
    await using held = await start(world, 2_000)()
    process.kill(held.pid!, 'SIGSTOP')
    const epochId = '01900000-0000-7000-8000-000000000000' as EpochId
    await assert.rejects(held.hold({ epochId, mayCreate: true }), withCode('keys.unavailable'))
    assert.equal(held.alive, false)
  })
}
