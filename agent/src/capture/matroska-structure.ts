/** Reads the head of a Matroska or WebM file for the facts that are needed before anything decodes it. */
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import {
  greatestDivisor,
  cropped,
  corruptMedium,
  placed,
  readAhead,
  requireLimits,
  tooLarge,
  unsupportedMedium,
} from './av-facts.ts'
import type {
  Ahead,
  AvFacts,
  PictureEnd,
  PictureFacts,
  Readable,
  ReadOptions,
  SoundFacts,
} from './av-facts.ts'

/** Heads of tracks and tags, all of them together; attachments and clusters are only stepped over. */
const headBytesMax = 16 * 1024 ** 2
/** Blocks of four hours of picture and sound, where clusters do not say how long they are. */
const elementsMax = 4_000_000
/** Children of one element within a head: a long list of tags has hundreds. */
const childrenMax = 100_000

type Element = { id: number; offset: number; start: number; end: number; unknown: boolean }

/** @see RFC 9559, section 5. */
const ids = {
  ebml: 0x1a45dfa3,
  segment: 0x18538067,
  info: 0x1549a966,
  tracks: 0x1654ae6b,
  cluster: 0x1f43b675,
  tags: 0x1254c367,
  chapters: 0x1043a770,
  attachments: 0x1941a469,
  cues: 0x1c53bb6b,
  timestampScale: 0x2ad7b1,
  duration: 0x4489,
  date: 0x4461,
  title: 0x7ba9,
  fileName: 0x7384,
  trackEntry: 0xae,
  trackType: 0x83,
  trackName: 0x536e,
  codec: 0x86,
  encodings: 0x6d80,
  encoding: 0x6240,
  encryption: 0x5035,
  video: 0xe0,
  width: 0xb0,
  height: 0xba,
  cropBottom: 0x54aa,
  cropTop: 0x54bb,
  cropLeft: 0x54cc,
  cropRight: 0x54dd,
  colour: 0x55b0,
  transfer: 0x55ba,
  codecPrivate: 0x63a2,
  audio: 0xe1,
  rate: 0xb5,
  channels: 0x9f,
  clusterTime: 0xe7,
  simpleBlock: 0xa3,
  blockGroup: 0xa0,
  block: 0xa1,
  trackNumber: 0xd7,
  simpleTag: 0x67c8,
  tag: 0x7373,
  tagName: 0x45a3,
} as const

/**
 * @throws SluiceError `media.corrupt` with the byte where the elements stop to fit, `media.unsupported`
 *   when tracks are encrypted or there is nothing to see or hear, `media.too_large`.
 */
export async function readMatroska(source: Readable, options: ReadOptions = {}): Promise<AvFacts> {
  const ahead = readAhead(source)
  const head = await elementAt(ahead, 0, source.bytes)
  if (head.id !== ids.ebml || head.unknown || head.end >= source.bytes) {
    throw corruptMedium('film', { byte: 0 })
  }
  const segment = await elementAt(ahead, head.end, source.bytes)
  if (segment.id !== ids.segment) throw corruptMedium('film', { byte: head.end })
  const found = await readSegment(ahead, segment, options)
  const ended = (await isFollowed(ahead, segment)) ? { endAt: segment.end } : {}
  if (ended.endAt !== undefined) found.removed.add('trailer')
  const facts = { ...found, ...ended, removed: [...found.removed].toSorted() }
  requireLimits(facts)
  return facts
}

/** Whether anything but another file of the kind lies behind it: those may be joined. */
async function isFollowed(source: Ahead, segment: Element): Promise<boolean> {
  if (segment.unknown || segment.end >= source.bytes) return false
  const behind = await source.read(segment.end, Math.min(4, source.bytes - segment.end))
  return behind.length < 4 || behind.readUInt32BE(0) !== ids.ebml
}

/**
 * Looks through all blocks of a file whose size its head tells, for when its last picture begins.
 *
 * @param durationMs As its head has it: until then the last picture stays.
 * @returns undefined where nothing tells that the file is whole.
 * @throws SluiceError `media.corrupt` with the byte where the blocks stop to fit.
 */
