/** Proves what takes two people: who may ask, who may give, once, in time, and what it then allows. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { type CreateTokenRequest, decodeToken, type Right } from '@sluice/protocol/api'
import { type ErrorCode, isSluiceError, SluiceError } from '@sluice/protocol/errors'
import {
  type ApprovalId,
  jobId,
  type PrincipalId,
  purgeId,
  type TokenId,
} from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { pageOfAlerts } from '../alerts/store.ts'
import { listAudit } from '../audit/store.ts'
import { obligations } from '../database/schema.ts'
import { type TestGround, testGround } from '../doubles.ts'
import { type ApprovalDeps, askApproval, decideApproval, expireApproval } from './approvals.ts'
import type { Access } from './rules.ts'
import { approvalById, principalByName, rightsOf } from './store.ts'
import { authenticate, createToken, principalExecutors, revokeToken } from './tokens.ts'
import { isTwoPeople } from './two-people.ts'

type Person = Access & { tokenId: TokenId; secret: string }

const everywhere: Right[] = [{ role: 'security', site: '*' }]

let ground: TestGround
let deps: ApprovalDeps & Parameters<typeof createToken>[0]
/** What was carried out, and what was told as refused. */
let done: string[]

beforeEach(async () => {
  ground = await testGround()
  done = []
  deps = {
    ...ground,
    authority: { certificates: [randomBytes(9)] } as never,
    operatorUrl: () => 'https://sluice.test',
    executors: {
      ...principalExecutors,
      'hold.lift': async (_, { operation }) => void done.push(operation.jobId),
    },
    refusals: { 'hold.lift': async (_, { outcome }) => void done.push(outcome) },
  }
})
afterEach(() => ground[Symbol.asyncDispose]())

const actAs = (giver: Person | 'owner') => (giver === 'owner' ? 'owner' : { access: giver })

/** Asks for a token; the person it makes, or the approval that waits. */
async function ask(
  giver: Person | 'owner',
  wanted: CreateTokenRequest,
): Promise<{ person: Person } | { approvalId: ApprovalId }> {
  ground.clock.nowMs += 1
  const made = await createToken(deps, actAs(giver), wanted)
  if ('approval' in made) return { approvalId: made.approval.id }
  const { secret } = decodeToken('token', made.token)
  return { person: { ...(await access(secret)), tokenId: made.id, secret } }
}

const access = (secret: string) =>
  authenticate(deps, `Bearer ${secret}`, {
    method: 'GET',
    path: '/v1/status',
    may: ['security', 'viewer'],
    about: '',
  })

async function person(
  giver: Person | 'owner',
  principal: string,
  rights: Right[] = everywhere,
): Promise<Person> {
  const made = await ask(giver, { principal, rights })
  assert('person' in made, `${principal} waits for a second person`)
  return made.person
}

async function waiting(giver: Person, wanted: CreateTokenRequest): Promise<ApprovalId> {
  const made = await ask(giver, wanted)
  assert('approvalId' in made, 'it was made by one alone')
  return made.approvalId
}

const decide = (approvalId: ApprovalId, by: Access, give = true) =>
  decideApproval(deps, { approvalId, access: by, give })

async function refused(work: Promise<unknown>, code: ErrorCode) {
  await assert.rejects(work, (error) => isSluiceError(error, code) || assert.fail(String(error)))
}

const someJob = newId(jobId, 1)
const askLift = (by: Access, site = 'north', job = someJob) =>
  ground.database.write((tx) =>
    askApproval(
      tx,
      {
        operation: { kind: 'hold.lift', jobId: job },
        access: by,
        site,
        reason: 'the case is closed',
        atMs: ground.now(),
      },
      ground.changes,
    ),
  )

const stateOf = async (id: ApprovalId) =>
  (await ground.database.read((sql) => approvalById(sql, id)))?.state

