/** The second parser of a WavPack: blocks of samples, in each only what decodes them. */
import { SluiceError } from '@sluice/protocol/errors'
import { byteCursor } from './byte-cursor.ts'

/** A block of ours holds half a second; the format allows no more than this. */
const blockBytesMax = 1024 ** 2 * 2

/**
 * Parts of a block that decode samples: decorrelation terms, weights and samples; entropy; floats and
 * long integers; the two bitstreams; channels; a rate that has no number.
 *
 * @see WavPack 4 & 5 Binary File / Block Format, "Metadata Sub-Blocks".
 */
const allowedParts = new Set([0x02, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0c, 0x0d, 0x27])

const rates = [
  6000, 8000, 9600, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200,
  96_000, 192_000,
]

/**
 * @throws SluiceError `media.not_clean`.
 */
export async function checkWavpack(
  pieces: AsyncIterable<Buffer>,
): Promise<{ sampleRateHz: number; channels: number; samples: number }> {
  const cursor = byteCursor(pieces, () => notClean('an unfinished block'))
  const facts = { sampleRateHz: 0, channels: 0, samples: 0 }
  let declared: number | undefined
  while (!(await cursor.ended())) {
    const head = Buffer.from(await cursor.take(32))
    const bytes = head.readUInt32LE(4) - 24
    if (head.toString('latin1', 0, 4) !== 'wvpk' || bytes < 0 || bytes > blockBytesMax) {
      throw notClean('something that is no block')
    }
    const flags = head.readUInt32LE(24)
    const first = (flags & 0x800) !== 0
    if (head.readUInt16LE(10) !== 0 || head.readUInt32LE(16) !== facts.samples) {
      throw notClean('a block out of order')
    }
    declared ??= head.readUInt32LE(12)
    if (facts.samples > 0 && head.readUInt32LE(12) !== 0) throw notClean('a second length')
    const rate = checkParts(Buffer.from(await cursor.take(bytes)))
    if (facts.samples === 0) {
      if (first) facts.channels = 0
      facts.channels += flags & 4 ? 1 : 2
      facts.sampleRateHz = rates[(flags >>> 23) & 15] ?? rate ?? 0
    }
    // Blocks of further channels lie beside each other, before the samples go on.
    if ((flags & 0x1000) !== 0) facts.samples += head.readUInt32LE(20)
  }
  if (facts.samples === 0 || facts.sampleRateHz === 0) throw notClean('no sound')
  if (declared !== 0 && declared !== facts.samples) throw notClean('another number of samples')
  return facts
}

/** @returns The rate, if the block tells it by number. */
function checkParts(block: Buffer): number | undefined {
  let rate: number | undefined
  for (let at = 0; at < block.length;) {
    const id = block.readUInt8(at)
    const long = (id & 0x80) !== 0
    if (at + (long ? 4 : 2) > block.length) throw notClean('an unfinished part')
    const words = long ? block.readUIntLE(at + 1, 3) : block.readUInt8(at + 1)
    const start = at + (long ? 4 : 2)
    if (!allowedParts.has(id & 0x3f)) throw notClean(`a part of type ${id & 0x3f}`)
    if ((id & 0x3f) === 0x27 && words === 2) rate = block.readUIntLE(start, 3)
    at = start + words * 2
    if (at > block.length) throw notClean('a part that does not fit')
  }
  return rate
}

function notClean(what: string): SluiceError {
  return new SluiceError('media.not_clean', `the normalised sound holds ${what}`, {
    hint: 'Nothing was sealed. This is a fault of Sluice: please report it with the versions in use.',
  })
}
