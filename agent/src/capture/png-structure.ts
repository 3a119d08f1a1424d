/** Takes a PNG of any origin apart, and leaves a decoder only what belongs to its default picture. */
import { crc32, inflateSync } from 'node:zlib'
import { limits } from '@sluice/protocol/limits'
import { DamagedPicture, TooLargePicture, UnsupportedPicture } from './damaged-picture.ts'
import { readExif } from './exif-tags.ts'
import { requireSizes } from './picture-facts.ts'
import type { ColourCode, PictureFacts, ReadOptions, Size } from './picture-facts.ts'

type Chunk = { name: string; start: number; content: Buffer }

export const pngSignature = Buffer.from('89504e470d0a1a0a', 'hex')
const coding = new Set(['IHDR', 'PLTE', 'tRNS', 'IDAT', 'IEND'])

const kinds = new Map([
  ['tEXt', 'text'],
  ['zTXt', 'text'],
  ['iTXt', 'text'],
  ['eXIf', 'exif'],
  ['iCCP', 'icc'],
  ['tIME', 'time'],
  ['pHYs', 'resolution'],
  ['caBX', 'c2pa'],
  ['acTL', 'animation'],
  ['fcTL', 'animation'],
  ['fdAT', 'animation'],
  ...['gAMA', 'cHRM', 'sRGB', 'cICP', 'sBIT', 'bKGD', 'mDCV', 'cLLI'].map(
    (name) => [name, 'colour'] as const,
  ),
])

/**
 * @throws DamagedPicture, TooLargePicture, UnsupportedPicture.
 * @see PNG (Third Edition), sections 5 and 11.
 */
export function readPng(bytes: Buffer, options: ReadOptions): PictureFacts {
  const { chunks: all, end, damagedAt, cutAt } = walk(bytes)
  // What Xcode makes of PNGs: another order of samples, and data without their head.
  if (all[0]?.name === 'CgBI') throw new UnsupportedPicture('compression')
  if (damagedAt !== undefined && !options.salvage) throw new DamagedPicture(damagedAt)
  const chunks = withFirstFrame(bytes, all)
  const [header] = chunks
  if (header?.name !== 'IHDR' || header.content.length !== 13) throw new DamagedPicture(8)
  const size = {
    widthPixels: header.content.readUInt32BE(0),
    heightPixels: header.content.readUInt32BE(4),
  }
  if (size.widthPixels === 0 || size.heightPixels === 0) throw new DamagedPicture(16)
  requireSizes([size], 'pages')
  requireSizes(frameSizes(chunks), 'frames')
  const coded = chunks.find(({ name }) => name === 'IDAT')
  if (coded === undefined) throw new DamagedPicture(damagedAt ?? end)
  const removed = new Set<string>()
  for (const { name, content } of all) {
    if (!coding.has(name)) removed.add(kindOf(name, content))
  }
  if (bytes.length > end) removed.add('trailer')
  const exifChunk = chunks.find(({ name }) => name === 'eXIf')
  const inText = exifInText(chunks)
  if (inText !== undefined) removed.add('exif')
  const exif = readExif(exifChunk?.content ?? inText ?? Buffer.alloc(0))
  if (exif.gps) removed.add('gps')
  if (exif.thumbnail) removed.add('thumbnail')
  const icc = profileOf(chunks)
  const colour = colourOf(chunks)
  const needed = chunks.filter(({ name }) => coding.has(name) && name !== 'IEND')
  return {
    pages: [{ index: 0, orientation: exif.orientation, ...size }],
    animated: false,
    removed,
    codedAt: coded.start,
    decodable: Buffer.concat([
      pngSignature,
      ...needed.map((part) =>
        pngChunk(part.name, part === coded ? withWholeWindow(part.content) : part.content),
      ),
      pngChunk('IEND', Buffer.alloc(0)),
    ]),
    ...(icc === undefined ? {} : { icc }),
    ...(colour === undefined ? {} : { colour }),
    ...(damagedAt === undefined ? {} : { damagedAt }),
    ...(cutAt === undefined ? {} : { cutAt }),
  }
}

/**
 * An animation whose default picture is none of its frames: whoever knows animations sees its first frame,
 * and never that picture.
 *
 * @throws DamagedPicture
 * @see PNG (Third Edition), 11.3.6: `acTL` and the first `fcTL` come before `IDAT` where that is a frame.
 */
