/** Turns a picture in CIE L*a*b* into sRGB: decoders of TIFF know only some of its forms. */
import { apply, inverse, product, rgbSpaces, toXyz } from './icc-profile.ts'
import type { LabForm } from './picture-facts.ts'
import type { PlainPicture } from './plain-picture.ts'

/** Bradford, from the D50 of Lab in TIFF to the D65 of sRGB (ICC.1:2022, annex E; Lindbloom). */
const toD65 = [
  [0.9555766, -0.0230393, 0.0631636],
  [-0.0282895, 1.0099416, 0.0210077],
  [0.0122982, -0.020483, 1.3299098],
] as const

const whiteD50 = [0.9642, 1, 0.8249] as const

/**
 * @param picture Samples L, a, b and perhaps alpha, as they lie in the file.
 * @returns 16 bits in sRGB.
 */
export function labToRgb(picture: PlainPicture, form: LabForm): PlainPicture {
  const { channels, bits, samples } = picture
  const pixels = picture.widthPixels * picture.heightPixels
  const from =
    bits === 16
      ? new Uint16Array(samples.buffer, samples.byteOffset, samples.length / 2)
      : new Uint8Array(samples.buffer, samples.byteOffset, samples.length)
  const toRgb = product(inverse(toXyz(rgbSpaces.srgb)), toD65)
  const out = new Uint16Array(from.length)
  for (let i = 0, at = 0; i < pixels; i++, at += channels) {
    const light = lightness(from[at] ?? 0, bits, form)
    const fy = (light + 16) / 116
    const xyz = [
      whiteD50[0] * inverseCube(fy + opponent(from[at + 1] ?? 0, bits, form) / 500),
      inverseCube(fy),
      whiteD50[2] * inverseCube(fy - opponent(from[at + 2] ?? 0, bits, form) / 200),
    ] as const
    for (const [channel, value] of apply(toRgb, xyz).entries()) out[at + channel] = encode(value)
    if (channels === 4) out[at + 3] = bits === 16 ? (from[at + 3] ?? 0) : (from[at + 3] ?? 0) * 257
  }
  return { ...picture, bits: 16, samples: Buffer.from(out.buffer, 0, out.byteLength) }
}

function lightness(value: number, bits: 8 | 16, form: LabForm): number {
  if (bits === 8) return (value * 100) / 255
  return (value * 100) / (form === 'offset' ? 65_280 : 65_535)
}

/** a* or b*: a signed number, or one with half the range added. */
function opponent(value: number, bits: 8 | 16, form: LabForm): number {
  const half = 2 ** (bits - 1)
  const signed = form === 'offset' ? value - half : value >= half ? value - 2 * half : value
  return bits === 8 ? signed : signed / 256
}

function inverseCube(value: number): number {
  return value > 6 / 29 ? value ** 3 : 3 * (6 / 29) ** 2 * (value - 4 / 29)
}

function encode(value: number): number {
  const light = Math.min(Math.max(value, 0), 1)
  return Math.round(
    65_535 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055),
  )
}
