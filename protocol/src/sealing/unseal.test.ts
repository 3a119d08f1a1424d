/** Only authentic plaintext comes out, by stream and by range, and failures stay failures. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { isSluiceError, type ErrorCode } from '../errors.ts'
import { limits } from '../limits.ts'
import { createSealer } from './seal.ts'
import { chunkBytes, chunkOffset, sealedChunkBytes } from './sealed-size.ts'
import { checkSealedHeader, createUnsealer, openSealed, type SealedReader } from './unseal.ts'

const key = randomBytes(32)
const context = Buffer.from('context')
const code = (expected: ErrorCode) => (error: unknown) => isSluiceError(error, expected)

function seal(plaintext: Buffer): Buffer {
  using sealer = createSealer({ key, context })
  return Buffer.concat([sealer.header, sealer.update(plaintext), sealer.final()])
}

/** What came out of the stream interface before it ended, and with which code it ended. */
function stream(
  sealed: Buffer,
  options: { pieceBytes?: number; key?: Buffer; context?: Buffer } = {},
): { released: Buffer; failure: string | undefined } {
  const pieceBytes = options.pieceBytes ?? sealedChunkBytes
  const released: Buffer[] = []
  using unsealer = createUnsealer({ key, context, ...options })
  try {
    for (let offset = 0; offset < sealed.length; offset += pieceBytes) {
      released.push(unsealer.update(sealed.subarray(offset, offset + pieceBytes)))
    }
    released.push(unsealer.final())
  } catch (error) {
    assert(isSluiceError(error))
    return { released: Buffer.concat(released), failure: error.code }
  }
  return { released: Buffer.concat(released), failure: undefined }
}

function open(
  sealed: Buffer,
  options: { key?: Buffer; context?: Buffer; calls?: [number, number][] } = {},
): Promise<SealedReader> {
  const { calls, ...rest } = options
  return openSealed({
    key,
    context,
    ...rest,
    sealedBytes: sealed.length,
    read: async (offset, length) => {
      calls?.push([offset, length])
      return sealed.subarray(offset, offset + length)
    },
  })
}

function flipped(sealed: Buffer, at: number): Buffer {
  const changed = Buffer.from(sealed)
  changed.writeUInt8(changed.readUInt8(at) ^ 1, at)
  return changed
}

