/** The second parser of a film: reads what leaves from its first byte to its last, and knows a place for every one of them. */
import { SluiceError } from '@sluice/protocol/errors'
import { byteCursor } from './byte-cursor.ts'
import type { ByteCursor } from './byte-cursor.ts'
import { frameChecksum } from './check-flac.ts'

/** What the film itself says; 0 where there is no picture, or no sound. */
export type CheckedFilm = {
  widthPixels: number
  heightPixels: number
  frames: number
  sampleRateHz: number
  channels: number
  /** Of the picture, or of the sound where there is none. */
  durationMs: number
  /** Of the longer track. */
  longestMs: number
  /** When the last picture begins. */
  lastPictureMs: number
  /** Frames of the sound. */
  soundFrames: number
}

/** Looks at coded pictures while they are checked. */
export type UnitWitness = {
  /** @param unit All of it, or its first 4 KiB. */
  parameterSet: (unit: Buffer) => void
  /** @param start Its first bytes, with its head in the stream. `isFirst`: of its sample. */
  slice: (start: Buffer, place: { isFirst: boolean }) => void
}

/** The index and the head of one fragment; ours are a thousandth of it. */
const headBytesMax = 4 * 1024 ** 2

type Track = {
  id: number
  codec: 'avc1' | 'hvc1' | 'mp4a' | 'fLaC'
  widthPixels: number
  heightPixels: number
  sampleRateHz: number
  channels: number
  /** Parameter sets of its configuration. */
  sets: Buffer[]
  samples: number
  /** Units of its clock, and how many of them a second has. */
  units: number
  unitsPerSecond: number
  /** When the first sample is shown, when the last one, and until when. */
  firstAt: number
  lastAt: number
  untilAt: number
}

/** Content of a box that is held whole, and where we are in it. */
class Fields {
  #at = 0
  readonly #bytes: Buffer
  readonly #name: string

  constructor(bytes: Buffer, name: string) {
    this.#bytes = bytes
    this.#name = name
  }

  get left(): number {
    return this.#bytes.length - this.#at
  }

  bytes(count: number): Buffer {
    if (count > this.left) throw notClean(`an unfinished ${this.#name}`)
    this.#at += count
    return this.#bytes.subarray(this.#at - count, this.#at)
  }

  number(count: number): number {
    return this.bytes(count).readUIntBE(0, count)
  }

  text(count: number): string {
    return this.bytes(count).toString('latin1')
  }

  /** Fails unless the next bytes are these. */
  is(count: number, value: number, what: string): void {
    if (this.number(count) !== value) throw notClean(`${what} in ${this.#name}`)
  }

  zeros(count: number, what = 'something reserved'): void {
    if (this.bytes(count).some((byte) => byte !== 0)) throw notClean(`${what} in ${this.#name}`)
  }

  end(): void {
    if (this.left > 0) throw notClean(`more than fields in ${this.#name}`)
  }

  /** The boxes that fill the rest, in order. */
  *boxes(): Generator<{ type: string; fields: Fields }> {
    while (this.left > 0) {
      const size = this.number(4)
      const type = this.text(4)
      if (size < 8) throw notClean(`a box of no size in ${this.#name}`)
      yield { type, fields: new Fields(this.bytes(size - 8), type) }
    }
  }

  /** Version and flags. */
  full(): { version: number; flags: number } {
    return { version: this.number(1), flags: this.number(3) }
  }
}

/**
 * Checks a film, or a sound in MP4, that is about to leave. It shares no code with what wrote it, and
 * names what is allowed: anything else fails.
 *
 * @param witness Is shown every unit of coded pictures on the way.
 * @throws SluiceError `media.not_clean`.
 * @see ISO/IEC 14496-12, 14496-14, 14496-15; "Encapsulation of FLAC in ISO Base Media File Format".
 */
