/** Decides what of a sound file is handed to ffmpeg, and as what: only its samples or frames, never its tags. */
import assert from 'node:assert/strict'
import { readAiff } from './aiff-structure.ts'
import { unsupportedMedium } from './av-facts.ts'
import type { ReadOptions } from './av-facts.ts'
import { words } from './film-recipe.ts'
import { flacHeadBytes, listFlacBlocks, readFlacHead } from './flac-structure.ts'
import { cutSound, walkFrames } from './frames-structure.ts'
import type { FramesRun } from './frames-structure.ts'
import type { Source } from './inspect.ts'
import { readTagged, tailStart } from './mp3-structure.ts'
import { mendedPages, readOgg } from './ogg-structure.ts'
import { usedBits } from './pcm-samples.ts'
import { id3End } from './sniff.ts'
import type { SourceFormat } from './sniff.ts'
import { codedWavHead, readWav } from './wav-structure.ts'
import type { CodedWavFacts, PcmFacts } from './wav-structure.ts'

export type SoundInput = {
  /** Demuxer and codecs, named; ffmpeg never guesses. */
  args: readonly string[]
  bytes: () => AsyncIterable<Buffer>
  /** As the source declares them; `samples` 0 when unknown. */
  facts: { sampleRateHz: number; channels: number; samples: number }
  /** Bits that the samples need; 32 also stands for floats. */
  depth: 16 | 24 | 32
  /** Whether that number of samples must come out exactly, or may be less by padding only. */
  check: 'exactly' | 'padded' | 'none'
  filters: readonly string[]
  /** Whether a decoder's errors say nothing, as its frames were looked at before. */
  passesErrors?: boolean
  /** Whether sampling rate or channels change within it. */
  changes?: boolean
  /** Samples as they lie in the file, where they need no decoder. */
  pcm?: PcmFacts
  partial: boolean
  removed: string[]
}

/**
 * @throws SluiceError `media.corrupt` with the byte, `media.unsupported`, `media.too_large`.
 */
export async function readSoundInput(source: Source, options: ReadOptions): Promise<SoundInput> {
  const read = readers[source.format]
  assert.ok(read, 'not a sound of its own')
  // A tag before frames is theirs; before anything else it is passed over.
  const start = untagged.has(source.format) ? await id3End(source) : 0
  if (start === 0) return read(source, options)
  const input = await read(behind(source, start), options)
  return { ...input, removed: [...new Set([...input.removed, 'id3'])].toSorted() }
}

const untagged = new Set<SourceFormat>(['wav', 'aiff', 'ogg', 'amr'])

/** What lies behind a tag, as if it was a file of its own. */
function behind(source: Source, start: number): Source {
  const bytes = source.bytes - start
  return {
    ...source,
    bytes,
    read: (offset, length) => source.read(start + offset, length),
    stream: (from = 0, to = bytes) => source.stream(start + from, start + to),
  }
}

type ReadInput = (source: Source, options: ReadOptions) => Promise<SoundInput>

const readers: Partial<Record<SourceFormat, ReadInput>> = {
  wav: wavInput,
  aiff: async (source, options) => pcmInput(source, await readAiff(source, options)),
  flac: flacInput,
  mp3: (source, options) => framesInput(source, 'mp3', options),
  aac: (source, options) => framesInput(source, 'aac', options),
  amr: amrInput,
  ogg: oggInput,
}

async function wavInput(source: Source, options: ReadOptions): Promise<SoundInput> {
  const wav = await readWav(source, options)
  return wav.encoding === 'coded' ? codedInput(source, wav) : pcmInput(source, wav)
}

async function oggInput(source: Source, options: ReadOptions): Promise<SoundInput> {
  const ogg = await readOgg(source, options)
  return {
    args: demuxer('ogg', 'vorbis,libvorbis,opus,libopus,flac,speex,libspeex'),
    bytes: () =>
      ogg.needs.serials || ogg.needs.packets ? mendedPages(source, ogg) : inRuns(source, ogg.runs),
    facts: ogg,
    depth: 16,
    check: 'none',
    filters: [],
    changes: ogg.changes,
    partial: ogg.partial,
    removed: ogg.removed,
  }
}

function demuxer(format: string, codecs: string): string[] {
  return [...words('-protocol_whitelist pipe -f'), format, '-codec_whitelist', codecs]
}

/** ffmpeg's names of samples that lie bare in a file. */
export function pcmName(pcm: PcmFacts): string {
  const { encoding, bitsPerSample, bigEndian, signed } = pcm
  if (encoding === 'alaw' || encoding === 'mulaw') return encoding
  if (encoding === 'integer' && bitsPerSample === 8) return signed ? 's8' : 'u8'
  return `${encoding === 'float' ? 'f' : 's'}${bitsPerSample}${bigEndian ? 'be' : 'le'}`
}

