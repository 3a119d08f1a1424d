/** Proves the life of a job against a real database, with the node, the store and the clock in our hand. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { type ErrorCode, isSluiceError, SluiceError } from '@sluice/protocol/errors'
import {
  type AgentId,
  approvalId,
  type JobId,
  jobId,
  leaseId,
  principalId,
  receiveKeyId,
} from '@sluice/protocol/ids'
import { mayBecome } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import type {
  AgentRequest,
  LeaseRef,
  Problem,
  RequestBody,
  RequestReply,
  RequestType,
} from '@sluice/protocol/messages'
import { requests } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { verifyAudit, listAudit } from '../audit/store.ts'
import { jobKeys } from '../database/schema.ts'
import { markLeaseWiped, obligationsOfJob } from '../deletion/store.ts'
import {
  addReceiveKey,
  joined,
  type TestAgent,
  type TestGround,
  testGround,
  testJobDeps,
} from '../doubles.ts'
import { changeAgent, markRevoked, openCommands } from '../fleet/store.ts'
import { deleteJob, expireJob, noticeExpiry } from './delete.ts'
import { unlessDecided } from './deps.ts'
import { dispatchOnce } from './dispatch.ts'
import { abortUploadsOf, holdJobsOf, releaseJob } from './hold.ts'
import { createLeaseTimes } from './lease-times.ts'
import { holdJob, liftHold } from './legal-hold.ts'
import { renewLeases } from './leases.ts'
import { answerRequest } from './requests.ts'
import { retryJob } from './retry.ts'
import { jobById, leasesOfJob, openUpload, resultOf } from './store.ts'

const operator = { kind: 'system' } as const
const sealedBytes = 40
const part = Buffer.alloc(sealedBytes, 7)
const partMd5 = createHash('md5').update(part).digest()

let ground: TestGround
let deps: Awaited<ReturnType<typeof testJobDeps>> & Parameters<typeof answerRequest>[0]
let capture: TestAgent
let node: TestAgent
let online: AgentId[]

beforeEach(begin)
afterEach(() => ground[Symbol.asyncDispose]())

async function begin() {
  ground = await testGround()
  deps = {
    ...(await testJobDeps(ground)),
    acceptReceipt: async () => undefined,
    renewCertificate: async () => {
      throw new SluiceError('internal', 'not here')
    },
  }
  capture = await joined(ground, 'capture')
  node = await gpu()
  online = [node.id]
}

async function gpu(
  settings: {
    site?: string
    leasesMax?: number
    allowedAnalysers?: string[]
    analysers?: string[]
  } = {},
): Promise<TestAgent> {
  const { analysers = ['faces'], ...rest } = settings
  return joined(ground, 'gpu', {
    leasesMax: 2,
    ...rest,
    offer: {
      analysers: analysers.map((name) => ({ name, version: '1' })),
      leasesMax: 2,
      memoryLevel: 'no-swap',
      isolation: 'bubblewrap',
    },
  })
}

/** Asks as an agent does; the reply must have the shape the protocol gives it. */
async function ask<T extends RequestType>(
  agent: TestAgent,
  request: T,
  body: RequestBody<T>,
  attachment?: Buffer,
): Promise<RequestReply<T> & { attachment?: Uint8Array }> {
  const message = { type: 'request', requestId: '', request, body } as AgentRequest
  const answer = await answerRequest(deps, agent, message, attachment)
  const reply = requests[request].reply.parse(answer.body) as RequestReply<T>
  return Object.assign(reply, answer.attachment && { attachment: answer.attachment })
}

async function refused(work: Promise<unknown>, code: ErrorCode) {
  await assert.rejects(work, (error) => isSluiceError(error, code) || assert.fail(String(error)))
}

async function announcement(change: Partial<RequestBody<'job.announce'>> = {}) {
  return {
    jobId: newId(jobId, ground.now()),
    analyser: 'faces',
    mediaCount: 1,
    sealedBytes,
    sealedHeader: randomBytes(56).toString('base64url'),
    spoolSha256: randomBytes(32).toString('hex'),
    receiveKeyId: await addReceiveKey(ground, capture.id, newId(receiveKeyId, ground.now())),
    source: { action: 'keep', when: 'result' },
    sealedAtMs: ground.now(),
    ...change,
  } satisfies RequestBody<'job.announce'>
}

const envelope = Buffer.from('an envelope')

async function announced(change: Partial<RequestBody<'job.announce'>> = {}): Promise<JobId> {
  const body = await announcement(change)
  await ask(capture, 'job.announce', body, envelope)
  return body.jobId
}

async function putPart(id: JobId): Promise<string> {
  const upload = await ground.database.read((sql) => openUpload(sql, id))
  return deps.store.put(upload?.storeUploadId ?? '', 1, part)
}

async function stored(change: Partial<RequestBody<'job.announce'>> = {}): Promise<JobId> {
  const id = await announced(change)
  await ask(capture, 'upload.begin', { jobId: id })
  const etag = await putPart(id)
  await ask(capture, 'upload.complete', { jobId: id, parts: [{ part: 1, etag }] })
  assert.equal(await stateOf(id), 'stored')
  return id
}

function dispatch() {
  return dispatchOnce({ ...deps, connected: () => online })
}

async function jobNow(id: JobId) {
  const job = await ground.database.read((sql) => jobById(sql, id))
  assert.ok(job)
  return job
}

async function stateOf(id: JobId) {
  return (await jobNow(id)).state
}