export async function readMatroskaEnd(
  source: Readable,
  durationMs: number,
): Promise<PictureEnd | undefined> {
  const ahead = readAhead(source)
  const head = await elementAt(ahead, 0, source.bytes)
  const segment = await elementAt(ahead, head.end, source.bytes)
  if (segment.unknown || segment.end > source.bytes) return undefined
  const walk = {
    ...{ scale: 1_000_000, picture: -1, clusterTime: 0 },
    ...{ first: Infinity, last: -1, count: 0 },
  }
  await walkBlocks(ahead, segment, walk)
  if (walk.last < walk.first || !Number.isSafeInteger(walk.last)) return undefined
  const ms = (ticks: number) => (ticks * walk.scale) / 1_000_000
  return {
    lastMs: ms(walk.last - walk.first),
    untilMs: Math.max(0, durationMs - ms(walk.first)),
    clockHz: 1_000_000_000 / greatestDivisor(walk.scale, 1_000_000_000),
  }
}

/** Number of the track of pictures, time of the cluster, and of the first and last block of a picture. */
type Walk = {
  scale: number
  picture: number
  clusterTime: number
  first: number
  last: number
  count: number
}

async function walkBlocks(source: Ahead, parent: Element, walk: Walk): Promise<void> {
  for (let at = parent.start; at < parent.end;) {
    if (++walk.count > elementsMax) throw corruptMedium('film', { byte: at })
    const element = heldElement(source, at, parent.end) ?? (await elementAt(source, at, parent.end))
    if (element.unknown || element.end > parent.end) throw corruptMedium('film', { byte: at })
    const { id, start, end } = element
    if (id === ids.cluster || id === ids.blockGroup) await walkBlocks(source, element, walk)
    else if (id === ids.simpleBlock || id === ids.block) {
      const bytes = Math.min(11, end - start)
      const block = source.held(start, bytes) ?? (await source.read(start, bytes))
      const length = lengthOf(block, 0, 4)
      if (length === undefined || block.length < length + 2)
        throw corruptMedium('film', { byte: at })
      // The bit that tells the length is none of the number's.
      const track = block.readUIntBE(0, length) - 2 ** (7 * length)
      const time = walk.clusterTime + block.readInt16BE(length)
      if (track === walk.picture) {
        walk.first = Math.min(walk.first, time)
        walk.last = Math.max(walk.last, time)
      }
    } else if (id === ids.clusterTime && end - start <= 8) {
      walk.clusterTime = unsigned(await source.read(start, end - start), {
        ...element,
        start: 0,
        end: end - start,
      })
    } else if (id === ids.info || id === ids.tracks) {
      if (end - start > headBytesMax) throw corruptMedium('film', { byte: at })
      const content = await source.read(start, end - start)
      if (id === ids.tracks) walk.picture = pictureTrack(content)
      else walk.scale = timestampScale(content)
    }
    at = end
  }
}

function timestampScale(info: Buffer): number {
  const scale = elementsIn(info).findLast(({ id }) => id === ids.timestampScale)
  return scale === undefined ? 1_000_000 : unsigned(info, scale)
}

/** The first track of pictures, as players and `readTracks` choose it. */
function pictureTrack(tracks: Buffer): number {
  for (const entry of elementsIn(tracks).filter(({ id }) => id === ids.trackEntry)) {
    const children = elementsIn(tracks, entry)
    const type = children.find(({ id }) => id === ids.trackType)
    const number = children.find(({ id }) => id === ids.trackNumber)
    if (type === undefined || number === undefined) continue
    if (unsigned(tracks, type) === 1) return unsigned(tracks, number)
  }
  return -1
}

type Found = Omit<AvFacts, 'removed'> & { removed: Set<string> }

