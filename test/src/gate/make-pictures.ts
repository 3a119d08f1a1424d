/** Pictures byte by byte: what no honest writer makes, and formats that sharp does not write. */

import { crc32, deflateSync } from 'node:zlib'

import type { Pixels } from './pixels.ts'

/** A JPEG with more segments behind its beginning. */
export function withSegments(jpeg: Buffer, ...segments: readonly Buffer[]): Buffer {
  return Buffer.concat([jpeg.subarray(0, 2), ...segments, jpeg.subarray(2)])
}

/** One JPEG segment with its length. */
export function segment(code: number, content: Buffer | string): Buffer {
  const bytes = Buffer.from(content)
  const head = Buffer.from([0xff, code, 0, 0])
  head.writeUInt16BE(2 + bytes.length, 2)
  return Buffer.concat([head, bytes])
}

/** EXIF with one orientation, a camera, a position and a thumbnail. */
export function exifBlock(orientation = 1, marker = 'canary-maker'): Buffer {
  const text = Buffer.from(`${marker}\0`)
  const directoryAt = 8
  const textAt = directoryAt + 2 + 3 * 12 + 4
  const gpsAt = textAt + text.length
  const thumbnailAt = gpsAt + 2 + 12 + 4
  const bytes = Buffer.alloc(thumbnailAt + 2 + 4)
  bytes.write('MM\0*', 'latin1')
  bytes.writeUInt32BE(directoryAt, 4)
  bytes.writeUInt16BE(3, directoryAt)
  const entry = (at: number, tag: number, type: number, count: number, value: number) => {
    bytes.writeUInt16BE(tag, at)
    bytes.writeUInt16BE(type, at + 2)
    bytes.writeUInt32BE(count, at + 4)
    if (type === 3) bytes.writeUInt16BE(value, at + 8)
    else bytes.writeUInt32BE(value, at + 8)
  }
  entry(10, 0x10f, 2, text.length, textAt)
  entry(22, 0x112, 3, 1, orientation)
  entry(34, 0x8825, 4, 1, gpsAt)
  bytes.writeUInt32BE(thumbnailAt, 46)
  text.copy(bytes, textAt)
  bytes.writeUInt16BE(1, gpsAt)
  entry(gpsAt + 2, 1, 2, 2, 0x4e000000)
  bytes.writeUInt16BE(0, thumbnailAt)
  return bytes
}

/** The EXIF block as a JPEG carries it. */
export function exifSegment(orientation = 1, marker?: string): Buffer {
  return segment(0xe1, Buffer.concat([Buffer.from('Exif\0\0'), exifBlock(orientation, marker)]))
}

export function chunk(name: string, content: Buffer | string): Buffer {
  const bytes = Buffer.from(content)
  const out = Buffer.alloc(12 + bytes.length)
  out.writeUInt32BE(bytes.length)
  out.write(name, 4, 'latin1')
  bytes.copy(out, 8)
  out.writeUInt32BE(crc32(out.subarray(4, -4)), out.length - 4)
  return out
}

/** A PNG with more chunks behind its header. */
export function withChunks(png: Buffer, ...chunks: readonly Buffer[]): Buffer {
  return Buffer.concat([png.subarray(0, 33), ...chunks, png.subarray(33)])
}

/** The header of a PNG saying another size than its data has. */
export function withSize(png: Buffer, width: number, height: number): Buffer {
  const header = Buffer.from(png.subarray(16, 29))
  header.writeUInt32BE(width)
  header.writeUInt32BE(height, 4)
  return Buffer.concat([png.subarray(0, 8), chunk('IHDR', header), png.subarray(33)])
}