async function leaseNow(id: JobId) {
  const leases = await ground.database.read((sql) => leasesOfJob(sql, id))
  return leases.at(-1)
}

async function leased(change: Partial<RequestBody<'job.announce'>> = {}): Promise<LeaseRef> {
  const id = await stored(change)
  await dispatch()
  return refNow(id)
}

async function refNow(id: JobId): Promise<LeaseRef> {
  const lease = await leaseNow(id)
  assert.ok(lease && lease.endedAtMs === null, 'the job is leased')
  return { jobId: id, leaseId: lease.id, fence: lease.fence }
}

async function owed(id: JobId) {
  const rows = await ground.database.read((sql) => obligationsOfJob(sql, id))
  return Object.fromEntries(rows.map((row) => [row.kind, row.state]))
}

async function commandsFor(agent: TestAgent) {
  const rows = await ground.database.read((sql) => openCommands(sql, agent.id))
  return rows.map((row) => row.body)
}

const sealed = Buffer.from('a sealed result')
const sealedResultSha256 = createHash('sha256').update(sealed).digest('hex')

const later: Problem = { code: 'analysis.timeout', message: 'too slow', retry: 'later' }
const never: Problem = {
  code: 'seal.tampered',
  message: 'chunk 3 is not authentic',
  retry: 'never',
}

describe('announcing', () => {
  it('writes the job with its key and everything that will be owed', async () => {
    const id = await announced()
    assert.equal(await stateOf(id), 'announced')
    assert.deepEqual(await owed(id), {
      'spool.delete': 'waiting',
      'object.delete': 'waiting',
      'key.destroy': 'waiting',
    })
    const keys = await ground.database.read((sql) => sql.select().from(jobKeys))
    assert.deepEqual(
      keys.map((key) => key.jobId),
      [id],
    )
  })

  it('owes a deletion in every replica that is configured', async () => {
    const stores = new Map(['paris', 'rome'].map((place) => [place, {} as never]))
    const before = deps.replicas
    deps.replicas = { stores, settleMs: 0 }
    try {
      const id = await announced()
      const duties = await ground.database.read((sql) => obligationsOfJob(sql, id))
      const copies = duties.filter(({ kind }) => kind === 'replica.delete')
      const found = copies.map(({ subjectId, state }) => `${subjectId} ${state}`)
      assert.deepEqual(found.toSorted(), ['paris waiting', 'rome waiting'])
    } finally {
      deps.replicas = before
    }
  })

  it('tells the state when the same archive is announced again', async () => {
    const body = await announcement()
    const first = await ask(capture, 'job.announce', body, envelope)
    const again = await ask(capture, 'job.announce', body, envelope)
    assert.deepEqual(again, first)
  })

  it('refuses an id that belongs to another archive or another agent', async () => {
    const body = await announcement()
    await ask(capture, 'job.announce', body, envelope)
    const other = { ...body, sealedHeader: randomBytes(56).toString('base64url') }
    await refused(ask(capture, 'job.announce', other, envelope), 'request.conflict')
    const stranger = await joined(ground, 'capture')
    await refused(ask(stranger, 'job.announce', body, envelope), 'request.conflict')
  })

  it('writes nothing when the key does not open the archive', async () => {
    deps.keys.mismatch = true
    const body = await announcement()
    await refused(ask(capture, 'job.announce', body, envelope), 'keys.escrow_mismatch')
    assert.equal(await ground.database.read((sql) => jobById(sql, body.jobId)), undefined)
  })

  it('takes nothing from an agent that was revoked while its key was opened', async () => {
    const body = await announcement()
    const { openEscrow } = deps.keys
    deps.keys.openEscrow = async (request) => {
      await ground.database.write((tx) => markRevoked(tx, capture.id, ground.now()))
      return openEscrow(request)
    }
    await refused(ask(capture, 'job.announce', body, envelope), 'identity.revoked')
    assert.equal(await ground.database.read((sql) => jobById(sql, body.jobId)), undefined)
  })

  it('takes a receive key once', async () => {
    const body = await announcement()
    await ask(capture, 'job.announce', body, envelope)
    const second = await announcement({ receiveKeyId: body.receiveKeyId })
    await refused(ask(capture, 'job.announce', second, envelope), 'keys.destroyed')
    assert.equal(await ground.database.read((sql) => jobById(sql, second.jobId)), undefined)
  })

  it('is for capture agents, as a lease is for nodes', async () => {
    await refused(ask(node, 'job.announce', await announcement(), envelope), 'access.forbidden')
    const ref = await leased()
    await refused(ask(capture, 'lease.accept', ref), 'access.forbidden')
  })
})

