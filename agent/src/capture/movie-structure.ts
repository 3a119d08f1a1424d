/** Reads the boxes of an MP4, MOV, 3GP or M4A for the facts that are needed before anything decodes it. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import {
  corruptMedium,
  cropped,
  placed,
  readAhead,
  requireLimits,
  tooLarge,
  unsupportedMedium,
} from './av-facts.ts'
import type {
  AvFacts,
  PictureEnd,
  PictureFacts,
  Readable,
  ReadOptions,
  SoundFacts,
} from './av-facts.ts'

export type Box = { type: string; offset: number; headerBytes: number; bytes: number }

/** The index of a four-hour film is a few tens of MiB. */
const movieBoxBytesMax = 64 * 1024 ** 2
/** The head of one fragment. */
const fragmentBytesMax = 4 * 1024 ** 2
/** A fragmented film has two boxes per fragment; far from each other, each costs a read of some 60 µs. */
const topBoxesMax = 100_000
const boxesPerLevelMax = 10_000
/** All boxes of an index, tags included. */
const indexBoxesMax = 200_000
/**
 * Of all tracks together, as far as they are listed one by one: a decoder keeps some 70 bytes for each.
 * Eight hours of sound of 192 kHz in AAC have half as many.
 */
const listedSamplesMax = 8_000_000
/** Heads of boxes lie side by side, or far from each other. */
const headPieceBytes = 4096
/** Metadata tracks of a telephone included. */
const allTracksMax = 32
/** Pieces that an edit list puts together; a decoder lists the samples of each anew. */
const editsMax = 1000

/** Boxes that hold boxes; the number is how many bytes come before the first. */
const containers = new Map<string, number>([
  ...['moov', 'trak', 'mdia', 'minf', 'stbl', 'edts', 'dinf', 'tref', 'mvex', 'udta'].map(
    (type) => [type, 0] as const,
  ),
  ...['moof', 'traf', 'mfra', 'ilst', 'gmhd', 'tapt'].map((type) => [type, 0] as const),
])

/**
 * @throws SluiceError `media.corrupt` with the byte when the file is shorter than its boxes say or
 *   has no index, `media.unsupported` when it has nothing to see or hear, is encrypted or keeps its
 *   data in another file, `media.too_large` beyond the limits of the gate.
 */
export async function readMovie(source: Readable, options: ReadOptions = {}): Promise<AvFacts> {
  const removed = new Set<string>()
  const fragments = new Fragments()
  let index: Buffer | undefined
  let indexAt = 0
  const heads = readAhead(source, headPieceBytes)
  let count = 0
  let spares = 0
  for (let at = 0; at < source.bytes;) {
    const headBytes = Math.min(16, source.bytes - at)
    const head = heads.held(at, headBytes) ?? (await heads.read(at, headBytes))
    // Fewer bytes than a box takes, or zeros up to the end: cameras fill their last block.
    const isFilled = head.subarray(0, 8).every((byte) => byte === 0)
    if (index !== undefined && (isFilled || isTrailer(head, source.bytes - at))) {
      removed.add('trailer')
      break
    }
    const isLast = index === undefined && text(head, 4, 4) === 'mdat'
    const box = topBox(head, {
      at,
      left: source.bytes - at,
      // Behind data that are cut short there is no index to be found.
      salvage: options.salvage === true || isLast,
    })
    if (++count > topBoxesMax) throw corruptMedium('film', { byte: at })
    if (at + box.bytes > source.bytes) break
    if (box.type === 'moov') {
      if (index !== undefined || box.bytes > movieBoxBytesMax) {
        throw corruptMedium('film', { byte: at })
      }
      const found = await source.read(at, box.bytes)
      placed(at, () => requireDepth(found, at))
      index = found
      indexAt = at
    }
    if (box.type === 'moof') {
      if (box.bytes > fragmentBytesMax) throw corruptMedium('film', { byte: at })
      const fragment = await source.read(at, box.bytes)
      placed(at, () => fragments.add(fragment, at))
    }
    if (box.type === 'meta' || box.type === 'udta') removed.add('user-data')
    else if (!structural.has(box.type)) removed.add('other')
    if (spare.has(box.type) && box.bytes > box.headerBytes) {
      spares += 1
      const bytes = Math.min(box.bytes, spareBytesMax)
      // Nobody honest has so many; what is in the others is not looked at.
      if (spares > spareBoxesMax) removed.add('other')
      else noteSpare(await heads.read(at, bytes), box.headerBytes, removed)
    }
    at += box.bytes
  }
  if (index === undefined) throw withoutIndex(source.bytes)
  const whole = index
  const facts = placed(indexAt, () => readIndex(whole, { removed, fragments }))
  requireLimits(facts)
  return facts
}

