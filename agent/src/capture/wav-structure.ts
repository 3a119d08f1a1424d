/** Reads a WAV strictly, and writes one that is format and samples and nothing else. */
import { SluiceError } from '@sluice/protocol/errors'

export type WavFacts = {
  encoding: 'integer' | 'float'
  bitsPerSample: number
  channels: number
  sampleRateHz: number
  dataOffset: number
  dataBytes: number
  /** Kinds of further chunks. */
  removed: string[]
}

type Readable = { bytes: number; read: (offset: number, length: number) => Promise<Buffer> }

const chunksMax = 10_000

const chunkKinds = new Map([
  ['LIST', 'text'],
  ['INFO', 'text'],
  ['bext', 'broadcast'],
  ['iXML', 'broadcast'],
  ['axml', 'broadcast'],
  ['_PMX', 'xmp'],
  ['id3 ', 'id3'],
  ['ID3 ', 'id3'],
  ['cue ', 'cuesheet'],
])

/** Chunks that describe the samples and are written anew, or fill space. */
const silent = new Set(['fact', 'PEAK', 'JUNK', 'junk', 'FLLR', 'PAD '])

/**
 * @throws SluiceError `media.corrupt` when chunks do not fit the file, or the data end inside a
 *   sample; `media.unsupported` for anything but PCM and IEEE float.
 * @see Microsoft, "Multimedia Programming Interface and Data Specifications 1.0", and
 *   WAVEFORMATEXTENSIBLE.
 */
export async function readWav(source: Readable): Promise<WavFacts> {
  if (source.bytes < 12) throw corrupt()
  const head = await source.read(0, 12)
  const end = 8 + head.readUInt32LE(4)
  // Data that go on behind the declared end are not sound; an end behind the file is a loss.
  if (end > source.bytes) throw corrupt()
  const removed = new Set<string>()
  if (end + (end % 2) < source.bytes) removed.add('trailer')
  let format: ReturnType<typeof readFormat> | undefined
  let data: { offset: number; bytes: number } | undefined
  let count = 0
  for (let at = 12; at + 8 <= end;) {
    if (++count > chunksMax) throw corrupt()
    const header = await source.read(at, 8)
    const name = header.toString('latin1', 0, 4)
    const bytes = header.readUInt32LE(4)
    if (at + 8 + bytes > end) throw corrupt()
    if (name === 'fmt ') {
      if (format !== undefined || bytes < 16 || bytes > 4096) throw corrupt()
      format = readFormat(await source.read(at + 8, bytes))
    } else if (name === 'data') {
      if (data !== undefined) throw corrupt()
      data = { offset: at + 8, bytes }
    } else if (!silent.has(name)) {
      removed.add(chunkKinds.get(name) ?? 'other')
    }
    at += 8 + bytes + (bytes % 2)
  }
  if (format === undefined || data === undefined) throw corrupt()
  const { frameBytes, ...facts } = format
  if (data.bytes === 0 || data.bytes % frameBytes !== 0) throw corrupt()
  return {
    ...facts,
    dataOffset: data.offset,
    dataBytes: data.bytes,
    removed: [...removed].toSorted(),
  }
}

function readFormat(format: Buffer) {
  const tag = format.readUInt16LE(0)
  // The first two bytes of an extensible format's GUID are the tag it stands for.
  const real = tag === 0xfffe && format.length >= 40 ? format.readUInt16LE(24) : tag
  const channels = format.readUInt16LE(2)
  const bitsPerSample = format.readUInt16LE(14)
  const frameBytes = format.readUInt16LE(12)
  const integer = real === 1 && [8, 16, 24, 32].includes(bitsPerSample)
  const float = real === 3 && [32, 64].includes(bitsPerSample)
  if (!integer && !float) {
    throw new SluiceError('media.unsupported', 'the content is compressed sound in a WAV file', {
      hint: 'Export it as PCM, or as MP3 or FLAC.',
    })
  }
  const sampleRateHz = format.readUInt32LE(4)
  if (channels === 0 || sampleRateHz === 0) throw corrupt()
  if (frameBytes !== (channels * bitsPerSample) / 8) throw corrupt()
  const encoding = integer ? ('integer' as const) : ('float' as const)
  return { encoding, bitsPerSample, channels, sampleRateHz, frameBytes }
}

/** The 44 bytes before the samples of a WAV that holds nothing else; odd data need a zero behind. */
export function plainWavHead(facts: Omit<WavFacts, 'dataOffset' | 'removed'>): Buffer {
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

function corrupt(): SluiceError {
  return new SluiceError('media.corrupt', 'the sound is damaged or cut short', {
    hint: 'Copy it from the recorder again; damaged recordings are not sealed.',
  })
}
