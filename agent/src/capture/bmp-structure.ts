/** Reads a BMP into plain pixels: sharp has no decoder for it, and the format is small enough for one of ours. */
import { DamagedPicture, UnsupportedPicture } from './damaged-picture.ts'
import { requireSizes } from './picture-facts.ts'
import type { Size } from './picture-facts.ts'
import type { PlainPicture } from './plain-picture.ts'

export type Bmp = PlainPicture & { icc?: Buffer; removed: Set<string>; damagedAt?: number }

type Header = Size & {
  bottomUp: boolean
  bits: number
  compression: number
  palette: Buffer
  paletteEntryBytes: 3 | 4
  dataAt: number
  masks: readonly [number, number, number, number] | undefined
}

const compressions = { none: 0, rle8: 1, rle4: 2, masks: 3, masksWithAlpha: 6 } as const

/**
 * @throws DamagedPicture where its bytes end or make no sense, TooLargePicture, UnsupportedPicture.
 * @see Microsoft, "Bitmap Storage" and BITMAPV5HEADER; OS/2 1.x BITMAPCOREHEADER.
 */
export function readBmp(bytes: Buffer, options: { salvage: boolean }): Bmp {
  const header = readHeader(bytes)
  requireSizes([header], 'pages')
  const removed = new Set<string>()
  const icc = profileOf(bytes, removed)
  const state = { damagedAt: undefined as number | undefined }
  const samples = decode(bytes, header, state)
  if (state.damagedAt !== undefined && !options.salvage) throw new DamagedPicture(state.damagedAt)
  const { widthPixels, heightPixels, channels } = { ...header, channels: samples.channels }
  if (bytes.length > bytes.readUInt32LE(2) && bytes.readUInt32LE(2) > header.dataAt) {
    removed.add('trailer')
  }
  return {
    widthPixels,
    heightPixels,
    channels,
    bits: 8,
    samples: samples.rows,
    removed,
    ...(icc === undefined ? {} : { icc }),
    ...(state.damagedAt === undefined ? {} : { damagedAt: state.damagedAt }),
  }
}

function readHeader(bytes: Buffer): Header {
  if (bytes.length < 26) throw new DamagedPicture(bytes.length)
  const saidDataAt = bytes.readUInt32LE(10)
  const headerBytes = bytes.readUInt32LE(14)
  if (14 + headerBytes > bytes.length) throw new DamagedPicture(bytes.length)
  const core = headerBytes === 12
  const width = core ? bytes.readUInt16LE(18) : bytes.readInt32LE(18)
  const height = core ? bytes.readUInt16LE(20) : bytes.readInt32LE(22)
  const bits = bytes.readUInt16LE(core ? 24 : 28)
  const compression = headerBytes >= 20 ? bytes.readUInt32LE(30) : compressions.none
  if (width <= 0 || height === 0 || height === -(2 ** 31)) throw new DamagedPicture(18)
  // OS/2 2 counts its own schemes from 3 on, and 4 and 5 are a JPEG or PNG within.
  const known: readonly number[] = Object.values(compressions)
  if (!known.includes(compression) || (headerBytes === 64 && compression > 2)) {
    throw new UnsupportedPicture('compression')
  }
  if (![1, 2, 4, 8, 16, 24, 32].includes(bits)) throw new UnsupportedPicture('compression')
  if (isMasked(compression) && bits !== 16 && bits !== 32) throw new DamagedPicture(30)
  const masksFollow = headerBytes === 40 && isMasked(compression)
  const masks = isMasked(compression)
    ? readMasks(bytes, { headerBytes, compression })
    : defaultMasks(bits)
  const maskBytes = masksFollow ? (compression === compressions.masks ? 12 : 16) : 0
  const paletteAt = 14 + headerBytes + maskBytes
  const paletteEntryBytes = core ? 3 : 4
  const announced = core ? 0 : bytes.readUInt32LE(46)
  const colours = bits > 8 ? 0 : announced === 0 ? 2 ** bits : Math.min(announced, 256)
  const size = { widthPixels: width, heightPixels: Math.abs(height) }
  const behind = paletteAt + colours * paletteEntryBytes
  // A place that leaves no room for a palette is one that the writer forgot to move behind it.
  const forgotten =
    saidDataAt < paletteAt ||
    (saidDataAt === paletteAt && behind + rawBytes({ ...size, bits }) <= bytes.length)
  const dataAt = forgotten ? behind : saidDataAt
  // A palette that reaches into the pixels is shorter than it says.
  const paletteEnd = Math.min(paletteAt + colours * paletteEntryBytes, Math.max(dataAt, paletteAt))
  return {
    ...size,
    bottomUp: height > 0,
    bits,
    compression,
    palette: bytes.subarray(paletteAt, paletteEnd),
    paletteEntryBytes,
    dataAt,
    masks,
  }
}