export async function checkFilm(
  pieces: AsyncIterable<Buffer>,
  witness?: UnitWitness,
): Promise<CheckedFilm> {
  const cursor = byteCursor(pieces, () => notClean('an unfinished box'))
  checkBrands(await takeBox(cursor, 'ftyp'))
  const tracks = readMovie(await takeBox(cursor, 'moov'))
  for (const set of tracks.flatMap(({ sets }) => sets)) witness?.parameterSet(set)
  let fragments = 0
  while (!(await cursor.ended())) {
    const start = cursor.at
    const head = await takeHead(cursor)
    if (head.type === 'mfra') {
      checkRandomAccess(new Fields(await cursor.take(head.bytes), 'mfra'), tracks)
      if (!(await cursor.ended())) throw notClean('something behind its end')
      break
    }
    if (head.type !== 'moof') throw notClean(head.type)
    const content = new Fields(Buffer.from(await cursor.take(head.bytes)), 'moof')
    const samples = readFragment(content, tracks, { start, number: ++fragments })
    await checkMediaData(cursor, samples, { start, witness })
  }
  const picture = tracks.find(({ codec }) => codec === 'avc1' || codec === 'hvc1')
  const sound = tracks.find(({ codec }) => codec === 'mp4a' || codec === 'fLaC')
  return {
    widthPixels: picture?.widthPixels ?? 0,
    heightPixels: picture?.heightPixels ?? 0,
    frames: picture?.samples ?? 0,
    sampleRateHz: sound?.sampleRateHz ?? 0,
    channels: sound?.channels ?? 0,
    durationMs: lengthOf(picture ?? sound),
    longestMs: Math.max(...tracks.map(lengthOf)),
    lastPictureMs:
      picture === undefined
        ? 0
        : ((picture.lastAt - picture.firstAt) / picture.unitsPerSecond) * 1000,
    soundFrames: sound?.samples ?? 0,
  }
}

function lengthOf(track: Track | undefined): number {
  if (track === undefined || track.untilAt === 0) return 0
  return Math.round(((track.untilAt - track.firstAt) / track.unitsPerSecond) * 1000)
}

async function takeHead(cursor: ByteCursor): Promise<{ type: string; bytes: number }> {
  const head = await cursor.take(8)
  const size = head.readUInt32BE(0)
  const type = head.toString('latin1', 4, 8)
  if (size < 8 || size > headBytesMax) throw notClean(`a box of unlikely size (${type})`)
  return { type, bytes: size - 8 }
}

async function takeBox(cursor: ByteCursor, wanted: string): Promise<Fields> {
  const head = await takeHead(cursor)
  if (head.type !== wanted) throw notClean(`${head.type} where ${wanted} belongs`)
  return new Fields(Buffer.from(await cursor.take(head.bytes)), wanted)
}

/** Brands say which standards are met; they are words of four letters that we know. */
const brands = new Set(['isom', 'iso2', 'iso4', 'iso5', 'iso6', 'avc1', 'mp41', 'mp42', 'hvc1'])

function checkBrands(fields: Fields): void {
  if (!brands.has(fields.text(4))) throw notClean('an unknown brand')
  // The minor version of the brand.
  fields.is(4, 512, 'an unknown version')
  while (fields.left > 0) if (!brands.has(fields.text(4))) throw notClean('an unknown brand')
}

function readMovie(movie: Fields): Track[] {
  const tracks: Track[] = []
  const extended = new Set<number>()
  let seen = 0
  for (const { type, fields } of movie.boxes()) {
    if (type === 'mvhd' && seen++ === 0) checkMovieHeader(fields)
    else if (type === 'trak' && tracks.length < 2) tracks.push(readTrack(fields))
    else if (type === 'mvex') readExtends(fields, extended)
    else if (type === 'free') fields.zeros(fields.left, 'something')
    else throw notClean(type)
  }
  if (seen !== 1 || tracks.length === 0 || extended.size !== tracks.length)
    throw notClean('a lame index')
  for (const { id } of tracks) if (!extended.has(id)) throw notClean('a track of no fragments')
  const kinds = new Set(
    tracks.map(({ codec }) => (/^(?:avc1|hvc1)$/.test(codec) ? 'picture' : 'sound')),
  )
  if (kinds.size !== tracks.length) throw notClean('a second track of one kind')
  return tracks
}

