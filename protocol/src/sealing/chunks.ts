/**
 * The chunks of one sealing: what key and nonce each has, and that none is ever sealed twice.
 *
 * @see https://c2sp.org/chunked-encryption
 */
import assert from 'node:assert/strict'
import { timingSafeEqual } from 'node:crypto'
import { SluiceError } from '../errors.ts'
import {
  aeadKeyBytes,
  aeadNonceBytes,
  createDecryptor,
  createEncryptor,
  type AeadEngine,
} from './aead.ts'
import { hkdfExpand } from './hkdf.ts'
import { commitmentBytes, headerBytes, saltBytes } from './sealed-size.ts'

const label = Buffer.from('c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0', 'latin1')

/** What a key, a salt and a context give. Disposing it zeroes all of it. */
export type ChunkKeys = Disposable & {
  readonly aeadKey: Buffer
  readonly baseNonce: Buffer
  readonly commitment: Buffer
}

/**
 * Derives key, base nonce and commitment: HKDF-Expand-SHA-512 with the input key as pseudo-random
 * key and label, salt and context as info, 76 bytes.
 *
 * @throws SluiceError `seal.bad_input` unless `key` has exactly 32 bytes.
 */
export function deriveChunkKeys(options: {
  key: Uint8Array
  salt: Uint8Array
  context: Uint8Array
}): ChunkKeys {
  const { key, salt, context } = options
  if (key.length !== aeadKeyBytes) {
    throw new SluiceError('seal.bad_input', `a key has ${aeadKeyBytes} bytes, not ${key.length}`)
  }
  assert.equal(salt.length, saltBytes)
  const derived = hkdfExpand({
    hash: 'sha512',
    prk: key,
    info: Buffer.concat([label, salt, context]),
    bytes: aeadKeyBytes + aeadNonceBytes + commitmentBytes,
  })
  return {
    aeadKey: derived.subarray(0, aeadKeyBytes),
    baseNonce: derived.subarray(aeadKeyBytes, aeadKeyBytes + aeadNonceBytes),
    commitment: derived.subarray(aeadKeyBytes + aeadNonceBytes),
    [Symbol.dispose]: () => void derived.fill(0),
  }
}

/**
 * Derives the keys of a sealed object, once its header has shown that key and context are right.
 *
 * @param options.header The object's first 56 bytes.
 * @throws SluiceError `seal.wrong_key` if the commitment in the header is another one.
 */
export function chunkKeysOf(options: {
  key: Uint8Array
  context: Uint8Array
  header: Uint8Array
}): ChunkKeys {
  const { key, context, header } = options
  assert.equal(header.length, headerBytes)
  const keys = deriveChunkKeys({ key, context, salt: header.subarray(0, saltBytes) })
  if (!timingSafeEqual(keys.commitment, header.subarray(saltBytes))) {
    keys[Symbol.dispose]()
    throw new SluiceError('seal.wrong_key', 'this key does not open this object', {
      hint: 'the key or the job id belongs to another object, or the object was changed',
    })
  }
  return keys
}

/**
 * Chunk nonces: the base nonce XOR the chunk index, big-endian and right-aligned. The largest
 * object has fewer than 2^29 chunks, so the index only ever meets the last four bytes.
 */
function chunkNonces(baseNonce: Buffer): Disposable & { at(index: number): Buffer } {
  const low = baseNonce.readUInt32BE(8)
  const nonce = Buffer.from(baseNonce)
  return {
    at(index) {
      assert(index >= 0 && index < 2 ** 32)
      nonce.writeUInt32BE((low ^ index) >>> 0, 8)
      return nonce
    },
    [Symbol.dispose]: () => void nonce.fill(0),
  }
}

/** Seals chunks 0, 1, 2, … each once. */
export type ChunkSealer = Disposable & {
  /**
   * @param into Room for the chunk and its 16-byte tag.
   * @throws SluiceError `seal.chunk_reused` if this index was sealed before: GCM gives its key away
   *   when one nonce covers two texts.
   */
  sealChunk(index: number, plaintext: Uint8Array, into: Uint8Array): void
}

export function createChunkSealer(keys: ChunkKeys, engine?: AeadEngine): ChunkSealer {
  const cipher = createEncryptor(keys.aeadKey, engine)
  const nonces = chunkNonces(keys.baseNonce)
  let next = 0
  return {
    sealChunk(index, plaintext, into) {
      if (index < next) {
        throw new SluiceError('seal.chunk_reused', `chunk ${index} was already sealed`, {
          hint: 'throw this sealing away and begin again with a new key and salt',
        })
      }
      assert.equal(index, next, 'chunks are sealed in order')
      // Counted before the cipher runs: a chunk that failed half-way counts as sealed.
      next = index + 1
      cipher.encrypt(nonces.at(index), plaintext, into)
    },
    [Symbol.dispose]() {
      cipher[Symbol.dispose]()
      nonces[Symbol.dispose]()
    },
  }
}

/** Opens chunks in any order. */
export type ChunkOpener = Disposable & {
  /**
   * @param sealed One chunk with its tag, at least 16 bytes.
   * @param into Room for the plaintext; zeros when the chunk is refused.
   * @throws SluiceError `seal.tampered` if the chunk was not sealed at this index with these keys.
   */
  openChunk(index: number, sealed: Uint8Array, into: Uint8Array): void
}

export function createChunkOpener(keys: ChunkKeys, engine?: AeadEngine): ChunkOpener {
  const cipher = createDecryptor(keys.aeadKey, engine)
  const nonces = chunkNonces(keys.baseNonce)
  return {
    openChunk(index, sealed, into) {
      if (cipher.decrypt(nonces.at(index), sealed, into)) return
      throw new SluiceError(
        'seal.tampered',
        `chunk ${index} of the sealed object is not authentic`,
        {
          hint: 'the object was changed, cut short or put together from parts of others; fetch it again',
        },
      )
    },
    [Symbol.dispose]() {
      cipher[Symbol.dispose]()
      nonces[Symbol.dispose]()
    },
  }
}
