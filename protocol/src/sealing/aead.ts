/** AES-256-GCM for chunks and envelopes, on one of two engines that give the same bytes. */
import assert from 'node:assert/strict'
import { createCipheriv, createDecipheriv, type DecipherGCM } from 'node:crypto'
import type { LibraryHandle } from 'koffi'
import { SluiceError } from '../errors.ts'

/** Bytes of an AES-256 key, of a GCM nonce and of a GCM tag (RFC 5116, AEAD_AES_256_GCM). */
export const aeadKeyBytes = 32
export const aeadNonceBytes = 12
export const aeadTagBytes = 16

/**
 * `openssl`: the OpenSSL inside Node, called directly; one key schedule for all chunks, output
 * written in place, no copy of plaintext or key left in the process (its memory was scanned).
 * `node`: `node:crypto`'s cipher objects, which cost a key schedule a chunk and leave copies of
 * both in the heap until the process ends.
 */
export type AeadEngine = 'openssl' | 'node'

/** One AES-256-GCM key in one direction. Disposing it wipes the key; use after that is a bug. */
export type AeadEncryptor = Disposable & {
  /**
   * Writes ciphertext and tag of one message into the first bytes of `into`, which has room for
   * `plaintext.length + 16`. The caller never repeats a nonce.
   */
  encrypt(nonce: Uint8Array, plaintext: Uint8Array, into: Uint8Array, aad?: Uint8Array): void
}

export type AeadDecryptor = Disposable & {
  /**
   * Writes the plaintext of one message (ciphertext and tag) into the first bytes of `into`, which
   * has room for `sealed.length - 16`.
   *
   * @returns Whether the tag was right; if not, `into` holds zeros where plaintext would be.
   */
  decrypt(nonce: Uint8Array, sealed: Uint8Array, into: Uint8Array, aad?: Uint8Array): boolean
}

/** OpenSSL's `EVP_CTRL_AEAD_GET_TAG` and `EVP_CTRL_AEAD_SET_TAG` (openssl/evp.h). */
const ctrlGetTag = 0x10
const ctrlSetTag = 0x11

type Pointer = bigint | null
type CipherInit = (
  ctx: Pointer,
  type: Pointer,
  engine: null,
  key: Uint8Array | null,
  iv: Uint8Array | null,
) => number
type CipherUpdate = (
  ctx: Pointer,
  out: Uint8Array | null,
  outBytes: Uint8Array,
  input: Uint8Array,
  inputBytes: number,
) => number
type CipherFinal = (ctx: Pointer, out: Uint8Array, outBytes: Uint8Array) => number

/** The functions of `openssl/evp.h` used here, bound once. */
type Evp = {
  newContext: () => Pointer
  freeContext: (ctx: Pointer) => void
  aes256Gcm: () => Pointer
  control: (ctx: Pointer, type: number, arg: number, data: Uint8Array) => number
  encryptInit: CipherInit
  encryptUpdate: CipherUpdate
  encryptFinal: CipherFinal
  decryptInit: CipherInit
  decryptUpdate: CipherUpdate
  decryptFinal: CipherFinal
  clearErrors: () => void
}

type Koffi = { load(path: null): Pick<LibraryHandle, 'func'> }

/**
 * Binds OpenSSL's functions, or gives the reason why it can't: a Node built without exported
 * symbols, or a platform without koffi's native part. Both are ordinary, so neither is thrown.
 *
 * @param importKoffi Imported only now, as koffi throws while it loads without its native part.
 */
