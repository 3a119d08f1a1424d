/** Writes small ICC profiles of well-known colour spaces, and recognises those spaces in the profiles of others. */

type Chromaticity = readonly [x: number, y: number]
type Vector = readonly [number, number, number]
type Matrix = readonly [Vector, Vector, Vector]

/** A colour space of three primaries; `gamma` is a power, or the curve of sRGB. */
export type RgbSpace = {
  name: string
  red: Chromaticity
  green: Chromaticity
  blue: Chromaticity
  white: Chromaticity
  gamma: number | 'srgb'
}

const d65: Chromaticity = [0.3127, 0.329]
const d50: Chromaticity = [0.3457, 0.3585]
/** ICC.1:2022, 7.2.16: the illuminant of the profile connection space. */
const pcsWhite: Vector = [0.9642, 1, 0.8249]

/**
 * Spaces that are kept as they are where the gamut is to be kept; sRGB needs no profile.
 *
 * @see IEC 61966-2-1; SMPTE EG 432-1 with D65 (Display P3); Adobe RGB (1998); ISO 22028-2 (ProPhoto,
 *   without its linear toe, as in the profiles in use); ITU-R BT.2020 with the curve of sRGB.
 */
export const rgbSpaces = {
  srgb: {
    name: 'sRGB',
    red: [0.64, 0.33],
    green: [0.3, 0.6],
    blue: [0.15, 0.06],
    white: d65,
    gamma: 'srgb',
  },
  p3: {
    name: 'P3',
    red: [0.68, 0.32],
    green: [0.265, 0.69],
    blue: [0.15, 0.06],
    white: d65,
    gamma: 'srgb',
  },
  adobe: {
    name: 'A98',
    red: [0.64, 0.33],
    green: [0.21, 0.71],
    blue: [0.15, 0.06],
    white: d65,
    gamma: 563 / 256,
  },
  prophoto: {
    name: 'ROMM',
    red: [0.7347, 0.2653],
    green: [0.1596, 0.8404],
    blue: [0.0366, 0.0001],
    white: d50,
    gamma: 1.8,
  },
  rec2020: {
    name: '2020',
    red: [0.708, 0.292],
    green: [0.17, 0.797],
    blue: [0.131, 0.046],
    white: d65,
    gamma: 'srgb',
  },
} as const satisfies Record<string, RgbSpace>

export type RgbSpaceName = keyof typeof rgbSpaces

/**
 * A profile of version 4 with nothing in it but the space.
 *
 * @see ICC.1:2022, 8.3.4 (three-component matrix-based input profiles) and 10 (tag types).
 */
export function writeProfile(space: RgbSpace): Buffer {
  const [red, green, blue] = columns(adapted(space))
  const curve = curveTag(space.gamma)
  const blocks: readonly (readonly [names: readonly string[], content: Buffer])[] = [
    [['desc'], textTag(space.name)],
    [['cprt'], textTag('CC0')],
    [['wtpt'], xyzTag(pcsWhite)],
    [['rXYZ'], xyzTag(red)],
    [['gXYZ'], xyzTag(green)],
    [['bXYZ'], xyzTag(blue)],
    [['rTRC', 'gTRC', 'bTRC'], curve],
  ]
  const count = blocks.reduce((sum, [names]) => sum + names.length, 0)
  const table = Buffer.alloc(4 + 12 * count)
  table.writeUInt32BE(count)
  let offset = 128 + table.length
  let row = 4
  for (const [names, content] of blocks) {
    for (const name of names) {
      table.write(name, row, 'latin1')
      table.writeUInt32BE(offset, row + 4)
      table.writeUInt32BE(content.length, row + 8)
      row += 12
    }
    offset += content.length
  }
  const header = Buffer.alloc(128)
  header.writeUInt32BE(offset)
  header.writeUInt32BE(0x04400000, 8)
  header.write('mntrRGB XYZ ', 12, 'latin1')
  header.write('acsp', 36, 'latin1')
  xyzNumbers(pcsWhite).copy(header, 68)
  return Buffer.concat([header, table, ...blocks.map(([, content]) => content)])
}

/**
 * Recognises the space of a matrix profile by its primaries and curve, whatever it is called.
 *
 * @returns undefined for profiles with tables, of other spaces, and broken ones; it never throws.
 */
