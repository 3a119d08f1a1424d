/** Proves that an infected medium is told once, in its site, and that a flood of them ends. */
import assert from 'node:assert/strict'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { infectionId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { joined, type TestAgent, type TestGround, testGround } from '../doubles.ts'
import { takeInfection } from './infections.ts'
import { pageOfAlerts } from './store.ts'

let ground: TestGround
let agent: TestAgent
beforeEach(async () => {
  ground = await testGround()
  agent = await joined(ground, 'capture')
})
afterEach(() => ground[Symbol.asyncDispose]())

const found = () => ({
  infectionId: newId(infectionId, ground.now()),
  engine: 'clamd' as const,
  finding: 'Own.Eicar.UNOFFICIAL',
  foundAtMs: ground.now(),
})
const told = (sites: string[] | null = null) =>
  ground.database.read((sql) => pageOfAlerts(sql, { sites, itemsMax: 100 }))

describe('an infected medium', () => {
  it('becomes an alert of the agent’s site, with what was found and nothing that names the medium', async () => {
    const body = found()
    await takeInfection(ground, agent, body)
    const [alert] = await told([agent.site])
    assert.equal(alert?.type, 'medium.infected')
    const { infectionId: id, engine, finding, foundAtMs } = body
    assert.deepEqual(alert?.detail, {
      ...{ agentId: agent.id, infectionId: id, engine, finding, foundAtMs },
    })
    assert.deepEqual(await told(['elsewhere']), [])
  })

  it('is told once, however often the agent repeats it', async () => {
    const body = found()
    for (let times = 0; times < 3; times += 1) await takeInfection(ground, agent, body)
    assert.equal((await told()).length, 1)
  })

  it('is one of at most so many an hour from one agent; the last one says that there are more', async () => {
    const other = await joined(ground, 'capture')
    for (let count = 0; count < limits.infectedAlertsPerHourMax + 5; count += 1)
      await takeInfection(ground, agent, found())
    const alerts = await told()
    assert.equal(alerts.length, limits.infectedAlertsPerHourMax)
    assert.equal(alerts.filter(({ summary }) => summary.includes('one of many')).length, 1)
    await takeInfection(ground, other, found())
    ground.clock.nowMs += 3_600_001
    await takeInfection(ground, agent, found())
    assert.equal((await told()).length, limits.infectedAlertsPerHourMax + 2)
  })
})
