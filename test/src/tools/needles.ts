/** Makes the byte patterns by which a leak of a medium or a key is recognised wherever it lies. */

import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'

/** Long enough that a hit is never chance, short enough to be found in a fragment. */
export const needleBytes = 32

/** Fewer different bytes than this stand in many files: zeros, silence, one colour. */
const distinctBytesMin = 12

export type Needle = {
  /** Exactly `needleBytes` long. */
  readonly bytes: Buffer
  /** What it was taken from, as `0001.jpg`. */
  readonly source: string
  /** Where in the source it begins. */
  readonly sourceOffset: number
}

function countDistinct(bytes: Uint8Array): number {
  return new Set(bytes).size
}

/**
 * Windows at random offsets of a secret, leaving out windows that innocent files hold too.
 *
 * @param count Windows wanted. A short or monotonous secret yields fewer.
 * @throws AssertionError when a secret yields none: a scan for it would prove nothing.
 */
export function takeNeedles(
  secret: Uint8Array,
  { source, count = 64 }: { source: string; count?: number },
): Needle[] {
  const needles = new Map<number, Needle>()
  const offsetsMax = secret.length - needleBytes + 1
  for (let attempt = 0; attempt < count * 8 && needles.size < count; attempt++) {
    if (offsetsMax < 1) break
    const sourceOffset = randomInt(offsetsMax)
    const bytes = Buffer.from(secret.subarray(sourceOffset, sourceOffset + needleBytes))
    if (countDistinct(bytes) < distinctBytesMin) continue
    needles.set(sourceOffset, { bytes, source, sourceOffset })
  }
  assert.ok(needles.size > 0, `${source} (${secret.length} bytes) yields no needle to scan for`)
  return [...needles.values()]
}

/**
 * Needles for a 32-byte key as it is, and as hex and Base64 would show it in a log or a JSON file.
 * The needles hold the key: only tests make them, for keys that protect nothing.
 */
export function takeKeyNeedles(key: Uint8Array, source: string): Needle[] {
  assert.equal(key.length, needleBytes, 'a key has 32 bytes')
  const raw = Buffer.from(key)
  const needle = (bytes: Buffer, form: string): Needle => ({
    bytes: bytes.subarray(0, needleBytes),
    source: `${source} (${form})`,
    sourceOffset: 0,
  })
  const hex = raw.toString('hex')
  return [
    needle(raw, 'raw'),
    needle(Buffer.from(hex, 'latin1'), 'hex'),
    needle(Buffer.from(hex.toUpperCase(), 'latin1'), 'hex'),
    needle(Buffer.from(raw.toString('base64'), 'latin1'), 'base64'),
    needle(Buffer.from(raw.toString('base64url'), 'latin1'), 'base64url'),
  ]
}
