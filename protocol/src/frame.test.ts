import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { isSluiceError } from './errors.ts'
import { decodeFrame, encodeFrame } from './frame.ts'
import { limits } from './limits.ts'

describe('frames', () => {
  it('carry a message, and an attachment of any bytes, there and back', () => {
    fc.assert(
      fc.property(
        fc.dictionary(fc.string(), fc.string()),
        fc.option(fc.uint8Array()),
        (message, bytes) => {
          // JSON.parse never makes a __proto__ member the way an object literal does.
          const plain = JSON.parse(JSON.stringify(message)) as object
          const attachment = bytes === null ? undefined : Buffer.from(bytes)
          const sent = encodeFrame(plain, attachment)
          const isBinary = typeof sent !== 'string'
          assert.equal(isBinary, attachment !== undefined)
          const read = decodeFrame(Buffer.from(sent), isBinary)
          assert.deepEqual(read.message, plain)
          assert.deepEqual(read.attachment, attachment)
        },
      ),
    )
  })

  it('are refused when they are not JSON, or shorter than they say', () => {
    const malformed = (error: unknown) => isSluiceError(error, 'channel.malformed')
    assert.throws(() => decodeFrame(Buffer.from('{'), false), malformed)
    const binary = encodeFrame({ a: 1 }, Buffer.from('x')) as Buffer
    for (let length = 0; length < binary.length - 1; length += 1)
      assert.throws(() => decodeFrame(binary.subarray(0, length), true), malformed)
    assert.deepEqual(decodeFrame(binary, true).message, { a: 1 }, 'the control')
  })

  it('are refused beyond the bound of a message, before they are parsed', () => {
    const tooLarge = (error: unknown) => isSluiceError(error, 'channel.too_large')
    const text = Buffer.alloc(limits.messageBytesMax + 1, 0x20)
    assert.throws(() => decodeFrame(text, false), tooLarge)
  })
})
