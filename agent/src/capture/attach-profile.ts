/** Gives a picture that was taken apart its colour profile back, for the decoder that will apply it. */
import { deflateSync } from 'node:zlib'
import { pngChunk } from './png-structure.ts'

/** @see ICC.1:2022, B.4: parts of at most 65,519 bytes, numbered from 1. */
export function attachToJpeg(jpeg: Buffer, icc: Buffer): Buffer {
  const partBytes = 65_519
  const count = Math.ceil(icc.length / partBytes)
  if (count > 255) return jpeg
  const segments = Array.from({ length: count }, (_, i) => {
    const part = icc.subarray(i * partBytes, (i + 1) * partBytes)
    const head = Buffer.alloc(18)
    head.writeUInt16BE(0xffe2)
    head.writeUInt16BE(16 + part.length, 2)
    head.write('ICC_PROFILE\0', 4, 'latin1')
    head[16] = i + 1
    head[17] = count
    return Buffer.concat([head, part])
  })
  return Buffer.concat([jpeg.subarray(0, 2), ...segments, jpeg.subarray(2)])
}

/** @see PNG (Third Edition), 11.3.2.3: behind the header, before palette and data. */
export function attachToPng(png: Buffer, icc: Buffer): Buffer {
  const content = Buffer.concat([Buffer.from('p\0\0', 'latin1'), deflateSync(icc, { level: 1 })])
  return Buffer.concat([png.subarray(0, 33), pngChunk('iCCP', content), png.subarray(33)])
}

/** @see RFC 9649, 2.7.1.4: the profile follows the extended header, whose flag 0x20 announces it. */
export function attachToWebp(
  webp: Buffer,
  icc: Buffer,
  size: { widthPixels: number; heightPixels: number },
): Buffer {
  const extended = webp.toString('latin1', 12, 16) === 'VP8X'
  const header = Buffer.alloc(18)
  if (extended) webp.copy(header, 0, 12, 30)
  else {
    header.write('VP8X', 'latin1')
    header.writeUInt32LE(10, 4)
    header.writeUIntLE(size.widthPixels - 1, 12, 3)
    header.writeUIntLE(size.heightPixels - 1, 15, 3)
    // A lossless picture says in its own header whether it has alpha.
    const alpha = webp.toString('latin1', 12, 16) === 'VP8L' && ((webp[24] ?? 0) & 0x10) !== 0
    if (alpha) header[8] = 0x10
  }
  header[8] = header.readUInt8(8) | 0x20
  const chunk = Buffer.alloc(8)
  chunk.write('ICCP', 'latin1')
  chunk.writeUInt32LE(icc.length, 4)
  const rest = webp.subarray(extended ? 30 : 12)
  const body = Buffer.concat([header, chunk, icc, Buffer.alloc(icc.length % 2), rest])
  const riff = Buffer.alloc(12)
  riff.write('RIFF', 'latin1')
  riff.writeUInt32LE(4 + body.length, 4)
  riff.write('WEBP', 8, 'latin1')
  return Buffer.concat([riff, body])
}