/** Boxes that a film is made of; others are somebody's own, such as positions of a dashboard camera. */
const structural = new Set([
  ...['ftyp', 'styp', 'moov', 'mdat', 'moof', 'mfra', 'sidx', 'ssix', 'prft', 'emsg', 'pdin'],
  ...['free', 'skip', 'wide', 'pnot', 'PICT', 'pict'],
])
const spare = new Set(['free', 'skip', 'wide'])
/** Where something is hidden in free space, it begins at once. */
const spareBytesMax = 4096
const spareBoxesMax = 1000

/** Cameras keep positions and notes in space that is called free. */
function noteSpare(box: Buffer, headerBytes: number, removed: Set<string>): void {
  const content = box.subarray(headerBytes)
  if (content.every((byte) => byte === 0)) return
  removed.add(/gps|GPS|\$G[PN]RMC/.test(content.toString('latin1')) ? 'gps' : 'other')
}

/** A recording that was never ended: its camera ran out of power, or was torn from its card. */
function withoutIndex(byte: number): SluiceError {
  return new SluiceError(
    'media.corrupt',
    `the film is damaged or cut short at byte ${byte}: its index is missing`,
    {
      hint: 'Put the card back into the camera that recorded it, which often mends it; nothing can be taken without an index.',
    },
  )
}

/** What may hold samples, or say where they are. */
const filmBoxes = new Set(['mdat', 'moov', 'moof', 'mfra', 'mfro'])

/** Some cameras write more behind the last box, in a form of their own: no box of the film is cut there. */
function isTrailer(head: Buffer, left: number): boolean {
  if (head.length < 8 || filmBoxes.has(text(head, 4, 4))) return false
  try {
    boxAt(head, 0, left)
    return false
  } catch {
    return true
  }
}

function topBox(head: Buffer, place: { at: number; left: number; salvage: boolean }): Box {
  const { at, left, salvage } = place
  try {
    return boxAt(head, 0, salvage ? Number.MAX_SAFE_INTEGER : left)
  } catch (cause) {
    throw Object.assign(corruptMedium('film', { byte: at }), { cause })
  }
}

/** A box within a box within a box has no end but this one; `ffmpeg` and others call themselves. */
function requireDepth(index: Buffer, at: number): void {
  const open = [{ box: boxAt(index, 0, index.length), depth: 1 }]
  let count = 0
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    const { box, depth } = next
    if (depth > limits.boxDepthMax) {
      throw tooLarge('film', 'has boxes too deep within each other', `${limits.boxDepthMax}`)
    }
    const [start, end] = contentRange(box)
    const skipped = containers.get(box.type)
    if (skipped === undefined) continue
    for (const child of boxesIn(index, [start + skipped, end], true)) {
      if (++count > indexBoxesMax) throw corruptMedium('film', { byte: at + child.offset })
      open.push({ box: child, depth: depth + 1 })
    }
  }
}

type FragmentSum = { samples: number; units: number; lastUnits: number }

/** What the fragments of a film add up to: samples and units of time of each track. */
class Fragments {
  readonly tracks = new Map<number, FragmentSum>()
  #count = 0

  add(fragment: Buffer, at: number): void {
    const inside = boxesIn(fragment, contentRange(boxAt(fragment, 0, fragment.length)))
    for (const traf of inside.filter(({ type }) => type === 'traf')) {
      const boxes = boxesIn(fragment, contentRange(traf))
      const head = boxes.find(({ type }) => type === 'tfhd')
      if (head === undefined || head.bytes < head.headerBytes + 8) {
        throw corruptMedium('film', { byte: at })
      }
      const start = head.offset + head.headerBytes
      const flags = fragment.readUInt32BE(start) & 0xffffff
      const before = 8 + (flags & 1 ? 8 : 0) + (flags & 2 ? 4 : 0)
      const given = (flags & 8) !== 0 && head.bytes >= head.headerBytes + before + 4
      const duration = given ? fragment.readUInt32BE(start + before) : 0
      const track = this.#track(fragment.readUInt32BE(start + 4))
      for (const run of boxes.filter(({ type }) => type === 'trun')) {
        addRun({ fragment, run, duration, track, at })
      }
    }
  }

