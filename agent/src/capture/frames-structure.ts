/** Walks over sounds that are nothing but frames: MP3, AAC in ADTS, and AMR. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { corruptMedium, isBlank, readAhead, tooLarge } from './av-facts.ts'
import type { Ahead, Readable, ReadOptions } from './av-facts.ts'
import { foreignMagic } from './foreign.ts'
import { readAdtsHeader, readMp3Header } from './sniff-av.ts'
import { apeBytes, id3Bytes } from './sniff.ts'

export type FramesFormat = 'mp3' | 'aac' | 'amr' | 'awb'

/** Frames that lie one behind the other, from `start` to before `end`. */
export type FramesRun = { start: number; end: number }

export type FramesFacts = {
  sampleRateHz: number
  channels: number
  frames: number
  /** As many as the frames say. */
  samples: number
  /** Where frames lie; between them are tags, or what was left out. */
  runs: FramesRun[]
  /** Where the frames end. */
  end: number
  /** Whether something broke, and is left out. */
  partial: boolean
  /** Whether the last frame has not all of its bytes. */
  cut: boolean
  /** Whether what follows has another sampling rate, or other channels, than the first frame. */
  changes: boolean
  /** Whether AMR says of some frames that nobody spoke, in place of what was heard. */
  pauses: boolean
  /** Kinds of what lies between the frames and behind them. */
  removed: string[]
}

export type FramesWalk = ReadOptions & {
  format: FramesFormat
  /** Where the first frame begins; `to` is where the last must end. */
  from: number
  to: number
  /** As many frames as the sound itself says it has. */
  counted?: number | undefined
}

/** HLS puts a tag before every segment; four hours of one second each are 14,400. */
const runsMax = 20_000
/** Each is looked over byte by byte. */
const gapsMax = 100

/**
 * Follows frames from one to the next. Tags between them, as joined recordings have them, are passed
 * over, and so is what lies behind the last one. Where frames go on behind something that is none,
 * some of them may be lost: only a count that is met says that they are not.
 *
 * A last frame that has not all of its bytes is left out; what to make of that, the caller says.
 *
 * @throws SluiceError `media.corrupt` with the byte where frames are missing; `media.too_large`.
 */
export async function walkFrames(source: Readable, walk: FramesWalk): Promise<FramesFacts> {
  const { format, from, to, counted, salvage } = walk
  const ahead = readAhead({ bytes: to, read: (at, length) => source.read(at, length) })
  const removed = new Set<string>()
  const runs: FramesRun[] = [{ start: from, end: from }]
  const facts = {
    ...{ sampleRateHz: 0, channels: 0, frames: 0, samples: 0, end: from },
    ...{ cut: false, changes: false, pauses: false },
  }
  let damagedAt: number | undefined
  let gaps = 0
  for (let at = from; at < to;) {
    const headBytes = Math.min(7, to - at)
    const head = ahead.held(at, headBytes) ?? (await ahead.read(at, headBytes))
    const frame = readHeader(head, format)
    if (frame !== undefined && at + frame.frameBytes <= to) {
      addFrame(facts, frame)
      at += frame.frameBytes
      facts.end = at
      runs.splice(-1, 1, { start: runs.at(-1)?.start ?? from, end: at })
      continue
    }
    if (facts.frames === 0) break
    // Zeros are no frame, whatever they begin like.
    facts.cut = frame === undefined ? isHeadOf(head, format) : !(await isBlank(ahead, at, to))
    if (facts.cut) break
    const next = await passOver(ahead, { at, to, format, soundBytes: at - from })
    if (next.kind === 'end') {
      removed.add('trailer')
      const fewer = counted !== undefined && facts.frames < counted - 1
      if (next.long || fewer) damagedAt ??= at
      break
    }
    if (next.kind === 'gap') {
      damagedAt ??= at
      if (++gaps > gapsMax) throw corruptMedium('sound', { byte: at })
    }
    removed.add(next.kind === 'tag' ? 'id3' : 'junk')
    at = next.at
    if (runs.length === runsMax) throw corruptMedium('sound', { byte: at })
    if (runs.at(-1)?.end === runs.at(-1)?.start) runs.pop()
    runs.push({ start: at, end: at })
  }
  if (facts.frames === 0) throw corruptMedium('sound', { byte: from })
  const partial = damagedAt !== undefined && counted !== facts.frames
  if (partial && salvage !== true) throw corruptMedium('sound', { byte: damagedAt ?? facts.end })
  return { ...facts, runs, partial, removed: [...removed] }
}

