/**
 * Reads the parameter sets of HEVC bit by bit. Each reader gives the number of the set, or undefined where
 * it says what no picture of one layer needs: further layers, extensions, slices with words of their own.
 *
 * @see ITU-T H.265, 7.3.2, 7.3.3, 7.3.4, 7.3.7 and annex E.
 */
import type { UnitBits } from './unit-bits.ts'

export function readHevcVideo(bits: UnitBits): number | undefined {
  const id = bits.number(4)
  bits.skip(2)
  const layers = bits.number(6)
  const subLayers = bits.number(3)
  bits.skip(1 + 16)
  skipProfile(bits, subLayers)
  skipOrdering(bits, subLayers)
  const layerIds = bits.number(6)
  const layerSets = bits.unsigned()
  if (layers !== 0 || layerIds !== 0 || layerSets !== 0) return undefined
  if (bits.flag()) {
    bits.skip(64)
    if (bits.flag()) bits.unsigned()
    if (bits.unsigned() !== 0) return undefined
  }
  return bits.flag() ? undefined : id
}

/** Profile, tier and level, of which lower layers may have their own. */
function skipProfile(bits: UnitBits, subLayers: number): void {
  bits.skip(88 + 8)
  const present = Array.from({ length: subLayers }, () => [bits.flag(), bits.flag()] as const)
  if (subLayers > 0) bits.skip(2 * (8 - subLayers))
  for (const [profile, level] of present) bits.skip((profile ? 88 : 0) + (level ? 8 : 0))
}

function skipOrdering(bits: UnitBits, subLayers: number): void {
  const each = bits.flag()
  for (let i = each ? 0 : subLayers; i <= subLayers; i++) skipNumbers(bits, 3)
}

function skipNumbers(bits: UnitBits, count: number): void {
  for (let i = 0; i < count; i++) bits.unsigned()
}

export function readHevcSequence(bits: UnitBits): number | undefined {
  bits.skip(4)
  const subLayers = bits.number(3)
  bits.skip(1)
  skipProfile(bits, subLayers)
  const id = bits.unsigned()
  if (bits.unsigned() === 3) bits.skip(1)
  skipNumbers(bits, 2)
  if (bits.flag()) skipNumbers(bits, 4)
  // Two depths, and how many bits the number of a picture has.
  skipNumbers(bits, 3)
  skipOrdering(bits, subLayers)
  skipNumbers(bits, 6)
  if (bits.flag() && bits.flag()) skipScaling(bits)
  bits.skip(2)
  if (bits.flag()) {
    bits.skip(8)
    skipNumbers(bits, 2)
    bits.skip(1)
  }
  if (!skipReferenceSets(bits, bits.unsigned())) return undefined
  // A list of pictures from long ago: it has room for words, and nobody writes one.
  if (bits.flag() && bits.unsigned() !== 0) return undefined
  bits.skip(2)
  if (bits.flag() && !skipUsability(bits, subLayers)) return undefined
  if (!bits.flag()) return id
  const isRange = bits.flag()
  if (bits.number(7) !== 0) return undefined
  if (isRange) bits.skip(9)
  return id
}

/** As many sets as there are numbers for pictures that are referred to. */
const referenceSetsMax = 64
const referencesMax = 16

function skipReferenceSets(bits: UnitBits, sets: number): boolean {
  if (sets > referenceSetsMax) return false
  const sizes: number[] = []
  for (let set = 0; set < sets; set++) {
    let size = 0
    if (set > 0 && bits.flag()) {
      bits.skip(1)
      bits.unsigned()
      for (let i = 0; i <= (sizes[set - 1] ?? 0); i++) {
        const used = bits.flag()
        if (used || bits.flag()) size++
      }
    } else {
      size = bits.unsigned() + bits.unsigned()
      if (size > referencesMax) return false
      for (let i = 0; i < size; i++) {
        bits.unsigned()
        bits.skip(1)
      }
    }
    sizes.push(size)
  }
  return true
}