  #track(id: number): FragmentSum {
    const known = this.tracks.get(id)
    if (known !== undefined) return known
    if (++this.#count > allTracksMax) {
      throw tooLarge('film', 'has too many tracks', `${limits.tracksMax} of picture and sound`)
    }
    const track = { samples: 0, units: 0, lastUnits: 0 }
    this.tracks.set(id, track)
    return track
  }
}

/** @see ISO/IEC 14496-12, 8.8.8: which fields a sample has is told by flags. */
function addRun(options: {
  fragment: Buffer
  run: Box
  duration: number
  track: FragmentSum
  at: number
}): void {
  const { fragment, run, duration, track, at } = options
  const start = run.offset + run.headerBytes
  if (run.bytes < run.headerBytes + 8) throw corruptMedium('film', { byte: at })
  const flags = fragment.readUInt32BE(start) & 0xffffff
  const samples = fragment.readUInt32BE(start + 4)
  const first = start + 8 + (flags & 1 ? 4 : 0) + (flags & 4 ? 4 : 0)
  const sampleBytes = [0x100, 0x200, 0x400, 0x800].filter((flag) => flags & flag).length * 4
  if (first + samples * sampleBytes > run.offset + run.bytes) {
    throw corruptMedium('film', { byte: at })
  }
  track.samples += samples
  track.lastUnits = duration
  if ((flags & 0x100) === 0) track.units += samples * duration
  else {
    for (let i = 0; i < samples; i++) {
      track.lastUnits = fragment.readUInt32BE(first + i * sampleBytes)
      track.units += track.lastUnits
    }
  }
}

function readIndex(
  index: Buffer,
  { removed, fragments }: { removed: Set<string>; fragments: Fragments },
): AvFacts {
  const boxes = boxesIn(index, contentRange(boxAt(index, 0, index.length)), true)
  if (boxes.some((box) => box.type === 'cmov')) {
    throw unsupportedMedium('film', 'a film with a compressed index')
  }
  const header = boxes.find((box) => box.type === 'mvhd')
  if (header === undefined) throw corruptMedium('film')
  const found = boxes.filter((box) => box.type === 'trak')
  if (found.length > allTracksMax) {
    throw tooLarge('film', 'has too many tracks', `${limits.tracksMax} of picture and sound`)
  }
  const turned = isFilmTurned(index, header)
  const scale = readDuration(index, header).scale
  const all = found.map((box) => readTrack(index, box, { fragments, turned, scale }))
  const inFragments = [...fragments.tracks.values()].map(({ samples }) => samples)
  const listed = [...all.map(({ listedSamples }) => listedSamples), ...inFragments]
  if (listed.reduce((sum, samples) => sum + samples, 0) > listedSamplesMax) {
    throw tooLarge('film', 'has too many samples', `${listedSamplesMax}`)
  }
  const chapters = new Set(all.flatMap((track) => track.chapters))
  const tracks = all.filter((track) => !chapters.has(track.id))
  const played = tracks.filter((track) => track.kind === 'video' || track.kind === 'sound')
  if (played.length > limits.tracksMax) {
    throw tooLarge('film', 'has too many tracks', `${limits.tracksMax} of picture and sound`)
  }
  if (tracks.length < all.length) removed.add('chapters')
  noteMetadata({ index, boxes, tracks: all, removed })
  const pictures = tracks.flatMap(({ picture }) => picture ?? [])
  for (const picture of pictures.slice(1)) {
    requireLimits({ durationMs: 0, picture, sound: undefined, removed: [] })
  }
  // Tracks that aren't played may be longer, and so may the header that counts them.
  const shownMs = Math.max(0, ...played.map((track) => track.shownMs))
  const films = tracks.filter((track) => track.picture !== undefined)
  const sounds = tracks.filter((track) => track.kind === 'sound')
  const chosen = { picture: firstEnabled(films), sound: firstEnabled(sounds) }
  return {
    // What an edit list shows again and again is longer than what is there.
    durationMs: Math.max(shownMs, ...played.map((track) => track.durationMs)),
    shownMs,
    picture: films[chosen.picture]?.picture,
    sound: sounds[chosen.sound]?.sound,
    ...(chosen.picture + chosen.sound === 0 ? {} : { tracks: chosen }),
    removed: [...removed].toSorted(),
  }
}

