/** Turns films and sounds of unknown origin into ones of ours: H.264 and AAC in MP4, sound in FLAC, nothing else kept. */
import { availableParallelism } from 'node:os'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { collectOutput, discardOutput, runInSandbox } from '../sandbox.ts'
import type { SandboxExit } from '../sandbox.ts'
import { corruptMedium, requireLimits, tooLarge } from './av-facts.ts'
import type { AvFacts, PictureEnd, ReadOptions } from './av-facts.ts'
import { readAvi, readAviEnd } from './avi-structure.ts'
import { checkFilm } from './check-film.ts'
import type { CheckedFilm } from './check-film.ts'
import { checkFlac } from './check-flac.ts'
import { checkWavpack } from './check-wavpack.ts'
import { cleanFilm } from './clean-film.ts'
import { requireDecoderEnd } from './decoder-end.ts'
import { watchUnits } from './copied-units.ts'
import { chooseFilmEncoder, filmEncoderDevices, filmEncoderInit } from './film-encoder.ts'
import {
  codecNamesArgs,
  codecNamesBytesMax,
  filmDecoders,
  foreignCodec,
  decoderMissing,
  isTaken,
  readCodecNames,
  withoutDecoder,
} from './film-codecs.ts'
import {
  inStepWithPicture,
  ofTracks,
  nothingCarriedOver,
  planFilm,
  planSound,
  words,
} from './film-recipe.ts'
import type { FilmEncoder, SoundRecipe } from './film-recipe.ts'
import { ffmpegMissing, filmsMissing } from './find-ffmpeg.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import {
  firstPictureArgs,
  firstPictureBytesMax,
  hidesEdges,
  readFirstPicture,
  withHiddenEdges,
} from './first-picture.ts'
import type { FirstPicture } from './first-picture.ts'
import { splitFlac } from './flac-structure.ts'
import type { Source } from './inspect.ts'
import { followOn, isJoined } from './joined-transport.ts'
import { readMatroska, readMatroskaEnd } from './matroska-structure.ts'
import { readMovie } from './movie-structure.ts'
import type { NormalisedMedium } from './normalised.ts'
import { profiles } from './profiles.ts'
import type { FilmProfile } from './profiles.ts'
import { longest, readLastTime, readProgress, runFfmpeg, startFfmpeg } from './run-ffmpeg.ts'
import type { AvOptions, FfmpegRun } from './run-ffmpeg.ts'
import { hold, withHead } from './scratch.ts'
import type { HeldBytes } from './scratch.ts'
import type { SourceFormat } from './sniff.ts'
import { pcmName, readSoundInput } from './sound-input.ts'
import type { SoundInput } from './sound-input.ts'
import { isMuteTransport, readTransport } from './transport-structure.ts'
import { plainWavHead } from './wav-structure.ts'
import type { PcmFacts } from './wav-structure.ts'
import { splitWavpack } from './wavpack-head.ts'

/**
 * Normalises what came in a film's container: a film gives two media, itself and its sound as a track
 * of its own; without a picture the sound is all there is. Times stay as they are (no picture is
 * doubled or dropped), rotation and pixel shape are applied, high dynamic range is mapped.
 *
 * @throws SluiceError `media.corrupt` with the place where it broke, `media.unsupported`,
 *   `media.too_large`, `media.timeout`, `media.decoder_missing`, `media.decoder_failed`,
 *   `media.not_clean`.
 */
export function normaliseFilm(source: Source, options: AvOptions): Promise<NormalisedMedium[]> {
  return orSalvage(options, (read) => normaliseContainer(source, { ...options, ...read }))
}

/**
 * Normalises a sound: lossless in FLAC (or WavPack, for more bits than FLAC holds), small in AAC.
 *
 * @throws SluiceError As {@link normaliseFilm}.
 */
export function normaliseSound(source: Source, options: AvOptions): Promise<NormalisedMedium[]> {
  return orSalvage(options, async (read) =>
    source.format === 'm4a'
      ? normaliseContainer(source, { ...options, ...read })
      : [await normaliseBare(source, { ...options, ...read })],
  )
}

