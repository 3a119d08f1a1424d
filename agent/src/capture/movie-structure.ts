/** Reads the boxes of an MP4 or MOV for the facts that are needed before anything decodes it. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

export type MovieFacts = {
  /** 0 when the file does not say, as fragmented files may not. */
  durationMs: number
  widthPixels: number
  heightPixels: number
  hasSound: boolean
  /** Whether the picture is marked as PQ or HLG. */
  highDynamicRange: boolean
  /** Kinds of metadata and tracks that will not be taken along. */
  removed: string[]
}

export type Box = { type: string; offset: number; headerBytes: number; bytes: number }

/** The index of a four-hour film is a few tens of MiB. */
const movieBoxBytesMax = 64 * 1024 ** 2
/** A fragmented film has two boxes per fragment. */
const topBoxesMax = 200_000
const boxesPerLevelMax = 10_000
/** Metadata tracks of a telephone included. */
const allTracksMax = 32

type Readable = { bytes: number; read: (offset: number, length: number) => Promise<Buffer> }

/**
 * @throws SluiceError `media.corrupt` when the file is shorter than its boxes say or has no index,
 *   `media.unsupported` when it has no picture, is encrypted or keeps its data in another file,
 *   `media.too_large` beyond the limits of the gate.
 */
export async function readMovie(source: Readable): Promise<MovieFacts> {
  const removed = new Set<string>()
  let index: Buffer | undefined
  let count = 0
  for (let at = 0; at < source.bytes;) {
    const box = boxAt(await source.read(at, Math.min(16, source.bytes - at)), 0, source.bytes - at)
    if (++count > topBoxesMax) throw corrupt()
    if (box.type === 'moov') {
      if (index !== undefined || box.bytes > movieBoxBytesMax) throw corrupt()
      index = await source.read(at, box.bytes)
    }
    if (box.type === 'uuid') removed.add('other')
    if (box.type === 'meta') removed.add('user-data')
    at += box.bytes
  }
  if (index === undefined) throw corrupt()
  return readIndex(index, removed)
}

function readIndex(index: Buffer, removed: Set<string>): MovieFacts {
  const boxes = boxesIn(index, contentRange(boxAt(index, 0, index.length)))
  const header = boxes.find((box) => box.type === 'mvhd')
  if (header === undefined) throw corrupt()
  const tracks = boxes.filter((box) => box.type === 'trak').map((box) => readTrack(index, box))
  const played = tracks.filter((track) => track.kind === 'video' || track.kind === 'sound')
  if (tracks.length > allTracksMax || played.length > limits.tracksMax) {
    throw tooLarge('tracks', `${limits.tracksMax} tracks of picture and sound`)
  }
  noteMetadata({ index, boxes, tracks, removed })
  const picture = tracks.find((track) => track.kind === 'video')
  if (picture === undefined) throw unsupported('a film without a picture')
  if (picture.widthPixels * picture.heightPixels > limits.videoFramePixelsMax) {
    throw tooLarge('pixels', `${limits.videoFramePixelsMax / 1e6} megapixels a frame`)
  }
  const durationMs = Math.max(durationOf(index, header), ...played.map((track) => track.durationMs))
  if (durationMs > limits.videoDurationMsMax) {
    throw tooLarge('minutes', `${limits.videoDurationMsMax / 60_000} minutes`)
  }
  return {
    durationMs,
    widthPixels: picture.widthPixels,
    heightPixels: picture.heightPixels,
    hasSound: tracks.some((track) => track.kind === 'sound'),
    highDynamicRange: picture.highDynamicRange,
    removed: [...removed].toSorted(),
  }
}

type Track = {
  kind: 'video' | 'sound' | 'timecode' | 'timed-metadata' | 'subtitles' | 'other-tracks'
  durationMs: number
  widthPixels: number
  heightPixels: number
  highDynamicRange: boolean
  hasUserData: boolean
}

const trackKinds = new Map<string, Track['kind']>([
  ['vide', 'video'],
  ['soun', 'sound'],
  ['tmcd', 'timecode'],
  ['meta', 'timed-metadata'],
  ['text', 'subtitles'],
  ['sbtl', 'subtitles'],
  ['subt', 'subtitles'],
  ['clcp', 'subtitles'],
])

function readTrack(index: Buffer, track: Box): Track {
  const children = boxesIn(index, contentRange(track))
  const media = within(index, track, 'mdia')
  const header = media.find((box) => box.type === 'mdhd')
  const handling = media.find((box) => box.type === 'hdlr')
  if (header === undefined || handling === undefined) throw corrupt()
  const kind = trackKinds.get(text(index, handling.offset + handling.headerBytes + 8, 4))
  const information = media.find((box) => box.type === 'minf')
  if (information === undefined) throw corrupt()
  const samples = boxesIn(index, contentRange(information))
  if (kind === 'video' || kind === 'sound') requireOwnData(index, samples)
  const description = within(index, information, 'stbl').find((box) => box.type === 'stsd')
  const picture =
    kind === 'video' && description !== undefined
      ? readPicture(index, description)
      : { widthPixels: 0, heightPixels: 0, highDynamicRange: false }
  if (kind === 'sound' && description !== undefined) {
    if (text(index, description.offset + description.headerBytes + 12, 4) === 'enca') {
      throw unsupported('an encrypted film')
    }
  }
  return {
    kind: kind ?? 'other-tracks',
    durationMs: durationOf(index, header),
    ...picture,
    hasUserData: children.some((box) => box.type === 'udta' || box.type === 'meta'),
  }
}

