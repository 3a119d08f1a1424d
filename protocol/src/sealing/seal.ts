/** Seals a stream of plaintext, once, from beginning to end: no seek, no rewrite, no resume. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { SluiceError } from '../errors.ts'
import type { AeadEngine } from './aead.ts'
import { createChunkSealer, deriveChunkKeys } from './chunks.ts'
import { chunkBytes, saltBytes, sealedBytesOf, sealedChunkBytes, tagBytes } from './sealed-size.ts'

export type SealerOptions = {
  /** The job key, 32 bytes, used for this one sealing. Stays the caller's, who may zero it at once. */
  key: Uint8Array
  /** What the sealing is bound to, see `context.ts`. */
  context: Uint8Array
  /** Which AES to use; the fastest one there is by default. */
  engine?: AeadEngine
  /** For vectors only: a salt used twice with one key gives that key away. */
  dangerousTestOnlySalt?: Uint8Array
}

/**
 * One sealing. What was sealed is `header`, then all that `update` and `final` gave, in order.
 * Ends by `final`, by `Symbol.dispose` (thrown away) or by any failure; the key material is
 * zeroed then and further calls throw `seal.finished`.
 */
export type Sealer = Disposable & {
  /** Salt and commitment: the first 56 bytes of the sealed object, known before any plaintext. */
  readonly header: Buffer
  /**
   * Seals more plaintext. Long streams use `updateInto`: a new buffer a call is twice as slow, and
   * the process grows by what the garbage collector has not yet taken.
   *
   * @returns New buffer with the chunks this completed, often empty. It is the caller's.
   * @throws SluiceError `object.too_large` when the sealed object would outgrow the limit.
   */
  update(plaintext: Uint8Array): Buffer
  /**
   * As `update`, into a buffer of the caller's, which must not overlap `plaintext`.
   *
   * @param into Room for `updateBytes(plaintext.length)`.
   * @returns How many bytes were written.
   */
  updateInto(plaintext: Uint8Array, into: Uint8Array): number
  /** How many sealed bytes `update` would give for so many bytes of plaintext. */
  updateBytes(plaintextBytes: number): number
  /** Seals the last chunk, which is 16 to 16,399 bytes, and ends the sealing. */
  final(): Buffer
}

/**
 * Begins a sealing with a fresh random salt.
 *
 * @throws SluiceError `seal.bad_input` unless the key has 32 bytes.
 */
export function createSealer(options: SealerOptions): Sealer {
  const salt = options.dangerousTestOnlySalt ?? randomBytes(saltBytes)
  using keys = deriveChunkKeys({ key: options.key, salt, context: options.context })
  const header = Buffer.concat([salt, keys.commitment])
  const chunks = createChunkSealer(keys, options.engine)
  const pending = Buffer.allocUnsafeSlow(chunkBytes)
  let pendingBytes = 0
  let index = 0
  let taken = 0
  let finished = false

  function end(): void {
    finished = true
    pending.fill(0)
    chunks[Symbol.dispose]()
  }

  function requireOpen(): void {
    if (finished) throw new SluiceError('seal.finished', 'this sealing has ended')
  }

  function updateBytes(plaintextBytes: number): number {
    return Math.floor((pendingBytes + plaintextBytes) / chunkBytes) * sealedChunkBytes
  }

  function updateInto(plaintext: Uint8Array, into: Uint8Array): number {
    requireOpen()
    assert(into.length >= updateBytes(plaintext.length), 'no room for the sealed chunks')
    let completed = false
    try {
      sealedBytesOf(taken + plaintext.length)
      taken += plaintext.length
      const written = sealFullChunks(plaintext, into)
      completed = true
      return written
    } finally {
      // Half of a chunk may be out: nothing that follows could be right.
      if (!completed) end()
    }
  }

  function sealFullChunks(plaintext: Uint8Array, into: Uint8Array): number {
    let read = 0
    let written = 0
    const sealNext = (chunk: Uint8Array): void => {
      chunks.sealChunk(index, chunk, into.subarray(written, written + sealedChunkBytes))
      index += 1
      written += sealedChunkBytes
    }
    if (pendingBytes > 0) {
      read = Math.min(chunkBytes - pendingBytes, plaintext.length)
      pending.set(plaintext.subarray(0, read), pendingBytes)
      pendingBytes += read
      if (pendingBytes < chunkBytes) return 0
      sealNext(pending)
    }
    for (; read + chunkBytes <= plaintext.length; read += chunkBytes) {
      sealNext(plaintext.subarray(read, read + chunkBytes))
    }
    pending.set(plaintext.subarray(read))
    pendingBytes = plaintext.length - read
    return written
  }

  return {
    header,
    updateBytes,
    updateInto,
    update(plaintext) {
      requireOpen()
      const into = Buffer.allocUnsafeSlow(updateBytes(plaintext.length))
      updateInto(plaintext, into)
      return into
    },
    final() {
      requireOpen()
      try {
        const into = Buffer.allocUnsafeSlow(pendingBytes + tagBytes)
        chunks.sealChunk(index, pending.subarray(0, pendingBytes), into)
        return into
      } finally {
        end()
      }
    },
    [Symbol.dispose]: end,
  }
}

/** SHA-256 of a sealed object's 56-byte header: what receipts, leases and envelopes call it by. */
export function sealedHeaderHash(header: Uint8Array): Buffer {
  return createHash('sha256').update(header).digest()
}
