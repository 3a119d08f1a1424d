/** Turns films and sounds of unknown origin into ones of ours: H.264 and AAC in MP4, sound in FLAC, nothing else kept. */
import assert from 'node:assert/strict'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { discardOutput, runInSandbox } from '../sandbox.ts'
import type { SandboxExit } from '../sandbox.ts'
import { cleanFilm } from './clean-film.ts'
import { ffmpegMissing } from './find-ffmpeg.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import { flacHeadBytes, listFlacBlocks, readFlacHead, splitFlac } from './flac-structure.ts'
import type { FlacFacts } from './flac-structure.ts'
import type { Source } from './inspect.ts'
import { readMovie } from './movie-structure.ts'
import type { MovieFacts } from './movie-structure.ts'
import { readMp3 } from './mp3-structure.ts'
import type { NormalisedMedium } from './normalised.ts'
import { nothingCarriedOver, readProgress, runFfmpeg, words } from './run-ffmpeg.ts'
import type { AvOptions, FfmpegRun } from './run-ffmpeg.ts'
import { hold, withHead } from './scratch.ts'
import type { HeldBytes } from './scratch.ts'
import { id3Bytes } from './sniff.ts'
import { plainWavHead, readWav } from './wav-structure.ts'
import type { WavFacts } from './wav-structure.ts'

/**
 * Normalises a film; a film with sound gives two media, the film and its sound as FLAC.
 * Timestamps stay as they are (no frame is doubled or dropped), rotation and pixel shape are applied,
 * PQ and HLG are mapped to BT.709 where ffmpeg can.
 *
 * @throws SluiceError `media.corrupt`, `media.unsupported`, `media.too_large`, `media.timeout`,
 *   `media.decoder_missing`, `media.decoder_failed`, `media.not_clean`.
 */
export async function normaliseFilm(
  source: Source,
  options: AvOptions,
): Promise<NormalisedMedium[]> {
  const { ffmpeg } = options
  const facts = await readMovie(source)
  if (ffmpeg === undefined || !ffmpeg.films) throw ffmpegMissing('films')
  const film = await encodeFilm({ ...options, ffmpeg, source, facts })
  if (!facts.hasSound) return [film]
  try {
    return [film, await extractSound({ ...options, ffmpeg, source, facts })]
  } catch (error) {
    await film.content[Symbol.asyncDispose]()
    throw error
  }
}

/**
 * Normalises a sound to FLAC when that loses nothing, a WAV of 32 bits or more, or one on a host
 * without ffmpeg, to a plain WAV. MP3 becomes FLAC of 16 bits.
 *
 * @throws SluiceError As {@link normaliseFilm}.
 */
export async function normaliseSound(
  source: Source,
  options: AvOptions,
): Promise<NormalisedMedium> {
  if (source.format === 'wav') return normaliseWav(source, options)
  if (source.format === 'flac') return normaliseFlac(source, options)
  assert.equal(source.format, 'mp3')
  return normaliseMp3(source, options)
}

type Encoding = AvOptions & { ffmpeg: Ffmpeg; source: Source }

/** Only what cameras and editors really put into MP4 and MOV. */
const filmDecoders = [
  ...words('h264 hevc mpeg4 mjpeg prores vp9 av1 libdav1d libaom-av1'),
  ...words('mpeg2video h263 dvvideo rawvideo png qtrle dnxhd'),
  ...words('aac alac mp3 mp3float ac3 eac3 opus libopus flac'),
  ...words('pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_f32le pcm_u8'),
  ...words('pcm_mulaw pcm_alaw'),
]

