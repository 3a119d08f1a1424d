/** Reads the head of a FLAC, and writes a new one that says nothing but how to decode the sound. */
import { SluiceError } from '@sluice/protocol/errors'
import { corruptMedium } from './av-facts.ts'

export type FlacFacts = {
  sampleRateHz: number
  channels: number
  bitsPerSample: number
  /** 0 when the file does not say. */
  samples: number
}

/** `fLaC`, the header of the block and STREAMINFO's 34 bytes. */
export const flacHeadBytes = 42

/** A cover picture can be large; what lies before the first frame is read, but not kept. */
const metadataBytesMax = 32 * 1024 ** 2
/** There are seven kinds, most of them once. */
const blocksMax = 1000

const blockNames = [
  'streaminfo',
  'padding',
  'application',
  'seektable',
  'text',
  'cuesheet',
  'cover',
]

/**
 * Reads STREAMINFO, which is always first.
 *
 * @param head At least the first {@link flacHeadBytes} bytes.
 * @throws SluiceError `media.corrupt`.
 * @see RFC 9639, section 8.2.
 */
export function readFlacHead(head: Buffer): FlacFacts {
  const good = head.length >= flacHeadBytes && head.toString('latin1', 0, 4) === 'fLaC'
  if (!good || (head.readUInt32BE(4) & 0x7fffffff) !== 34) throw corruptMedium('sound', { byte: 0 })
  const packed = head.readBigUInt64BE(18)
  const facts = {
    sampleRateHz: Number(packed >> 44n),
    channels: Number((packed >> 41n) & 7n) + 1,
    bitsPerSample: Number((packed >> 36n) & 31n) + 1,
    samples: Number(packed & 0xfffffffffn),
  }
  if (facts.sampleRateHz === 0) throw corruptMedium('sound', { byte: 18 })
  return facts
}

/**
 * Names the kinds of blocks before the sound.
 *
 * @param read Reads a range of the FLAC, counted from `fLaC`.
 * @throws SluiceError `media.corrupt` when they do not end.
 */
export async function listFlacBlocks(
  bytes: number,
  read: (offset: number, length: number) => Promise<Buffer>,
): Promise<string[]> {
  const kinds = new Set<string>()
  let count = 0
  let at = 4
  while (at + 4 <= bytes && at < metadataBytesMax) {
    if (++count > blocksMax) break
    const header = (await read(at, 4)).readUInt32BE(0)
    const type = (header >>> 24) & 0x7f
    if (type > 1 && type !== 3) kinds.add(blockNames[type] ?? 'other')
    at += 4 + (header & 0xffffff)
    if (header >>> 31 === 1) return [...kinds].toSorted()
  }
  throw corruptMedium('sound', { byte: Math.min(at, bytes) })
}

/** Takes an encoder's stream apart: its STREAMINFO, and the frames with every other block gone. */
export type FlacSplitter = {
  /** Frames only. */
  frames(encoded: AsyncIterable<Buffer>): AsyncGenerator<Buffer>
  /** A head for those frames, once they have all passed; `samples` 0 when unknown. */
  head(samples: number): Buffer
  facts(): FlacFacts
}

/**
 * @throws SluiceError From `frames`: `media.not_clean` when what was encoded is no FLAC, `media.corrupt` when
 *   it holds no sample.
 */
export function splitFlac(): FlacSplitter {
  let info: Buffer | undefined
  return {
    async *frames(encoded) {
      let pending = Buffer.alloc(0)
      for await (const piece of encoded) {
        if (info !== undefined) {
          yield piece
          continue
        }
        pending = Buffer.concat([pending, piece])
        if (pending.length > metadataBytesMax) throw notClean('blocks without end')
        const at = firstFrame(pending)
        if (at === undefined || pending.length < at + 2) continue
        if ((pending.readUInt16BE(at) & 0xfffe) !== 0xfff8)
          throw notClean('something before its frames')
        info = Buffer.from(pending.subarray(0, flacHeadBytes))
        yield pending.subarray(at)
      }
      if (info !== undefined) return
      // An encoder that got no sample writes nothing, or a head alone: then the source held none.
      const empty = pending.length === 0 || firstFrame(pending) === pending.length
      throw empty ? corruptMedium('sound', { ms: 0 }) : notClean('no sound')
    },
    head(samples) {
      if (info === undefined) throw notClean('no sound')
      const head = Buffer.from(info)
      // The only block, so the last.
      head.writeUInt32BE(0x80000022, 4)
      const packed = head.readBigUInt64BE(18) & ~0xfffffffffn
      head.writeBigUInt64BE(packed | (BigInt(samples) & 0xfffffffffn), 18)
      // The encoder could not go back to write the checksum of all samples: zero means unknown.
      head.fill(0, 26, flacHeadBytes)
      return head
    },
    facts() {
      if (info === undefined) throw notClean('no sound')
      return readFlacHead(info)
    },
  }
}

/** Offset behind the last metadata block, undefined while it is not all there. */
function firstFrame(bytes: Buffer): number | undefined {
  if (bytes.length < flacHeadBytes) return undefined
  readFlacHead(bytes)
  for (let at = 4; at + 4 <= bytes.length;) {
    const header = bytes.readUInt32BE(at)
    at += 4 + (header & 0xffffff)
    if (header >>> 31 === 1) return at <= bytes.length ? at : undefined
  }
  return undefined
}

function notClean(what: string): SluiceError {
  return new SluiceError('media.not_clean', `the normalised sound holds ${what}`, {
    hint: 'Nothing was sealed. This is a fault of Sluice: please report it with the versions in use.',
  })
}
