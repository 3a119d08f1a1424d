/** Proves when an old authority is retired by itself: not before those that can adopt the new one have. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it, type TestContext } from 'node:test'
import { revocationId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import type { Obligation } from '../deletion/rules.ts'
import { addObligation, markDone, obligationById } from '../deletion/store.ts'
import { joined, testGround } from '../doubles.ts'
import { retireInTime, type RotationDeps } from './authority.ts'
import { adoptersOf } from './store.ts'

const tenMinutesMs = 600_000

async function world(t: TestContext) {
  const ground = await testGround()
  t.after(() => ground[Symbol.asyncDispose]())
  const { database, changes, now } = ground
  const agent = await joined(ground, 'capture')
  const subjectId = newId(revocationId, now())
  const owe = { subjectId, site: '*', state: 'due', atMs: now() } as const
  const id = await database.write(async (tx) => {
    await addObligation(tx, { ...owe, kind: 'authority.adopt', agentId: agent.id }, changes)
    const deadlineAtMs = now() + tenMinutesMs
    return addObligation(tx, { ...owe, kind: 'authority.retire', deadlineAtMs }, changes)
  })
  const duty = (await database.read((sql) => obligationById(sql, id))) as Obligation
  const connected = { agent: false }
  let retired = 0
  const processNow = (): RotationDeps => ({
    ...{ database, changes, now },
    authority: {
      certificates: [randomBytes(9), randomBytes(9)],
      sha256: '0'.repeat(64),
      retire: async () => void (retired += 1),
    } as never,
    recertify: async () => undefined,
    isConnected: () => connected.agent,
  })
  const adopt = async () => {
    const [owed] = await database.read((sql) => adoptersOf(sql, subjectId))
    await database.write((tx) => markDone(tx, owed!.obligationId, now()))
  }
  return { ground, duty, connected, processNow, adopt, retired: () => retired }
}

describe('an old authority that retires by itself', () => {
  it('waits for agents that lost their link a moment ago, as all have at a start', async (t) => {
    const { ground, duty, connected, processNow, retired } = await world(t)
    let deps = processNow()
    connected.agent = true
    await retireInTime(deps, duty)
    connected.agent = false
    await retireInTime(deps, duty)
    ground.clock.nowMs += 2 * limits.reconnectMsMax - 1
    await retireInTime(deps, duty)
    deps = processNow()
    ground.clock.nowMs += 1
    await retireInTime(deps, duty)
    assert.equal(retired(), 0, 'a new process gives them their time again')
    ground.clock.nowMs += 2 * limits.reconnectMsMax
    assert.equal(await retireInTime(deps, duty), 'settled')
    assert.equal(retired(), 1, 'control: who stays away is given up')
  })

  it('does so at once when nobody owes anything, and in the end over everybody', async (t) => {
    const first = await world(t)
    await first.adopt()
    assert.equal(await retireInTime(first.processNow(), first.duty), 'settled')
    assert.equal(first.retired(), 1)
    const second = await world(t)
    second.connected.agent = true
    const deps = second.processNow()
    second.ground.clock.nowMs += tenMinutesMs - 1
    assert.notEqual(await retireInTime(deps, second.duty), 'settled')
    second.ground.clock.nowMs += 1
    assert.equal(await retireInTime(deps, second.duty), 'settled')
    assert.equal(second.retired(), 1)
  })
})
