/** Samples without a format, put into the simplest file that can carry a colour profile with them. */
import type { Size } from './picture-facts.ts'

/** Samples row by row from the top, channels interleaved, without padding; 16 bits little-endian. */
export type PlainPicture = Size & { channels: 1 | 3 | 4; bits: 8 | 16; samples: Buffer }

/**
 * Puts black and white where pictures have them.
 *
 * @param bits Of the coded samples, which decide where exactly films have them.
 * @see ITU-T H.273, 8.3: 16 and 235, times 2 for each bit above eight.
 */
export function stretchFilmGrey(picture: PlainPicture, bits: number): PlainPicture {
  const { channels, samples } = picture
  const most = 2 ** picture.bits - 1
  const unit = (2 ** (bits - 8) * most) / (2 ** bits - 1)
  const stretched = Uint16Array.from({ length: most + 1 }, (_, value) =>
    Math.round(Math.min(Math.max((value - 16 * unit) / (219 * unit), 0), 1) * most),
  )
  const wide = picture.bits === 16
  const from = wide
    ? new Uint16Array(samples.buffer, samples.byteOffset, samples.length / 2)
    : samples
  const out = wide ? new Uint16Array(from.length) : Buffer.alloc(from.length)
  for (let i = 0; i < from.length; i++) {
    const isAlpha = channels === 4 && i % 4 === 3
    out[i] = isAlpha ? (from[i] ?? 0) : (stretched[from[i] ?? 0] ?? 0)
  }
  return { ...picture, samples: Buffer.from(out.buffer, out.byteOffset, out.byteLength) }
}

/**
 * An uncompressed TIFF of one strip.
 *
 * @see TIFF 6.0, sections 2 and 3, and ICC.1:2022, B.5 (tag 34675).
 */
export function writePlainTiff(picture: PlainPicture, icc: Buffer | undefined): Buffer {
  const { widthPixels, heightPixels, channels, bits, samples } = picture
  const bitsPerSample = Buffer.alloc(2 * channels)
  for (let i = 0; i < channels; i++) bitsPerSample.writeUInt16LE(bits, 2 * i)
  const entries: (readonly [tag: number, type: 3 | 4 | 7, value: number | Buffer])[] = [
    [256, 4, widthPixels],
    [257, 4, heightPixels],
    [258, 3, channels === 1 ? bits : bitsPerSample],
    [259, 3, 1],
    [262, 3, channels === 1 ? 1 : 2],
    [273, 4, 0],
    [277, 3, channels],
    [278, 4, heightPixels],
    [279, 4, samples.length],
    [284, 3, 1],
    // Alpha that colours are not multiplied by.
    ...(channels === 4 ? ([[338, 3, 2]] as const) : []),
    ...(icc === undefined ? [] : ([[34_675, 7, icc]] as const)),
  ]
  const directoryBytes = 2 + 12 * entries.length + 4
  const directory = Buffer.alloc(directoryBytes)
  directory.writeUInt16LE(entries.length)
  const blobs: Buffer[] = []
  let blobAt = 8 + directoryBytes
  for (const [i, [tag, type, value]] of entries.entries()) {
    const at = 2 + 12 * i
    directory.writeUInt16LE(tag, at)
    directory.writeUInt16LE(type, at + 2)
    if (typeof value === 'number') {
      directory.writeUInt32LE(1, at + 4)
      directory.writeUInt32LE(value, at + 8)
      continue
    }
    directory.writeUInt32LE(type === 3 ? value.length / 2 : value.length, at + 4)
    directory.writeUInt32LE(blobAt, at + 8)
    const padded = Buffer.concat([value, Buffer.alloc(value.length % 2)])
    blobs.push(padded)
    blobAt += padded.length
  }
  const stripAt = entries.findIndex(([tag]) => tag === 273)
  directory.writeUInt32LE(blobAt, 2 + 12 * stripAt + 8)
  const head = Buffer.from('49492a0008000000', 'hex')
  return Buffer.concat([head, directory, ...blobs, samples])
}