function checkMovieHeader(fields: Fields): void {
  const { version, flags } = fields.full()
  if (version > 1 || flags !== 0) throw notClean('an unknown mvhd')
  fields.zeros(version === 1 ? 16 : 8, 'a date')
  // Units a second, and a duration.
  fields.bytes(version === 1 ? 12 : 8)
  fields.is(4, 0x10000, 'a rate')
  fields.is(2, 0x100, 'a volume')
  fields.zeros(10)
  checkMatrix(fields, false)
  fields.zeros(24)
  // The next track's number.
  fields.bytes(4)
  fields.end()
}

function checkMatrix(fields: Fields, scaled: boolean): void {
  const values = Array.from({ length: 9 }, () => fields.bytes(4).readInt32BE(0))
  const upright = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000]
  const known = values.every((value, i) => value === upright[i])
  if (!known && !scaled) throw notClean('a turned picture')
}

function readTrack(track: Fields): Track {
  let id: number | undefined
  let found: Track | undefined
  for (const { type, fields } of track.boxes()) {
    if (type === 'tkhd' && id === undefined) id = readTrackHeader(fields)
    else if (type === 'edts') checkEdits(fields)
    else if (type === 'mdia' && id !== undefined && found === undefined) {
      found = readMedia(fields, id)
    } else throw notClean(type)
  }
  if (found === undefined) throw notClean('a track without media')
  return found
}

function readTrackHeader(fields: Fields): number {
  const { version, flags } = fields.full()
  if (version > 1 || flags > 15) throw notClean('an unknown tkhd')
  fields.zeros(version === 1 ? 16 : 8, 'a date')
  const id = fields.number(4)
  fields.zeros(4)
  fields.bytes(version === 1 ? 8 : 4)
  fields.zeros(8)
  // Layer, group, and the volume of a sound.
  fields.zeros(2)
  if (fields.number(2) > 1) throw notClean('a group in tkhd')
  if (![0, 0x100].includes(fields.number(2))) throw notClean('a volume in tkhd')
  fields.zeros(2)
  checkMatrix(fields, false)
  fields.bytes(8)
  fields.end()
  return id
}

/** An empty edit for a late start, and one that says where the track begins. */
function checkEdits(edits: Fields): void {
  for (const { type, fields } of edits.boxes()) {
    if (type !== 'elst') throw notClean(type)
    const { version, flags } = fields.full()
    const count = fields.number(4)
    if (version > 1 || flags !== 0 || count > 2) throw notClean('an unknown elst')
    for (let i = 0; i < count; i++) {
      fields.bytes(version === 1 ? 16 : 8)
      fields.is(4, 0x10000, 'a speed')
    }
    fields.end()
  }
}

function readMedia(media: Fields, id: number): Track {
  let kind: string | undefined
  let unitsPerSecond = 0
  let track: Track | undefined
  for (const { type, fields } of media.boxes()) {
    if (type === 'mdhd') unitsPerSecond = readMediaHeader(fields)
    else if (type === 'hdlr' && kind === undefined) kind = readHdlr(fields)
    else if (type === 'minf' && kind !== undefined && track === undefined) {
      track = readInformation(fields, { id, kind })
    } else throw notClean(type)
  }
  if (track === undefined || unitsPerSecond === 0) throw notClean('a track without description')
  return { ...track, unitsPerSecond }
}

