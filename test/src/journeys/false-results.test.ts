/**
 * Results of the wrong making: too late, from another node, or not signed by the lease holder. The
 * node here is moved by hand; control plane and capture host are the real ones.
 */

import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { makeAuthority } from '@sluice/agent/throwaway-authority'
import type { NodeIdentity } from '@sluice/agent/analysis/confirm'
import type { RenewableIdentity } from '@sluice/agent/enrol'
import type { JobId } from '@sluice/protocol/ids'
import { keyIdOf } from '@sluice/protocol/sealing/dsse'

import { lookAtHost } from '../demo/host.ts'
import { connectByHand, joinByHand, offerOf } from '../tools/fake-agent.ts'
import type { HandDriven } from '../tools/fake-agent.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import {
  good,
  keyQuestion,
  readGrant,
  refOf,
  sealResult,
  sendResult,
  takeLease,
} from '../tools/leased-job.ts'
import type { HeldLease, ResultParts } from '../tools/leased-job.ts'
import { makePicture, submissionsOf, submitEach } from '../tools/pictures.ts'

describe('a node that does not play by the rules', { timeout: 110_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let node: HandDriven
  let other: RenewableIdentity
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    fleet = cleanup.use(await startFleet({ name: 'false', controlPlane: { allowSwap: host.swap } }))
    const config = { isolation: host.isolation, allowSwap: host.swap }
    capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    await capture.start()
    const holder = await joinByHand(fleet, { name: 'node', role: 'gpu' })
    other = await joinByHand(fleet, { name: 'other', role: 'gpu' })
    const right = { body: { leasesMax: 16 } }
    for (const { agentId } of [holder, other]) await fleet.ask(`/v1/agents/${agentId}`, right)
    node = cleanup.use(await connectByHand(holder, { offer: offerOf('by-hand') }))
  })
  after(() => cleanup.disposeAsync())

  async function newJob(name: string): Promise<JobId> {
    const file = await makePicture(join(fleet.root, 'tmp'), name)
    const [jobId] = await submitEach(capture, [file], 'by-hand')
    assert.ok(jobId)
    return jobId
  }

  function resultFile(jobId: JobId): string {
    return join(capture.resultsDirectory, `${jobId}.json`)
  }

  it('gets nothing for an old fence, and its late result is refused', async () => {
    const jobId = await newJob('late')
    const first = await takeLease(node, jobId)
    const late = sealResult(first, { signer: node.identity })
    const problem = { code: 'analysis.failed', message: 'out of memory', retry: 'later' }
    good(await node.request('lease.fail', { ...first.ref, problem }))
    node.leases = []
    const second = await takeLease(node, jobId, 2)
    assert.ok(second.ref.fence > first.ref.fence)

    const refusals = [
      await sendResult(node, first.ref, late),
      await sendResult(node, { ...first.ref, fence: second.ref.fence }, late),
      await sendResult(node, { ...second.ref, fence: first.ref.fence }, late),
      await node.request('key.request', keyQuestion(first.ref)),
      await node.request('object.read', first.ref),
      await node.request('lease.accept', first.ref),
    ]
    for (const { problem: refused } of refusals) assert.equal(refused?.code, 'lease.stale')
    node.leases = [first.ref, second.ref]
    const { leases } = await node.beat()
    assert.deepEqual(leases.map(refOf), [second.ref])
    assert.equal((await fleet.waitForState(jobId, ['leased'])).state, 'leased')

    // The control: the same node, the same job, the lease that holds.
    const grant = await node.request('object.read', second.ref)
    good(await sendResult(node, second.ref, sealResult(second, { signer: node.identity })))
    await waitFor('the result', 20_000, () => textOf(resultFile(jobId)))

    const { body } = grant as { body: { grant: Parameters<typeof readGrant>[1] } }
    const afterwards = [
      await node.request('key.request', keyQuestion(second.ref)),
      await node.request('object.read', second.ref),
    ]
    for (const { problem: refused } of afterwards) assert.equal(refused?.code, 'lease.stale')
    await waitFor('the object to be gone', 20_000, async () =>
      (await readGrant(node, body.grant, 56)).status === 404 ? true : undefined,
    )
  })

  it('cannot use the lease of another node, whose key stays out of its reach', async () => {
    const jobId = await newJob('foreign')
    const held = await takeLease(node, jobId)
    await using thief = await connectByHand(other, { offer: offerOf() })
    const sealed = sealResult(held, { signer: other })
    const refusals = [
      await thief.request('key.request', keyQuestion(held.ref)),
      await thief.request('object.read', held.ref),
      await sendResult(thief, held.ref, sealed),
      await thief.request('lease.accept', held.ref),
    ]
    for (const { problem } of refusals) assert.equal(problem?.code, 'lease.stale')
    const problem = { code: 'analysis.failed', message: 'not mine', retry: 'never' }
    const failed = await thief.request('lease.fail', { ...held.ref, problem })
    assert.equal(failed.problem?.code, 'lease.stale')
    thief.leases = [held.ref]
    assert.deepEqual((await thief.beat()).leases, [])
    // The control: the holder is not disturbed by any of it.
    good(await node.request('key.request', keyQuestion(held.ref)))
    good(await sendResult(node, held.ref, sealResult(held, { signer: node.identity })))
    await fleet.waitForState(jobId, ['deleting', 'deleted'])
  })

  it('cannot make a capture host keep a result that the lease holder did not sign', async () => {
    const forgeries = await makeForgeries({ node: node.identity, other, capture })
    const names = [...Object.keys(forgeries), 'good']
    const files = await Promise.all(
      names.map((name) => makePicture(join(fleet.root, 'tmp'), `forged-${name}`)),
    )
    const jobs = await submitEach(capture, files, 'by-hand')
    const kept = (await readdir(capture.resultsDirectory)).length
    let earlier: HeldLease | undefined
    for (const [index, name] of names.entries()) {
      const held = await takeLease(node, jobs[index] as JobId)
      const parts = forgeries[name]?.(earlier ?? held) ?? { signer: node.identity }
      good(await sendResult(node, held.ref, sealResult(held, parts)))
      earlier = held
    }
    const goodJob = jobs.at(-1) as JobId
    const text = await waitFor('the good result', 20_000, () => textOf(resultFile(goodJob)))
    assert.equal((JSON.parse(text) as { nodeId: string }).nodeId, node.identity.agentId)
    const views = await waitFor('every forgery to be noticed', 20_000, async () => {
      const all = await submissionsOf(capture)
      const forged = jobs.slice(0, -1).map((id) => all.find((view) => view.jobId === id))
      return forged.every((view) => view?.problem !== undefined) ? forged : undefined
    })
    for (const [index, view] of views.entries()) {
      const name = names[index] ?? ''
      assert.equal(view?.problem?.code, 'result.forged', `${name}: ${JSON.stringify(view)}`)
      assert.equal(view.resultPath, undefined, name)
    }
    // Nothing else was written there, not for a moment's name either.
    assert.equal((await readdir(capture.resultsDirectory)).length, kept + 1)
    for (const jobId of jobs.slice(0, -1)) {
      const job = await fleet.waitForState(jobId, ['deleting'])
      assert.equal((job['result'] as { deliveredAtMs?: number }).deliveredAtMs, undefined)
    }
  })
})

async function textOf(path: string): Promise<string | undefined> {
  return await readFile(path, 'utf8').catch(() => undefined)
}

type Forgery = (earlier: HeldLease) => ResultParts

/** All of them sealed to the right key for the right lease; each wrong in one thing. */
async function makeForgeries(who: {
  node: NodeIdentity
  other: RenewableIdentity
  capture: FleetAgent
}): Promise<Record<string, Forgery>> {
  const { node, other } = who
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  const authority = await makeAuthority()
  const impostor = await authority.identity({
    agentUrl: 'https://localhost:1',
    role: 'gpu',
    id: node.agentId,
  })
  return {
    'another key': () => ({ signer: { ...node, privateKey, keyId: keyIdOf(publicKey) } }),
    'another node under the name of the holder': () => ({
      signer: { ...other, agentId: node.agentId },
    }),
    'an authority of nobody': () => ({ signer: impostor }),
    'another archive': () => ({ signer: node, sealedHeaderSha256: 'ab'.repeat(32) }),
    'another job': (earlier) => ({ signer: node, ref: earlier.ref }),
    'another result': () => ({
      signer: node,
      swapFor: Buffer.from('{"schema":"sluice-result/1","analyser":"by-hand","media":[]}'),
    }),
  }
}
