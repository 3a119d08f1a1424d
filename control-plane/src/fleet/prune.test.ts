import assert from 'node:assert/strict'
import { describe, it, type TestContext } from 'node:test'
import { type CommandId, jobId, obligationId, purgeId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { commands } from '../database/schema.ts'
import { addObligation, markDone } from '../deletion/store.ts'
import { joined, testGround } from '../doubles.ts'
import { pruneCommands } from './prune.ts'
import { acknowledge, cancelCommands, enqueueCommand } from './store.ts'

async function world(t: TestContext) {
  const ground = await testGround()
  t.after(() => ground[Symbol.asyncDispose]())
  const agent = await joined(ground, 'capture')
  const { database, changes, now, clock } = ground
  const order = () => {
    clock.nowMs += 1
    const command = { type: 'job.notice', jobId: newId(jobId, now()), state: 'stored' } as const
    const given = { agentId: agent.id, lane: 'work', command, atMs: now() } as const
    return database.write((tx) => enqueueCommand(tx, given, changes))
  }
  const rows = () => database.read((sql) => sql.select().from(commands))
  const ack = async (id: CommandId) => {
    const row = (await rows()).find((one) => one.id === id)
    assert(row)
    const said = { agentId: agent.id, seq: row.seq, commandId: id, atMs: now() }
    await database.write((tx) => acknowledge(tx, said))
  }
  const duty = async (commandId: CommandId, kind: 'purge.agent' | 'authority.adopt') => {
    const id = newId(obligationId, now())
    const about = { id, kind, subjectId: newId(purgeId, now()), site: 'north' } as const
    await database.write((tx) =>
      addObligation(tx, { ...about, commandId, state: 'due', atMs: now() }, changes),
    )
    return id
  }
  const left = async () => (await rows()).map(({ id }) => id)
  return { ...ground, agent, order, ack, duty, left, prune: () => pruneCommands(ground) }
}

describe('rows of orders', () => {
  it('go a week after their end, and not before', async (t) => {
    const { order, ack, left, prune, clock, database, agent } = await world(t)
    const acked = await order()
    await ack(acked)
    const withdrawn = await order()
    await database.write((tx) =>
      cancelCommands(tx, { agentId: agent.id, atMs: clock.nowMs, matches: () => true }),
    )
    const open = await order()
    clock.nowMs += limits.commandKeepMs
    const late = await order()
    await ack(late)
    assert.equal(await prune(), 2)
    assert.deepEqual(await left(), [open, late])
    await ack(open)
    assert.equal(await prune(), 0, 'its end was only now')
    clock.nowMs += limits.commandKeepMs + 1
    assert.equal(await prune(), 2)
    assert.deepEqual(await left(), [])
    assert(acked !== withdrawn)
  })

  it('stay while an open duty names them, and for good where a receipt is over them', async (t) => {
    const { order, ack, duty, left, prune, clock, database } = await world(t)
    const [named, purged, free] = [await order(), await order(), await order()]
    for (const id of [named, purged, free]) await ack(id)
    const owed = await duty(named, 'authority.adopt')
    const confirmed = await duty(purged, 'purge.agent')
    await database.write((tx) => markDone(tx, confirmed, clock.nowMs))
    clock.nowMs += limits.commandKeepMs + 1
    assert.equal(await prune(), 1)
    assert.deepEqual(await left(), [named, purged])
    await database.write((tx) => markDone(tx, owed, clock.nowMs))
    assert.equal(await prune(), 1)
    assert.deepEqual(await left(), [purged])
  })

  it('are gone through page by page, past those that stay', async (t) => {
    const { order, ack, left, prune, clock } = await world(t)
    const first = await order()
    const many = limits.commandPageRows * 2
    for (let index = 0; index < many; index += 1) {
      const id = await order()
      if (index % 2 === 0) await ack(id)
    }
    clock.nowMs += limits.commandKeepMs + 1
    assert.equal(await prune(), many / 2)
    const kept = await left()
    assert.equal(kept.length, many / 2 + 1)
    assert(kept.includes(first))
  })
})
