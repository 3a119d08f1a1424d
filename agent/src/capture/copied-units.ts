/**
 * Tells whether coded pictures that are to pass as they are hold nothing but what every decoder shows: one
 * picture a sample, and parameter sets that are used, read to their last bit and without room for words.
 */
import type { UnitWitness } from './check-film.ts'
import { readHevcPicture, readHevcSequence, readHevcVideo } from './hevc-sets.ts'
import { UnitBits } from './unit-bits.ts'

/** Larger than any honest parameter set, scaling lists included. */
const setBytesMax = 2048

/** What looks at the units of a film, and says in the end whether there was more than is shown. */
export type CopiedUnits = UnitWitness & { hidesMore(): boolean }

export function watchUnits(codec: 'h264' | 'hevc'): CopiedUnits {
  const watch = codec === 'h264' ? new AvcUnits() : new HevcUnits()
  let hidden = false
  const look = (work: () => boolean) => {
    try {
      hidden ||= !work()
    } catch (error) {
      // A unit that ends too early: what a decoder makes of it is anybody's guess.
      if (!(error instanceof RangeError)) throw error
      hidden = true
    }
  }
  return {
    parameterSet: (unit) =>
      look(() => unit.length <= setBytesMax && watch.parameterSet(Buffer.from(unit))),
    slice: (start, place) => look(() => watch.slice(start, place)),
    hidesMore: () => hidden || !watch.allUsed(),
  }
}

type Watch = {
  /** Whether it says only what is needed, and is one of the few that there may be. */
  parameterSet(unit: Buffer): boolean
  /** Whether it belongs to the one picture of its sample. */
  slice(start: Buffer, place: { isFirst: boolean }): boolean
  allUsed(): boolean
}

/** Parameter sets of one kind: each number has one content. */
class Sets<T> {
  readonly #known = new Map<number, { unit: Buffer; content: T }>()
  readonly #used = new Set<number>()

  /** Whether it is new, or the same as before. */
  add(id: number, unit: Buffer, content: T): boolean {
    const before = this.#known.get(id)
    if (before !== undefined) return before.unit.equals(unit)
    this.#known.set(id, { unit, content })
    return true
  }

  use(id: number): T | undefined {
    this.#used.add(id)
    return this.#known.get(id)?.content
  }

  get size(): number {
    return this.#known.size
  }

  allUsed(): boolean {
    return this.#used.size === this.#known.size
  }
}

/** @see ITU-T H.264, 7.3.2.1, 7.3.2.2, 7.3.3 and annex E. */
class AvcUnits implements Watch {
  readonly #sequences = new Sets<AvcSequence>()
  readonly #pictures = new Sets<true>()
  #sequence: AvcSequence | undefined
  #last = { macroblock: -1, fields: '' }