/** @returns Units a second. */
function readMediaHeader(fields: Fields): number {
  const { version, flags } = fields.full()
  if (version > 1 || flags !== 0) throw notClean('an unknown mdhd')
  fields.zeros(version === 1 ? 16 : 8, 'a date')
  const unitsPerSecond = fields.number(4)
  fields.bytes(version === 1 ? 8 : 4)
  // Three letters of five bits: "und".
  fields.is(2, 0x55c4, 'a language')
  fields.zeros(2)
  fields.end()
  return unitsPerSecond
}

function readHdlr(fields: Fields): string {
  fields.zeros(8)
  const kind = fields.text(4)
  if (kind !== 'vide' && kind !== 'soun') throw notClean(`a track of kind ${kind}`)
  fields.zeros(12)
  fields.zeros(fields.left, 'a name')
  return kind
}

function readInformation(information: Fields, known: { id: number; kind: string }): Track {
  let track: Track | undefined
  for (const { type, fields } of information.boxes()) {
    if (type === (known.kind === 'vide' ? 'vmhd' : 'smhd')) {
      const { version, flags } = fields.full()
      if (version !== 0 || flags > 1) throw notClean(`an unknown ${type}`)
      fields.zeros(known.kind === 'vide' ? 8 : 4)
      fields.end()
    } else if (type === 'dinf') checkReferences(fields)
    else if (type === 'stbl' && track === undefined) track = readTable(fields, known)
    else throw notClean(type)
  }
  if (track === undefined) throw notClean('a track without samples')
  return track
}

/** One reference, to this file itself, without words. */
function checkReferences(data: Fields): void {
  for (const { type, fields } of data.boxes()) {
    if (type !== 'dref') throw notClean(type)
    fields.zeros(4)
    fields.is(4, 1, 'references')
    for (const entry of fields.boxes()) {
      if (entry.type !== 'url ') throw notClean('a reference')
      entry.fields.is(4, 1, 'a reference')
      entry.fields.end()
    }
  }
}

/** Samples are listed by the fragments: all tables of the index are empty. */
const emptyTables = new Map([
  ['stts', 8],
  ['stsc', 8],
  ['stco', 8],
  ['stsz', 12],
  ['stss', 8],
  ['ctts', 8],
  ['sdtp', 4],
])

function readTable(table: Fields, known: { id: number; kind: string }): Track {
  let track: Track | undefined
  for (const { type, fields } of table.boxes()) {
    const empty = emptyTables.get(type)
    if (empty !== undefined) {
      fields.zeros(empty, 'samples')
      fields.end()
    } else if (type === 'stsd' && track === undefined) track = readDescription(fields, known)
    else throw notClean(type)
  }
  if (track === undefined) throw notClean('samples of unknown kind')
  return track
}

function readDescription(fields: Fields, { id, kind }: { id: number; kind: string }): Track {
  fields.zeros(4)
  fields.is(4, 1, 'several kinds of samples')
  const [entry, second] = [...fields.boxes()]
  if (entry === undefined || second !== undefined) throw notClean('several kinds of samples')
  if (kind === 'vide') {
    if (entry.type !== 'avc1' && entry.type !== 'hvc1') throw notClean(entry.type)
    return { id, codec: entry.type, ...readPictureEntry(entry.fields, entry.type) }
  }
  if (entry.type !== 'mp4a' && entry.type !== 'fLaC') throw notClean(entry.type)
  return { id, codec: entry.type, ...readSoundEntry(entry.fields, entry.type) }
}

type Described = Omit<Track, 'id' | 'codec'>

const noSound = { sampleRateHz: 0, channels: 0 }
const noPicture = { widthPixels: 0, heightPixels: 0 }
const neverShown = { firstAt: Infinity, lastAt: 0, untilAt: 0 }
const nothingYet = { sets: [], samples: 0, units: 0, unitsPerSecond: 0, ...neverShown }