/** An animated PNG whose first frame is its default picture. */
export function animatedPng(frames: readonly Pixels[]): Buffer {
  const [first] = frames
  if (first === undefined) throw new Error('an animation has a frame')
  const header = Buffer.alloc(13)
  header.writeUInt32BE(first.width)
  header.writeUInt32BE(first.height, 4)
  header.set([8, 2, 0, 0, 0], 8)
  const control = Buffer.alloc(8)
  control.writeUInt32BE(frames.length)
  let sequence = 0
  const parts = frames.flatMap((frame, i) => {
    const place = Buffer.alloc(26)
    place.writeUInt32BE(sequence++)
    place.writeUInt32BE(frame.width, 4)
    place.writeUInt32BE(frame.height, 8)
    place.writeUInt16BE(1, 20)
    place.writeUInt16BE(10, 22)
    const data = deflateSync(filtered(frame))
    if (i === 0) return [chunk('fcTL', place), chunk('IDAT', data)]
    const number = Buffer.alloc(4)
    number.writeUInt32BE(sequence++)
    return [chunk('fcTL', place), chunk('fdAT', Buffer.concat([number, data]))]
  })
  const signature = Buffer.from('89504e470d0a1a0a', 'hex')
  return Buffer.concat([
    signature,
    chunk('IHDR', header),
    chunk('acTL', control),
    ...parts,
    chunk('IEND', ''),
  ])
}

function filtered({ width, height, data }: Pixels): Buffer {
  const rows = Array.from({ length: height }, (_, y) =>
    Buffer.concat([Buffer.from([0]), data.subarray(y * width * 3, (y + 1) * width * 3)]),
  )
  return Buffer.concat(rows)
}

export type TiffEntry = readonly [
  tag: number,
  type: 1 | 2 | 3 | 4 | 7 | 13 | 16,
  values: readonly number[] | Buffer,
]

/** One directory: its entries, what its strip holds, and directories of its own. */
export type TiffPage = {
  entries: readonly TiffEntry[]
  strip?: Buffer
  children?: readonly TiffPage[]
}

/** A TIFF, little-endian, with each page behind the one before it; `big` for 64-bit offsets. */
export function makeTiff(pages: readonly TiffPage[], options: { big?: true } = {}): Buffer {
  const big = options.big === true
  const head = Buffer.alloc(big ? 16 : 8)
  head.write('II', 'latin1')
  head.writeUInt16LE(big ? 43 : 42, 2)
  if (big) head.writeUInt16LE(8, 4)
  const parts: Buffer[] = [head]
  let at = head.length
  const push = (bytes: Buffer) => {
    const place = at
    const padded = Buffer.concat([bytes, Buffer.alloc(bytes.length % 2)])
    parts.push(padded)
    at += padded.length
    return place
  }
  const offset = (value: number) => {
    const bytes = Buffer.alloc(big ? 8 : 4)
    if (big) bytes.writeBigUInt64LE(BigInt(value))
    else bytes.writeUInt32LE(value)
    return bytes
  }
  let nextAt: { bytes: Buffer; at: number } = { bytes: head, at: big ? 8 : 4 }
  const link = (place: number) => offset(place).copy(nextAt.bytes, nextAt.at)
  const build = (page: TiffPage, chained: boolean): number => {
    const children = (page.children ?? []).map((child) => build(child, false))
    const entries = [...page.entries]
    if (page.strip !== undefined) {
      entries.push([273, 4, [push(page.strip)]], [279, 4, [page.strip.length]])
    }
    if (children.length > 0) entries.push([330, 4, children])
    const sorted = entries.toSorted(([a], [b]) => a - b)
    const rows = sorted.map(([tag, type, values]) =>
      entryOf({ tag, type, values, big, push, offset }),
    )
    const count = big ? offset(rows.length) : Buffer.from([rows.length, 0])
    const directory = Buffer.concat([count, ...rows, offset(0)])
    const place = push(directory)
    if (chained) {
      link(place)
      nextAt = { bytes: parts.at(-1) ?? directory, at: directory.length - (big ? 8 : 4) }
    }
    return place
  }
  for (const page of pages) build(page, true)
  return Buffer.concat(parts)
}

function entryOf(options: {
  tag: number
  type: number
  values: readonly number[] | Buffer
  big: boolean
  push: (bytes: Buffer) => number
  offset: (value: number) => Buffer
}): Buffer {
  const { tag, type, values, big, push, offset } = options
  const width = { 1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 13: 4, 16: 8 }[type] ?? 1
  const content = Buffer.isBuffer(values)
    ? values
    : Buffer.concat(
        values.map((value) => {
          const bytes = Buffer.alloc(8)
          bytes.writeUIntLE(value, 0, 6)
          return bytes.subarray(0, width)
        }),
      )
  const room = big ? 8 : 4
  const field = Buffer.alloc(room)
  if (content.length <= room) content.copy(field)
  else offset(push(content)).copy(field)
  const start = Buffer.alloc(4)
  start.writeUInt16LE(tag)
  start.writeUInt16LE(type, 2)
  return Buffer.concat([start, offset(content.length / width), field])
}

