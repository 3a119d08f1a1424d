/** Makes a sound of ours: of a container's, of a file of its own, or of samples on a host without ffmpeg. */
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { SandboxExit } from '../sandbox.ts'
import { corruptMedium, requireLimits } from './av-facts.ts'
import { checkFilm } from './check-film.ts'
import { checkFlac } from './check-flac.ts'
import { checkWavpack } from './check-wavpack.ts'
import { cleanFilm } from './clean-film.ts'
import { requireDecoderEnd } from './decoder-end.ts'
import { inStepWithPicture, planSound, words } from './film-recipe.ts'
import type { SoundRecipe } from './film-recipe.ts'
import { findBreak, likelyMs, runFilm, sourceOf } from './film-run.ts'
import type { Encoding, FilmEncoding } from './film-run.ts'
import { ffmpegMissing } from './find-ffmpeg.ts'
import { splitFlac } from './flac-structure.ts'
import type { Source } from './inspect.ts'
import type { NormalisedMedium } from './normalised.ts'
import { profiles } from './profiles.ts'
import { readProgress, runFfmpeg, startFfmpeg } from './run-ffmpeg.ts'
import type { AvOptions, FfmpegRun } from './run-ffmpeg.ts'
import { hold, withHead } from './scratch.ts'
import type { HeldBytes } from './scratch.ts'
import { pcmName, readSoundInput } from './sound-input.ts'
import type { SoundInput } from './sound-input.ts'
import { plainWavHead } from './wav-structure.ts'
import type { PcmFacts } from './wav-structure.ts'
import { splitWavpack } from './wavpack-head.ts'

/**
 * Makes a sound of a container's, by itself.
 *
 * @throws SluiceError As `normaliseFilm`.
 */
export async function extractSound(encoding: FilmEncoding): Promise<NormalisedMedium> {
  const { facts, source, profile = 'analysis', speech = false } = encoding
  const recipe = planSound({
    profile: profiles[profile].sound,
    // Coded sound has no bits of its own; what is decoded of it may be kept finer.
    depth: profile === 'faithful' ? 24 : 16,
    filters: facts.picture === undefined ? [] : [inStepWithPicture],
    speech,
    soundApart: encoding.sound !== undefined,
  })
  const sound = keepSound(recipe, encoding)
  const { exit, value } = await runFilm(encoding, {
    output: [
      ...recipe.args,
      // Time begins with the first of the streams that are read: the picture has to be among them.
      ...(facts.picture === undefined ? [] : words('-map 0:V:0 -c copy -f null -')),
    ],
    outputBytesMax: soundBytesMax({ sampleRateHz: limits.audioSampleRateHzMax, channels: 8 }),
    keep: sound.keep,
  })
  const { samples: _, ...medium } = await sound.finish({ exit, held: value })
  return { ...medium, removed: facts.removed, source: sourceOf(source) }
}

/**
 * Makes a sound of one that is a file of its own.
 *
 * @throws SluiceError As `normaliseFilm`; `media.decoder_missing` without ffmpeg for all but plain samples.
 */
export async function normaliseBare(source: Source, options: AvOptions): Promise<NormalisedMedium> {
  const input = await readSoundInput(source, options)
  const { facts } = input
  const durationMs = (facts.samples / facts.sampleRateHz) * 1000
  requireLimits({ durationMs, picture: undefined, sound: facts, removed: [] })
  const { ffmpeg, salvage = false, profile = 'analysis', speech = false } = options
  if (ffmpeg === undefined) {
    const { pcm } = input
    // Samples of WAV are little-endian, and those of eight bits have no sign.
    const alike = pcm !== undefined && !pcm.bigEndian && (!pcm.signed || pcm.bitsPerSample > 8)
    if (!alike) throw ffmpegMissing('this kind of sound')
    return rewriteWav(source, { ...input, pcm }, options)
  }
  const encoding = { ...options, ffmpeg, source }
  const recipe = planSound({
    profile: profiles[profile].sound,
    depth: input.depth,
    filters: input.filters,
    speech,
  })
  const sound = keepSound(recipe, encoding)
  const run: FfmpegRun = {
    input: () => [...input.args, '-i', 'pipe:0'],
    output: recipe.args,
    stdin: input.bytes(),
    durationMs: durationMs === 0 ? likelyMs(source) : durationMs,
    outputBytesMax: soundBytesMax(facts),
    lenient: salvage || input.passesErrors === true,
    what: 'sound',
  }
  let result: { exit: SandboxExit; value: HeldBytes }
  try {
    result = await (input.changes
      ? runEvenly(encoding, { facts, run: { ...run, keep: sound.keep } })
      : runFfmpeg(encoding, { ...run, keep: sound.keep }))
  } catch (error) {
    if (!isSluiceError(error) || error.code !== 'media.corrupt') throw error
    const again = { ...run, stdin: input.bytes() }
    throw corruptMedium('sound', { ms: (await findBreak(encoding, again)).ms })
  }
  const { samples, ...medium } = await sound.finish({ exit: result.exit, held: result.value })
  try {
    if (!salvage && !speech) requireSamples(input, samples)
  } catch (error) {
    await medium.content[Symbol.asyncDispose]()
    throw error
  }
  return { ...medium, source: sourceOf(source), removed: input.removed }
}

/**
 * Decodes to even samples first: where sampling rate or channels change, ffmpeg throws away what its
 * encoder has not yet a whole block of. Bare samples have no blocks.
 */
