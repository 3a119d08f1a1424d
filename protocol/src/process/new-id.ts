/** Makes UUIDv7 identifiers. */
import { randomBytes } from 'node:crypto'

/**
 * A new UUIDv7 (RFC 9562, section 5.7): 48 bits of `atMs`, the rest random.
 *
 * @param schema The id's schema; its brand becomes the result's type.
 * @param atMs Integer epoch milliseconds; time is an argument so that tests decide it.
 */
export function newId<T extends string>(schema: { parse(text: string): T }, atMs: number): T {
  return schema.parse(textOf(randomBytes(16), atMs))
}

/** As `newId`, for thousands at once: their randomness is drawn in one piece. */
export function newIds<T extends string>(
  _schema: { parse(text: string): T },
  atMs: number,
  count: number,
): T[] {
  const bytes = randomBytes(16 * count)
  return Array.from(
    { length: count },
    (_, index) => textOf(bytes.subarray(index * 16, index * 16 + 16), atMs) as T,
  )
}

function textOf(bytes: Buffer, atMs: number): string {
  bytes.writeUIntBE(atMs, 0, 6)
  bytes[6] = 0x70 | (bytes[6]! & 0x0f)
  bytes[8] = 0x80 | (bytes[8]! & 0x3f)
  const hex = bytes.toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
