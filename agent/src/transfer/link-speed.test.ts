/** Proves that the speed of the link follows what uploads measured, and nothing that says little about it. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { createLinkSpeed } from './link-speed.ts'

const MiB = 1024 ** 2

describe('the speed of the link', () => {
  it('is unknown at first, or what the operator allows, until an upload was made', () => {
    assert.equal(createLinkSpeed().bytesPerSecond, undefined)
    const bounded = createLinkSpeed({ bytesPerSecond: 500 })
    assert.equal(bounded.bytesPerSecond, 500)
    bounded.record({ bytes: 10 * MiB, elapsedMs: 10_000 })
    assert.equal(bounded.bytesPerSecond, MiB)
  })

  it('follows later uploads slowly, and leaves out those that are too small or took no time', () => {
    const speed = createLinkSpeed()
    speed.record({ bytes: 100, elapsedMs: 1000 })
    speed.record({ bytes: 0, elapsedMs: 0 })
    speed.record({ bytes: 5 * MiB, elapsedMs: 0 })
    assert.equal(speed.bytesPerSecond, undefined)
    speed.record({ bytes: 10 * MiB, elapsedMs: 1000 })
    speed.record({ bytes: 20 * MiB, elapsedMs: 1000 })
    assert.equal(speed.bytesPerSecond, 13 * MiB)
    for (let i = 0; i < 40; i++) speed.record({ bytes: MiB, elapsedMs: 1000 })
    assert.ok(Math.abs((speed.bytesPerSecond ?? 0) / MiB - 1) < 0.001)
  })
})
