/** Takes a GIF of any origin apart, and leaves a decoder only its frames. */
import { DamagedPicture } from './damaged-picture.ts'
import { cutSubBlocks, readCodes, subBlocksEnd } from './gif-codes.ts'
import { requireSizes } from './picture-facts.ts'
import type { PictureFacts, ReadOptions, Size } from './picture-facts.ts'
import { limits } from '@sluice/protocol/limits'
import { TooLargePicture } from './damaged-picture.ts'

/** `coded` is what a decoder gets: the frame, with an end of its data whatever the file has. */
type Frame = { start: number; coded: Buffer[] } & Size

const extension = {
  graphicControl: 0xf9,
  comment: 0xfe,
  application: 0xff,
  plainText: 0x01,
} as const

/**
 * @throws DamagedPicture, TooLargePicture.
 * @see GIF89a Specification, sections 18 to 27.
 */
export function readGif(bytes: Buffer, options: ReadOptions): PictureFacts {
  if (bytes.length < 13) throw new DamagedPicture(bytes.length)
  const headEnd = 13 + tableBytes(bytes.readUInt8(10))
  const removed = new Set<string>()
  const { frames, end, damagedAt } = walk(bytes, headEnd, removed)
  if (damagedAt !== undefined && !options.salvage) throw new DamagedPicture(damagedAt)
  const [first] = frames
  if (first === undefined) throw new DamagedPicture(damagedAt ?? bytes.length)
  if (bytes.length > end) removed.add('trailer')
  const size = canvas(bytes, frames)
  requireSizes(
    frames.map(() => size),
    'frames',
  )
  const wanted = options.frames === 'all' ? frames : [first]
  if (frames.length > wanted.length) removed.add('animation')
  return {
    pages: wanted.map((_, index) => ({ index, orientation: 1, ...size })),
    animated: true,
    removed,
    codedAt: first.start,
    decodable: Buffer.concat([
      bytes.subarray(0, headEnd),
      ...wanted.flatMap(({ coded }) => coded),
      Buffer.from([0x3b]),
    ]),
    ...(damagedAt === undefined ? {} : { damagedAt }),
  }
}

/** Frames with the graphic control before them; everything else is named in `removed`. */
function walk(
  bytes: Buffer,
  from: number,
  removed: Set<string>,
): { frames: Frame[]; end: number; damagedAt?: number } {
  const frames: Frame[] = []
  let control: number | undefined
  let damagedAt: number | undefined
  const cut = () => ({ frames, end: bytes.length, damagedAt: damagedAt ?? bytes.length })
  const whole = (end: number) => ({
    frames,
    end,
    ...(damagedAt === undefined ? {} : { damagedAt }),
  })
  for (let at = from; ;) {
    const introducer = bytes[at]
    // Many writers forget the trailer; the file still ends where a block may end.
    if (introducer === undefined && at === bytes.length && frames.length > 0) return whole(at)
    if (introducer === undefined) return cut()
    if (introducer === 0x3b) return whole(at + 1)
    if (introducer === 0x21) {
      const label = bytes[at + 1]
      const end = subBlocksEnd(bytes, at + 2)
      if (end === undefined) return cut()
      if (label === extension.graphicControl) control = at
      else removed.add(kindOf(label, bytes.toString('latin1', at + 3, at + 14)))
      at = end
      continue
    }
    // Behind the end of a run of blocks some writers put another end.
    if (introducer === 0) {
      at += 1
      continue
    }
    if (introducer !== 0x2c) return { frames, end: at, damagedAt: damagedAt ?? at }
    if (at + 10 > bytes.length) return cut()
    const codesAt = at + 10 + tableBytes(bytes.readUInt8(at + 9))
    const end = subBlocksEnd(bytes, codesAt + 1)
    const start = control ?? at
    const [width, height] = [bytes.readUInt16LE(at + 5), bytes.readUInt16LE(at + 7)]
    const pixels = width * height
    if (pixels > limits.imagePixelsMax) throw new TooLargePicture('pixels')
    const { missingFrom, isLast } = readCodes(bytes, codesAt, pixels)
    damagedAt ??= missingFrom
    const coded =
      end === undefined
        ? [bytes.subarray(start, codesAt + 1), cutSubBlocks(bytes, codesAt + 1)]
        : [bytes.subarray(start, end - 1)]
    coded.push(isLast ? oneMoreCode : endOfBlocks)
    frames.push({
      start,
      coded,
      widthPixels: bytes.readUInt16LE(at + 1) + width,
      heightPixels: bytes.readUInt16LE(at + 3) + height,
    })
    control = undefined
    if (frames.length > limits.imageFramesMax) throw new TooLargePicture('frames')
    // All pixels are there, and nothing but the ends of block and file is missing.
    if (end === undefined) return damagedAt === undefined ? whole(bytes.length) : cut()
    at = end
  }
}

const endOfBlocks = Buffer.from([0])

/** A block of one byte before that: libnsgif leaves out the last code of a frame without an end code. */
const oneMoreCode = Buffer.from([1, 0, 0])

function tableBytes(packed: number): number {
  return (packed & 0x80) === 0 ? 0 : 3 * 2 ** ((packed & 7) + 1)
}

/** Decoders take the larger of the announced screen and what its frames reach. */
function canvas(bytes: Buffer, frames: readonly Frame[]): Size {
  return {
    widthPixels: Math.max(bytes.readUInt16LE(6), ...frames.map(({ widthPixels }) => widthPixels)),
    heightPixels: Math.max(
      bytes.readUInt16LE(8),
      ...frames.map(({ heightPixels }) => heightPixels),
    ),
  }
}

function kindOf(label: number | undefined, identifier: string): string {
  if (label === extension.comment) return 'comment'
  if (label === extension.plainText) return 'text'
  if (label !== extension.application) return 'other'
  if (identifier.startsWith('XMP DataXMP')) return 'xmp'
  if (identifier.startsWith('ICCRGBG1')) return 'icc'
  return identifier.startsWith('NETSCAPE') || identifier.startsWith('ANIMEXTS') ? 'loop' : 'other'
}
