/** HKDF-Expand gives the published output. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hkdfExpand } from './hkdf.ts'

describe('hkdfExpand', () => {
  it('gives the output of RFC 5869, test case 1, over two blocks', () => {
    const output = hkdfExpand({
      hash: 'sha256',
      prk: Buffer.from('077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5', 'hex'),
      info: Buffer.from('f0f1f2f3f4f5f6f7f8f9', 'hex'),
      bytes: 42,
    })
    assert.equal(
      output.toString('hex'),
      '3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865',
    )
  })

  it('takes only sizes that HKDF defines', () => {
    const prk = Buffer.alloc(64)
    const info = Buffer.alloc(0)
    assert.throws(() => hkdfExpand({ hash: 'sha512', prk, info, bytes: 0 }), assert.AssertionError)
    assert.throws(
      () => hkdfExpand({ hash: 'sha512', prk, info, bytes: 255 * 64 + 1 }),
      assert.AssertionError,
    )
    assert.equal(hkdfExpand({ hash: 'sha512', prk, info, bytes: 255 * 64 }).length, 255 * 64)
  })
})
