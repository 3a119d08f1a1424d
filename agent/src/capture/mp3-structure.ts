/** Finds where the frames of an MP3 or an AAC begin and end, between the tags that others put around them. */
import { corruptMedium } from './av-facts.ts'
import type { Readable, ReadOptions } from './av-facts.ts'
import { cutSound, walkFrames } from './frames-structure.ts'
import type { FramesFacts } from './frames-structure.ts'
import { findFrames } from './sniff-av.ts'
import { id3End } from './sniff.ts'

export type TaggedFacts = FramesFacts & {
  /** The frames lie from `start` to before `end`. */
  start: number
  /** What an MP3 encoder's own header says; `exact` when it also tells what is padding. */
  declared: { frames: number; samples: number; exact: boolean } | undefined
  removed: string[]
}

/** Tags at the end may follow each other; more rounds than this are no honest file. */
const tailRoundsMax = 8

/**
 * @throws SluiceError `media.corrupt` with the byte where no frame follows, `media.too_large`.
 * @see id3.org ("ID3v1", "Lyrics3 v2.00") and wiki.hydrogenaud.io ("APEv2 specification", "APE Tags
 *   Header"); the Xing header as in LAME's `VbrTag.c`.
 */
export async function readTagged(
  source: Readable,
  options: ReadOptions & { format: 'mp3' | 'aac' },
): Promise<TaggedFacts> {
  const { format } = options
  const removed = new Set<string>()
  const tagEnd = await id3End(source)
  const found = tagEnd < source.bytes ? await findFrames(source, tagEnd) : undefined
  if (found === undefined) throw corruptMedium('sound', { byte: tagEnd })
  const start = found.offset
  if (tagEnd > 0) removed.add('id3')
  if (start > tagEnd) removed.add('junk')
  const end = await tailStart(source, start)
  if (end < source.bytes) removed.add('id3')
  const head = await source.read(start, Math.min(512, end - start))
  const said = format === 'mp3' ? readDeclared(head) : undefined
  // The header's own frame is not among those that it counts.
  const counted = said === undefined ? undefined : said.frames + 1
  const frames = await walkFrames(source, { ...options, from: start, to: end, counted })
  for (const kind of frames.removed) removed.add(kind)
  // Where recordings were joined, the first one's header knows nothing of the others.
  const declared = said === undefined || frames.frames > said.frames + 1 ? undefined : said
  const facts = { ...frames, start, declared }
  const partial = frames.partial || (frames.cut && options.salvage === true)
  if (!frames.cut || partial) return { ...facts, partial, removed: [...removed].toSorted() }
  if (said?.frames !== frames.frames) throw cutSound(frames.end)
  removed.add('cut-frame')
  return { ...facts, removed: [...removed].toSorted() }
}

/** Where the tags at the end begin, or the end of the file. */
export async function tailStart(source: Readable, start: number): Promise<number> {
  let end = source.bytes
  for (let round = 0; round < tailRoundsMax; round++) {
    const tagBytes = await tailTagBytes(source, start, end)
    if (tagBytes === 0) break
    end -= tagBytes
  }
  return end
}

async function tailTagBytes(source: Readable, start: number, end: number): Promise<number> {
  const tail = await source.read(Math.max(start, end - 160), Math.min(160, end - start))
  if (tail.length < 160) return 0
  const at = (fromEnd: number, length: number) =>
    tail.toString('latin1', 160 - fromEnd, 160 - fromEnd + length)
  if (at(128, 3) === 'TAG') return 128
  if (at(9, 9) === 'LYRICS200') return fitting(Number(at(15, 6)) + 15, end - start)
  if (at(32, 8) !== 'APETAGEX') return 0
  const hasHeader = (tail.readUInt32LE(160 - 12) & 0x80000000) !== 0
  return fitting(tail.readUInt32LE(160 - 20) + (hasHeader ? 32 : 0), end - start)
}

function fitting(bytes: number, room: number): number {
  return Number.isSafeInteger(bytes) && bytes > 0 && bytes < room ? bytes : 0
}

/** @see The LAME project's technical FAQ, "Why is a decoded MP3 longer than the original". */
const decoderDelaySamples = 529

/** The header sits in an otherwise silent first frame, behind its side information. */
function readDeclared(frame: Buffer): TaggedFacts['declared'] {
  if (frame.length < 256) return undefined
  const mpeg1 = (frame.readUInt8(1) & 0x18) === 0x18
  const mono = frame.readUInt8(3) >> 6 === 3
  const at = 4 + (mpeg1 ? (mono ? 17 : 32) : mono ? 9 : 17)
  const name = frame.toString('latin1', at, at + 4)
  const hasFrames = (frame.readUInt32BE(at + 4) & 1) === 1
  if ((name !== 'Xing' && name !== 'Info') || !hasFrames) return undefined
  const frames = frame.readUInt32BE(at + 8)
  if (frames === 0) return undefined
  const samples = frames * (mpeg1 ? 1152 : 576)
  // With all four optional fields LAME's part follows; its two 12-bit counts lie 141 bytes in.
  const padding = frame.readUIntBE(at + 141, 3)
  const known = (frame.readUInt32BE(at + 4) & 15) === 15 && padding !== 0
  // A decoder is 529 samples behind: where less than that was added, the last ones never come out.
  const heard = samples - (padding >> 12) - Math.max(padding & 0xfff, decoderDelaySamples)
  const exact = known && heard > 0
  return { frames, samples: exact ? heard : samples, exact }
}