async function readSegment(source: Ahead, segment: Element, options: ReadOptions): Promise<Found> {
  const removed = new Set<string>()
  const found: Found = { durationMs: 0, picture: undefined, sound: undefined, removed }
  let hasTracks = false
  let hasPictures = false
  let count = 0
  let headBytes = 0
  const end = Math.min(segment.end, source.bytes)
  for (let at = segment.start; at + 2 <= end;) {
    if (++count > elementsMax) throw corruptMedium('film', { byte: at })
    const element = heldElement(source, at, end) ?? (await elementAt(source, at, end))
    // Of a stream that went to a pipe, the end of a cluster is not known: its blocks follow here.
    hasPictures ||= element.id === ids.cluster
    if (element.unknown && element.id === ids.cluster) {
      at = element.start
      continue
    }
    if (element.end > end || element.unknown) {
      if (options.salvage === true && hasTracks) break
      // An index at the very end is needed by nobody who reads in order.
      if (hasPictures && element.id === ids.cues && element.end === segment.end) {
        removed.add('trailer')
        return found
      }
      throw corruptMedium('film', { byte: Math.min(at, source.bytes) })
    }
    if (element.id === ids.attachments) removed.add('attachments')
    if (element.id === ids.chapters) removed.add('chapters')
    if (element.id === ids.info || element.id === ids.tracks || element.id === ids.tags) {
      headBytes += element.end - element.start
      if (headBytes > headBytesMax) throw corruptMedium('film', { byte: at })
      const content = await source.read(element.start, element.end - element.start)
      placed(at, () => {
        if (element.id === ids.info) found.durationMs = readInfo(content, removed)
        if (element.id === ids.tags) readTags(content, removed)
        if (element.id === ids.tracks) Object.assign(found, readTracks(content, removed))
      })
      hasTracks ||= element.id === ids.tracks
    }
    at = element.end
  }
  if (!hasTracks) throw corruptMedium('film', { byte: end })
  if (!segment.unknown && segment.end > source.bytes && options.salvage !== true) {
    throw corruptMedium('film', { byte: source.bytes })
  }
  return found
}

function readInfo(info: Buffer, removed: Set<string>): number {
  let duration = 0
  for (const element of elementsIn(info)) {
    if (element.id === ids.duration) duration = float(info, element)
    if (element.id === ids.date) removed.add('time')
    if (element.id === ids.title || element.id === ids.fileName) removed.add('text')
  }
  const durationMs = Math.round((duration * timestampScale(info)) / 1_000_000)
  return Number.isFinite(durationMs) && durationMs > 0 ? durationMs : 0
}

/** ffmpeg writes a tag of its own for the duration of each track; anything else is somebody's. */
function readTags(tags: Buffer, removed: Set<string>): void {
  for (const tag of elementsIn(tags).filter(({ id }) => id === ids.tag)) {
    for (const simple of elementsIn(tags, tag).filter(({ id }) => id === ids.simpleTag)) {
      const name = elementsIn(tags, simple).find(({ id }) => id === ids.tagName)
      const text = name && tags.toString('utf8', name.start, name.end).toUpperCase()
      if (text === undefined || text === 'DURATION') continue
      removed.add(/LOCATION|GPS|GEO/.test(text) ? 'gps' : /DATE/.test(text) ? 'time' : 'text')
    }
  }
}

type Track = {
  kind: number
  picture: PictureFacts | undefined
  sound: AvFacts['sound']
}

function readTracks(tracks: Buffer, removed: Set<string>): Pick<AvFacts, 'picture' | 'sound'> {
  const entries = elementsIn(tracks)
    .filter(({ id }) => id === ids.trackEntry)
    .map((entry) => readTrack(tracks, entry, removed))
  const pictures = entries.flatMap(({ picture }) => picture ?? [])
  const sounds = entries.flatMap(({ sound }) => sound ?? [])
  if (pictures.length + sounds.length > limits.tracksMax) {
    throw tooLarge('film', 'has too many tracks', `${limits.tracksMax} of picture and sound`)
  }
  if (pictures.length > 1 || sounds.length > 1) removed.add('further-tracks')
  for (const picture of pictures.slice(1)) {
    requireLimits({ durationMs: 0, picture, sound: undefined, removed: [] })
  }
  if (entries.some(({ kind }) => kind === 0x11)) removed.add('subtitles')
  if (entries.some(({ kind }) => ![1, 2, 0x11].includes(kind))) removed.add('other-tracks')
  return { picture: pictures[0], sound: sounds[0] }
}

