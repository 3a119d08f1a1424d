/** What our own parsers find out about a picture before any decoder sees it. */
import { limits } from '@sluice/protocol/limits'
import { TooLargePicture } from './damaged-picture.ts'

export type Size = { widthPixels: number; heightPixels: number }

/** Which of the eight ways the picture lies, as EXIF counts: 1 is upright. */
export type Orientation = 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8

/**
 * What the numbers mean where no ICC profile says it.
 *
 * @see ITU-T H.273 for the codes of `primaries` and `transfer`; PNG gives chromaticities and a gamma.
 */
export type ColourCode =
  | { primaries: number; transfer: number }
  | { chromaticities: readonly number[] | undefined; gamma: number | undefined }

/** `signed` is CIELab of TIFF 6.0, section 23; `offset` is ICCLab of TIFF Technical Note 4. */
export type LabForm = 'signed' | 'offset'

export type PictureFacts = {
  /** The pictures that are to be had, the first one first; of reduced ones and masks nothing. */
  pages: readonly (Size & { index: number; orientation: Orientation })[]
  animated: boolean
  icc?: Buffer
  colour?: ColourCode
  /** The samples are CIE Lab, whatever the decoder is made to believe. */
  lab?: LabForm
  /** Grey of so many bits, with black and white where films have them; the decoder leaves them there. */
  filmGrey?: { bits: number }
  /** Kinds of metadata that the file holds. */
  removed: Set<string>
  /** Where the structure ends too early; only when salvaging. */
  damagedAt?: number
  /**
   * Where the file ends without the end that its format asks for. Whether something of the picture is
   * missing, a decoder has to find out.
   */
  cutAt?: number
  /**
   * Of a JPEG whose last rows a decoder reads without telling what it missed there: where in `decodable` its
   * height is written, and one with which there are rows behind them.
   */
  beyondLast?: { heightAt: number; heightPixels: number }
  /** Where the coded picture begins: the best that is known when a decoder can't say more. */
  codedAt: number
  /** What the decoder gets: of the file only what is needed for the picture. */
  decodable: Buffer
}

/** How much of a document or animation is wanted, and whether damage ends everything. */
export type ReadOptions = { salvage: boolean; pages: 'all' | 'first'; frames: 'all' | 'first' }

/** @throws TooLargePicture when one picture, or all together, go beyond the limits. */
export function requireSizes(sizes: readonly Size[], kind: 'pages' | 'frames'): void {
  const countMax = kind === 'pages' ? limits.imagePagesMax : limits.imageFramesMax
  if (sizes.length > countMax) throw new TooLargePicture(kind)
  let sum = 0
  for (const { widthPixels, heightPixels } of sizes) {
    const pixels = widthPixels * heightPixels
    if (
      Math.max(widthPixels, heightPixels) > limits.imageSidePixelsMax ||
      pixels > limits.imagePixelsMax
    ) {
      throw new TooLargePicture('pixels')
    }
    sum += pixels
  }
  if (sizes.length > 1 && sum > limits.imagePixelsSumMax) throw new TooLargePicture('pixels')
}

/** Upright for every value that means nothing. */
export function orientationOf(value: number): Orientation {
  return orientations.find((known) => known === value) ?? 1
}

const orientations: readonly Orientation[] = [1, 2, 3, 4, 5, 6, 7, 8]