/** Strictly first; what is damaged is tried again for what is left of it, if that is wanted. */
async function orSalvage(
  options: AvOptions,
  normalise: (read: Required<ReadOptions>) => Promise<NormalisedMedium[]>,
): Promise<NormalisedMedium[]> {
  try {
    return await normalise({ salvage: false })
  } catch (error) {
    const damaged = isSluiceError(error) && error.code === 'media.corrupt'
    if (!damaged || options.salvage !== true) throw error
  }
  try {
    const media = await normalise({ salvage: true })
    return media.map((medium) => ({ ...medium, partial: true as const }))
  } catch (cause) {
    if (!isSluiceError(cause) || cause.code !== 'media.corrupt') throw cause
    if (cause.hint?.includes('--salvage') !== true) throw cause
    throw new SluiceError('media.corrupt', cause.message, {
      hint: 'Nothing of it can be decoded. Copy it from the device again.',
      cause,
    })
  }
}

type Encoding = AvOptions & { ffmpeg: Ffmpeg; source: Source }
type FilmEncoding = Encoding & {
  facts: AvFacts
  /** The source's bytes where ffmpeg gets others than lie in the file: recordings that were joined. */
  bytes?: () => AsyncIterable<Buffer>
  /** Its sound as an input of its own. */
  sound?: HeldBytes
}

/** The demuxers of ffmpeg by name: it never guesses, so a playlist can be nothing else. */
const demuxers: Partial<Record<SourceFormat, string>> = {
  mp4: 'mov',
  mov: 'mov',
  '3gp': 'mov',
  m4a: 'mov',
  mkv: 'matroska',
  webm: 'matroska',
  avi: 'avi',
  ts: 'mpegts',
}

async function readContainer(source: Source, options: ReadOptions): Promise<AvFacts> {
  const demuxer = demuxers[source.format]
  if (demuxer === 'matroska') return readMatroska(source, options)
  if (demuxer === 'avi') return readAvi(source, options)
  return demuxer === 'mpegts' ? readTransport(source, options) : readMovie(source, options)
}

/**
 * One picture in a file of sound is its cover, even where a program made a film of it; and so is one
 * that is shown for no time at all.
 */
function withoutCover(source: Source, facts: AvFacts): AvFacts {
  const { picture, sound } = facts
  if (sound === undefined || picture?.frames !== 1) return facts
  const timeless = demuxers[source.format] === 'mov' && picture.end === undefined
  if (source.format !== 'm4a' && !timeless) return facts
  return {
    ...facts,
    picture: undefined,
    removed: [...new Set([...facts.removed, 'cover'])].toSorted(),
  }
}

async function normaliseContainer(source: Source, options: AvOptions): Promise<NormalisedMedium[]> {
  const { ffmpeg } = options
  const facts = withoutCover(source, await readContainer(source, options))
  if (ffmpeg === undefined) throw ffmpegMissing('films')
  if (!ffmpeg.films) throw filmsMissing(ffmpeg)
  const { salvage = false } = options
  const joined = source.format === 'ts' && !salvage && (await isJoined(source))
  const bytes = joined ? { bytes: () => followOn(source) } : {}
  const encoding = { ...options, ffmpeg, source, facts, ...bytes }
  await requireReadable(encoding)
  if (!isGrouped(facts)) return normaliseTracks(encoding)
  await using sound = await takeSoundApart(encoding)
  return await normaliseTracks({ ...encoding, sound })
}

async function normaliseTracks(encoding: FilmEncoding): Promise<NormalisedMedium[]> {
  const joined = encoding.bytes === undefined ? {} : { joined: true as const }
  if (encoding.facts.picture === undefined) {
    return [{ ...(await extractSound(encoding)), ...joined }]
  }
  const film = { ...(await makeFilm(encoding)), ...joined }
  if (film.sampleRateHz === undefined) return [film]
  try {
    return [film, { ...(await extractSound(encoding)), ...joined, soundOfFilm: true }]
  } catch (error) {
    await film.content[Symbol.asyncDispose]()
    throw error
  }
}