describe('uploading', () => {
  it('goes from begin over grants to a stored object', async () => {
    const id = await announced()
    const begun = await ask(capture, 'upload.begin', { jobId: id })
    assert.deepEqual(begun, { state: 'uploading', partBytes: limits.partBytesDefault, held: [] })
    const { grants } = await ask(capture, 'upload.grants', {
      jobId: id,
      parts: [{ part: 1, bytes: sealedBytes, md5: partMd5.toString('base64') }],
    })
    assert.equal(grants.length, 1)
    const etag = await putPart(id)
    const parts = [{ part: 1, etag }]
    assert.deepEqual(await ask(capture, 'upload.complete', { jobId: id, parts }), {
      state: 'stored',
    })
    assert.deepEqual(await ask(capture, 'upload.complete', { jobId: id, parts }), {
      state: 'stored',
    })
    const { grant } = await ask(capture, 'upload.verify', { jobId: id })
    assert.match(grant.url, /^https:/)
  })

  it('says after a crash what the store already holds', async () => {
    const id = await announced()
    await ask(capture, 'upload.begin', { jobId: id })
    await putPart(id)
    const { held } = await ask(capture, 'upload.begin', { jobId: id })
    assert.deepEqual(held, [{ part: 1, bytes: sealedBytes, etag: partMd5.toString('hex') }])
    assert.equal(deps.store.uploads.size, 1)
  })

  it('grants no part of another size, and none of a job of another agent', async () => {
    const id = await announced()
    await ask(capture, 'upload.begin', { jobId: id })
    const md5 = partMd5.toString('base64')
    const grants = (agent: TestAgent, number: number, bytes: number) =>
      ask(agent, 'upload.grants', { jobId: id, parts: [{ part: number, bytes, md5 }] })
    await refused(grants(capture, 1, sealedBytes + 1), 'upload.refused')
    await refused(grants(capture, 2, 1), 'upload.refused')
    await refused(grants(await joined(ground, 'capture'), 1, sealedBytes), 'job.not_found')
  })

  it('completes nothing that is not there as it was sent', async () => {
    const id = await announced()
    await ask(capture, 'upload.begin', { jobId: id })
    await putPart(id)
    const parts = [{ part: 1, etag: 'another' }]
    await refused(ask(capture, 'upload.complete', { jobId: id, parts }), 'upload.refused')
    assert.equal(deps.store.objects.size, 0)
    assert.equal(await stateOf(id), 'uploading')
  })

  it('begins anew when the store has lost the upload', async () => {
    const id = await announced()
    await ask(capture, 'upload.begin', { jobId: id })
    deps.store.uploads.clear()
    const parts = [{ part: 1, etag: 'x' }]
    await refused(ask(capture, 'upload.complete', { jobId: id, parts }), 'upload.gone')
    assert.deepEqual((await ask(capture, 'upload.begin', { jobId: id })).held, [])
    assert.equal(deps.store.uploads.size, 1)
  })

  it('completes nothing and grants nothing once deletion is intended', async () => {
    const id = await announced()
    await ask(capture, 'upload.begin', { jobId: id })
    const etag = await putPart(id)
    await deleteJob(deps, { jobId: id, actor: operator })
    const completed = await ask(capture, 'upload.complete', {
      jobId: id,
      parts: [{ part: 1, etag }],
    })
    assert.equal(completed.state, 'deleting')
    const md5 = partMd5.toString('base64')
    const parts = [{ part: 1, bytes: sealedBytes, md5 }]
    await refused(ask(capture, 'upload.grants', { jobId: id, parts }), 'job.wrong_state')
    assert.equal((await ask(capture, 'upload.begin', { jobId: id })).state, 'deleting')
    assert.equal(deps.store.objects.size, 0)
  })

  it('ends with one object and one open upload, whichever call to the store dies', async () => {
    const methods = ['createUpload', 'listParts', 'completeUpload', 'head']
    for (const phase of ['before', 'after'])
      for (const method of methods) {
        const id = await announced()
        let died = false
        const real = { ...deps.store }
        const dying = (name: string) => {
          if (name !== method || died) return false
          died = true
          return true
        }
        const crash = () => new SluiceError('store.unreachable', 'killed here', { retry: 'later' })
        for (const name of methods as (keyof typeof real)[]) {
          const call = real[name] as (...given: unknown[]) => Promise<unknown>
          Object.assign(deps.store, {
            async [name](...given: unknown[]) {
              const now = dying(name)
              if (now && phase === 'before') throw crash()
              const value = await call(...given)
              if (now) throw crash()
              return value
            },
          })
        }
        const agentTry = async () => {
          const { state, held } = await ask(capture, 'upload.begin', { jobId: id })
          if (state !== 'uploading') return
          const etag = held[0]?.etag ?? (await putPart(id))
          await ask(capture, 'upload.complete', { jobId: id, parts: [{ part: 1, etag }] })
        }
        for (let tries = 0; tries < 3 && (await stateOf(id)) !== 'stored'; tries += 1)
          await agentTry().catch((error: unknown) => assert.ok(isSluiceError(error), String(error)))
        Object.assign(deps.store, real)
        assert.ok(died, `${method} was called`)
        assert.equal(await stateOf(id), 'stored', `${phase} ${method}`)
        assert.equal(deps.store.objects.get((await jobNow(id)).objectKey), sealedBytes)
        const left = [...deps.store.uploads.values()].filter(({ parts }) => parts.size > 0)
        assert.deepEqual(left, [], `${phase} ${method} leaves no upload with parts`)
      }
  })
})