describe('unsealer', () => {
  for (const bytes of [0, 1, 16_383, 16_384, 16_385, 32_768]) {
    it(`opens ${bytes} bytes, whole or byte by byte`, () => {
      const plaintext = randomBytes(bytes)
      const sealed = seal(plaintext)
      for (const pieceBytes of [sealed.length, 1, 56, 16_400, 16_456, 5000]) {
        const { released, failure } = stream(sealed, { pieceBytes })
        assert.equal(failure, undefined)
        assert(released.equals(plaintext))
      }
    })
  }

  it('opens whatever was sealed, however it is fed', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 60_000 }),
        fc.integer({ min: 1, max: 60_000 }),
        (bytes, pieceBytes) => {
          const plaintext = randomBytes(bytes)
          const { released, failure } = stream(seal(plaintext), { pieceBytes })
          assert.equal(failure, undefined)
          assert(released.equals(plaintext))
        },
      ),
      { numRuns: 50 },
    )
  })

  const plaintext = randomBytes(2 * chunkBytes + 100)
  const sealed = seal(plaintext)

  it('releases no byte of a chunk whose tag is wrong', () => {
    for (const chunk of [0, 1, 2]) {
      const bad = flipped(sealed, chunkOffset(chunk) + 50)
      for (const pieceBytes of [1, 1000, sealedChunkBytes]) {
        const { released, failure } = stream(bad, { pieceBytes })
        assert.equal(failure, 'seal.tampered')
        assert.deepEqual(released, plaintext.subarray(0, chunk * chunkBytes))
      }
    }
    assert(stream(sealed).released.equals(plaintext), 'control: unchanged, all of it comes out')
  })

  it('leaves zeros in the caller’s buffer when a later chunk of one call is wrong', () => {
    using unsealer = createUnsealer({ key, context })
    const into = Buffer.alloc(unsealer.updateBytes(sealed.length), 0xee)
    assert.equal(into.length, 2 * chunkBytes)
    const bad = flipped(sealed, chunkOffset(1))
    assert.throws(() => unsealer.updateInto(bad, into), code('seal.tampered'))
    assert.deepEqual(into, Buffer.alloc(2 * chunkBytes))

    using again = createUnsealer({ key, context })
    assert.equal(again.updateInto(sealed, into), 2 * chunkBytes)
    assert(into.equals(plaintext.subarray(0, 2 * chunkBytes)), 'control: unchanged, it is there')
  })

  it('refuses any cut', () => {
    for (const [bytes, expected] of [
      [0, 'seal.truncated'],
      [23, 'seal.truncated'],
      [55, 'seal.truncated'],
      [56, 'seal.truncated'],
      [71, 'seal.truncated'],
      [72, 'seal.tampered'],
      [chunkOffset(1), 'seal.truncated'],
      [chunkOffset(1) + 15, 'seal.truncated'],
      [chunkOffset(2), 'seal.truncated'],
      [sealed.length - 1, 'seal.tampered'],
    ] as const) {
      const { failure } = stream(sealed.subarray(0, bytes))
      assert.equal(failure, expected, `cut to ${bytes}`)
    }
  })

  it('refuses chunks that were swapped, doubled, left out or added', () => {
    const chunk = (k: number) => sealed.subarray(chunkOffset(k), chunkOffset(k + 1))
    const header = sealed.subarray(0, 56)
    const orders = { swapped: [1, 0, 2], doubled: [0, 0, 2], leftOut: [0, 2], added: [0, 1, 2, 2] }
    for (const [name, order] of Object.entries(orders)) {
      const { failure } = stream(Buffer.concat([header, ...order.map(chunk)]))
      assert.equal(failure, 'seal.tampered', name)
    }
    assert.equal(stream(Buffer.concat([header, ...[0, 1, 2].map(chunk)])).failure, undefined)
  })

  it('refuses anything behind the end', () => {
    for (const extra of [1, 16, 20, 16_400]) {
      assert.equal(stream(Buffer.concat([sealed, Buffer.alloc(extra)])).failure, 'seal.tampered')
    }
  })

  it('refuses another key and another context before the first chunk', () => {
    for (const options of [{ key: randomBytes(32) }, { context: Buffer.from('contexT') }]) {
      const { released, failure } = stream(sealed, options)
      assert.equal(failure, 'seal.wrong_key')
      assert.equal(released.length, 0)
    }
    assert.throws(
      () => createUnsealer({ key: Buffer.alloc(31), context }).update(sealed),
      code('seal.bad_input'),
    )
  })

  it('keeps failing once it has failed', () => {
    using unsealer = createUnsealer({ key, context })
    unsealer.update(sealed.subarray(0, 56))
    const bad = flipped(sealed, 60)
    assert.throws(() => unsealer.update(bad.subarray(56)), code('seal.tampered'))
    assert.throws(() => unsealer.update(sealed.subarray(56)), code('seal.tampered'))
    assert.throws(() => unsealer.final(), code('seal.tampered'))
  })

  it('is over after final and after it was disposed', () => {
    using done = createUnsealer({ key, context })
    done.update(sealed)
    done.final()
    assert.throws(() => done.update(Buffer.alloc(1)), code('seal.finished'))
    assert.throws(() => done.final(), code('seal.finished'))
    const dropped = createUnsealer({ key, context })
    dropped[Symbol.dispose]()
    assert.throws(() => dropped.update(sealed), code('seal.finished'))
  })

  it('needs room for what it opens', () => {
    using unsealer = createUnsealer({ key, context })
    assert.throws(() => unsealer.updateInto(sealed, Buffer.alloc(100)), assert.AssertionError)
  })
})

describe('sealed header', () => {
  it('tells whether a key opens the object', () => {
    const header = seal(Buffer.from('medium')).subarray(0, 56)
    checkSealedHeader({ key, context, header })
    const wrong = randomBytes(32)
    assert.throws(() => checkSealedHeader({ key: wrong, context, header }), code('seal.wrong_key'))
    assert.throws(
      () => checkSealedHeader({ key, context, header: header.subarray(1) }),
      code('seal.truncated'),
    )
  })
})

