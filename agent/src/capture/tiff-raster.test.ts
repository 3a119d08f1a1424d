import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import sharp from 'sharp'
import type { TiffOptions } from 'sharp'
import { readRaster } from './tiff-raster.ts'
import type { RasterForm } from './tiff-raster.ts'

const [width, height] = [70, 45]
const data = Buffer.from(
  Array.from({ length: width * height * 3 }, (_, i) => (i % 11 < 6 ? (i >> 7) * 5 : i * i) & 255),
)
const picture = sharp(data, { raw: { width, height, channels: 3 } })

/** The form of a little-endian file that libtiff wrote, by its own tags. */
function formOf(bytes: Buffer): RasterForm {
  const values = new Map<number, number[]>()
  const directory = bytes.readUInt32LE(4)
  for (let i = 0; i < bytes.readUInt16LE(directory); i++) {
    const at = directory + 2 + 12 * i
    const [tag, type, count] = [bytes.readUInt16LE(at), bytes.readUInt16LE(at + 2)].concat(
      bytes.readUInt32LE(at + 4),
    ) as [number, number, number]
    const size = type === 3 ? 2 : 4
    const from = count * size > 4 ? bytes.readUInt32LE(at + 8) : at + 8
    if (type !== 3 && type !== 4) continue
    values.set(
      tag,
      Array.from({ length: count }, (_, k) => bytes.readUIntLE(from + k * size, size)),
    )
  }
  const one = (tag: number, otherwise: number) => values.get(tag)?.[0] ?? otherwise
  const lengths = values.get(325) ?? values.get(279) ?? []
  return {
    bytes,
    little: true,
    widthPixels: width,
    heightPixels: height,
    samples: one(277, 1),
    kept: one(277, 1),
    bits: one(258, 1),
    compression: one(259, 1),
    reversed: false,
    differences: one(317, 1) === 2,
    planes: false,
    pieces: (values.get(324) ?? values.get(273) ?? []).map((at, i) => ({
      at,
      bytes: lengths[i] ?? 0,
    })),
    pieceWidth: one(322, width),
    pieceHeight: one(323, one(278, height)),
    scaled: true,
  }
}

const ways: readonly TiffOptions[] = (['none', 'lzw', 'deflate', 'packbits'] as const).flatMap(
  (compression) =>
    (['none', 'horizontal'] as const).flatMap((predictor) =>
      [false, true].map((tile) => ({
        compression,
        predictor,
        tile,
        tileWidth: 32,
        tileHeight: 16,
      })),
    ),
)

describe('readRaster', () => {
  for (const way of ways) {
    const { compression, predictor, tile } = way
    it(`unpacks what libtiff packed: ${compression}, ${predictor}, ${tile ? 'tiles' : 'strips'}`, async () => {
      const raster = readRaster(formOf(await picture.clone().tiff(way).toBuffer()))
      assert.equal(raster.damagedAt, undefined)
      assert.deepEqual(raster.samples, data)
    })
  }

  it('gives the first samples of a pixel only, where only those are wanted', async () => {
    for (const tile of [false, true]) {
      const form = formOf(await picture.clone().tiff({ compression: 'lzw', tile }).toBuffer())
      const raster = readRaster({ ...form, kept: 2 })
      const wanted = data.filter((_, i) => i % 3 < 2)
      assert.deepEqual(raster.samples, Buffer.from(wanted))
    }
  })

  it('says where a piece ends before its rows', async () => {
    const form = formOf(await picture.clone().tiff({ compression: 'lzw' }).toBuffer())
    const [first, ...others] = form.pieces
    assert.ok(first)
    const pieces = [{ at: first.at, bytes: first.bytes - 9 }, ...others]
    assert.equal(readRaster({ ...form, pieces }).damagedAt, first.at)
  })

  it('answers whatever the bytes are', async () => {
    for (const compression of ['lzw', 'deflate', 'packbits'] as const) {
      const bytes = await picture.clone().tiff({ compression }).toBuffer()
      const form = formOf(bytes)
      fc.assert(
        fc.property(fc.nat(bytes.length - 1), fc.nat(255), (at, value) => {
          const other = Buffer.from(bytes)
          other[at] = value
          assert.equal(readRaster({ ...form, bytes: other }).samples.length, data.length)
        }),
        { numRuns: 300 },
      )
    }
  })
})