function withFirstFrame(bytes: Buffer, chunks: readonly Chunk[]): readonly Chunk[] {
  const place = (wanted: string) => chunks.findIndex(({ name }) => name === wanted)
  const [animation, control, coded] = [place('acTL'), place('fcTL'), place('IDAT')]
  const [header] = chunks
  const frame = chunks[control]
  if (animation < 0 || animation > coded || control < coded || coded < 0) return chunks
  if (frame === undefined || header?.content.length !== 13) return chunks
  const behind = chunks.slice(control + 1)
  const ends = behind.findIndex(({ name }) => name === 'fcTL')
  const pieces = behind
    .slice(0, ends < 0 ? behind.length : ends)
    .filter(({ name }) => name === 'fdAT')
  if (pieces.length === 0) return chunks
  const data = pieces.map(({ start, content }) => {
    const checked = bytes.subarray(start + 4, start + 8 + content.length)
    const sum = start + 8 + content.length
    if (sum + 4 <= bytes.length && crc32(checked) !== bytes.readUInt32BE(sum)) {
      throw new DamagedPicture(start)
    }
    return { name: 'IDAT', start, content: content.subarray(4) }
  })
  if (frame.content.length !== 26) throw new DamagedPicture(frame.start)
  const size = frame.content.subarray(4, 12)
  const inside = [0, 4].every((at) => {
    const [side, whole] = [size.readUInt32BE(at), header.content.readUInt32BE(at)]
    return side > 0 && side + frame.content.readUInt32BE(12 + at) <= whole
  })
  if (!inside) throw new DamagedPicture(frame.start)
  const content = Buffer.concat([size, header.content.subarray(8)])
  const others = chunks.slice(1).filter(({ name }) => name !== 'IDAT' && name !== 'IEND')
  return [{ ...header, content }, ...others, ...data]
}

/**
 * The window that the compressed data ask for, made the largest: some writers name a smaller one than they
 * used, and then a decoder that believes them finds a distance too far back.
 *
 * @see RFC 1950, 2.2: method and window, then flags whose lowest five bits make both divisible by 31.
 */
function withWholeWindow(content: Buffer): Buffer {
  const [method, flags] = content
  if (method === undefined || flags === undefined) return content
  if ((method & 15) !== 8 || method >= 0x78 || (method * 256 + flags) % 31 !== 0) return content
  const whole = Buffer.from(content)
  const kept = flags & 0xe0
  whole.set([0x78, kept + 31 - ((0x7800 + kept) % 31)])
  return whole
}

/** One chunk with its length and checksum. */
export function pngChunk(name: string, content: Buffer): Buffer {
  const chunk = Buffer.alloc(12 + content.length)
  chunk.writeUInt32BE(content.length)
  chunk.write(name, 4, 'latin1')
  content.copy(chunk, 8)
  chunk.writeUInt32BE(crc32(chunk.subarray(4, -4)), chunk.length - 4)
  return chunk
}

type Walked = { chunks: Chunk[]; end: number; damagedAt?: number; cutAt?: number }

function walk(bytes: Buffer): Walked {
  const chunks: Chunk[] = []
  if (!bytes.subarray(0, 8).equals(pngSignature)) throw new DamagedPicture(0)
  // Whether the picture data before it are all of them, the decoder knows: they have an end of their own.
  const cut = (inPicture = false): Walked => {
    const at = bytes.length
    const begun = chunks.some(({ name }) => name === 'IDAT')
    return { chunks, end: at, ...(begun && !inPicture ? { cutAt: at } : { damagedAt: at }) }
  }
  for (let at = 8; ;) {
    if (at + 12 > bytes.length) return cut()
    const name = bytes.toString('latin1', at + 4, at + 8)
    if (!/^[A-Za-z]{4}$/.test(name)) return { chunks, end: at, damagedAt: at }
    const end = at + 12 + bytes.readUInt32BE(at)
    if (end > bytes.length) {
      // What is there of the picture may still be decoded.
      const content = bytes.subarray(at + 8, end - 4)
      if (name === 'IDAT') chunks.push({ name, start: at, content })
      return cut(name === 'IDAT' && end - 4 > bytes.length)
    }
    const content = bytes.subarray(at + 8, end - 4)
    // Only what goes to the decoder has to be whole: the rest is dropped unread.
    if (
      coding.has(name) &&
      crc32(bytes.subarray(at + 4, end - 4)) !== bytes.readUInt32BE(end - 4)
    ) {
      return { chunks, end: at, damagedAt: at }
    }
    chunks.push({ name, start: at, content })
    if (chunks.length > piecesMax) throw new TooLargePicture('nesting')
    at = end
    if (name === 'IEND') return { chunks, end: at }
  }
}