export function recogniseProfile(profile: Buffer): RgbSpaceName | undefined {
  const found = readProfile(profile)
  if (found === undefined) return undefined
  const names = Object.keys(rgbSpaces) as RgbSpaceName[]
  return names.find((name) => {
    const space: RgbSpace = rgbSpaces[name]
    const wanted = columns(adapted(space))
    const near = wanted.every((column, i) =>
      column.every((value, j) => Math.abs(value - (found.columns[i]?.[j] ?? NaN)) < 0.004),
    )
    return (
      near && probes.every((at) => Math.abs(toLinear(space.gamma, at) - found.curve(at)) < 0.01)
    )
  })
}

const probes = [0.1, 0.25, 0.5, 0.75, 0.9]

/** The space of a picture whose file names primaries and transfer by code; undefined when unknown. */
export function spaceOfCode(primaries: number, transfer: number): RgbSpace | undefined {
  const base = primariesByCode.get(primaries)
  if (base === undefined) return undefined
  const gamma = gammaByCode.get(transfer)
  return gamma === undefined ? undefined : { ...base, name: 'RGB', gamma }
}

/** @see ITU-T H.273, table 2; 2 is "unspecified", which is taken for sRGB. */
const primariesByCode = new Map<number, RgbSpace>([
  [1, rgbSpaces.srgb],
  [2, rgbSpaces.srgb],
  [
    4,
    {
      ...rgbSpaces.srgb,
      red: [0.67, 0.33],
      green: [0.21, 0.71],
      blue: [0.14, 0.08],
      white: [0.31, 0.316],
    },
  ],
  [5, { ...rgbSpaces.srgb, red: [0.64, 0.33], green: [0.29, 0.6], blue: [0.15, 0.06] }],
  [6, { ...rgbSpaces.srgb, red: [0.63, 0.34], green: [0.31, 0.595], blue: [0.155, 0.07] }],
  [7, { ...rgbSpaces.srgb, red: [0.63, 0.34], green: [0.31, 0.595], blue: [0.155, 0.07] }],
  [9, rgbSpaces.rec2020],
  [11, { ...rgbSpaces.p3, white: [0.314, 0.351] }],
  [12, rgbSpaces.p3],
])

/**
 * Pictures are looked at on screens of sRGB, so that the camera curves of BT.601, BT.709 and BT.2020
 * (1, 6, 14, 15) are shown by it, as browsers do.
 *
 * @see ITU-T H.273, table 3.
 */
const gammaByCode = new Map<number, number | 'srgb'>([
  [1, 'srgb'],
  [2, 'srgb'],
  [4, 2.2],
  [5, 2.8],
  [6, 'srgb'],
  [8, 1],
  [13, 'srgb'],
  [14, 'srgb'],
  [15, 'srgb'],
  [17, 2.6],
])

/** Perceptual quantiser and hybrid log-gamma. */
export function isHighDynamicRange(transfer: number): boolean {
  return transfer === 16 || transfer === 18
}

/** The space of a PNG that gives chromaticities (white, red, green, blue) and the gamma of its file. */
export function spaceOfNumbers(
  chromaticities: readonly number[] | undefined,
  gamma: number | undefined,
): RgbSpace | undefined {
  const [wx, wy, rx, ry, gx, gy, bx, by] = chromaticities ?? [
    0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06,
  ]
  const numbers = [wx, wy, rx, ry, gx, gy, bx, by].map((value) => value ?? 0)
  // What no light can have is a broken chunk.
  if (numbers.some((value) => value < 0 || value > 1) || (wy ?? 0) < 0.05) return undefined
  const exponent = gamma === undefined || gamma < 0.1 || gamma > 4 ? undefined : 1 / gamma
  // 0.45455 is how writers say sRGB.
  const curve = exponent === undefined || Math.abs(exponent - 2.2) < 0.02 ? 'srgb' : exponent
  const space: RgbSpace = {
    name: 'RGB',
    white: [wx ?? 0, wy ?? 0],
    red: [rx ?? 0, ry ?? 0],
    green: [gx ?? 0, gy ?? 0],
    blue: [bx ?? 0, by ?? 0],
    gamma: curve,
  }
  return columns(adapted(space)).flat().every(Number.isFinite) ? space : undefined
}