/** Of rows that are not compressed; the padding of the last one is often missing. */
function rawBytes({ widthPixels, heightPixels, bits }: Size & { bits: number }): number {
  const rowBytes = Math.ceil((widthPixels * bits) / 32) * 4
  return (heightPixels - 1) * rowBytes + Math.ceil((widthPixels * bits) / 8)
}

function isMasked(compression: number): boolean {
  return compression === compressions.masks || compression === compressions.masksWithAlpha
}

/** Red, green, blue, alpha; in the header from version 2 on, behind it before. */
function readMasks(
  bytes: Buffer,
  options: { headerBytes: number; compression: number },
): readonly [number, number, number, number] {
  if (bytes.length < 70) throw new DamagedPicture(bytes.length)
  const withAlpha = options.headerBytes >= 56 || options.compression === compressions.masksWithAlpha
  const [red, green, blue] = [54, 58, 62].map((at) => bytes.readUInt32LE(at))
  return [red ?? 0, green ?? 0, blue ?? 0, withAlpha ? bytes.readUInt32LE(66) : 0]
}

function defaultMasks(bits: number): readonly [number, number, number, number] | undefined {
  if (bits === 16) return [0x7c00, 0x03e0, 0x001f, 0]
  return bits === 32 ? [0xff0000, 0xff00, 0xff, 0] : undefined
}

/** Version 5 may hold a profile; a linked one is a file name, and metadata. */
function profileOf(bytes: Buffer, removed: Set<string>): Buffer | undefined {
  if (bytes.readUInt32LE(14) !== 124 || bytes.length < 138) return undefined
  const kind = bytes.toString('latin1', 70, 74)
  if (kind !== 'DEBM' && kind !== 'KNIL') return undefined
  removed.add('icc')
  const start = 14 + bytes.readUInt32LE(126)
  const end = start + bytes.readUInt32LE(130)
  return kind === 'DEBM' && end <= bytes.length
    ? Buffer.from(bytes.subarray(start, end))
    : undefined
}

type Decoding = { rows: Buffer; channels: 3 | 4 }

function decode(bytes: Buffer, header: Header, state: { damagedAt: number | undefined }): Decoding {
  const { compression, bits } = header
  if (compression === compressions.rle8 || compression === compressions.rle4) {
    if (bits !== (compression === compressions.rle8 ? 8 : 4)) throw new DamagedPicture(28)
    const indices = expandRuns(bytes, header, state)
    return { rows: paint(header, (x, y) => indices[y * header.widthPixels + x] ?? 0), channels: 3 }
  }
  const rowBytes = Math.ceil((header.widthPixels * bits) / 32) * 4
  const rowsThere = Math.floor(Math.max(0, bytes.length - header.dataAt) / rowBytes)
  const whole = header.dataAt + rawBytes(header) <= bytes.length
  if (!whole) state.damagedAt = bytes.length
  const rows = whole ? header.heightPixels : Math.min(rowsThere, header.heightPixels)
  const rowAt = (row: number) => header.dataAt + row * rowBytes
  if (bits <= 8) {
    const perByte = 8 / bits
    const mask = 2 ** bits - 1
    const at = (x: number, row: number) => {
      if (row >= rows) return 0
      const byte = bytes[rowAt(row) + Math.floor(x / perByte)] ?? 0
      return (byte >> (8 - bits * ((x % perByte) + 1))) & mask
    }
    return { rows: paint(header, at), channels: 3 }
  }
  return unpack(bytes, header, { rows, rowAt })
}

