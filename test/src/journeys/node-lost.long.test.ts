/**
 * A GPU node that goes away and says nothing more. Its lease runs out by the clock, another node goes
 * on under a higher fence, and the job is not `deleted` before the lost one is back and has confirmed.
 */

import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'

import { lookAtHost } from '../demo/host.ts'
import { connectByHand, joinByHand, offerOf } from '../tools/fake-agent.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { makeGatedAnalyser } from '../tools/gated-analyser.ts'
import type { GatedAnalyser } from '../tools/gated-analyser.ts'
import { detailOf, proveDeleted } from '../tools/journey.ts'
import { keyQuestion, sealResult, sendResult, takeLease } from '../tools/leased-job.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'
import { openTls } from '../tools/raw-tls.ts'

/** A lease, its grace, and as much again for a busy machine. */
const leaseOverMs = 2 * (limits.leaseMs + limits.leaseGraceMs)

describe('a GPU node that never says goodbye', { timeout: 600_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let lost: FleetAgent
  let gate: GatedAnalyser
  let config: Record<string, unknown>
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    fleet = cleanup.use(await startFleet({ name: 'lost', controlPlane: { allowSwap: host.swap } }))
    config = { isolation: host.isolation, allowSwap: host.swap }
    capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    await capture.start()
    gate = await makeGatedAnalyser(join(fleet.root, 'gate'))
    const analysers = { analysers: [gate.config], exampleAnalyser: false }
    lost = await fleet.addAgent({ name: 'lost', role: 'gpu', config: { ...config, ...analysers } })
  })
  after(() => cleanup.disposeAsync())

  async function newJob(name: string, analyser: string): Promise<JobId> {
    const file = await makePicture(join(fleet.root, 'tmp'), name)
    const [jobId] = await submitEach(capture, [file], analyser)
    assert.ok(jobId)
    return jobId
  }

  it('loses its lease by the clock, and keeps the certificate away until it is back', async () => {
    const jobId = await newJob('lost', 'gated')
    await lost.start()
    await waitFor('the key to be out', 60_000, async () => {
      const { leases } = await detailOf(fleet, jobId)
      return leases[0]?.keyReleasedAtMs === undefined ? undefined : true
    })
    await lost.kill9()
    const analysers = { analysers: [gate.config], exampleAnalyser: false }
    const second = await fleet.addAgent({
      ...{ name: 'second', role: 'gpu' },
      config: { ...config, ...analysers },
    })
    await gate.open('well')
    await second.start()
    const waiting = await detailOf(fleet, jobId)
    assert.deepEqual([waiting.state, waiting.leases.length], ['leased', 1])

    await fleet.waitForState(jobId, ['deleting'], leaseOverMs)
    const detail = await waitFor('all but the lost one to confirm', 60_000, async () => {
      const now = await detailOf(fleet, jobId)
      return now.obligations.filter((one) => one.state !== 'done').length <= 2 ? now : undefined
    })
    const [dead, living] = detail.leases.toSorted((one, other) => one.fence - other.fence)
    assert.ok(dead && living)
    assert.equal(dead.endReason, 'expired')
    assert.ok((dead.endedAtMs ?? 0) >= dead.deadlineAtMs + limits.leaseGraceMs)
    assert.ok(living.grantedAtMs >= (dead.endedAtMs ?? Infinity))
    assert.deepEqual([living.nodeId, living.fence], [second.id, dead.fence + 1])
    assert.equal(dead.wipedAtMs, undefined)
    const owed = detail.obligations.filter((one) => one.state !== 'done')
    assert.deepEqual(owed.map(({ kind }) => kind).toSorted(), ['certificate.issue', 'lease.wipe'])
    assert.equal((await fleet.call(`/v1/jobs/${jobId}/certificate`)).status, 404)

    await lost.start()
    const { detail: deleted } = await proveDeleted(fleet, jobId)
    assert.ok(deleted.leases.every((lease) => lease.wipedAtMs !== undefined))
  })

  it('gets nothing for a lease that it did not renew, though it is connected all the time', async () => {
    const identity = await joinByHand(fleet, { name: 'mute', role: 'gpu' })
    await using node = await connectByHand(identity, { offer: offerOf('by-hand') })
    const jobId = await newJob('mute', 'by-hand')
    const held = await takeLease(node, jobId)
    const late = sealResult(held, { signer: identity })
    // Heartbeats go on, and name nothing. It has not wiped, so it is another one's turn.
    node.leases = []
    const other = await joinByHand(fleet, { name: 'heir', role: 'gpu' })
    await using heir = await connectByHand(other, { offer: offerOf('by-hand') })
    const again = await waitFor('the next lease', leaseOverMs, async () => {
      const { leases } = await detailOf(fleet, jobId)
      return leases.find(({ fence }) => fence > held.ref.fence)
    })
    assert.equal(again.nodeId, heir.identity.agentId)
    for (const refused of [
      await sendResult(node, held.ref, late),
      await node.request('key.request', keyQuestion(held.ref)),
      await node.request('object.read', held.ref),
    ])
      assert.equal(refused.problem?.code, 'lease.stale')
  })

  it('is not to be confused with one that is slow: connections that say nothing are cut', async () => {
    const identity = await joinByHand(fleet, { name: 'slow', role: 'gpu' })
    const { port } = new URL(fleet.controlPlane.agentUrl)
    const at = { host: '127.0.0.1', port: Number(port), servername: 'localhost' }
    const sockets = await Promise.all(
      Array.from({ length: 20 }, () => openTls({ ...at, ...identity.tlsOptions() })),
    )
    for (const socket of sockets) socket.write('GET /v1/nothing HTTP/1.1\r\nhost: local')
    await waitFor('all of them to be closed', 120_000, async () => {
      for (const socket of sockets) socket.resume()
      return sockets.every((socket) => socket.closed) ? true : undefined
    })
    await using silent = await connectByHand(identity, { hello: null })
    await silent.ended
  })
})
