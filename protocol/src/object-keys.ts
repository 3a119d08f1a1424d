/** Names of objects in the store: random, so that they tell nobody which job they belong to. */
import { z } from 'zod'

/** `a/` and 32 hex digits: 128 random bits under one prefix. */
export const objectKey = z
  .string()
  .regex(/^a\/[0-9a-f]{32}$/)
  .brand<'ObjectKey'>()
export type ObjectKey = z.infer<typeof objectKey>

/** @param random 16 random bytes, given so that this file stays pure. */
export function objectKeyFrom(random: Uint8Array): ObjectKey {
  return objectKey.parse(
    `a/${Array.from(random.subarray(0, 16), (byte) => byte.toString(16).padStart(2, '0')).join('')}`,
  )
}
