/** Brings the light of a high dynamic range picture into what a screen of sRGB shows. */
import { inverse, product, rgbSpaces, toXyz } from './icc-profile.ts'
import type { RgbSpace } from './icc-profile.ts'
import type { PlainPicture } from './plain-picture.ts'

/** ITU-R BT.2408: the brightness that paper white is meant to have. */
const referenceWhiteNits = 203
/** What is brighter than this becomes plain white. */
const peakNits = 1000

/**
 * Undoes PQ or HLG, converts to the primaries of sRGB, and compresses what is brighter than paper by
 * Reinhard's extended curve, so that a picture within the range of a screen stays almost as it was.
 *
 * @param options.transfer 16 is the perceptual quantiser, 18 hybrid log-gamma (ITU-T H.273).
 * @returns 16 bits in sRGB; grey becomes RGB.
 * @see ITU-R BT.2100-2, tables 4 and 5; Reinhard et al. 2002, equation 4.
 */
export function toneMap(
  picture: PlainPicture,
  options: { transfer: number; space: RgbSpace },
): PlainPicture {
  const { channels, bits, samples } = picture
  const pixels = picture.widthPixels * picture.heightPixels
  const outChannels = channels === 4 ? 4 : 3
  const from =
    bits === 16
      ? new Uint16Array(samples.buffer, samples.byteOffset, samples.length / 2)
      : new Uint8Array(samples.buffer, samples.byteOffset, samples.length)
  const out = new Uint16Array(pixels * outChannels)
  const light = lightTable(options.transfer, bits)
  const [m0, m1, m2] = product(inverse(toXyz(rgbSpaces.srgb)), toXyz(options.space))
  const weights = toXyz(options.space)[1]
  const green = channels === 1 ? 0 : 1
  const blue = channels === 1 ? 0 : 2
  for (let i = 0, at = 0, to = 0; i < pixels; i++, at += channels, to += outChannels) {
    let r = light[from[at] ?? 0] ?? 0
    let g = light[from[at + green] ?? 0] ?? 0
    let b = light[from[at + blue] ?? 0] ?? 0
    if (options.transfer === 18) {
      // The display's own gamma of 1.2 for 1000 nits belongs to HLG.
      const system = (weights[0] * r + weights[1] * g + weights[2] * b) ** 0.2
      const scale = (system * peakNits) / referenceWhiteNits
      r *= scale
      g *= scale
      b *= scale
    }
    const brightest = Math.max(r, g, b)
    const white = peakNits / referenceWhiteNits
    const compress = brightest <= knee ? 1 : shoulder(brightest, white) / brightest
    r *= compress
    g *= compress
    b *= compress
    out[to] = encode(m0[0] * r + m0[1] * g + m0[2] * b)
    out[to + 1] = encode(m1[0] * r + m1[1] * g + m1[2] * b)
    out[to + 2] = encode(m2[0] * r + m2[1] * g + m2[2] * b)
    if (channels === 4) out[to + 3] = bits === 16 ? (from[at + 3] ?? 0) : (from[at + 3] ?? 0) * 257
  }
  return {
    widthPixels: picture.widthPixels,
    heightPixels: picture.heightPixels,
    channels: outChannels,
    bits: 16,
    samples: Buffer.from(out.buffer, out.byteOffset, out.byteLength),
  }
}

/** Below this part of paper white nothing is compressed. */
const knee = 0.5

/** From the knee on towards 1, which the peak reaches. */
function shoulder(value: number, white: number): number {
  const over = (value - knee) / (1 - knee)
  const whiteOver = (white - knee) / (1 - knee)
  const reached = (over * (1 + over / whiteOver ** 2)) / (1 + over)
  return Math.min(1, knee + (1 - knee) * reached)
}

/** Linear light for each coded value; for PQ as parts of paper white, for HLG of the scene. */
function lightTable(transfer: number, bits: 8 | 16): Float32Array {
  const largest = 2 ** bits - 1
  const linear = transfer === 16 ? fromPq : fromHlg
  return Float32Array.from({ length: largest + 1 }, (_, value) => linear(value / largest))
}

function fromPq(value: number): number {
  const root = value ** (1 / 78.84375)
  const nits =
    10_000 *
    (Math.max(0, root - 0.8359375) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
  return nits / referenceWhiteNits
}

function fromHlg(value: number): number {
  const [a, b, c] = [0.17883277, 0.28466892, 0.55991073]
  return value <= 0.5 ? value ** 2 / 3 : (Math.exp((value - c) / a) + b) / 12
}

const encoded = Uint16Array.from({ length: 4097 }, (_, i) => {
  const value = i / 4096
  return Math.round(
    65_535 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055),
  )
})

/** The curve of sRGB, steps of 1/4096 joined by lines. */
function encode(value: number): number {
  const at = Math.min(Math.max(value, 0), 1) * 4096
  const low = Math.floor(at)
  const start = encoded[low] ?? 0
  const end = encoded[Math.min(low + 1, 4096)] ?? 0
  return start + (end - start) * (at - low)
}
