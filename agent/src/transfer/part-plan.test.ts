/** Proves that parts cover an object exactly, at the sizes where that can go wrong. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { planParts } from './part-plan.ts'

const part = limits.partBytesMin

describe('planParts', () => {
  for (const [sealedBytes, sizes] of [
    [72, [72]],
    [part - 1, [part - 1]],
    [part, [part]],
    [part + 1, [part, 1]],
    [2 * part, [part, part]],
    [2 * part + 7, [part, part, 7]],
  ] as const)
    it(`cuts ${sealedBytes} bytes`, () => {
      const parts = planParts(sealedBytes, part)
      assert.deepEqual(
        parts.map((each) => each.bytes),
        sizes,
      )
      let offset = 0
      for (const [index, each] of parts.entries()) {
        assert.equal(each.part, index + 1)
        assert.equal(each.offset, offset)
        offset += each.bytes
      }
      assert.equal(offset, sealedBytes)
    })

  it('takes the largest number of parts and refuses one more', () => {
    assert.equal(planParts(limits.partsMax * part, part).length, limits.partsMax)
    assert.throws(
      () => planParts(limits.partsMax * part + 1, part),
      (error) => isSluiceError(error, 'object.too_large'),
    )
  })
})
