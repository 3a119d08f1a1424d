/** The gate: every source of this host passes here, by one path, or is refused with a reason. */
import { SluiceError } from '@sluice/protocol/errors'
import type { GateProfile, IsolationLevel } from '@sluice/protocol/manifest'
import { detectIsolation } from '../sandbox.ts'
import { readCaptured } from './carry.ts'
import type { Effort } from './compression.ts'
import { findFfmpeg } from './find-ffmpeg.ts'
import type { CarryPolicy } from './gate-policy.ts'
import { openSource } from './inspect.ts'
import type { Source } from './inspect.ts'
import { normaliseFilm, normaliseSound } from './normalise-av.ts'
import { normaliseImage } from './normalise-image.ts'
import type { NormalisedMedium } from './normalised.ts'
import { openPicturePool } from './picture-pool.ts'
import type { PicturePool } from './picture-pool.ts'
import type { AvOptions } from './run-ffmpeg.ts'
import type { Scanner } from './scan.ts'

/** What the gate works with on this host; found once, used for every source. */
export type Gate = AvOptions & {
  /** Table of `profiles.ts`; default `analysis`. */
  profile?: GateProfile
  /** Keeps what decodes of a damaged medium, marked as partial, in place of refusing it. */
  salvage?: boolean
  /** A name that promises another type than the content; default `report`. */
  nameMismatch?: 'report' | 'refuse'
  /** How much work fewer bytes are worth; default `quick`. */
  effort?: Effort
  /** Pages of a document behind its first: media of their own, or left out; default `all`. */
  pages?: 'all' | 'first'
  /** What of the metadata goes into the manifest; nothing without one. */
  carry?: CarryPolicy
  /** Sees every source before a decoder does; nothing is scanned without one. */
  scanner?: Pick<Scanner, 'scan' | 'tools'>
  /** Decoders that several pictures share; without them each gets a process of its own. */
  pictures?: PicturePool
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
 * Takes one source through the gate: inspected, scanned, decoded in the sandbox, written anew, checked.
 *
 * @throws SluiceError `media.*`, `scan.*` or `host.disk_full`; nothing of the source is left then.
 */
export async function passGate(file: string, gate: Gate): Promise<Passed> {
  await using source = await openSource(file)
  requireHonestName(source, gate)
  const scan = await gate.scanner?.scan(source)
  const captured = gate.carry && (await readCaptured(source, gate.carry))
  const media = await normalise(source, gate)
  for (const medium of media) {
    if (scan !== undefined) medium.scan = scan
    if (captured !== undefined) medium.captured = captured
    if (source.nameDisagrees) medium.source.nameDisagrees = true
    Object.assign(medium.tools, gate.scanner?.tools)
  }
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
 * Takes sources through the gate in their order, as `writeArchive` wants them: what one became is wiped
 * before the next one is handed over. Pictures are worked on ahead, as many as there are decoders.
 *
 * @param passed Called for each source once it has passed, in order.
 */
export async function* passEach(
  files: Iterable<string>,
  gate: Gate,
  passed: (file: string, became: Passed) => void = () => undefined,
): AsyncGenerator<readonly NormalisedMedium[]> {
  await using own = gate.pictures === undefined ? openPicturePool(gate) : undefined
  const pictures = gate.pictures ?? own
  const through = pictures === undefined ? gate : { ...gate, pictures }
  const waiting = [...files]
  const begun: { file: string; became: Promise<Passed> }[] = []
  const begin = (file: string) => {
    const became = passGate(file, through)
    // Its failure is told in its turn; until then nobody looks.
    became.catch(() => undefined)
    begun.push({ file, became })
  }
  try {
    for (;;) {
      while (begun.length <= (pictures?.width ?? 0)) {
        const [file] = waiting
        if (file === undefined || (begun.length > 0 && !(await isPicture(file)))) break
        waiting.shift()
        begin(file)
      }
      const first = begun[0]
      if (first === undefined) return
      await using became = await first.became
      begun.shift()
      passed(first.file, became)
      yield became.media
    }
  } finally {
    for (const { became } of begun) {
      await became.then(
        (left) => left[Symbol.asyncDispose](),
        () => undefined,
      )
    }
  }
}

/** Films take both cores and much room, so that they are not worked on ahead. */
async function isPicture(file: string): Promise<boolean> {
  try {
    await using source = await openSource(file)
    return source.kind === 'image'
  } catch {
    // Why it can't be opened is told when it is its turn.
    return false
  }
}

function requireHonestName(source: Source, { nameMismatch }: Gate): void {
  if (!source.nameDisagrees || nameMismatch !== 'refuse') return
  throw new SluiceError('media.name_mismatch', `the content is ${source.format}, its name is not`, {
    hint: 'Rename it if it is what you think it is, or set "gate.nameMismatch" to "report".',
  })
}

async function normalise(source: Source, gate: Gate): Promise<NormalisedMedium[]> {
  if (source.kind === 'image') return normaliseImage(source, gate)
  if (source.kind === 'video') return normaliseFilm(source, gate)
  return normaliseSound(source, gate)
}