async function encodeFilm(encoding: Encoding & { facts: MovieFacts }): Promise<NormalisedMedium> {
  const { source, facts, ffmpeg } = encoding
  const { exit, value: content } = await runFilm(encoding, {
    output: [
      ...words('-map 0:V:0 -map 0:a:0?'),
      ...nothingCarriedOver,
      // Without B-frames the first frame is shown at zero, so that picture and sound stay together.
      ...words('-c:v libx264 -preset veryfast -crf 20 -bf 0 -threads 2'),
      '-vf',
      pictureFilter(facts, ffmpeg),
      ...words('-fps_mode passthrough'),
      // `delay_moov` lets the index tell the sound's lead-in, so that no frame's time is moved.
      // Type 6 is SEI: x264's own signature, and captions.
      ...words('-bsf:v filter_units=remove_types=6'),
      ...words('-c:a aac -b:a 192k -write_tmcd 0 -empty_hdlr_name 1'),
      ...words('-movflags +frag_keyframe+delay_moov+default_base_moof'),
      ...words('-f mp4'),
    ],
    outputBytesMax: limits.videoFileBytesMax,
    keep: (output) => hold(cleanFilm(output), encoding),
  })
  const progress = readProgress(exit)
  const description = await describeEncoded(content)
  try {
    requireDuration(progress.durationMs, facts.durationMs)
    if (progress.frames === 0) throw corruptFilm()
  } catch (error) {
    await content[Symbol.asyncDispose]()
    throw error
  }
  return {
    kind: 'video',
    extension: 'mp4',
    codec: 'h264',
    ...description,
    durationMs: progress.durationMs,
    frames: progress.frames,
    source: { format: source.format, bytes: source.bytes },
    removed: facts.removed,
    tools: { ffmpeg: ffmpeg.version },
    content,
  }
}

/** What the encoder really wrote; never what the source's index promised. */
async function describeEncoded(
  content: HeldBytes,
): Promise<Pick<NormalisedMedium, 'widthPixels' | 'heightPixels'>> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of content.read()) {
    pieces.push(piece)
    bytes += piece.length
    if (bytes >= 64 * 1024) break
  }
  const head = Buffer.concat(pieces)
  const at = head.indexOf('avc1', head.indexOf('stsd'), 'latin1')
  if (at < 0 || at + 32 > head.length) throw corruptFilm()
  return { widthPixels: head.readUInt16BE(at + 28), heightPixels: head.readUInt16BE(at + 30) }
}

async function extractSound(encoding: Encoding & { facts: MovieFacts }): Promise<NormalisedMedium> {
  const { facts, source } = encoding
  const flac = splitFlac()
  const { exit, value: frames } = await runFilm(encoding, {
    output: [
      ...words('-map 0:a:0'),
      ...nothingCarriedOver,
      '-vn',
      ...words('-c:a flac -sample_fmt s16 -f flac'),
    ],
    outputBytesMax: soundBytesMax({ sampleRateHz: limits.audioSampleRateHzMax, channels: 8 }),
    keep: (output) => hold(flac.frames(output), encoding),
  })
  const { samples: _, ...sound } = await finishFlac({ exit, frames, flac, encoding })
  return { ...sound, soundOfFilm: true, removed: facts.removed, source: sourceOf(source) }
}

function pictureFilter(facts: MovieFacts, ffmpeg: Ffmpeg): string {
  const toneMapping = [
    'zscale=t=linear:npl=100',
    'format=gbrpf32le',
    'zscale=p=bt709',
    'tonemap=tonemap=hable:desat=0',
    'zscale=t=bt709:m=bt709:r=tv',
  ]
  const scaled = [
    // Square pixels, and even sides as 4:2:0 needs them; rotation is applied before by ffmpeg itself.
    "scale=w='max(2,trunc(iw*sar/2)*2)':h='max(2,trunc(ih/2)*2)':out_range=tv",
    'setsar=1',
    'format=yuv420p',
  ]
  const filters =
    facts.highDynamicRange && ffmpeg.toneMapping ? [...toneMapping, ...scaled] : scaled
  return filters.join()
}

