/** Proves what a purge destroys, in which order, and what no fault can make it leave out. */
import assert from 'node:assert/strict'
import { createPublicKey } from 'node:crypto'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { type ErrorCode, isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { type JobId, type PrincipalId, type PurgeId, purgeId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import type { PurgeScope } from '@sluice/protocol/purge'
import { verifyPurgeCertificate, verifyPurgeReport } from '@sluice/protocol/sealing/verify-purge'
import { decideApproval } from '../access/approvals.ts'
import { listAudit, verifyAudit } from '../audit/store.ts'
import { onDisk } from '../database/full-disk.test-setup.ts'
import {
  alerts,
  jobKeys,
  jobs,
  leases,
  obligations,
  purges,
  receiveKeys,
} from '../database/schema.ts'
import { beginDeletion } from '../deletion/intent.ts'
import { obligationsOfJob } from '../deletion/store.ts'
import { changeState } from '../jobs/store.ts'
import { beginApproved, endRefused, type PurgeDeps, requestPurge } from './begin.ts'
import { interimReport } from './conclude.ts'
import { acceptPurgeReceipt } from './receipts.ts'
import { documentOf, purgeById } from './store.ts'
import {
  effectsOf,
  makeWorld,
  purgeReceiptBy,
  type Signing,
  tokenOf,
  type World,
} from './world.test-setup.ts'

const withCode = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)

let world: World
let anna: PrincipalId
let ben: PrincipalId
beforeEach(async () => {
  world = await makeWorld(3)
  anna = await world.person()
  ben = await world.person()
})
afterEach(() => world[Symbol.asyncDispose]())

const accessOf = (principalId: PrincipalId) => ({
  ...{ principalId, principal: 'somebody', tokenId: tokenOf(principalId), sites: 'all' as const },
  rights: [{ role: 'security' as const, site: '*' }],
})

function purge(
  scope: PurgeScope,
  more: {
    breakGlass?: boolean
    includingHeld?: boolean
    deps?: PurgeDeps
    by?: PrincipalId
  } = {},
): Promise<PurgeId> {
  const { breakGlass = false, includingHeld = false, deps = world.deps, by = anna } = more
  const access = accessOf(by)
  return requestPurge(deps, { scope, reason: 'a test', breakGlass, includingHeld, access })
}

async function agree(id: PurgeId, by: PrincipalId, give = true): Promise<void> {
  const { database, changes, now } = world.ground
  const row = await rowOf(id)
  await decideApproval(
    {
      ...{ database, changes, now },
      executors: { 'purge.begin': beginApproved(world.deps) },
      refusals: { 'purge.begin': (tx, refused) => endRefused(tx, refused) },
    },
    { approvalId: row.approvalId!, access: accessOf(by), give },
  )
}

async function rowOf(id: PurgeId) {
  const row = await world.ground.database.read((sql) => purgeById(sql, id))
  assert(row)
  return row
}

async function statesOf(): Promise<Map<JobId, string>> {
  const rows = await world.ground.database.read((sql) => sql.select().from(jobs))
  return new Map(rows.map((row) => [row.id, row.state]))
}

async function keysOf(): Promise<Set<JobId>> {
  const rows = await world.ground.database.read((sql) => sql.select().from(jobKeys))
  return new Set(rows.map((row) => row.jobId))
}

const eventsOf = async (type: string) =>
  (await listAudit(world.ground.database, { afterSeq: 0, items: 5000 })).filter(
    (event) => event.type === type,
  )

/** Everybody answers, and the engine works, until nothing moves any more. */
async function settle(agents: Signing[]): Promise<void> {
  for (let turn = 0; turn < 4; turn += 1) {
    await world.work()
    for (const agent of agents) await world.obey(agent)
    world.ground.clock.nowMs += 60_000
  }
}

describe('the scope of a purge', () => {
  const cases: [string, (parts: Parts) => PurgeScope, (keyof Parts['ids'])[]][] = [
    ['job', ({ ids }) => ({ kind: 'job', jobId: ids.plain }), ['plain']],
    ['capture host', ({ cam }) => ({ kind: 'agent', agentId: cam.id }), ['plain', 'leased']],
    ['node', ({ node }) => ({ kind: 'agent', agentId: node.id }), ['leased']],
    ['site', () => ({ kind: 'site', site: 'south' }), ['south']],
    ['label', () => ({ kind: 'label', key: 'ward', value: '3' }), ['ward']],
    ['label without a match', () => ({ kind: 'label', key: 'ward', value: '4' }), []],
    ['store', () => ({ kind: 'store', store: 's3' }), ['plain', 'leased', 'ward', 'south']],
    ['other store', () => ({ kind: 'store', store: 'directory' }), []],
    ['time', () => ({ kind: 'time', fromMs: 1000, untilMs: 2000 }), ['early']],
    ['everything', () => ({ kind: 'everything' }), ['plain', 'leased', 'ward', 'south', 'early']],
  ]
  type Parts = { ids: Awaited<ReturnType<typeof people>>['ids']; cam: Signing; node: Signing }

  async function people() {
    const cam = await world.enrol('capture', { receiveKeys: 2 })
    const ward = await world.enrol('capture', { labels: { ward: '3' } })
    const far = await world.enrol('capture', { site: 'south' })
    const node = await world.enrol('gpu')
    const ids = {
      plain: await world.job({ by: cam }),
      leased: await world.job({ by: cam, state: 'leased', leasedTo: node }),
      ward: await world.job({ by: ward }),
      south: await world.job({ by: far }),
      early: await world.job({ by: ward, sealedAtMs: 1000, uploaded: false }),
    }
    return { ids, cam, node }
  }

  for (const [name, scopeOf, hit] of cases)
    it(`${name}: destroys these keys and no others`, async () => {
      const parts = await people()
      const scope = scopeOf(parts)
      // A label covers all jobs of its agents.
      const expected = name === 'label' ? ([...hit, 'early'] as const) : hit
      const id = await purge(scope, { breakGlass: true })
      const wanted = new Set(expected.map((one) => parts.ids[one]))
      const states = await statesOf()
      const left = await keysOf()
      for (const job of Object.values(parts.ids)) {
        assert.equal(states.get(job) === 'deleting', wanted.has(job))
        assert.equal(left.has(job), !wanted.has(job))
      }
      const row = await rowOf(id)
      assert.deepEqual([row.state, row.jobs], ['running', wanted.size])
      assert.equal(row.keysUnusableAtMs, row.intentAtMs)
    })

  it('reaches drafts only where it covers their host, and ends receive keys only there', async () => {
    const { cam, ids } = await people()
    const keys = () => world.ground.database.read((sql) => sql.select().from(receiveKeys))
    await purge({ kind: 'job', jobId: ids.plain })
    const [order] = await world.purgeOrders(cam.id)
    assert.deepEqual(
      [order?.everything, order?.jobIds, order?.sealed],
      [false, [ids.plain], undefined],
    )
    assert.equal((await keys()).length, 2)
    await purge({ kind: 'time', fromMs: 1, untilMs: 2000 })
    const timed = (await world.purgeOrders(cam.id)).at(-1)
    assert.deepEqual(timed?.sealed, { fromMs: 1, untilMs: 2000 })
    assert.equal((await keys()).length, 2, 'supplied later than that time')
    await purge({ kind: 'agent', agentId: cam.id })
    assert.equal((await world.purgeOrders(cam.id)).at(-1)?.everything, true)
    assert.equal((await keys()).length, 0)
  })
})

describe('a purge', () => {
  it('goes from the intent to a certificate that verifies offline, keys before objects', async () => {
    const cam = await world.enrol('capture', { receiveKeys: 3 })
    const node = await world.enrol('gpu')
    const stored = await world.job({ by: cam })
    const leased = await world.job({ by: cam, state: 'leased', leasedTo: node })
    const id = await purge({ kind: 'everything' })
    const row = await rowOf(id)
    assert.equal(row.leasesOverAtMs, world.ground.now() + 60_000 + limits.leaseGraceMs)
    assert.deepEqual([row.jobs, row.agents, row.leases, row.receiveKeys], [2, 2, 1, 3])
    const [lease] = await world.ground.database.read((sql) => sql.select().from(leases))
    assert.equal(lease?.endReason, 'deleted')
    assert.deepEqual(world.effects, [], 'the intent needs neither store nor key process')
    await world.work()
    assert.equal(world.effects[0], 'roll')
    assert.equal(world.objects.size, 0)
    assert.equal((await rowOf(id)).state, 'running')
    const report = await interimReport({ ...world.ground, evidence: world.evidence }, id)
    const pinned = createPublicKey(world.evidence.publicKeyPem)
    assert.ok(verifyPurgeReport(Buffer.from(report), pinned).open.count > 0)
    assert.throws(() => verifyPurgeCertificate(Buffer.from(report), pinned))
    await settle([cam, node])
    assert.deepEqual(
      await statesOf(),
      new Map([
        [stored, 'deleted'],
        [leased, 'deleted'],
      ]),
    )
    assert.equal((await rowOf(id)).state, 'concluded')
    const text = await world.ground.database.read((sql) => documentOf(sql, id, 'purge-certificate'))
    const certificate = verifyPurgeCertificate(Buffer.from(text!), pinned)
    assert.deepEqual(
      certificate.jobs.map((job) => job.jobId).toSorted(),
      [stored, leased].toSorted(),
    )
    assert.equal(certificate.agents.length, 2)
    assert.equal((await verifyAudit(world.ground.database)).whole, true)
    const [begun] = await eventsOf('purge.begun')
    assert.equal(begun?.detail['jobsSha256'], certificate.jobsSha256)
    assert.equal(begun?.detail['reason'], 'a test')
    const deleting = (await eventsOf('job.state-changed')).filter(
      (event) => event.detail['purgeId'] === id,
    )
    assert.equal(deleting.length, 2)
  })

  it('sends its orders on the emergency lane, and those for single jobs behind them', async () => {
    const cam = await world.enrol('capture')
    await world.job({ by: cam })
    await purge({ kind: 'everything' })
    await world.work()
    const { openCommands } = await import('../fleet/store.ts')
    const open = await world.ground.database.read((sql) => openCommands(sql, cam.id))
    assert.deepEqual(
      open.map((row) => [row.lane, row.body.type]),
      [
        ['emergency', 'purge'],
        ['control', 'spool.delete'],
      ],
    )
  })

  it('takes over what was being deleted already, and ends with it', async () => {
    const cam = await world.enrol('capture')
    const job = await world.job({ by: cam, state: 'deleting' })
    const id = await purge({ kind: 'everything' })
    assert.equal((await rowOf(id)).jobs, 1)
    await settle([cam])
    assert.equal((await statesOf()).get(job), 'deleted')
    assert.equal((await rowOf(id)).state, 'concluded')
  })

  it('concludes at once over nothing', async () => {
    const id = await purge({ kind: 'site', site: 'nowhere' })
    await world.work()
    assert.equal((await rowOf(id)).state, 'concluded')
  })

  it('never concludes while one agent is silent, and asks it again', async () => {
    const cam = await world.enrol('capture')
    const mute = await world.enrol('capture')
    await world.job({ by: cam })
    const id = await purge({ kind: 'everything' })
    await settle([cam])
    assert.equal((await rowOf(id)).state, 'running')
    assert.equal((await world.purgeOrders(mute.id)).length, 1)
    await settle([cam, mute])
    assert.equal((await rowOf(id)).state, 'concluded')
  })

  it('counts a receipt only from whom it was asked, for that very order', async () => {
    const cam = await world.enrol('capture')
    const other = await world.enrol('capture')
    await purge({ kind: 'everything' })
    const { ground } = world
    const [order] = await world.purgeOrders(cam.id)
    assert(order)
    const refused = async (agent: Signing, envelope: Parameters<typeof acceptPurgeReceipt>[2]) =>
      assert.rejects(
        acceptPurgeReceipt(ground, agent.id, envelope),
        (error) => error instanceof SluiceError,
      )
    await refused(other, purgeReceiptBy(other, order, ground.now()))
    await refused(cam, purgeReceiptBy({ ...cam, signer: other.signer }, order, ground.now()))
    await refused(cam, purgeReceiptBy(cam, { ...order, everything: false }, ground.now()))
    assert.equal((await eventsOf('receipt.refused')).length, 3)
    await acceptPurgeReceipt(ground, cam.id, purgeReceiptBy(cam, order, ground.now()))
    await acceptPurgeReceipt(ground, cam.id, purgeReceiptBy(cam, order, ground.now()))
    assert.equal((await eventsOf('receipt.accepted')).length, 1)
  })
})

describe('the end of a purge of many agents', () => {
  /** How often others had their turn during its longest write, and what those who wrote then found. */
  async function conclude(agentsCount: number) {
    const agents = await Promise.all(
      Array.from({ length: agentsCount }, () => world.enrol('capture')),
    )
    const id = await purge({ kind: 'everything' })
    for (const agent of agents) await world.obey(agent)
    const turns: number[] = []
    const underWay = new Set<number>()
    const competing: Promise<string | undefined>[] = []
    const over = new AbortController()
    const others = (async () => {
      while (!over.signal.aborted) {
        await setImmediate()
        for (const write of underWay) {
          turns[write] = (turns[write] ?? 0) + 1
          if (turns[write] === turnsOfOneWrite + 1) competing.push(writtenBetween(id))
        }
      }
    })()
    await world.work({}, async (write) => {
      const number = turns.push(0) - 1
      underWay.add(number)
      return write().finally(() => underWay.delete(number))
    })
    over.abort()
    await others
    assert.equal((await rowOf(id)).state, 'concluded')
    return { turns: Math.max(...turns), found: await Promise.all(competing) }
  }
  /** A write waits for what has come in, and for nothing else. */
  const turnsOfOneWrite = 4

  async function writtenBetween(id: PurgeId): Promise<string | undefined> {
    assert.equal((await rowOf(id)).state, 'running', 'who reads does not wait')
    return world.ground.database.write(async (tx) => (await purgeById(tx.sql, id))?.state)
  }

  it('lets others read between the pieces, and write only once it is decided', async () => {
    const { turns, found } = await conclude(150)
    assert(turns > turnsOfOneWrite, `${turns} turns`)
    assert.deepEqual(found, ['concluded'])
  })

  it('is reported on one report at a time, and one that fails holds up no other', async () => {
    const agents = await Promise.all(Array.from({ length: 70 }, () => world.enrol('capture')))
    const id = await purge({ kind: 'everything' })
    for (const agent of agents) await world.obey(agent)
    const steps: string[] = []
    const now = () => (steps.push('begun'), world.ground.now())
    const sign = (bytes: Buffer) => (steps.push('signed'), world.evidence.sign(bytes))
    const parts = { ...world.ground, now, evidence: { ...world.evidence, sign } }
    const unknown = newId(purgeId, 1)
    const asked = [id, unknown, id].map((one) => interimReport(parts, one))
    const answers = await Promise.allSettled(asked)
    assert.deepEqual(
      answers.map(({ status }) => status),
      ['fulfilled', 'rejected', 'fulfilled'],
    )
    assert.deepEqual(steps, ['begun', 'signed', 'begun', 'signed'])
  })

  it('goes in one piece for a few', async () => {
    const { turns } = await conclude(2)
    assert(turns <= turnsOfOneWrite, `${turns} turns`)
  })
})

describe('two people', () => {
  async function many(): Promise<Signing> {
    const cam = await world.enrol('capture')
    for (let made = 0; made < 4; made += 1) await world.job({ by: cam })
    return cam
  }

  it('are needed beyond the size: until then its scope is locked and nothing is destroyed', async () => {
    const cam = await many()
    const id = await purge({ kind: 'everything' })
    assert.equal((await rowOf(id)).state, 'waiting')
    assert.equal((await keysOf()).size, 4)
    assert.deepEqual(new Set((await statesOf()).values()), new Set(['frozen']))
    await assert.rejects(agree(id, anna), withCode('approval.refused'))
    // What came meanwhile is counted too.
    const late = await world.job({ by: cam })
    await agree(id, ben)
    const row = await rowOf(id)
    assert.deepEqual([row.state, row.jobs, row.approvedBy], ['running', 5, ben])
    assert.equal((await statesOf()).get(late), 'deleting')
    assert.equal((await keysOf()).size, 0)
    await settle([cam])
    assert.equal((await rowOf(id)).state, 'concluded')
  })

  it('are not needed below it', async () => {
    const cam = await world.enrol('capture')
    for (let made = 0; made < 3; made += 1) await world.job({ by: cam })
    assert.equal((await rowOf(await purge({ kind: 'everything' }))).state, 'running')
  })

  it('are needed for many small purges too, by whoever is the same person, for a day', async () => {
    const cam = await world.enrol('capture')
    let sites = 0
    const small = async (size: number, by: PrincipalId) => {
      sites += 1
      const site = await world.enrol('capture', { site: `s${sites}` })
      for (let made = 0; made < size; made += 1) await world.job({ by: site })
      const id = await purge({ kind: 'site', site: site.site }, { by })
      return { id, state: (await rowOf(id)).state }
    }
    const made = await world.person(anna)
    assert.equal((await small(2, anna)).state, 'running')
    assert.equal((await small(1, anna)).state, 'running', 'control: three are allowed')
    const fourth = await small(1, anna)
    assert.equal(fourth.state, 'waiting')
    assert.equal((await small(1, made)).state, 'waiting', 'whom she made is she')
    assert.equal((await small(3, ben)).state, 'running', 'control: another person has not')
    await agree(fourth.id, ben)
    assert.equal((await rowOf(fourth.id)).state, 'running')
    const again = await purge({ kind: 'everything' }, { by: ben })
    assert.equal(
      (await rowOf(again)).state,
      'waiting',
      'what waits of hers is still to be destroyed',
    )
    assert.equal((await rowOf(await purge({ kind: 'agent', agentId: cam.id }))).state, 'running')
    world.ground.clock.nowMs += limits.purgeAloneMs
    assert.equal((await small(3, anna)).state, 'running', 'a day later it counts anew')
  })

  it('may refuse: what was locked stays frozen, with its keys', async () => {
    await many()
    const id = await purge({ kind: 'everything' })
    await agree(id, ben, false)
    assert.equal((await rowOf(id)).state, 'refused')
    assert.equal((await keysOf()).size, 4)
    assert.deepEqual(new Set((await statesOf()).values()), new Set(['frozen']))
  })

  it('are passed by with break-glass, loudly', async () => {
    await many()
    const id = await purge({ kind: 'everything' }, { breakGlass: true })
    assert.equal((await rowOf(id)).state, 'running')
    assert.equal((await eventsOf('purge.break-glass')).length, 1)
    const told = await world.ground.database.read((sql) => sql.select().from(alerts))
    assert.ok(told.some((one) => one.type === 'purge.break-glass' && one.severity === 'critical'))
  })

  it('are always needed for held jobs, which are skipped otherwise', async () => {
    const cam = await world.enrol('capture')
    const held = await world.job({ by: cam, state: 'frozen', held: true })
    const free = await world.job({ by: cam })
    const first = await purge({ kind: 'everything' })
    const row = await rowOf(first)
    assert.deepEqual([row.jobs, row.heldSkipped, row.heldSkippedIds], [1, 1, [held]])
    assert.deepEqual(await keysOf(), new Set([held]))
    const [order] = await world.purgeOrders(cam.id)
    // Everything of that host but what is held: its drafts go, the held spool stays.
    assert.deepEqual([order?.everything, order?.jobIds], [false, [free]])
    assert.equal(order?.sealed?.fromMs, 0)
    await assert.rejects(
      purge({ kind: 'everything' }, { includingHeld: true, breakGlass: true }),
      withCode('request.invalid'),
    )
    const second = await purge({ kind: 'everything' }, { includingHeld: true })
    assert.equal((await rowOf(second)).state, 'waiting')
    assert.deepEqual(await keysOf(), new Set([held]))
    await agree(second, ben)
    assert.deepEqual(await keysOf(), new Set())
    await settle([cam])
    assert.equal((await rowOf(second)).state, 'concluded')
  })
})

describe('a purge that races', () => {
  it('with an ordinary deletion: the first wins, and both end in one certificate', async () => {
    const cam = await world.enrol('capture')
    const job = await world.job({ by: cam })
    const { database, changes, now } = world.ground
    const actor = { kind: 'system' } as const
    const deletion = () =>
      database.write((tx) =>
        beginDeletion(
          tx,
          { jobId: job, from: 'stored', reason: 'requested', actor, atMs: now() },
          changes,
        ),
      )
    const [id, other] = await Promise.allSettled([purge({ kind: 'everything' }), deletion()])
    assert.equal(id.status, 'fulfilled')
    assert.ok(other.status === 'rejected' && isSluiceError(other.reason, 'request.conflict'))
    await settle([cam])
    assert.equal((await statesOf()).get(job), 'deleted')
    const issued = (await eventsOf('certificate.issued')).filter((event) => event.jobId === job)
    assert.equal(issued.length, 1)
  })

  it('with a retry, a hold and another purge: purges go first, and nothing is done twice', async () => {
    const cam = await world.enrol('capture')
    const job = await world.job({ by: cam, state: 'failed' })
    const { database, changes, now } = world.ground
    const move = (to: 'stored' | 'frozen', which = job) =>
      database.write((tx) =>
        changeState(
          tx,
          { jobId: which, from: 'failed', to, actor: { kind: 'system' }, atMs: now() },
          changes,
        ),
      )
    const scope = { kind: 'everything' } as const
    const [first, retry, hold, second] = await Promise.allSettled([
      purge(scope),
      move('stored'),
      move('frozen'),
      purge(scope),
    ])
    for (const lost of [retry, hold])
      assert.ok(lost.status === 'rejected' && isSluiceError(lost.reason, 'request.conflict'))
    assert.ok(first.status === 'fulfilled' && second.status === 'fulfilled')
    await settle([cam])
    for (const id of [first.value, second.value]) assert.equal((await rowOf(id)).state, 'concluded')
    assert.equal((await statesOf()).get(job), 'deleted')
    const issued = (await eventsOf('certificate.issued')).filter((event) => event.jobId === job)
    assert.equal(issued.length, 1)

    const kept = await world.job({ by: cam, state: 'failed' })
    const [moved, after] = await Promise.allSettled([move('stored', kept), purge(scope)])
    assert.equal(after.status, 'fulfilled')
    assert.ok(moved.status === 'rejected' && isSluiceError(moved.reason, 'request.conflict'))
    assert.equal((await statesOf()).get(kept), 'deleting')
    const late = await world.job({ by: cam, state: 'failed' })
    await move('stored', late)
    await purge(scope)
    assert.equal(
      (await statesOf()).get(late),
      'deleting',
      'what was moved before is purged as well',
    )
  })

  it('with expiry: the duty to expire has lost its point', async () => {
    const cam = await world.enrol('capture')
    const job = await world.job({ by: cam, state: 'failed' })
    await purge({ kind: 'everything' })
    await world.work()
    const owed = await world.ground.database.read((sql) => obligationsOfJob(sql, job))
    assert.equal(owed.find((one) => one.kind === 'job.expire')?.state, 'done')
  })
})

describe('a purge whose n-th effect fails', () => {
  type Fault = { at: number; side: 'before' | 'after'; lasting: boolean }
  class Killed extends SluiceError {
    constructor() {
      super('store.unreachable', 'killed here', { retry: 'later' })
    }
  }

  /** @returns Whether the fault was reached. */
  async function purgeThrough(fault: Fault): Promise<boolean> {
    await using place = await makeWorld()
    const { ground } = place
    const person = await place.person()
    const cam = await place.enrol('capture', { receiveKeys: 1 })
    const node = await place.enrol('gpu')
    await place.job({ by: cam })
    await place.job({ by: cam, state: 'leased', leasedTo: node })
    let effects = 0
    let reached = false
    async function effect<T>(work: () => Promise<T>): Promise<T> {
      effects += 1
      const dies = fault.lasting
        ? effects >= fault.at && effects < fault.at + 3
        : effects === fault.at
      if (!dies) return work()
      reached = true
      if (fault.side === 'before') throw new Killed()
      await work()
      throw new Killed()
    }
    const faulty = { ...place.deps, database: effectsOf(ground.database, effect) }
    const { store } = place.parts
    const failing = {
      deleteAll: (key: never) => effect(() => store.deleteAll(key)),
      remains: (key: never) => effect(() => store.remains(key)),
    } as typeof store
    const again = async (work: () => Promise<unknown>): Promise<void> => {
      for (let tries = 0; tries < 8; tries += 1)
        try {
          return void (await work())
        } catch (error) {
          if (!(error instanceof Killed)) throw error
        }
      assert.fail('eight tries did not do')
    }
    const access = accessOf(person)
    const scope = { kind: 'everything' } as const
    const ask = { scope, reason: 'a test', breakGlass: false, includingHeld: false, access }
    const outcome = await requestPurge(faulty, ask).catch((error: unknown) => error)
    const read: typeof ground.database.read = (query) => ground.database.read(query)
    const left = (await read((sql) => sql.select().from(jobKeys))).length
    const begun = (await read((sql) => sql.select().from(purges))).length
    if (begun === 0) {
      assert.ok(outcome instanceof Killed)
      assert.equal(left, 2, 'nothing has begun')
      await again(() => requestPurge(faulty, ask))
    } else {
      assert.equal(left, 0, 'keys are unusable with the intent')
      const owed = await read((sql) => sql.select().from(obligations))
      assert.equal(owed.filter((one) => one.kind === 'purge.agent').length, 2)
      assert.equal(owed.filter((one) => one.kind === 'purge.conclude').length, 1)
    }
    for (let turn = 0; turn < 10; turn += 1) {
      const states = await read((sql) => sql.select().from(purges))
      const documents = await read((sql) => documentOf(sql, states[0]!.id, 'purge-certificate'))
      const over = states.every((one) => one.state === 'concluded')
      assert.equal(documents !== undefined, over, 'no certificate before the end')
      if (over) break
      await place.work({ store: failing }, effect)
      for (const agent of [cam, node]) await again(() => place.obey(agent, effect))
      ground.clock.nowMs += 700_000
    }
    const rows = await read((sql) => sql.select().from(jobs))
    assert.deepEqual(
      rows.map((row) => row.state),
      ['deleted', 'deleted'],
    )
    assert.ok(
      (await read((sql) => sql.select().from(purges))).every((row) => row.state === 'concluded'),
    )
    assert.equal(place.objects.size, 0)
    assert.equal((await verifyAudit(ground.database)).whole, true)
    return reached
  }

  for (const side of ['before', 'after'] as const)
    for (const lasting of [false, true])
      it(`is carried to its end: ${side} the effect, ${lasting ? 'three in a row' : 'once'}`, async () => {
        let at = 1
        while (await purgeThrough({ at, side, lasting })) at += 1
        assert.ok(at > 10, `${at - 1} effects were tried`)
      })
})

describe('a full disk', () => {
  it('does not stop a purge: the reserve is freed and the intent is durable', async () => {
    const cam = await world.enrol('capture')
    await world.job({ by: cam })
    const { disk, database } = onDisk(world.ground.database)
    disk.full = true
    const freed: string[] = []
    const without = { ...world.deps, database }
    await assert.rejects(
      purge({ kind: 'everything' }, { deps: without }),
      withCode('host.disk_full'),
    )
    assert.equal((await keysOf()).size, 1)
    const reserve = {
      free: () => {
        disk.full = false
        freed.push('freed')
        return Promise.resolve(true)
      },
    }
    const id = await purge({ kind: 'everything' }, { deps: { ...without, reserve } })
    assert.deepEqual(freed, ['freed'])
    assert.equal((await rowOf(id)).state, 'running')
    assert.equal((await keysOf()).size, 0)
  })
})
