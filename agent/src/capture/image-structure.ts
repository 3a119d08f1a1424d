/** Takes JPEG, PNG and WebP apart into segments and chunks without decoding, and insists on a clean result. */
import { crc32 } from 'node:zlib'
import { SluiceError } from '@sluice/protocol/errors'

/** One segment or chunk; `offset` and `bytes` cover all of it, marker, length and checksum too. */
export type Piece = { name: string; offset: number; bytes: number }

/** The pieces up to the end of the picture, and how many bytes follow behind. */
export type Structure = { pieces: Piece[]; trailingBytes: number }

/** A picture of ours has a dozen pieces, a large PNG some ten thousand. */
const piecesMax = 1_000_000

/** JFIF 1.2 as we write it: no units, square pixels, no thumbnail. */
export const plainJfif = Buffer.from('ffe000104a46494600010200000100010000', 'hex')

/**
 * Walks a JPEG from SOI to EOI. Names: `SOI`, `APP0`…`APP15`, `COM`, `SOF0`…, `DHT`, `DQT`, `DRI`,
 * `SOS` (with the coded data behind it), `EOI`, else two hex digits.
 *
 * @throws SluiceError `media.corrupt` when it ends before EOI or loses its way.
 * @see ITU-T T.81, Annex B.
 */
export function jpegStructure(bytes: Buffer): Structure {
  const pieces: Piece[] = [{ name: 'SOI', offset: 0, bytes: 2 }]
  if (bytes.length < 2 || bytes.readUInt16BE(0) !== 0xffd8) throw corrupt()
  for (let at = 2; pieces.length < piecesMax;) {
    const offset = at
    if (bytes[at] !== 0xff) throw corrupt()
    // Any number of fill bytes may stand before a marker.
    while (bytes[at + 1] === 0xff) at++
    const marker = bytes[at + 1]
    if (marker === undefined || marker === 0) throw corrupt()
    const name = jpegName(marker)
    if (name === 'EOI') {
      pieces.push({ name, offset, bytes: at + 2 - offset })
      return { pieces, trailingBytes: bytes.length - at - 2 }
    }
    if (at + 4 > bytes.length) throw corrupt()
    let end = at + 2 + bytes.readUInt16BE(at + 2)
    if (end < at + 4 || end > bytes.length) throw corrupt()
    if (name === 'SOS') end = codedDataEnd(bytes, end)
    pieces.push({ name, offset, bytes: end - offset })
    at = end
  }
  throw corrupt()
}

/** Coded data ends at the first marker that is neither a stuffed zero nor a restart. */
function codedDataEnd(bytes: Buffer, from: number): number {
  for (let at = bytes.indexOf(0xff, from); at >= 0; at = bytes.indexOf(0xff, at + 1)) {
    const next = bytes[at + 1]
    if (next === undefined) break
    if (next !== 0 && next !== 0xff && (next < 0xd0 || next > 0xd7)) return at
  }
  throw corrupt()
}

const jpegNames = new Map([
  [0xc4, 'DHT'],
  [0xc8, 'JPG'],
  [0xcc, 'DAC'],
  [0xd9, 'EOI'],
  [0xda, 'SOS'],
  [0xdb, 'DQT'],
  [0xdd, 'DRI'],
  [0xfe, 'COM'],
])

function jpegName(marker: number): string {
  const name = jpegNames.get(marker)
  if (name !== undefined) return name
  if (marker >= 0xc0 && marker <= 0xcf) return `SOF${marker - 0xc0}`
  if (marker >= 0xe0 && marker <= 0xef) return `APP${marker - 0xe0}`
  return marker.toString(16)
}

/**
 * Walks a PNG from IHDR to IEND; names are the chunk types.
 *
 * @throws SluiceError `media.corrupt` when it ends early.
 * @see PNG (Third Edition), section 5.
 */
export function pngStructure(bytes: Buffer): Structure {
  const pieces: Piece[] = []
  if (bytes.toString('hex', 0, 8) !== '89504e470d0a1a0a') throw corrupt()
  for (let at = 8; at + 12 <= bytes.length && pieces.length < piecesMax;) {
    const name = bytes.toString('latin1', at + 4, at + 8)
    const length = 12 + bytes.readUInt32BE(at)
    if (at + length > bytes.length) throw corrupt()
    pieces.push({ name, offset: at, bytes: length })
    at += length
    if (name === 'IEND') return { pieces, trailingBytes: bytes.length - at }
  }
  throw corrupt()
}

/**
 * Walks a WebP; names are the chunk types.
 *
 * @throws SluiceError `media.corrupt` when it is shorter than it says.
 * @see RFC 9649, section 2.
 */
