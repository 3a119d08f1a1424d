/** Canonical JSON (RFC 8785) for the values evidence is made of, so that equal values are equal bytes. */
import { SluiceError } from './errors.ts'

export type CanonicalValue =
  | string
  | number
  | boolean
  | null
  | readonly CanonicalValue[]
  | { readonly [key: string]: CanonicalValue | undefined }

/** Evidence is shallow. Without a bound a hostile text ends the reader by its stack. */
const depthMax = 32

/**
 * @returns The one canonical text of `value`: keys sorted by UTF-16 code unit, no white space,
 * members that are `undefined` left out.
 * @throws SluiceError `evidence.not_canonical` for a number that is not a safe integer: no
 * evidence of ours holds one, and only for integers do all JSON writers agree; and for a value that
 * nests deeper than any of ours.
 */
export function canonicalJson(value: CanonicalValue): string {
  return textOf(value, 0)
}

function textOf(value: CanonicalValue, depth: number): string {
  if (depth > depthMax)
    throw new SluiceError('evidence.not_canonical', `it nests deeper than ${depthMax} levels`)
  if (typeof value === 'number') {
    if (!Number.isSafeInteger(value) || Object.is(value, -0))
      throw new SluiceError('evidence.not_canonical', `not a safe integer: ${value}`)
    return String(value)
  }
  if (typeof value === 'string') return stringOf(value)
  if (value === null || typeof value !== 'object') return JSON.stringify(value)
  if (isList(value)) return `[${value.map((one) => textOf(one, depth + 1)).join(',')}]`
  const members = Object.keys(value)
    .filter((key) => value[key] !== undefined)
    .toSorted()
    .map((key) => `${stringOf(key)}:${textOf(value[key]!, depth + 1)}`)
  return `{${members.join(',')}}`
}

/**
 * Parses bytes that must be canonical JSON, byte for byte.
 *
 * @throws SluiceError `evidence.not_canonical` for anything else: other spacing, key order,
 * duplicate keys, escapes that need not be, a byte order mark, broken UTF-8.
 */
export function parseCanonicalJson(bytes: Uint8Array): CanonicalValue {
  let text: string
  let value: CanonicalValue
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    value = JSON.parse(text) as CanonicalValue
  } catch (cause) {
    throw new SluiceError('evidence.not_canonical', 'not JSON in UTF-8', { cause })
  }
  if (canonicalJson(value) !== text)
    throw new SluiceError('evidence.not_canonical', 'JSON, but not in its canonical form')
  return value
}

/** RFC 8785, 3.2.2.2: half a surrogate pair is an error, not an escape. */
function stringOf(text: string): string {
  if (!text.isWellFormed())
    throw new SluiceError('evidence.not_canonical', 'a text holds half a surrogate pair')
  return JSON.stringify(text)
}

function isList(value: object): value is readonly CanonicalValue[] {
  return Array.isArray(value)
}
