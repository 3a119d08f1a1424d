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
  principalId,
  purgeId,
  tokenId,
} from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { pageOfAlerts } from '../alerts/store.ts'
import { listAudit } from '../audit/store.ts'
import { obligations } from '../database/schema.ts'
import { type TestGround, testGround } from '../doubles.ts'
import { type ApprovalDeps, askApproval, decideApproval, expireApproval } from './approvals.ts'
import type { Access } from './rules.ts'
import {
  approvalById,
  insertPrincipal,
  insertToken,
  pageOfApprovals,
  principalByName,
  rightsOf,
} from './store.ts'
import {
  authenticate,
  createToken,
  principalExecutors,
  revokeToken,
  secretSha256,
} from './tokens.ts'
import { isTwoPeople } from './two-people.ts'

type Person = Access & { secret: string }

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
  return { person: { ...(await access(secret)), secret } }
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

/** One more of whom nobody stands behind, as only a change of rows can make one. */
async function stranger(name: string, rights: Right[] = everywhere): Promise<Person> {
  const secret = randomBytes(32).toString('base64url')
  const [id, atMs] = [newId(principalId, ground.now()), ground.now()]
  await ground.database.write(async (tx) => {
    await insertPrincipal(tx, { id, name, createdAtMs: atMs, createdBy: null }, rights)
    await insertToken(tx, {
      ...{ id: newId(tokenId, atMs), principalId: id, tokenSha256: secretSha256(secret) },
      ...{ createdAtMs: atMs, createdBy: null, expiresAtMs: atMs + limits.apiTokenMsMax },
      ...{ lastUsedAtMs: null, revokedAtMs: null },
    })
  })
  return { ...(await access(secret)), secret }
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

const revoke = (by: Person, whose: Person) =>
  deps.database.write((tx) => revokeToken(deps, tx, { access: by }, whose.tokenId))

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
    await decide(id, await person('owner', 'unrelated'))
    assert.deepEqual(done, [someJob], 'control: another person may')
  })

  it('cannot be given by somebody whose token the asker was ever handed', async () => {
    const anna = await person('owner', 'anna')
    const carla = await stranger('carla', [{ role: 'security', site: 'north' }])
    const berta = await stranger('berta')
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
    const north = await stranger('north', [{ role: 'security', site: 'north' }])
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

  it('is refused when the token is revoked that asked, and only then', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const further = await ask(anna, { principal: 'anna' })
    assert('person' in further)
    const id = await askLift(anna)
    const [otherJob, lastJob] = [newId(jobId, 2), newId(jobId, 3)]
    const asked = await askLift(further.person, 'north', otherJob)
    await revoke(berta, anna)
    assert.deepEqual([await stateOf(id), await stateOf(asked)], ['refused', 'open'])
    assert.deepEqual(done, ['refused'], 'who waits for it is told')
    const row = await ground.database.read((sql) => approvalById(sql, id))
    assert.equal(row?.decidedBy, berta.principalId)
    const owed = await ground.database.read((sql) => sql.select().from(obligations))
    assert.equal(owed.find(({ subjectId }) => subjectId === id)?.state, 'done')
    await refused(decide(id, berta), 'request.conflict')
    await decide(asked, berta)
    assert.deepEqual(done, ['refused', otherJob], 'control: her other token still counts')
    // Asked in the moment in which it was revoked: nobody saw it wait.
    const late = await askLift(anna, 'north', lastJob)
    await refused(decide(late, berta), 'approval.refused')
    await decide(late, berta, false)
    assert.equal(await stateOf(late), 'refused', 'but it can be refused')
  })

  it('dies with the last token of who asked, also when that just runs out', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const short = await ask(anna, { principal: 'anna', lifeMs: 60_000 })
    assert('person' in short)
    const id = await askLift(short.person)
    const last = await askLift(short.person, 'north', newId(jobId, 2))
    ground.clock.nowMs += 60_000
    await decide(id, berta)
    assert.deepEqual(done, [someJob], 'control: nobody took it away, and anna may still come in')
    await revoke(berta, anna)
    await refused(decide(last, berta), 'approval.refused')
    assert.deepEqual(done, [someJob])
  })

  it('is given with a token that counts in that moment, not only when the request came', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const id = await askLift(anna)
    const short = await ask(berta, { principal: 'berta', lifeMs: 60_000 })
    const taken = await ask(berta, { principal: 'berta' })
    assert('person' in short && 'person' in taken)
    await revoke(anna, taken.person)
    ground.clock.nowMs += 60_000
    for (const ended of [short.person, taken.person])
      for (const give of [true, false])
        await refused(decide(id, ended, give), 'access.unauthenticated')
    assert.deepEqual([await stateOf(id), done], ['open', []])
    await decide(id, berta)
    assert.deepEqual(done, [someJob], 'control: her other token counts')
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

  it('hands out nothing for what was asked with a token that is revoked by now', async () => {
    const [anna, berta] = [await person('owner', 'anna'), await person('owner', 'berta')]
    const lost = await ask(anna, { principal: 'anna' })
    assert('person' in lost)
    const wanted = (principal: string) => ({ principal, rights: everywhere })
    await decide(await waiting(lost.person, wanted('carla')), berta)
    await decide(await waiting(anna, wanted('dora')), berta)
    await revoke(berta, lost.person)
    await waiting(anna, { principal: 'carla' })
    assert('person' in (await ask(anna, { principal: 'dora' })), 'control: hers still counts')
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

  const on = (site: string): Right[] => [{ role: 'security', site }]

  it('takes two once there are two, on whatever sites; one of another site then agrees', async () => {
    const boss = await person('owner', 'boss')
    const north = await person('owner', 'north', on('north'))
    const id = await waiting(boss, { principal: 'accomplice', rights: everywhere })
    await refused(decide(id, boss), 'approval.refused')
    const shown = await ground.database.read((sql) => approvalById(sql, id))
    assert.equal(shown?.anySite, true)
    const seen = await ground.database.read((sql) =>
      pageOfApprovals(sql, { items: 9, sites: ['north'] }),
    )
    assert.deepEqual(
      seen.map((row) => row.id),
      [id],
      'who may agree sees it',
    )
    const viewer = await stranger('viewer', [{ role: 'viewer', site: '*' }])
    await refused(decide(id, viewer), 'request.not_found')
    await decide(id, north)
    assert('person' in (await ask(boss, { principal: 'accomplice' })))
    // The one of a site can't ask beyond it, however many agree.
    await refused(waiting(north, { principal: 'mine', rights: everywhere }), 'access.forbidden')
  })

  it('takes somebody with the whole site where there is another one', async () => {
    const boss = await person('owner', 'boss')
    const second = await person('owner', 'second')
    const [north, south] = [
      await stranger('north', on('north')),
      await stranger('south', on('south')),
    ]
    const id = await waiting(boss, { principal: 'third', rights: everywhere })
    await refused(decide(id, north), 'request.not_found')
    await decide(id, second)
    const there = await waiting(north, { principal: 'helper', rights: on('north') })
    await refused(decide(there, south), 'request.not_found')
    await decide(there, second)
    assert('person' in (await ask(north, { principal: 'helper' })))
  })

  it('binds the owner only while one of the two may ask for it', async () => {
    await person('owner', 'north', on('north'))
    await person('owner', 'south', on('south'))
    await refused(ask('owner', { principal: 'more', rights: on('north') }), 'approval.needed')
    const boss = await person('owner', 'boss')
    await refused(ask('owner', { principal: 'other', rights: everywhere }), 'approval.needed')
    await waiting(boss, { principal: 'other', rights: everywhere })
  })
})
