/** Makes a film of ours of what a container holds: encoded or copied, checked, and no shorter than it promised. */
import { type SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { corruptMedium, tooLarge } from './av-facts.ts'
import type { PictureEnd } from './av-facts.ts'
import { readAviEnd } from './avi-structure.ts'
import { checkFilm } from './check-film.ts'
import type { CheckedFilm } from './check-film.ts'
import { cleanFilm } from './clean-film.ts'
import { watchUnits } from './copied-units.ts'
import { chooseFilmEncoder, filmEncoderDevices, filmEncoderInit } from './film-encoder.ts'
import { ofTracks, planFilm } from './film-recipe.ts'
import type { FilmEncoder } from './film-recipe.ts'
import { demuxers, filmInput, lookMs, runFilm, sourceOf, threadsFor } from './film-run.ts'
import type { FilmEncoding } from './film-run.ts'
import {
  firstPictureArgs,
  firstPictureBytesMax,
  hidesEdges,
  readFirstPicture,
  withHiddenEdges,
} from './first-picture.ts'
import type { FirstPicture } from './first-picture.ts'
import { readMatroskaEnd } from './matroska-structure.ts'
import type { NormalisedMedium } from './normalised.ts'
import { profiles } from './profiles.ts'
import type { FilmProfile } from './profiles.ts'
import { longest, readProgress, startFfmpeg } from './run-ffmpeg.ts'
import { hold } from './scratch.ts'
import { isMuteTransport } from './transport-structure.ts'

/**
 * Makes a film by the encoder that was asked for; by software where that one fails.
 *
 * @throws SluiceError As `normaliseFilm`.
 */
export async function makeFilm(encoding: FilmEncoding): Promise<NormalisedMedium> {
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
