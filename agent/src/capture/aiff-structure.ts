/** Reads an AIFF or AIFF-C strictly: the format of its samples, and where they lie. */
import { corruptMedium, unsupportedMedium } from './av-facts.ts'
import type { Readable, ReadOptions } from './av-facts.ts'
import { unusedBitsOf } from './pcm-samples.ts'
import type { PcmFacts } from './wav-structure.ts'

const chunksMax = 10_000

const chunkKinds = new Map([
  ['NAME', 'text'],
  ['AUTH', 'text'],
  ['(c) ', 'text'],
  ['ANNO', 'text'],
  ['COMT', 'text'],
  ['ID3 ', 'id3'],
  ['id3 ', 'id3'],
  ['MARK', 'cuesheet'],
])

/** Compression types that are none: big-endian integers, little-endian ones, floats, and G.711. */
const encodings = new Map<string, { encoding: PcmFacts['encoding']; bigEndian: boolean }>([
  ['NONE', { encoding: 'integer', bigEndian: true }],
  ['twos', { encoding: 'integer', bigEndian: true }],
  ['in24', { encoding: 'integer', bigEndian: true }],
  ['in32', { encoding: 'integer', bigEndian: true }],
  ['sowt', { encoding: 'integer', bigEndian: false }],
  ['fl32', { encoding: 'float', bigEndian: true }],
  ['FL32', { encoding: 'float', bigEndian: true }],
  ['fl64', { encoding: 'float', bigEndian: true }],
  ['FL64', { encoding: 'float', bigEndian: true }],
  ['alaw', { encoding: 'alaw', bigEndian: true }],
  ['ALAW', { encoding: 'alaw', bigEndian: true }],
  ['ulaw', { encoding: 'mulaw', bigEndian: true }],
  ['ULAW', { encoding: 'mulaw', bigEndian: true }],
])

/**
 * Finds the format and the samples. What the chunk of the samples says of itself decides how much there
 * is: the size of the whole is often wrong, and says nothing about them. Behind them nothing is needed.
 *
 * @throws SluiceError `media.corrupt` with the byte, `media.unsupported` for compressed samples.
 * @see Apple, "Audio Interchange File Format AIFF-C", draft 8/26/91.
 */
export async function readAiff(source: Readable, options: ReadOptions = {}): Promise<PcmFacts> {
  if (source.bytes < 12) throw corruptMedium('sound', { byte: source.bytes })
  const head = await source.read(0, 12)
  const compressed = head.toString('latin1', 8, 12) === 'AIFC'
  const formEnd = 8 + head.readUInt32BE(4)
  const removed = new Set<string>()
  let format: ReturnType<typeof readComm> | undefined
  let data: { offset: number; bytes: number; cut: boolean; padded: boolean } | undefined
  let count = 0
  let at = 12
  while (at + 8 <= source.bytes) {
    const whole = format !== undefined && data !== undefined
    if (whole && at >= formEnd) break
    if (++count > chunksMax) throw corruptMedium('sound', { byte: at })
    const header = await source.read(at, 8)
    const name = header.toString('latin1', 0, 4)
    const bytes = header.readUInt32BE(4)
    const within = Math.min(bytes, source.bytes - at - 8)
    if (name === 'COMM') {
      if (format !== undefined || within < bytes || bytes < 18 || bytes > 4096) {
        throw corruptMedium('sound', { byte: at })
      }
      format = readComm(await source.read(at + 8, bytes), compressed)
    } else if (name === 'SSND') {
      if (data !== undefined || within < 8) throw corruptMedium('sound', { byte: at })
      if (within < bytes && options.salvage !== true) {
        throw corruptMedium('sound', { byte: source.bytes })
      }
      const fields = await source.read(at + 8, 8)
      const offset = fields.readUInt32BE(0)
      if (8 + offset > within) throw corruptMedium('sound', { byte: at })
      const padded = fields.readUInt32BE(4) !== 0
      const sound = { offset: at + 16 + offset, bytes: within - 8 - offset }
      data = { ...sound, cut: within < bytes, padded }
    } else if (within < bytes) {
      if (whole) break
      throw corruptMedium('sound', { byte: at })
    } else if (name !== 'FVER') {
      removed.add(chunkKinds.get(name) ?? 'other')
    }
    at += 8 + bytes + (bytes % 2)
  }
  if (at < source.bytes) removed.add('trailer')
  if (format === undefined || data === undefined) {
    throw corruptMedium('sound', { byte: Math.min(at, source.bytes) })
  }
  const { samples, ...facts } = format
  const frameBytes = (facts.channels * facts.bitsPerSample) / 8
  // Programs that cut or join forget the count; blocks may be filled up behind the last sample.
  const room = data.padded ? Math.min(data.bytes, samples * frameBytes) : data.bytes
  const odd = room % frameBytes
  if (room - odd === 0) throw corruptMedium('sound', { byte: data.offset })
  if (odd > 0) removed.add('cut-frame')
  return {
    ...facts,
    dataOffset: data.offset,
    dataBytes: room - odd,
    partial: data.cut,
    removed: [...removed].toSorted(),
  }
}

function readComm(common: Buffer, compressed: boolean) {
  const channels = common.readUInt16BE(0)
  const samples = common.readUInt32BE(2)
  const name = compressed && common.length >= 22 ? common.toString('latin1', 18, 22) : 'NONE'
  const found = encodings.get(name)
  if (found === undefined) {
    const printed = name.replaceAll(/[^ -~]/g, '?')
    throw unsupportedMedium('sound', `an AIFF file of compressed sound (${printed})`)
  }
  const { encoding, bigEndian } = found
  // Fewer significant bits than a whole number of bytes are padded with zeros.
  const said = common.readUInt16BE(6)
  const bitsPerSample =
    encoding === 'alaw' || encoding === 'mulaw' ? 8 : Math.max(8, Math.ceil(said / 8) * 8)
  const sampleRateHz = readExtended(common.subarray(8, 18))
  const fits = encoding === 'float' ? [32, 64] : [8, 16, 24, 32]
  if (channels === 0 || !fits.includes(bitsPerSample)) throw corruptMedium('sound')
  if (!Number.isInteger(sampleRateHz) || sampleRateHz <= 0) throw corruptMedium('sound')
  const unusedBits = encoding === 'integer' ? unusedBitsOf(bitsPerSample, said) : 0
  const facts = { encoding, bigEndian, bitsPerSample, unusedBits, channels, sampleRateHz, samples }
  // Unlike in WAV, eight bits have a sign.
  return { ...facts, signed: true }
}

/** IEEE 754 extended precision: sign and 15 bits of exponent, then 64 bits of mantissa. */
function readExtended(bytes: Buffer): number {
  const exponent = (bytes.readUInt16BE(0) & 0x7fff) - 16_383 - 63
  const value = Number(bytes.readBigUInt64BE(2)) * 2 ** exponent
  return Number.isFinite(value) ? Math.round(value) : 0
}