describe('dispatch', () => {
  it('leases a stored job to a node that may run it, with its wipe owed and its order queued', async () => {
    const { jobId: id, leaseId: lease, fence } = await leased()
    assert.equal(await stateOf(id), 'leased')
    assert.equal(fence, 1)
    assert.equal((await owed(id))['lease.wipe'], 'waiting')
    const [order] = await commandsFor(node)
    assert.ok(order?.type === 'lease.offer')
    assert.equal(order.leaseId, lease)
    assert.deepEqual(Object.keys(order).toSorted(), [
      'analyser',
      'durationMs',
      'fence',
      'jobId',
      'leaseId',
      'sealedBytes',
      'sealedHeader',
      'type',
      'wipeObligationId',
    ])
  })

  const unsuitable: [string, () => Promise<TestAgent>][] = [
    ['of another site', () => gpu({ site: 'south' })],
    ['that does not offer the analyser', () => gpu({ analysers: ['voices'] })],
    ['that was not allowed the analyser', () => gpu({ allowedAnalysers: ['voices'] })],
    ['without leases', () => gpu({ leasesMax: 0 })],
    ['that captures', () => joined(ground, 'capture')],
  ]
  for (const [name, make] of unsuitable)
    it(`passes over a node ${name}`, async () => {
      const id = await stored()
      online = [(await make()).id]
      await dispatch()
      assert.equal(await stateOf(id), 'stored')
      online.push(node.id)
      await dispatch()
      assert.equal((await leaseNow(id))?.nodeId, node.id)
    })

  it('passes over nodes that are away or revoked', async () => {
    const id = await stored()
    online = []
    await dispatch()
    assert.equal(await stateOf(id), 'stored')
    online = [node.id]
    await ground.database.write((tx) => holdJobsOf(deps, tx, { agentId: node.id, actor: operator }))
    await ground.database.write((tx) => markRevoked(tx, node.id, ground.now()))
    await dispatch()
    assert.equal(await stateOf(id), 'stored')
  })

  it('follows the setting of the operator at once', async () => {
    const id = await stored()
    await ground.database.write((tx) => changeAgent(tx, node.id, { leasesMax: 0 }))
    await dispatch()
    assert.equal(await stateOf(id), 'stored')
    await ground.database.write((tx) => changeAgent(tx, node.id, { leasesMax: 1 }))
    await dispatch()
    assert.equal(await stateOf(id), 'leased')
  })

  it('gives a node no more leases than it has room for, oldest job first', async () => {
    const ids: JobId[] = []
    for (let made = 0; made < 3; made += 1) {
      ids.push(await stored())
      ground.clock.nowMs += 1
    }
    await dispatch()
    const states = await Promise.all(ids.map(stateOf))
    assert.deepEqual(states, ['leased', 'leased', 'stored'])
  })

  it('gives a node that had a key no more work until it confirmed the wipe', async () => {
    await ground.database.write((tx) => changeAgent(tx, node.id, { leasesMax: 1 }))
    const ref = await leased()
    await ask(node, 'key.request', { ...ref, publicKey: 'A'.repeat(1622) })
    await ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed)
    const next = await stored()
    await dispatch()
    assert.equal(await stateOf(next), 'stored')
    await ground.database.write((tx) => markLeaseWiped(tx, ref.leaseId, ground.now()))
    await dispatch()
    assert.equal(await stateOf(next), 'leased')
  })

  it('leases a job once, however many passes run at once', async () => {
    const id = await stored()
    await Promise.all([dispatch(), dispatch(), dispatch()])
    assert.equal((await ground.database.read((sql) => leasesOfJob(sql, id))).length, 1)
  })

  it('calls a job lost whose key is gone, and keeps it for its time', async () => {
    const id = await stored()
    await ground.database.write(async ({ sql }) => void (await sql.delete(jobKeys)))
    await dispatch()
    const job = await jobNow(id)
    assert.equal(job.state, 'lost')
    assert.equal(job.expiresAtMs, ground.now() + deps.failedJobKeepMs)
    assert.ok((await commandsFor(capture)).some((one) => one.type === 'job.notice'))
  })
})