/** A large PNG has some ten thousand pieces. */
const piecesMax = 1_000_000

function frameSizes(chunks: readonly Chunk[]): Size[] {
  return chunks
    .filter(({ name, content }) => name === 'fcTL' && content.length === 26)
    .map(({ content }) => ({
      widthPixels: content.readUInt32BE(4),
      heightPixels: content.readUInt32BE(8),
    }))
}

function kindOf(name: string, content: Buffer): string {
  if (name === 'iTXt' && content.toString('latin1', 0, 18) === 'XML:com.adobe.xmp\0') return 'xmp'
  return kinds.get(name) ?? 'other'
}

/**
 * EXIF as ImageMagick and what follows it write it: in hexadecimal, as a text.
 *
 * @see ExifTool, "PNG TextualData Tags": `Raw profile type exif` and `APP1`, compressed or not.
 */
function exifInText(chunks: readonly Chunk[]): Buffer | undefined {
  for (const { name, content } of chunks) {
    if (name !== 'tEXt' && name !== 'zTXt') continue
    const keyword = content.toString('latin1', 0, 30)
    const profile = /^Raw profile type (?:exif|APP1)\0/.exec(keyword)?.[0]
    if (profile === undefined) continue
    const text = name === 'tEXt' ? content.subarray(profile.length) : unpacked(content, profile)
    const head = /^\s*(?:exif|APP1)\s+\d+\s/.exec(text.toString('latin1'))?.[0]
    if (head === undefined) continue
    const hex = text.toString('latin1', head.length).replaceAll(/\s/g, '')
    const exif = Buffer.from(hex, 'hex')
    if (exif.toString('latin1', 0, 6) === 'Exif\0\0') return exif
  }
  return undefined
}

/** A text that does not unpack to something small says nothing. */
function unpacked(content: Buffer, keyword: string): Buffer {
  try {
    const packed = content.subarray(keyword.length + 1)
    return inflateSync(packed, { maxOutputLength: 4 * textBytesMax })
  } catch {
    return Buffer.alloc(0)
  }
}

/** A block of EXIF in a JPEG has at most this many bytes; two digits and some white space each. */
const textBytesMax = 64 * 1024

/** @throws TooLargePicture when it unpacks to more than metadata may. */
function profileOf(chunks: readonly Chunk[]): Buffer | undefined {
  const content = chunks.find(({ name }) => name === 'iCCP')?.content
  if (content === undefined) return undefined
  const nameEnd = content.indexOf(0)
  if (nameEnd < 0 || nameEnd > 79 || content[nameEnd + 1] !== 0) return undefined
  try {
    return inflateSync(content.subarray(nameEnd + 2), {
      maxOutputLength: limits.imageMetadataBytesMax,
    })
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code === 'ERR_BUFFER_TOO_LARGE') throw new TooLargePicture('metadata')
    // A broken profile is none: the picture itself may be whole.
    return undefined
  }
}

/** @see PNG (Third Edition), 11.3.2: cICP before iCCP, iCCP before sRGB, sRGB before gAMA and cHRM. */
function colourOf(chunks: readonly Chunk[]): ColourCode | undefined {
  const content = (wanted: string, bytes: number) =>
    chunks.find(({ name, content: found }) => name === wanted && found.length === bytes)?.content
  const code = content('cICP', 4)
  // Only RGB in full range is allowed there.
  if (code !== undefined && code[2] === 0) {
    return { primaries: code.readUInt8(0), transfer: code.readUInt8(1) }
  }
  if (content('sRGB', 1) !== undefined) return undefined
  const chromaticities = content('cHRM', 32)
  const gamma = content('gAMA', 4)?.readUInt32BE(0)
  if (chromaticities === undefined && gamma === undefined) return undefined
  return {
    chromaticities:
      chromaticities === undefined
        ? undefined
        : Array.from({ length: 8 }, (_, i) => chromaticities.readUInt32BE(i * 4) / 100_000),
    gamma: gamma === undefined ? undefined : gamma / 100_000,
  }
}
