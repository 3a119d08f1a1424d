import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { isSluiceError } from './errors.ts'
import { limits } from './limits.ts'
import { decodeSignedResult, encodeSignedResult } from './result.ts'

const signed = {
  statement: Buffer.from('statement'),
  certificate: Buffer.from('certificate'),
  result: Buffer.from('{"schema":"sluice-result/1"}'),
}

describe('a signed result', () => {
  it('comes back in its three pieces', () => {
    assert.deepEqual(decodeSignedResult(encodeSignedResult(signed)), signed)
  })

  it('is refused when it is cut within its signature or certificate', () => {
    const whole = encodeSignedResult(signed)
    for (let length = 0; length < whole.length - signed.result.length; length += 1)
      assert.throws(
        () => decodeSignedResult(whole.subarray(0, length)),
        (error) => isSluiceError(error, 'result.forged'),
      )
  })

  it('is refused above the bound of a result', () => {
    const result = Buffer.alloc(limits.resultBytesMax + 1)
    assert.throws(
      () => encodeSignedResult({ ...signed, result }),
      (error) => isSluiceError(error, 'result.too_large'),
    )
    encodeSignedResult({ ...signed, result: result.subarray(1) })
  })
})