/** Whether a picture of this space needs no conversion. */
export function isSrgb(space: RgbSpace): boolean {
  const wanted = columns(adapted(rgbSpaces.srgb)).flat()
  const given = columns(adapted(space)).flat()
  return (
    space.gamma === 'srgb' &&
    wanted.every((value, i) => Math.abs(value - (given[i] ?? NaN)) < 0.004)
  )
}

/** Linear light of a coded value, both from 0 to 1. */
export function toLinear(gamma: number | 'srgb', value: number): number {
  if (gamma !== 'srgb') return value ** gamma
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
}

/** Rows of the matrix from linear RGB to XYZ under D65 or whatever the space's own white is. */
export function toXyz(space: RgbSpace): Matrix {
  const primaries = [space.red, space.green, space.blue].map(([x, y]): Vector => [
    x / y,
    1,
    (1 - x - y) / y,
  ])
  const [r = zero, g = zero, b = zero] = primaries
  const matrix: Matrix = [
    [r[0], g[0], b[0]],
    [r[1], g[1], b[1]],
    [r[2], g[2], b[2]],
  ]
  const scale = apply(inverse(matrix), whiteOf(space))
  return matrix.map((row): Vector => [
    row[0] * scale[0],
    row[1] * scale[1],
    row[2] * scale[2],
  ]) as unknown as Matrix
}

const zero: Vector = [0, 0, 0]

function whiteOf({ white: [x, y] }: RgbSpace): Vector {
  return [x / y, 1, (1 - x - y) / y]
}

/** Bradford, as ICC.1:2022, annex E recommends. */
const cone: Matrix = [
  [0.8951, 0.2664, -0.1614],
  [-0.7502, 1.7135, 0.0367],
  [0.0389, -0.0685, 1.0296],
]

function adapted(space: RgbSpace): Matrix {
  const from = apply(cone, whiteOf(space))
  const to = apply(cone, pcsWhite)
  const scale: Matrix = [
    [to[0] / from[0], 0, 0],
    [0, to[1] / from[1], 0],
    [0, 0, to[2] / from[2]],
  ]
  return product(inverse(cone), product(scale, product(cone, toXyz(space))))
}

export function apply(matrix: Matrix, [x, y, z]: Vector): Vector {
  const row = ([a, b, c]: Vector) => a * x + b * y + c * z
  return [row(matrix[0]), row(matrix[1]), row(matrix[2])]
}

function columns(matrix: Matrix): readonly [Vector, Vector, Vector] {
  return transposed(matrix)
}

function transposed([a, b, c]: Matrix): Matrix {
  return [
    [a[0], b[0], c[0]],
    [a[1], b[1], c[1]],
    [a[2], b[2], c[2]],
  ]
}

export function product(left: Matrix, right: Matrix): Matrix {
  const [a, b, c] = columns(right)
  return transposed([apply(left, a), apply(left, b), apply(left, c)])
}

export function inverse([[a, b, c], [d, e, f], [g, h, i]]: Matrix): Matrix {
  const determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
  const part = (value: number) => value / determinant
  return [
    [part(e * i - f * h), part(c * h - b * i), part(b * f - c * e)],
    [part(f * g - d * i), part(a * i - c * g), part(c * d - a * f)],
    [part(d * h - e * g), part(b * g - a * h), part(a * e - b * d)],
  ]
}

function fixed(value: number): number {
  return Math.round(value * 65_536)
}

function xyzNumbers(vector: Vector): Buffer {
  const numbers = Buffer.alloc(12)
  for (const [i, value] of vector.entries()) numbers.writeInt32BE(fixed(value), 4 * i)
  return numbers
}

function xyzTag(vector: Vector): Buffer {
  return Buffer.concat([Buffer.from('XYZ \0\0\0\0', 'latin1'), xyzNumbers(vector)])
}

/** One record of `multiLocalizedUnicodeType`, padded to four bytes. */
function textTag(text: string): Buffer {
  const utf16 = Buffer.from(text, 'utf16le').swap16()
  const head = Buffer.alloc(28)
  head.write('mluc', 'latin1')
  head.writeUInt32BE(1, 8)
  head.writeUInt32BE(12, 12)
  head.write('enUS', 16, 'latin1')
  head.writeUInt32BE(utf16.length, 20)
  head.writeUInt32BE(28, 24)
  return Buffer.concat([head, utf16, Buffer.alloc((4 - (utf16.length % 4)) % 4)])
}