describe('a lease', () => {
  it('gives the key and the object to its holder alone', async () => {
    const ref = await leased()
    assert.deepEqual(await ask(node, 'lease.accept', ref), { remainingMs: limits.leaseMs })
    const request = { ...ref, publicKey: 'A'.repeat(1622) }
    const { deadlineAtMs, attachment } = await ask(node, 'key.request', request)
    assert.equal(deadlineAtMs, ground.now() + limits.leaseMs)
    assert.equal(Buffer.from(attachment!).toString(), 'an envelope')
    assert.equal((await ask(node, 'object.read', ref)).sealedBytes, sealedBytes)

    const other = await gpu()
    const wrong: LeaseRef[] = [
      { ...ref, fence: ref.fence + 1 },
      { ...ref, leaseId: newId(leaseId, ground.now()) },
      { ...ref, jobId: await stored() },
    ]
    for (const bad of wrong) {
      await refused(
        ask(node, 'key.request', { ...bad, publicKey: request.publicKey }),
        'lease.stale',
      )
      await refused(ask(node, 'object.read', bad), 'lease.stale')
      await refused(ask(node, 'lease.accept', bad), 'lease.stale')
    }
    await refused(ask(other, 'key.request', request), 'lease.stale')
    await refused(ask(other, 'object.read', ref), 'lease.stale')
    assert.equal(deps.keys.sealed, 1)
  })

  it('is renewed by heartbeats until its deadline, not beyond', async () => {
    const ref = await leased()
    const beat = () => renewLeases(deps, node, { type: 'heartbeat', atMs: 0, leases: [ref] })
    ground.clock.nowMs += limits.leaseMs - 1
    assert.deepEqual(await beat(), [{ ...ref, remainingMs: limits.leaseMs }])
    ground.clock.nowMs += limits.leaseMs
    assert.deepEqual(await beat(), [])
    await refused(ask(node, 'object.read', ref), 'lease.expired')
    await refused(
      ask(node, 'key.request', { ...ref, publicKey: 'A'.repeat(1622) }),
      'lease.expired',
    )
  })

  it('is not renewed for good, however faithfully its node asks', async () => {
    const ref = await leased()
    const beat = { type: 'heartbeat' as const, atMs: 0, leases: [ref] }
    const endsAtMs = ground.now() + limits.leaseTotalMsMax
    while ((await renewLeases(deps, node, beat)).length > 0) {
      assert.ok(ground.now() < endsAtMs, 'the deadline never moves beyond the end')
      ground.clock.nowMs += limits.leaseMs - 1
    }
    assert.ok(ground.now() >= endsAtMs)
    assert.equal((await leaseNow(ref.jobId))?.deadlineAtMs, endsAtMs)
    await refused(
      ask(node, 'key.request', { ...ref, publicKey: 'A'.repeat(1622) }),
      'lease.expired',
    )
  })

  it('holds whatever is done to the clock of the host, and ends by the other', async () => {
    for (const jumpMs of [365 * 24 * 3_600_000, 26_000, -365 * 24 * 3_600_000]) {
      const ref = await leased()
      const beat = { type: 'heartbeat' as const, atMs: 0, leases: [ref] }
      const monotonic = { ms: 0 }
      // Like a new process, so that what it finds open counts from its start.
      const { now } = deps
      deps.leaseTimes = createLeaseTimes(() => monotonic.ms)
      await dispatch()
      deps.now = () => now() + jumpMs
      monotonic.ms = limits.leaseMs - 1
      await dispatch()
      assert.equal(await stateOf(ref.jobId), 'leased', `jump of ${jumpMs}`)
      assert.equal((await renewLeases(deps, node, beat)).length, 1)
      monotonic.ms += limits.leaseMs + limits.leaseGraceMs - 1
      await dispatch()
      assert.equal(await stateOf(ref.jobId), 'leased', `jump of ${jumpMs}, in its grace`)
      monotonic.ms += 1
      online = []
      await dispatch()
      assert.equal(await stateOf(ref.jobId), 'stored', `jump of ${jumpMs}, over`)
      deps.now = now
      await ground[Symbol.asyncDispose]()
      await begin()
    }
  })

  it('found open by a new process counts its whole duration and grace from there', async () => {
    const ref = await leased()
    ground.clock.nowMs += 24 * 3_600_000
    const monotonic = { ms: 5 }
    deps.leaseTimes = createLeaseTimes(() => monotonic.ms)
    online = []
    await dispatch()
    assert.equal(await stateOf(ref.jobId), 'leased')
    monotonic.ms += limits.leaseMs + limits.leaseGraceMs - 1
    await dispatch()
    assert.equal(await stateOf(ref.jobId), 'leased')
    monotonic.ms += 1
    await dispatch()
    assert.equal(await stateOf(ref.jobId), 'stored')
  })

  it('is not renewed for another node or under another fence', async () => {
    const ref = await leased()
    const other = await gpu()
    const beat = { type: 'heartbeat', atMs: 0, leases: [ref] } as const
    assert.deepEqual(await renewLeases(deps, other, { ...beat, leases: [ref] }), [])
    const stale = { ...ref, fence: 2 }
    assert.deepEqual(await renewLeases(deps, node, { ...beat, leases: [stale] }), [])
  })

  it('blocks its job through the grace, then ends: wipe due, node told, fence dead', async () => {
    const ref = await leased()
    online = []
    ground.clock.nowMs += limits.leaseMs + limits.leaseGraceMs - 1
    const nextAtMs = await dispatch()
    assert.equal(await stateOf(ref.jobId), 'leased')
    assert.equal(nextAtMs, ground.now() + 1)
    ground.clock.nowMs += 1
    await dispatch()
    assert.equal(await stateOf(ref.jobId), 'stored')
    assert.equal((await leaseNow(ref.jobId))?.endReason, 'expired')
    assert.equal((await owed(ref.jobId))['lease.wipe'], 'due')
    assert.deepEqual(
      (await commandsFor(node)).map(({ type }) => type),
      ['lease.end'],
    )
    await refused(ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed), 'lease.stale')
  })

  it('gives nothing more once its node signed that it is wiped, and still can be given back', async () => {
    const lease = await leased()
    const key = { ...lease, publicKey: 'A'.repeat(1622) }
    await ask(node, 'key.request', key)
    await ground.database.write((tx) => markLeaseWiped(tx, lease.leaseId, ground.now()))
    await refused(ask(node, 'key.request', key), 'lease.stale')
    await refused(ask(node, 'object.read', lease), 'lease.stale')
    const beat = { type: 'heartbeat' as const, atMs: 0, leases: [lease] }
    assert.deepEqual(await renewLeases(deps, node, beat), [])
    await ask(node, 'lease.fail', { ...lease, problem: later })
    assert.equal(await stateOf(lease.jobId), 'stored')
  })

  it('goes on with a higher fence at another node, and the old one stays dead', async () => {
    const ref = await leased()
    const other = await gpu()
    online = [node.id, other.id]
    ground.clock.nowMs += limits.leaseMs + limits.leaseGraceMs
    await dispatch()
    ground.clock.nowMs += limits.leaseRetryMsMin
    await dispatch()
    const second = await refNow(ref.jobId)
    assert.equal(second.fence, 2)
    assert.equal((await leaseNow(ref.jobId))?.nodeId, other.id)
    await refused(ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed), 'lease.stale')
    await refused(
      ask(node, 'lease.result', { ...second, sealedResultSha256 }, sealed),
      'lease.stale',
    )
    await ask(other, 'lease.result', { ...second, sealedResultSha256 }, sealed)
    assert.equal(await stateOf(ref.jobId), 'deleting')
  })

  it('lets its job be tried again after a passing failure, and keeps it after the last', async () => {
    const id = await stored()
    for (let tries = 1; tries <= limits.leaseAttemptsMax; tries += 1) {
      ground.clock.nowMs += limits.leaseRetryMsMax
      await dispatch()
      const ref = await refNow(id)
      await ask(node, 'lease.fail', { ...ref, problem: later })
      await ask(node, 'lease.fail', { ...ref, problem: later })
    }
    const job = await jobNow(id)
    assert.equal(job.state, 'failed')
    assert.equal(job.problemCode, 'analysis.timeout')
  })

  it('keeps its job as failed when no retry can help', async () => {
    const ref = await leased()
    await ask(node, 'lease.fail', { ...ref, problem: never })
    const job = await jobNow(ref.jobId)
    assert.deepEqual([job.state, job.problemCode], ['failed', 'seal.tampered'])
    assert.equal(job.expiresAtMs, ground.now() + deps.failedJobKeepMs)
    assert.equal((await owed(ref.jobId))['job.expire'], 'due')
    const notice = (await commandsFor(capture)).find((one) => one.type === 'job.notice')
    assert.equal(notice?.type === 'job.notice' && notice.problem?.code, 'seal.tampered')
  })

  it('can be declined: another node may take the job', async () => {
    const ref = await leased()
    await ask(node, 'lease.decline', { ...ref, problem: { ...never, code: 'lease.declined' } })
    assert.equal(await stateOf(ref.jobId), 'stored')
    assert.equal((await leaseNow(ref.jobId))?.endReason, 'declined')
  })
})

