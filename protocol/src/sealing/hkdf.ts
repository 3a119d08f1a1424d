/** HKDF-Expand alone (RFC 5869, section 2.3): node:crypto offers it only joined to Extract. */
import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'

const digestBytes = { sha256: 32, sha512: 64 } as const

/**
 * Expands a pseudo-random key into `bytes` bytes of key material.
 *
 * @param options.prk Pseudo-random key; stays the caller's, who zeroes it.
 * @param options.bytes 1 to 255 times the digest's size.
 * @returns A new buffer outside the pool; the caller zeroes it.
 */
export function hkdfExpand(options: {
  hash: keyof typeof digestBytes
  prk: Uint8Array
  info: Uint8Array
  bytes: number
}): Buffer {
  const { hash, prk, info, bytes } = options
  const step = digestBytes[hash]
  assert(bytes > 0 && bytes <= 255 * step, 'HKDF-Expand gives 1 to 255 digests')
  const output = Buffer.alloc(bytes)
  let previous = Buffer.alloc(0)
  for (let offset = 0, counter = 1; offset < bytes; offset += step, counter += 1) {
    const block = createHmac(hash, prk)
      .update(previous)
      .update(info)
      .update(Uint8Array.of(counter))
      .digest()
    block.copy(output, offset)
    previous.fill(0)
    previous = block
  }
  previous.fill(0)
  return output
}
