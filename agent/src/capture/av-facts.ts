/** What a film's or sound's own headers say, and the limits that are held against it before anything decodes it. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

/** A source, or a part of one, that can be read anywhere. */
export type Readable = {
  bytes: number
  read: (offset: number, length: number) => Promise<Buffer>
}

export type PictureFacts = {
  /** `other` is everything that is never copied as it is coded. */
  codec: 'h264' | 'hevc' | 'other'
  /** What the container itself calls the codec; untrusted text. */
  called?: string
  /** 0 when the container does not say. */
  widthPixels: number
  heightPixels: number
  /** 0 when the container does not say. */
  frames: number
  /** Whether the picture is marked as PQ or HLG; undefined when only its coded pictures can tell. */
  highDynamicRange: boolean | undefined
  /** Whether the container shows less, later or otherwise than what is coded: trimmed, or turned. */
  edited: boolean
  /** What of the coded picture is to be seen, where it is less, before it is turned. */
  crop?: Crop
  /** How long pictures are shown, and when the last one begins; undefined when nothing says so exactly. */
  end?: PictureEnd
}

/** In milliseconds since the first picture; the last one of a recorded screen may stay for minutes. */
export type PictureEnd = {
  lastMs: number
  untilMs: number
  /** Ticks a second of the container's clock, of which every time is a whole number. */
  clockHz: number
}

export type Crop = { left: number; top: number; widthPixels: number; heightPixels: number }

/** Takes a crop for what it is worth: less than the picture, and within it. */
export function cropped(
  crop: Crop,
  whole: { widthPixels: number; heightPixels: number },
): { edited: boolean; crop?: Crop } {
  const { left, top, widthPixels, heightPixels } = crop
  const inside =
    left >= 0 &&
    top >= 0 &&
    widthPixels > 0 &&
    heightPixels > 0 &&
    left + widthPixels <= whole.widthPixels &&
    top + heightPixels <= whole.heightPixels
  const less = widthPixels < whole.widthPixels || heightPixels < whole.heightPixels
  return inside && less ? { edited: true, crop } : { edited: false }
}

/** 0 when the container does not say. */
export type SoundFacts = { sampleRateHz: number; channels: number; called?: string }

/** What a container says about itself. */
export type AvFacts = {
  /** 0 when the container does not say. */
  durationMs: number
  /** As long as it is shown, where that is told apart: a trimmed film still holds the rest. */
  shownMs?: number
  picture: PictureFacts | undefined
  sound: SoundFacts | undefined
  /** Which of its pictures and sounds those are, where it is not the first ones. */
  tracks?: PlayedTracks
  /** Where it ends, when more lies behind it: a demuxer would look through all of that for more. */
  endAt?: number
  /** Kinds of metadata and tracks that will not be taken along. */
  removed: string[]
}

/** Counted from 0 among those of a kind; covers and chapters are none. */
export type PlayedTracks = { picture: number; sound: number }

export type ReadOptions = {
  /** Takes what is there of a container that ends too early or is damaged behind its beginning. */
  salvage?: boolean
}

/**
 * Holds headers against the limits of the gate.
 *
 * @throws SluiceError `media.too_large`; `media.unsupported` when there is neither picture nor sound.
 */
export function requireLimits(facts: AvFacts): void {
  const { durationMs, picture, sound } = facts
  if (picture === undefined && sound === undefined) {
    throw unsupportedMedium('film', 'a film without picture and sound')
  }
  if (durationMs > limits.videoDurationMsMax) {
    const what = picture === undefined ? 'sound' : 'film'
    throw tooLarge(what, 'is too long', `${limits.videoDurationMsMax / 60_000} minutes`)
  }
  if (picture !== undefined) requirePicture(picture, durationMs)
  if (sound === undefined) return
  if (sound.sampleRateHz > limits.audioSampleRateHzMax) {
    throw tooLarge('sound', 'has too high a sampling rate', `${limits.audioSampleRateHzMax} Hz`)
  }
  if (sound.channels > limits.audioChannelsMax) {
    throw tooLarge('sound', 'has too many channels', `${limits.audioChannelsMax}`)
  }
}