describe('a result', () => {
  it('is durable, ends the lease, and begins the deletion in one step', async () => {
    const ref = await leased()
    await ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed)
    await ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed)
    const job = await jobNow(ref.jobId)
    assert.equal(job.state, 'deleting')
    assert.equal(job.keysUnusableAtMs, ground.now())
    assert.deepEqual(await owed(ref.jobId), {
      'spool.delete': 'due',
      'object.delete': 'due',
      'key.destroy': 'due',
      'lease.wipe': 'due',
      'result.deliver': 'due',
      'certificate.issue': 'waiting',
    })
    const types = (await commandsFor(capture)).map(({ type }) => type)
    assert.deepEqual(types.toSorted(), ['result.ready', 'spool.delete'])
    const keys = await ground.database.read((sql) => sql.select().from(jobKeys))
    assert.deepEqual(keys, [])
  })

  it('is refused when it is not the one announced', async () => {
    const ref = await leased()
    const wrong = '0'.repeat(64)
    await refused(
      ask(node, 'lease.result', { ...ref, sealedResultSha256: wrong }, sealed),
      'request.invalid',
    )
    assert.equal(await stateOf(ref.jobId), 'leased')
  })

  it('goes to its capture host and counts as delivered once', async () => {
    const ref = await leased()
    await ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed)
    const fetched = await ask(capture, 'result.fetch', { jobId: ref.jobId })
    assert.deepEqual(fetched.lease, ref)
    assert.equal(fetched.nodeId, node.id)
    assert.deepEqual(Buffer.from(fetched.attachment!), sealed)
    const stranger = await joined(ground, 'capture')
    await refused(ask(stranger, 'result.fetch', { jobId: ref.jobId }), 'job.not_found')
    ground.clock.nowMs += 5
    const delivered = { jobId: ref.jobId, sealedResultSha256 }
    await refused(
      ask(capture, 'result.delivered', { ...delivered, sealedResultSha256: '0'.repeat(64) }),
      'request.conflict',
    )
    await ask(capture, 'result.delivered', delivered)
    await ask(capture, 'result.delivered', delivered)
    const result = await ground.database.read((sql) => resultOf(sql, ref.jobId))
    assert.equal(result?.deliveredAtMs, ground.now())
    const duties = await ground.database.read((sql) => obligationsOfJob(sql, ref.jobId))
    const duty = duties.find((one) => one.kind === 'result.deliver')
    assert.equal(duty?.nextTryAtMs, ground.now())
    const events = await listAudit(ground.database, { jobId: ref.jobId, afterSeq: 0, items: 100 })
    assert.equal(events.filter(({ type }) => type === 'job.result-delivered').length, 1)
  })
})