/** What is not enabled no player shows; where none is, the first is meant. */
function firstEnabled(tracks: readonly Track[]): number {
  return Math.max(
    0,
    tracks.findIndex(({ enabled }) => enabled),
  )
}

type Track = {
  id: number
  /** Whether it is to be played. */
  enabled: boolean
  kind: 'video' | 'sound' | 'timecode' | 'timed-metadata' | 'subtitles' | 'other-tracks'
  /** As its head has it. */
  durationMs: number
  /** As its samples and its edit list have it. */
  shownMs: number
  /** What a decoder lists one by one when it opens the file, outside of fragments. */
  listedSamples: number
  picture: PictureFacts | undefined
  sound: SoundFacts | undefined
  /** Numbers of the tracks that only hold this one's chapters. */
  chapters: number[]
  hasUserData: boolean
}

const trackKinds = new Map<string, Track['kind']>([
  ['vide', 'video'],
  ['soun', 'sound'],
  ['tmcd', 'timecode'],
  ['meta', 'timed-metadata'],
  ['camm', 'timed-metadata'],
  ['text', 'subtitles'],
  ['sbtl', 'subtitles'],
  ['subt', 'subtitles'],
  ['clcp', 'subtitles'],
])

function readTrack(
  index: Buffer,
  track: Box,
  film: { fragments: Fragments; turned: boolean; scale: number },
): Track {
  const { fragments, turned } = film
  const children = boxesIn(index, contentRange(track), true)
  const head = children.find((box) => box.type === 'tkhd')
  const inside = within(index, track, 'mdia')
  const header = inside.find((box) => box.type === 'mdhd')
  const handling = inside.find((box) => box.type === 'hdlr')
  const information = inside.find((box) => box.type === 'minf')
  if (head === undefined || header === undefined || handling === undefined) {
    throw corruptMedium('film')
  }
  if (information === undefined || handling.bytes < handling.headerBytes + 12) {
    throw corruptMedium('film')
  }
  const id = readTrackId(index, head)
  const kind = trackKinds.get(text(index, handling.offset + handling.headerBytes + 8, 4))
  const parts = boxesIn(index, contentRange(information), true)
  if (kind === 'video' || kind === 'sound') requireOwnData(index, parts)
  const table = within(index, information, 'stbl')
  const description = table.find((box) => box.type === 'stsd')
  const counted = sampleCount(index, table)
  const pieces = fragments.tracks.get(id)
  const samples = counted + (pieces?.samples ?? 0)
  const timing = readDuration(index, header)
  const extraMs = timing.scale === 0 ? 0 : Math.round(((pieces?.units ?? 0) / timing.scale) * 1000)
  // Some say in the head how long all fragments together are, others only what comes before them.
  const durationMs =
    counted === 0 ? Math.max(timing.durationMs, extraMs) : timing.durationMs + extraMs
  const edits = readEdits(index, track)
  const times = readTimes(index, table)
  const units = (times?.units ?? 0) + (pieces?.units ?? 0)
  const media = {
    units,
    scale: timing.scale,
    lastUnits: pieces?.lastUnits ?? times?.lastUnits ?? 0,
  }
  const known = units > 0 && timing.scale > 0
  const end = known ? endOf(edits, media, film.scale) : undefined
  const wholeMs = known ? endOf([], media, film.scale).untilMs : 0
  const trimmed = isTrimmed({ index, track, edits }) || isCut(end, wholeMs)
  const lies = turned || isTurned(index, head)
  const edited = lies || trimmed
  return {
    id,
    // ISO/IEC 14496-12, 8.3.2: the lowest of the flags.
    enabled: (index.readUInt8(head.offset + head.headerBytes + 3) & 1) !== 0,
    kind: kind ?? 'other-tracks',
    durationMs,
    shownMs: end === undefined ? durationMs : Math.round(end.untilMs),
    listedSamples: kind === 'sound' && isBare(index, table) ? 0 : counted,
    picture:
      kind === 'video' && description !== undefined
        ? {
            ...readPicture(index, description, lies),
            frames: samples,
            ...(edited ? { edited } : {}),
            ...(end === undefined ? {} : { end }),
          }
        : undefined,
    sound:
      kind === 'sound' && description !== undefined ? readSound(index, description) : undefined,
    chapters: readReferences(index, children),
    hasUserData: children.some((box) => box.type === 'udta' || box.type === 'meta'),
  }
}

