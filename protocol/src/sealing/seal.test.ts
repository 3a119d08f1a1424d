/** A sealing runs once from beginning to end, and its bytes don't depend on how it was fed. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { isSluiceError } from '../errors.ts'
import { limits } from '../limits.ts'
import { createSealer, sealedHeaderHash } from './seal.ts'
import { sealedBytesOf } from './sealed-size.ts'

const key = randomBytes(32)
const salt = randomBytes(24)
const context = Buffer.from('context')

/** With a fixed salt the same plaintext has to give the same bytes. */
function sealInPieces(plaintext: Buffer, pieces: Iterable<Buffer>): Buffer {
  using sealer = createSealer({ key, context, dangerousTestOnlySalt: salt })
  const out = [sealer.header]
  for (const piece of pieces) {
    const expected = sealer.updateBytes(piece.length)
    const sealed = sealer.update(piece)
    assert.equal(sealed.length, expected)
    out.push(sealed)
  }
  out.push(sealer.final())
  const whole = Buffer.concat(out)
  assert.equal(whole.length, sealedBytesOf(plaintext.length))
  return whole
}

function* cut(plaintext: Buffer, pieceBytes: number): Iterable<Buffer> {
  for (let offset = 0; offset < plaintext.length; offset += pieceBytes) {
    yield plaintext.subarray(offset, offset + pieceBytes)
  }
}

const finished = (error: unknown) => isSluiceError(error, 'seal.finished')

describe('sealer', () => {
  for (const bytes of [0, 1, 16_383, 16_384, 16_385, 32_768]) {
    it(`gives the same ${bytes} bytes sealed, whole or byte by byte`, () => {
      const plaintext = randomBytes(bytes)
      const whole = sealInPieces(plaintext, [plaintext])
      assert.deepEqual(sealInPieces(plaintext, cut(plaintext, 1)), whole)
      assert.deepEqual(sealInPieces(plaintext, cut(plaintext, 5000)), whole)
    })
  }

  it('gives the same bytes however it is fed', () => {
    const plaintext = randomBytes(70_000)
    const whole = sealInPieces(plaintext, [plaintext])
    fc.assert(
      fc.property(fc.array(fc.nat(plaintext.length), { maxLength: 8 }), (cuts) => {
        const at = [0, ...cuts.toSorted((a, b) => a - b), plaintext.length]
        const pieces = at.slice(1).map((end, k) => plaintext.subarray(at[k], end))
        assert(sealInPieces(plaintext, pieces).equals(whole))
      }),
      { numRuns: 50 },
    )
  })

  it('knows its header before any plaintext', () => {
    const plaintext = Buffer.from('medium')
    using sealer = createSealer({ key, context, dangerousTestOnlySalt: salt })
    assert.equal(sealer.header.length, 56)
    assert.deepEqual(sealer.header, sealInPieces(plaintext, [plaintext]).subarray(0, 56))
    assert.deepEqual(
      sealedHeaderHash(sealer.header),
      createHash('sha256').update(sealer.header).digest(),
    )
  })

  it('takes a fresh salt each time', () => {
    const headers = Array.from({ length: 50 }, () => {
      using sealer = createSealer({ key, context })
      return sealer.header.toString('hex')
    })
    assert.equal(new Set(headers).size, 50)
  })

  it('does not need the key any more once it has begun', () => {
    const ownKey = Buffer.from(key)
    using sealer = createSealer({ key: ownKey, context, dangerousTestOnlySalt: salt })
    ownKey.fill(0)
    const plaintext = Buffer.from('medium')
    const sealed = Buffer.concat([sealer.header, sealer.update(plaintext), sealer.final()])
    assert.deepEqual(sealed, sealInPieces(plaintext, [plaintext]))
  })

  it('writes into a buffer of the caller, which must have room', () => {
    const plaintext = randomBytes(40_000)
    using sealer = createSealer({ key, context, dangerousTestOnlySalt: salt })
    const into = Buffer.alloc(sealer.updateBytes(plaintext.length) + 3, 0xee)
    assert.equal(sealer.updateInto(plaintext, into), 32_800)
    const whole = sealInPieces(plaintext, [plaintext])
    assert.deepEqual(into.subarray(0, 32_800), whole.subarray(56, 56 + 32_800))
    assert.deepEqual(into.subarray(32_800), Buffer.alloc(3, 0xee))
    assert.throws(() => sealer.updateInto(plaintext, Buffer.alloc(100)), assert.AssertionError)
  })

  it('is over after final', () => {
    using sealer = createSealer({ key, context })
    sealer.update(Buffer.from('medium'))
    sealer.final()
    assert.throws(() => sealer.update(Buffer.alloc(1)), finished)
    assert.throws(() => sealer.updateInto(Buffer.alloc(1), Buffer.alloc(1)), finished)
    assert.throws(() => sealer.final(), finished)
  })

  it('is over after it was thrown away', () => {
    const sealer = createSealer({ key, context })
    sealer[Symbol.dispose]()
    sealer[Symbol.dispose]()
    assert.throws(() => sealer.final(), finished)
  })

  it('ends at the largest object a store takes, and stays ended', () => {
    using sealer = createSealer({ key, context })
    // Claims a length that no buffer has; nothing of it is read.
    const huge = new Proxy(Buffer.alloc(0), {
      get: (target, name) =>
        name === 'length' ? limits.sealedBytesMax : Reflect.get(target, name),
    })
    const room = new Proxy(Buffer.alloc(0), {
      get: (target, name) => (name === 'length' ? 2 ** 53 - 1 : Reflect.get(target, name)),
    })
    assert.throws(
      () => sealer.updateInto(huge, room),
      (error) => isSluiceError(error, 'object.too_large'),
    )
    assert.throws(() => sealer.final(), finished)
  })

  it('refuses a key of another size', () => {
    assert.throws(
      () => createSealer({ key: Buffer.alloc(31), context }),
      (error) => isSluiceError(error, 'seal.bad_input'),
    )
  })
})