describe('a failed job', () => {
  async function failed(change: Partial<RequestBody<'job.announce'>> = {}) {
    const ref = await leased(change)
    await ask(node, 'lease.fail', { ...ref, problem: never })
    return ref.jobId
  }

  it('runs again on an operator’s word, with all its tries', async () => {
    const id = await failed()
    await retryJob(deps, { jobId: id, actor: operator })
    const job = await jobNow(id)
    assert.deepEqual(
      [job.state, job.leaseAttempts, job.expiresAtMs, job.problemCode],
      ['stored', 0, null, null],
    )
    assert.equal((await owed(id))['job.expire'], 'done')
    await refused(retryJob(deps, { jobId: id, actor: operator }), 'request.conflict')
    await dispatch()
    assert.equal((await refNow(id)).fence, 2)
  })

  it('runs again from the archive that is stored: nothing is uploaded a second time', async () => {
    const asked: string[] = []
    deps.store.before = (method) => void asked.push(method)
    const id = await failed()
    assert(asked.includes('completeUpload'), 'control: the first time it was uploaded')
    asked.length = 0
    await retryJob(deps, { jobId: id, actor: operator })
    const begun = await ask(capture, 'upload.begin', { jobId: id })
    assert.deepEqual([begun.state, begun.held], ['stored', []])
    await dispatch()
    const ref = await refNow(id)
    await ask(node, 'object.read', ref)
    await ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed)
    assert.deepEqual(asked, ['grantRead'])
    assert.equal(await stateOf(id), 'deleting')
  })

  it('expires when its time is over, and not before', async () => {
    const id = await failed()
    ground.clock.nowMs += deps.failedJobKeepMs - 1
    await expireJob(deps, id)
    assert.equal(await stateOf(id), 'failed')
    ground.clock.nowMs += 1
    await expireJob(deps, id)
    assert.equal(await stateOf(id), 'deleting')
    await expireJob(deps, id)
  })

  it('is not expired by the duty of an earlier failure', async () => {
    const id = await failed()
    ground.clock.nowMs += deps.failedJobKeepMs
    await retryJob(deps, { jobId: id, actor: operator })
    await expireJob(deps, id)
    assert.equal(await stateOf(id), 'stored')
  })

  it('that is the only copy lasts a week and announces its end', async () => {
    const id = await failed({ source: { action: 'delete', when: 'stored' } })
    const { expiresAtMs } = await jobNow(id)
    assert.equal(expiresAtMs, ground.now() + limits.onlyCopyKeepMs)
    const duties = await ground.database.read((sql) => obligationsOfJob(sql, id))
    const notice = duties.find((one) => one.kind === 'job.expiry-notice')
    assert.equal(notice?.nextTryAtMs, expiresAtMs - limits.onlyCopyNoticeMs)
    await noticeExpiry(deps, id)
    const told = (await commandsFor(capture)).filter((one) => one.type === 'job.notice')
    assert.deepEqual(
      told.map((one) => one.type === 'job.notice' && one.expiresAtMs),
      [expiresAtMs],
    )
  })

  it('is deleted on an operator’s word, once', async () => {
    const id = await failed()
    await deleteJob(deps, { jobId: id, actor: operator })
    await refused(deleteJob(deps, { jobId: id, actor: operator }), 'request.conflict')
    assert.equal((await owed(id))['job.expire'], 'done')
  })
})

describe('abandoning and holding', () => {
  it('deletes what a capture host cannot finish', async () => {
    const id = await announced()
    assert.deepEqual(await ask(capture, 'job.abandon', { jobId: id, problem: never }), {
      state: 'deleting',
    })
    assert.equal((await jobNow(id)).problemCode, 'seal.tampered')
  })

  it('leaves a stored job to the control plane', async () => {
    const id = await stored()
    assert.deepEqual(await ask(capture, 'job.abandon', { jobId: id, problem: never }), {
      state: 'stored',
    })
  })

  it('freezes the jobs of a revoked capture host without destroying any', async () => {
    const uploading = await announced()
    await ask(capture, 'upload.begin', { jobId: uploading })
    const waiting = await stored()
    const { jobId: running } = await leased()
    await ground.database.write((tx) =>
      holdJobsOf(deps, tx, { agentId: capture.id, actor: operator }),
    )
    await abortUploadsOf(deps, capture.id)
    const ids = [uploading, waiting, running]
    assert.deepEqual(await Promise.all(ids.map(stateOf)), ['frozen', 'frozen', 'frozen'])
    assert.equal(deps.store.uploads.size, 0)
    assert.equal((await leaseNow(running))?.endReason, 'revoked')
    await dispatch()
    assert.equal(await stateOf(waiting), 'frozen')
    await releaseJob(deps, { jobId: running, actor: operator })
    assert.equal(await stateOf(running), 'stored')
    await deleteJob(deps, { jobId: uploading, actor: operator })
    assert.equal(await stateOf(uploading), 'deleting')
  })

  it('takes the leases of a revoked node back at once', async () => {
    const ref = await leased()
    await ground.database.write((tx) => holdJobsOf(deps, tx, { agentId: node.id, actor: operator }))
    assert.equal(await stateOf(ref.jobId), 'stored')
    await refused(ask(node, 'object.read', ref), 'lease.stale')
  })
})