/** `parametricCurveType`: 0 a power, 3 the form of sRGB. */
function curveTag(gamma: number | 'srgb'): Buffer {
  const numbers = gamma === 'srgb' ? [2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045] : [gamma]
  const tag = Buffer.alloc(12 + 4 * numbers.length)
  tag.write('para', 'latin1')
  tag.writeUInt16BE(gamma === 'srgb' ? 3 : 0, 8)
  for (const [i, value] of numbers.entries()) tag.writeInt32BE(fixed(value), 12 + 4 * i)
  return tag
}

type MatrixProfile = { columns: Vector[]; curve: (value: number) => number }

function readProfile(profile: Buffer): MatrixProfile | undefined {
  if (profile.length < 132 || profile.toString('latin1', 16, 24) !== 'RGB XYZ ') return undefined
  const count = profile.readUInt32BE(128)
  if (count > 100 || 132 + 12 * count > profile.length) return undefined
  const tags = new Map<string, Buffer>()
  for (let i = 0; i < count; i++) {
    const at = 132 + 12 * i
    const offset = profile.readUInt32BE(at + 4)
    const end = offset + profile.readUInt32BE(at + 8)
    if (end <= profile.length)
      tags.set(profile.toString('latin1', at, at + 4), profile.subarray(offset, end))
  }
  // Tables come before the matrix where a profile has both.
  if (tags.has('A2B0') || tags.has('A2B1')) return undefined
  const found = ['rXYZ', 'gXYZ', 'bXYZ'].map((name) => {
    const tag = tags.get(name)
    if (tag === undefined || tag.length < 20) return undefined
    return [8, 12, 16].map((at) => tag.readInt32BE(at) / 65_536) as unknown as Vector
  })
  const curves = ['rTRC', 'gTRC', 'bTRC'].map((name) => readCurve(tags.get(name)))
  const [first, second, third] = curves
  if (first === undefined || second === undefined || third === undefined) return undefined
  // One curve for all, as every standard space has.
  if (
    probes.some((at) => Math.abs(first(at) - second(at)) + Math.abs(first(at) - third(at)) > 0.01)
  ) {
    return undefined
  }
  const vectors = found.filter((vector) => vector !== undefined)
  return vectors.length === 3 ? { columns: vectors, curve: first } : undefined
}

/** @see ICC.1:2022, 10.6 (`curveType`) and 10.18 (`parametricCurveType`). */
function readCurve(tag: Buffer | undefined): ((value: number) => number) | undefined {
  if (tag === undefined || tag.length < 12) return undefined
  const type = tag.toString('latin1', 0, 4)
  if (type === 'curv') {
    const count = tag.readUInt32BE(8)
    if (12 + 2 * count > tag.length) return undefined
    if (count === 0) return (value) => value
    if (count === 1) {
      const gamma = tag.readUInt16BE(12) / 256
      return (value) => value ** gamma
    }
    return (value) => tag.readUInt16BE(12 + 2 * Math.round(value * (count - 1))) / 65_535
  }
  if (type !== 'para') return undefined
  const kind = tag.readUInt16BE(8)
  const needed = [1, 3, 4, 5, 7][kind]
  if (needed === undefined || 12 + 4 * needed > tag.length) return undefined
  const numbers = Array.from({ length: 7 }, (_, i) =>
    i < needed ? tag.readInt32BE(12 + 4 * i) / 65_536 : undefined,
  )
  const [gamma = 1, a = 1, b = 0] = numbers
  const [, , , third = 0, fourth = 0, fifth = 0, sixth = 0] = numbers
  switch (kind) {
    case 0:
      return (value) => value ** gamma
    case 1:
      return (value) => (value >= -b / a ? (a * value + b) ** gamma : 0)
    case 2:
      return (value) => (value >= -b / a ? (a * value + b) ** gamma + third : third)
    case 3:
      return (value) => (value >= fourth ? (a * value + b) ** gamma : third * value)
    default:
      return (value) => (value >= fourth ? (a * value + b) ** gamma + fifth : third * value + sixth)
  }
}
