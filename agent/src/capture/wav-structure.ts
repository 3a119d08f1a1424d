/** Reads a WAV, BWF or RF64 strictly, and writes one that is format and samples and nothing else. */
import { corruptMedium, unsupportedMedium } from './av-facts.ts'
import type { Readable, ReadOptions } from './av-facts.ts'
import { unusedBitsOf } from './pcm-samples.ts'

/** Samples that lie in a file as they are. */
export type PcmFacts = {
  encoding: 'integer' | 'float' | 'alaw' | 'mulaw'
  bigEndian: boolean
  /** Whether integers of eight bits have a sign, as they do in AIFF; longer ones always have one. */
  signed: boolean
  bitsPerSample: number
  /** How many of them, the lowest ones, are said to be none of the sample. */
  unusedBits: number
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
export type CodedWavFacts = Omit<PcmFacts, 'encoding' | 'bigEndian' | 'signed' | 'unusedBits'> & {
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
const codedTags = new Set([
  ...[0x02, 0x11, 0x20, 0x22, 0x31, 0x32, 0x42, 0x45, 0x50, 0x55, 0x64, 0x28f],
])

/** Names of others, for whoever sent them. */
const foreignTags = new Map([
  [0x0a, 'Windows Media Voice'],
  [0xff, 'AAC'],
  [0x130, 'ACELP'],
  [0x160, 'Windows Media Audio'],
  [0x161, 'Windows Media Audio'],
  [0x162, 'Windows Media Audio'],
  [0x163, 'Windows Media Audio'],
  [0x270, 'ATRAC3'],
  [0x1600, 'AAC'],
  [0x1602, 'AAC'],
  [0x2000, 'AC-3'],
  [0x2001, 'DTS'],
])

/**
 * Finds the format and the samples. What the data chunk says of itself decides how much there is: the
 * size of the whole is often wrong, and says nothing about the samples. Behind them nothing is needed.
 *
 * @throws SluiceError `media.corrupt` with the byte when chunks do not fit the file; `media.unsupported`
 *   for codecs that are not opened.
 * @see Microsoft, "Multimedia Programming Interface and Data Specifications 1.0" (also RIFX),
 *   WAVEFORMATEXTENSIBLE; EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64).
 */
export async function readWav(
  source: Readable,
  options: ReadOptions = {},
): Promise<PcmFacts | CodedWavFacts> {
  if (source.bytes < 12) throw corruptMedium('sound', { byte: source.bytes })
  const head = await source.read(0, 12)
  const magic = head.toString('latin1', 0, 4)
  const bigEndian = magic === 'RIFX'
  const read32 = (bytes: Buffer, at: number) =>
    bigEndian ? bytes.readUInt32BE(at) : bytes.readUInt32LE(at)
  const long = magic === 'RF64' || magic === 'BW64'
  const sizes = long ? await readLongSizes(source) : { riff: read32(head, 4), data: 0 }
  const riffEnd = 8 + sizes.riff
  const removed = new Set<string>()
  let format: Format | undefined
  let data: { offset: number; bytes: number; cut: boolean } | undefined
  let count = 0
  let at = 12
  while (at + 8 <= source.bytes) {
    const whole = format !== undefined && data !== undefined
    if (whole && at >= riffEnd) break
    if (++count > chunksMax) throw corruptMedium('sound', { byte: at })
    const header = await source.read(at, 8)
    const name = header.toString('latin1', 0, 4)
    const left = source.bytes - at - 8
    const size = read32(header, 4)
    let bytes = size
    if (name === 'fmt ') {
      if (format !== undefined || bytes < 16 || bytes > Math.min(4096, left)) {
        throw corruptMedium('sound', { byte: at })
      }
      const plain = await source.read(at + 8, bytes)
      format = readFormat(bigEndian ? withSwappedFields(plain) : plain)
    } else if (name === 'data') {
      if (data !== undefined) throw corruptMedium('sound', { byte: at })
      const told = long && size === 0xffffffff ? sizes.data : size
      const open = isOpen(told, { at, riffEnd, left })
      if (!open && told > left && options.salvage !== true) {
        throw corruptMedium('sound', { byte: source.bytes })
      }
      bytes = open ? left : Math.min(told, left)
      data = { offset: at + 8, bytes, cut: !open && told > left }
    } else if (bytes > left) {
      if (whole) break
      throw corruptMedium('sound', { byte: at })
    } else if (!silent.has(name)) {
      removed.add(chunkKinds.get(name) ?? 'other')
    }
    at += 8 + bytes + (await paddingBytes(source, at + 8 + bytes, bytes))
  }
  if (at < source.bytes) removed.add('trailer')
  if (format === undefined || data === undefined) {
    throw corruptMedium('sound', { byte: Math.min(at, source.bytes) })
  }
  const { frameBytes, ...facts } = format
  const odd = facts.encoding === 'coded' ? 0 : data.bytes % frameBytes
  if (data.bytes - odd === 0) throw corruptMedium('sound', { byte: data.offset + data.bytes })
  if (odd > 0) removed.add('cut-frame')
  const found = {
    dataOffset: data.offset,
    dataBytes: data.bytes - odd,
    partial: data.cut,
    removed: [...removed].toSorted(),
  }
  if (facts.encoding === 'coded') return { ...facts, ...found }
  return { ...facts, ...found, bigEndian: bigEndian && facts.bitsPerSample > 8 }
}

/**
 * What programs put in place of a size that they do not know yet: a pipe cannot be gone back in, and a
 * recorder without power never came to it. 0x7ffff000 is of sox and eSpeak, 0x80000000 of arecord.
 */
const openSizes = new Set([0x7fffffff, 0x7ffff000, 0x80000000])

/** Whether the samples go on to the end of the file, as nobody came to say how many they are. */
function isOpen(told: number, file: { at: number; riffEnd: number; left: number }): boolean {
  const { at, riffEnd, left } = file
  if (told === 0xffffffff) return true
  // Nothing, while the whole is said to be larger, is nothing indeed.
  if (told === 0) return left > 0 && riffEnd <= at + 8
  return told > left && openSizes.has(told) && riffEnd >= told && riffEnd <= told + at + 4096
}

/**
 * Chunks begin at even places. Some programs forget that: then the next one's name, of four letters
 * and digits, lies where the padding should be.
 */
async function paddingBytes(source: Readable, end: number, bytes: number): Promise<number> {
  if (bytes % 2 === 0) return 0
  if (end + 5 > source.bytes) return Math.min(1, Math.max(0, source.bytes - end))
  const next = (await source.read(end, 5)).toString('latin1')
  const isName = (text: string) => /^[ -~]{4}$/.test(text)
  return isName(next.slice(0, 4)) && !isName(next.slice(1)) ? 0 : 1
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
  | Pick<PcmFacts, 'encoding' | 'bigEndian' | 'signed' | 'unusedBits'>
  | Pick<CodedWavFacts, 'encoding' | 'format'>
)

/** The format of a RIFX as a RIFF has it: fields of two bytes, but for two of four. */
function withSwappedFields(format: Buffer): Buffer {
  const swapped = Buffer.from(format.subarray(0, format.length & ~1)).swap16()
  for (const at of [4, 8, 20]) {
    if (at + 4 <= format.length) swapped.writeUInt32LE(format.readUInt32BE(at), at)
  }
  return swapped
}

function readFormat(format: Buffer): Format {
  const tag = format.readUInt16LE(0)
  // The first two bytes of an extensible format's GUID are the tag it stands for.
  const real = tag === 0xfffe && format.length >= 40 ? format.readUInt16LE(24) : tag
  const channels = format.readUInt16LE(2)
  const sampleRateHz = format.readUInt32LE(4)
  const bytesPerSecond = format.readUInt32LE(8)
  const frameBytes = format.readUInt16LE(12)
  const saidBits = format.readUInt16LE(14)
  if (channels === 0 || sampleRateHz === 0) throw corruptMedium('sound', { byte: 12 })
  if (codedTags.has(real)) {
    if (frameBytes === 0) throw corruptMedium('sound', { byte: 12 })
    const facts = { frameBytes, bitsPerSample: saidBits, channels, sampleRateHz }
    return { ...facts, encoding: 'coded', format: Buffer.from(format) }
  }
  // Samples of fewer bits lie at the upper end of whole bytes, and zeros below.
  const bitsPerSample = Math.ceil(saidBits / 8) * 8
  const encoding = plainEncoding(real, bitsPerSample)
  if (encoding === undefined) {
    const name = foreignTags.get(real) ?? `a rare codec (0x${real.toString(16)})`
    throw unsupportedMedium('sound', `a WAV file of ${name}`)
  }
  const realBytes = (channels * bitsPerSample) / 8
  // One of the two fields that follow from the others is sometimes wrong.
  if (frameBytes !== realBytes && bytesPerSecond !== realBytes * sampleRateHz) {
    throw corruptMedium('sound', { byte: 12 })
  }
  const facts = { frameBytes: realBytes, bitsPerSample, channels, sampleRateHz }
  const extensible = tag === 0xfffe && format.length >= 40
  const used = extensible && saidBits === bitsPerSample ? format.readUInt16LE(18) : saidBits
  const unusedBits = encoding === 'integer' ? unusedBitsOf(bitsPerSample, used) : 0
  return { ...facts, unusedBits, encoding, bigEndian: false, signed: false }
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

const plainTags = { integer: 1, float: 3, alaw: 6, mulaw: 7 }

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
  head.writeUInt16LE(plainTags[facts.encoding], 20)
  head.writeUInt16LE(channels, 22)
  head.writeUInt32LE(sampleRateHz, 24)
  head.writeUInt32LE(sampleRateHz * frameBytes, 28)
  head.writeUInt16LE(frameBytes, 32)
  head.writeUInt16LE(bitsPerSample, 34)
  head.write('data', 36, 'latin1')
  head.writeUInt32LE(dataBytes, 40)
  return head
}
