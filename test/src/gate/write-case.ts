/** Short forms that many rows of the corpus share. */

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { GateCase, Outcome } from './cases.ts'
import type { Pixels } from './pixels.ts'
import { assertLooksLike } from './pixels.ts'

/** Writes the bytes under a name. */
export function file(name: string, bytes: () => Promise<Buffer> | Buffer): GateCase['make'] {
  return async (folder) => {
    const path = join(folder, name)
    await writeFile(path, await bytes())
    return path
  }
}

/** Asserts that the first outcome looks like these pixels. */
export function looksLike(wanted: Pixels, distanceMax?: number): NonNullable<GateCase['equal']> {
  return async ([first]) => {
    if (first === undefined) throw new Error('nothing left the gate')
    await assertLooksLike(first.bytes, wanted, distanceMax)
  }
}

/** The bytes of the first outcome. */
export function firstBytes(outcomes: readonly Outcome[]): Buffer {
  const [first] = outcomes
  if (first === undefined) throw new Error('nothing left the gate')
  return first.bytes
}
