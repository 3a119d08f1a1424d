/** Stand-ins for tests of the control plane: a clock that is set, a store in memory, keys without secrets. */
import { createHash, randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { type AgentId, agentId, epochId } from '@sluice/protocol/ids'
import type { NodeOffer } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { type Changes, createChanges } from './changes.ts'
import { type Database, openDatabase } from './database/database.ts'
import { agents, epochs, jobKeys, receiveKeys } from './database/schema.ts'
import type { JobDeps } from './jobs/deps.ts'
import { createLeaseTimes } from './jobs/lease-times.ts'
import { createTurns } from './jobs/turns.ts'

/** A time like any other, so that UUIDv7 ids sort by it. */
export const someTimeMs = 1_800_000_000_000

export type TestGround = AsyncDisposable & {
  database: Database
  changes: Changes
  clock: { nowMs: number }
  now: () => number
}

/** A database in a folder of its own, and a clock that only moves when it is set. */
export async function testGround(): Promise<TestGround> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-test-'))
  const database = openDatabase(join(folder, 'sluice.db'))
  const clock = { nowMs: someTimeMs }
  return {
    database,
    changes: createChanges(),
    clock,
    now: () => clock.nowMs,
    async [Symbol.asyncDispose]() {
      await database[Symbol.asyncDispose]()
      await rm(folder, { recursive: true })
    },
  }
}

export type TestAgent = { id: AgentId; role: 'capture' | 'gpu'; site: string }

/** An agent that has joined. */
export async function joined(
  ground: TestGround,
  role: 'capture' | 'gpu',
  settings: {
    site?: string
    leasesMax?: number
    allowedAnalysers?: string[]
    offer?: NodeOffer
  } = {},
): Promise<TestAgent> {
  const { site = 'north', ...rest } = settings
  const id = newId(agentId, ground.now())
  await ground.database.write(async ({ sql }) => {
    await sql.insert(agents).values({
      id,
      name: `${role}-${id}`,
      role,
      site,
      labels: {},
      publicKey: randomBytes(44),
      publicKeyId: randomBytes(32).toString('hex'),
      joinedAtMs: ground.now(),
      ...rest,
    })
  })
  return { id, role, site }
}

/** Keys that only keep the books: rows are real, what is wrapped is not. */
export async function testKeys(ground: TestGround) {
  const epoch = newId(epochId, ground.now())
  await ground.database.write(async ({ sql }) => {
    await sql
      .insert(epochs)
      .values({ id: epoch, createdAtMs: ground.now(), state: 'current', destroyedAtMs: null })
  })
  const keys: JobDeps['keys'] & { mismatch: boolean; sealed: number } = {
    mismatch: false,
    sealed: 0,
    async openEscrow() {
      if (keys.mismatch)
        throw new SluiceError('keys.escrow_mismatch', 'the key does not open this archive')
      return { epochId: epoch, wrapped: randomBytes(60) }
    },
    async sealForLease({ jobId }) {
      const rows = await ground.database.read((sql) => sql.select().from(jobKeys))
      if (!rows.some((row) => row.jobId === jobId))
        throw new SluiceError('keys.destroyed', 'the job has no key')
      keys.sealed += 1
      return Buffer.from('an envelope')
    },
    async supplyReceiveKeys() {
      return []
    },
  }
  return keys
}

/** Gives an agent one receive key. */
export async function addReceiveKey<T extends string>(
  ground: TestGround,
  agent: AgentId,
  id: T,
): Promise<T> {
  await ground.database.write(async ({ sql }) => {
    const epoch = await sql.query.epochs.findFirst()
    await sql.insert(receiveKeys).values({
      id: id as never,
      agentId: agent,
      epochId: epoch!.id,
      wrappedSeed: randomBytes(60),
      publicKey: randomBytes(1216),
      expiresAtMs: ground.now() + 1_000_000,
    })
  })
  return id
}

/** A store in memory; `put` stands in for an agent's upload of a part. */
export function testStore() {
  const objects = new Map<string, number>()
  const uploads = new Map<string, { key: string; parts: Map<number, Buffer> }>()
  let next = 1
  const gone = () => new SluiceError('store.not_found', 'no such upload')
  const store = {
    objects,
    uploads,
    /** Called with each method's name before it works; throwing makes it fail. */
    before: (_method: string): void => undefined,
    put(storeUploadId: string, part: number, bytes: Buffer): string {
      uploads.get(storeUploadId)?.parts.set(part, bytes)
      return createHash('md5').update(bytes).digest('hex')
    },
    async createUpload(key) {
      store.before('createUpload')
      const id = `upload-${next++}`
      uploads.set(id, { key, parts: new Map() })
      return id
    },
    async listParts({ storeUploadId }) {
      store.before('listParts')
      const upload = uploads.get(storeUploadId)
      if (!upload) throw gone()
      return [...upload.parts].map(([part, bytes]) => ({
        part,
        bytes: bytes.length,
        etag: createHash('md5').update(bytes).digest('hex'),
      }))
    },
    async grantPart({ storeUploadId }, { part, lifeMs }) {
      store.before('grantPart')
      const url = `https://store.test/${storeUploadId}/${part}`
      return { url, headers: {}, expiresAtMs: someTimeMs + lifeMs }
    },
    async completeUpload({ storeUploadId }) {
      store.before('completeUpload')
      const upload = uploads.get(storeUploadId)
      if (!upload) throw gone()
      uploads.delete(storeUploadId)
      const bytes = [...upload.parts.values()].reduce((sum, part) => sum + part.length, 0)
      objects.set(upload.key, bytes)
    },
    async abortUpload({ storeUploadId }) {
      store.before('abortUpload')
      uploads.delete(storeUploadId)
    },
    async head(key) {
      store.before('head')
      const bytes = objects.get(key)
      return bytes === undefined ? undefined : { bytes }
    },
    async grantRead(key, lifeMs) {
      store.before('grantRead')
      return { url: `https://store.test/${key}`, headers: {}, expiresAtMs: someTimeMs + lifeMs }
    },
    async deleteAll(key) {
      store.before('deleteAll')
      objects.delete(key)
      for (const [id, upload] of uploads) if (upload.key === key) uploads.delete(id)
    },
  } satisfies JobDeps['store'] & Record<string, unknown>
  return store
}

/** Everything a job's life needs, with doubles at its edges. */
export async function testJobDeps(ground: TestGround) {
  return {
    database: ground.database,
    changes: ground.changes,
    now: ground.now,
    leaseTimes: createLeaseTimes(ground.now),
    keys: await testKeys(ground),
    store: testStore(),
    replicas: { stores: new Map(), settleMs: 0 },
    failedJobKeepMs: 24 * 60 * 60 * 1000,
    turns: createTurns(),
  } satisfies JobDeps
}
