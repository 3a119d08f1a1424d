/**
 * Decides how much work fewer bytes are worth: much on a thin link, little on a fast one or where processors
 * are busy. It chooses only between codings that lose nothing; what is lost, the profile says.
 */
import { deflateRawSync } from 'node:zlib'

/** How long an encoder may look for fewer bytes. */
export const efforts = ['quick', 'balanced', 'small'] as const
export type Effort = (typeof efforts)[number]

/**
 * Below these, a second of a processor saves more than a second of the link. Measured with PNG at levels 2,
 * 6 and 9 and JPEG: from quick to balanced 0.02 to 0.04 bytes go for each byte of samples, at 4 to 7 ns; from
 * there to small 0.01 to 0.04, at 8 to 15 ns. FLAC is left out: its levels differ by less than a hundredth.
 */
const balancedBelowBytesPerSecond = 5_000_000
const smallBelowBytesPerSecond = 1_500_000

/**
 * @param host.linkBytesPerSecond What the link carries; undefined as long as nobody knows: then time is
 *   what counts.
 * @param host.freeCores Processors that have nothing else to do, 0 or more.
 */
export function chooseEffort(host: {
  linkBytesPerSecond: number | undefined
  freeCores: number
}): Effort {
  const { linkBytesPerSecond, freeCores } = host
  if (linkBytesPerSecond === undefined) return 'quick'
  if (linkBytesPerSecond < smallBelowBytesPerSecond * freeCores) return 'small'
  return linkBytesPerSecond < balancedBelowBytesPerSecond * freeCores ? 'balanced' : 'quick'
}

export type PngSettings = { compressionLevel: number; adaptiveFiltering: boolean }

/**
 * Row filters halve a photograph and cost a drawing time for nothing. Level 1 is left out: it makes a
 * photograph larger than its samples.
 */
const pngSettings: Record<'photograph' | 'drawing', Record<Effort, PngSettings>> = {
  photograph: {
    quick: { compressionLevel: 2, adaptiveFiltering: true },
    balanced: { compressionLevel: 3, adaptiveFiltering: true },
    small: { compressionLevel: 6, adaptiveFiltering: true },
  },
  drawing: {
    quick: { compressionLevel: 2, adaptiveFiltering: false },
    balanced: { compressionLevel: 6, adaptiveFiltering: false },
    small: { compressionLevel: 9, adaptiveFiltering: false },
  },
}

/** @param coded What the picture was decoded from, or its samples; a coding with loss says nothing here. */
export function choosePng(effort: Effort, coded: Coded): PngSettings {
  return pngSettings[isDrawing(coded) ? 'drawing' : 'photograph'][effort]
}

/** Bytes that hold a picture without loss, and how many samples they hold, in bytes. */
export type Coded = { bytes: Buffer; sampleBytes: number } | 'with-loss'

/** A drawing or a picture of a screen needs less than a quarter of its samples, however it is written. */
const drawingPartMax = 0.25
const lookBytes = 64 * 1024

function isDrawing(coded: Coded): boolean {
  if (coded === 'with-loss') return false
  const { bytes, sampleBytes } = coded
  const middle = Math.max(0, Math.floor((bytes.length - lookBytes) / 2))
  const look = bytes.subarray(middle, middle + lookBytes)
  // Of what is compressed already, nothing more goes here.
  const left = Math.min(1, deflateRawSync(look, { level: 1 }).length / Math.max(1, look.length))
  return left * bytes.length < drawingPartMax * sampleBytes
}