function pcmInput(source: Source, pcm: PcmFacts): SoundInput {
  const { channels, sampleRateHz, bitsPerSample, encoding } = pcm
  const usedBitsEach = bitsPerSample - pcm.unusedBits
  const samples = pcm.dataBytes / ((channels * bitsPerSample) / 8)
  const name = pcmName(pcm)
  return {
    args: [
      ...words('-protocol_whitelist pipe -f'),
      name,
      '-ar',
      String(sampleRateHz),
      '-ac',
      String(channels),
    ],
    bytes: () => usedBits(source.stream(pcm.dataOffset, pcm.dataOffset + pcm.dataBytes), pcm),
    facts: { sampleRateHz, channels, samples },
    depth: encoding === 'float' || usedBitsEach > 24 ? 32 : usedBitsEach > 16 ? 24 : 16,
    check: 'exactly',
    filters: [],
    pcm,
    partial: pcm.partial,
    removed: pcm.removed,
  }
}

/** ffmpeg's decoders of what `wav-structure.ts` lets through. */
const codedWavDecoders =
  'adpcm_ms,adpcm_ima_wav,adpcm_yamaha,truespeech,gsm_ms,libgsm_ms,g723_1,g726,mp2,mp2float,mp3,mp3float,g722'

function codedInput(source: Source, wav: CodedWavFacts): SoundInput {
  return {
    args: demuxer('wav', codedWavDecoders),
    async *bytes() {
      yield codedWavHead(wav)
      yield* source.stream(wav.dataOffset, wav.dataOffset + wav.dataBytes)
      if (wav.dataBytes % 2 === 1) yield Buffer.alloc(1)
    },
    facts: { sampleRateHz: wav.sampleRateHz, channels: wav.channels, samples: 0 },
    depth: 16,
    check: 'none',
    filters: [],
    partial: wav.partial,
    removed: wav.removed,
  }
}

async function flacInput(source: Source): Promise<SoundInput> {
  const start = await id3End(source)
  const end = await tailStart(source, start)
  const facts = readFlacHead(await source.read(start, Math.min(flacHeadBytes, end - start)))
  const blocks = await listFlacBlocks(end - start, (at, length) => source.read(start + at, length))
  if (facts.bitsPerSample > 24) {
    throw unsupportedMedium(
      'sound',
      'FLAC of more than 24 bits',
      'Export it as WAV of 32 bits (profile "faithful" keeps them all), or as FLAC of 24 bits.',
    )
  }
  const tagged = start > 0 || end < source.bytes
  return {
    args: demuxer('flac', 'flac'),
    bytes: () => source.stream(start, end),
    facts,
    depth: facts.bitsPerSample > 16 ? 24 : 16,
    check: 'exactly',
    filters: [],
    partial: false,
    removed: [...new Set(tagged ? ['id3', ...blocks] : blocks)].toSorted(),
  }
}

async function framesInput(
  source: Source,
  format: 'mp3' | 'aac',
  options: ReadOptions,
): Promise<SoundInput> {
  const found = await readTagged(source, { ...options, format })
  const { declared, partial } = found
  const exact = declared?.exact === true
  return {
    args: format === 'mp3' ? demuxer('mp3', 'mp3,mp3float') : demuxer('aac', 'aac'),
    bytes: () => inRuns(source, found.runs),
    facts: {
      sampleRateHz: found.sampleRateHz,
      channels: found.channels,
      samples: declared?.samples ?? found.samples,
    },
    depth: 16,
    check: exact && !found.cut ? 'exactly' : 'padded',
    // Without seeking, ffmpeg leaves the padding at the end to us.
    filters: exact ? [`atrim=end_sample=${declared.samples}`] : [],
    changes: found.changes,
    partial,
    removed: found.removed,
  }
}

async function* inRuns(source: Source, runs: readonly FramesRun[]): AsyncGenerator<Buffer> {
  for (const { start, end } of runs) yield* source.stream(start, end)
}

async function amrInput(source: Source, options: ReadOptions): Promise<SoundInput> {
  const wide = (await source.read(0, Math.min(9, source.bytes))).toString('latin1') === '#!AMR-WB\n'
  const from = wide ? 9 : 6
  const walk = { ...options, format: wide ? 'awb' : 'amr', from, to: source.bytes } as const
  const found = await walkFrames(source, walk)
  if (found.cut && options.salvage !== true) throw cutSound(found.end)
  return {
    args: demuxer('amr', 'amrnb,amrwb,libopencore_amrnb,libopencore_amrwb'),
    bytes: () => inRuns(source, [{ start: 0, end: from }, ...found.runs]),
    facts: found,
    depth: 16,
    check: 'padded',
    // ffmpeg has no decoder for pauses: they become silence that lasts as long.
    filters: found.pauses
      ? [
          'aresample=async=1:first_pts=0:min_hard_comp=0.01',
          `apad=whole_len=${found.samples}`,
          `atrim=end_sample=${found.samples}`,
        ]
      : [],
    passesErrors: found.pauses,
    partial: found.partial || found.cut,
    removed: found.removed,
  }
}
