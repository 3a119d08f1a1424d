/**
 * The second parser: reads a normalised picture as strictly as it was written, and refuses every byte that the
 * allowlist does not explain. It shares nothing with the parsers that read sources.
 */
import { crc32, inflateSync } from 'node:zlib'
import { SluiceError } from '@sluice/protocol/errors'
import { rgbSpaces, writeProfile } from './icc-profile.ts'
import type { RgbSpaceName } from './icc-profile.ts'

export type CleanPicture = {
  widthPixels: number
  heightPixels: number
  /** In ffprobe's words. */
  codec: 'mjpeg' | 'png' | 'webp'
  extension: 'jpg' | 'png' | 'webp'
}

/**
 * Tells the format by its first bytes and checks the rest against it.
 *
 * @throws SluiceError `media.not_clean`, naming what has no place there.
 */
export function checkClean(bytes: Buffer): CleanPicture {
  const view = new StrictReader(bytes)
  if (bytes[0] === 0xff) return checkJpeg(view)
  return bytes[0] === 0x89 ? checkPng(view) : checkWebp(view)
}

/** Bytes in order; reading behind the end, or leaving some, is a finding. */
class StrictReader {
  readonly bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.bytes = bytes
  }

  get at(): number {
    return this.#at
  }

  take(length: number, what: string): Buffer {
    if (this.#at + length > this.bytes.length) throw notClean(`a ${what} cut short`)
    this.#at += length
    return this.bytes.subarray(this.#at - length, this.#at)
  }

  expect(wanted: Buffer, what: string): void {
    if (!this.take(wanted.length, what).equals(wanted)) throw notClean(`another ${what}`)
  }

  expectEnd(): void {
    if (this.#at !== this.bytes.length) throw notClean('data behind its end')
  }
}

/** JFIF 1.2: no units, square pixels, no thumbnail. */
const jfif = Buffer.from('4a46494600010200000100010000', 'hex')

/** @see ITU-T T.81, B.2: the order of segments that libjpeg writes, and the exact length of each. */
function checkJpeg(view: StrictReader): CleanPicture {
  view.expect(Buffer.from('ffd8', 'hex'), 'beginning')
  let size: { widthPixels: number; heightPixels: number } | undefined
  let components = 0
  for (let first = true; ; first = false) {
    const [lead, code] = view.take(2, 'marker')
    if (lead !== 0xff || code === undefined) throw notClean('bytes between segments')
    if (code === 0xd9) break
    const length = view.take(2, 'segment').readUInt16BE(0)
    if (length < 2) throw notClean('a segment without length')
    const content = view.take(length - 2, 'segment')
    switch (code) {
      case 0xe0:
        if (!first || !content.equals(jfif)) throw notClean('APP0')
        break
      case 0xdb:
        requireTables(content, (table) => 1 + 64 * (table.readUInt8(0) >> 4 === 0 ? 1 : 2), 'DQT')
        break
      case 0xc4:
        requireTables(content, huffmanBytes, 'DHT')
        break
      case 0xdd:
        if (content.length !== 2) throw notClean('DRI')
        break
      case 0xc0:
      case 0xc2:
        components = content[5] ?? 0
        if (size !== undefined || content.length !== 6 + 3 * components) throw notClean('SOF')
        size = { heightPixels: content.readUInt16BE(1), widthPixels: content.readUInt16BE(3) }
        break
      case 0xda: {
        const selected = content[0] ?? 0
        if (size === undefined || selected > components || content.length !== 4 + 2 * selected) {
          throw notClean('SOS')
        }
        skipCodedData(view)
        break
      }
      default:
        throw notClean(`segment ${code.toString(16)}`)
    }
  }
  view.expectEnd()
  if (size === undefined) throw notClean('no frame')
  return { ...size, codec: 'mjpeg', extension: 'jpg' }
}

function requireTables(content: Buffer, bytesOf: (table: Buffer) => number, name: string): void {
  let at = 0
  while (at < content.length) at += bytesOf(content.subarray(at))
  if (at !== content.length || at === 0) throw notClean(name)
}

/** Sixteen counts, and as many symbols as they say together. */
function huffmanBytes(table: Buffer): number {
  if (table.length < 17) throw notClean('DHT')
  return 17 + table.subarray(1, 17).reduce((sum, count) => sum + count, 0)
}

/** Up to the first marker that is neither a stuffed zero nor a restart; nothing may fill the gap. */
function skipCodedData(view: StrictReader): void {
  for (let at = view.bytes.indexOf(0xff, view.at); at >= 0; at = view.bytes.indexOf(0xff, at + 2)) {
    const next = view.bytes[at + 1] ?? 0xff
    if (next === 0xff) throw notClean('fill bytes')
    if (next !== 0 && (next < 0xd0 || next > 0xd7)) {
      view.take(at - view.at, 'scan')
      return
    }
  }
  throw notClean('a scan without end')
}

const channelsOf = new Map([
  [0, 1],
  [2, 3],
  [3, 1],
  [4, 2],
  [6, 4],
])

/** @see PNG (Third Edition), 5.6: the order of the few chunks that are written. */
function checkPng(view: StrictReader): CleanPicture {
  view.expect(Buffer.from('89504e470d0a1a0a', 'hex'), 'beginning')
  const header = takeChunk(view)
  if (header.name !== 'IHDR' || header.content.length !== 13) throw notClean('no header')
  const colour = header.content.readUInt8(9)
  if (channelsOf.get(colour) === undefined) throw notClean('IHDR')
  let rank = 0
  for (;;) {
    const { name, content } = takeChunk(view)
    const place = pngOrder.indexOf(name)
    // Only picture data may come in several pieces.
    if (place < 0 || place < rank || (place === rank && name !== 'IDAT')) throw notClean(name)
    rank = place
    if (name === 'iCCP') requireOwnProfile(content)
    if (name === 'PLTE' && (colour !== 3 || content.length > 768 || content.length % 3 !== 0)) {
      throw notClean(name)
    }
    if (name === 'tRNS' && content.length > transparencyBytesMax(colour)) throw notClean(name)
    if (name === 'IEND') {
      if (content.length > 0) throw notClean(name)
      break
    }
  }
  view.expectEnd()
  return {
    widthPixels: header.content.readUInt32BE(0),
    heightPixels: header.content.readUInt32BE(4),
    codec: 'png',
    extension: 'png',
  }
}

const pngOrder = ['IHDR', 'iCCP', 'PLTE', 'tRNS', 'IDAT', 'IEND']

function transparencyBytesMax(colour: number): number {
  if (colour === 3) return 256
  return colour === 0 ? 2 : colour === 2 ? 6 : 0
}

function takeChunk(view: StrictReader): { name: string; content: Buffer } {
  const length = view.take(4, 'chunk').readUInt32BE(0)
  const checked = view.take(length + 4, 'chunk')
  const name = checked.toString('latin1', 0, 4)
  if (crc32(checked) !== view.take(4, 'chunk').readUInt32BE(0)) throw notClean(`${name}, damaged`)
  return { name, content: checked.subarray(4) }
}

/** What our own profiles are called inside a PNG. */
export const profileName = 'rgb'

let ownProfiles: readonly Buffer[] | undefined

/** Byte for byte one of the standard ones; a profile of a source can name its device. */
function requireOwnProfile(content: Buffer): void {
  ownProfiles ??= (Object.keys(rgbSpaces) as RgbSpaceName[]).map((name) =>
    writeProfile(rgbSpaces[name]),
  )
  const head = Buffer.from(`${profileName}\0\0`, 'latin1')
  if (!content.subarray(0, head.length).equals(head)) throw notClean('iCCP')
  const packed = content.subarray(head.length)
  let profile: Buffer
  try {
    const { buffer, engine } = inflateSync(packed, {
      maxOutputLength: 4096,
      info: true,
    }) as unknown as {
      buffer: Buffer
      engine: { bytesWritten: number }
    }
    if (engine.bytesWritten !== packed.length) throw notClean('iCCP')
    profile = buffer
  } catch (cause) {
    throw notClean('iCCP', cause)
  }
  if (!ownProfiles.some((own) => own.equals(profile))) throw notClean('iCCP')
}

/** @see RFC 9649, 2.5 to 2.7: one still picture, with or without alpha. */
function checkWebp(view: StrictReader): CleanPicture {
  view.expect(Buffer.from('RIFF', 'latin1'), 'beginning')
  const bytes = view.take(4, 'size').readUInt32LE(0)
  if (bytes + 8 !== view.bytes.length) throw notClean('data behind its end')
  view.expect(Buffer.from('WEBP', 'latin1'), 'beginning')
  const chunks: { name: string; content: Buffer }[] = []
  while (view.at < view.bytes.length) {
    const name = view.take(4, 'chunk').toString('latin1')
    const length = view.take(4, 'chunk').readUInt32LE(0)
    chunks.push({ name, content: view.take(length, 'chunk') })
    if (length % 2 === 1) view.expect(Buffer.from([0]), 'padding')
  }
  const names = chunks.map(({ name }) => name).join()
  if (!['VP8 ', 'VP8L', 'VP8X,VP8 ', 'VP8X,ALPH,VP8 ', 'VP8X,VP8L'].includes(names)) {
    throw notClean(names.slice(0, 60))
  }
  const extended = chunks.find(({ name }) => name === 'VP8X')?.content
  // Of the flags only alpha (0x10); reserved bytes are zero.
  if (
    extended !== undefined &&
    (extended.length !== 10 || (extended.readUInt32LE(0) & ~0x10) !== 0)
  ) {
    throw notClean('VP8X')
  }
  return { ...webpSize(chunks.at(-1)), codec: 'webp', extension: 'webp' }
}

function webpSize(coded: { name: string; content: Buffer } | undefined): {
  widthPixels: number
  heightPixels: number
} {
  if (coded === undefined || coded.content.length < 10) throw notClean('no picture')
  if (coded.name === 'VP8L') {
    const packed = coded.content.readUInt32LE(1)
    return { widthPixels: 1 + (packed & 0x3fff), heightPixels: 1 + ((packed >>> 14) & 0x3fff) }
  }
  return {
    widthPixels: coded.content.readUInt16LE(6) & 0x3fff,
    heightPixels: coded.content.readUInt16LE(8) & 0x3fff,
  }
}

function notClean(what: string, cause?: unknown): SluiceError {
  return new SluiceError('media.not_clean', `the normalised picture still holds ${what}`, {
    hint: 'Nothing was sealed. This is a fault of Sluice: please report it with the versions in use.',
    ...(cause === undefined ? {} : { cause }),
  })
}