async function runEvenly(
  encoding: Encoding,
  { facts, run }: { facts: SoundInput['facts']; run: Parameters<typeof runFfmpeg>[1] },
): Promise<{ exit: SandboxExit; value: HeldBytes }> {
  const form = ['-ar', String(facts.sampleRateHz), '-ac', String(facts.channels)]
  const bare: FfmpegRun = {
    ...run,
    output: [...words('-map 0:a:0 -vn -c:a pcm_s32le'), ...form, ...words('-f s32le pipe:1')],
    outputBytesMax: soundBytesMax(facts),
  }
  const { exit, value } = await startFfmpeg(encoding, bare, (output) => {
    const input = () => [...words('-protocol_whitelist pipe -f s32le'), ...form, '-i', 'pipe:0']
    return runFfmpeg(encoding, { ...run, input, stdin: output })
  })
  try {
    requireDecoderEnd(exit, 'sound', 'media.corrupt')
    return value
  } catch (error) {
    await value.value[Symbol.asyncDispose]()
    throw error
  }
}

/** An MP3's own count includes what the encoder put before and behind: at most about four frames. */
const paddingSamplesMax = 5 * 1152

function requireSamples(input: SoundInput, samples: number): void {
  const { facts, check } = input
  if (check === 'none' || facts.samples === 0 || samples === 0) return
  const missing = facts.samples - samples
  if (check === 'exactly' ? missing === 0 : missing <= paddingSamplesMax) return
  throw corruptMedium('sound', { ms: (samples / facts.sampleRateHz) * 1000 })
}

/** `samples` is 0 where they are not counted. */
type FinishedSound = Omit<NormalisedMedium, 'removed' | 'source'> & { samples: number }

/** Keeps what an encoder writes of a sound, and checks it with a parser that took no part in writing it. */
function keepSound(
  recipe: SoundRecipe,
  encoding: Encoding,
): {
  keep: (output: AsyncIterable<Buffer>) => Promise<HeldBytes>
  finish: (ended: { exit: SandboxExit; held: HeldBytes }) => Promise<FinishedSound>
} {
  const flac = splitFlac()
  const wavpack = splitWavpack()
  const keep = (output: AsyncIterable<Buffer>) => {
    if (recipe.codec === 'flac') return hold(flac.frames(output), encoding)
    if (recipe.codec === 'wavpack') return hold(wavpack.rest(output), encoding)
    return hold(recipe.codec === 'aac' ? cleanFilm(output) : output, encoding)
  }
  const finish = async ({ exit, held }: { exit: SandboxExit; held: HeldBytes }) => {
    try {
      const { content, samples, sampleRateHz, channels } = await completeSound(recipe, {
        held,
        flac,
        wavpack,
      })
      const durationMs =
        samples === 0
          ? readProgress(exit).durationMs
          : // A few samples are a sound too.
            Math.max(1, Math.round((samples / sampleRateHz) * 1000))
      if (durationMs === 0) throw corruptMedium('sound', { ms: 0 })
      const sound = { sampleRateHz, channels }
      requireLimits({ durationMs, picture: undefined, sound, removed: [] })
      return {
        kind: 'audio' as const,
        extension: recipe.extension,
        codec: recipe.codec,
        durationMs,
        ...sound,
        samples,
        tools: { ffmpeg: encoding.ffmpeg.version },
        content,
      }
    } catch (error) {
      await held[Symbol.asyncDispose]()
      throw error
    }
  }
  return { keep, finish }
}

/** Checks what was written, and writes the head that its encoder could not go back for. */
async function completeSound(
  recipe: SoundRecipe,
  written: {
    held: HeldBytes
    flac: ReturnType<typeof splitFlac>
    wavpack: ReturnType<typeof splitWavpack>
  },
): Promise<{ content: HeldBytes; samples: number; sampleRateHz: number; channels: number }> {
  const { held, flac, wavpack } = written
  if (recipe.codec === 'aac') {
    return { ...(await checkFilm(held.read())), samples: 0, content: held }
  }
  if (recipe.codec === 'wavpack') {
    const checked = await checkWavpack(withHead(wavpack.head(0), held).read())
    return { ...checked, content: withHead(wavpack.head(checked.samples), held) }
  }
  const checked = await checkFlac(withHead(flac.head(0), held).read())
  return { ...checked, content: withHead(flac.head(checked.samples), held) }
}

/** On a host without ffmpeg, samples travel as they are: in a WAV that holds nothing else. */
async function rewriteWav(
  source: Source,
  input: SoundInput & { pcm: PcmFacts },
  options: AvOptions,
): Promise<NormalisedMedium> {
  const { pcm, removed } = input
  async function* plain(): AsyncGenerator<Buffer> {
    yield plainWavHead(pcm)
    yield* input.bytes()
    if (pcm.dataBytes % 2 === 1) yield Buffer.alloc(1)
  }
  const bytesPerSecond = (pcm.sampleRateHz * pcm.channels * pcm.bitsPerSample) / 8
  return {
    kind: 'audio',
    extension: 'wav',
    codec: `pcm_${pcmName(pcm)}`,
    durationMs: Math.round((pcm.dataBytes / bytesPerSecond) * 1000),
    sampleRateHz: pcm.sampleRateHz,
    channels: pcm.channels,
    source: sourceOf(source),
    removed,
    tools: {},
    content: await hold(plain(), options),
  }
}

/** FLAC of noise is hardly larger than its samples: four bytes each is more than enough. */
function soundBytesMax(facts: { sampleRateHz: number; channels: number }): number {
  const seconds = limits.audioDurationMsMax / 1000 + 1
  return facts.sampleRateHz * Math.max(facts.channels, 2) * 4 * seconds
}
