/** Unpacks the samples of a TIFF page that decoders know only in other arrangements: planes, and odd numbers of bits. */
import { inflateSync } from 'node:zlib'
import type { Size } from './picture-facts.ts'

/** How a page's samples lie in the file. */
export type RasterForm = Size & {
  bytes: Buffer
  little: boolean
  /** Samples of a pixel, each of so many bits: 1 to 16. */
  samples: number
  /** How many of them, the first ones, are to come out. */
  kept: number
  bits: number
  compression: number
  /** Whether the lowest bit of each byte is the first one. */
  reversed: boolean
  /** Whether a sample is the difference to the one before it. */
  differences: boolean
  /** Whether each sample of the pixels has pieces of its own. */
  planes: boolean
  /** Strips or tiles in order; a strip is as wide as the page. */
  pieces: readonly { at: number; bytes: number }[]
  pieceWidth: number
  pieceHeight: number
  /** Whether samples are numbers of light, which keep their part of the whole, or indices, which stay. */
  scaled: boolean
}

/** Interleaved samples of 8 bits, or of 16 in the byte order of the file. */
export type Raster = { samples: Buffer; bits: 8 | 16; damagedAt?: number }

/** Nothing is unpacked as a whole but strips and tiles of these. */
export function canUnpack(form: Pick<RasterForm, 'compression' | 'bits' | 'differences'>): boolean {
  if (form.differences && form.bits !== 8 && form.bits !== 16) return false
  return [1, 5, 8, 32_773, 32_946].includes(form.compression)
}

/** Bytes that the result has. */
export function rasterBytes({ widthPixels, heightPixels, kept, bits }: Omit<RasterForm, 'bytes'>) {
  return widthPixels * heightPixels * kept * (bits > 8 ? 2 : 1)
}

/** @see TIFF 6.0, sections 7 to 9 and 13 to 15. */
export function readRaster(form: RasterForm): Raster {
  const { widthPixels, heightPixels, samples, kept, pieceWidth, pieceHeight } = form
  const { planes, pieces } = form
  const bits = form.bits > 8 ? 16 : 8
  const out = Buffer.alloc(rasterBytes(form))
  const across = Math.ceil(widthPixels / pieceWidth)
  const perPlane = across * Math.ceil(heightPixels / pieceHeight)
  const inPiece = planes ? 1 : samples
  const rowBytes = Math.ceil((pieceWidth * inPiece * form.bits) / 8)
  let damagedAt: number | undefined
  for (let i = 0; i < perPlane * (planes ? kept : 1); i++) {
    const plane = Math.floor(i / perPlane)
    const left = (i % across) * pieceWidth
    const top = Math.floor((i % perPlane) / across) * pieceHeight
    const rows = Math.min(pieceHeight, heightPixels - top)
    const piece = pieces[i]
    if (piece === undefined) {
      damagedAt ??= form.bytes.length
      break
    }
    const packed = form.bytes.subarray(piece.at, piece.at + piece.bytes)
    const ordered = form.reversed ? Buffer.from(packed.map(reverseBits)) : packed
    const unpacked = unpack(ordered, form.compression, rowBytes * pieceHeight)
    // The last strip may have only the rows that are left.
    if (unpacked.length < rowBytes * rows) damagedAt ??= piece.at
    const width = Math.min(pieceWidth, widthPixels - left)
    for (let y = 0; y < rows; y++) {
      const row = unpacked.subarray(y * rowBytes, (y + 1) * rowBytes)
      if (row.length < rowBytes) break
      const values = rowValues(row, pieceWidth * inPiece, form)
      if (form.differences) addUp(values, inPiece, form.bits)
      for (let x = 0; x < width; x++) {
        const pixel = ((top + y) * widthPixels + left + x) * kept
        for (let s = 0; s < Math.min(inPiece, kept); s++) {
          const value = scale(values[x * inPiece + s] ?? 0, form)
          const to = pixel + (planes ? plane : s)
          if (bits === 8) out[to] = value
          else if (form.little) out.writeUInt16LE(value, 2 * to)
          else out.writeUInt16BE(value, 2 * to)
        }
      }
    }
  }
  return { samples: out, bits, ...(damagedAt === undefined ? {} : { damagedAt }) }
}

function reverseBits(byte: number): number {
  let out = 0
  for (let bit = 0; bit < 8; bit++) out |= ((byte >> bit) & 1) << (7 - bit)
  return out
}