/** From indices into the palette; `at` counts rows as they lie in the file. */
function paint(header: Header, at: (x: number, row: number) => number): Buffer {
  const { widthPixels, heightPixels, palette, paletteEntryBytes } = header
  const out = Buffer.alloc(widthPixels * heightPixels * 3)
  let to = 0
  for (let y = 0; y < heightPixels; y++) {
    const row = header.bottomUp ? heightPixels - 1 - y : y
    for (let x = 0; x < widthPixels; x++) {
      const entry = at(x, row) * paletteEntryBytes
      out[to++] = palette[entry + 2] ?? 0
      out[to++] = palette[entry + 1] ?? 0
      out[to++] = palette[entry] ?? 0
    }
  }
  return out
}

/** 16, 24 and 32 bits a pixel. */
function unpack(
  bytes: Buffer,
  header: Header,
  from: { rows: number; rowAt: (row: number) => number },
): Decoding {
  const { widthPixels, heightPixels, bits, bottomUp, masks } = header
  const [red, green, blue, alpha] = (masks ?? [0, 0, 0, 0]).map(sampleOf)
  const channels = masks !== undefined && masks[3] !== 0 ? 4 : 3
  const out = Buffer.alloc(widthPixels * heightPixels * channels)
  const pixelBytes = bits / 8
  for (let y = 0; y < heightPixels; y++) {
    const row = bottomUp ? heightPixels - 1 - y : y
    if (row >= from.rows) continue
    let at = from.rowAt(row)
    let to = y * widthPixels * channels
    for (let x = 0; x < widthPixels; x++, at += pixelBytes) {
      if (masks === undefined) {
        out[to++] = bytes[at + 2] ?? 0
        out[to++] = bytes[at + 1] ?? 0
        out[to++] = bytes[at] ?? 0
        continue
      }
      const value = bits === 16 ? bytes.readUInt16LE(at) : bytes.readUInt32LE(at)
      out[to++] = red?.(value) ?? 0
      out[to++] = green?.(value) ?? 0
      out[to++] = blue?.(value) ?? 0
      if (channels === 4) out[to++] = alpha?.(value) ?? 255
    }
  }
  return { rows: out, channels }
}

/** How to get 8 bits out of a pixel by its mask. */
function sampleOf(mask: number): (value: number) => number {
  if (mask === 0) return () => 0
  const shift = 31 - Math.clz32(mask & -mask)
  const largest = mask >>> shift
  return (value) => Math.round((((value & mask) >>> shift) * 255) / largest)
}

/** Runs of one index, copied indices, ends of lines and jumps; what is jumped over stays 0. */
function expandRuns(
  bytes: Buffer,
  header: Header,
  state: { damagedAt: number | undefined },
): Buffer {
  const { widthPixels, heightPixels, bits } = header
  const out = Buffer.alloc(widthPixels * heightPixels)
  let [x, y] = [0, 0]
  const put = (index: number) => {
    if (x < widthPixels && y < heightPixels) out[y * widthPixels + x] = index
    x++
  }
  const nibble = (byte: number, i: number) => (i % 2 === 0 ? byte >> 4 : byte & 15)
  for (let at = header.dataAt; y < heightPixels;) {
    const [count, value] = [bytes[at], bytes[at + 1]]
    if (count === undefined || value === undefined) {
      const hasAll = y === heightPixels - 1 && x >= widthPixels
      if (!hasAll) state.damagedAt ??= bytes.length
      return out
    }
    at += 2
    if (count > 0) {
      for (let i = 0; i < count; i++) put(bits === 8 ? value : nibble(value, i))
    } else if (value === 0) {
      x = 0
      y++
    } else if (value === 1) {
      return out
    } else if (value === 2) {
      x += bytes[at] ?? 0
      y += bytes[at + 1] ?? 0
      // Runs may end beyond their row, as some writers round them up; a jump out of the picture is a lie.
      if (x > widthPixels || y > heightPixels) state.damagedAt ??= at
      at += 2
    } else {
      const literal = bits === 8 ? value : Math.ceil(value / 2)
      if (at + literal > bytes.length) state.damagedAt ??= bytes.length
      for (let i = 0; i < value; i++) {
        const byte = bytes[at + (bits === 8 ? i : i >> 1)] ?? 0
        put(bits === 8 ? byte : nibble(byte, i))
      }
      at += literal + (literal % 2)
    }
  }
  return out
}
