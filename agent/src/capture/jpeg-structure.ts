/** Takes a JPEG of any origin apart, and leaves a decoder only what belongs to its first picture. */
import { limits } from '@sluice/protocol/limits'
import { DamagedPicture, TooLargePicture, UnsupportedPicture } from './damaged-picture.ts'
import { readExif } from './exif-tags.ts'
import { requireSizes } from './picture-facts.ts'
import type { Orientation, PictureFacts, ReadOptions } from './picture-facts.ts'

/** One segment; `end` covers the coded data behind a scan header. */
type Segment = { marker: number; start: number; end: number }

const marker = { soi: 0xd8, eoi: 0xd9, sos: 0xda, app0: 0xe0, com: 0xfe } as const

/** JFIF 1.2 as we write it: no units, square pixels, no thumbnail. */
export const plainJfif = Buffer.from('ffe000104a46494600010200000100010000', 'hex')
const endOfImage = Buffer.from('ffd9', 'hex')

/** Tables, frame and scans: without these nothing can be decoded. */
function isCoding(code: number): boolean {
  return (code >= 0xc0 && code <= 0xcf) || (code >= 0xda && code <= 0xdf)
}

/**
 * @throws DamagedPicture, TooLargePicture, UnsupportedPicture.
 * @see ITU-T T.81, Annex B; JFIF 1.02; EXIF 2.32; ICC.1, B.4; CIPA DC-007 (MPO).
 */
export function readJpeg(bytes: Buffer, options: ReadOptions): PictureFacts {
  const { segments, cutAt, ...walked } = walk(bytes)
  const frame = segments.find((segment) => isFrame(segment.marker))
  // JPEG-LS (ITU-T T.87, C.1.1) has a frame of its own.
  if (frame === undefined && segments.some((segment) => segment.marker === 0xf7)) {
    throw new UnsupportedPicture('lossless-jpeg')
  }
  const scans = segments.filter((segment) => segment.marker === marker.sos)
  // Cut between two scans, a picture decodes without complaint, with less of it than it had.
  if (scans.length > limits.imageScansMax) throw new TooLargePicture('scans')
  const hasAll = frame !== undefined && (cutAt === undefined || coversAll(bytes, frame, scans))
  const damagedAt = walked.damagedAt ?? (hasAll ? undefined : cutAt)
  if (damagedAt !== undefined && !options.salvage) throw new DamagedPicture(damagedAt)
  const [firstScan] = scans
  if (frame === undefined || firstScan === undefined) {
    throw new DamagedPicture(damagedAt ?? bytes.length)
  }
  const removed = new Set<string>()
  const kept: Buffer[] = [Buffer.from([0xff, marker.soi])]
  const profile: { number: number; part: Buffer }[] = []
  let orientation: Orientation | undefined
  let frameAt = 0
  for (const segment of segments) {
    const content = bytes.subarray(segment.start + 4, segment.end)
    const kind = kindOf(segment.marker, content)
    if (kind === 'jfif') kept.push(plainJfif)
    else if (kind === 'coding') {
      if (segment === frame) frameAt = kept.reduce((sum, part) => sum + part.length, 0)
      kept.push(coding(bytes, segment, frame))
    } else if (kind === 'adobe') kept.push(adobe(bytes, segment, frame))
    else if (kind !== 'nothing') removed.add(kind)
    if (kind === 'jfif' && content.length > 14) removed.add('thumbnail')
    if (kind === 'icc') profile.push({ number: content[12] ?? 0, part: content.subarray(14) })
    if (kind === 'exif') {
      const exif = readExif(content)
      orientation ??= exif.orientation
      if (exif.gps) removed.add('gps')
      if (exif.thumbnail) removed.add('thumbnail')
    }
  }
  const end = segments.at(-1)?.end ?? 2
  if (bytes.length > end) nameTrailer(bytes.subarray(end), removed)
  const size = sizeOf(bytes, frame)
  requireSizes([size], 'pages')
  const icc = joinProfile(profile)
  const heightPixels = rowsBeyond(bytes, frame, scans.length)
  return {
    pages: [{ index: 0, orientation: orientation ?? 1, ...size }],
    animated: false,
    removed,
    codedAt: firstScan.start,
    decodable: Buffer.concat([...kept, endOfImage]),
    ...(icc === undefined ? {} : { icc }),
    ...(damagedAt === undefined ? {} : { damagedAt }),
    ...(cutAt === undefined ? {} : { cutAt }),
    ...(heightPixels === undefined ? {} : { beyondLast: { heightAt: frameAt + 5, heightPixels } }),
  }
}

