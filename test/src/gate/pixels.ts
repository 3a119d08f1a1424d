/** Test pictures as pixels, and how far apart two of them look. */

import assert from 'node:assert/strict'

import sharp from 'sharp'
import type { Sharp } from 'sharp'

export type Pixels = { width: number; height: number; channels: number; data: Buffer }

/** Soft colours all over, and a corner of each kind so that no two of eight orientations are alike. */
export function drawScene(width = 48, height = 32): Pixels {
  const data = Buffer.alloc(width * height * 3)
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const corner = x < width / 4 && y < height / 4
      const edge = y > (height * 3) / 4
      const at = (y * width + x) * 3
      data[at] = corner ? 230 : Math.round(40 + (x / width) * 160)
      data[at + 1] = corner ? 30 : Math.round(40 + (y / height) * 160)
      data[at + 2] = edge ? 200 : 90
    }
  }
  return { width, height, channels: 3, data }
}

/** A pipeline of sharp over pixels. */
export function picture({ width, height, channels, data }: Pixels): Sharp {
  return sharp(data, { raw: { width, height, channels: channels as 3 | 4 } })
}

/** Decodes what left the gate; alpha is dropped, and a profile in it applied. */
export async function pixelsOf(bytes: Buffer): Promise<Pixels> {
  const { data, info } = await sharp(bytes)
    .toColourspace('srgb')
    .removeAlpha()
    .raw({ depth: 'uchar' })
    .toBuffer({ resolveWithObject: true })
  return { width: info.width, height: info.height, channels: info.channels, data }
}

/** Turns by hand, one pixel after the other: no library is asked how. */
export function turned(pixels: Pixels, orientation: number): Pixels {
  const { width, height, channels, data } = pixels
  const swapped = orientation >= 5
  const [w, h] = swapped ? [height, width] : [width, height]
  const out = Buffer.alloc(data.length)
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      // Where the upright pixel lies in the file (TIFF 6.0, tag Orientation: row 0 and column 0).
      const [row, column] = placeInFile(orientation, { x, y, width, height })
      data.copy(
        out,
        (y * w + x) * channels,
        (row * width + column) * channels,
        (row * width + column + 1) * channels,
      )
    }
  }
  return { width: w, height: h, channels, data: out }
}

function placeInFile(
  orientation: number,
  { x, y, width, height }: { x: number; y: number; width: number; height: number },
): [number, number] {
  const [right, bottom] = [width - 1, height - 1]
  const places: [number, number][] = [
    [y, x],
    [y, right - x],
    [bottom - y, right - x],
    [bottom - y, x],
    [x, y],
    [bottom - x, y],
    [bottom - x, right - y],
    [x, right - y],
  ]
  return places[orientation - 1] ?? [y, x]
}

/** @see CIE 1976: distance in L*a*b* under D65; 2.3 is what an eye just notices. */
export function colourDistance(a: readonly number[], b: readonly number[]): number {
  const [one, other] = [lab(a), lab(b)]
  return Math.hypot(...one.map((value, i) => value - (other[i] ?? 0)))
}

function lab([r = 0, g = 0, b = 0]: readonly number[]): number[] {
  const linear = [r, g, b].map((value) => {
    const part = value / 255
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
  })
  const [lr = 0, lg = 0, lb = 0] = linear
  const xyz = [
    (0.4124 * lr + 0.3576 * lg + 0.1805 * lb) / 0.9505,
    0.2126 * lr + 0.7152 * lg + 0.0722 * lb,
    (0.0193 * lr + 0.1192 * lg + 0.9505 * lb) / 1.089,
  ].map((value) => (value > 0.008856 ? Math.cbrt(value) : 7.787 * value + 16 / 116))
  const [x = 0, y = 0, z = 0] = xyz
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)]
}

/** Asserts that two pictures look the same on average. */
export async function assertLooksLike(
  bytes: Buffer,
  wanted: Pixels,
  distanceMax = 2,
): Promise<void> {
  const found = await pixelsOf(bytes)
  assert.deepEqual([found.width, found.height], [wanted.width, wanted.height])
  let sum = 0
  const count = found.width * found.height
  for (let i = 0; i < count; i++) {
    const at = (pixels: Pixels) => [
      ...pixels.data.subarray(i * pixels.channels, i * pixels.channels + 3),
    ]
    sum += colourDistance(at(found), at(wanted))
  }
  assert.ok(sum / count <= distanceMax, `they are ${(sum / count).toFixed(2)} apart on average`)
}
