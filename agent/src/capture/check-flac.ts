/** The second parser of a FLAC: one block that says how to decode it, then frames, each with its checksum, and nothing between. */
import { SluiceError } from '@sluice/protocol/errors'
import { byteCursor } from './byte-cursor.ts'

/** A frame of eight channels of 65,535 samples of 32 bits, uncompressed, and some. */
const frameBytesMax = 4 * 1024 ** 2

/**
 * Frames do not say how long they are: the end of one is where its checksum comes out as zero and
 * the next number follows.
 *
 * @throws SluiceError `media.not_clean`.
 * @see RFC 9639, sections 8 and 9.
 */
export async function checkFlac(
  pieces: AsyncIterable<Buffer>,
): Promise<{ sampleRateHz: number; channels: number; samples: number }> {
  const cursor = byteCursor(pieces, () => notClean('no whole head'))
  const head = await cursor.take(42)
  if (head.toString('latin1', 0, 4) !== 'fLaC') throw notClean('no FLAC')
  if (head.readUInt32BE(4) !== 0x80000022) throw notClean('a further block')
  // No checksum of all samples: it would tell one source from another.
  if (head.subarray(26, 42).some((byte) => byte !== 0)) throw notClean('a checksum of its samples')
  const packed = head.readBigUInt64BE(18)
  const facts = {
    sampleRateHz: Number(packed >> 44n),
    channels: Number((packed >> 41n) & 7n) + 1,
    samples: Number(packed & 0xfffffffffn),
  }
  const frames = new Frames()
  while (!(await cursor.ended())) frames.add(await cursor.takeSome())
  const samples = frames.end()
  if (facts.samples !== 0 && samples !== facts.samples) throw notClean('another number of samples')
  return { ...facts, samples }
}

/** Follows frames through pieces of any size. */
class Frames {
  /** From the beginning of the frame that is not over yet. */
  #pending: Buffer = Buffer.alloc(0)
  /** How much of it was searched for the next frame. */
  #looked = 0
  #frames = 0
  #samples = 0

