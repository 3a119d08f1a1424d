/** Turns films and sounds of unknown origin into ones of ours: H.264 and AAC in MP4, sound in FLAC, nothing else kept. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { AvFacts, ReadOptions } from './av-facts.ts'
import { readAvi } from './avi-structure.ts'
import { nothingCarriedOver, words } from './film-recipe.ts'
import { demuxers, requireReadable, runFilm } from './film-run.ts'
import type { FilmEncoding } from './film-run.ts'
import { ffmpegMissing, filmsMissing } from './find-ffmpeg.ts'
import type { Source } from './inspect.ts'
import { followOn, isJoined } from './joined-transport.ts'
import { makeFilm } from './make-film.ts'
import { extractSound, normaliseBare } from './make-sound.ts'
import { readMatroska } from './matroska-structure.ts'
import { readMovie } from './movie-structure.ts'
import type { NormalisedMedium } from './normalised.ts'
import type { AvOptions } from './run-ffmpeg.ts'
import { hold } from './scratch.ts'
import type { HeldBytes } from './scratch.ts'
import { readTransport } from './transport-structure.ts'

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