  parameterSet(unit: Buffer): boolean {
    const bits = new UnitBits(unit.subarray(1))
    if ((unit.readUInt8(0) & 31) === 7) {
      const sequence = readAvcSequence(bits)
      if (sequence === undefined || !this.#sequences.add(sequence.id, unit, sequence)) return false
      this.#sequence = sequence
      return this.#sequences.size === 1
    }
    const id = readAvcPicture(bits, this.#sequence)
    return id !== undefined && this.#pictures.add(id, unit, true)
  }

  slice(start: Buffer, { isFirst }: { isFirst: boolean }): boolean {
    const bits = new UnitBits(start.subarray(1))
    const macroblock = bits.unsigned()
    bits.unsigned()
    const isKnown = this.#pictures.use(bits.unsigned()) === true
    const sequence = this.#sequence
    if (!isKnown || sequence === undefined || sequence.separatePlanes) return false
    bits.skip(sequence.frameNumberBits)
    const isField = !sequence.framesOnly && bits.flag()
    const field = isField ? (bits.flag() ? 'b' : 't') : 'f'
    const before = this.#last
    const fields = isFirst ? field : macroblock === 0 ? before.fields + field : before.fields
    this.#last = { macroblock, fields }
    if (isFirst) return macroblock === 0
    // The second field of a frame follows in the same sample; nothing else begins anew there.
    if (macroblock === 0) return fields === 'tb' || fields === 'bt'
    return macroblock > before.macroblock && fields.endsWith(field)
  }

  allUsed(): boolean {
    return this.#pictures.allUsed()
  }
}

type AvcSequence = {
  id: number
  separatePlanes: boolean
  frameNumberBits: number
  framesOnly: boolean
  scalingLists: 8 | 12
}

const avcHighProfiles = new Set([100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135])

/** @returns undefined where it says what no decoder needs. */
function readAvcSequence(bits: UnitBits): AvcSequence | undefined {
  const profile = bits.number(8)
  bits.skip(16)
  const id = bits.unsigned()
  let chroma = 1
  let separatePlanes = false
  if (avcHighProfiles.has(profile)) {
    chroma = bits.unsigned()
    separatePlanes = chroma === 3 && bits.flag()
    bits.unsigned()
    bits.unsigned()
    bits.skip(1)
    if (bits.flag()) skipAvcScaling(bits, chroma === 3 ? 12 : 8)
  }
  const frameNumberBits = bits.unsigned() + 4
  const order = bits.unsigned()
  if (order === 0) bits.unsigned()
  // A table of offsets: no encoder here writes one, and it has room for words.
  else if (order !== 2) return undefined
  bits.unsigned()
  bits.skip(1)
  bits.unsigned()
  bits.unsigned()
  const framesOnly = bits.flag()
  if (!framesOnly) bits.skip(1)
  bits.skip(1)
  if (bits.flag()) for (let i = 0; i < 4; i++) bits.unsigned()
  if (bits.flag() && !skipAvcUsability(bits)) return undefined
  if (!bits.isEnd()) return undefined
  const scalingLists = chroma === 3 ? 12 : 8
  return { id, separatePlanes, frameNumberBits, framesOnly, scalingLists }
}

function skipAvcUsability(bits: UnitBits): boolean {
  if (bits.flag() && bits.number(8) === 255) bits.skip(32)
  if (bits.flag()) bits.skip(1)
  if (bits.flag()) {
    bits.skip(4)
    if (bits.flag()) bits.skip(24)
  }
  if (bits.flag()) {
    bits.unsigned()
    bits.unsigned()
  }
  if (bits.flag()) bits.skip(65)
  const buffers = [bits.flag() && skipAvcBuffer(bits), bits.flag() && skipAvcBuffer(bits)]
  if (buffers.includes(undefined)) return false
  if (buffers.includes(true)) bits.skip(1)
  bits.skip(1)
  if (bits.flag()) {
    bits.skip(1)
    for (let i = 0; i < 6; i++) bits.unsigned()
  }
  return true
}

/** How a decoder's buffer fills: one schedule is usual, and 32 have room for words. */
function skipAvcBuffer(bits: UnitBits): true | undefined {
  if (bits.unsigned() !== 0) return undefined
  bits.skip(8)
  bits.unsigned()
  bits.unsigned()
  bits.skip(1 + 20)
  return true
}

function skipAvcScaling(bits: UnitBits, lists: number): void {
  for (let list = 0; list < lists; list++) {
    if (!bits.flag()) continue
    let [last, next] = [8, 8]
    for (let i = 0; i < (list < 6 ? 16 : 64) && next !== 0; i++) {
      next = (last + bits.signed() + 256) % 256
      if (next !== 0) last = next
    }
  }
}

function readAvcPicture(bits: UnitBits, sequence: AvcSequence | undefined): number | undefined {
  const id = bits.unsigned()
  if (sequence === undefined || bits.unsigned() !== sequence.id) return undefined
  bits.skip(2)
  // Groups of slices, by maps of their own.
  if (bits.unsigned() !== 0) return undefined
  bits.unsigned()
  bits.unsigned()
  bits.skip(3)
  for (let i = 0; i < 3; i++) bits.signed()
  bits.skip(2)
  // Slices again, for where the first are lost: no decoder shows them.
  if (bits.flag()) return undefined
  if (bits.isEnd()) return id
  const large = bits.flag()
  if (bits.flag()) skipAvcScaling(bits, large ? 6 + (sequence.scalingLists === 12 ? 6 : 2) : 6)
  bits.signed()
  return bits.isEnd() ? id : undefined
}

/** @see ITU-T H.265, 7.3.1.2, 7.3.2 and 7.3.6.1. */
class HevcUnits implements Watch {
  readonly #videos = new Sets<true>()
  readonly #sequences = new Sets<true>()
  readonly #pictures = new Sets<true>()

  parameterSet(unit: Buffer): boolean {
    const bits = new UnitBits(unit.subarray(2))
    const type = (unit.readUInt8(0) >> 1) & 63
    const [read, sets] =
      type === 32
        ? ([readHevcVideo, this.#videos] as const)
        : type === 33
          ? ([readHevcSequence, this.#sequences] as const)
          : ([readHevcPicture, this.#pictures] as const)
    const id = read(bits)
    if (id === undefined || !bits.isEnd() || !sets.add(id, unit, true)) return false
    return this.#videos.size <= 1 && this.#sequences.size <= 1
  }

  slice(start: Buffer, { isFirst }: { isFirst: boolean }): boolean {
    const type = (start.readUInt8(0) >> 1) & 63
    const bits = new UnitBits(start.subarray(2))
    const begins = bits.flag()
    if (type >= 16 && type <= 23) bits.skip(1)
    return this.#pictures.use(bits.unsigned()) === true && begins === isFirst
  }

  allUsed(): boolean {
    return this.#pictures.allUsed()
  }
}