function requirePicture(picture: PictureFacts, durationMs: number): void {
  const { widthPixels, heightPixels, frames } = picture
  const pixels = widthPixels * heightPixels
  const side = Math.max(widthPixels, heightPixels)
  if (pixels > limits.videoFramePixelsMax || side > limits.videoSidePixelsMax) {
    const megapixels = limits.videoFramePixelsMax / 1e6
    throw tooLarge(
      'film',
      'has too large pictures',
      `${megapixels} megapixels and ${limits.videoSidePixelsMax} pixels a side`,
    )
  }
  if (frames > limits.videoFramesMax) {
    throw tooLarge('film', 'has too many pictures', `${limits.videoFramesMax}`)
  }
  if (frames * pixels > limits.videoPixelsMax) {
    throw tooLarge('film', 'has too many pixels in all', `${limits.videoPixelsMax}`)
  }
  // A few pictures more than the rate allows are a rounding of very short films.
  if (durationMs > 0 && frames > (durationMs / 1000) * limits.videoRateHzMax + 10) {
    throw tooLarge('film', 'has too many pictures a second', `${limits.videoRateHzMax}`)
  }
}

/** Says where it broke: a byte of the file, or a moment of the film. */
export function corruptMedium(
  what: 'film' | 'sound',
  where?: { byte: number } | { ms: number },
): SluiceError {
  const place =
    where === undefined
      ? ''
      : 'byte' in where
        ? ` at byte ${where.byte}`
        : ` after ${(where.ms / 1000).toFixed(1)} s`
  return new SluiceError('media.corrupt', `the ${what} is damaged or cut short${place}`, {
    hint: 'Copy it from the device again, or take what is left of it with --salvage.',
  })
}

/** What is damaged within a part that was read as a whole lies at least there. */
export function placed<T>(byte: number, read: () => T): T {
  try {
    return read()
  } catch (error) {
    const known = isSluiceError(error) && error.code === 'media.corrupt'
    if (!known || / at byte \d| after \d/.test(error.message)) throw error
    throw Object.assign(corruptMedium('film', { byte }), { cause: error })
  }
}

export function unsupportedMedium(
  what: 'film' | 'sound',
  found: string,
  instead = what === 'film'
    ? 'Export it as an ordinary MP4 with picture and sound in one file.'
    : 'Export it as WAV, FLAC or MP3.',
): SluiceError {
  return new SluiceError('media.unsupported', `the content is ${found}, which is not accepted`, {
    hint: instead,
  })
}

export function tooLarge(what: 'film' | 'sound', why: string, limit: string): SluiceError {
  return new SluiceError('media.too_large', `the ${what} ${why}`, {
    hint: `The limit is ${limit}; split it, or export it smaller.`,
  })
}

export function greatestDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestDivisor(b, a % b)
}

export type Ahead = Readable & {
  /** The range without waiting, where it has been read already: millions of waits take a minute. */
  held: (offset: number, length: number) => Buffer | undefined
}

/**
 * Reads forward in pieces, so that walking over small frames costs no system call each.
 *
 * @param pieceBytes Small where what is read lies far apart.
 */
export function readAhead(source: Readable, pieceBytes = 256 * 1024): Ahead {
  let piece: Buffer = Buffer.alloc(0)
  let from = 0
  return {
    bytes: source.bytes,
    held: (offset, length) =>
      offset < from || offset + length > from + piece.length
        ? undefined
        : piece.subarray(offset - from, offset - from + length),
    async read(offset, length) {
      if (offset < from || offset + length > from + piece.length) {
        if (length >= pieceBytes) return source.read(offset, length)
        from = offset
        piece = await source.read(offset, Math.min(pieceBytes, source.bytes - offset))
      }
      return piece.subarray(offset - from, offset - from + length)
    },
  }
}

/** A last block is filled up at most this far. */
const blankBytesMax = 64 * 1024

/** Whether nothing but the zeros lies there that fill up the last block of a recording. */
export async function isBlank(source: Readable, from: number, to: number): Promise<boolean> {
  if (to - from > blankBytesMax) return false
  return (await source.read(from, to - from)).every((byte) => byte === 0)
}
