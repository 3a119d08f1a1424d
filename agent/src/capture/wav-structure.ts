/** Reads a WAV, BWF or RF64 strictly, and writes one that is format and samples and nothing else. */
import { corruptMedium, unsupportedMedium } from './av-facts.ts'
import type { Readable, ReadOptions } from './av-facts.ts'

/** Samples that lie in a file as they are. */
export type PcmFacts = {
  encoding: 'integer' | 'float' | 'alaw' | 'mulaw'
  bigEndian: boolean
  /** Whether integers of eight bits have a sign, as they do in AIFF; longer ones always have one. */
  signed: boolean
  bitsPerSample: number
  channels: number
  sampleRateHz: number
  dataOffset: number
  dataBytes: number
  /** Whether fewer samples are there than the file declares. */
  partial: boolean
  /** Kinds of further chunks. */
  removed: string[]
}

/** Samples that a decoder has to open; `format` is their description, to be written anew. */
export type CodedWavFacts = Omit<PcmFacts, 'encoding' | 'bigEndian' | 'signed'> & {
  encoding: 'coded'
  format: Buffer
}

const chunksMax = 10_000

const chunkKinds = new Map([
  ['LIST', 'text'],
  ['INFO', 'text'],
  ['bext', 'broadcast'],
  ['iXML', 'broadcast'],
  ['axml', 'broadcast'],
  ['chna', 'broadcast'],
  ['_PMX', 'xmp'],
  ['id3 ', 'id3'],
  ['ID3 ', 'id3'],
  ['cue ', 'cuesheet'],
])

/** Chunks that describe the samples and are written anew, or fill space. */
const silent = new Set(['fact', 'PEAK', 'JUNK', 'junk', 'FLLR', 'PAD ', 'ds64', 'pad '])

/** Codecs of WAV that voice recorders and telephone systems use, and that ffmpeg opens. */
const codedTags = new Set([0x02, 0x11, 0x31, 0x45, 0x55])

/**
 * @throws SluiceError `media.corrupt` with the byte when chunks do not fit the file, or the data end
 *   inside a sample; `media.unsupported` for codecs that are not opened.
 * @see Microsoft, "Multimedia Programming Interface and Data Specifications 1.0",
 *   WAVEFORMATEXTENSIBLE; EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64).
 */
export async function readWav(
  source: Readable,
  options: ReadOptions = {},
): Promise<PcmFacts | CodedWavFacts> {
  if (source.bytes < 12) throw corruptMedium('sound', { byte: source.bytes })
  const head = await source.read(0, 12)
  const long = head.toString('latin1', 0, 4) !== 'RIFF'
  const salvage = options.salvage === true
  const said = head.readUInt32LE(4)
  // A program that writes to a pipe cannot go back to say how much it wrote.
  const streamed = !long && said === 0xffffffff
  const sizes = long ? await readLongSizes(source) : { riff: said, data: undefined }
  const open = streamed || (salvage && 8 + sizes.riff > source.bytes) || (salvage && said === 0)
  const end = open ? source.bytes : 8 + sizes.riff
  // Data that go on behind the declared end are not sound; an end behind the file is a loss.
  if (end > source.bytes) throw corruptMedium('sound', { byte: source.bytes })
  const removed = new Set<string>()
  if (end + (end % 2) < source.bytes) removed.add('trailer')
  let format: Format | undefined
  let data: { offset: number; bytes: number; cut: boolean } | undefined
  let count = 0
  for (let at = 12; at + 8 <= end;) {
    if (++count > chunksMax) throw corruptMedium('sound', { byte: at })
    const header = await source.read(at, 8)
    const name = header.toString('latin1', 0, 4)
    const size = header.readUInt32LE(4)
    const left = end - at - 8
    const declared = name === 'data' && size === 0xffffffff ? (sizes.data ?? left) : size
    const unknown = name === 'data' && open && (declared > left || declared === 0)
    const bytes = unknown ? left : declared
    if (bytes > left) throw corruptMedium('sound', { byte: at })
    if (name === 'fmt ') {
      if (format !== undefined || bytes < 16 || bytes > 4096) {
        throw corruptMedium('sound', { byte: at })
      }
      format = readFormat(await source.read(at + 8, bytes))
    } else if (name === 'data') {
      if (data !== undefined) throw corruptMedium('sound', { byte: at })
      data = { offset: at + 8, bytes, cut: unknown && !streamed }
    } else if (!silent.has(name)) {
      removed.add(chunkKinds.get(name) ?? 'other')
    }
    at += 8 + bytes + (bytes % 2)
  }
  if (format === undefined || data === undefined) throw corruptMedium('sound', { byte: end })
  const { frameBytes, ...facts } = format
  const odd = data.bytes % frameBytes
  if (data.bytes === 0 || (odd !== 0 && !salvage && !streamed && facts.encoding !== 'coded')) {
    throw corruptMedium('sound', { byte: data.offset + data.bytes })
  }
  return {
    ...facts,
    dataOffset: data.offset,
    dataBytes: facts.encoding === 'coded' ? data.bytes : data.bytes - odd,
    partial: data.cut || (odd !== 0 && salvage),
    removed: [...removed].toSorted(),
  }
}

