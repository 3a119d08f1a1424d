/** Takes a WebP of any origin apart, and leaves a decoder only what belongs to its picture. */
import { DamagedPicture, TooLargePicture } from './damaged-picture.ts'
import { readExif } from './exif-tags.ts'
import { requireSizes } from './picture-facts.ts'
import type { PictureFacts, ReadOptions, Size } from './picture-facts.ts'

type Chunk = { name: string; start: number; content: Buffer }

const flags = { icc: 0x20, alpha: 0x10, exif: 0x08, xmp: 0x04, animation: 0x02 } as const

const kinds = new Map([
  ['EXIF', 'exif'],
  ['XMP ', 'xmp'],
  ['ICCP', 'icc'],
  ['C2PA', 'c2pa'],
])

/**
 * @throws DamagedPicture, TooLargePicture.
 * @see RFC 9649, section 2.
 */
export function readWebp(bytes: Buffer, options: ReadOptions): PictureFacts {
  if (bytes.length < 20 || bytes.toString('latin1', 8, 12) !== 'WEBP') throw new DamagedPicture(0)
  const end = 8 + bytes.readUInt32LE(4)
  const { chunks, ...walked } = walk(bytes.subarray(0, end), 12, end)
  const damagedAt = losesPicture(chunks, walked) ? walked.damagedAt : undefined
  if (damagedAt !== undefined && !options.salvage) throw new DamagedPicture(damagedAt)
  const extended = chunks.find(({ name, content }) => name === 'VP8X' && content.length >= 10)
  const frames = chunks.filter(({ name }) => name === 'ANMF')
  const still = chunks.filter(({ name }) => name === 'VP8 ' || name === 'VP8L')
  const [picture] = frames.length > 0 ? frames : still
  if (picture === undefined) throw new DamagedPicture(damagedAt ?? Math.min(end, bytes.length))
  const size = extended === undefined ? codedSize(picture) : canvasSize(extended.content)
  for (const coded of still) requireSizes([codedSize(coded)], 'pages')
  for (const frame of frames) requireSizes([frameSize(frame)], 'pages')
  requireSizes([size], 'pages')
  const animated = frames.length > 0
  if (animated)
    requireSizes(
      frames.map(() => size),
      'frames',
    )
  const removed = new Set<string>()
  for (const { name } of chunks) {
    if (!['VP8 ', 'VP8L', 'VP8X', 'ALPH', 'ANIM', 'ANMF'].includes(name)) {
      removed.add(kinds.get(name) ?? 'other')
    }
  }
  if (bytes.length > end) removed.add('trailer')
  const wanted = options.frames === 'all' ? frames : frames.slice(0, 1)
  if (frames.length > 1 && wanted.length === 1) removed.add('animation')
  const exif = readExif(chunks.find(({ name }) => name === 'EXIF')?.content ?? Buffer.alloc(0))
  if (exif.gps) removed.add('gps')
  if (exif.thumbnail) removed.add('thumbnail')
  const icc = chunks.find(({ name }) => name === 'ICCP')?.content
  const needed = chunks.filter((chunk) =>
    animated
      ? chunk.name === 'ANIM' || wanted.includes(chunk)
      : chunk.name === 'ALPH' || chunk === picture,
  )
  const count = animated ? wanted.length : 1
  return {
    pages: Array.from({ length: count }, (_, index) => ({
      index,
      orientation: exif.orientation,
      ...size,
    })),
    animated,
    removed,
    codedAt: picture.start,
    decodable: rebuild(extended?.content, needed),
    ...(icc === undefined ? {} : { icc: Buffer.from(icc) }),
    ...(damagedAt === undefined ? {} : { damagedAt }),
  }
}

/** Where it breaks, and whether a chunk is cut there. */
type Break = { damagedAt?: number; cut?: true }

/** Behind a still picture nothing of it can be missing; of an animation the next frames can. */
function losesPicture(chunks: readonly Chunk[], { damagedAt, cut }: Break): boolean {
  if (damagedAt === undefined) return false
  const names = chunks.map(({ name }) => name)
  const wholeNames = cut === true ? names.slice(0, -1) : names
  const isStill = !names.includes('ANMF') && !names.includes('ANIM')
  return !isStill || !wholeNames.some((name) => name === 'VP8 ' || name === 'VP8L')
}

function walk(bytes: Buffer, from: number, end: number): { chunks: Chunk[] } & Break {
  const chunks: Chunk[] = []
  for (let at = from; ;) {
    if (at + 8 > bytes.length) break
    const size = bytes.readUInt32LE(at + 4)
    const name = bytes.toString('latin1', at, at + 4)
    const content = bytes.subarray(at + 8, at + 8 + size)
    chunks.push({ name, start: at, content })
    if (content.length < size) return { chunks, damagedAt: bytes.length, cut: true }
    if (chunks.length > piecesMax) throw new TooLargePicture('nesting')
    at += 8 + size + (size % 2)
  }
  return end > bytes.length ? { chunks, damagedAt: bytes.length } : { chunks }
}

/** A frame needs 24 bytes at least, so that this is a file of some megabytes. */
const piecesMax = 100_000

function canvasSize(extended: Buffer): Size {
  return { widthPixels: 1 + extended.readUIntLE(4, 3), heightPixels: 1 + extended.readUIntLE(7, 3) }
}

function frameSize({ content, start }: Chunk): Size {
  if (content.length < 16) throw new DamagedPicture(start)
  return { widthPixels: 1 + content.readUIntLE(6, 3), heightPixels: 1 + content.readUIntLE(9, 3) }
}

/** @see RFC 9649, 3.4 (lossless), and RFC 6386, 9.1 (lossy). */
function codedSize({ name, content, start }: Chunk): Size {
  if (content.length < 10) throw new DamagedPicture(start)
  if (name === 'VP8L') {
    if (content[0] !== 0x2f) throw new DamagedPicture(start + 8)
    const packed = content.readUInt32LE(1)
    return { widthPixels: 1 + (packed & 0x3fff), heightPixels: 1 + ((packed >>> 14) & 0x3fff) }
  }
  return {
    widthPixels: content.readUInt16LE(6) & 0x3fff,
    heightPixels: content.readUInt16LE(8) & 0x3fff,
  }
}

function rebuild(extended: Buffer | undefined, needed: readonly Chunk[]): Buffer {
  const chunks = needed.map(({ name, content }) => riffChunk(name, content))
  if (extended !== undefined) {
    const header = Buffer.from(extended.subarray(0, 10))
    header[0] = header.readUInt8(0) & (flags.alpha | flags.animation)
    chunks.unshift(riffChunk('VP8X', header))
  }
  return riffChunk('RIFF', Buffer.concat([Buffer.from('WEBP'), ...chunks]))
}

function riffChunk(name: string, content: Buffer): Buffer {
  const head = Buffer.alloc(8)
  head.write(name, 'latin1')
  head.writeUInt32LE(content.length, 4)
  return Buffer.concat([head, content, Buffer.alloc(content.length % 2)])
}
