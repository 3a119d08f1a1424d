/** Sizes convert exactly in both directions, and impossible ones are refused. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { isSluiceError } from '../errors.ts'
import { limits } from '../limits.ts'
import { chunkOffset, plaintextBytesOf, sealedBytesOf } from './sealed-size.ts'

/** The largest plaintext whose sealed object is within the limit. */
const plaintextBytesMax = plaintextBytesOf(limits.sealedBytesMax)

describe('sealed size', () => {
  const table = [
    [0, 72],
    [1, 73],
    [16_383, 16_455],
    [16_384, 16_472],
    [16_385, 16_473],
    [32_768, 32_872],
  ] as const
  for (const [plaintext, sealed] of table) {
    it(`of ${plaintext} bytes is ${sealed}`, () => {
      assert.equal(sealedBytesOf(plaintext), sealed)
      assert.equal(plaintextBytesOf(sealed), plaintext)
    })
  }

  it('converts back and forth up to the limit', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: plaintextBytesMax }), (bytes) => {
        assert.equal(plaintextBytesOf(sealedBytesOf(bytes)), bytes)
      }),
    )
    assert.equal(sealedBytesOf(plaintextBytesMax), limits.sealedBytesMax)
  })

  it('refuses sizes that no sealed object has', () => {
    const truncated = (error: unknown) => isSluiceError(error, 'seal.truncated')
    for (const bytes of [0, 1, 55, 56, 57, 71, 16_456, 16_471, 32_856, 32_871]) {
      assert.throws(() => plaintextBytesOf(bytes), truncated, String(bytes))
    }
  })

  it('refuses what is no number of bytes', () => {
    const badInput = (error: unknown) => isSluiceError(error, 'seal.bad_input')
    for (const bytes of [-1, 0.5, Number.NaN, Infinity, 2 ** 53]) {
      assert.throws(() => sealedBytesOf(bytes), badInput)
      assert.throws(() => plaintextBytesOf(bytes), badInput)
    }
  })

  it('refuses objects above the limit', () => {
    const tooLarge = (error: unknown) => isSluiceError(error, 'object.too_large')
    assert.throws(() => sealedBytesOf(plaintextBytesMax + 1), tooLarge)
    assert.throws(() => plaintextBytesOf(limits.sealedBytesMax + 1), tooLarge)
  })

  it('finds each chunk', () => {
    assert.equal(chunkOffset(0), 56)
    assert.equal(chunkOffset(1), 56 + 16_400)
    assert.equal(chunkOffset(2 ** 28), 56 + 16_400 * 2 ** 28)
  })
})