describe('sealed reader', () => {
  for (const bytes of [0, 1, 16_383, 16_384, 16_385, 32_768]) {
    it(`reads ${bytes} bytes by ranges`, async () => {
      const plaintext = randomBytes(bytes)
      using reader = await open(seal(plaintext))
      assert.equal(reader.plaintextBytes, bytes)
      const edges = [0, 1, bytes - 1, bytes, chunkBytes - 1, chunkBytes, chunkBytes + 1]
      const valid = edges.filter((edge) => edge >= 0 && edge <= bytes)
      for (const from of valid) {
        for (const to of valid.filter((edge) => edge >= from)) {
          // oxlint-disable-next-line no-await-in-loop -- one range after the other, by design
          const range = await reader.readRange(from, to - from)
          assert(range.equals(plaintext.subarray(from, to)), `${from} to ${to}`)
        }
      }
    })
  }

  const plaintext = randomBytes(4 * chunkBytes + 100)
  const sealed = seal(plaintext)

  it('reads any range', async () => {
    using reader = await open(sealed)
    await fc.assert(
      fc.asyncProperty(fc.nat(plaintext.length), fc.nat(plaintext.length), async (a, b) => {
        const [from, to] = a < b ? [a, b] : [b, a]
        assert((await reader.readRange(from, to - from)).equals(plaintext.subarray(from, to)))
      }),
    )
  })

  it('fetches header and last chunk first, then one piece a range', async () => {
    const calls: [number, number][] = []
    using reader = await open(sealed, { calls })
    assert.deepEqual(calls.splice(0), [
      [0, 56],
      [chunkOffset(4), 116],
    ])
    assert.deepEqual(reader.header, sealed.subarray(0, 56))
    await reader.readRange(chunkBytes + 5, 2 * chunkBytes)
    assert.deepEqual(calls.splice(0), [[chunkOffset(1), 3 * sealedChunkBytes]])
    await reader.readRange(plaintext.length - 1, 1)
    assert.deepEqual(calls.splice(0), [[chunkOffset(4), 116]])
    await reader.readRange(7, 0)
    assert.deepEqual(calls, [])
  })

  it('serves nothing when the last chunk is not authentic', async () => {
    const calls: [number, number][] = []
    await assert.rejects(open(flipped(sealed, sealed.length - 1), { calls }), code('seal.tampered'))
    assert.equal(calls.length, 2)
    await assert.rejects(open(sealed.subarray(0, chunkOffset(4) + 20)), code('seal.tampered'))
    await assert.rejects(open(sealed.subarray(0, chunkOffset(4))), code('seal.truncated'))
    await assert.rejects(open(Buffer.concat([sealed, Buffer.alloc(5)])), code('seal.tampered'))
    await assert.rejects(open(Buffer.alloc(0)), code('seal.truncated'))
  })

  it('refuses ranges over a chunk that is not authentic, and only those', async () => {
    using reader = await open(flipped(sealed, chunkOffset(2) + 9))
    const into = Buffer.alloc(3 * chunkBytes, 0xee)
    await assert.rejects(reader.readRangeInto(chunkBytes, into), code('seal.tampered'))
    assert.deepEqual(into, Buffer.alloc(into.length))
    await assert.rejects(reader.readRange(2 * chunkBytes + 100, 1), code('seal.tampered'))
    assert(
      (await reader.readRange(0, 2 * chunkBytes)).equals(plaintext.subarray(0, 2 * chunkBytes)),
    )
  })

  it('refuses another key and another context after the header alone', async () => {
    for (const options of [{ key: randomBytes(32) }, { context: Buffer.alloc(0) }]) {
      const calls: [number, number][] = []
      // oxlint-disable-next-line no-await-in-loop -- two cases of one claim
      await assert.rejects(open(sealed, { ...options, calls }), code('seal.wrong_key'))
      assert.deepEqual(calls, [[0, 56]])
    }
  })

  it('refuses ranges outside the plaintext, and larger than fit in memory', async () => {
    using reader = await open(sealed)
    for (const [offset, length] of [
      [-1, 1],
      [0, -1],
      [0.5, 1],
      [0, Number.NaN],
      [0, plaintext.length + 1],
      [plaintext.length, 1],
      [Number.MAX_SAFE_INTEGER, 1],
    ] as const) {
      // oxlint-disable-next-line no-await-in-loop -- cases of one claim
      await assert.rejects(reader.readRange(offset, length), code('seal.bad_input'))
    }
  })

  it('refuses a range above the limit even inside the plaintext', async () => {
    // A store whose object is large: only header and last chunk are ever fetched.
    const chunks = limits.rangeBytesMax / chunkBytes + 1
    using sealer = createSealer({ key, context })
    for (let k = 0; k < chunks; k += 1) sealer.update(Buffer.alloc(chunkBytes))
    const last = sealer.final()
    using reader = await openSealed({
      key,
      context,
      sealedBytes: chunkOffset(chunks) + last.length,
      read: async (offset) => (offset === 0 ? sealer.header : last),
    })
    await assert.rejects(reader.readRange(0, limits.rangeBytesMax + 1), code('seal.bad_input'))
  })

  it('says so when the store gives fewer bytes than it promised', async () => {
    const short = openSealed({
      key,
      context,
      sealedBytes: sealed.length,
      read: async (offset, length) => sealed.subarray(offset, offset + length - 1),
    })
    await assert.rejects(short, code('seal.truncated'))
  })

  it('opens nothing after it was disposed, not even what was being fetched', async () => {
    const gate = Promise.withResolvers<void>()
    let waits = false
    const reader = await openSealed({
      key,
      context,
      sealedBytes: sealed.length,
      read: async (offset, length) => {
        if (waits) await gate.promise
        return sealed.subarray(offset, offset + length)
      },
    })
    waits = true
    const pending = reader.readRange(0, 10)
    reader[Symbol.dispose]()
    gate.resolve()
    await assert.rejects(pending, code('seal.finished'))
    await assert.rejects(reader.readRange(0, 10), code('seal.finished'))
  })
})