/** @see ISO/IEC 14496-12, 8.3.2: `tkhd`; its matrix ends 8 bytes before the box. */
function readTrackId(index: Buffer, head: Box): number {
  const start = head.offset + head.headerBytes
  const long = index[start] === 1
  if (head.bytes < head.headerBytes + (long ? 92 : 80)) throw corruptMedium('film')
  return index.readUInt32BE(start + (long ? 20 : 12))
}

const uprightMatrix = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000]

function isTurned(index: Buffer, head: Box): boolean {
  const start = head.offset + head.headerBytes
  return isMatrixTurned(index, start + (index[start] === 1 ? 52 : 40))
}

/** The head of the film has a matrix too, which decoders apply to every track beside its own. */
function isFilmTurned(index: Buffer, header: Box): boolean {
  const start = header.offset + header.headerBytes
  const at = start + (index[start] === 1 ? 48 : 36)
  return at + 36 <= header.offset + header.bytes && isMatrixTurned(index, at)
}

function isMatrixTurned(index: Buffer, at: number): boolean {
  return uprightMatrix.some((value, i) => index.readInt32BE(at + i * 4) !== value)
}

/** In units of the film's clock, and of the track's; a media time of -1 shows nothing for a while. */
type Edit = { units: number; mediaTime: number }

/** @see ISO/IEC 14496-12, 8.6.6: the edit list; how fast it is shown no decoder here minds. */
function readEdits(index: Buffer, track: Box): Edit[] {
  const list = within(index, track, 'edts').find((box) => box.type === 'elst')
  if (list === undefined) return []
  const start = list.offset + list.headerBytes
  if (list.bytes < list.headerBytes + 8) throw corruptMedium('film')
  const long = index[start] === 1
  const count = index.readUInt32BE(start + 4)
  const entryBytes = long ? 20 : 12
  if (count > editsMax) throw tooLarge('film', 'is cut into too many pieces', `${editsMax}`)
  const held = Math.floor((list.bytes - list.headerBytes - 8) / entryBytes)
  return Array.from({ length: Math.min(count, held) }, (_, i) => {
    const at = start + 8 + i * entryBytes
    return long
      ? {
          units: Number(index.readBigUInt64BE(at)),
          mediaTime: Number(index.readBigInt64BE(at + 8)),
        }
      : { units: index.readUInt32BE(at), mediaTime: index.readInt32BE(at + 4) }
  })
}

/** Whether an edit list shows anything but the whole track once, from its beginning. */
function isTrimmed(options: { index: Buffer; track: Box; edits: readonly Edit[] }): boolean {
  const { index, track, edits } = options
  const [edit, second] = edits
  if (edit === undefined) return false
  // Pictures that are shown out of order begin a little later than zero; the list says by how much.
  return second !== undefined || edit.mediaTime !== firstShownAt(index, track)
}

/** Films that begin late by their order of pictures end as much earlier; what was cut off is longer. */
const cutMsMin = 500

function isCut(end: PictureEnd | undefined, wholeMs: number): boolean {
  return end !== undefined && wholeMs - end.untilMs > cutMsMin
}

/** How long the edit list shows a track, and when the last of its samples begins there. */
function endOf(
  edits: readonly Edit[],
  media: { units: number; scale: number; lastUnits: number },
  filmScale: number,
): PictureEnd {
  const ms = (units: number) => (units / media.scale) * 1000
  let untilMs = edits.length === 0 ? ms(media.units) : 0
  for (const { units, mediaTime } of edits) {
    if (mediaTime < 0) continue
    const restMs = Math.max(0, ms(media.units - mediaTime))
    // Zero: up to the end, as fragmented films have it.
    const wantedMs = units === 0 || filmScale === 0 ? restMs : (units / filmScale) * 1000
    untilMs += Math.min(wantedMs, restMs)
  }
  return { untilMs, lastMs: Math.max(0, untilMs - ms(media.lastUnits)), clockHz: media.scale }
}

