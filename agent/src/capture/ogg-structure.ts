/** Walks over the pages of an Ogg file: what is in it, how long it is, and whether every page is whole. */
import { limits } from '@sluice/protocol/limits'
import { corruptMedium, readAhead, requireLimits, tooLarge, unsupportedMedium } from './av-facts.ts'
import type { Readable, ReadOptions } from './av-facts.ts'
import { intoMatroska } from './foreign.ts'

export type OggFacts = {
  sampleRateHz: number
  channels: number
  /** 0 when the file does not say. */
  samples: number
  /** Where the pages end; behind it lies something else. */
  end: number
  /** Whether something broke there, and the rest is left out. */
  partial: boolean
  removed: string[]
}

const commentBytesMax = 16 * 1024 ** 2
/** A page holds up to 64 KiB; writers fill them. */
const commentPagesMax = 10_000
/** Four hours of Opus with a page for every packet are some 700,000. */
const pagesMax = 2_000_000

type Page = {
  headerBytes: number
  bodyBytes: number
  granule: bigint
  serial: number
  first: boolean
  continued: boolean
}

type Head = { rate: number; channels: number; codec: 'vorbis' | 'opus' | 'flac' | 'speex' }

/**
 * @throws SluiceError `media.corrupt` with the byte of the first page that is not whole,
 *   `media.unsupported` for anything but Vorbis, Opus, FLAC and Speex, `media.too_large`.
 * @see RFC 3533, section 6; RFC 7845, sections 4 and 5.
 */
export async function readOgg(source: Readable, options: ReadOptions = {}): Promise<OggFacts> {
  const ahead = readAhead(source)
  const removed = new Set<string>()
  const serials = new Set<number>()
  let head: (Head & { serial: number }) | undefined
  let before = 0n
  let granule = 0n
  const comments: Buffer[] = []
  let commentBytes = 0
  let pages = 0
  let partial = false
  let at = 0
  while (at < source.bytes) {
    const bytes = await readPage(ahead, at)
    if (bytes === undefined) {
      // Tags of other programs behind the last page are not sound.
      if (await isTag(ahead, at)) break
      if (options.salvage !== true || head === undefined) throw corruptMedium('sound', { byte: at })
      partial = true
      break
    }
    if (++pages > pagesMax) throw corruptMedium('sound', { byte: at })
    const page = parsePage(bytes)
    const body = bytes.subarray(page.headerBytes)
    if (page.first) {
      serials.add(page.serial)
      if (serials.size > limits.tracksMax) {
        throw tooLarge('sound', 'has too many streams', `${limits.tracksMax}`)
      }
      const found = readHead(body)
      if (found !== undefined && head?.codec !== undefined && found.codec !== head.codec) {
        removed.add('further-tracks')
      } else if (found !== undefined) {
        if (head !== undefined) before += granule
        head = { ...found, serial: page.serial }
        granule = 0n
      }
    } else if (page.serial === head?.serial) {
      if (page.granule >= 0n) granule = page.granule
      if (granule === 0n) {
        // A copy: what it is cut from may be much larger.
        comments.push(Buffer.from(body))
        commentBytes += body.length
        if (commentBytes > commentBytesMax || comments.length > commentPagesMax) {
          throw corruptMedium('sound', { byte: at })
        }
      }
    }
    at += page.headerBytes + page.bodyBytes
  }
  if (head === undefined) throw unsupportedMedium('sound', 'Ogg without Vorbis, Opus or FLAC')
  if (at < source.bytes && !partial) removed.add('trailer')
  noteComments(Buffer.concat(comments), removed)
  const rate = head.codec === 'opus' ? 48_000 : head.rate
  const samples = Number(before + granule)
  const sound = { sampleRateHz: rate, channels: head.channels }
  if (rate === 0 || head.channels === 0) throw corruptMedium('sound', { byte: 0 })
  const durationMs = Math.round((samples / rate) * 1000)
  requireLimits({ durationMs, picture: undefined, sound, removed: [] })
  return { ...sound, samples, end: at, partial, removed: [...removed].toSorted() }
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

function parsePage(page: Buffer): Page {
  const headerBytes = 27 + page.readUInt8(26)
  return {
    headerBytes,
    bodyBytes: page.length - headerBytes,
    granule: page.readBigInt64LE(6),
    serial: page.readUInt32LE(14),
    first: (page.readUInt8(5) & 2) !== 0,
    continued: (page.readUInt8(5) & 1) !== 0,
  }
}

async function isTag(source: Readable, at: number): Promise<boolean> {
  const name = (await source.read(at, Math.min(8, source.bytes - at))).toString('latin1')
  return name.startsWith('TAG') || name === 'APETAGEX' || name.startsWith('ID3')
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
