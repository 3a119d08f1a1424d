/** Proves that the rate holds. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { fullBucket, takeBytes } from './bandwidth.ts'

describe('takeBytes', () => {
  it('lets one second of the rate through at once, then makes the rest wait its turn', () => {
    const first = takeBytes(fullBucket(1000, 0), 1000, 1000, 0)
    assert.equal(first.waitMs, 0)
    const second = takeBytes(first.bucket, 500, 1000, 0)
    assert.equal(second.waitMs, 500)
    const third = takeBytes(second.bucket, 500, 1000, 0)
    assert.equal(third.waitMs, 1000)
  })
  it('keeps the rate over many sends of any size', () => {
    let bucket = fullBucket(1000, 0)
    let nowMs = 0
    let sent = 0
    for (const bytes of [1, 5000, 20, 300, 4000, 999, 1000, 1001]) {
      const taken = takeBytes(bucket, bytes, 1000, nowMs)
      bucket = taken.bucket
      nowMs += taken.waitMs
      sent += bytes
      assert.ok(sent <= 1000 + nowMs + 1, `${sent} bytes in ${nowMs} ms`)
    }
  })
  it('does not save up more than a second', () => {
    const taken = takeBytes(fullBucket(1000, 0), 2000, 1000, 60_000)
    assert.equal(taken.waitMs, 1000)
  })
})