/** A film needs a seekable input, as its index may lie at the end. */
async function runFilm(
  encoding: Encoding & { facts: MovieFacts },
  run: Pick<FfmpegRun, 'output' | 'outputBytesMax' | 'keep'>,
): Promise<{ exit: SandboxExit; value: HeldBytes }> {
  const { facts, source } = encoding
  await requireReadable(encoding)
  const input = (at: (name: string) => string) => [
    ...words('-protocol_whitelist file -f mov -codec_whitelist'),
    filmDecoders.join(),
    '-max_pixels',
    String(limits.videoFramePixelsMax),
    ...words('-threads 2'),
    '-i',
    `file:${at('medium')}`,
  ]
  const result = await runFfmpeg(encoding, {
    ...run,
    input,
    inputs: { medium: source.path },
    durationMs: facts.durationMs === 0 ? limits.videoDurationMsMax : facts.durationMs,
    // Beyond full HD the work per second grows with the pixels.
    effort: Math.max(1, (facts.widthPixels * facts.heightPixels) / 2_100_000),
    what: 'film',
  })
  // The decoder opened the path and not our descriptor: make sure that it was the same file.
  try {
    await source.assertUnchanged()
  } catch (error) {
    await result.value[Symbol.asyncDispose]()
    throw error
  }
  return result
}

async function finishFlac(options: {
  exit: SandboxExit
  frames: HeldBytes
  flac: ReturnType<typeof splitFlac>
  encoding: Encoding
}): Promise<Omit<NormalisedMedium, 'removed' | 'source'> & { samples: number }> {
  const { exit, frames, flac, encoding } = options
  const facts = flac.facts()
  const { micros, durationMs } = readProgress(exit)
  // Exact: a microsecond is a fraction of a sample at every rate that is allowed.
  const samples = Math.round((micros * facts.sampleRateHz) / 1_000_000)
  try {
    requireSoundLimits({ ...facts, samples })
    if (samples === 0) throw corruptSound()
  } catch (error) {
    await frames[Symbol.asyncDispose]()
    throw error
  }
  return {
    kind: 'audio',
    extension: 'flac',
    codec: 'flac',
    durationMs,
    sampleRateHz: facts.sampleRateHz,
    channels: facts.channels,
    tools: { ffmpeg: encoding.ffmpeg.version },
    content: withHead(flac.head(samples), frames),
    samples,
  }
}

async function normaliseWav(source: Source, options: AvOptions): Promise<NormalisedMedium> {
  const wav = await readWav(source)
  const frameBytes = (wav.channels * wav.bitsPerSample) / 8
  const samples = wav.dataBytes / frameBytes
  requireSoundLimits({ ...wav, samples })
  const { ffmpeg } = options
  const lossless = wav.encoding === 'integer' && wav.bitsPerSample <= 24
  if (ffmpeg === undefined || !lossless) return rewriteWav(source, wav, options)
  const bare = wav.bitsPerSample === 8 ? 'u8' : `s${wav.bitsPerSample}le`
  const wide = wav.bitsPerSample === 24
  return encodeSound(
    { ...options, ffmpeg, source },
    {
      input: [
        ...words('-protocol_whitelist pipe -f'),
        bare,
        '-ar',
        String(wav.sampleRateHz),
        '-ac',
        String(wav.channels),
      ],
      stdin: source.stream(wav.dataOffset, wav.dataOffset + wav.dataBytes),
      facts: { ...wav, samples },
      wide,
      exactly: true,
      removed: wav.removed,
    },
  )
}

