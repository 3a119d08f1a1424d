/** Proves that nothing touches a held job, whatever comes first, and that it goes on where it was. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { eq } from '../database/drizzle.ts'
import { type ErrorCode, isSluiceError } from '@sluice/protocol/errors'
import {
  approvalId,
  type JobId,
  jobId,
  principalId,
  receiveKeyId,
  tokenId,
} from '@sluice/protocol/ids'
import type { JobState } from '@sluice/protocol/job'
import type { AgentRequest } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import type { Access } from '../access/rules.ts'
import { listAudit } from '../audit/store.ts'
import { approvals, jobs } from '../database/schema.ts'
import { obligationsOfJob } from '../deletion/store.ts'
import {
  addReceiveKey,
  joined,
  type TestAgent,
  type TestGround,
  testGround,
  testJobDeps,
} from '../doubles.ts'
import { openCommands } from '../fleet/store.ts'
import { beginApproved, requestPurge } from '../purge/begin.ts'
import { announceJob } from './announce.ts'
import { abandonJob, deleteJob, expireJob } from './delete.ts'
import { dispatchOnce } from './dispatch.ts'
import { holdJobsOf, releaseJob } from './hold.ts'
import { askLift, holdJob, liftHold } from './legal-hold.ts'
import { giveBack } from './leases.ts'
import { answerRequest } from './requests.ts'
import { retryJob } from './retry.ts'
import { hasKey, jobById, leasesOfJob, standingHold } from './store.ts'

let ground: TestGround
let deps: Awaited<ReturnType<typeof testJobDeps>>
let capture: TestAgent
let node: TestAgent
const actor = { kind: 'system' } as const
const [one, other] = [newId(principalId, 1), newId(principalId, 2)]
const access: Access = {
  principalId: one,
  principal: 'anna',
  tokenId: newId(tokenId, 1),
  sites: 'all',
  rights: [{ role: 'security', site: '*' }],
}

beforeEach(async () => {
  ground = await testGround()
  deps = await testJobDeps(ground)
  capture = await joined(ground, 'capture')
  node = await joined(ground, 'gpu', {
    leasesMax: 4,
    offer: {
      analysers: [{ name: 'faces', version: '1' }],
      leasesMax: 4,
      memoryLevel: 'no-swap',
      isolation: 'bubblewrap',
    },
  })
})
afterEach(() => ground[Symbol.asyncDispose]())

async function announced(): Promise<JobId> {
  ground.clock.nowMs += 1
  const id = newId(jobId, ground.now())
  await announceJob(
    deps,
    capture,
    {
      jobId: id,
      analyser: 'faces',
      mediaCount: 1,
      sealedBytes: 40,
      sealedHeader: randomBytes(56).toString('base64url'),
      spoolSha256: randomBytes(32).toString('hex'),
      receiveKeyId: await addReceiveKey(ground, capture.id, newId(receiveKeyId, ground.now())),
      source: { action: 'keep', when: 'result' },
      sealedAtMs: ground.now(),
    },
    Buffer.from('an envelope'),
  )
  return id
}

async function ask(
  agent: TestAgent,
  request: AgentRequest['request'],
  body: unknown,
  attachment?: Buffer,
) {
  const message = { type: 'request', requestId: '', request, body } as AgentRequest
  return answerRequest(
    {
      ...deps,
      acceptReceipt: () => Promise.reject(new Error('not here')),
      renewCertificate: () => Promise.reject(new Error('not here')),
    },
    agent,
    message,
    attachment,
  )
}

async function stored(): Promise<JobId> {
  const id = await announced()
  await ground.database.write(async ({ sql }) => {
    await sql.update(jobs).set({ state: 'stored', storedAtMs: ground.now() }).where(eq(jobs.id, id))
  })
  return id
}

const dispatch = () => dispatchOnce({ ...deps, connected: () => [node.id] })

async function leased() {
  const id = await stored()
  await dispatch()
  const [lease] = await ground.database.read((sql) => leasesOfJob(sql, id))
  assert(lease)
  return { jobId: id, leaseId: lease.id, fence: lease.fence }
}

async function failed(): Promise<JobId> {
  const ref = await leased()
  const problem = { code: 'analysis.failed', message: 'no', retry: 'never' } as const
  await giveBack(deps, node, { ...ref, problem }, 'failed')
  assert.equal((await jobNow(ref.jobId)).state, 'failed')
  return ref.jobId
}

async function lost(): Promise<JobId> {
  const id = await failed()
  await ground.database.write(async ({ sql }) => {
    await sql.update(jobs).set({ state: 'lost' }).where(eq(jobs.id, id))
  })
  return id
}

async function jobNow(id: JobId) {
  const job = await ground.database.read((sql) => jobById(sql, id))
  assert(job)
  return job
}

const hold = (id: JobId) => holdJob(deps, { jobId: id, principalId: one, reason: 'a case' })
const lift = (id: JobId) =>
  ground.database.write((tx) =>
    liftHold(deps, tx, {
      approvalId: newId(approvalId, ground.now()),
      operation: { kind: 'hold.lift', jobId: id },
      askedBy: one,
      askedAtMs: ground.now(),
      approvedBy: other,
      reason: 'closed',
      atMs: ground.now(),
    }),
  )

async function refused(work: Promise<unknown>, code: ErrorCode) {
  await assert.rejects(work, (error) => isSluiceError(error, code) || assert.fail(String(error)))
}

const openDuties = async (id: JobId) =>
  (await ground.database.read((sql) => obligationsOfJob(sql, id)))
    .filter(({ state }) => state !== 'done')
    .map(({ kind }) => kind)

/** Everything that could end or move a job by itself or on an operator's word. */
async function tryEverything(id: JobId): Promise<void> {
  for (const order of [deleteJob, retryJob, releaseJob])
    await refused(order(deps, { jobId: id, actor }), 'job.held')
  ground.clock.nowMs += 365 * 24 * 60 * 60 * 1000
  await expireJob(deps, id)
  await dispatch()
  await abandonJob(deps, capture, {
    jobId: id,
    problem: { code: 'spool.damaged', message: 'no', retry: 'never' },
  })
}