export async function bindOpenssl(importKoffi: () => Promise<Koffi>): Promise<Evp | Error> {
  try {
    const koffi = await importKoffi()
    const library = koffi.load(null)
    const init = '(void *ctx, void *type, void *engine, uint8_t *key, uint8_t *iv)'
    const update = '(void *ctx, uint8_t *out, uint8_t *outl, uint8_t *in, int inl)'
    const final = '(void *ctx, uint8_t *out, uint8_t *outl)'
    return {
      newContext: library.func('void *EVP_CIPHER_CTX_new()'),
      freeContext: library.func('void EVP_CIPHER_CTX_free(void *ctx)'),
      aes256Gcm: library.func('void *EVP_aes_256_gcm()'),
      control: library.func('int EVP_CIPHER_CTX_ctrl(void *ctx, int type, int arg, uint8_t *data)'),
      encryptInit: library.func(`int EVP_EncryptInit_ex${init}`),
      encryptUpdate: library.func(`int EVP_EncryptUpdate${update}`),
      encryptFinal: library.func(`int EVP_EncryptFinal_ex${final}`),
      decryptInit: library.func(`int EVP_DecryptInit_ex${init}`),
      decryptUpdate: library.func(`int EVP_DecryptUpdate${update}`),
      decryptFinal: library.func(`int EVP_DecryptFinal_ex${final}`),
      clearErrors: library.func('void ERR_clear_error()'),
    }
  } catch (cause) {
    return new Error('OpenSSL inside Node cannot be called directly', { cause })
  }
}

const evp = await bindOpenssl(() => import('koffi'))

/** The engine used unless one is asked for by name: `openssl` wherever it can be had. */
export const defaultAeadEngine: AeadEngine = chooseEngine(evp)

/** The best engine that a binding attempt leaves. */
export function chooseEngine(binding: Evp | Error): AeadEngine {
  return binding instanceof Error ? 'node' : 'openssl'
}

/**
 * Makes an encryptor with one key.
 *
 * @param key 32 bytes; stays the caller's, who may zero it at once.
 */
export function createEncryptor(key: Uint8Array, engine = defaultAeadEngine): AeadEncryptor {
  assert.equal(key.length, aeadKeyBytes)
  return engine === 'openssl' ? opensslEncryptor(boundOpenssl(evp), key) : nodeEncryptor(key)
}

/** Makes a decryptor with one key; `key` as for `createEncryptor`. */
export function createDecryptor(key: Uint8Array, engine = defaultAeadEngine): AeadDecryptor {
  assert.equal(key.length, aeadKeyBytes)
  return engine === 'openssl' ? opensslDecryptor(boundOpenssl(evp), key) : nodeDecryptor(key)
}

/** @throws SluiceError `seal.engine_missing` when the engine was asked for by name but isn't there. */
export function boundOpenssl(binding: Evp | Error): Evp {
  if (binding instanceof Error) {
    throw new SluiceError('seal.engine_missing', 'the fast AES engine is not available here', {
      hint: 'leave the engine out; the slower one of node:crypto is then used',
      cause: binding,
    })
  }
  return binding
}

/** Calls return 1 for success; anything else before the tag check is a bug or no memory. */
function mustSucceed(result: number): void {
  assert.equal(result, 1, 'OpenSSL refused an AES-256-GCM call')
}

/** `outBytes` takes OpenSSL's output counts, `rest` what `Final` writes: nothing, in GCM. */
type OpensslContext = Disposable & { use(): Pointer; outBytes: Uint8Array; rest: Uint8Array }

function opensslContext(evpBound: Evp): OpensslContext {
  let ctx = evpBound.newContext()
  assert(ctx !== null, 'OpenSSL has no memory for a cipher context')
  return {
    outBytes: Buffer.alloc(4),
    rest: Buffer.alloc(aeadTagBytes),
    use() {
      assert(ctx !== null, 'a cipher was used after it was disposed')
      return ctx
    },
    [Symbol.dispose]() {
      // Freeing wipes the key schedule first (EVP_CIPHER_CTX_free, OpenSSL 3).
      if (ctx !== null) evpBound.freeContext(ctx)
      ctx = null
    },
  }
}