/**
 * libvips looks for complaints before each strip of eight rows, and so never behind the last one. Where libjpeg
 * looks ahead for its neighbours, as it does for colours of half the height, or reads all passes before it
 * begins, it has complained by then.
 *
 * @see libvips, `jpeg2vips.c`; libjpeg-turbo, `need_context_rows`.
 */
function rowsBeyond(bytes: Buffer, frame: Segment, scans: number): number | undefined {
  if (frame.marker === 0xc2 || frame.marker === 0xca || scans > 1) return undefined
  const components = bytes[frame.start + 9] ?? 0
  const heights = Array.from(
    { length: components },
    (_, i) => (bytes[frame.start + 11 + 3 * i] ?? 0) & 15,
  )
  const most = Math.max(...heights)
  if (heights.some((height) => height !== most)) return undefined
  // A single component's blocks follow one another whatever its factor, and libjpeg takes so many at once.
  if (components === 1 && most !== 1) return undefined
  const rowHeight = 8 * most
  return rowHeight * Math.ceil(bytes.readUInt16BE(frame.start + 5) / rowHeight) + 1
}

/**
 * Whether the scans hold every coefficient of every component to its last bit.
 *
 * @see ITU-T T.81, B.2.2 (components of a frame) and B.2.3 (Ss, Se, Al); G.1.1 for progressive ones.
 */
function coversAll(bytes: Buffer, frame: Segment, scans: readonly Segment[]): boolean {
  const components = bytes[frame.start + 9] ?? 0
  const progressive = frame.marker === 0xc2 || frame.marker === 0xca
  /** For each component, which of the 64 coefficients are whole. */
  const whole = new Map<number, Set<number>>()
  for (let i = 0; i < components; i++) {
    whole.set(bytes[frame.start + 10 + 3 * i] ?? -1, new Set())
  }
  for (const { start } of scans) {
    const count = bytes[start + 4] ?? 0
    const at = start + 5 + 2 * count
    const [first = 0, last = 0, bits = 0] = bytes.subarray(at, at + 3)
    if (progressive && (bits & 15) !== 0) continue
    for (let i = 0; i < count; i++) {
      const found = whole.get(bytes[start + 5 + 2 * i] ?? -1)
      const [from, to] = progressive ? [first, last] : [0, 63]
      for (let k = from; k <= Math.min(to, 63); k++) found?.add(k)
    }
  }
  return [...whole.values()].every((found) => found.size === 64)
}

/** `cutAt` where the file ends in coded data, without the marker of its end. */
function walk(bytes: Buffer): { segments: Segment[]; damagedAt?: number; cutAt?: number } {
  const segments: Segment[] = []
  if (bytes.length < 2 || bytes.readUInt16BE(0) !== 0xffd8) throw new DamagedPicture(0)
  for (let at = 2; ;) {
    // Writers leave padding between segments; decoders look for the next marker, and so do we.
    const start = nextMarker(bytes, at)
    const code = start === undefined ? undefined : bytes[start + 1]
    if (start === undefined || code === undefined) {
      const coded = segments.at(-1)?.marker === marker.sos
      return { segments, ...(coded ? { cutAt: bytes.length } : { damagedAt: bytes.length }) }
    }
    if (code === marker.eoi) {
      segments.push({ marker: code, start, end: start + 2 })
      return { segments }
    }
    // Markers without content: restarts out of place, another SOI, TEM.
    if ((code >= 0xd0 && code <= 0xd8) || code === 0x01) {
      at = start + 2
      continue
    }
    if (start + 4 > bytes.length) return { segments, damagedAt: bytes.length }
    let end = start + 2 + bytes.readUInt16BE(start + 2)
    if (end < start + 4) return { segments, damagedAt: start }
    if (end > bytes.length) return { segments, damagedAt: bytes.length }
    if (code === marker.sos) end = codedDataEnd(bytes, end)
    segments.push({ marker: code, start, end })
    if (segments.length > limits.imageItemsMax) throw new TooLargePicture('nesting')
    at = end
  }
}

function nextMarker(bytes: Buffer, from: number): number | undefined {
  for (let at = bytes.indexOf(0xff, from); at >= 0; at = bytes.indexOf(0xff, at + 1)) {
    const code = bytes[at + 1]
    if (code !== undefined && code !== 0 && code !== 0xff) return at
  }
  return undefined
}

/**
 * A scan of a sequential picture covers everything: what else its header says is noise that decoders
 * pass over with a complaint, and some telephones write.
 *
 * @see ITU-T T.81, B.2.3: Ss 0, Se 63, Ah and Al 0.
 */
