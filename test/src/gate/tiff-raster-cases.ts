/** TIFFs whose samples lie as microscopes and scanners leave them: planes, and numbers of bits between bytes. */

import assert from 'node:assert/strict'
import { deflateSync } from 'node:zlib'

import sharp from 'sharp'

import type { GateCase, Outcome } from './cases.ts'
import { makeTiff, rgbPage } from './make-pictures.ts'
import type { TiffEntry, TiffPage } from './make-pictures.ts'
import { drawScene, turned } from './pixels.ts'
import { file, firstBytes, looksLike } from './write-case.ts'

const scene = drawScene()
const { width, height } = scene
const corrupt = { code: 'media.corrupt', says: /at byte \d+/ } as const

type Form = {
  bits: readonly number[]
  photometric: number
  /** One after the other behind the head of the file. */
  pieces: readonly Buffer[]
  /** Tags that come beside those of every page, or in their place. */
  more?: readonly TiffEntry[]
  /** Whether pieces are tiles, of so many pixels a side. */
  tile?: number
  big?: true
}

function page(form: Form, piecesAt: number): TiffPage {
  const { bits, photometric, pieces, more = [], tile } = form
  let at = piecesAt
  const places = pieces.map((piece) => {
    at += piece.length
    return at - piece.length
  })
  const lengths = pieces.map((piece) => piece.length)
  const lie: readonly TiffEntry[] =
    tile === undefined
      ? [
          [273, 4, places],
          [278, 4, [height]],
          [279, 4, lengths],
        ]
      : [
          [322, 4, [tile]],
          [323, 4, [tile]],
          [324, 4, places],
          [325, 4, lengths],
        ]
  const entries: readonly TiffEntry[] = [
    [256, 4, [width]],
    [257, 4, [height]],
    [258, 3, bits],
    [259, 3, [1]],
    [262, 3, [photometric]],
    [277, 3, [bits.length]],
    ...lie,
  ]
  const taken = new Set(more.map(([tag]) => tag))
  return { entries: [...entries.filter(([tag]) => !taken.has(tag)), ...more] }
}

/** The pieces stand behind all else. */
function raster(form: Form, others: readonly TiffPage[] = []): Buffer {
  const options = form.big === true ? ({ big: true } as const) : {}
  const end = makeTiff([page(form, 0), ...others], options).length
  return Buffer.concat([makeTiff([page(form, end), ...others], options), ...form.pieces])
}

/** One sample of each pixel. */
function plane(sample: number): Buffer {
  return Buffer.from(
    Array.from({ length: width * height }, (_, i) => scene.data[i * 3 + sample] ?? 0),
  )
}

/** Numbers of so many bits, each row filled to a byte. */
function packed(values: readonly number[], bits: number, perRow: number): Buffer {
  const rows: number[] = []
  for (let at = 0; at < values.length; at += perRow) {
    const row = values.slice(at, at + perRow).map((value) => value.toString(2).padStart(bits, '0'))
    const text = row.join('')
    for (let i = 0; i < text.length; i += 8)
      rows.push(parseInt(text.slice(i, i + 8).padEnd(8, '0'), 2))
  }
  return Buffer.from(rows)
}

function tiles(sample: number, side: number): Buffer[] {
  const out: Buffer[] = []
  for (let top = 0; top < height; top += side) {
    for (let left = 0; left < width; left += side) {
      const tile = Buffer.alloc(side * side)
      for (let i = 0; i < tile.length; i++) {
        const [x, y] = [left + (i % side), top + Math.floor(i / side)]
        tile[i] = scene.data[(y * width + x) * 3 + sample] ?? 0
      }
      out.push(tile)
    }
  }
  return out
}

const planes = [0, 1, 2].map(plane)
const separate = [284, 3, [2]] as const
const steps = Array.from({ length: width * height }, (_, i) => i % width)

/** Red is a ramp from black to white, alpha one from top to bottom. */
async function isRamp(outcomes: readonly Outcome[], steps16: number): Promise<void> {
  const { data, info } = await sharp(firstBytes(outcomes))
    .raw()
    .toBuffer({ resolveWithObject: true })
  for (let x = 0; x < steps16; x++) {
    const wanted = (x * 255) / (steps16 - 1)
    assert.ok(Math.abs((data[x * info.channels] ?? 0) - wanted) <= 1, `column ${x}`)
  }
}

