/** Both engines give the same bytes, refuse the same ones, and show nothing they refuse. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { isSluiceError } from '../errors.ts'
import {
  aeadTagBytes,
  bindOpenssl,
  boundOpenssl,
  chooseEngine,
  createDecryptor,
  createEncryptor,
  defaultAeadEngine,
} from './aead.ts'

const engines = ['openssl', 'node'] as const
const key = randomBytes(32)
const nonce = randomBytes(12)

function seal(
  engine: (typeof engines)[number],
  plaintext: Uint8Array,
  options: { aad?: Uint8Array; nonce?: Uint8Array } = {},
): Buffer {
  using cipher = createEncryptor(key, engine)
  const into = Buffer.alloc(plaintext.length + aeadTagBytes)
  cipher.encrypt(options.nonce ?? nonce, plaintext, into, options.aad)
  return into
}

describe('AES-256-GCM', () => {
  it('uses the fast engine where it can be had', async () => {
    assert.equal(defaultAeadEngine, 'openssl')
    const binding = await bindOpenssl(() => import('koffi'))
    assert.equal(chooseEngine(binding), 'openssl')
    assert.equal(boundOpenssl(binding), binding)
  })

  it('falls back where koffi or a symbol is missing, and says so when asked for by name', async () => {
    const noKoffi = await bindOpenssl(() => Promise.reject(new Error('no native part')))
    const noSymbol = await bindOpenssl(() =>
      Promise.resolve({
        load: () => ({
          func: () => {
            throw new Error('no such symbol')
          },
        }),
      }),
    )
    for (const binding of [noKoffi, noSymbol]) {
      assert.equal(chooseEngine(binding), 'node')
      assert.throws(
        () => boundOpenssl(binding),
        (error) => isSluiceError(error, 'seal.engine_missing'),
      )
    }
  })

  it('gives the bytes of the GCM specification, test case 16', () => {
    // McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B.
    const hex = (text: string) => Buffer.from(text, 'hex')
    const half = hex('feffe9928665731c6d6a8f9467308308')
    const plaintext = hex(
      'd9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72' +
        '1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39',
    )
    for (const engine of engines) {
      using cipher = createEncryptor(Buffer.concat([half, half]), engine)
      const into = Buffer.alloc(plaintext.length + aeadTagBytes)
      const aad = hex('feedfacedeadbeeffeedfacedeadbeefabaddad2')
      cipher.encrypt(hex('cafebabefacedbaddecaf888'), plaintext, into, aad)
      assert.equal(
        into.toString('hex'),
        '522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa' +
          '8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662' +
          '76fc6ece0f4e1768cddf8853bb2d551b',
      )
    }
  })

  it('is the same on both engines, and each opens what the other sealed', () => {
    const bytes = fc.uint8Array({ maxLength: 300 })
    fc.assert(
      fc.property(bytes, fc.option(bytes, { nil: undefined }), (plaintext, aad) => {
        const options = aad ? { aad } : {}
        const sealed = seal('openssl', plaintext, options)
        assert.deepEqual(seal('node', plaintext, options), sealed)
        for (const engine of engines) {
          using cipher = createDecryptor(key, engine)
          const opened = new Uint8Array(plaintext.length)
          assert(cipher.decrypt(nonce, sealed, opened, aad))
          assert.deepEqual(opened, plaintext)
        }
      }),
    )
  })

  for (const engine of engines) {
    describe(engine, () => {
      const plaintext = randomBytes(1000)
      const sealed = seal(engine, plaintext)

      it('leaves zeros where it refuses a tag, and goes on working', () => {
        using cipher = createDecryptor(key, engine)
        for (const at of [0, 500, 999, 1000, 1015]) {
          const changed = Buffer.from(sealed)
          changed.writeUInt8(changed.readUInt8(at) ^ 0x80, at)
          const into = Buffer.alloc(1010, 0xee)
          assert.equal(cipher.decrypt(nonce, changed, into), false)
          assert.deepEqual(into.subarray(0, 1000), Buffer.alloc(1000))
          assert.deepEqual(into.subarray(1000), Buffer.alloc(10, 0xee))
        }
        const into = Buffer.alloc(1000)
        assert.equal(cipher.decrypt(nonce, sealed, into), true)
        assert.deepEqual(into, plaintext)
      })

      it('refuses another nonce, other additional data and another key', () => {
        using cipher = createDecryptor(key, engine)
        using other = createDecryptor(randomBytes(32), engine)
        const into = Buffer.alloc(1000)
        assert.equal(cipher.decrypt(randomBytes(12), sealed, into), false)
        assert.equal(cipher.decrypt(nonce, sealed, into, Buffer.from('aad')), false)
        assert.equal(other.decrypt(nonce, sealed, into), false)
      })

      it('keeps its own copy of the key, and nothing after it was disposed', () => {
        const ownKey = Buffer.from(key)
        const encryptor = createEncryptor(ownKey, engine)
        const decryptor = createDecryptor(ownKey, engine)
        ownKey.fill(0)
        const into = Buffer.alloc(sealed.length)
        encryptor.encrypt(nonce, plaintext, into)
        assert.deepEqual(into, sealed)
        encryptor[Symbol.dispose]()
        decryptor[Symbol.dispose]()
        encryptor[Symbol.dispose]()
        assert.throws(() => encryptor.encrypt(nonce, plaintext, into), assert.AssertionError)
        assert.throws(() => decryptor.decrypt(nonce, sealed, into), assert.AssertionError)
      })

      it('never writes beyond the room it was given', () => {
        using encryptor = createEncryptor(key, engine)
        using decryptor = createDecryptor(key, engine)
        const small = Buffer.alloc(999)
        const bug = assert.AssertionError
        assert.throws(() => encryptor.encrypt(nonce, plaintext, Buffer.alloc(1015)), bug)
        assert.throws(() => decryptor.decrypt(nonce, sealed, small), bug)
        assert.throws(() => decryptor.decrypt(nonce, sealed.subarray(0, 15), small), bug)
        assert.throws(() => decryptor.decrypt(nonce.subarray(1), sealed, Buffer.alloc(1000)), bug)
        assert.throws(() => createEncryptor(key.subarray(1), engine), bug)
        assert.throws(() => createDecryptor(Buffer.alloc(33), engine), bug)
      })
    })
  }
})
