/** A chunk index is sealed at most once, and a wrong key is found before any chunk. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { isSluiceError } from '../errors.ts'
import { chunkKeysOf, createChunkOpener, createChunkSealer, deriveChunkKeys } from './chunks.ts'

const key = randomBytes(32)
const salt = randomBytes(24)
const context = Buffer.from('context')

describe('chunks', () => {
  it('are never sealed twice under one salt', () => {
    using keys = deriveChunkKeys({ key, salt, context })
    using sealer = createChunkSealer(keys)
    const into = Buffer.alloc(20)
    const first = Buffer.from('once')
    sealer.sealChunk(0, first, into)
    sealer.sealChunk(1, first, Buffer.alloc(20))
    const before = Buffer.from(into)
    for (const index of [0, 1]) {
      assert.throws(
        () => sealer.sealChunk(index, Buffer.from('more'), into),
        (error) => isSluiceError(error, 'seal.chunk_reused'),
      )
    }
    assert.deepEqual(into, before)
    sealer.sealChunk(2, first, into)
  })

  it('count as sealed even if the cipher failed', () => {
    using keys = deriveChunkKeys({ key, salt, context })
    using sealer = createChunkSealer(keys)
    assert.throws(() => sealer.sealChunk(0, Buffer.alloc(8), Buffer.alloc(8)))
    assert.throws(
      () => sealer.sealChunk(0, Buffer.alloc(8), Buffer.alloc(24)),
      (error) => isSluiceError(error, 'seal.chunk_reused'),
    )
  })

  it('are sealed in order', () => {
    using keys = deriveChunkKeys({ key, salt, context })
    using sealer = createChunkSealer(keys)
    const skip = () => sealer.sealChunk(1, Buffer.alloc(8), Buffer.alloc(24))
    assert.throws(skip, assert.AssertionError)
  })

  it('differ by their index and open at their own alone', () => {
    using keys = deriveChunkKeys({ key, salt, context })
    using sealer = createChunkSealer(keys)
    using opener = createChunkOpener(keys)
    const sealed = [0, 1, 2].map((index) => {
      const into = Buffer.alloc(20)
      sealer.sealChunk(index, Buffer.from('same'), into)
      return into
    })
    assert.equal(new Set(sealed.map(String)).size, 3)
    for (const [index, chunk] of sealed.entries()) {
      for (const at of [0, 1, 2, 256, 2 ** 31, 2 ** 32 - 1]) {
        const into = Buffer.alloc(4)
        if (at === index) {
          opener.openChunk(at, chunk, into)
          assert.equal(into.toString(), 'same')
        } else {
          assert.throws(
            () => opener.openChunk(at, chunk, into),
            (error) => isSluiceError(error, 'seal.tampered'),
          )
          assert.deepEqual(into, Buffer.alloc(4))
        }
      }
    }
  })

  it('have keys that are zeroed when they are disposed', () => {
    const keys = deriveChunkKeys({ key, salt, context })
    assert.notDeepEqual(keys.aeadKey, Buffer.alloc(32))
    keys[Symbol.dispose]()
    assert.deepEqual(keys.aeadKey, Buffer.alloc(32))
    assert.deepEqual(keys.baseNonce, Buffer.alloc(12))
    assert.deepEqual(keys.commitment, Buffer.alloc(32))
  })

  it('have keys only where the commitment is right', () => {
    using keys = deriveChunkKeys({ key, salt, context })
    const header = Buffer.concat([salt, keys.commitment])
    using again = chunkKeysOf({ key, context, header })
    assert.deepEqual(again.aeadKey, keys.aeadKey)
    const wrongKey = (error: unknown) => isSluiceError(error, 'seal.wrong_key')
    const other = Buffer.from('contexT')
    assert.throws(() => chunkKeysOf({ key, context: other, header }), wrongKey)
    assert.throws(() => chunkKeysOf({ key: randomBytes(32), context, header }), wrongKey)
    for (const at of [0, 23, 24, 55]) {
      const changed = Buffer.from(header)
      changed.writeUInt8(changed.readUInt8(at) ^ 1, at)
      assert.throws(() => chunkKeysOf({ key, context, header: changed }), wrongKey)
    }
  })

  it('need a key of 32 bytes', () => {
    for (const bytes of [0, 16, 31, 33, 64]) {
      assert.throws(
        () => deriveChunkKeys({ key: Buffer.alloc(bytes), salt, context }),
        (error) => isSluiceError(error, 'seal.bad_input'),
      )
    }
  })
})