describe('an approval', () => {
  it('is done in the transaction that agrees, by another person of the same site', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const id = await askLift(anna)
    assert.deepEqual(done, [])
    const given = await decide(id, berta)
    assert.deepEqual([given.state, given.decidedBy], ['given', berta.principalId])
    assert.deepEqual(done, [someJob])
    const events = await listAudit(ground.database, { jobId: someJob, afterSeq: 0, items: 100 })
    assert.deepEqual(
      events.map(({ type, actor }) => [type, actor.kind === 'principal' && actor.id]),
      [
        ['approval.asked', anna.principalId],
        ['approval.given', berta.principalId],
      ],
    )
    const alerts = await ground.database.read((sql) =>
      pageOfAlerts(sql, { sites: null, itemsMax: 9 }),
    )
    assert.deepEqual(
      alerts.map(({ type }) => type),
      ['approval.asked'],
    )
    const owed = await ground.database.read((sql) => sql.select().from(obligations))
    assert.equal(owed.find(({ kind }) => kind === 'approval.expire')?.state, 'done')
  })

  it('stays open when what it allows cannot be done', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const id = await askLift(anna)
    const { executors } = deps
    deps.executors = {
      'hold.lift': () => Promise.reject(new SluiceError('job.wrong_state', 'not now')),
    }
    await refused(decide(id, berta), 'job.wrong_state')
    assert.equal(await stateOf(id), 'open')
    deps.executors = executors
    await decide(id, berta)
    assert.deepEqual(done, [someJob])
  })

  it('cannot be given by who asked, who made the asker, or whom the asker made', async () => {
    const boss = await person('owner', 'boss')
    const child = await person(boss, 'child')
    const grandchild = await person(child, 'grandchild')
    const sibling = await person(boss, 'sibling')
    const id = await askLift(child)
    for (const other of [child, boss, grandchild, sibling])
      await refused(decide(id, other), 'approval.refused')
    assert.equal(await stateOf(id), 'open')
    assert.deepEqual(done, [])
    const stranger = await person('owner', 'stranger')
    await decide(id, stranger)
    assert.deepEqual(done, [someJob], 'control: another person may')
  })

  it('cannot be given by somebody whose token the asker was ever handed', async () => {
    const anna = await person('owner', 'anna')
    const carla = await person('owner', 'carla', [{ role: 'security', site: 'north' }])
    const berta = await person('owner', 'berta')
    const waits = await waiting(anna, { principal: 'dora', rights: everywhere })
    await decide(waits, berta)
    const handed = await ask(anna, { principal: 'dora' })
    assert('person' in handed)
    const two = (one: PrincipalId, other: PrincipalId) =>
      ground.database.read((sql) => isTwoPeople(sql, one, other))
    assert.equal(await two(anna.principalId, handed.person.principalId), false)
    assert.equal(await two(berta.principalId, handed.person.principalId), true)
    const lent = await waiting(anna, { principal: 'berta' })
    await refused(decide(lent, anna), 'approval.refused')
    assert.equal(await two(anna.principalId, berta.principalId), true, 'control: until then')
    await decide(lent, berta)
    const asBerta = await ask(anna, { principal: 'berta' })
    assert('person' in asBerta)
    const id = await askLift(anna)
    await refused(decide(id, asBerta.person), 'approval.refused')
    await refused(decide(id, berta), 'approval.refused')

    // What the token was good for outlives it: a further one, and what was asked with it.
    const further = await ask(asBerta.person, { principal: 'berta' })
    assert('person' in further, 'a further token of oneself takes one')
    const otherJob = newId(jobId, 2)
    const asked = await askLift(further.person, 'north', otherJob)
    await deps.database.write((tx) =>
      revokeToken(deps, tx, { access: berta }, asBerta.person.tokenId),
    )
    await refused(decide(id, further.person), 'approval.refused')
    await refused(decide(asked, anna), 'approval.refused')
    await waiting(anna, { principal: 'emma', rights: everywhere })
    assert.deepEqual(done, [])
    await decide(asked, carla)
    assert.deepEqual(done, [otherJob], 'control: a third person may')
  })

  it('does not exist beyond the sites of who decides, nor for another role', async () => {
    const anna = await person('owner', 'anna')
    const south = await person('owner', 'south', [{ role: 'security', site: 'south' }])
    const viewer = await person('owner', 'viewer', [{ role: 'viewer', site: '*' }])
    const id = await askLift(anna)
    for (const other of [south, viewer]) await refused(decide(id, other), 'request.not_found')
    await refused(askLift(south), 'access.forbidden')
    await refused(askLift(viewer), 'access.forbidden')
    const everySite = await askLift(anna, '*')
    const north = await person('owner', 'north', [{ role: 'security', site: 'north' }])
    await refused(decide(everySite, north), 'request.not_found')
    await decide(id, north)
    assert.deepEqual(done, [someJob])
  })

  it('is decided once, however many decide at the same moment', async () => {
    const anna = await person('owner', 'anna')
    const berta = await person('owner', 'berta')
    const id = await askLift(anna)
    const all = await Promise.allSettled(
      Array.from({ length: 40 }, (_, index) => decide(id, berta, index % 2 === 0)),
    )
    const won = all.filter(({ status }) => status === 'fulfilled')
    assert.equal(won.length, 1)
    for (const one of all)
      if (one.status === 'rejected') assert(isSluiceError(one.reason, 'request.conflict'))
    assert.deepEqual(done, [someJob])
  })

  it('can be refused by another and withdrawn by who asked, and is then over', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    for (const by of [anna, berta]) {
      const id = await askLift(anna)
      await decide(id, by, false)
      assert.equal(await stateOf(id), 'refused')
      await refused(decide(id, berta), 'request.conflict')
    }
    assert.deepEqual(done, ['refused', 'refused'])
  })

  it('ends when nobody decides in time, also without the engine', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const id = await askLift(anna)
    assert.deepEqual(await expireApproval(deps, { subjectId: id }), {
      waitMs: limits.approvalMsMax,
    })
    const [late, byEngine] = [await askLift(anna, '*'), id]
    ground.clock.nowMs += limits.approvalMsMax
    await refused(decide(late, berta), 'approval.refused')
    assert.equal(await expireApproval(deps, { subjectId: byEngine }), 'settled')
    for (const one of [late, byEngine]) assert.equal(await stateOf(one), 'expired')
    assert.deepEqual(done, ['expired', 'expired'])
    await refused(decide(byEngine, berta), 'request.conflict')
  })

  it('that begins a purge is given on a full disk too, with the room of the reserve', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const purge = newId(purgeId, 1)
    const toPurge = await ground.database.write((tx) =>
      askApproval(
        tx,
        {
          operation: { kind: 'purge.begin', purgeId: purge },
          access: anna,
          site: '*',
          reason: 'stolen',
          atMs: ground.now(),
        },
        ground.changes,
      ),
    )
    const toLift = await askLift(anna)
    deps.executors['purge.begin'] = async (_, { operation }) => void done.push(operation.purgeId)
    let full = true
    let freed = 0
    const write: typeof ground.database.write = (change) =>
      full
        ? Promise.reject(new SluiceError('host.disk_full', 'full', { retry: 'later' }))
        : ground.database.write(change)
    deps.database = { ...ground.database, write }
    await refused(decide(toPurge, berta), 'host.disk_full')
    deps.reserve = {
      free: async () => {
        freed += 1
        full = false
        return true
      },
    }
    await refused(decide(toLift, berta), 'host.disk_full')
    assert.equal(freed, 0, 'the reserve is for purges alone')
    await decide(toPurge, berta)
    assert.deepEqual([freed, done], [1, [purge]])
  })

  it('dies with the last token of who asked', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const id = await askLift(anna)
    await deps.database.write((tx) => revokeToken(deps, tx, { access: berta }, anna.tokenId))
    await refused(decide(id, berta), 'approval.refused')
    assert.deepEqual(done, [])
  })

  it('is the same one when the same is asked again, and bounded in number', async () => {
    const anna = await person('owner', 'anna')
    const id = await askLift(anna)
    assert.equal(await askLift(anna), id)
    for (let count = 1; count < limits.approvalsOpenMax; count += 1)
      await askLift(anna, 'north', newId(jobId, count))
    await refused(askLift(anna, 'north', newId(jobId, 9999)), 'request.rate_limited')
  })
})