function coding(bytes: Buffer, { marker: code, start, end }: Segment, frame: Segment): Buffer {
  const content = bytes.subarray(start, end)
  const sequential = frame.marker === 0xc0 || frame.marker === 0xc1 || frame.marker === 0xc9
  const headEnd = 2 + bytes.readUInt16BE(start + 2)
  if (code !== marker.sos || !sequential || headEnd < 8 || headEnd > content.length) return content
  if (content.readUIntBE(headEnd - 3, 3) === 0x003f00) return content
  const whole = Buffer.from(content)
  whole.writeUIntBE(0x003f00, headEnd - 3, 3)
  return whole
}

/**
 * How colours were transformed; what nobody defined counts as the usual way.
 *
 * @see ITU-T T.872, 6.5.3: 0 none, 1 YCbCr, 2 YCCK.
 */
function adobe(bytes: Buffer, { start, end }: Segment, frame: Segment): Buffer {
  const content = Buffer.from(bytes.subarray(start, end))
  const last = content.length - 1
  if (content.readUInt8(last) > 2) content[last] = bytes[frame.start + 9] === 4 ? 2 : 1
  return content
}

/** Coded data ends at the first marker that is neither a stuffed zero nor a restart. */
function codedDataEnd(bytes: Buffer, from: number): number {
  for (let at = bytes.indexOf(0xff, from); at >= 0; at = bytes.indexOf(0xff, at + 1)) {
    const next = bytes[at + 1]
    if (next !== undefined && next !== 0 && next !== 0xff && (next < 0xd0 || next > 0xd7)) return at
  }
  return bytes.length
}

function isFrame(code: number): boolean {
  return code >= 0xc0 && code <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(code)
}

function sizeOf(bytes: Buffer, frame: Segment): { widthPixels: number; heightPixels: number } {
  // Baseline, extended and progressive, with Huffman or arithmetic codes.
  if (![0xc0, 0xc1, 0xc2, 0xc9, 0xca].includes(frame.marker)) {
    throw new UnsupportedPicture('lossless-jpeg')
  }
  if (frame.end - frame.start < 10) throw new DamagedPicture(frame.start)
  if (bytes[frame.start + 4] !== 8) throw new UnsupportedPicture('deep-jpeg')
  const heightPixels = bytes.readUInt16BE(frame.start + 5)
  const widthPixels = bytes.readUInt16BE(frame.start + 7)
  if (heightPixels === 0 || widthPixels === 0) throw new DamagedPicture(frame.start + 5)
  return { widthPixels, heightPixels }
}

const contents: readonly (readonly [number, string, string])[] = [
  [0xe1, 'Exif\0', 'exif'],
  [0xe1, 'http://ns.adobe.com/xap/1.0/', 'xmp'],
  [0xe1, 'http://ns.adobe.com/xmp/extension/', 'xmp'],
  [0xe2, 'ICC_PROFILE\0', 'icc'],
  [0xe2, 'MPF\0', 'further-pictures'],
  [0xe2, 'urn:iso:std:iso:ts:21496', 'gain-map'],
  [0xe2, 'FPXR\0', 'flashpix'],
  [0xeb, 'JP', 'c2pa'],
  [0xed, 'Photoshop 3.0\0', 'iptc'],
  [0xed, 'Adobe_CM', 'iptc'],
]

function kindOf(code: number, content: Buffer): string {
  if (isCoding(code)) return 'coding'
  if (code === marker.eoi) return 'nothing'
  if (code === marker.com) return 'comment'
  const text = content.toString('latin1', 0, 40)
  if (code === marker.app0 && text.startsWith('JFIF\0')) return 'jfif'
  if (code === marker.app0 && text.startsWith('JFXX\0')) return 'thumbnail'
  if (code === 0xee && text.startsWith('Adobe') && content.length === 12) return 'adobe'
  const known = contents.find(([at, start]) => at === code && text.startsWith(start))
  if (known === undefined) return 'other'
  if (known[2] === 'xmp' && /(?:MotionPhoto|MicroVideo)/.test(content.toString('latin1'))) {
    return 'motion-photo'
  }
  return known[2]
}

function nameTrailer(trailer: Buffer, removed: Set<string>): void {
  removed.add('trailer')
  if (trailer.includes('MotionPhoto_Data')) removed.add('motion-photo')
}

/** The parts in the order of their numbers; a profile with a gap is none. */
function joinProfile(parts: readonly { number: number; part: Buffer }[]): Buffer | undefined {
  const ordered = parts.toSorted((a, b) => a.number - b.number)
  if (parts.length === 0 || ordered.some(({ number }, i) => number !== i + 1)) return undefined
  return Buffer.concat(ordered.map(({ part }) => part))
}