/** The entries of an uncompressed RGB page of 8 bits. */
export function rgbPage(pixels: Pixels, more: readonly TiffEntry[] = []): TiffPage {
  const entries: readonly TiffEntry[] = [
    [256, 4, [pixels.width]],
    [257, 4, [pixels.height]],
    [258, 3, [8, 8, 8]],
    [259, 3, [1]],
    [262, 3, [2]],
    [277, 3, [3]],
    [278, 4, [pixels.height]],
    ...more,
  ]
  return { entries, strip: pixels.data }
}

export type BmpForm = {
  /** 12 is OS/2, 40 Windows 3, 124 version 5. */
  headerBytes?: 12 | 40 | 124
  bits: 1 | 4 | 8 | 16 | 24 | 32
  compression?: number
  topDown?: true
  palette?: readonly (readonly [number, number, number])[]
  masks?: readonly number[]
  /** Rows as they lie in the file, or anything else. */
  data: Buffer
  width: number
  height: number
  trailer?: Buffer
}

/** @see Microsoft, BITMAPFILEHEADER and what follows it. */
export function makeBmp(form: BmpForm): Buffer {
  const { headerBytes = 40, bits, compression = 0, palette = [], masks = [], data } = form
  const header = Buffer.alloc(headerBytes)
  header.writeUInt32LE(headerBytes)
  if (headerBytes === 12) {
    header.writeUInt16LE(form.width, 4)
    header.writeUInt16LE(form.height, 6)
    header.writeUInt16LE(1, 8)
    header.writeUInt16LE(bits, 10)
  } else {
    header.writeInt32LE(form.width, 4)
    header.writeInt32LE(form.topDown === true ? -form.height : form.height, 8)
    header.writeUInt16LE(1, 12)
    header.writeUInt16LE(bits, 14)
    header.writeUInt32LE(compression, 16)
    header.writeUInt32LE(palette.length, 32)
    if (headerBytes === 124)
      for (const [i, mask] of masks.entries()) header.writeUInt32LE(mask, 40 + 4 * i)
  }
  const behind = headerBytes === 40 ? masks.map((mask) => u32le(mask)) : []
  const entries = palette.map(([r, g, b]) =>
    Buffer.from(headerBytes === 12 ? [b, g, r] : [b, g, r, 0]),
  )
  const front = Buffer.concat([header, ...behind, ...entries])
  const file = Buffer.alloc(14)
  file.write('BM', 'latin1')
  file.writeUInt32LE(14 + front.length + data.length, 2)
  file.writeUInt32LE(14 + front.length, 10)
  return Buffer.concat([file, front, data, form.trailer ?? Buffer.alloc(0)])
}

function u32le(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

/** Rows from the bottom, each filled up to four bytes, by a function that codes one pixel. */
export function bmpRows(
  { width, height, data }: Pixels,
  code: (r: number, g: number, b: number) => readonly number[],
): Buffer {
  const rows = Array.from({ length: height }, (_, i) => {
    const y = height - 1 - i
    const row = Array.from({ length: width }, (__, x) => {
      const at = (y * width + x) * 3
      return code(data[at] ?? 0, data[at + 1] ?? 0, data[at + 2] ?? 0)
    }).flat()
    return Buffer.from([...row, ...Array.from({ length: (4 - (row.length % 4)) % 4 }, () => 0)])
  })
  return Buffer.concat(rows)
}

/** A GIF with blocks of extensions before its first frame. */
export function withGifBlocks(gif: Buffer, ...blocks: readonly Buffer[]): Buffer {
  const packed = gif[10] ?? 0
  const start = 13 + ((packed & 0x80) === 0 ? 0 : 3 * 2 ** ((packed & 7) + 1))
  return Buffer.concat([gif.subarray(0, start), ...blocks, gif.subarray(start)])
}

export function gifExtension(label: number, ...content: readonly string[]): Buffer {
  const blocks = content.map((text) =>
    Buffer.concat([Buffer.from([text.length]), Buffer.from(text)]),
  )
  return Buffer.concat([Buffer.from([0x21, label]), ...blocks, Buffer.from([0])])
}