/** Telephones put several frames of AMR into one sample, of which ffmpeg decodes only the first. */
function isGrouped({ sound }: AvFacts): boolean {
  return sound?.called === 'samr' || sound?.called === 'sawb'
}

/** The frames of AMR as a file of their own has them, which is read one by one. */
async function takeSoundApart(encoding: FilmEncoding): Promise<HeldBytes> {
  const { value } = await runFilm(encoding, {
    output: [...words('-map 0:a:0 -c copy'), ...nothingCarriedOver, ...words('-f amr pipe:1')],
    outputBytesMax: limits.audioFileBytesMax,
    keep: (output) => hold(output, encoding),
  })
  return value
}

/** Pictures worked on at once cost memory: the larger, the fewer. Twice 4K, one; 4K, two. */
const threadPixelsMax = 2 * 4096 * 2304

function threadsFor({ facts }: FilmEncoding): number {
  const { widthPixels = 0, heightPixels = 0 } = facts.picture ?? {}
  const affordable = Math.floor(threadPixelsMax / Math.max(1, widthPixels * heightPixels))
  // Half as many again as cores, as x264 itself has it: some of them always wait.
  const wanted = Math.ceil(availableParallelism() * 1.5)
  return Math.max(1, Math.min(wanted, affordable, threadsMax))
}

/** More hardly help an encoder that looks ahead only a little. */
const threadsMax = 8

/** By the encoder that was asked for; by software where that one fails. */
async function makeFilm(encoding: FilmEncoding): Promise<NormalisedMedium> {
  const { filmEncoder: wanted = 'x264', ffmpeg, isolation } = encoding
  const encoder = await chooseFilmEncoder({ wanted, ffmpeg, isolation })
  const first = await lookAtFirst(encoding)
  const wished = profiles[encoding.profile ?? 'analysis'].film
  const hides = wished.copy && first !== undefined && (await hidesMore(encoding, first))
  const profile = hides ? { ...wished, copy: false } : wished
  try {
    return await encodeFilm(encoding, { encoder, first, profile })
  } catch (error) {
    // A driver that gives up, or heads that only a decoder understands, look like a damaged film.
    const failed = isSluiceError(error) && /^media\.(?:corrupt|decoder_failed)$/.test(error.code)
    if (failed && encoding.source.format === 'ts' && (await isMuteTransport(encoding.source))) {
      return await encodeFilm(encoding, { encoder: 'x264', first, profile, silent: true })
    }
    if ((encoder === 'x264' && !profile.copy) || !failed) throw error
  }
  return encodeFilm(encoding, { encoder: 'x264', first, profile: { ...profile, copy: false } })
}