function readPictureEntry(fields: Fields, codec: 'avc1' | 'hvc1'): Described {
  fields.zeros(6)
  fields.is(2, 1, 'a data reference')
  fields.zeros(16)
  const widthPixels = fields.number(2)
  const heightPixels = fields.number(2)
  // 72 dots an inch, both ways; one picture a sample; no encoder's name; 24 bits of depth.
  fields.is(4, 0x480000, 'a resolution')
  fields.is(4, 0x480000, 'a resolution')
  fields.zeros(4)
  fields.is(2, 1, 'pictures a sample')
  fields.zeros(32, "an encoder's name")
  fields.is(2, 24, 'a depth')
  fields.is(2, 0xffff, 'a colour table')
  let configured = false
  const sets: Buffer[] = []
  for (const { type, fields: part } of fields.boxes()) {
    if (type === 'avcC' && codec === 'avc1') sets.push(...checkAvcConfiguration(part))
    else if (type === 'hvcC' && codec === 'hvc1') sets.push(...checkHevcConfiguration(part))
    else if (type === 'pasp') part.bytes(8)
    else if (type === 'btrt') part.bytes(12)
    else if (type === 'fiel') part.bytes(2)
    else if (type === 'colr') checkColour(part)
    else throw notClean(type)
    part.end()
    configured ||= type === 'avcC' || type === 'hvcC'
  }
  if (!configured) throw notClean('pictures that nothing decodes')
  return { widthPixels, heightPixels, ...noSound, ...nothingYet, sets }
}

function checkColour(fields: Fields): void {
  if (fields.text(4) !== 'nclx') throw notClean('a colour profile')
  fields.bytes(7)
}

/** @see ISO/IEC 14496-15, 5.3.3.1: profile, lengths, sequence and picture parameter sets. */
function checkAvcConfiguration(fields: Fields): Buffer[] {
  const sets: Buffer[] = []
  fields.is(1, 1, 'a version')
  const profile = fields.number(1)
  fields.bytes(2)
  fields.is(1, 0xff, 'lengths of fewer than four bytes')
  for (const unitType of [7, 8]) {
    const count = unitType === 7 ? fields.number(1) & 31 : fields.number(1)
    for (let i = 0; i < count; i++) {
      const bytes = fields.number(2)
      const unit = fields.bytes(bytes)
      if (bytes === 0 || (unit.readUInt8(0) & 31) !== unitType) throw notClean('a foreign unit')
      sets.push(unit)
    }
  }
  if (![66, 77, 88].includes(profile) && fields.left > 0) {
    // Chroma format, two depths, and the number of extensions, of which there are none.
    fields.bytes(3)
    fields.is(1, 0, 'an extension')
  }
  return sets
}

/** @see ISO/IEC 14496-15, 8.3.3.1: arrays of video, sequence and picture parameter sets. */
function checkHevcConfiguration(fields: Fields): Buffer[] {
  const sets: Buffer[] = []
  fields.is(1, 1, 'a version')
  fields.bytes(20)
  if ((fields.number(1) & 3) !== 3) throw notClean('lengths of fewer than four bytes in hvcC')
  const arrays = fields.number(1)
  for (let array = 0; array < arrays; array++) {
    const unitType = fields.number(1) & 63
    if (![32, 33, 34].includes(unitType)) throw notClean('a foreign unit')
    const count = fields.number(2)
    for (let i = 0; i < count; i++) {
      const bytes = fields.number(2)
      const unit = fields.bytes(bytes)
      if (bytes < 2 || ((unit.readUInt8(0) >> 1) & 63) !== unitType)
        throw notClean('a foreign unit')
      sets.push(unit)
    }
  }
  return sets
}