/** How long all samples of an index are together, and the last one. */
function readTimes(
  index: Buffer,
  table: readonly Box[],
): { units: number; lastUnits: number } | undefined {
  const times = table.find((box) => box.type === 'stts')
  if (times === undefined || times.bytes < times.headerBytes + 8) return undefined
  const start = times.offset + times.headerBytes
  const count = index.readUInt32BE(start + 4)
  if (times.bytes < times.headerBytes + 8 + count * 8) throw corruptMedium('film')
  let units = 0
  let lastUnits = 0
  for (let at = start + 8; at < start + 8 + count * 8; at += 8) {
    lastUnits = index.readUInt32BE(at + 4)
    units += index.readUInt32BE(at) * lastUnits
  }
  return { units, lastUnits }
}

/** When the first picture is shown, by `ctts`; 0 without one. */
function firstShownAt(index: Buffer, track: Box): number {
  const media = boxesIn(index, contentRange(track), true).find((box) => box.type === 'mdia')
  const information =
    media && boxesIn(index, contentRange(media), true).find((box) => box.type === 'minf')
  const offsets =
    information && within(index, information, 'stbl').find((box) => box.type === 'ctts')
  if (offsets === undefined || offsets.bytes < offsets.headerBytes + 16) return 0
  return index.readInt32BE(offsets.offset + offsets.headerBytes + 12)
}

function readReferences(index: Buffer, children: readonly Box[]): number[] {
  const references = children.find((box) => box.type === 'tref')
  if (references === undefined) return []
  return boxesIn(index, contentRange(references), true)
    .filter((box) => box.type === 'chap')
    .flatMap((box) => {
      const ids: number[] = []
      const [start, end] = contentRange(box)
      for (let at = start; at + 4 <= end && ids.length < allTracksMax; at += 4) {
        ids.push(index.readUInt32BE(at))
      }
      return ids
    })
}

/** `stsz` and `stz2` count samples at the same place. */
function sampleCount(index: Buffer, table: readonly Box[]): number {
  const sizes = table.find((box) => box.type === 'stsz' || box.type === 'stz2')
  if (sizes === undefined) return 0
  if (sizes.bytes < sizes.headerBytes + 12) throw corruptMedium('film')
  const start = sizes.offset + sizes.headerBytes
  const count = index.readUInt32BE(start + 8)
  const each = sizes.type === 'stz2' ? index.readUInt8(start + 7) / 8 : 4
  const listed = sizes.type === 'stz2' || index.readUInt32BE(start + 4) === 0
  if (listed && start + 12 + count * each > sizes.offset + sizes.bytes) throw corruptMedium('film')
  return count
}

/** Samples that each last one unit of time, such as PCM, are counted by chunks and not one by one. */
function isBare(index: Buffer, table: readonly Box[]): boolean {
  const times = table.find((box) => box.type === 'stts')
  if (times === undefined || times.bytes < times.headerBytes + 16) return false
  const start = times.offset + times.headerBytes
  return index.readUInt32BE(start + 4) === 1 && index.readUInt32BE(start + 12) === 1
}

/** Codecs whose coded pictures alone may say that they are of high dynamic range. */
const maybeHigh = new Set(['hvc1', 'hev1', 'dvh1', 'dvhe', 'av01', 'vp09', 'apcn', 'apch', 'apcs'])

/** @see ISO/IEC 14496-12, 12.1.3: VisualSampleEntry, and 12.1.5: ColourInformationBox. */
function readPicture(
  index: Buffer,
  description: Box,
  lies: boolean,
): Omit<PictureFacts, 'frames' | 'end'> {
  const start = description.offset + description.headerBytes + 8
  const end = description.offset + description.bytes
  if (start + 86 > end) throw corruptMedium('film')
  const entry = boxAt(index, start, end - start)
  if (entry.bytes < 86) throw corruptMedium('film')
  if (entry.type === 'encv' || entry.type === 'drmi') {
    throw unsupportedMedium('film', 'an encrypted film')
  }
  const parts = boxesIn(index, [start + 86, start + entry.bytes], true)
  const colour = parts.find((box) => box.type === 'colr' && box.bytes >= 18)
  const named = colour !== undefined && /^ncl[xc]$/.test(text(index, colour.offset + 8, 4))
  const transfer = named ? index.readUInt16BE(colour.offset + 14) : 2
  const size = {
    widthPixels: index.readUInt16BE(start + 32),
    heightPixels: index.readUInt16BE(start + 34),
  }
  const single = description.bytes === description.headerBytes + 8 + entry.bytes
  return {
    codec: !single
      ? 'other'
      : entry.type === 'avc1'
        ? 'h264'
        : entry.type === 'hvc1' || entry.type === 'hev1'
          ? 'hevc'
          : 'other',
    called: entry.type,
    ...size,
    // Of a picture that lies on its side, nobody else minds it either.
    ...(lies ? { edited: true } : readAperture(index, parts, size)),
    // ISO/IEC 23091-2: 16 is PQ (SMPTE ST 2084), 18 is HLG, 2 unspecified.
    highDynamicRange:
      transfer === 16 || transfer === 18
        ? true
        : transfer !== 2 || !(maybeHigh.has(entry.type) || deepH264(index, parts))
          ? false
          : undefined,
  }
}