export const tiffRasterCases: readonly GateCase[] = [
  {
    name: 'a TIFF of three planes in tiles',
    quick: true,
    make: file('a.tif', () =>
      raster({
        bits: [8, 8, 8],
        photometric: 2,
        tile: 16,
        pieces: [0, 1, 2].flatMap((sample) => tiles(sample, 16)),
        more: [separate],
      }),
    ),
    leaves: ['png'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a BigTIFF of three packed planes, and a page behind it',
    make: file('a.tif', () =>
      raster(
        {
          bits: [8, 8, 8],
          photometric: 2,
          big: true,
          pieces: planes.map((samples) => deflateSync(samples)),
          more: [separate, [259, 3, [8]]],
        },
        [rgbPage(turned(scene, 3))],
      ),
    ),
    leaves: ['png', 'png'],
    async equal(outcomes) {
      await looksLike(scene, 0)(outcomes, Buffer.alloc(0))
      await looksLike(turned(scene, 3), 0)(outcomes.slice(1), Buffer.alloc(0))
    },
  },
  {
    name: 'a TIFF of a grey plane and one of alpha',
    make: file('a.tif', () =>
      raster({
        bits: [8, 8],
        photometric: 1,
        pieces: [planes[0] ?? Buffer.alloc(0), Buffer.alloc(width * height, 128)],
        more: [separate, [338, 3, [2]]],
      }),
    ),
    leaves: ['png'],
    async equal(outcomes) {
      const { data } = await sharp(firstBytes(outcomes)).raw().toBuffer({ resolveWithObject: true })
      for (let i = 0; i < width * height; i++) {
        assert.deepEqual([data[i * 4], data[i * 4 + 3]], [planes[0]?.[i], 128])
      }
    },
  },
  ...[10, 12, 14].map((bits): GateCase => ({
    name: `a TIFF of ${bits} bits`,
    ...(bits === 12 ? { quick: true as const } : {}),
    make: file('a.tif', () => {
      const values = steps.map((x) => Math.round((x * (2 ** bits - 1)) / (width - 1)))
      return raster({ bits: [bits], photometric: 1, pieces: [packed(values, bits, width)] })
    }),
    leaves: ['png'],
    equal: async (outcomes) => isRamp(outcomes, width),
  })),
  {
    name: 'a TIFF of 12 bits, the lowest first in each byte',
    make: file('a.tif', () => {
      const values = steps.map((x) => Math.round((x * 4095) / (width - 1)))
      const turnedBits = packed(values, 12, width).map((byte) =>
        parseInt(byte.toString(2).padStart(8, '0').split('').toReversed().join(''), 2),
      )
      const pieces = [Buffer.from(turnedBits)]
      return raster({ bits: [12], photometric: 1, pieces, more: [[266, 3, [2]]] })
    }),
    leaves: ['png'],
    equal: async (outcomes) => isRamp(outcomes, width),
  },
  {
    name: 'a TIFF of 4 bits with alpha',
    make: file('a.tif', () => {
      const values = steps.flatMap((x) => [x % 16, 15])
      const pieces = [packed(values, 4, 2 * width)]
      return raster({ bits: [4, 4], photometric: 1, pieces, more: [[338, 3, [2]]] })
    }),
    leaves: ['png'],
    equal: async (outcomes) => isRamp(outcomes, 16),
  },
  {
    name: 'a TIFF of planes, one of them cut short',
    make: file('a.tif', () =>
      raster({
        bits: [8, 8, 8],
        photometric: 2,
        pieces: planes.map((samples, i) =>
          deflateSync(samples).subarray(0, i === 1 ? 40 : undefined),
        ),
        more: [separate, [259, 3, [8]]],
      }),
    ),
    refused: corrupt,
  },
  {
    name: 'a TIFF that says it has more samples than memory holds',
    make: file('a.tif', () =>
      raster({
        bits: [16, 16, 16, 16],
        photometric: 2,
        pieces: planes,
        more: [separate, [256, 4, [10_000]], [257, 4, [10_000]], [278, 4, [10_000]]],
      }),
    ),
    refused: { code: 'media.too_large' },
  },
  {
    name: 'a TIFF with JPEG as it was before it was mended',
    make: file('a.tif', () =>
      raster({
        bits: [8, 8, 8],
        photometric: 6,
        pieces: [Buffer.alloc(99)],
        more: [[259, 3, [6]]],
      }),
    ),
    refused: { code: 'media.unsupported', says: /JPEG, PNG or TIFF/ },
  },
]