async function encodeFilm(
  encoding: FilmEncoding,
  how: {
    encoder: FilmEncoder
    first: FirstPicture | undefined
    profile: FilmProfile
    silent?: boolean
  },
): Promise<NormalisedMedium> {
  const { encoder, first, profile, silent = false } = how
  const { source, facts, ffmpeg, salvage = false } = encoding
  const recipe = planFilm({
    profile,
    facts,
    format: source.format,
    first,
    toneMapping: ffmpeg.toneMapping,
    joined: encoding.bytes !== undefined,
    encoder,
    threads: threadsFor(encoding),
    silent,
    soundApart: encoding.sound !== undefined,
  })
  const { value: content, exit } = await runFilm(encoding, {
    output: [
      ...filmEncoderInit(encoder),
      ...recipe.before,
      '-frames:v',
      String(limits.videoFramesMax + 1),
      ...longest,
      ...recipe.args,
    ],
    outputBytesMax: limits.videoFileBytesMax,
    devices: filmEncoderDevices(encoder),
    keep: (output) => hold(cleanFilm(output), encoding),
  })
  try {
    const units = recipe.copied ? watchUnits(recipe.codec) : undefined
    const checked = await checkFilm(content.read(), units)
    const { durationMs, longestMs } = checked
    const shown = readProgress(exit).frames
    if (units !== undefined && (units.hidesMore() || shown !== checked.frames)) {
      await content[Symbol.asyncDispose]()
      return await encodeFilm(encoding, { ...how, profile: { ...profile, copy: false } })
    }
    if (checked.frames > limits.videoFramesMax) {
      throw tooLarge('film', 'has too many pictures', String(limits.videoFramesMax))
    }
    if (checked.frames === 0) throw corruptMedium('film', { ms: 0 })
    const isMute = checked.sampleRateHz > 0 && checked.soundFrames === 0
    const end = salvage ? undefined : await missedEnd(encoding, checked)
    if (isMute || end !== undefined) {
      await content[Symbol.asyncDispose]()
      const again = end === undefined ? encoding : withEnd(encoding, end)
      const recoded = { ...profile, copy: profile.copy && end === undefined }
      return await encodeFilm(again, { ...how, profile: recoded, silent: silent || isMute })
    }
    if (longestMs > limits.videoDurationMsMax) throw tooLong()
    return {
      kind: 'video',
      extension: 'mp4',
      codec: recipe.codec,
      widthPixels: checked.widthPixels,
      heightPixels: checked.heightPixels,
      durationMs,
      frames: checked.frames,
      ...(checked.sampleRateHz === 0
        ? {}
        : { sampleRateHz: checked.sampleRateHz, channels: checked.channels }),
      ...(recipe.hdr === undefined ? {} : { hdr: recipe.hdr }),
      source: sourceOf(source),
      removed: facts.removed,
      tools: { ffmpeg: ffmpeg.version },
      content,
    }
  } catch (error) {
    await content[Symbol.asyncDispose]()
    throw error
  }
}

/**
 * Whether the film has to be made anew as its last picture stays longer than anything told at first.
 *
 * @throws SluiceError `media.corrupt` where it ends before the last of the source's pictures began.
 */
async function missedEnd(
  { source, facts }: FilmEncoding,
  { longestMs, lastPictureMs }: CheckedFilm,
): Promise<PictureEnd | undefined> {
  const known = facts.picture?.end
  if (known !== undefined) {
    requireReached(lastPictureMs, known.lastMs)
    requireReached(longestMs, facts.shownMs ?? facts.durationMs)
    return undefined
  }
  const shortMs = facts.sound === undefined ? stillMsMin : durationSlackMs
  if (longestMs + shortMs >= facts.durationMs * 0.98) return undefined
  const end =
    source.format === 'avi'
      ? await readAviEnd(source)
      : demuxers[source.format] === 'matroska'
        ? await readMatroskaEnd(source, facts.durationMs)
        : undefined
  if (end === undefined) requireReached(longestMs, facts.durationMs)
  else requireReached(lastPictureMs, end.lastMs)
  // A head counts subtitles too: it tells how long the last picture stays only where it is alone.
  const isAlone = facts.sound === undefined && !facts.removed.includes('subtitles')
  return isAlone || source.format === 'avi' ? end : undefined
}

/** Without sound, a last picture that stays no longer than this is not worth a second run. */
const stillMsMin = 250

function withEnd(encoding: FilmEncoding, end: PictureEnd): FilmEncoding {
  const { picture } = encoding.facts
  if (picture === undefined) return encoding
  return { ...encoding, facts: { ...encoding.facts, picture: { ...picture, end } } }
}

/** A look has to be quick; what cannot be seen in that time is encoded without it. */
const lookMs = 10_000

/** What is copied takes its hidden edges along. */
async function hidesMore(encoding: FilmEncoding, first: FirstPicture): Promise<boolean> {
  const coded = await lookAtFirst(encoding, withHiddenEdges)
  return coded === undefined || hidesEdges(first, coded)
}

async function lookAtFirst(
  encoding: FilmEncoding,
  before: readonly string[] = [],
): Promise<FirstPicture | undefined> {
  const film = filmInput(encoding)
  const { value } = await startFfmpeg(
    encoding,
    {
      ...film,
      input: (at) => [...before, ...film.input(at)],
      output: ofTracks(firstPictureArgs, encoding.facts.tracks),
      outputBytesMax: firstPictureBytesMax,
      lenient: true,
      durationMs: 0,
      wallMs: lookMs,
      what: 'film',
    },
    readFirstPicture,
  )
  return value
}

