/** Walks over sounds that are nothing but frames: MP3, AAC in ADTS, and AMR. */
import { limits } from '@sluice/protocol/limits'
import { corruptMedium, readAhead, tooLarge } from './av-facts.ts'
import type { Readable, ReadOptions } from './av-facts.ts'
import { readAdtsHeader, readMp3Header } from './sniff-av.ts'

export type FramesFacts = {
  sampleRateHz: number
  channels: number
  frames: number
  /** As many as the frames say. */
  samples: number
  /** Where the frames end. */
  end: number
  /** Whether something broke there, and the rest is left out. */
  partial: boolean
  /** Whether all that broke is that the last frame has not all of its bytes. */
  cut: boolean
}

/**
 * Follows frames from one to the next.
 *
 * @param from Where the first begins; `to` is where the last must end.
 * @throws SluiceError `media.corrupt` with the byte where no frame follows; `media.too_large`.
 */
export async function walkFrames(
  source: Readable,
  options: ReadOptions & {
    format: 'mp3' | 'aac' | 'amr' | 'awb'
    from: number
    to: number
    /** Leaves out a last frame that has not all of its bytes; whether that is all, the caller says. */
    takesCut?: boolean
  },
): Promise<FramesFacts> {
  const { format, from, to, salvage, takesCut } = options
  const ahead = readAhead({ bytes: to, read: (at, length) => source.read(at, length) })
  const facts: FramesFacts = {
    ...{ sampleRateHz: 0, channels: 0, frames: 0, samples: 0, end: from },
    ...{ partial: false, cut: false },
  }
  while (facts.end < to) {
    const headBytes = Math.min(7, to - facts.end)
    const head = ahead.held(facts.end, headBytes) ?? (await ahead.read(facts.end, headBytes))
    const frame = readHeader(head, format)
    if (frame === undefined || facts.end + frame.frameBytes > to) {
      // Recorders fill the rest of their last block with zeros.
      if (frame === undefined && facts.frames > 0 && (await isBlank(ahead, facts.end, to))) break
      facts.cut = frame !== undefined && facts.frames > 0
      const left = salvage === true || (takesCut === true && facts.cut)
      if (!left || facts.frames === 0) throw corruptMedium('sound', { byte: facts.end })
      facts.partial = true
      break
    }
    if (facts.frames === 0) {
      facts.sampleRateHz = frame.sampleRateHz
      facts.channels = frame.channels
    }
    facts.frames += 1
    facts.samples += frame.samples
    facts.end += frame.frameBytes
    if (facts.samples / facts.sampleRateHz > limits.audioDurationMsMax / 1000) {
      throw tooLarge('sound', 'is too long', `${limits.audioDurationMsMax / 60_000} minutes`)
    }
  }
  if (facts.frames === 0) throw corruptMedium('sound', { byte: from })
  return facts
}

function readHeader(head: Buffer, format: 'mp3' | 'aac' | 'amr' | 'awb') {
  if (format === 'mp3') return readMp3Header(head, 0)
  return format === 'aac' ? readAdtsHeader(head, 0) : readAmrHeader(head, format)
}

/** Bytes of a frame by its type, its first byte included; 0 for reserved ones. */
const amrBytes = {
  amr: [13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1],
  awb: [18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1],
}

/** @see RFC 4867, section 5.3: padding bit, type, quality bit, two padding bits. */
function readAmrHeader(head: Buffer, format: 'amr' | 'awb') {
  const byte = head[0] ?? 0xff
  const frameBytes = amrBytes[format][(byte >> 3) & 15] ?? 0
  if (frameBytes === 0 || (byte & 0x83) !== 0) return undefined
  const sampleRateHz = format === 'amr' ? 8000 : 16_000
  return { frameBytes, sampleRateHz, samples: sampleRateHz / 50, channels: 1 }
}

/** A last block is filled with zeros at most this far. */
const blankBytesMax = 64 * 1024

async function isBlank(source: Readable, from: number, to: number): Promise<boolean> {
  if (to - from > blankBytesMax) return false
  return (await source.read(from, to - from)).every((byte) => byte === 0)
}