function readSoundEntry(fields: Fields, codec: 'mp4a' | 'fLaC'): Described {
  fields.zeros(6)
  fields.is(2, 1, 'a data reference')
  fields.zeros(8)
  let channels = fields.number(2)
  // Bits a sample: of coded sound always 16.
  if (![16, 24].includes(fields.number(2))) throw notClean('a depth in a sound')
  fields.zeros(4)
  let sampleRateHz = fields.number(2)
  fields.zeros(2)
  let configured = false
  for (const { type, fields: part } of fields.boxes()) {
    if (type === 'esds' && codec === 'mp4a') {
      const described = readAacConfiguration(part)
      if (described.channels > 0) channels = described.channels
      sampleRateHz = described.sampleRateHz
      configured = true
    } else if (type === 'dfLa' && codec === 'fLaC') {
      part.zeros(4)
      // STREAMINFO, the last block, 34 bytes.
      part.is(4, 0x80000022, 'a further block')
      part.bytes(10)
      const packed = part.number(4)
      sampleRateHz = packed >>> 12
      channels = ((packed >>> 9) & 7) + 1
      part.bytes(20)
      configured = true
    } else if (type === 'btrt') part.bytes(12)
    else if (type === 'chan') part.bytes(16)
    else throw notClean(type)
    part.end()
  }
  if (!configured) throw notClean('sound that nothing decodes')
  return { ...noPicture, sampleRateHz, channels, ...nothingYet }
}

const aacRates = [
  96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8000,
  7350,
]

/** @see ISO/IEC 14496-1, 7.2.6: descriptors within each other; 14496-3, 1.6.2.1: AudioSpecificConfig. */
function readAacConfiguration(fields: Fields): { sampleRateHz: number; channels: number } {
  fields.zeros(4)
  const stream = readDescriptor(fields, 3)
  stream.bytes(2)
  stream.is(1, 0, 'flags')
  const decoder = readDescriptor(stream, 4)
  decoder.is(1, 0x40, 'another codec than AAC')
  // Stream type, buffer, bit rates.
  decoder.bytes(12)
  const configuration = readDescriptor(decoder, 5)
  if (configuration.left < 2 || configuration.left > 5)
    throw notClean('a long configuration in esds')
  const bits = configuration.number(2)
  const rate = aacRates[(bits >> 7) & 15]
  const channels = (bits >> 3) & 15
  // AAC-LC, of a rate and a layout that have a number: else a table with a comment would follow.
  if (bits >> 11 !== 2 || rate === undefined || channels === 0) throw notClean('a table in esds')
  // What follows may only say that there is no extension: 0x2b7 and its type, not present.
  if (configuration.left > 0) configuration.is(3, 0x56e500, 'an extension')
  decoder.end()
  const last = readDescriptor(stream, 6)
  last.is(1, 2, 'a sync layer')
  last.end()
  stream.end()
  return { sampleRateHz: rate, channels: channels === 7 ? 8 : channels }
}

function readDescriptor(fields: Fields, tag: number): Fields {
  fields.is(1, tag, 'a foreign descriptor')
  let size = 0
  for (let i = 0; i < 4; i++) {
    const byte = fields.number(1)
    size = size * 128 + (byte & 127)
    if (byte < 128) break
  }
  return new Fields(fields.bytes(size), 'esds')
}

function readExtends(extend: Fields, tracks: Set<number>): void {
  for (const { type, fields } of extend.boxes()) {
    if (type === 'mehd') {
      const { version } = fields.full()
      fields.bytes(version === 1 ? 8 : 4)
    } else if (type === 'trex') {
      fields.zeros(4)
      tracks.add(fields.number(4))
      fields.is(4, 1, 'a further description')
      // Default duration, size and flags.
      fields.bytes(12)
    } else throw notClean(type)
    fields.end()
  }
}

type Sample = { track: Track; bytes: number }

function readFragment(
  fragment: Fields,
  tracks: readonly Track[],
  { start, number }: { start: number; number: number },
): { samples: Sample[]; offset: number }[] {
  const runs: { samples: Sample[]; offset: number }[] = []
  let seen = 0
  for (const { type, fields } of fragment.boxes()) {
    if (type === 'mfhd' && seen++ === 0) {
      fields.zeros(4)
      fields.is(4, number, 'another number')
      fields.end()
    } else if (type === 'traf') runs.push(...readTrackFragment(fields, tracks))
    else throw notClean(type)
  }
  if (seen !== 1) throw notClean(`a fragment without number at ${start}`)
  return runs.toSorted((a, b) => a.offset - b.offset)
}