/** The sound of a container, by itself. */
async function extractSound(encoding: FilmEncoding): Promise<NormalisedMedium> {
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

function filmInput(encoding: FilmEncoding): FilmInput {
  const { source, bytes, facts } = encoding
  const part = facts.endAt === undefined ? '' : `subfile,,start,0,end,${facts.endAt},,:`
  return {
    input: (at) => [
      '-protocol_whitelist',
      bytes === undefined ? 'file,subfile' : 'pipe',
      '-f',
      demuxers[source.format] ?? 'mov',
      '-codec_whitelist',
      filmDecoders.join(),
      '-max_pixels',
      String(limits.videoFramePixelsMax),
      '-threads',
      String(threadsFor(encoding)),
      '-i',
      bytes === undefined ? `${part}file:${at('medium')}` : 'pipe:0',
    ],
    ...(bytes === undefined ? { inputs: { medium: source.path } } : { stdin: bytes() }),
  }
}

type FilmInput = Pick<FfmpegRun, 'input' | 'inputs' | 'stdin'>

/** Where the sound is an input of its own, it comes second. */
function withSound({ sound }: FilmEncoding, film: FilmInput): FilmInput {
  if (sound === undefined) return film
  return {
    ...film,
    input: (at) => [...film.input(at), ...bareAmr, '-i', 'pipe:0'],
    stdin: sound.read(),
  }
}

const bareAmr = [
  ...words('-protocol_whitelist pipe -f amr -codec_whitelist'),
  'amrnb,amrwb,libopencore_amrnb,libopencore_amrwb',
]

/** A film needs a seekable input, as its index may lie at the end. */
async function runFilm(
  encoding: FilmEncoding,
  run: Pick<FfmpegRun, 'output' | 'outputBytesMax' | 'devices'> & {
    keep: (output: AsyncIterable<Buffer>) => Promise<HeldBytes>
  },
): Promise<{ exit: SandboxExit; value: HeldBytes }> {
  const { facts, source, salvage = false } = encoding
  const { widthPixels = 0, heightPixels = 0 } = facts.picture ?? {}
  const whole: FfmpegRun = {
    ...run,
    ...withSound(encoding, filmInput(encoding)),
    output: ofTracks(run.output, facts.tracks),
    lenient: salvage,
    durationMs: facts.durationMs === 0 ? likelyMs(source) : facts.durationMs,
    // Beyond full HD the work per second grows with the pixels.
    effort: Math.max(1, (widthPixels * heightPixels) / 2_100_000),
    what: 'film',
  }
  let result: { exit: SandboxExit; value: HeldBytes }
  try {
    result = await runFfmpeg(encoding, { ...whole, keep: run.keep })
  } catch (error) {
    if (!isSluiceError(error) || error.code !== 'media.corrupt') throw error
    await source.assertUnchanged()
    await requireDecoders(encoding)
    const broke = await findBreak(encoding, { ...whole, ...filmInput(encoding) })
    const damaged = corruptMedium('film', { ms: broke.ms })
    if (!broke.isWhole) throw damaged
    // The host may have failed, short of processes or of memory: once more.
    const again = { ...whole, ...withSound(encoding, filmInput(encoding)) }
    result = await runFfmpeg(encoding, { ...again, keep: run.keep }).catch((cause: unknown) => {
      throw isSluiceError(cause) && cause.code === 'media.corrupt' ? damaged : cause
    })
  }
  // The decoder opened the path and not our descriptor: make sure that it was the same file.
  try {
    await source.assertUnchanged()
  } catch (error) {
    await result.value[Symbol.asyncDispose]()
    throw error
  }
  return result
}

/** Where a container does not say how long it is: at 64 kbit/s, or the longest that is allowed. */
function likelyMs(source: Source): number {
  return Math.min(limits.videoDurationMsMax, source.bytes / 8)
}

/**
 * Whether it is no damage that stopped the decoder; only ever run for what is refused.
 *
 * @throws SluiceError `media.unsupported` for a codec that is not taken, `media.decoder_missing` for one
 *   that this ffmpeg was built without.
 */
async function requireDecoders(encoding: FilmEncoding): Promise<void> {
  const { value: names } = await startFfmpeg(
    encoding,
    {
      ...filmInput(encoding),
      output: ofTracks(codecNamesArgs, encoding.facts.tracks),
      outputBytesMax: codecNamesBytesMax,
      lenient: true,
      durationMs: 0,
      wallMs: lookMs,
      what: 'film',
    },
    readCodecNames,
  )
  const foreign = names.find((name) => !isTaken(name))
  if (foreign !== undefined) throw foreignCodec(foreign, encoding.facts)
  const { ffmpeg, isolation } = encoding
  const { value: decoders } = await runInSandbox(
    {
      isolation,
      program: ffmpeg.program,
      args: () => words('-hide_banner -nostdin -decoders'),
      visible: [ffmpeg.program],
      bounds: { wallMs: lookMs, memoryBytes: 512 * 1024 ** 2, outputBytesMax: 1024 ** 2 },
    },
    collectOutput,
  )
  const missing = withoutDecoder(names, decoders.toString('latin1'))
  // One that says nothing of its decoders has said nothing of this one.
  if (missing !== undefined && decoders.length > 0) throw decoderMissing(missing)
}

/** Decodes until it breaks, and tells how far it came; only ever run for what is refused. */
async function findBreak(
  encoding: Encoding,
  run: FfmpegRun,
): Promise<{ ms: number; isWhole: boolean }> {
  const { exit, value } = await startFfmpeg(
    encoding,
    {
      ...run,
      output: words(
        '-map 0:V:0? -map 0:a:0? -vf scale=2:2 -fps_mode passthrough -f framecrc pipe:1',
      ),
      outputBytesMax: 64 * 1024 ** 2,
      wallMs: lookMs,
    },
    readLastTime,
  )
  return { ms: value, isWhole: exit.outcome === 'ok' }
}

async function normaliseBare(source: Source, options: AvOptions): Promise<NormalisedMedium> {
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

const readBounds = { wallMs: 10_000, memoryBytes: 256 * 1024 ** 2, outputBytesMax: 1 }

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
      bounds: readBounds,
    },
    discardOutput,
  )
  if (exit.outcome === 'ok') return
  const { exit: bare } = await runInSandbox(
    { isolation, program: '/usr/bin/true', args: () => [], bounds: readBounds },
    discardOutput,
  )
  if (bare.outcome !== 'ok') {
    throw new SluiceError('media.decoder_failed', 'no decoder could be started', {
      retry: 'later',
      hint: 'The host lacks processes or memory; it is tried again.',
    })
  }
  throw new SluiceError(
    'media.not_a_file',
    'the source cannot be taken: decoders may not read it',
    {
      hint: 'Run the agent as a user that may read it, or let root own it: decoders lack the privileges of root.',
    },
  )
}

function sourceOf(source: Source): NormalisedMedium['source'] {
  return { format: source.format, bytes: source.bytes }
}

/** FLAC of noise is hardly larger than its samples: four bytes each is more than enough. */
function soundBytesMax(facts: { sampleRateHz: number; channels: number }): number {
  const seconds = limits.audioDurationMsMax / 1000 + 1
  return facts.sampleRateHz * Math.max(facts.channels, 2) * 4 * seconds
}

/** A film that ends more than two seconds early was cut inside; encoders add or lose some frames. */
const durationSlackMs = 2000

function isReached(madeMs: number, promisedMs: number): boolean {
  return madeMs + durationSlackMs >= promisedMs * 0.98
}

function requireReached(madeMs: number, promisedMs: number): void {
  if (!isReached(madeMs, promisedMs)) throw corruptMedium('film', { ms: madeMs })
}

function tooLong(): SluiceError {
  return tooLarge('film', 'is too long', `${limits.videoDurationMsMax / 60_000} minutes`)
}