describe('raising somebody to security', () => {
  it('takes one while there is one, and both as soon as there are two', async () => {
    const first = await person('owner', 'first')
    await person(first, 'made-by-first')
    await person(first, 'also-made-by-first')
    const second = await person('owner', 'second')
    const id = await waiting(first, { principal: 'third', rights: everywhere })
    const third = () => ground.database.read((sql) => principalByName(sql, 'third'))
    assert.equal(await third(), undefined)
    await decide(id, second)
    const row = await third()
    assert(row)
    assert.equal(row.createdBy, first.principalId)
    assert.deepEqual(await ground.database.read((sql) => rightsOf(sql, row.id)), everywhere)
  })

  it('hands out one token, once, to who asked, and only for a while', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    await decide(await waiting(anna, { principal: 'carla', rights: everywhere }), berta)
    await waiting(berta, { principal: 'carla' })
    const carla = await ask(anna, { principal: 'carla', rights: everywhere })
    assert('person' in carla)
    await waiting(anna, { principal: 'carla' })

    await decide(await waiting(anna, { principal: 'dora', rights: everywhere }), berta)
    ground.clock.nowMs += limits.approvalMsMax
    await waiting(anna, { principal: 'dora' })
  })

  it('lets nobody act as another: a token of another one takes two, of oneself one', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    await waiting(anna, { principal: 'berta' })
    assert('person' in (await ask(anna, { principal: 'anna' })))
    const viewer = await ask(anna, { principal: 'v', rights: [{ role: 'viewer', site: '*' }] })
    assert('person' in viewer, 'control: other roles take one')
    await deps.database.write((tx) => revokeToken(deps, tx, { access: anna }, berta.tokenId))
    await waiting(anna, { principal: 'berta' })
  })

  it('binds the owner of the data directory while two can come in', async () => {
    const anna = await person('owner', 'anna')
    const berta = await person('owner', 'berta')
    const raise = (name: string) => ask('owner', { principal: name, rights: everywhere })
    await refused(raise('carla'), 'approval.needed')
    await refused(ask('owner', { principal: 'anna' }), 'approval.needed')
    await deps.database.write((tx) => revokeToken(deps, tx, { access: anna }, berta.tokenId))
    assert('person' in (await ask('owner', { principal: 'berta' })), 'lost tokens are no end')
  })

  it('asks per site: who is alone on a site may raise there', async () => {
    const north = await person('owner', 'north', [{ role: 'security', site: 'north' }])
    await person('owner', 'south', [{ role: 'security', site: 'south' }])
    await person(north, 'more', [{ role: 'security', site: 'north' }])
    await person('owner', 'both', everywhere)
    await waiting(north, { principal: 'most', rights: [{ role: 'security', site: 'north' }] })
  })
})