/** A number of so many bits at the same part of 8 or 16. */
function scale(value: number, { bits, scaled }: RasterForm): number {
  if (!scaled || bits === 8 || bits === 16) return value
  return Math.round((value * (bits > 8 ? 65_535 : 255)) / (2 ** bits - 1))
}

function rowValues(row: Buffer, count: number, { bits, little }: RasterForm): Uint16Array {
  const values = new Uint16Array(count)
  if (bits === 8) values.set(row.subarray(0, count))
  else if (bits === 16) {
    for (let i = 0; i < count; i++)
      values[i] = little ? row.readUInt16LE(2 * i) : row.readUInt16BE(2 * i)
  } else {
    // Bits follow one another from the highest down, whatever the byte order.
    let held = 0
    let heldBits = 0
    let at = 0
    for (let i = 0; i < count; i++) {
      while (heldBits < bits) {
        held = ((held << 8) | (row[at++] ?? 0)) & 0xffffff
        heldBits += 8
      }
      heldBits -= bits
      values[i] = (held >>> heldBits) & (2 ** bits - 1)
    }
  }
  return values
}

function addUp(values: Uint16Array, step: number, bits: number): void {
  const most = 2 ** bits - 1
  for (let i = step; i < values.length; i++) {
    values[i] = ((values[i] ?? 0) + (values[i - step] ?? 0)) & most
  }
}

/** At most so many bytes; fewer where the data are damaged. */
function unpack(packed: Buffer, compression: number, most: number): Buffer {
  if (compression === 1) return packed.subarray(0, most)
  if (compression === 5) return unpackLzw(packed, most)
  return compression === 32_773 ? unpackBits(packed, most) : unpackDeflate(packed, most)
}

function unpackDeflate(packed: Buffer, most: number): Buffer {
  try {
    return inflateSync(packed, { maxOutputLength: most + 64 * 1024 })
  } catch {
    return Buffer.alloc(0)
  }
}

/** @see TIFF 6.0, section 9: copies of 1 to 128 bytes, runs of 2 to 128. */
function unpackBits(packed: Buffer, most: number): Buffer {
  const out = Buffer.alloc(most)
  let to = 0
  for (let at = 0; at < packed.length && to < most;) {
    const head = packed.readInt8(at++)
    if (head === -128) continue
    const count = head >= 0 ? head + 1 : 1 - head
    if (head >= 0) to += packed.copy(out, to, at, Math.min(at + count, packed.length))
    else if (at < packed.length) {
      out.fill(packed[at] ?? 0, to, Math.min(to + count, most))
      to = Math.min(to + count, most)
    }
    at += head >= 0 ? count : 1
  }
  return out.subarray(0, to)
}

/** @see TIFF 6.0, section 13: codes from the highest bit, a bit wider one code early; 256 clears, 257 ends. */
function unpackLzw(packed: Buffer, most: number): Buffer {
  const out = Buffer.alloc(most)
  /** Where in `out` each code's bytes were last written, and how many they are. */
  const places = new Uint32Array(4096)
  const lengths = new Uint32Array(4096)
  let [to, next, width, previous] = [0, 258, 9, -1]
  let [held, heldBits] = [0, 0]
  for (let at = 0; to < most;) {
    while (heldBits < width && at < packed.length) {
      held = ((held << 8) | (packed[at++] ?? 0)) & 0xffffff
      heldBits += 8
    }
    if (heldBits < width) break
    heldBits -= width
    const code = (held >>> heldBits) & ((1 << width) - 1)
    if (code === 257) break
    if (code === 256) {
      ;[next, width, previous] = [258, 9, -1]
      continue
    }
    if (previous >= 0 && next < 4096) {
      // The previous code's bytes, which end here, and the first one of those that come now.
      const length = previous < 256 ? 1 : (lengths[previous] ?? 0)
      places[next] = to - length
      lengths[next] = length + 1
      next += 1
    }
    if (code >= next && code > 255) break
    if (code < 256) out[to++] = code
    else {
      const from = places[code] ?? 0
      const end = Math.min(to + (lengths[code] ?? 0), most)
      for (let i = from; to < end; i++) out[to++] = out[i] ?? 0
    }
    previous = code
    if (next + 1 >= 1 << width && width < 12) width += 1
  }
  return out.subarray(0, to)
}
