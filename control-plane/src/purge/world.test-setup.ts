/** For tests of purges: agents that can sign, jobs in any state, and a store that can refuse. */
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { eq } from '../database/drizzle.ts'
import {
  agentId,
  type AgentId,
  epochId,
  jobId,
  type JobId,
  leaseId,
  principalId,
  type PrincipalId,
  receiveKeyId,
  type TokenId,
  tokenId,
} from '@sluice/protocol/ids'
import type { JobState } from '@sluice/protocol/job'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import { purgeReceiptOf } from '@sluice/protocol/purge-receipt'
import { type Receipt, receiptOf } from '@sluice/protocol/receipt'
import { ed25519Signer, signStatement } from '@sluice/protocol/sealing/dsse'
import {
  orderSha256Of,
  type PurgeOrder,
  purgeReceiptPayloadType,
} from '@sluice/protocol/sealing/verify-purge-receipt'
import { receiptPayloadType } from '@sluice/protocol/sealing/verify-receipt'
import type { Database } from '../database/database.ts'
import {
  agents,
  apiTokens,
  commands,
  epochs,
  jobKeys,
  jobs,
  leases,
  principals,
  receiveKeys,
  rights,
  uploads,
} from '../database/schema.ts'
import { createObligationEngine, type DeletionParts } from '../deletion/engine.ts'
import { type Evidence, openEvidence } from '../deletion/evidence.ts'
import { acceptReceipt } from '../deletion/receipts.ts'
import { addObligation, obligationsOfJob } from '../deletion/store.ts'
import { type TestGround, testGround } from '../doubles.ts'
import { openCommands } from '../fleet/store.ts'
import { createTurns } from '../jobs/turns.ts'
import type { PurgeDeps } from './begin.ts'
import { carryOut, remindAgent } from './carry-out.ts'
import { acceptPurgeReceipt } from './receipts.ts'

/** The one token of a person of these tests. */
export const tokenOf = (person: PrincipalId): TokenId => tokenId.parse(person)

export type Signing = {
  id: AgentId
  role: 'capture' | 'gpu'
  site: string
  signer: ReturnType<typeof ed25519Signer>
}

export type World = AsyncDisposable & {
  ground: TestGround
  evidence: Evidence
  deps: PurgeDeps
  parts: DeletionParts
  /** Effects outside the database, in their order. */
  effects: string[]
  objects: Set<string>
  rolls: number
  enrol(
    role: 'capture' | 'gpu',
    options?: { site?: string; labels?: Record<string, string>; receiveKeys?: number },
  ): Promise<Signing>
  person(createdBy?: PrincipalId): Promise<PrincipalId>
  job(options: NewTestJob): Promise<JobId>
  /** Lets the engine work until nothing is due; `effect` stands around what purges do. */
  work(changed?: Partial<DeletionParts>, effect?: Effect): Promise<void>
  /** An agent does and signs everything it was ordered, emergency lane first. */
  obey(agent: Signing, effect?: Effect): Promise<void>
  purgeOrders(agent: AgentId): Promise<PurgeOrder[]>
}

/** May die before or after its work. */
export type Effect = <T>(work: () => Promise<T>) => Promise<T>

/** A database whose every write is an effect. */
export function effectsOf(database: Database, effect: Effect): Database {
  return { ...database, write: (change) => effect(() => database.write(change)) }
}

export type NewTestJob = {
  by: Signing
  state?: JobState
  /** A lease on it that still holds. */
  leasedTo?: Signing
  held?: boolean
  sealedAtMs?: number
  uploaded?: boolean
}

