/**
 * Size arithmetic of Cobblestone-256, pure and exact up to the largest object a store accepts.
 *
 * @see https://c2sp.org/chunked-encryption
 */
import { SluiceError } from '../errors.ts'
import { limits } from '../limits.ts'

/** Salt (24) and commitment (32): what stands before the first chunk. */
export const saltBytes = 24
export const commitmentBytes = 32
export const headerBytes = saltBytes + commitmentBytes
/** AES-256-GCM tag behind every chunk's ciphertext. */
export const tagBytes = 16
/** Plaintext and sealed bytes of every chunk but the last, which is strictly shorter, even empty. */
export const chunkBytes = limits.chunkBytes
export const sealedChunkBytes = chunkBytes + tagBytes

/**
 * Bytes of a sealed object.
 *
 * @throws SluiceError `seal.bad_input` if `plaintextBytes` is no size, `object.too_large` if the
 *   sealed object would be larger than `limits.sealedBytesMax`.
 */
export function sealedBytesOf(plaintextBytes: number): number {
  requireSize(plaintextBytes)
  const fullChunks = Math.floor(plaintextBytes / chunkBytes)
  const total = headerBytes + plaintextBytes + (fullChunks + 1) * tagBytes
  requireFits(total)
  return total
}

/**
 * Bytes of plaintext in a sealed object of `sealedBytes`.
 *
 * @throws SluiceError `seal.truncated` if no sealed object has this size, `object.too_large` above
 *   `limits.sealedBytesMax`, `seal.bad_input` if it is no size at all.
 */
export function plaintextBytesOf(sealedBytes: number): number {
  requireSize(sealedBytes)
  requireFits(sealedBytes)
  const body = sealedBytes - headerBytes
  const lastChunk = body < 0 ? -1 : body % sealedChunkBytes
  if (lastChunk < tagBytes) {
    throw new SluiceError(
      'seal.truncated',
      `a sealed object cannot have ${sealedBytes} bytes: a part of it is missing`,
    )
  }
  return Math.floor(body / sealedChunkBytes) * chunkBytes + lastChunk - tagBytes
}

/** Where chunk `index` (from 0) begins in the sealed object. */
export function chunkOffset(index: number): number {
  return headerBytes + index * sealedChunkBytes
}

function requireSize(bytes: number): void {
  if (!Number.isSafeInteger(bytes) || bytes < 0) {
    throw new SluiceError('seal.bad_input', `${bytes} is not a number of bytes`)
  }
}

function requireFits(bytes: number): void {
  if (bytes > limits.sealedBytesMax) {
    throw new SluiceError('object.too_large', `a sealed object of ${bytes} bytes is too large`, {
      hint: `the limit is ${limits.sealedBytesMax} bytes; split the media over several jobs`,
    })
  }
}