function readTrackFragment(
  fragment: Fields,
  tracks: readonly Track[],
): { samples: Sample[]; offset: number }[] {
  let track: Track | undefined
  const defaults = { duration: 0, bytes: 0 }
  const runs: { samples: Sample[]; offset: number }[] = []
  for (const { type, fields } of fragment.boxes()) {
    if (type === 'tfhd' && track === undefined) {
      const { version, flags } = fields.full()
      // Defaults of description, duration, size, flags; offsets count from the fragment.
      if (version !== 0 || (flags & ~0x3003a) !== 0) throw notClean('an unknown tfhd')
      const id = fields.number(4)
      track = tracks.find((candidate) => candidate.id === id)
      if (flags & 2) fields.is(4, 1, 'a further description')
      if (flags & 8) defaults.duration = fields.number(4)
      if (flags & 16) defaults.bytes = fields.number(4)
      if (flags & 32) fields.bytes(4)
      fields.end()
    } else if (type === 'tfdt') {
      const { version } = fields.full()
      fields.bytes(version === 1 ? 8 : 4)
      fields.end()
    } else if (type === 'trun' && track !== undefined) runs.push(readRun(fields, track, defaults))
    else throw notClean(type)
  }
  if (track === undefined) throw notClean('a fragment of no track')
  return runs
}

function readRun(
  fields: Fields,
  track: Track,
  defaults: { duration: number; bytes: number },
): { samples: Sample[]; offset: number } {
  const { version, flags } = fields.full()
  if (version > 1 || (flags & ~0xf05) !== 0 || (flags & 1) === 0) throw notClean('an unknown trun')
  const count = fields.number(4)
  const offset = fields.number(4)
  if (flags & 4) fields.bytes(4)
  const samples: Sample[] = []
  for (let i = 0; i < count; i++) {
    const duration = flags & 0x100 ? fields.number(4) : defaults.duration
    samples.push({ track, bytes: flags & 0x200 ? fields.number(4) : defaults.bytes })
    if (flags & 0x400) fields.bytes(4)
    // Pictures are shown in another order than they are coded.
    const later = flags & 0x800 ? fields.bytes(4) : undefined
    const shift = version === 1 ? later?.readInt32BE(0) : later?.readUInt32BE(0)
    const shownAt = track.units + (shift ?? 0)
    track.firstAt = Math.min(track.firstAt, shownAt)
    track.lastAt = Math.max(track.lastAt, shownAt)
    track.untilAt = Math.max(track.untilAt, shownAt + duration)
    track.units += duration
    // A run without fields could claim any number of samples.
    if (samples.length > headBytesMax) throw notClean('too many samples')
  }
  fields.end()
  return { samples, offset }
}

/** Every byte between the fragment's head and the next one belongs to one sample, and each is looked at. */
async function checkMediaData(
  cursor: ByteCursor,
  runs: readonly { samples: Sample[]; offset: number }[],
  { start, witness }: { start: number; witness: UnitWitness | undefined },
): Promise<void> {
  const head = await cursor.take(8)
  if (head.toString('latin1', 4, 8) !== 'mdat') throw notClean('a fragment without data')
  const size = head.readUInt32BE(0)
  const headBytes = size === 1 ? 16 : 8
  const bytes = size === 1 ? Number((await cursor.take(8)).readBigUInt64BE(0)) : size
  const end = cursor.at + bytes - headBytes
  for (const { samples, offset } of runs) {
    if (start + offset !== cursor.at) throw notClean('data of no sample')
    for (const sample of samples) {
      if (cursor.at + sample.bytes > end) throw notClean('a sample beyond its data')
      await checkSample(cursor, sample, witness)
      sample.track.samples += 1
    }
  }
  if (cursor.at !== end) throw notClean('data of no sample')
}