describe('a legal hold', () => {
  const makers = { announced, stored, leased: async () => (await leased()).jobId, failed, lost }
  for (const [state, make] of Object.entries(makers))
    it(`keeps a job that is ${state} from everything, and lets it go on there`, async () => {
      const id = await make()
      const before = await jobNow(id)
      assert.equal(before.state, state)
      const held = await hold(id)
      assert.equal(held.state, state === 'lost' ? 'lost' : 'frozen')
      assert.equal(held.expiresAtMs, null)
      await tryEverything(id)
      const after = await jobNow(id)
      assert.deepEqual([after.state, after.heldAtMs], [held.state, held.heldAtMs])
      assert.equal(after.intentAtMs, null)
      assert(await ground.database.read((sql) => hasKey(sql, id)))
      for (const kind of ['spool.delete', 'object.delete', 'key.destroy'] as const)
        assert((await openDuties(id)).includes(kind))

      await lift(id)
      const lifted = await jobNow(id)
      assert.equal(lifted.state, state === 'leased' ? 'stored' : state)
      assert.deepEqual([lifted.heldAtMs, lifted.frozenFrom], [null, null])
      assert.equal(await ground.database.read((sql) => standingHold(sql, id)), undefined)
      if (state === 'failed' || state === 'lost') {
        assert.equal(lifted.expiresAtMs, ground.now() + deps.failedJobKeepMs, 'its whole time anew')
        ground.clock.nowMs += deps.failedJobKeepMs
        await expireJob(deps, id)
        assert.equal((await jobNow(id)).state, 'deleting', 'control: it expires again')
      }
    })

  it('ends the lease, and no result of it counts', async () => {
    const ref = await leased()
    await hold(ref.jobId)
    const [lease] = await ground.database.read((sql) => leasesOfJob(sql, ref.jobId))
    assert.equal(lease?.endReason, 'revoked')
    const sealed = Buffer.from('a result')
    const sealedResultSha256 = createHash('sha256').update(sealed).digest('hex')
    await refused(ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed), 'lease.stale')
    assert.equal((await jobNow(ref.jobId)).state, 'frozen')
  })

  it('is refused once the deletion has begun, and for a job that is held', async () => {
    const gone = await stored()
    await deleteJob(deps, { jobId: gone, actor })
    const states: JobState[] = ['deleting', 'analysed', 'refused', 'deleted', 'deleted-unconfirmed']
    for (const state of states) {
      await ground.database.write(async ({ sql }) => {
        await sql.update(jobs).set({ state }).where(eq(jobs.id, gone))
      })
      await refused(hold(gone), 'request.conflict')
    }
    const id = await stored()
    await hold(id)
    await refused(hold(id), 'request.conflict')
    const free = await stored()
    await refused(lift(free), 'request.conflict')
    await refused(askLift(deps, { jobId: free, access, reason: 'x' }), 'request.conflict')
    await askLift(deps, { jobId: id, access, reason: 'closed' })
    const asked = await ground.database.read((sql) => sql.select().from(approvals))
    assert.deepEqual(
      asked.map(({ operation, site }) => [operation, site]),
      [[{ kind: 'hold.lift', jobId: id }, 'north']],
    )
  })

  it('and a revocation must both be gone, in whichever order they came and go', async () => {
    const revoke = () =>
      ground.database.write((tx) => holdJobsOf(deps, tx, { agentId: capture.id, actor }))
    const [heldFirst, revokedFirst] = [await stored(), await stored()]
    await hold(heldFirst)
    await revoke()
    await hold(revokedFirst)
    for (const id of [heldFirst, revokedFirst]) {
      await refused(releaseJob(deps, { jobId: id, actor }), 'job.held')
      await lift(id)
      assert.equal((await jobNow(id)).state, 'frozen', 'the revocation still stands')
      await releaseJob(deps, { jobId: id, actor })
      assert.equal((await jobNow(id)).state, 'stored')
    }
  })

  it('tells the capture host, which waits and then goes on', async () => {
    const told = async () => {
      const rows = await ground.database.read((sql) => openCommands(sql, capture.id))
      return rows.flatMap(({ body }) => (body.type === 'job.notice' ? [body.state] : []))
    }
    const id = await announced()
    await hold(id)
    assert.deepEqual(await told(), ['frozen'])
    await lift(id)
    assert.deepEqual(await told(), ['announced'])
  })

  it('races expiry, deletion and retry: one wins, and what a hold won stays', async () => {
    for (let round = 0; round < 12; round += 1) {
      const id = await failed()
      ground.clock.nowMs += deps.failedJobKeepMs
      const rivals = [
        () => deleteJob(deps, { jobId: id, actor }),
        () => retryJob(deps, { jobId: id, actor }),
        () => expireJob(deps, id),
      ]
      const rival = rivals[round % 3]!
      const works = round % 2 === 0 ? [() => hold(id), rival] : [rival, () => hold(id)]
      const ends = await Promise.allSettled(works.map((work) => work()))
      const job = await jobNow(id)
      const won = job.heldAtMs !== null
      if (round % 2 === 0) assert(won, 'the hold came first')
      assert.equal(await ground.database.read((sql) => hasKey(sql, id)), job.state !== 'deleting')
      if (won) assert.deepEqual([job.state, job.intentAtMs], ['frozen', null])
      for (const end of ends)
        if (end.status === 'rejected')
          assert(
            isSluiceError(end.reason, 'job.held') || isSluiceError(end.reason, 'request.conflict'),
          )
    }
  })

  it('races a purge, which goes first: what is held before is skipped, nothing is held after', async () => {
    for (const order of ['held', 'hold, purge', 'purge, hold']) {
      const holdFirst = order === 'held'
      const id = await stored()
      const free = await stored()
      const purge = () =>
        requestPurge(
          {
            ...{ database: ground.database, changes: ground.changes, now: ground.now },
            ...{ storeKind: 's3', aloneJobsMax: 10, reserve: { free: async () => false } },
          },
          {
            ...{ scope: { kind: 'agent', agentId: capture.id }, reason: 'stolen', access },
            ...{ breakGlass: false, includingHeld: false },
          },
        )
      if (holdFirst) await hold(id)
      const works = order === 'hold, purge' ? [() => hold(id), purge] : [purge, () => hold(id)]
      const ends = await Promise.allSettled(works.map((work) => work()))
      assert.deepEqual(ends.map(({ status }) => status).toSorted(), ['fulfilled', 'rejected'])
      const late = ends.find((end) => end.status === 'rejected')
      assert(isSluiceError(late?.reason, 'request.conflict'), 'the hold comes too late, or twice')
      const job = await jobNow(id)
      assert.equal(job.state, holdFirst ? 'frozen' : 'deleting')
      assert.equal(await ground.database.read((sql) => hasKey(sql, id)), holdFirst)
      assert.equal((await jobNow(free)).state, 'deleting', 'control: the purge was real')
    }
  })

  it('that came while a purge waited for its second person outlives that purge', async () => {
    const purging = {
      ...{ database: ground.database, changes: ground.changes, now: ground.now },
      ...{ storeKind: 's3', aloneJobsMax: 0, reserve: { free: async () => false } },
    }
    const id = await stored()
    const free = await stored()
    await requestPurge(purging, {
      ...{ scope: { kind: 'agent', agentId: capture.id }, reason: 'stolen', access },
      ...{ breakGlass: false, includingHeld: false },
    })
    assert.equal((await jobNow(id)).state, 'frozen')
    await hold(id)
    const [asked] = await ground.database.read((sql) => sql.select().from(approvals))
    assert(asked?.operation.kind === 'purge.begin')
    const { operation } = asked
    await ground.database.write((tx) =>
      beginApproved(purging)(tx, {
        operation,
        ...{ approvalId: asked.id, askedBy: one, approvedBy: other, reason: asked.reason },
        ...{ askedAtMs: asked.askedAtMs, atMs: ground.now() },
      }),
    )
    assert.deepEqual([(await jobNow(id)).state, (await jobNow(free)).state], ['frozen', 'deleting'])
    await lift(id)
    assert.equal((await jobNow(id)).state, 'frozen', 'the purge had locked it before the hold')
    await releaseJob(deps, { jobId: id, actor })
    assert.equal((await jobNow(id)).state, 'stored')
  })

  it('that is lifted while a purge of held jobs waits leaves the job locked by that purge', async () => {
    const purging = {
      ...{ database: ground.database, changes: ground.changes, now: ground.now },
      ...{ storeKind: 's3', aloneJobsMax: 10, reserve: { free: async () => false } },
    }
    const [inScope, beyond] = [await stored(), await stored()]
    await hold(inScope)
    await hold(beyond)
    await requestPurge(purging, {
      ...{ scope: { kind: 'job', jobId: inScope }, reason: 'a case', access },
      ...{ breakGlass: false, includingHeld: true },
    })
    await lift(beyond)
    assert.equal((await jobNow(beyond)).state, 'stored', 'control: lifting lets it go on')
    await lift(inScope)
    assert.equal((await jobNow(inScope)).state, 'frozen')
    await releaseJob(deps, { jobId: inScope, actor })
    assert.equal((await jobNow(inScope)).state, 'stored')
  })

  it('says in the audit log who set it, why, and who lifted it', async () => {
    const id = await stored()
    await hold(id)
    await lift(id)
    const events = await listAudit(ground.database, { jobId: id, afterSeq: 0, items: 100 })
    const found = events.filter(({ type }) => type === 'job.held' || type === 'job.hold-lifted')
    assert.deepEqual(
      found.map(({ type, actor: by, detail }) => [type, by, detail['reason'] ?? detail['askedBy']]),
      [
        ['job.held', { kind: 'principal', id: one }, 'a case'],
        ['job.hold-lifted', { kind: 'principal', id: other }, one],
      ],
    )
  })
})
