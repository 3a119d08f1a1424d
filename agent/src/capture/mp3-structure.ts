/** Finds where the frames of an MP3 begin and end, between the tags that others put around them. */
import { SluiceError } from '@sluice/protocol/errors'
import { id3Bytes } from './sniff.ts'

export type Mp3Facts = {
  /** The frames lie from `start` to before `end`. */
  start: number
  end: number
  /** What the encoder's own header says; `exact` when it also tells what is padding. */
  declared: { samples: number; exact: boolean } | undefined
  removed: string[]
}

type Readable = { bytes: number; read: (offset: number, length: number) => Promise<Buffer> }

/** Tags at the end may follow each other; more rounds than this are no honest file. */
const tailRoundsMax = 8

/**
 * @throws SluiceError `media.corrupt` when there is nothing behind the tag.
 * @see id3.org ("ID3v1", "Lyrics3 v2.00") and wiki.hydrogenaud.io ("APEv2 specification", "APE Tags
 *   Header"); the Xing header as in LAME's `VbrTag.c`.
 */
export async function readMp3(source: Readable): Promise<Mp3Facts> {
  const removed = new Set<string>()
  const start = id3Bytes(await source.read(0, Math.min(10, source.bytes)))
  if (start >= source.bytes) {
    throw new SluiceError('media.corrupt', 'the sound is damaged or cut short', {
      hint: 'Copy it from the recorder again; damaged recordings are not sealed.',
    })
  }
  if (start > 0) removed.add('id3')
  let end = source.bytes
  for (let round = 0; round < tailRoundsMax; round++) {
    const tagBytes = await tailTagBytes(source, start, end)
    if (tagBytes === 0) break
    removed.add('id3')
    end -= tagBytes
  }
  const frame = await source.read(start, Math.min(512, end - start))
  return { start, end, declared: readDeclared(frame), removed: [...removed] }
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

/** The header sits in an otherwise silent first frame, behind its side information. */
function readDeclared(frame: Buffer): Mp3Facts['declared'] {
  if (frame.length < 256) return undefined
  const mpeg1 = (frame.readUInt8(1) & 0x18) === 0x18
  const mono = frame.readUInt8(3) >> 6 === 3
  const at = 4 + (mpeg1 ? (mono ? 17 : 32) : mono ? 9 : 17)
  const name = frame.toString('latin1', at, at + 4)
  const hasFrames = (frame.readUInt32BE(at + 4) & 1) === 1
  if ((name !== 'Xing' && name !== 'Info') || !hasFrames) return undefined
  const samples = frame.readUInt32BE(at + 8) * (mpeg1 ? 1152 : 576)
  // With all four optional fields LAME's part follows; its two 12-bit counts lie 141 bytes in.
  const padding = frame.readUIntBE(at + 141, 3)
  const known = (frame.readUInt32BE(at + 4) & 15) === 15 && padding !== 0
  const heard = samples - (padding >> 12) - (padding & 0xfff)
  return known && heard > 0 ? { samples: heard, exact: true } : { samples, exact: false }
}
