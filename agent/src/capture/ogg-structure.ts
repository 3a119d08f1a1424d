/** Walks over the pages of an Ogg file: what is in it, how long it is, and whether every page is whole. */
import type { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import {
  corruptMedium,
  isBlank,
  readAhead,
  requireLimits,
  tooLarge,
  unsupportedMedium,
} from './av-facts.ts'
import type { Readable, ReadOptions } from './av-facts.ts'
import { intoMatroska } from './foreign.ts'

export type OggFacts = {
  sampleRateHz: number
  channels: number
  /** 0 when the file does not say. */
  samples: number
  /** Where whole pages lie. */
  runs: { start: number; end: number }[]
  /** Whether a part that follows has other channels, or another sampling rate. */
  changes: boolean
  /** What its pages need before a decoder takes them, see {@link mendedPages}. */
  needs: { serials: boolean; packets: boolean }
  /** Whether something broke, and is left out. */
  partial: boolean
  removed: string[]
}

const commentBytesMax = 16 * 1024 ** 2
/** A page holds up to 64 KiB; writers fill them. */
const commentPagesMax = 10_000
/** Four hours of Opus with a page for every packet are some 700,000. */
const pagesMax = 2_000_000
/** Radio begins a new part with every song. */
const partsMax = 1000

type Page = {
  at: number
  headerBytes: number
  bodyBytes: number
  granule: bigint
  serial: number
  sequence: number
  first: boolean
  last: boolean
  continued: boolean
  /** Lengths of packets in pieces of up to 255. */
  laces: Buffer
}

type Head = { rate: number; channels: number; codec: 'vorbis' | 'opus' | 'flac' | 'speex' }

/** One after the other they make a chain; each has a head of its own. */
type Part = Head & {
  serial: number
  /** Every page so far begins a stream. */
  opening: boolean
  ended: boolean
  from: bigint
  granule: bigint
  packets: number
  sequence: number
}

/** Samples that a packet has at most. */
const packetSamplesMax = { vorbis: 8192, opus: 5760, flac: 65_535, speex: 10 * 640 }

/**
 * @throws SluiceError `media.corrupt` with the byte of the first page that is not whole or is missing,
 *   `media.unsupported` for anything but Vorbis, Opus, FLAC and Speex, `media.too_large`.
 * @see RFC 3533, section 6; RFC 7845, sections 4 and 5.
 */
export async function readOgg(source: Readable, options: ReadOptions = {}): Promise<OggFacts> {
  const ahead = readAhead(source)
  const removed = new Set<string>()
  const walk = oggWalk(removed)
  const runs: OggFacts['runs'] = []
  const comments: Buffer[] = []
  let commentBytes = 0
  let partial = false
  let pages = 0
  for (let at = 0; at < source.bytes;) {
    const bytes = await readPage(ahead, at)
    if (bytes === undefined) {
      const next = await findPage(ahead, at)
      // Behind the last page of all, whatever lies there is no sound; a next part begins anew.
      const harmless = walk.ended && (next === undefined || next.first)
      if (next === undefined && (harmless || (await isRemainder(ahead, at)))) {
        removed.add('trailer')
        break
      }
      if (!harmless && (options.salvage !== true || runs.length === 0)) {
        throw corruptMedium('sound', { byte: at })
      }
      if (runs.length === gapsMax) throw corruptMedium('sound', { byte: at })
      partial ||= !harmless
      if (next === undefined) break
      if (harmless) removed.add('junk')
      at = next.at
      continue
    }
    if (++pages > pagesMax) throw corruptMedium('sound', { byte: at })
    const page = parsePage(bytes, at)
    const body = bytes.subarray(page.headerBytes)
    const { lost, comment } = walk.take(page, body)
    if (lost && options.salvage !== true) throw corruptMedium('sound', { byte: at })
    partial ||= lost
    if (comment) {
      // A copy: what it is cut from may be much larger.
      comments.push(Buffer.from(body))
      commentBytes += body.length
      if (commentBytes > commentBytesMax || comments.length > commentPagesMax) {
        throw corruptMedium('sound', { byte: at })
      }
    }
    const end = at + bytes.length
    const run = runs.at(-1)
    if (run?.end === at) run.end = end
    else runs.push({ start: at, end })
    at = end
  }
  noteComments(Buffer.concat(comments), removed)
  return { ...walk.facts(), runs, partial, removed: [...removed].toSorted() }
}

function oggWalk(removed: Set<string>) {
  const serials = new Set<number>()
  const parts: Part[] = []
  const needs = { serials: false, packets: false }
  let streams = 0
  function open(page: Page, body: Buffer): void {
    const part = parts.at(-1)
    const found = readHead(body)
    if (part?.opening === true) streams += 1
    else streams = 1
    if (streams > limits.tracksMax) {
      throw tooLarge('sound', 'has too many streams', `${limits.tracksMax}`)
    }
    // Streams that begin together are heard together: the first is taken.
    if (part?.opening === true && found !== undefined) removed.add('further-tracks')
    else if (found !== undefined) {
      if (part !== undefined && part.codec !== found.codec) throw mixed(part.codec, found.codec)
      if (parts.length === partsMax) throw tooLarge('sound', 'has too many parts', `${partsMax}`)
      needs.serials ||= serials.has(page.serial)
      const counts = { from: 0n, granule: 0n, packets: 0, sequence: page.sequence }
      parts.push({ ...found, ...counts, serial: page.serial, opening: true, ended: false })
    }
    serials.add(page.serial)
  }
  return {
    get ended() {
      return parts.at(-1)?.ended === true
    },
    /** Whether pages before it are lost, and whether it may hold comments. */
    take(page: Page, body: Buffer): { lost: boolean; comment: boolean } {
      if (page.first) {
        open(page, body)
        return { lost: false, comment: false }
      }
      const part = parts.at(-1)
      if (part === undefined) return { lost: false, comment: false }
      part.opening = false
      if (page.serial !== part.serial) return { lost: false, comment: false }
      // Who joins a broadcast gets its head, and then what is sent at the moment.
      const lost = part.granule > 0n && page.sequence > part.sequence + 1
      part.sequence = page.sequence
      part.ended ||= page.last
      const heard = part.granule > 0n || page.granule > 0n
      if (heard) {
        part.packets += page.laces.filter((lace) => lace < 255).length
        if (part.codec === 'vorbis') needs.packets ||= hasEmptyPacket(page)
      }
      if (part.granule === 0n && page.granule > BigInt(255 * packetSamplesMax[part.codec])) {
        part.from = page.granule
      }
      if (page.granule >= 0n) part.granule = page.granule
      return { lost, comment: part.granule === 0n }
    },
    facts(): Omit<OggFacts, 'runs' | 'partial' | 'removed'> {
      const [head] = parts
      if (head === undefined) {
        throw unsupportedMedium('sound', 'Ogg without Vorbis, Opus, FLAC or Speex')
      }
      const rate = rateOf(head)
      if (parts.some((part) => rateOf(part) === 0 || part.channels === 0)) {
        throw corruptMedium('sound', { byte: 0 })
      }
      const seconds = parts.reduce((sum, part) => sum + samplesOf(part) / rateOf(part), 0)
      const sound = { sampleRateHz: rate, channels: head.channels }
      const durationMs = Math.round(seconds * 1000)
      requireLimits({ durationMs, picture: undefined, sound, removed: [] })
      const changes = parts.some((part) => rateOf(part) !== rate || part.channels !== head.channels)
      return { ...sound, samples: Math.round(seconds * rate), changes, needs }
    },
  }
}

function rateOf(head: Head): number {
  return head.codec === 'opus' ? 48_000 : head.rate
}

/** Positions are often wrong; there are no more samples than packets can hold. */
function samplesOf({ granule, from, packets, codec }: Part): number {
  return Math.min(Number(granule - from), packets * packetSamplesMax[codec])
}

function mixed(one: string, other: string): SluiceError {
  return unsupportedMedium(
    'sound',
    `an Ogg in whose middle ${one} becomes ${other}`,
    'Submit its parts one by one.',
  )
}

/**
 * Pages as a decoder takes them: each part of a chain with a serial number of its own, as the format
 * has it and joined files do not; without the empty packets that some encoders of Vorbis leave, which
 * say nothing and are an error to ffmpeg.
 */
export async function* mendedPages(
  source: Readable,
  { runs, needs }: Pick<OggFacts, 'runs' | 'needs'>,
): AsyncGenerator<Buffer> {
  const ahead = readAhead(source)
  let part = 0
  let opening = false
  for (const { start, end } of runs) {
    for (let at = start; at < end;) {
      const whole = await readPage(ahead, at)
      if (whole === undefined) throw corruptMedium('sound', { byte: at })
      const page = parsePage(whole, at)
      at += whole.length
      if (page.first && !opening) part += 1
      opening = page.first
      const shorter = needs.packets && !page.first ? withoutEmptyPackets(whole, page) : whole
      const mended = Buffer.from(shorter)
      if (needs.serials) mended.writeUInt32LE((page.serial + part * 0x9e3779b1) % 2 ** 32, 14)
      mended.writeUInt32LE(checksum(mended), 22)
      yield mended
    }
  }
}

function hasEmptyPacket({ laces, continued }: Page): boolean {
  return laces.some((lace, i) => lace === 0 && (i === 0 ? !continued : (laces[i - 1] ?? 0) < 255))
}

function withoutEmptyPackets(bytes: Buffer, page: Page): Buffer {
  const { laces, continued, headerBytes } = page
  const kept = [...laces].filter(
    (lace, i) => lace > 0 || (i === 0 ? continued : (laces[i - 1] ?? 0) === 255),
  )
  const fixed = Buffer.from(bytes.subarray(0, 27))
  fixed.writeUInt8(kept.length, 26)
  return Buffer.concat([fixed, Buffer.from(kept), bytes.subarray(headerBytes)])
}

/** A gap is looked over so far, and for so many pages that begin like one: each has to be summed. */
const searchBytesMax = 1024 ** 2
const searchPagesMax = 64
const gapsMax = 100

async function findPage(
  source: Readable,
  from: number,
): Promise<{ at: number; first: boolean } | undefined> {
  const window = await source.read(from, Math.min(searchBytesMax, source.bytes - from))
  let at = window.indexOf('OggS', 1)
  for (let tried = 0; at >= 0 && tried < searchPagesMax; tried++) {
    const page = await readPage(source, from + at)
    if (page !== undefined) return { at: from + at, first: parsePage(page, 0).first }
    at = window.indexOf('OggS', at + 1)
  }
  return undefined
}

/** Tags of other programs, and zeros, are no part of a sound that has no last page either. */
async function isRemainder(source: Readable, at: number): Promise<boolean> {
  const left = source.bytes - at
  const name = (await source.read(at, Math.min(8, left))).toString('latin1')
  if (name.startsWith('TAG') || name === 'APETAGEX' || name.startsWith('ID3')) return true
  return isBlank(source, at, source.bytes)
}

/** One whole page whose checksum is right. */
async function readPage(source: Readable, at: number): Promise<Buffer | undefined> {
  if (source.bytes - at < 27) return undefined
  const fixed = await source.read(at, 27)
  if (fixed.toString('latin1', 0, 4) !== 'OggS' || fixed[4] !== 0) return undefined
  const segments = fixed.readUInt8(26)
  if (source.bytes - at < 27 + segments) return undefined
  const table = (await source.read(at, 27 + segments)).subarray(27)
  const bytes = 27 + segments + table.reduce((sum, lace) => sum + lace, 0)
  if (source.bytes - at < bytes) return undefined
  const page = await source.read(at, bytes)
  return checksum(page) === page.readUInt32LE(22) ? page : undefined
}

function parsePage(page: Buffer, at: number): Page {
  const headerBytes = 27 + page.readUInt8(26)
  return {
    at,
    headerBytes,
    bodyBytes: page.length - headerBytes,
    granule: page.readBigInt64LE(6),
    serial: page.readUInt32LE(14),
    sequence: page.readUInt32LE(18),
    first: (page.readUInt8(5) & 2) !== 0,
    last: (page.readUInt8(5) & 4) !== 0,
    continued: (page.readUInt8(5) & 1) !== 0,
    laces: page.subarray(27, headerBytes),
  }
}

function readHead(body: Buffer): Head | undefined {
  const starts = (magic: string) => body.toString('latin1', 0, magic.length) === magic
  if (starts('\x01vorbis') && body.length >= 16) {
    return { codec: 'vorbis', channels: body.readUInt8(11), rate: body.readUInt32LE(12) }
  }
  if (starts('OpusHead') && body.length >= 19) {
    return { codec: 'opus', channels: body.readUInt8(9), rate: body.readUInt32LE(12) }
  }
  if (starts('\x7fFLAC') && body.length >= 13 + 4 + 34) {
    const packed = body.readUIntBE(13 + 4 + 10, 4)
    return { codec: 'flac', channels: ((packed >>> 9) & 7) + 1, rate: packed >>> 12 }
  }
  if (starts('Speex   ') && body.length >= 80) {
    return { codec: 'speex', channels: body.readUInt32LE(48), rate: body.readUInt32LE(36) }
  }
  if (starts('\x80theora') || starts('BBCD')) {
    throw unsupportedMedium('film', 'an Ogg film', intoMatroska)
  }
  return undefined
}

/** The encoder's own name is always there; a tag is anybody's. */
function noteComments(comments: Buffer, removed: Set<string>): void {
  const text = comments.toString('latin1')
  if (/METADATA_BLOCK_PICTURE=|COVERART=/i.test(text)) removed.add('cover')
  if (/\b(?:GEO_|LOCATION=)/i.test(text)) removed.add('gps')
  const others = text.match(/[A-Z][A-Z_ ]{2,40}=/gi) ?? []
  if (others.some((name) => !/^(?:ENCODER|METADATA_BLOCK_PICTURE|COVERART)=$/i.test(name))) {
    removed.add('text')
  }
}

const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte << 24
  for (let bit = 0; bit < 8; bit++)
    value = value & 0x80000000 ? (value << 1) ^ 0x04c11db7 : value << 1
  return value >>> 0
})

/** CRC-32 of RFC 3533: not reflected, its own field taken as zero. */
function checksum(page: Buffer): number {
  let sum = 0
  for (let i = 0; i < page.length; i++) {
    const byte = i >= 22 && i < 26 ? 0 : (page[i] ?? 0)
    sum = (sum << 8) ^ (table[(sum >>> 24) ^ byte] ?? 0)
  }
  return sum >>> 0
}