/** The chunk `ds64` comes first and holds what 32 bits cannot. */
async function readLongSizes(source: Readable): Promise<{ riff: number; data: number }> {
  if (source.bytes < 36) throw corruptMedium('sound', { byte: source.bytes })
  const chunk = await source.read(12, 24)
  if (chunk.toString('latin1', 0, 4) !== 'ds64') throw corruptMedium('sound', { byte: 12 })
  return { riff: Number(chunk.readBigUInt64LE(8)), data: Number(chunk.readBigUInt64LE(16)) }
}

type Format = {
  frameBytes: number
  bitsPerSample: number
  channels: number
  sampleRateHz: number
} & (
  | Pick<PcmFacts, 'encoding' | 'bigEndian' | 'signed'>
  | Pick<CodedWavFacts, 'encoding' | 'format'>
)

function readFormat(format: Buffer): Format {
  const tag = format.readUInt16LE(0)
  // The first two bytes of an extensible format's GUID are the tag it stands for.
  const real = tag === 0xfffe && format.length >= 40 ? format.readUInt16LE(24) : tag
  const channels = format.readUInt16LE(2)
  const sampleRateHz = format.readUInt32LE(4)
  const frameBytes = format.readUInt16LE(12)
  const bitsPerSample = format.readUInt16LE(14)
  if (channels === 0 || sampleRateHz === 0 || frameBytes === 0) {
    throw corruptMedium('sound', { byte: 12 })
  }
  const facts = { frameBytes, bitsPerSample, channels, sampleRateHz }
  if (codedTags.has(real)) return { ...facts, encoding: 'coded', format: Buffer.from(format) }
  const encoding = plainEncoding(real, bitsPerSample)
  if (encoding === undefined) {
    throw unsupportedMedium('sound', 'compressed sound of a rare kind in a WAV file')
  }
  if (frameBytes !== (channels * bitsPerSample) / 8) throw corruptMedium('sound', { byte: 12 })
  return { ...facts, encoding, bigEndian: false, signed: false }
}

function plainEncoding(tag: number, bits: number): PcmFacts['encoding'] | undefined {
  if (tag === 1 && [8, 16, 24, 32].includes(bits)) return 'integer'
  if (tag === 3 && [32, 64].includes(bits)) return 'float'
  if (bits !== 8) return undefined
  return tag === 6 ? 'alaw' : tag === 7 ? 'mulaw' : undefined
}

/** What comes before coded samples of a WAV that holds nothing else. */
export function codedWavHead({ format, dataBytes }: CodedWavFacts): Buffer {
  const odd = format.length % 2
  const head = Buffer.alloc(20 + format.length + odd + 8)
  head.write('RIFF', 0, 'latin1')
  head.writeUInt32LE(head.length - 8 + dataBytes + (dataBytes % 2), 4)
  head.write('WAVEfmt ', 8, 'latin1')
  head.writeUInt32LE(format.length, 16)
  format.copy(head, 20)
  head.write('data', 20 + format.length + odd, 'latin1')
  head.writeUInt32LE(dataBytes, 24 + format.length + odd)
  return head
}

/** The 44 bytes before the samples of a WAV that holds nothing else; odd data need a zero behind. */
export function plainWavHead(
  facts: Pick<PcmFacts, 'encoding' | 'channels' | 'sampleRateHz' | 'bitsPerSample' | 'dataBytes'>,
): Buffer {
  const { channels, sampleRateHz, bitsPerSample, dataBytes } = facts
  const frameBytes = (channels * bitsPerSample) / 8
  const head = Buffer.alloc(44)
  head.write('RIFF', 0, 'latin1')
  head.writeUInt32LE(36 + dataBytes + (dataBytes % 2), 4)
  head.write('WAVEfmt ', 8, 'latin1')
  head.writeUInt32LE(16, 16)
  head.writeUInt16LE(facts.encoding === 'integer' ? 1 : 3, 20)
  head.writeUInt16LE(channels, 22)
  head.writeUInt32LE(sampleRateHz, 24)
  head.writeUInt32LE(sampleRateHz * frameBytes, 28)
  head.writeUInt16LE(frameBytes, 32)
  head.writeUInt16LE(bitsPerSample, 34)
  head.write('data', 36, 'latin1')
  head.writeUInt32LE(dataBytes, 40)
  return head
}