function skipUsability(bits: UnitBits, subLayers: number): boolean {
  if (bits.flag() && bits.number(8) === 255) bits.skip(32)
  if (bits.flag()) bits.skip(1)
  if (bits.flag()) {
    bits.skip(4)
    if (bits.flag()) bits.skip(24)
  }
  if (bits.flag()) skipNumbers(bits, 2)
  bits.skip(3)
  if (bits.flag()) skipNumbers(bits, 4)
  if (bits.flag()) {
    bits.skip(64)
    if (bits.flag()) bits.unsigned()
    if (bits.flag() && !skipBuffer(bits, subLayers)) return false
  }
  if (bits.flag()) {
    bits.skip(3)
    skipNumbers(bits, 5)
  }
  return true
}

/** How a decoder's buffer fills: one schedule is usual, and 32 have room for words. */
function skipBuffer(bits: UnitBits, subLayers: number): boolean {
  const kinds = [bits.flag(), bits.flag()].filter(Boolean).length
  const parts = kinds > 0 && bits.flag()
  if (parts) bits.skip(19)
  if (kinds > 0) bits.skip(4 + 4 + (parts ? 4 : 0) + 15)
  for (let layer = 0; layer <= subLayers; layer++) {
    const steady = bits.flag() || bits.flag()
    if (steady) bits.unsigned()
    const late = !steady && bits.flag()
    if (!late && bits.unsigned() !== 0) return false
    for (let kind = 0; kind < kinds; kind++) {
      skipNumbers(bits, parts ? 4 : 2)
      bits.skip(1)
    }
  }
  return true
}

function skipScaling(bits: UnitBits): void {
  for (let size = 0; size < 4; size++) {
    for (let matrix = 0; matrix < 6; matrix += size === 3 ? 3 : 1) {
      if (!bits.flag()) {
        bits.unsigned()
        continue
      }
      const coefficients = Math.min(64, 16 << (2 * size))
      if (size > 1) bits.signed()
      for (let i = 0; i < coefficients; i++) bits.signed()
    }
  }
}

export function readHevcPicture(bits: UnitBits): number | undefined {
  const id = bits.unsigned()
  bits.unsigned()
  bits.skip(1)
  // Pictures that are coded and not shown; bits of slices that nobody knows.
  const hides = bits.flag()
  if (bits.number(3) !== 0 || hides) return undefined
  bits.skip(2)
  skipNumbers(bits, 2)
  bits.signed()
  bits.skip(1)
  const skipsTransform = bits.flag()
  if (bits.flag()) bits.unsigned()
  bits.signed()
  bits.signed()
  bits.skip(4)
  const tiled = bits.flag()
  bits.skip(1)
  if (tiled) {
    const [columns, rows] = [bits.unsigned(), bits.unsigned()]
    if (!bits.flag()) skipNumbers(bits, columns + rows)
    bits.skip(1)
  }
  bits.skip(1)
  if (bits.flag()) {
    bits.skip(1)
    if (!bits.flag()) {
      bits.signed()
      bits.signed()
    }
  }
  if (bits.flag()) skipScaling(bits)
  bits.skip(1)
  bits.unsigned()
  // Words in the head of each slice.
  if (bits.flag()) return undefined
  if (!bits.flag()) return id
  const isRange = bits.flag()
  if (bits.number(7) !== 0) return undefined
  if (isRange) skipPictureRange(bits, skipsTransform)
  return id
}

function skipPictureRange(bits: UnitBits, skipsTransform: boolean): void {
  if (skipsTransform) bits.unsigned()
  bits.skip(1)
  if (bits.flag()) {
    bits.unsigned()
    const offsets = bits.unsigned()
    for (let i = 0; i <= 2 * offsets + 1; i++) bits.signed()
  }
  skipNumbers(bits, 2)
}