export function webpStructure(bytes: Buffer): Structure {
  const pieces: Piece[] = []
  if (bytes.length < 12 || bytes.toString('latin1', 8, 12) !== 'WEBP') throw corrupt()
  const end = 8 + bytes.readUInt32LE(4)
  if (end > bytes.length) throw corrupt()
  for (let at = 12; at + 8 <= end && pieces.length < piecesMax;) {
    const size = bytes.readUInt32LE(at + 4)
    const length = 8 + size + (size % 2)
    if (at + 8 + size > end) throw corrupt()
    pieces.push({ name: bytes.toString('latin1', at, at + 4), offset: at, bytes: length })
    at += length
  }
  return { pieces, trailingBytes: bytes.length - end }
}

/** What a normalised picture may consist of; anything else is a leak or a mistake. */
const cleanJpeg = /^(?:SOI|APP0|DQT|SOF[02]|DHT|DRI|SOS|EOI)$/
const cleanPng = /^(?:IHDR|PLTE|tRNS|IDAT|IEND)$/

/**
 * Checks a normalised JPEG against the allowlist.
 *
 * @returns Its size in pixels.
 * @throws SluiceError `media.not_clean`, naming the first piece that has no place there.
 */
export function checkCleanJpeg(bytes: Buffer): { widthPixels: number; heightPixels: number } {
  const { pieces, trailingBytes } = parseOwn(() => jpegStructure(bytes))
  refuseTrailing(trailingBytes)
  for (const piece of pieces) {
    if (!cleanJpeg.test(piece.name)) throw notClean(piece.name)
    if (piece.name === 'APP0' && !contentOf(bytes, piece).equals(plainJfif)) throw notClean('APP0')
  }
  const frame = pieces.find((piece) => piece.name.startsWith('SOF'))
  if (frame === undefined || frame.bytes < 9) throw notClean('no frame')
  return {
    heightPixels: bytes.readUInt16BE(frame.offset + 5),
    widthPixels: bytes.readUInt16BE(frame.offset + 7),
  }
}

/**
 * Checks a normalised PNG against the allowlist, checksums included.
 *
 * @returns Its size in pixels.
 * @throws SluiceError `media.not_clean`.
 */
export function checkCleanPng(bytes: Buffer): { widthPixels: number; heightPixels: number } {
  const { pieces, trailingBytes } = parseOwn(() => pngStructure(bytes))
  refuseTrailing(trailingBytes)
  for (const piece of pieces) {
    if (!cleanPng.test(piece.name)) throw notClean(piece.name)
    const end = piece.offset + piece.bytes
    const checked = crc32(bytes.subarray(piece.offset + 4, end - 4))
    if (checked !== bytes.readUInt32BE(end - 4)) throw notClean(piece.name)
  }
  if (pieces[0]?.name !== 'IHDR' || pieces[0].bytes !== 25) throw notClean('no header')
  return { widthPixels: bytes.readUInt32BE(16), heightPixels: bytes.readUInt32BE(20) }
}

/** Leaves out of an encoder's JPEG what the allowlist does not have, and makes JFIF a plain one. */
export function reduceJpeg(bytes: Buffer): Buffer {
  const kept = jpegStructure(bytes).pieces.filter((piece) => cleanJpeg.test(piece.name))
  return Buffer.concat(
    kept.map((piece) => (piece.name === 'APP0' ? plainJfif : contentOf(bytes, piece))),
  )
}

/** Leaves out of an encoder's PNG what the allowlist does not have, such as its resolution. */
export function reducePng(bytes: Buffer): Buffer {
  const kept = pngStructure(bytes).pieces.filter((piece) => cleanPng.test(piece.name))
  return Buffer.concat([bytes.subarray(0, 8), ...kept.map((piece) => contentOf(bytes, piece))])
}

export function contentOf(bytes: Buffer, piece: Piece): Buffer {
  return bytes.subarray(piece.offset, piece.offset + piece.bytes)
}

/** What our own encoder wrote and cannot be walked is not clean either. */
function parseOwn(parse: () => Structure): Structure {
  try {
    return parse()
  } catch (cause) {
    throw new SluiceError('media.not_clean', 'the normalised picture cannot be read again', {
      cause,
    })
  }
}

function refuseTrailing(trailingBytes: number): void {
  if (trailingBytes > 0) throw notClean('data behind its end')
}

function notClean(what: string): SluiceError {
  return new SluiceError('media.not_clean', `the normalised picture still holds ${what}`, {
    hint: 'Nothing was sealed. This is a fault of Sluice: please report it with the versions in use.',
  })
}

function corrupt(): SluiceError {
  return new SluiceError('media.corrupt', 'the picture is damaged or cut short', {
    hint: 'Copy it from the camera again; damaged pictures are not sealed.',
  })
}