async function checkSample(
  cursor: ByteCursor,
  { track, bytes }: Sample,
  witness: UnitWitness | undefined,
): Promise<void> {
  switch (track.codec) {
    case 'avc1':
    case 'hvc1':
      return checkUnits(cursor, { codec: track.codec, end: cursor.at + bytes, witness })
    case 'mp4a': {
      if (bytes === 0) throw notClean('an empty sample')
      const first = (await cursor.take(1)).readUInt8(0) >> 5
      // Channels come first; an encoder that signs its sound does so before them, as fill.
      if (![0, 1, 3].includes(first)) throw notClean("its sound encoder's name")
      return cursor.skip(bytes - 1)
    }
    case 'fLaC': {
      const frame = await cursor.take(bytes)
      if (bytes < 8 || (frame.readUInt16BE(0) & 0xfffe) !== 0xfff8 || frameChecksum(frame) !== 0) {
        throw notClean('a sample that is no FLAC')
      }
    }
  }
}

/** Slices and parameter sets; never SEI, delimiters of unknown content, filler, or what is reserved. */
const allowedUnits = {
  avc1: new Set([1, 5, 7, 8]),
  hvc1: new Set([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 18, 19, 20, 21, 32, 33, 34]),
}

/** What is looked at of a unit: of a parameter set more than there is in any honest one. */
const shownBytes = { set: 4096, slice: 64 }

async function checkUnits(
  cursor: ByteCursor,
  film: { codec: 'avc1' | 'hvc1'; end: number; witness: UnitWitness | undefined },
): Promise<void> {
  const { codec, end, witness } = film
  const setsFrom = codec === 'avc1' ? 7 : 32
  let isFirst = true
  while (cursor.at < end) {
    const bytes = cursor.at + 5 <= end ? (await cursor.take(4)).readUInt32BE(0) : 0
    if (bytes === 0 || cursor.at + bytes > end) throw notClean('a unit that does not fit')
    const head = (await cursor.peek(1)).readUInt8(0)
    const type = codec === 'avc1' ? head & 31 : (head >> 1) & 63
    if (!allowedUnits[codec].has(type)) throw notClean(`a unit of type ${type}`)
    const isSet = type >= setsFrom
    const start = await cursor.take(Math.min(bytes, isSet ? shownBytes.set : shownBytes.slice))
    if (codec === 'hvc1') {
      // Six bits of the layer lie over both bytes of the head; players show the first one.
      const second = start[1] ?? 0xff
      if ((head & 1) !== 0 || second >> 3 !== 0) throw notClean('a unit of a further layer')
    }
    if (isSet) witness?.parameterSet(start)
    else {
      witness?.slice(start, { isFirst })
      isFirst = false
    }
    await cursor.skip(bytes - start.length)
  }
}

/** An index at the end, of where pictures can be entered. */
function checkRandomAccess(access: Fields, tracks: readonly Track[]): void {
  for (const { type, fields } of access.boxes()) {
    const { version, flags } = fields.full()
    if (version > 1 || flags !== 0) throw notClean(`an unknown ${type}`)
    if (type === 'tfra') {
      const id = fields.number(4)
      if (tracks.every((track) => track.id !== id)) throw notClean('an index of no track')
      const lengths = fields.number(4)
      if (lengths > 63) throw notClean('an unknown tfra')
      const numbers = (lengths & 3) + ((lengths >> 2) & 3) + ((lengths >> 4) & 3) + 3
      const count = fields.number(4)
      fields.bytes(count * ((version === 1 ? 16 : 8) + numbers))
    } else if (type === 'mfro') fields.bytes(4)
    else throw notClean(type)
    fields.end()
  }
}

function notClean(what: string): SluiceError {
  return new SluiceError('media.not_clean', `the normalised film still holds ${what}`, {
    hint: 'Nothing was sealed. This is a fault of Sluice: please report it with the versions in use.',
  })
}
