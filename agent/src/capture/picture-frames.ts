/** What is said over the pipe between this process and a picture decoder: frames of a JSON head and bytes. */
import { SluiceError } from '@sluice/protocol/errors'
import type { GateProfile } from '@sluice/protocol/manifest'
import type { TooMuch, UnsupportedKind } from './damaged-picture.ts'
import type { Effort } from './compression.ts'
import type { PictureFormat } from './sniff.ts'

/** What a decoder is asked; the file follows. */
export type DecoderOrder = {
  format: PictureFormat
  profile: GateProfile
  salvage: boolean
  effort: Effort
  pages: 'all' | 'first'
}

/** What it answers, in this order; a picture's bytes follow its frame. `picture-answer.ts` checks it. */
export type DecoderFrame =
  | { type: 'begun'; pixels: number }
  | { type: 'picture'; partial?: true | undefined; hdr?: 'tone-mapped' | undefined }
  | { type: 'done'; removed: string[]; tools: Record<string, string> }
  | { type: 'failed'; why: 'damaged'; atByte: number }
  | { type: 'failed'; why: 'too-large'; what: TooMuch }
  | { type: 'failed'; why: 'unsupported'; found: UnsupportedKind }

const jsonBytesMax = 16 * 1024
const headBytes = 8

/** Head of a frame: length of the JSON, length of the bytes behind it, both u32 little-endian; the JSON. */
export function frameHead(json: DecoderFrame | DecoderOrder, bytes: number): Buffer {
  const text = Buffer.from(JSON.stringify(json))
  const head = Buffer.alloc(headBytes)
  head.writeUInt32LE(text.length)
  head.writeUInt32LE(bytes, 4)
  return Buffer.concat([head, text])
}

/** Reads frames from a stream of pieces. */
export type FrameReader = {
  /** @returns undefined at the end of the stream, also in the middle of a frame. */
  next(bytesMax: number): Promise<{ json: unknown; bytes: Buffer } | undefined>
}

/** @throws SluiceError `media.decoder_failed` from `next` for a frame that is too long or no JSON. */
export function readFrames(stream: AsyncIterable<Uint8Array>): FrameReader {
  const pieces = stream[Symbol.asyncIterator]()
  let rest: Buffer = Buffer.alloc(0)
  const take = async (length: number): Promise<Buffer | undefined> => {
    const parts: Buffer[] = []
    for (let missing = length; missing > 0;) {
      if (rest.length === 0) {
        const { value, done: ended } = await pieces.next()
        if (ended === true || value === undefined) return undefined
        rest = Buffer.from(value.buffer, value.byteOffset, value.byteLength)
      }
      const part = rest.subarray(0, missing)
      rest = rest.subarray(part.length)
      missing -= part.length
      parts.push(part)
    }
    const [only] = parts
    return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts)
  }
  return {
    async next(bytesMax) {
      const head = await take(headBytes)
      if (head === undefined) return undefined
      const [jsonBytes, bytes] = [head.readUInt32LE(0), head.readUInt32LE(4)]
      if (jsonBytes > jsonBytesMax || bytes > bytesMax) throw nonsense()
      const json = await take(jsonBytes)
      const content = json === undefined ? undefined : await take(bytes)
      return json === undefined || content === undefined
        ? undefined
        : { json: parse(json), bytes: content }
    },
  }
}

function parse(json: Buffer): unknown {
  try {
    return JSON.parse(json.toString())
  } catch {
    // Nothing of the answer is repeated: it comes from a decoder that may have been taken over.
    throw nonsense()
  }
}

export function nonsense(): SluiceError {
  return new SluiceError('media.decoder_failed', 'the picture decoder gave no valid answer', {
    hint: 'The picture may be hostile; look at it on a machine that has nothing to lose.',
  })
}