/** @see ISO/IEC 14496-12, 12.1.3: VisualSampleEntry, and 12.1.5: ColourInformationBox. */
function readPicture(
  index: Buffer,
  description: Box,
): Pick<Track, 'widthPixels' | 'heightPixels' | 'highDynamicRange'> {
  const start = description.offset + description.headerBytes + 8
  const end = description.offset + description.bytes
  if (start + 86 > end) throw corrupt()
  const entry = boxAt(index, start, end - start)
  if (entry.bytes < 86) throw corrupt()
  if (entry.type === 'encv') throw unsupported('an encrypted film')
  const colour = boxesIn(index, [start + 86, start + entry.bytes], true).find(
    (box) => box.type === 'colr' && box.bytes >= 18,
  )
  const transfer = colour === undefined ? 0 : index.readUInt16BE(colour.offset + 14)
  return {
    widthPixels: index.readUInt16BE(start + 32),
    heightPixels: index.readUInt16BE(start + 34),
    // ISO/IEC 23091-2: 16 is PQ (SMPTE ST 2084), 18 is HLG.
    highDynamicRange: transfer === 16 || transfer === 18,
  }
}

/** A data reference without the flag "in this file" names another file or a URL. */
function requireOwnData(index: Buffer, information: readonly Box[]): void {
  const data = information.find((box) => box.type === 'dinf')
  const references = data && boxesIn(index, contentRange(data))
  for (const list of references?.filter((box) => box.type === 'dref') ?? []) {
    const [start, end] = contentRange(list)
    for (const box of boxesIn(index, [start + 8, end])) {
      const flags = box.bytes < 12 ? 0 : index.readUInt32BE(box.offset + 8) & 0xffffff
      if ((flags & 1) === 0) throw unsupported('a film whose data lie in another file')
    }
  }
}

function noteMetadata(options: {
  index: Buffer
  boxes: readonly Box[]
  tracks: readonly Track[]
  removed: Set<string>
}): void {
  const { index, boxes, tracks, removed } = options
  const loose = boxes.filter((box) => box.type === 'udta' || box.type === 'meta')
  if (loose.length > 0 || tracks.some((track) => track.hasUserData)) removed.add('user-data')
  if (['©xyz', 'loci', 'location.ISO6709'].some((key) => index.includes(key, 0, 'latin1'))) {
    removed.add('gps')
  }
  if (index.includes('covr', 0, 'latin1')) removed.add('cover')
  const header = boxes.find((box) => box.type === 'mvhd')
  if (header !== undefined && index.readUInt32BE(header.offset + 12) !== 0) removed.add('time')
  for (const kind of ['timecode', 'timed-metadata', 'subtitles', 'other-tracks'] as const) {
    if (tracks.some((track) => track.kind === kind)) removed.add(kind)
  }
  for (const kind of ['video', 'sound'] as const) {
    if (tracks.filter((track) => track.kind === kind).length > 1) removed.add('further-tracks')
  }
}

/** `mvhd` and `mdhd` share the layout of their first fields. */
function durationOf(index: Buffer, header: Box): number {
  const at = header.offset + header.headerBytes
  const long = index[at] === 1
  if (header.bytes < header.headerBytes + (long ? 32 : 20)) throw corrupt()
  const scale = index.readUInt32BE(at + (long ? 20 : 12))
  const units = long ? Number(index.readBigUInt64BE(at + 24)) : index.readUInt32BE(at + 16)
  const unknown = long ? units >= 2 ** 63 : units === 0xffffffff
  if (unknown || units === 0) return 0
  if (scale === 0) throw corrupt()
  return Math.round((units / scale) * 1000)
}

function within(index: Buffer, parent: Box, type: string): Box[] {
  const child = boxesIn(index, contentRange(parent)).find((box) => box.type === type)
  return child === undefined ? [] : boxesIn(index, contentRange(child))
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
    if (boxes.length > boxesPerLevelMax) throw corrupt()
    at += box.bytes
  }
  return boxes
}

/** @see ISO/IEC 14496-12, 4.2: size 1 means a 64-bit size follows, size 0 means up to the end. */
export function boxAt(bytes: Buffer, at: number, leftBytes: number): Box {
  if (leftBytes < 8 || at + 8 > bytes.length) throw corrupt()
  const short = bytes.readUInt32BE(at)
  const type = text(bytes, at + 4, 4)
  if (short === 1 && (leftBytes < 16 || at + 16 > bytes.length)) throw corrupt()
  const long = short === 1 ? Number(bytes.readBigUInt64BE(at + 8)) : short
  const headerBytes = short === 1 ? 16 : 8
  const size = short === 0 ? leftBytes : long
  if (size < headerBytes || size > leftBytes) throw corrupt()
  return { type, offset: at, headerBytes, bytes: size }
}

function text(bytes: Buffer, at: number, length: number): string {
  return bytes.toString('latin1', at, at + length)
}

function corrupt(): SluiceError {
  return new SluiceError('media.corrupt', 'the film is damaged or cut short', {
    hint: 'Copy it from the camera again; damaged films are not sealed.',
  })
}

function unsupported(what: string): SluiceError {
  return new SluiceError('media.unsupported', `the content is ${what}, which is not accepted`, {
    hint: 'Export it as an ordinary MP4 with picture and sound in one file.',
  })
}

function tooLarge(what: string, limit: string): SluiceError {
  return new SluiceError('media.too_large', `the film has too many ${what}`, {
    hint: `The limit is ${limit}.`,
  })
}