function readTrack(tracks: Buffer, entry: Element, removed: Set<string>): Track {
  const children = elementsIn(tracks, entry)
  const child = (id: number) => children.find((element) => element.id === id)
  const type = child(ids.trackType)
  const kind = type === undefined ? 0 : unsigned(tracks, type)
  if (child(ids.trackName) !== undefined) removed.add('text')
  const encodings = child(ids.encodings)
  for (const encoding of encodings === undefined ? [] : elementsIn(tracks, encodings)) {
    if (encoding.id !== ids.encoding) continue
    if (elementsIn(tracks, encoding).some(({ id }) => id === ids.encryption)) {
      throw unsupportedMedium('film', 'an encrypted film')
    }
  }
  const codec = child(ids.codec)
  const name = codec === undefined ? '' : tracks.toString('latin1', codec.start, codec.end)
  const video = child(ids.video)
  const audio = child(ids.audio)
  return {
    kind,
    picture: kind === 1 ? readVideo(tracks, video, name) : undefined,
    sound: kind === 2 ? { ...readAudio(tracks, audio), called: name } : undefined,
  }
}

function readVideo(tracks: Buffer, video: Element | undefined, codec: string): PictureFacts {
  const children = video === undefined ? [] : elementsIn(tracks, video)
  const number = (id: number) => {
    const element = children.find((child) => child.id === id)
    return element === undefined ? 0 : unsigned(tracks, element)
  }
  const colour = children.find(({ id }) => id === ids.colour)
  const transfer = colour && elementsIn(tracks, colour).find(({ id }) => id === ids.transfer)
  const value = transfer === undefined ? 2 : unsigned(tracks, transfer)
  const [left, top] = [number(ids.cropLeft), number(ids.cropTop)]
  const crop = {
    left,
    top,
    widthPixels: number(ids.width) - left - number(ids.cropRight),
    heightPixels: number(ids.height) - top - number(ids.cropBottom),
  }
  const eightBits = /^V_(?:VP8|MPEG[124]|MJPEG|THEORA)/.test(codec)
  return {
    codec: codec === 'V_MPEG4/ISO/AVC' ? 'h264' : codec === 'V_MPEGH/ISO/HEVC' ? 'hevc' : 'other',
    called: codec,
    widthPixels: number(ids.width),
    heightPixels: number(ids.height),
    frames: 0,
    // 2 is "unspecified", 16 PQ, 18 HLG (ISO/IEC 23091-2).
    highDynamicRange:
      value === 16 || value === 18 ? true : value !== 2 || eightBits ? false : undefined,
    ...cropped(crop, { widthPixels: number(ids.width), heightPixels: number(ids.height) }),
  }
}

function readAudio(tracks: Buffer, audio: Element | undefined): SoundFacts {
  const children = audio === undefined ? [] : elementsIn(tracks, audio)
  const rate = children.find(({ id }) => id === ids.rate)
  const channels = children.find(({ id }) => id === ids.channels)
  return {
    sampleRateHz: rate === undefined ? 8000 : Math.round(float(tracks, rate)),
    channels: channels === undefined ? 1 : unsigned(tracks, channels),
  }
}

async function elementAt(source: Readable, at: number, end: number): Promise<Element> {
  return elementOf(await source.read(at, Math.max(0, Math.min(headBytesOfElement, end - at))), at)
}

/** The same without waiting, where its head has been read already. */
function heldElement(source: Ahead, at: number, end: number): Element | undefined {
  const held = source.held(at, Math.min(headBytesOfElement, end - at))
  return held === undefined ? undefined : elementOf(held, at)
}

/** A name of four bytes and a size of eight. */
const headBytesOfElement = 12

function elementOf(head: Buffer, at: number): Element {
  return parseElement(head, { headAt: 0, at, end: Number.MAX_SAFE_INTEGER })
}