/** @see ISO/IEC 14496-12, 12.1.4: CleanApertureBox, its centre told from that of the picture. */
function readAperture(
  index: Buffer,
  parts: readonly Box[],
  size: { widthPixels: number; heightPixels: number },
): ReturnType<typeof cropped> {
  const aperture = parts.find((box) => box.type === 'clap' && box.bytes >= 40)
  if (aperture === undefined) return { edited: false }
  const at = aperture.offset + aperture.headerBytes
  const ratio = (i: number) => {
    const above = i < 2 ? index.readUInt32BE(at + i * 8) : index.readInt32BE(at + i * 8)
    return above / Math.max(1, index.readUInt32BE(at + i * 8 + 4))
  }
  const [widthPixels, heightPixels] = [Math.round(ratio(0)), Math.round(ratio(1))]
  const left = Math.round((size.widthPixels - widthPixels) / 2 + ratio(2))
  const top = Math.round((size.heightPixels - heightPixels) / 2 + ratio(3))
  return cropped({ left, top, widthPixels, heightPixels }, size)
}

/** `avcC` begins with the profile: from 110 on there may be more than eight bits. */
function deepH264(index: Buffer, parts: readonly Box[]): boolean {
  const configuration = parts.find((box) => box.type === 'avcC' && box.bytes > 10)
  return configuration !== undefined && index.readUInt8(configuration.offset + 9) >= 110
}

/** @see ISO/IEC 14496-12, 12.2.3, and QuickTime File Format, "Sound Sample Description (Version 2)". */
function readSound(index: Buffer, description: Box): SoundFacts {
  const start = description.offset + description.headerBytes + 8
  const end = description.offset + description.bytes
  if (start + 36 > end) throw corruptMedium('film')
  const type = text(index, start + 4, 4)
  if (type === 'enca' || type === 'drms') throw unsupportedMedium('film', 'an encrypted film')
  if (index.readUInt16BE(start + 16) === 2) {
    if (start + 52 > end) throw corruptMedium('film')
    const rate = index.readDoubleBE(start + 40)
    return {
      sampleRateHz: Number.isFinite(rate) ? Math.round(rate) : Number.MAX_SAFE_INTEGER,
      channels: index.readUInt32BE(start + 48),
    }
  }
  return {
    called: type,
    sampleRateHz: index.readUInt16BE(start + 32),
    channels: index.readUInt16BE(start + 24),
  }
}

/** A data reference without the flag "in this file" names another file or a URL. */
function requireOwnData(index: Buffer, information: readonly Box[]): void {
  const data = information.find((box) => box.type === 'dinf')
  const references = data && boxesIn(index, contentRange(data), true)
  for (const list of references?.filter((box) => box.type === 'dref') ?? []) {
    const [start, end] = contentRange(list)
    for (const box of boxesIn(index, [start + 8, end], true)) {
      const flags = box.bytes < 12 ? 0 : index.readUInt32BE(box.offset + 8) & 0xffffff
      if ((flags & 1) === 0) {
        throw unsupportedMedium('film', 'a film whose data lie in another file')
      }
    }
  }
}

/** The marks of a place: Apple's, 3GPP's and Android's. */
const places = ['\xa9xyz', 'loci', 'location.ISO6709', 'GPS']

