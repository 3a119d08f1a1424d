/** Proves that dispatch wakes by itself: on signals, on time, and never two passes at once. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { type AgentId, jobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { objectKeyFrom } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import { jobKeys } from '../database/schema.ts'
import { writeRetryMs } from '../database/write-failure.ts'
import { onDisk } from '../database/full-disk.test-setup.ts'
import { joined, type TestAgent, type TestGround } from '../doubles.ts'
import { testGround, testJobDeps } from '../doubles.ts'
import { startDispatch } from './dispatch.ts'
import { addJob, jobById, leasesOfJob } from './store.ts'

let ground: TestGround
let deps: Awaited<ReturnType<typeof testJobDeps>>
let capture: TestAgent
let node: TestAgent
let online: AgentId[]

beforeEach(async () => {
  ground = await testGround()
  deps = await testJobDeps(ground)
  capture = await joined(ground, 'capture')
  node = await joined(ground, 'gpu', {
    leasesMax: 1,
    offer: {
      analysers: [{ name: 'faces', version: '1' }],
      leasesMax: 1,
      memoryLevel: 'no-swap',
      isolation: 'bubblewrap',
    },
  })
  online = []
})
afterEach(() => ground[Symbol.asyncDispose]())

async function stored() {
  const id = newId(jobId, ground.now())
  await ground.database.write(async (tx) => {
    await addJob(tx, {
      id,
      site: 'north',
      captureAgentId: capture.id,
      analyser: 'faces',
      state: 'stored',
      mediaCount: 1,
      sealedBytes: 100,
      sealedHeader: randomBytes(56),
      sealedHeaderSha256: randomBytes(32).toString('hex'),
      spoolSha256: randomBytes(32).toString('hex'),
      source: { action: 'keep', when: 'result' },
      objectKey: objectKeyFrom(randomBytes(16)),
      sealedAtMs: ground.now(),
      announcedAtMs: ground.now(),
      storedAtMs: ground.now(),
      stateChangedAtMs: ground.now(),
    })
    const epoch = await tx.sql.query.epochs.findFirst()
    assert.ok(epoch)
    await tx.sql.insert(jobKeys).values({ jobId: id, epochId: epoch.id, wrapped: randomBytes(60) })
  })
  return id
}

function start() {
  return startDispatch({ ...deps, connected: () => online })
}

describe('dispatch', () => {
  it('takes up at start what an earlier process left', async () => {
    online = [node.id]
    const id = await stored()
    const changed = once(ground.changes, 'job')
    await using running = new AsyncDisposableStack()
    running.use(start())
    assert.deepEqual(await changed, [id])
  })

  it('wakes when a node comes, and when a job is stored', async () => {
    const first = await stored()
    await using running = new AsyncDisposableStack()
    running.use(start())
    online = [node.id]
    let changed = once(ground.changes, 'job')
    ground.changes.emit('agent', node.id)
    assert.deepEqual(await changed, [first])
    await ground.database.write(async () => undefined)
    const other = await joined(ground, 'gpu', { leasesMax: 1, offer: await offerOf() })
    online.push(other.id)
    const second = await stored()
    changed = once(ground.changes, 'job')
    ground.changes.emit('obligation')
    assert.deepEqual(await changed, [second])
  })

  it('wakes by the clock when a lease is over', async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] })
    online = [node.id]
    const id = await stored()
    const granted = once(ground.changes, 'job')
    await using running = new AsyncDisposableStack()
    running.use(start())
    await granted
    online = []
    ground.clock.nowMs += limits.leaseMs + limits.leaseGraceMs
    const expired = once(ground.changes, 'job')
    // The pass that granted the lease may still be setting its timer.
    const nudge = setInterval(() => t.mock.timers.tick(15_000), 1)
    await expired
    clearInterval(nudge)
    const job = await ground.database.read((sql) => jobById(sql, id))
    assert.equal(job?.state, 'stored')
  })

  it('waits while the disk is full, and leases when there is room', async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] })
    online = [node.id]
    const id = await stored()
    const { disk, database } = onDisk(ground.database)
    disk.full = true
    let refused = 0
    const write: typeof database.write = (change) => {
      refused += disk.full ? 1 : 0
      return database.write(change)
    }
    await using running = new AsyncDisposableStack()
    const full = { ...database, write }
    running.use(startDispatch({ ...deps, database: full, connected: () => online }))
    const granted = once(ground.changes, 'job')
    const nudge = setInterval(() => {
      t.mock.timers.tick(writeRetryMs)
      if (refused >= 2) disk.full = false
    }, 1)
    t.after(() => clearInterval(nudge))
    assert.deepEqual(await granted, [id])
    clearInterval(nudge)
    const leases = await ground.database.read((sql) => leasesOfJob(sql, id))
    assert.equal(leases.length, 1)
  })

  it('never runs twice at once, however often it is woken', async () => {
    online = [node.id]
    const ids = [await stored(), await stored()]
    {
      await using running = new AsyncDisposableStack()
      running.use(start())
      const changed = once(ground.changes, 'job')
      for (let woken = 0; woken < 50; woken += 1) ground.changes.emit('agent', node.id)
      await changed
    }
    const leases = await Promise.all(
      ids.map((id) => ground.database.read((sql) => leasesOfJob(sql, id))),
    )
    assert.equal(leases.flat().length, 1)
  })
})

async function offerOf() {
  const row = await ground.database.read((sql) => sql.query.agents.findMany())
  const offer = row.find((agent) => agent.id === node.id)?.offer
  assert.ok(offer)
  return offer
}
