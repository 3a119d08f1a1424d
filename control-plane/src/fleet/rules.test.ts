/** Proves the decisions about agents: versions, order of commands, who may run what. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { Command } from '@sluice/protocol/messages'
import {
  bucketPauseMs,
  chooseVersion,
  commandsToSend,
  freeLeases,
  mayRun,
  type MessageBucket,
  type NodeFacts,
  refillBucket,
  spendMessage,
  supersedes,
} from './rules.ts'

describe('chooseVersion', () => {
  it('takes the highest that both sides know', () => {
    assert.deepEqual(chooseVersion([1, 2, 3], [2, 3, 4]), { version: 3 })
  })
  it('names the side to upgrade when none is shared', () => {
    assert.deepEqual(chooseVersion([2, 3], [1]), { upgrade: 'agent' })
    assert.deepEqual(chooseVersion([1], [2, 3]), { upgrade: 'control plane' })
  })
})

describe('commandsToSend', () => {
  const open = [
    { seq: 1, lane: 'work' },
    { seq: 2, lane: 'control' },
    { seq: 3, lane: 'emergency' },
    { seq: 4, lane: 'work' },
    { seq: 5, lane: 'control' },
  ] as const
  const seqs = (due: { seq: number }[]) => due.map(({ seq }) => seq)

  it('orders by lane, then by number', () => {
    assert.deepEqual(seqs(commandsToSend(open, new Set(), 64)), [3, 2, 5, 1, 4])
  })
  it('sends nothing twice over one link', () => {
    assert.deepEqual(seqs(commandsToSend(open, new Set([2, 3]), 64)), [5, 1, 4])
  })
  it('keeps to the window, which holds up everything but emergencies', () => {
    assert.deepEqual(seqs(commandsToSend(open, new Set([1, 2]), 2)), [3])
    assert.deepEqual(seqs(commandsToSend(open, new Set([1]), 3)), [3, 2])
  })
})

describe('mayRun', () => {
  const node: NodeFacts = {
    role: 'gpu',
    site: 'north',
    revoked: false,
    connected: true,
    offer: {
      analysers: [{ name: 'faces', version: '1' }],
      leasesMax: 4,
      memoryLevel: 'no-swap',
      isolation: 'bubblewrap',
    },
    allowedAnalysers: null,
    leasesMax: 2,
    openLeases: 1,
  }
  const job = { site: 'north', analyser: 'faces' }

  it('lets a connected node with room run what it offers', () => {
    assert.equal(mayRun(node, job), true)
  })
  const refusals: [string, Partial<NodeFacts>][] = [
    ['a capture host', { role: 'capture' }],
    ['another site', { site: 'south' }],
    ['a revoked node', { revoked: true }],
    ['a node that is away', { connected: false }],
    ['a node without an offer', { offer: null }],
    ['an analyser the operator did not allow', { allowedAnalysers: ['voices'] }],
    ['a full node', { openLeases: 2 }],
    ['a node the operator set to nothing', { leasesMax: 0 }],
  ]
  for (const [name, change] of refusals)
    it(`refuses ${name}`, () => {
      assert.equal(mayRun({ ...node, ...change }, job), false)
    })
  it('refuses an analyser the node does not offer', () => {
    assert.equal(mayRun(node, { site: 'north', analyser: 'voices' }), false)
  })
  it('lets the offer narrow the setting and never widen it', () => {
    const offering = (leasesMax: number) => ({ ...node, offer: { ...node.offer!, leasesMax } })
    assert.equal(freeLeases({ ...offering(64), openLeases: 0 }), 2)
    assert.equal(freeLeases({ ...offering(1), openLeases: 0 }), 1)
    assert.equal(freeLeases({ ...offering(1), openLeases: 3 }), 0)
  })
})

describe('supersedes', () => {
  const jobId = '0191d1a0-0000-7000-8000-000000000001'
  const lease = (type: string, leaseId: string) => ({ type, jobId, leaseId }) as Command
  it('withdraws the offer of a lease that ended, and no other', () => {
    assert.equal(supersedes(lease('lease.end', 'a'), lease('lease.offer', 'a')), true)
    assert.equal(supersedes(lease('lease.end', 'a'), lease('lease.offer', 'b')), false)
    assert.equal(supersedes(lease('lease.offer', 'a'), lease('lease.end', 'a')), false)
  })
  it('keeps the newest notice of a job', () => {
    const notice = { type: 'job.notice', jobId } as Command
    assert.equal(supersedes(notice, notice), true)
    assert.equal(supersedes(notice, { ...notice, jobId: 'other' } as Command), false)
  })
})

describe('spendMessage', () => {
  const bounds = { perSecond: 10, burst: 2 }
  const spend = (bucket: MessageBucket, nowMs: number) => spendMessage(bucket, nowMs, bounds)
  it('allows a burst, then asks for a rest as long as the rate demands', () => {
    let bucket: MessageBucket = { tokens: 2, atMs: 0 }
    const rests = [1, 2, 3, 4].map(() => {
      bucket = spend(bucket, 0)
      return bucketPauseMs(bucket, bounds.perSecond)
    })
    assert.deepEqual(rests, [0, 0, 100, 200])
    assert.equal(bucketPauseMs(spend(bucket, 300), bounds.perSecond), 0)
  })
  it('forgives nothing that was read during a rest: time alone pays', () => {
    let bucket: MessageBucket = { tokens: 0, atMs: 0 }
    for (let read = 0; read < 100; read += 1) bucket = spend(bucket, 0)
    const rested = refillBucket(bucket, 100, bounds)
    assert.equal(bucketPauseMs(rested, bounds.perSecond), 9_900)
    assert.equal(bucketPauseMs(refillBucket(rested, 10_000, bounds), bounds.perSecond), 0)
  })
  it('never saves up more than a burst', () => {
    assert.equal(spend({ tokens: 0, atMs: 0 }, 1_000_000).tokens, 1)
  })
  it('is not moved by a clock that goes back', () => {
    assert.equal(spend({ tokens: 0, atMs: 1000 }, 0).tokens, -1)
  })
})
