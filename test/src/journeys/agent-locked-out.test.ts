/**
 * Agents learn that they are revoked and take themselves out: leases are wiped, sealed spools stay,
 * and nobody starts them again.
 */

import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import type { JobId } from '@sluice/protocol/ids'

import { lookAtHost } from '../demo/host.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { makeGatedAnalyser } from '../tools/gated-analyser.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'
import { descendantsOf, isAlive } from '../tools/process-family.ts'

const waitMsMax = 60_000

describe('an agent that is revoked', { timeout: 110_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let node: FleetAgent
  let other: FleetAgent
  let job: JobId
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    fleet = cleanup.use(await startFleet({ name: 'out', controlPlane: { allowSwap: host.swap } }))
    const config = { isolation: host.isolation, allowSwap: host.swap }
    const gate = await makeGatedAnalyser(join(fleet.root, 'gate'), 'stdin')
    const analysers = [{ ...gate.config, name: 'gated' }]
    capture = await fleet.addAgent({
      ...{ name: 'capture', role: 'capture' },
      config: { ...config, analyser: 'gated' },
    })
    node = await fleet.addAgent({ name: 'node', role: 'gpu', config: { ...config, analysers } })
    other = await fleet.addAgent({ name: 'other', role: 'gpu', config })
    for (const each of [capture, node, other]) await each.start()
    const picture = await makePicture(fleet.root, 'picture')
    ;[job] = (await submitEach(capture, [picture])) as [JobId]
  })
  after(() => cleanup.disposeAsync())

  const revoke = (agent: FleetAgent) =>
    fleet.ask(`/v1/agents/${agent.id}/revoke`, { role: 'security', body: {} })
  const end = (agent: FleetAgent) =>
    waitFor(`${agent.name} to end`, waitMsMax, async () => !agent.isRunning || undefined)

  it('ends its leases and leaves nothing of them, on a node', async () => {
    const family = await waitFor('an analysis under way', waitMsMax, async () => {
      const now = descendantsOf(node.pid)
      return now.length >= 2 && (await readdir(join(node.stateDirectory, 'run'))).length === 1
        ? now
        : undefined
    })
    await revoke(node)
    await end(node)
    assert.ok(family.length > 0 && !family.some(isAlive), 'its family is dead')
    assert.deepEqual(await readdir(join(node.stateDirectory, 'run')), [])
    assert.match(node.output, /agent\.locked_out/)
    assert.ok(other.isRunning && capture.isRunning, 'the control: nobody else ends')
  })

  it('keeps its sealed spools, on a capture host', async () => {
    await revoke(capture)
    await end(capture)
    assert.deepEqual(await readdir(join(capture.stateDirectory, 'spool')), [job])
  })

  it('says so to whoever asks, and stays out', async () => {
    for (const agent of [node, capture]) {
      const asked = await agent.command(['status'])
      assert.equal(asked.code, 3)
      assert.match(asked.stderr, /identity\.revoked/)
      await assert.rejects(agent.start(), /ended with 77/)
    }
    assert.equal((await other.command(['status'])).code, 0, 'the control')
  })
})