describe('whatever happens in whatever order', () => {
  it('never leaves the table, never lowers a fence, never leases twice', async () => {
    const events = [
      'begin',
      'complete',
      'dispatch',
      'accept',
      'key',
      'beat',
      'result',
      'old result',
      'fail later',
      'fail never',
      'decline',
      'wait',
      'wait long',
      'retry',
      'abandon',
      'hold',
      'release',
      'legal hold',
      'lift',
      'expire',
      'delete',
    ] as const
    const attempt = (work: Promise<unknown>) =>
      work.catch((error: unknown) => assert.ok(isSluiceError(error), String(error)))

    for (let seed = 1; seed <= 40; seed += 1) {
      const script = scriptOf(events, seed)
      const where = `seed ${seed}: ${script.join(', ')}`
      const id = await announced()
      const refs: LeaseRef[] = []
      let { fence } = await jobNow(id)
      for (const event of ['begin', 'complete', ...script] as const) {
        const ref = refs.at(-1) ?? {
          jobId: id,
          leaseId: newId(leaseId, ground.now()),
          fence: 1,
        }
        const give = { ...ref, sealedResultSha256 }
        switch (event) {
          case 'begin':
            await attempt(ask(capture, 'upload.begin', { jobId: id }))
            break
          case 'complete': {
            const etag = await putPart(id)
            const parts = [{ part: 1, etag }]
            await attempt(ask(capture, 'upload.complete', { jobId: id, parts }))
            break
          }
          case 'dispatch':
            await dispatch()
            break
          case 'accept':
            await attempt(ask(node, 'lease.accept', ref))
            break
          case 'key':
            await attempt(ask(node, 'key.request', { ...ref, publicKey: 'A'.repeat(1622) }))
            break
          case 'beat':
            await renewLeases(deps, node, { type: 'heartbeat', atMs: 0, leases: [ref] })
            break
          case 'result':
            await attempt(ask(node, 'lease.result', give, sealed))
            break
          case 'old result':
            if (refs.length > 1)
              await refused(
                ask(node, 'lease.result', { ...refs[0]!, sealedResultSha256 }, sealed),
                'lease.stale',
              )
            break
          case 'fail later':
            await attempt(ask(node, 'lease.fail', { ...ref, problem: later }))
            break
          case 'fail never':
            await attempt(ask(node, 'lease.fail', { ...ref, problem: never }))
            break
          case 'decline':
            await attempt(ask(node, 'lease.decline', { ...ref, problem: later }))
            break
          case 'wait':
            ground.clock.nowMs += 10_000
            break
          case 'wait long':
            ground.clock.nowMs += limits.leaseMs + limits.leaseGraceMs
            break
          case 'retry':
            await attempt(retryJob(deps, { jobId: id, actor: operator }))
            break
          case 'abandon':
            await attempt(ask(capture, 'job.abandon', { jobId: id, problem: never }))
            break
          case 'hold':
            await unlessDecided(
              ground.database.write((tx) =>
                holdJobsOf(deps, tx, { agentId: capture.id, actor: operator }),
              ),
            )
            break
          case 'legal hold':
            await attempt(holdJob(deps, { jobId: id, principalId: someone, reason: 'a case' }))
            break
          case 'lift':
            await attempt(lifted(id))
            break
          case 'release':
            await attempt(releaseJob(deps, { jobId: id, actor: operator }))
            break
          case 'expire':
            await expireJob(deps, id)
            break
          case 'delete':
            await attempt(deleteJob(deps, { jobId: id, actor: operator }))
            break
        }
        const job = await jobNow(id)
        const leases = await ground.database.read((sql) => leasesOfJob(sql, id))
        const open = leases.filter((lease) => lease.endedAtMs === null)
        if (job.heldAtMs !== null)
          assert.ok(job.state === 'frozen' || job.state === 'lost', `a held job rests, ${where}`)
        assert.ok(job.fence >= fence, `the fence never falls, ${where}`)
        assert.ok(open.length <= 1, `at most one lease holds, ${where}`)
        assert.equal(
          open.length === 1,
          job.state === 'leased',
          `a lease holds a leased job, ${where}`,
        )
        assert.equal(new Set(leases.map((lease) => lease.fence)).size, leases.length)
        const wipes = (await ground.database.read((sql) => obligationsOfJob(sql, id))).filter(
          (one) => one.kind === 'lease.wipe',
        )
        assert.equal(wipes.length, leases.length, 'every lease owes its wipe')
        if (leases.length > refs.length)
          refs.push(
            ...leases
              .slice(refs.length)
              .map((lease) => ({ jobId: id, leaseId: lease.id, fence: lease.fence })),
          )
        fence = job.fence
      }
      // The next script starts with free nodes.
      await attempt(lifted(id))
      await attempt(deleteJob(deps, { jobId: id, actor: operator }))
      for (const ref of refs)
        await ground.database.write((tx) => markLeaseWiped(tx, ref.leaseId, ground.now()))
      await followsTable(id)
    }
    assert.equal((await verifyAudit(ground.database)).whole, true)
  })

  const someone = newId(principalId, 1)
  const lifted = (id: JobId) =>
    ground.database.write((tx) =>
      liftHold(deps, tx, {
        approvalId: newId(approvalId, ground.now()),
        operation: { kind: 'hold.lift', jobId: id },
        askedBy: someone,
        askedAtMs: ground.now(),
        approvedBy: newId(principalId, 2),
        reason: 'closed',
        atMs: ground.now(),
      }),
    )

  /** 5 to 30 events by a small generator (mulberry32), the same ones for a seed every time. */
  function scriptOf<T>(choices: readonly T[], seed: number): T[] {
    let mixed = seed
    const below = (bound: number) => {
      mixed = (mixed + 0x6d2b79f5) | 0
      let value = Math.imul(mixed ^ (mixed >>> 15), 1 | mixed)
      value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value
      return Math.floor((((value ^ (value >>> 14)) >>> 0) / 2 ** 32) * bound)
    }
    return Array.from({ length: 5 + below(26) }, () => choices[below(choices.length)]!)
  }

  /** Every change is in the audit log, and each starts where the one before ended. */
  async function followsTable(id: JobId) {
    const events = await listAudit(ground.database, { jobId: id, afterSeq: 0, items: 500 })
    let at: unknown
    for (const { type, detail } of events) {
      if (type !== 'job.state-changed') continue
      if (at !== undefined) {
        assert.equal(detail['from'], at)
        assert.ok(mayBecome(detail['from'] as never, detail['to'] as never), JSON.stringify(detail))
      }
      at = detail['to']
    }
    assert.equal(at, await stateOf(id))
  }
})