function noteMetadata(options: {
  index: Buffer
  boxes: readonly Box[]
  tracks: readonly Track[]
  removed: Set<string>
}): void {
  const { index, boxes, tracks, removed } = options
  const loose = boxes.filter((box) => ['udta', 'meta', 'uuid'].includes(box.type))
  if (loose.length > 0 || tracks.some((track) => track.hasUserData)) removed.add('user-data')
  for (const box of loose) {
    const content = index.subarray(...contentRange(box))
    if (places.some((key) => content.includes(key, 0, 'latin1'))) removed.add('gps')
    if (content.includes('covr', 0, 'latin1')) removed.add('cover')
    if (content.includes('chpl', 0, 'latin1')) removed.add('chapters')
    if (content.includes('XMP_', 0, 'latin1')) removed.add('xmp')
  }
  const header = boxes.find((box) => box.type === 'mvhd')
  if (header !== undefined && hasDate(index, header)) removed.add('time')
  for (const kind of ['timecode', 'timed-metadata', 'subtitles', 'other-tracks'] as const) {
    if (tracks.some((track) => track.kind === kind)) removed.add(kind)
  }
  for (const kind of ['video', 'sound'] as const) {
    if (tracks.filter((track) => track.kind === kind).length > 1) removed.add('further-tracks')
  }
}

function hasDate(index: Buffer, header: Box): boolean {
  const start = header.offset + header.headerBytes
  return index
    .subarray(start + 4, start + (index[start] === 1 ? 20 : 12))
    .some((byte) => byte !== 0)
}

/** `mvhd` and `mdhd` share the layout of their first fields. */
function readDuration(index: Buffer, header: Box): { scale: number; durationMs: number } {
  const at = header.offset + header.headerBytes
  const long = index[at] === 1
  if (header.bytes < header.headerBytes + (long ? 32 : 20)) throw corruptMedium('film')
  const scale = index.readUInt32BE(at + (long ? 20 : 12))
  const units = long ? Number(index.readBigUInt64BE(at + 24)) : index.readUInt32BE(at + 16)
  const unknown = long ? units >= 2 ** 63 : units === 0xffffffff
  if (unknown || units === 0) return { scale, durationMs: 0 }
  if (scale === 0) throw corruptMedium('film')
  return { scale, durationMs: Math.round((units / scale) * 1000) }
}

function within(index: Buffer, parent: Box, type: string): Box[] {
  const child = boxesIn(index, contentRange(parent), true).find((box) => box.type === type)
  return child === undefined ? [] : boxesIn(index, contentRange(child), true)
}

/** First byte of a box's content and the byte behind it. */
export function contentRange(box: Box): [number, number] {
  return [box.offset + box.headerBytes, box.offset + box.bytes]
}

/**
 * The boxes between two offsets.
 *
 * @param lenient Stops quietly at four zero bytes, with which QuickTime ends some lists.
 * @throws SluiceError `media.corrupt` when they do not fill the range exactly.
 */
export function boxesIn(bytes: Buffer, [start, end]: [number, number], lenient = false): Box[] {
  const boxes: Box[] = []
  for (let at = start; at < end;) {
    const left = end - at
    if (lenient && (left < 8 || bytes.readUInt32BE(at) === 0)) break
    // QuickTime ends `udta` with a 32-bit zero.
    if (left === 4 && bytes.readUInt32BE(at) === 0) break
    const box = boxAt(bytes, at, left)
    boxes.push(box)
    if (boxes.length > boxesPerLevelMax) throw corruptMedium('film')
    at += box.bytes
  }
  return boxes
}

/** @see ISO/IEC 14496-12, 4.2: size 1 means a 64-bit size follows, size 0 means up to the end. */
export function boxAt(bytes: Buffer, at: number, leftBytes: number): Box {
  if (leftBytes < 8 || at + 8 > bytes.length) throw corruptMedium('film')
  const short = bytes.readUInt32BE(at)
  const type = text(bytes, at + 4, 4)
  if (short === 1 && (leftBytes < 16 || at + 16 > bytes.length)) throw corruptMedium('film')
  const long = short === 1 ? Number(bytes.readBigUInt64BE(at + 8)) : short
  const headerBytes = short === 1 ? 16 : 8
  const size = short === 0 ? leftBytes : long
  if (size < headerBytes || size > leftBytes) throw corruptMedium('film')
  return { type, offset: at, headerBytes, bytes: size }
}

function text(bytes: Buffer, at: number, length: number): string {
  return bytes.toString('latin1', at, at + length)
}