function addFrame(
  facts: Omit<FramesFacts, 'runs' | 'end' | 'partial' | 'removed'>,
  frame: { sampleRateHz: number; channels: number; samples: number; pause?: boolean },
): void {
  facts.pauses ||= frame.pause === true
  if (facts.frames === 0) {
    facts.sampleRateHz = frame.sampleRateHz
    facts.channels = frame.channels
  }
  facts.changes ||= frame.sampleRateHz !== facts.sampleRateHz || frame.channels !== facts.channels
  facts.frames += 1
  facts.samples += (frame.samples / frame.sampleRateHz) * facts.sampleRateHz
  if (facts.samples / facts.sampleRateHz > limits.audioDurationMsMax / 1000) {
    throw tooLarge('sound', 'is too long', `${limits.audioDurationMsMax / 60_000} minutes`)
  }
}

type Passed =
  | { kind: 'tag' | 'gap'; at: number }
  /** No frame follows; `long` where more lies there than what programs leave behind a sound. */
  | { kind: 'end'; long: boolean }

/** A cluster of a card, at most, is what recorders and programs leave behind the last frame. */
const trailerBytesMax = 64 * 1024

async function passOver(
  source: Ahead,
  place: { at: number; to: number; format: FramesFormat; soundBytes: number },
): Promise<Passed> {
  const { at, to, format, soundBytes } = place
  const bytes = tagBytes(await source.read(at, Math.min(32, to - at)))
  if (bytes > 0 && at + bytes <= to) return { kind: 'tag', at: at + bytes }
  const rest = await source.read(at, Math.min(trailerBytesMax, to - at))
  const next = nextChain(rest, format, at + rest.length === to)
  if (next !== undefined) return { kind: 'gap', at: at + next }
  // More than there is sound is no remainder of it.
  const long = to - at > Math.min(trailerBytesMax, soundBytes)
  return { kind: 'end', long: long && foreignMagic(rest) === undefined }
}

/**
 * Bytes of a tag that begins here, 0 where none does.
 *
 * @see id3.org ("ID3v1", "ID3 tag version 2.4.0").
 */
function tagBytes(bytes: Buffer): number {
  const name = bytes.toString('latin1', 0, 8)
  if (name.startsWith('TAG+')) return 227
  if (name.startsWith('TAG')) return 128
  return id3Bytes(bytes) || apeBytes(bytes)
}

/** Frames that lie where each before them ends: so many are no accident. One of AMR says less. */
const framesInRow = { mp3: 4, aac: 4, amr: 12, awb: 12 }

/** Where frames go on; the last of them may be fewer, but then they end where the sound does. */
function nextChain(window: Buffer, format: FramesFormat, whole: boolean): number | undefined {
  for (let from = 1; from < window.length; from++) {
    let at = from
    let row = 0
    for (let rate = 0; row < framesInRow[format]; row++) {
      const frame = readHeader(window.subarray(at, at + 7), format)
      if (frame === undefined || (rate !== 0 && frame.sampleRateHz !== rate)) break
      rate = frame.sampleRateHz
      at += frame.frameBytes
    }
    const ends = whole && row >= framesInRow[format] / 2 && at === window.length
    if (row === framesInRow[format] || ends) return from
  }
  return undefined
}

/** Whether it is the beginning of a header, and no more is there. */
function isHeadOf(head: Buffer, format: FramesFormat): boolean {
  const headBytes = format === 'mp3' ? 4 : format === 'aac' ? 7 : 0
  const second = (head[1] ?? 0xff) & 0xe0
  return head.length < headBytes && head[0] === 0xff && second === 0xe0
}

/** A copy that broke off ends like this too: only a count of frames tells that no more is missing. */
export function cutSound(byte: number): SluiceError {
  return new SluiceError('media.corrupt', `the sound ends within a frame, at byte ${byte}`, {
    hint: 'More than that may be missing: copy it from the device again, or take its whole frames with --salvage.',
  })
}

function readHeader(head: Buffer, format: FramesFormat) {
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
  const pause = ((byte >> 3) & 15) >= pauseTypes[format]
  return { frameBytes, sampleRateHz, samples: sampleRateHz / 50, channels: 1, pause }
}

/** Comfort noise, frames that were lost and those without data come behind the types of speech. */
const pauseTypes = { amr: 8, awb: 9 }