/** The children of one element; they must fill it. */
function elementsIn(bytes: Buffer, parent?: Element): Element[] {
  const end = parent?.end ?? bytes.length
  const elements: Element[] = []
  for (let at = parent?.start ?? 0; at < end;) {
    const element = parseElement(bytes, { headAt: at, at, end })
    if (element.unknown || element.end > end || elements.length > childrenMax) {
      throw corruptMedium('film')
    }
    elements.push(element)
    at = element.end
  }
  return elements
}

/**
 * @param place.headAt Where the element begins in `bytes`; `place.at` where it begins in the file.
 * @see RFC 8794, sections 4 and 5: leading zeros give the length of a number; all ones: unknown size.
 */
function parseElement(bytes: Buffer, place: { headAt: number; at: number; end: number }): Element {
  const { headAt, at, end } = place
  const idBytes = lengthOf(bytes, headAt, 4)
  const sizeBytes = idBytes === undefined ? undefined : lengthOf(bytes, headAt + idBytes, 8)
  if (idBytes === undefined || sizeBytes === undefined) throw corruptMedium('film', { byte: at })
  if (headAt + idBytes + sizeBytes > bytes.length) throw corruptMedium('film', { byte: at })
  const id = bytes.readUIntBE(headAt, idBytes)
  let size = BigInt(bytes.readUInt8(headAt + idBytes) & (0xff >> sizeBytes))
  for (let i = 1; i < sizeBytes; i++) {
    size = size * 256n + BigInt(bytes.readUInt8(headAt + idBytes + i))
  }
  const unknown = size === 2n ** BigInt(7 * sizeBytes) - 1n
  const start = at + idBytes + sizeBytes
  const whole = unknown ? end : start + Number(size)
  return { id, offset: at, start, end: Math.min(whole, Number.MAX_SAFE_INTEGER), unknown }
}

function lengthOf(bytes: Buffer, at: number, most: number): number | undefined {
  const first = at < bytes.length ? bytes.readUInt8(at) : 0
  const length = Math.clz32(first) - 23
  return first === 0 || length > most ? undefined : length
}

function unsigned(bytes: Buffer, element: Element): number {
  const length = element.end - element.start
  if (length > 8) throw corruptMedium('film')
  let value = 0
  for (let i = element.start; i < element.end; i++) value = value * 256 + bytes.readUInt8(i)
  return value
}

function float(bytes: Buffer, element: Element): number {
  const length = element.end - element.start
  if (length === 0) return 0
  if (length === 4) return bytes.readFloatBE(element.start)
  if (length === 8) return bytes.readDoubleBE(element.start)
  throw corruptMedium('film')
}

/**
 * What a Matroska head of our own making says of its picture; undefined when it is not one. `form` is
 * the codec's name of four letters.
 */
export function readMatroskaColour(
  head: Buffer,
): { transfer: number; form: string; widthPixels: number; heightPixels: number } | undefined {
  try {
    const file = parseElement(head, { headAt: 0, at: 0, end: head.length })
    const segment = parseElement(head, { headAt: file.end, at: file.end, end: head.length })
    for (let at = segment.start; at < head.length;) {
      const element = parseElement(head, { headAt: at, at, end: head.length })
      if (element.id === ids.tracks) return readOwnTrack(head, element)
      at = element.end
    }
  } catch (error) {
    if (!isSluiceError(error)) throw error
  }
  return undefined
}

function readOwnTrack(head: Buffer, tracks: Element) {
  const inside = (parent: Element | undefined, id: number) =>
    parent && elementsIn(head, parent).find((element) => element.id === id)
  const entry = inside(tracks, ids.trackEntry)
  const video = inside(entry, ids.video)
  if (video === undefined) return undefined
  const transfer = inside(inside(video, ids.colour), ids.transfer)
  const [width, height] = [inside(video, ids.width), inside(video, ids.height)]
  // A BITMAPINFOHEADER: its compression is the fifth of its fields.
  const format = inside(entry, ids.codecPrivate)
  return {
    transfer: transfer === undefined ? 2 : unsigned(head, transfer),
    form: format === undefined ? '' : head.toString('latin1', format.start + 16, format.start + 20),
    widthPixels: width === undefined ? 0 : unsigned(head, width),
    heightPixels: height === undefined ? 0 : unsigned(head, height),
  }
}