function opensslEncryptor(evpBound: Evp, key: Uint8Array): AeadEncryptor {
  const context = opensslContext(evpBound)
  const { outBytes, rest } = context
  mustSucceed(evpBound.encryptInit(context.use(), evpBound.aes256Gcm(), null, key, null))
  return {
    encrypt(nonce, plaintext, into, aad) {
      const ctx = context.use()
      const { length } = plaintext
      assert(nonce.length === aeadNonceBytes && into.length >= length + aeadTagBytes)
      mustSucceed(evpBound.encryptInit(ctx, null, null, null, nonce))
      if (aad) mustSucceed(evpBound.encryptUpdate(ctx, null, outBytes, aad, aad.length))
      if (length > 0) mustSucceed(evpBound.encryptUpdate(ctx, into, outBytes, plaintext, length))
      mustSucceed(evpBound.encryptFinal(ctx, rest, outBytes))
      const tag = into.subarray(length, length + aeadTagBytes)
      mustSucceed(evpBound.control(ctx, ctrlGetTag, aeadTagBytes, tag))
    },
    [Symbol.dispose]: () => context[Symbol.dispose](),
  }
}

function opensslDecryptor(evpBound: Evp, key: Uint8Array): AeadDecryptor {
  const context = opensslContext(evpBound)
  const { outBytes, rest } = context
  mustSucceed(evpBound.decryptInit(context.use(), evpBound.aes256Gcm(), null, key, null))
  return {
    decrypt(nonce, sealed, into, aad) {
      const ctx = context.use()
      const length = sealed.length - aeadTagBytes
      assert(nonce.length === aeadNonceBytes && length >= 0 && into.length >= length)
      mustSucceed(evpBound.decryptInit(ctx, null, null, null, nonce))
      if (aad) mustSucceed(evpBound.decryptUpdate(ctx, null, outBytes, aad, aad.length))
      if (length > 0) mustSucceed(evpBound.decryptUpdate(ctx, into, outBytes, sealed, length))
      mustSucceed(evpBound.control(ctx, ctrlSetTag, aeadTagBytes, sealed.subarray(length)))
      if (evpBound.decryptFinal(ctx, rest, outBytes) === 1) return true
      into.fill(0, 0, length)
      // What OpenSSL may have left in this thread's queue must not be taken for a later call's error.
      evpBound.clearErrors()
      return false
    },
    [Symbol.dispose]: () => context[Symbol.dispose](),
  }
}

function heldKey(key: Uint8Array): Disposable & { use(): Buffer } {
  const held = Buffer.alloc(aeadKeyBytes)
  held.set(key)
  let disposed = false
  return {
    use() {
      assert(!disposed, 'a cipher was used after it was disposed')
      return held
    },
    [Symbol.dispose]() {
      disposed = true
      held.fill(0)
    },
  }
}

function nodeEncryptor(key: Uint8Array): AeadEncryptor {
  const held = heldKey(key)
  return {
    encrypt(nonce, plaintext, into, aad) {
      const { length } = plaintext
      assert(nonce.length === aeadNonceBytes && into.length >= length + aeadTagBytes)
      const cipher = createCipheriv('aes-256-gcm', held.use(), nonce)
      if (aad) cipher.setAAD(aad)
      into.set(cipher.update(plaintext))
      cipher.final()
      into.set(cipher.getAuthTag(), length)
    },
    [Symbol.dispose]: () => held[Symbol.dispose](),
  }
}

function nodeDecryptor(key: Uint8Array): AeadDecryptor {
  const held = heldKey(key)
  return {
    decrypt(nonce, sealed, into, aad) {
      const length = sealed.length - aeadTagBytes
      assert(nonce.length === aeadNonceBytes && length >= 0 && into.length >= length)
      const decipher = createDecipheriv('aes-256-gcm', held.use(), nonce, {
        authTagLength: aeadTagBytes,
      })
      if (aad) decipher.setAAD(aad)
      decipher.setAuthTag(sealed.subarray(length))
      const plaintext = decipher.update(sealed.subarray(0, length))
      const authentic = tagIsRight(decipher)
      if (authentic) into.set(plaintext)
      else into.fill(0, 0, length)
      plaintext.fill(0)
      return authentic
    },
    [Symbol.dispose]: () => held[Symbol.dispose](),
  }
}

/** node:crypto reports a wrong tag as an error without a code of its own. */
function tagIsRight(decipher: DecipherGCM): boolean {
  try {
    decipher.final()
    return true
  } catch {
    return false
  }
}