async function rewriteWav(
  source: Source,
  wav: WavFacts,
  options: AvOptions,
): Promise<NormalisedMedium> {
  async function* plain(): AsyncGenerator<Buffer> {
    yield plainWavHead(wav)
    yield* source.stream(wav.dataOffset, wav.dataOffset + wav.dataBytes)
    if (wav.dataBytes % 2 === 1) yield Buffer.alloc(1)
  }
  const sampleCode = wav.encoding === 'float' ? 'f' : wav.bitsPerSample === 8 ? 'u' : 's'
  const suffix = wav.bitsPerSample === 8 ? '' : 'le'
  const bytesPerSecond = (wav.sampleRateHz * wav.channels * wav.bitsPerSample) / 8
  return {
    kind: 'audio',
    extension: 'wav',
    codec: `pcm_${sampleCode}${wav.bitsPerSample}${suffix}`,
    durationMs: Math.round((wav.dataBytes / bytesPerSecond) * 1000),
    sampleRateHz: wav.sampleRateHz,
    channels: wav.channels,
    source: sourceOf(source),
    removed: wav.removed,
    tools: {},
    content: await hold(plain(), options),
  }
}

async function normaliseFlac(source: Source, options: AvOptions): Promise<NormalisedMedium> {
  const { ffmpeg } = options
  const start = id3Bytes(await source.read(0, Math.min(10, source.bytes)))
  const left = source.bytes - start
  const facts = readFlacHead(await source.read(start, Math.min(flacHeadBytes, left)))
  requireSoundLimits(facts)
  const blocks = await listFlacBlocks(left, (at, length) => source.read(start + at, length))
  if (facts.bitsPerSample > 24) {
    throw new SluiceError('media.unsupported', 'the content is FLAC of more than 24 bits', {
      hint: 'Export it with 24 bits or fewer.',
    })
  }
  if (ffmpeg === undefined) throw ffmpegMissing('FLAC')
  return encodeSound(
    { ...options, ffmpeg, source },
    {
      input: ['-protocol_whitelist', 'pipe', '-f', 'flac', '-codec_whitelist', 'flac'],
      stdin: source.stream(start),
      facts,
      wide: facts.bitsPerSample > 16,
      exactly: true,
      removed: start > 0 ? ['id3', ...blocks] : blocks,
    },
  )
}

async function normaliseMp3(source: Source, options: AvOptions): Promise<NormalisedMedium> {
  const { ffmpeg } = options
  const mp3 = await readMp3(source)
  if (ffmpeg === undefined) throw ffmpegMissing('MP3')
  const declared = mp3.declared
  return encodeSound(
    { ...options, ffmpeg, source },
    {
      input: ['-protocol_whitelist', 'pipe', '-f', 'mp3', '-codec_whitelist', 'mp3,mp3float'],
      stdin: source.stream(mp3.start, mp3.end),
      facts: {
        // The most MP3 can have; what came out is checked again.
        sampleRateHz: 48_000,
        channels: 2,
        bitsPerSample: 16,
        samples: declared?.samples ?? 0,
      },
      wide: false,
      exactly: declared?.exact === true,
      // Without seeking, ffmpeg leaves the padding at the end to us.
      filter: declared?.exact === true ? `atrim=end_sample=${declared.samples}` : undefined,
      removed: mp3.removed,
    },
  )
}

/** An MP3's own count includes what the encoder put before and behind: at most about four frames. */
const paddingSamplesMax = 5 * 1152

/**
 * Root opens every file, but a decoder run by root has none of root's privileges. Elsewhere what the
 * agent can read, its decoders can.
 */
async function requireReadable({ source, isolation }: Encoding): Promise<void> {
  if (process.geteuid?.() !== 0) return
  const { exit } = await runInSandbox(
    {
      isolation,
      program: '/usr/bin/head',
      args: (at) => ['-c', '1', at('medium')],
      inputs: { medium: source.path },
      bounds: { wallMs: 10_000, memoryBytes: 256 * 1024 ** 2, outputBytesMax: 1 },
    },
    discardOutput,
  )
  if (exit.outcome === 'ok') return
  throw new SluiceError(
    'media.not_a_file',
    'the source cannot be taken: decoders may not read it',
    {
      hint: 'Run the agent as a user that may read it, or let root own it: decoders lack the privileges of root.',
    },
  )
}

