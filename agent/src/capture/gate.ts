/** The gate: every source of this host passes here, by one path, or is refused with a reason. */
import type { GateProfile, IsolationLevel } from '@sluice/protocol/manifest'
import { detectIsolation } from '../sandbox.ts'
import { findFfmpeg } from './find-ffmpeg.ts'
import { openSource } from './inspect.ts'
import type { Source } from './inspect.ts'
import { normaliseFilm, normaliseSound } from './normalise-av.ts'
import { normaliseImage } from './normalise-image.ts'
import type { NormalisedMedium } from './normalised.ts'
import type { AvOptions } from './run-ffmpeg.ts'

/** What the gate works with on this host; found once, used for every source. */
export type Gate = AvOptions & {
  /** Table of `profiles.ts`; default `analysis`. */
  profile?: GateProfile
  /** Keeps what decodes of a damaged medium, marked as partial, in place of refusing it. */
  salvage?: boolean
}

/** What one source became: one medium, or a film and then its sound. Disposing wipes their bytes. */
export type Passed = AsyncDisposable & {
  media: readonly NormalisedMedium[]
  /** Whether the source's name promises another format than its content. */
  nameDisagrees: boolean
}

/**
 * Finds out what this host offers.
 *
 * @param options.isolation `none` only when it was set by name.
 * @param options.ffmpegPath From the configuration; without it the usual places are searched.
 * @throws SluiceError `sandbox.missing`; `media.decoder_missing` for a configured ffmpeg only.
 */
export async function openGate(options: {
  scratchFolder: string
  isolation?: IsolationLevel
  ffmpegPath?: string
  profile?: GateProfile
  salvage?: boolean
  signal?: AbortSignal
}): Promise<Gate> {
  const { scratchFolder, ffmpegPath, profile = 'analysis', salvage = false, signal } = options
  const isolation = await detectIsolation(options.isolation)
  const ffmpeg = await findFfmpeg({
    isolation,
    ...(ffmpegPath === undefined ? {} : { configured: ffmpegPath }),
  })
  const gate = { isolation, ffmpeg, scratchFolder, profile, salvage }
  return signal === undefined ? gate : { ...gate, signal }
}

/**
 * Takes one source through the gate: inspected, decoded in the sandbox, written anew, checked.
 *
 * @throws SluiceError `media.*` or `host.disk_full`; nothing of the source is left then.
 */
export async function passGate(file: string, gate: Gate): Promise<Passed> {
  await using source = await openSource(file)
  const media = await normalise(source, gate)
  const dispose = async () => {
    for (const { content } of media) await content[Symbol.asyncDispose]()
  }
  try {
    await source.assertUnchanged()
  } catch (error) {
    await dispose()
    throw error
  }
  return { media, nameDisagrees: source.nameDisagrees, [Symbol.asyncDispose]: dispose }
}

/**
 * Takes sources through the gate one after the other, as `writeArchive` wants them: what one became
 * is wiped before the next one is opened.
 *
 * @param passed Called for each source once it has passed.
 */
export async function* passEach(
  files: Iterable<string>,
  gate: Gate,
  passed: (file: string, became: Passed) => void = () => undefined,
): AsyncGenerator<readonly NormalisedMedium[]> {
  for (const file of files) {
    await using became = await passGate(file, gate)
    passed(file, became)
    yield became.media
  }
}

async function normalise(source: Source, gate: Gate): Promise<NormalisedMedium[]> {
  if (source.kind === 'image') return [await normaliseImage(source, gate)]
  if (source.kind === 'video') return normaliseFilm(source, gate)
  return [await normaliseSound(source, gate)]
}