export async function makeWorld(aloneJobsMax = 100): Promise<World> {
  const ground = await testGround()
  const folder = await mkdtemp(join(tmpdir(), 'sluice-purge-'))
  const evidence = await openEvidence(folder)
  const { database, changes, now } = ground
  const objects = new Set<string>()
  const effects: string[] = []
  const epoch = newId(epochId, now())
  await database.write(async ({ sql }) => {
    await sql.insert(epochs).values({ id: epoch, createdAtMs: 0, state: 'current' })
  })
  const roll = (): Promise<{ destroyedAtMs: number }> => {
    world.rolls += 1
    effects.push('roll')
    return Promise.resolve({ destroyedAtMs: now() })
  }
  const deps: PurgeDeps = {
    database,
    changes,
    now,
    storeKind: 's3',
    aloneJobsMax,
    reserve: { free: () => Promise.resolve(false) },
  }
  const parts: DeletionParts = {
    ...ground,
    evidence,
    keys: {
      levelSince: () => Promise.resolve({ level: 'Clear', reason: 'a test says so' } as const),
      roll,
    },
    store: {
      deleteAll: (key) => {
        effects.push('delete')
        return Promise.resolve(void objects.delete(key))
      },
      remains: (key) =>
        Promise.resolve({ objects: objects.has(key) ? 1 : 0, versions: 0, uploads: 0 }),
    },
    replicas: { stores: new Map(), settleMs: 0 },
    turns: createTurns(),
    expireJob: () => Promise.resolve(),
    noticeExpiry: () => Promise.resolve(),
    others: {},
    report: () => undefined,
    random: () => 0.5,
  }
  const world: World = {
    ground,
    evidence,
    deps,
    parts,
    effects,
    objects,
    rolls: 0,

    async enrol(role, { site = 'north', labels = {}, receiveKeys: stock = 0 } = {}) {
      const { privateKey, publicKey } = generateKeyPairSync('ed25519')
      const signer = ed25519Signer(privateKey, publicKey)
      const id = newId(agentId, now())
      await database.write(async ({ sql }) => {
        await sql.insert(agents).values({
          ...{ id, name: id, role, site, labels },
          publicKey: publicKey.export({ format: 'der', type: 'spki' }),
          publicKeyId: signer.keyId,
          joinedAtMs: now(),
          certificateExpiresAtMs: now() + 1_000_000_000,
        })
        for (let made = 0; made < stock; made += 1)
          await sql.insert(receiveKeys).values({
            id: newId(receiveKeyId, now()),
            agentId: id,
            epochId: epoch,
            wrappedSeed: randomBytes(60),
            publicKey: randomBytes(32),
            suppliedAtMs: now(),
            expiresAtMs: now() + 1_000_000,
          })
      })
      return { id, role, site, signer }
    },

    async person(createdBy) {
      const id = newId(principalId, now())
      await database.write(async ({ sql }) => {
        await sql.insert(principals).values({ id, name: id, createdAtMs: now(), createdBy })
        await sql.insert(rights).values({ principalId: id, role: 'security', site: '*' })
        await sql.insert(apiTokens).values({
          id: tokenOf(id),
          principalId: id,
          tokenSha256: randomBytes(32),
          createdAtMs: now(),
          expiresAtMs: now() + 1_000_000_000,
        })
      })
      return id
    },

    async job({ by, state = 'stored', leasedTo, held = false, sealedAtMs, uploaded = true }) {
      const atMs = now()
      const id = newId(jobId, atMs)
      const objectKey = `a/${randomBytes(16).toString('hex')}` as ObjectKey
      objects.add(objectKey)
      const lease = newId(leaseId, atMs)
      const deleting = state === 'deleting'
      await database.write(async (tx) => {
        await tx.sql.insert(jobs).values({
          ...{ id, site: by.site, captureAgentId: by.id, analyser: 'example', state, objectKey },
          ...(state === 'frozen' ? { frozenFrom: 'stored' } : {}),
          ...(deleting ? { intentAtMs: atMs, keysUnusableAtMs: atMs, stateChangedAtMs: atMs } : {}),
          mediaCount: 1,
          sealedBytes: 1000,
          sealedHeader: Buffer.alloc(56),
          sealedHeaderSha256: 'ab'.repeat(32),
          spoolSha256: 'cd'.repeat(32),
          source: { action: 'keep', when: 'result' },
          sealedAtMs: sealedAtMs ?? atMs,
          announcedAtMs: atMs,
          stateChangedAtMs: atMs,
          fence: leasedTo ? 1 : 0,
          heldAtMs: held ? atMs : null,
        })
        if (!deleting)
          await tx.sql
            .insert(jobKeys)
            .values({ jobId: id, epochId: epoch, wrapped: randomBytes(60) })
        if (uploaded)
          await tx.sql.insert(uploads).values({
            ...{ id: `u-${id}`, jobId: id, objectKey, storeUploadId: 'u', partBytes: 1 },
            ...{ state: 'completed', createdAtMs: atMs, endedAtMs: atMs },
          })
        const owed = {
          ...{ jobId: id, site: by.site, atMs },
          state: deleting ? 'due' : 'waiting',
        } as const
        await addObligation(
          tx,
          {
            ...owed,
            kind: 'spool.delete',
            agentId: by.id,
            holder: { kind: 'capture-spool', id: by.id },
          },
          changes,
        )
        await addObligation(tx, { ...owed, kind: 'object.delete' }, changes)
        await addObligation(tx, { ...owed, kind: 'key.destroy' }, changes)
        if (state === 'failed')
          await addObligation(
            tx,
            { ...owed, kind: 'job.expire', state: 'due', nextTryAtMs: atMs + 1_000_000 },
            changes,
          )
        if (!leasedTo) return
        await tx.sql.insert(leases).values({
          ...{ id: lease, jobId: id, nodeId: leasedTo.id, fence: 1, grantedAtMs: atMs },
          ...{ keyReleasedAtMs: atMs, deadlineAtMs: atMs + 60_000 },
        })
        await addObligation(
          tx,
          {
            ...owed,
            kind: 'lease.wipe',
            agentId: leasedTo.id,
            leaseId: lease,
            holder: { kind: 'gpu-lease', id: leasedTo.id },
          },
          changes,
        )
      })
      return id
    },

    async work(changed = {}, effect = (work) => work()) {
      const carry = {
        ...{ changes, now, evidence },
        reserve: deps.reserve,
        database: effectsOf(database, effect),
        keys: { rollNow: () => effect(roll) },
      }
      await using engine = createObligationEngine({
        ...parts,
        others: {
          'purge.agent': (duty) => remindAgent(carry, duty),
          'purge.conclude': (duty) => carryOut(carry, duty),
        },
        ...changed,
      })
      engine.start()
      await engine.idle()
    },

    async purgeOrders(agent) {
      const open = await database.read((sql) => openCommands(sql, agent))
      return open.map((row) => row.body).filter((body) => body.type === 'purge')
    },

    async obey(agent, effect = (work) => work()) {
      const door = { ...ground, database: effectsOf(database, effect) }
      const rows = await database.read((sql) =>
        sql.select().from(commands).where(eq(commands.agentId, agent.id)),
      )
      for (const { body } of rows) {
        if (body.type === 'purge')
          await acceptPurgeReceipt(door, agent.id, purgeReceiptBy(agent, body, now()))
        if (body.type === 'spool.delete') await sign(body.jobId, 'spool.delete', 'unlink')
        if (body.type === 'lease.end') await sign(body.jobId, 'lease.wipe', 'process-exit')
      }

      async function sign(
        id: JobId,
        kind: 'spool.delete' | 'lease.wipe',
        method: Receipt['method'],
      ): Promise<void> {
        const owed = await database.read((sql) => obligationsOfJob(sql, id))
        const duty = owed.find((one) => one.kind === kind)!
        const receipt: Receipt = {
          ...{ jobId: id, obligationId: duty.id, holder: duty.holder!, method },
          ...(duty.leaseId === null ? {} : { leaseId: duty.leaseId, fence: 1 }),
          ...{ checked: ['looked again'], startedAtMs: now(), wipedAtMs: now() },
        }
        const statement = receiptOf(receipt, 'ab'.repeat(32))
        const envelope = signStatement(receiptPayloadType, statement, agent.signer)
        await acceptReceipt(door, agent.id, envelope)
      }
    },

    async [Symbol.asyncDispose]() {
      await ground[Symbol.asyncDispose]()
      await rm(folder, { recursive: true })
    },
  }
  return world
}

/** What an honest agent signs for an order. */
export function purgeReceiptBy(agent: Signing, order: PurgeOrder, atMs: number) {
  const { purgeId, obligationId, everything } = order
  const predicate = {
    ...{ purgeId, obligationId, agentId: agent.id, everything },
    ...{ spoolsWiped: 1, draftsWiped: 0, leasesEnded: 0, resultsWiped: 0 },
    ...{ checked: ['looked again'], startedAtMs: atMs, wipedAtMs: atMs },
  }
  const statement = purgeReceiptOf(predicate, orderSha256Of(order))
  return signStatement(purgeReceiptPayloadType, statement, agent.signer)
}
