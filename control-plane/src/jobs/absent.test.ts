import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it, type TestContext } from 'node:test'
import { eq } from '../database/drizzle.ts'
import { jobId, receiveKeyId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { agents, jobs } from '../database/schema.ts'
import { obligationsOfJob } from '../deletion/store.ts'
import { addReceiveKey, joined, testGround, testJobDeps } from '../doubles.ts'
import { openCommands, recordGone, recordPresent } from '../fleet/store.ts'
import { failAbsent } from './absent.ts'
import { announceJob } from './announce.ts'
import { expireJob } from './delete.ts'
import { jobById } from './store.ts'
import { beginUpload } from './upload.ts'

const absentMs = limits.offlineMsMaxDefault

async function world(t: TestContext) {
  const ground = await testGround()
  t.after(() => ground[Symbol.asyncDispose]())
  const deps = await testJobDeps(ground)
  const capture = await joined(ground, 'capture')
  const { database, clock, now } = ground
  const announced = async () => {
    clock.nowMs += 1
    const id = newId(jobId, now())
    await announceJob(
      deps,
      capture,
      {
        ...{ jobId: id, analyser: 'faces', mediaCount: 1, sealedBytes: 40, sealedAtMs: now() },
        sealedHeader: randomBytes(56).toString('base64url'),
        spoolSha256: randomBytes(32).toString('hex'),
        receiveKeyId: await addReceiveKey(ground, capture.id, newId(receiveKeyId, now())),
        source: { action: 'keep', when: 'result' },
      },
      randomBytes(1),
    )
    return id
  }
  const stateOf = async (id: Awaited<ReturnType<typeof announced>>) =>
    (await database.read((sql) => jobById(sql, id)))?.state
  const fail = () => failAbsent(deps, absentMs)
  return { ...ground, deps, capture, announced, stateOf, fail }
}

describe('jobs of a host that never comes back', () => {
  it('fail after its time, are told to it, and expire like any other', async (t) => {
    const { announced, deps, capture, stateOf, fail, clock, database } = await world(t)
    const waits = await announced()
    const uploads = await announced()
    await beginUpload(deps, capture, { jobId: uploads })
    clock.nowMs += absentMs
    assert.equal(await fail(), 1, 'the other began to upload a moment later')
    clock.nowMs += 1
    assert.equal(await fail(), 1)
    assert.deepEqual([await stateOf(waits), await stateOf(uploads)], ['failed', 'failed'])
    const orders = await database.read((sql) => openCommands(sql, capture.id))
    assert.deepEqual(
      orders.map(({ body }) => body.type),
      ['job.notice', 'job.notice'],
    )
    const owed = await database.read((sql) => obligationsOfJob(sql, uploads))
    const expire = owed.find(({ kind }) => kind === 'job.expire')
    assert.equal(expire?.nextTryAtMs, clock.nowMs + limits.failedJobKeepMsDefault)
    clock.nowMs += limits.failedJobKeepMsDefault
    await expireJob(deps, uploads)
    assert.equal(await stateOf(uploads), 'deleting')
    const due = await database.read((sql) => obligationsOfJob(sql, uploads))
    assert.equal(due.find(({ kind }) => kind === 'object.delete')?.state, 'due')
    assert.equal(await fail(), 0)
  })

  it('wait as long as it is there, or was a short while ago', async (t) => {
    const { announced, capture, stateOf, fail, clock, database } = await world(t)
    const id = await announced()
    const connected = (atMs: number) =>
      database.write(({ sql }) =>
        sql.update(agents).set({ connectedAtMs: atMs }).where(eq(agents.id, capture.id)),
      )
    await connected(clock.nowMs)
    clock.nowMs += 2 * absentMs
    assert.equal(await fail(), 0, 'connected')
    await database.write((tx) => recordPresent(tx, clock.nowMs))
    // What a crash leaves of a connection is what was last written down of it.
    await database.write(({ sql }) => sql.update(agents).set({ connectedAtMs: null }))
    clock.nowMs += absentMs
    assert.equal(await fail(), 0, 'seen since')
    await database.write((tx) => recordGone(tx, capture.id, clock.nowMs - absentMs - 1))
    assert.equal(await fail(), 1, 'the control')
    assert.equal(await stateOf(id), 'failed')
  })

  it('stay under a legal hold, and where the archive is stored', async (t) => {
    const { announced, stateOf, fail, clock, database } = await world(t)
    const [held, stored, free] = [await announced(), await announced(), await announced()]
    await database.write(async ({ sql }) => {
      await sql.update(jobs).set({ heldAtMs: clock.nowMs }).where(eq(jobs.id, held))
      await sql.update(jobs).set({ state: 'stored' }).where(eq(jobs.id, stored))
    })
    clock.nowMs += absentMs + 1
    assert.equal(await fail(), 1)
    assert.deepEqual(
      [await stateOf(held), await stateOf(stored), await stateOf(free)],
      ['announced', 'stored', 'failed'],
    )
  })
})