  add(piece: Buffer): void {
    this.#pending = Buffer.concat([this.#pending, piece])
    // A head takes at most this much: closer to the end, more has to come first.
    this.#follow(this.#pending.length - frameHeadBytesMax)
    if (this.#pending.length > frameBytesMax) throw notClean('something between its frames')
  }

  /** @returns How many samples the frames have. */
  end(): number {
    this.#follow(this.#pending.length)
    // The checksum of a frame with its checksum is zero.
    if (this.#frames === 0 || frameChecksum(this.#pending) !== 0) {
      throw notClean('something behind its frames')
    }
    return this.#samples
  }

  #follow(until: number): void {
    let from = 0
    if (this.#frames === 0 && until > 0 && !this.#isNext(0)) {
      throw notClean('something before its frames')
    }
    for (let at = Math.max(this.#looked, 1); at < until; at++) {
      // Every frame begins with this byte; few others that do are the head of the next one.
      at = this.#pending.indexOf(0xff, at)
      if (at < 0 || at >= until) break
      if (!this.#mayFollow(at) || frameChecksum(this.#pending.subarray(from, at)) !== 0) continue
      if (this.#isNext(at)) from = at
    }
    this.#pending = this.#pending.subarray(from)
    this.#looked = Math.max(until - from, 0)
  }

  #mayFollow(at: number): boolean {
    const head = readFrameHead(this.#pending, at)
    return head?.number === (head?.byFrames === true ? this.#frames : this.#samples)
  }

  #isNext(at: number): boolean {
    const head = readFrameHead(this.#pending, at)
    if (head === undefined) return false
    if (head.number !== (head.byFrames ? this.#frames : this.#samples)) return false
    this.#frames += 1
    this.#samples += head.samples
    return true
  }
}

const frameHeadBytesMax = 16

function readFrameHead(
  bytes: Buffer,
  at: number,
): { byFrames: boolean; number: number; samples: number } | undefined {
  if (at + 6 > bytes.length || (bytes.readUInt16BE(at) & 0xfffe) !== 0xfff8) return undefined
  const third = bytes.readUInt8(at + 2)
  const blockCode = third >> 4
  const rateCode = third & 15
  if (blockCode === 0 || rateCode === 15 || (bytes.readUInt8(at + 3) & 1) !== 0) return undefined
  let next = at + 4
  const first = bytes.readUInt8(next++)
  // As in UTF-8: leading ones count the bytes.
  const ones = Math.clz32(~(first << 24))
  let number = first & (0x7f >> ones)
  for (let i = 1; i < ones; i++) number = number * 64 + ((bytes[next++] ?? 0) & 63)
  const sizeBytes = blockCode === 6 ? 1 : blockCode === 7 ? 2 : 0
  const rateBytes = rateCode === 12 ? 1 : rateCode >= 13 ? 2 : 0
  if (next + sizeBytes + rateBytes >= bytes.length) return undefined
  const samples =
    sizeBytes > 0
      ? bytes.readUIntBE(next, sizeBytes) + 1
      : blockCode === 1
        ? 192
        : blockCode < 6
          ? 576 << (blockCode - 2)
          : 256 << (blockCode - 8)
  next += sizeBytes + rateBytes
  let sum = 0
  for (let i = at; i < next; i++) sum = headTable[sum ^ (bytes[i] ?? 0)] ?? 0
  if (sum !== bytes[next]) return undefined
  return { byFrames: (bytes.readUInt8(at + 1) & 1) === 0, number, samples }
}

/** CRC-8, polynomial 0x07. */
const headTable = Uint8Array.from({ length: 256 }, (_, byte) => {
  let value = byte
  for (let bit = 0; bit < 8; bit++) value = value & 0x80 ? (value << 1) ^ 0x07 : value << 1
  return value
})

/** CRC-16, polynomial 0x8005: what a byte becomes when `n` bytes follow it. */
const frameTables = Array.from({ length: 8 }, (_, n) =>
  Uint16Array.from({ length: 256 }, (__, byte) => {
    let value = byte << 8
    for (let bit = 0; bit < 8 * (n + 1); bit++) {
      value = value & 0x8000 ? ((value << 1) ^ 0x8005) & 0xffff : value << 1
    }
    return value
  }),
)

const [after0, after1, after2, after3, after4, after5, after6, after7] = frameTables

/** Zero for a frame that is whole, its own checksum included. */
export function frameChecksum(frame: Buffer): number {
  let sum = 0
  let at = 0
  // Eight bytes at once: one by one, a long sound takes longer to check than to encode.
  for (; at + 8 <= frame.length; at += 8) {
    sum =
      (after7?.[(sum >> 8) ^ (frame[at] ?? 0)] ?? 0) ^
      (after6?.[(sum & 255) ^ (frame[at + 1] ?? 0)] ?? 0) ^
      (after5?.[frame[at + 2] ?? 0] ?? 0) ^
      (after4?.[frame[at + 3] ?? 0] ?? 0) ^
      (after3?.[frame[at + 4] ?? 0] ?? 0) ^
      (after2?.[frame[at + 5] ?? 0] ?? 0) ^
      (after1?.[frame[at + 6] ?? 0] ?? 0) ^
      (after0?.[frame[at + 7] ?? 0] ?? 0)
  }
  for (; at < frame.length; at++) {
    sum = ((sum << 8) & 0xffff) ^ (after0?.[(sum >> 8) ^ (frame[at] ?? 0)] ?? 0)
  }
  return sum
}

function notClean(what: string): SluiceError {
  return new SluiceError('media.not_clean', `the normalised sound holds ${what}`, {
    hint: 'Nothing was sealed. This is a fault of Sluice: please report it with the versions in use.',
  })
}