type SoundRun = {
  input: readonly string[]
  stdin: AsyncIterable<Buffer>
  /** As the source declares them; `samples` 0 when unknown. */
  facts: FlacFacts
  /** 24 bits instead of 16. */
  wide: boolean
  /** Whether the declared number of samples must be met exactly. */
  exactly: boolean
  filter?: string | undefined
  removed: string[]
}

async function encodeSound(encoding: Encoding, run: SoundRun): Promise<NormalisedMedium> {
  const { facts } = run
  const flac = splitFlac()
  const declaredMs = (facts.samples / facts.sampleRateHz) * 1000
  const { exit, value: frames } = await runFfmpeg(encoding, {
    input: () => [...run.input, '-i', 'pipe:0'],
    output: [
      ...words('-map 0:a:0'),
      ...nothingCarriedOver,
      ...words('-vn -c:a flac'),
      ...(run.filter === undefined ? [] : ['-af', run.filter]),
      ...(run.wide ? ['-sample_fmt', 's32', '-bits_per_raw_sample', '24'] : ['-sample_fmt', 's16']),
      ...words('-f flac'),
    ],
    stdin: run.stdin,
    durationMs: declaredMs === 0 ? limits.audioDurationMsMax : declaredMs,
    outputBytesMax: soundBytesMax(facts),
    keep: (output) => hold(flac.frames(output), encoding),
    what: 'sound',
  })
  const { samples, ...sound } = await finishFlac({ exit, frames, flac, encoding })
  const missing = facts.samples === 0 ? 0 : facts.samples - samples
  if (run.exactly ? missing !== 0 : missing > paddingSamplesMax) {
    await sound.content[Symbol.asyncDispose]()
    throw corruptSound()
  }
  return { ...sound, source: sourceOf(encoding.source), removed: run.removed }
}

function sourceOf(source: Source): NormalisedMedium['source'] {
  return { format: source.format, bytes: source.bytes }
}

/** FLAC of noise is hardly larger than its samples: four bytes each is more than enough. */
function soundBytesMax(facts: { sampleRateHz: number; channels: number }): number {
  const seconds = limits.audioDurationMsMax / 1000 + 1
  return facts.sampleRateHz * facts.channels * 4 * seconds
}

function requireSoundLimits(facts: Pick<FlacFacts, 'sampleRateHz' | 'channels' | 'samples'>): void {
  const durationMs = (facts.samples / facts.sampleRateHz) * 1000
  const fits =
    facts.sampleRateHz <= limits.audioSampleRateHzMax &&
    facts.channels <= limits.audioChannelsMax &&
    durationMs <= limits.audioDurationMsMax
  if (fits) return
  const minutes = limits.audioDurationMsMax / 60_000
  throw new SluiceError('media.too_large', 'the sound is too long or has too many channels', {
    hint: `The limits are ${minutes} minutes, ${limits.audioChannelsMax} channels and ${limits.audioSampleRateHzMax} Hz.`,
  })
}

/** A film that ends more than two seconds early was cut inside; encoders add or lose some frames. */
const durationSlackMs = 2000

function requireDuration(durationMs: number, declaredMs: number): void {
  if (durationMs > limits.videoDurationMsMax) {
    throw new SluiceError('media.too_large', 'the film is too long', {
      hint: `The limit is ${limits.videoDurationMsMax / 60_000} minutes; split it first.`,
    })
  }
  if (durationMs + durationSlackMs < declaredMs * 0.98) throw corruptFilm()
}

function corruptFilm(): SluiceError {
  return new SluiceError('media.corrupt', 'the film is damaged or cut short', {
    hint: 'Copy it from the camera again; damaged films are not sealed.',
  })
}

function corruptSound(): SluiceError {
  return new SluiceError('media.corrupt', 'the sound is damaged or cut short', {
    hint: 'Copy it from the recorder again; damaged recordings are not sealed.',
  })
}
