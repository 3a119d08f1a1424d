/** Proves by exhaustion that a crash at any effect of a job's life is mended by asking again. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { type JobId, jobId, receiveKeyId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { AgentRequest, LeaseRef } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { listAudit, verifyAudit } from '../audit/store.ts'
import type { Database } from '../database/database.ts'
import { markLeaseWiped, obligationsOfJob } from '../deletion/store.ts'
import { addReceiveKey, joined, type TestAgent, testGround, testJobDeps } from '../doubles.ts'
import { openCommands } from '../fleet/store.ts'
import { dispatchOnce } from './dispatch.ts'
import { answerRequest } from './requests.ts'
import { jobById, leasesOfJob, openUpload, resultOf } from './store.ts'

const part = Buffer.alloc(40, 7)
const etag = createHash('md5').update(part).digest('hex')
const sealed = Buffer.from('a sealed result')
const sealedResultSha256 = createHash('sha256').update(sealed).digest('hex')

/** The n-th effect dies, before or after it took place: to the caller both look the same. */
type Fault = { at: number; side: 'before' | 'after'; lasting: boolean }

class Crash extends SluiceError {
  constructor() {
    super('store.unreachable', 'killed here', { retry: 'later' })
  }
}

/** Lives a job through with one fault. @returns Whether the fault was reached. */
async function liveThrough(fault: Fault): Promise<boolean> {
  await using ground = await testGround()
  const real = await testJobDeps(ground)
  let effects = 0
  let reached = false
  async function effect<T>(work: () => Promise<T>): Promise<T> {
    effects += 1
    const dies = fault.lasting
      ? effects >= fault.at && effects < fault.at + 3
      : effects === fault.at
    if (!dies) return work()
    reached = true
    if (fault.side === 'before') throw new Crash()
    await work()
    throw new Crash()
  }
  const database: Database = {
    ...ground.database,
    write: (change) => effect(() => ground.database.write(change)),
  }
  const store = {
    ...real.store,
    createUpload: (key: never) => effect(() => real.store.createUpload(key)),
    listParts: (upload: never) => effect(() => real.store.listParts(upload)),
    completeUpload: (upload: never) => effect(() => real.store.completeUpload(upload)),
    abortUpload: (upload: never) => effect(() => real.store.abortUpload(upload)),
    head: (key: never) => effect(() => real.store.head(key)),
  }
  const deps = {
    ...real,
    database,
    store,
    acceptReceipt: async () => undefined,
    renewCertificate: async () => {
      throw new Crash()
    },
  }
  const capture = await joined(ground, 'capture')
  const node = await joined(ground, 'gpu', {
    offer: {
      analysers: [{ name: 'faces', version: '1' }],
      leasesMax: 1,
      memoryLevel: 'no-swap',
      isolation: 'bubblewrap',
    },
  })
  const id = newId(jobId, ground.now())
  const announcement = {
    jobId: id,
    analyser: 'faces',
    mediaCount: 1,
    sealedBytes: part.length,
    sealedHeader: randomBytes(56).toString('base64url'),
    spoolSha256: randomBytes(32).toString('hex'),
    receiveKeyId: await addReceiveKey(ground, capture.id, newId(receiveKeyId, ground.now())),
    source: { action: 'keep', when: 'result' },
    sealedAtMs: ground.now(),
  }

  /** Asks until there is an answer, as an agent does after any failure it may try again. */
  async function again<T>(work: () => Promise<T>): Promise<T> {
    for (let tries = 0; tries < 10; tries += 1) {
      try {
        return await work()
      } catch (error) {
        if (!isSluiceError(error) || error.retry === 'never') throw error
        ground.clock.nowMs += limits.leaseMs
      }
    }
    return assert.fail('ten tries did not do')
  }
  const ask = (agent: TestAgent, request: string, body: object, attachment?: Buffer) =>
    again(() => {
      const message = { type: 'request', requestId: '', request, body } as AgentRequest
      return answerRequest(deps, agent, message, attachment)
    })

  await ask(capture, 'job.announce', announcement, Buffer.from('an envelope'))
  await again(async () => {
    await ask(capture, 'upload.begin', { jobId: id })
    if ((await jobOf(id))?.state !== 'uploading') return
    const upload = await ground.database.read((sql) => openUpload(sql, id))
    real.store.put(upload?.storeUploadId ?? '', 1, part)
    await ask(capture, 'upload.complete', { jobId: id, parts: [{ part: 1, etag }] })
  })
  assert.equal((await jobOf(id))?.state, 'stored')
  assert.equal(real.store.objects.size, 1)

  await again(async () => {
    await confirmWipes()
    await again(() => dispatchOnce({ ...deps, connected: () => [node.id] }))
    const ref = await leaseNow(id)
    if (!ref) throw new Crash()
    await tryLease(ref)
  })

  async function tryLease(ref: LeaseRef): Promise<void> {
    try {
      await ask(node, 'lease.accept', ref)
      await ask(node, 'key.request', { ...ref, publicKey: 'A'.repeat(1622) })
      await ask(node, 'lease.result', { ...ref, sealedResultSha256 }, sealed)
    } catch (error) {
      // The clock ran past the lease while it tried: the job needs another one.
      if (isSluiceError(error, 'lease.expired') || isSluiceError(error, 'lease.stale'))
        throw new Crash()
      throw error
    }
  }

  /** A node gets no more work before it has confirmed what ended. */
  async function confirmWipes(): Promise<void> {
    const leases = await ground.database.read((sql) => leasesOfJob(sql, id))
    for (const lease of leases)
      if (lease.endedAtMs !== null)
        await ground.database.write((tx) => markLeaseWiped(tx, lease.id, ground.now()))
  }

  function jobOf(job: JobId) {
    return ground.database.read((sql) => jobById(sql, job))
  }
  async function leaseNow(job: JobId): Promise<LeaseRef | undefined> {
    const lease = (await ground.database.read((sql) => leasesOfJob(sql, job))).at(-1)
    if (!lease || lease.endedAtMs !== null) return undefined
    return { jobId: job, leaseId: lease.id, fence: lease.fence }
  }

  await ask(capture, 'result.fetch', { jobId: id })
  await ask(capture, 'result.delivered', { jobId: id, sealedResultSha256 })

  assert.equal((await jobOf(id))?.state, 'deleting')
  const leases = await ground.database.read((sql) => leasesOfJob(sql, id))
  const owed = await ground.database.read((sql) => obligationsOfJob(sql, id))
  assert.equal(leases.filter((lease) => lease.endedAtMs === null).length, 0)
  assert.equal(leases.filter((lease) => lease.endReason === 'finished').length, 1)
  const count = (kind: string) => owed.filter((one) => one.kind === kind).length
  assert.equal(count('lease.wipe'), leases.length)
  for (const kind of ['spool.delete', 'object.delete', 'key.destroy', 'result.deliver'])
    assert.equal(count(kind), 1, kind)
  const told = await ground.database.read((sql) => openCommands(sql, capture.id))
  assert.deepEqual(told.map((row) => row.body.type).toSorted(), ['result.ready', 'spool.delete'])
  const result = await ground.database.read((sql) => resultOf(sql, id))
  assert.deepEqual(result?.sealed, sealed)
  assert.notEqual(result?.deliveredAtMs, null)
  assert.equal((await verifyAudit(ground.database)).whole, true)
  const events = await listAudit(ground.database, { jobId: id, afterSeq: 0, items: 500 })
  for (const state of ['announced', 'uploading', 'analysed', 'deleting']) {
    const entered = events.filter((event) => event.detail['to'] === state)
    assert.equal(entered.length, 1, `${state} was entered once`)
  }
  return reached
}

describe('a job whose n-th effect dies', () => {
  for (const side of ['before', 'after'] as const)
    for (const lasting of [false, true])
      it(`is carried to its end: ${side} the effect, ${lasting ? 'three in a row' : 'once'}`, async () => {
        let at = 1
        while (await liveThrough({ at, side, lasting })) at += 1
        assert.ok(at > 10, `${at - 1} effects were tried`)
      })
})
