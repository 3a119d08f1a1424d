/** Runs ffmpeg over a film's container: what it is given, how long it may take, and why it broke. */
import { availableParallelism } from 'node:os'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { collectOutput, discardOutput, runInSandbox } from '../sandbox.ts'
import type { SandboxExit } from '../sandbox.ts'
import { corruptMedium } from './av-facts.ts'
import type { AvFacts } from './av-facts.ts'
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
import { ofTracks, words } from './film-recipe.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import type { Source } from './inspect.ts'
import type { NormalisedMedium } from './normalised.ts'
import { readLastTime, runFfmpeg, startFfmpeg } from './run-ffmpeg.ts'
import type { AvOptions, FfmpegRun } from './run-ffmpeg.ts'
import type { HeldBytes } from './scratch.ts'
import type { SourceFormat } from './sniff.ts'

/** What is made of one source, and with which ffmpeg. */
export type Encoding = AvOptions & { ffmpeg: Ffmpeg; source: Source }

/** The same of a container whose structure was read. */
export type FilmEncoding = Encoding & {
  facts: AvFacts
  /** The source's bytes where ffmpeg gets others than lie in the file: recordings that were joined. */
  bytes?: () => AsyncIterable<Buffer>
  /** Its sound as an input of its own. */
  sound?: HeldBytes
}

/** The demuxers of ffmpeg by name: it never guesses, so a playlist can be nothing else. */
export const demuxers: Partial<Record<SourceFormat, string>> = {
  mp4: 'mov',
  mov: 'mov',
  '3gp': 'mov',
  m4a: 'mov',
  mkv: 'matroska',
  webm: 'matroska',
  avi: 'avi',
  ts: 'mpegts',
}

/** Pictures worked on at once cost memory: the larger, the fewer. Twice 4K, one; 4K, two. */
const threadPixelsMax = 2 * 4096 * 2304

/** Threads of the decoder, and of the encoder: at least one. */
export function threadsFor({ facts }: FilmEncoding): number {
  const { widthPixels = 0, heightPixels = 0 } = facts.picture ?? {}
  const affordable = Math.floor(threadPixelsMax / Math.max(1, widthPixels * heightPixels))
  // Half as many again as cores, as x264 itself has it: some of them always wait.
  const wanted = Math.ceil(availableParallelism() * 1.5)
  return Math.max(1, Math.min(wanted, affordable, threadsMax))
}

/** More hardly help an encoder that looks ahead only a little. */
const threadsMax = 8

/** A look has to be quick; what cannot be seen in that time is encoded without it. */
export const lookMs = 10_000

type FilmInput = Pick<FfmpegRun, 'input' | 'inputs' | 'stdin'>

/** Arguments that open the film and nothing else: no other file, demuxer or decoder, and no more of it than is film. */
export function filmInput(encoding: FilmEncoding): FilmInput {
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

/**
 * Makes something of a container; a film needs a seekable input, as its index may lie at the end.
 *
 * @throws SluiceError `media.corrupt` with the moment where it broke, and as `runFfmpeg`, {@link requireDecoders} and
 *   `Source.assertUnchanged` say.
 */
export async function runFilm(
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
export function likelyMs(source: Source): number {
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
export async function findBreak(
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

const readBounds = { wallMs: 10_000, memoryBytes: 256 * 1024 ** 2, outputBytesMax: 1 }

/**
 * Root opens every file, but a decoder run by root has none of root's privileges. Elsewhere what the
 * agent can read, its decoders can.
 *
 * @throws SluiceError `media.not_a_file` where decoders may not read it, `media.decoder_failed` (later) where
 *   none can be started.
 */
export async function requireReadable({ source, isolation }: Encoding): Promise<void> {
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

/** As a manifest names it. */
export function sourceOf(source: Source): NormalisedMedium['source'] {
  return { format: source.format, bytes: source.bytes }
}
