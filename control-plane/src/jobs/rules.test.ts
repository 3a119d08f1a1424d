/** Proves the decisions about uploads, leases, dispatch and keeping. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { jobStates, mayBecome } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import {
  afterLease,
  beforeDeadline,
  bytesOfPart,
  type Candidate,
  chooseNode,
  firstWrongPart,
  freezableStates,
  isCurrent,
  isOnlyCopy,
  keepUntil,
  leasableAtMs,
  leaseDeadMs,
  partBytesFor,
  partCount,
  thawedState,
} from './rules.ts'

const MiB = 1024 * 1024

describe('parts', () => {
  it('have the default size until the store runs out of numbers', () => {
    assert.equal(partBytesFor(1), limits.partBytesDefault)
    assert.equal(partBytesFor(limits.partBytesDefault * limits.partsMax), limits.partBytesDefault)
    const larger = partBytesFor(limits.partBytesDefault * limits.partsMax + 1)
    assert.equal(larger, limits.partBytesDefault + MiB)
  })
  it('never exceed what a store and an agent can take', () => {
    const partBytes = partBytesFor(limits.sealedBytesMax)
    assert.ok(partBytes <= limits.partBytesMax)
    assert.ok(partCount(limits.sealedBytesMax, partBytes) <= limits.partsMax)
  })
  const table: [number, number[]][] = [
    [0, [0]],
    [1, [1]],
    [9, [9]],
    [10, [10]],
    [11, [10, 1]],
    [20, [10, 10]],
  ]
  for (const [sealedBytes, expected] of table)
    it(`cut ${sealedBytes} bytes into ${expected.join(' and ')}`, () => {
      const object = { sealedBytes, partBytes: 10 }
      const count = partCount(sealedBytes, 10)
      const parts = Array.from({ length: count }, (_, index) => bytesOfPart(index + 1, object))
      assert.deepEqual(parts, expected)
      assert.equal(bytesOfPart(0, object), undefined)
      assert.equal(bytesOfPart(count + 1, object), undefined)
    })

  const object = { sealedBytes: 15, partBytes: 10 }
  const held = [
    { part: 1, bytes: 10, etag: 'a' },
    { part: 2, bytes: 5, etag: 'b' },
  ]
  const claimed = [
    { part: 1, etag: 'a' },
    { part: 2, etag: 'b' },
  ]
  it('are accepted when all are there as they were sent', () => {
    assert.equal(firstWrongPart(held, claimed, object), undefined)
  })
  it('are refused when one is missing, differs, has another size, or is too many', () => {
    assert.equal(firstWrongPart(held.slice(0, 1), claimed, object), 2)
    assert.equal(firstWrongPart(held, claimed.slice(1), object), 1)
    assert.equal(firstWrongPart(held, [claimed[0]!, { part: 2, etag: 'x' }], object), 2)
    assert.equal(firstWrongPart([held[0]!, { ...held[1]!, bytes: 6 }], claimed, object), 2)
    assert.equal(firstWrongPart([...held, { part: 3, bytes: 1, etag: 'c' }], claimed, object), 3)
    assert.equal(firstWrongPart(held, [...claimed, { part: 3, etag: 'c' }], object), 3)
  })
})

describe('a lease', () => {
  const lease = { fence: 2, endedAtMs: null, wipedAtMs: null }
  const job = { state: 'leased', fence: 2 } as const
  it('counts while it is the newest of a leased job', () => {
    assert.equal(isCurrent(lease, job, 2), true)
  })
  it('does not count with another fence, once ended or wiped, or in any other state', () => {
    assert.equal(isCurrent(lease, job, 1), false)
    assert.equal(isCurrent({ ...lease, fence: 1 }, job, 1), false)
    assert.equal(isCurrent(lease, { ...job, fence: 3 }, 2), false)
    assert.equal(isCurrent({ ...lease, endedAtMs: 1 }, job, 2), false)
    assert.equal(isCurrent({ ...lease, wipedAtMs: 1 }, job, 2), false)
    for (const state of jobStates)
      assert.equal(isCurrent(lease, { ...job, state }, 2), state === 'leased', state)
  })
  it('ends for its node at the deadline and for the next one after the grace', () => {
    const time = { sinceMs: 0, deadlineMs: 1000 }
    assert.equal(beforeDeadline(time, 999), true)
    assert.equal(beforeDeadline(time, 1000), false)
    assert.equal(leaseDeadMs(time), 1000 + limits.leaseGraceMs)
  })
  it('leaves its job waiting, kept or lost', () => {
    const base = { hasKey: true, leaseAttempts: 1, retry: 'later' } as const
    assert.equal(afterLease(base), 'stored')
    assert.equal(afterLease({ ...base, retry: 'never' }), 'failed')
    assert.equal(afterLease({ ...base, leaseAttempts: limits.leaseAttemptsMax }), 'failed')
    assert.equal(afterLease({ ...base, hasKey: false, retry: 'never' }), 'lost')
  })
  it('is given again at once first, later and later then', () => {
    const waits = [0, 1, 2, 3, 4, 40].map((leaseAttempts) =>
      leasableAtMs({ leaseAttempts, stateChangedAtMs: 0 }, 0),
    )
    assert.deepEqual(waits, [0, 2000, 8000, 32_000, 60_000, 60_000])
  })
  it('is given again at once after the clock was set back', () => {
    for (const leaseAttempts of [0, 1])
      assert.equal(leasableAtMs({ leaseAttempts, stateChangedAtMs: 1_000_000 }, 5), 5)
  })
})

describe('chooseNode', () => {
  const node = (id: string, change: Partial<Candidate> = {}): Candidate => ({
    id,
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
    leasesMax: 4,
    openLeases: 0,
    failedHere: 0,
    ...change,
  })
  const job = { site: 'north', analyser: 'faces' }

  it('takes none when none may run it', () => {
    assert.equal(chooseNode([], job), undefined)
    assert.equal(chooseNode([node('a', { site: 'south' })], job), undefined)
  })
  it('prefers a node where it has not failed, then the one with most room, then the first', () => {
    assert.equal(
      chooseNode([node('a', { failedHere: 1 }), node('b', { openLeases: 3 })], job)?.id,
      'b',
    )
    assert.equal(chooseNode([node('a', { openLeases: 1 }), node('b')], job)?.id, 'b')
    assert.equal(chooseNode([node('b'), node('a')], job)?.id, 'a')
  })
})

describe('keeping', () => {
  const kept = { source: { action: 'keep', when: 'result' }, storedAtMs: 5 } as const
  const onlyCopy = { source: { action: 'delete', when: 'stored' }, storedAtMs: 5 } as const
  it('knows the only copy', () => {
    assert.equal(isOnlyCopy(kept), false)
    assert.equal(isOnlyCopy(onlyCopy), true)
    assert.equal(isOnlyCopy({ ...onlyCopy, storedAtMs: null }), false)
    assert.equal(isOnlyCopy({ ...onlyCopy, source: { action: 'delete', when: 'result' } }), false)
  })
  it('lasts its time, and a week with a notice for the only copy', () => {
    assert.deepEqual(keepUntil(kept, 0, 1000), { expiresAtMs: 1000 })
    assert.deepEqual(keepUntil(onlyCopy, 0, 1000), {
      expiresAtMs: limits.onlyCopyKeepMs,
      noticeAtMs: limits.onlyCopyKeepMs - limits.onlyCopyNoticeMs,
    })
  })
})

describe('holding', () => {
  it('is possible from and back to states the table allows', () => {
    for (const state of freezableStates) {
      assert.equal(mayBecome(state, 'frozen'), true, state)
      assert.equal(mayBecome('frozen', thawedState(state)), true, state)
    }
    assert.equal(thawedState('leased'), 'stored')
  })
})
