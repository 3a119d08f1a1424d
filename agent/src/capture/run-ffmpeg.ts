/** Runs ffmpeg in the sandbox with everything switched off that would carry something over. */
import { limits } from '@sluice/protocol/limits'
import type { GateProfile, IsolationLevel } from '@sluice/protocol/manifest'
import { runInSandbox } from '../sandbox.ts'
import type { SandboxExit } from '../sandbox.ts'
import { requireDecoderEnd } from './decoder-end.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import { words } from './film-recipe.ts'
import type { FilmEncoder } from './film-recipe.ts'
import type { HeldBytes, HoldOptions } from './scratch.ts'

export type AvOptions = HoldOptions & {
  isolation: IsolationLevel
  /** undefined when there is none on this host. */
  ffmpeg: Ffmpeg | undefined
  /** Table of `profiles.ts`; default `analysis`. */
  profile?: GateProfile
  /** Keeps what decodes of a damaged medium, marked as partial, in place of refusing it. */
  salvage?: boolean
  /** Sounds of their own have 16,000 samples a second of one channel, as speech models want them. */
  speech?: boolean
  /** Encoder of films that was asked for; `x264`, the default, where it does not work. */
  filmEncoder?: FilmEncoder
  signal?: AbortSignal
}

/**
 * Before every input: the first error ends it, so that nothing damaged passes for whole. Sounds end at
 * oddities too (`explode`); pictures have honest ones, such as references across a cut.
 */
const strictInput = {
  film: ['-xerror', '-err_detect', 'crccheck+bitstream+buffer'],
  sound: ['-xerror', '-err_detect', 'explode'],
}
/** What decodes is taken. */
const lenientInput = ['-err_detect', 'ignore_err', '-fflags', '+discardcorrupt']

/** Of every output: a little more than allowed, so that too much can be told from just enough. */
export const longest = ['-t', String(limits.videoDurationMsMax / 1000 + 1)]

/** One run of ffmpeg: from where, to what, and within which bounds. */
export type FfmpegRun = {
  /** Ends with where it goes. */
  output: readonly string[]
  outputBytesMax: number
  input: (at: (name: string) => string) => readonly string[]
  inputs?: Readonly<Record<string, string>>
  stdin?: AsyncIterable<Buffer>
  /** As far as it is known; the time that ffmpeg may take follows from it. */
  durationMs: number
  /** How much more work than full HD a second is; default 1. */
  effort?: number
  what: 'film' | 'sound'
  /** Takes what decodes of a damaged source. */
  lenient?: boolean
  devices?: readonly string[]
  /** No more than this, whatever the duration; for a look that has to be quick. */
  wallMs?: number
}

/**
 * Runs ffmpeg strictly and holds what it wrote; `exit.report` is for {@link readProgress}.
 *
 * @throws SluiceError as `decoder-end.ts` says, and what `keep` throws when ffmpeg itself ended well.
 */
export async function runFfmpeg(
  encoding: AvOptions & { ffmpeg: Ffmpeg },
  run: FfmpegRun & { keep: (output: AsyncIterable<Buffer>) => Promise<HeldBytes> },
): Promise<{ exit: SandboxExit; value: HeldBytes }> {
  // A stream that stops too early is no reason of its own while ffmpeg's end is not known.
  const result = await startFfmpeg(encoding, run, (output) => run.keep(output).then(kept, broken))
  try {
    requireDecoderEnd(result.exit, run.what, 'media.corrupt')
    return { exit: result.exit, value: result.value() }
  } catch (error) {
    await result.value.dispose()
    throw error
  }
}

/** Runs ffmpeg and gives what it wrote to `consume`, however it ended. */
export async function startFfmpeg<T>(
  encoding: AvOptions & { ffmpeg: Ffmpeg },
  run: FfmpegRun,
  consume: (output: AsyncIterable<Buffer>) => Promise<T>,
): Promise<{ exit: SandboxExit; value: T }> {
  const { ffmpeg, isolation, signal } = encoding
  const { effort = 1, lenient = false } = run
  return runInSandbox(
    {
      isolation,
      program: ffmpeg.program,
      visible: [ffmpeg.program],
      args: (at) => [
        ...words('-nostdin -hide_banner -loglevel error -nostats'),
        ...words('-progress pipe:3 -stats_period 10 -filter_threads 1'),
        ...(lenient ? lenientInput : strictInput[run.what]),
        ...words('-max_alloc 1073741824'),
        ...run.input(at),
        ...longest,
        ...run.output,
      ],
      ...(run.inputs === undefined ? {} : { inputs: run.inputs }),
      ...(run.stdin === undefined ? {} : { stdin: run.stdin }),
      ...(run.devices === undefined ? {} : { devices: run.devices }),
      ...(signal === undefined ? {} : { signal }),
      report: true,
      bounds: {
        wallMs: run.wallMs ?? limits.avDecodeMsBase + Math.ceil(3 * effort * run.durationMs),
        memoryBytes: limits.decoderMemoryBytesMax,
        outputBytesMax: run.outputBytesMax,
        addressSpaceBytes: 2 * limits.decoderMemoryBytesMax,
      },
    },
    consume,
  )
}

type Kept = (() => HeldBytes) & { dispose: () => Promise<void> }

function kept(held: HeldBytes): Kept {
  return Object.assign(() => held, { dispose: async () => held[Symbol.asyncDispose]() })
}

function broken(error: unknown): Kept {
  const rethrow = (): never => {
    throw error
  }
  return Object.assign(rethrow, { dispose: async () => undefined })
}

/** @see ffmpeg(1), `-progress`: `key=value` lines, the last block being the whole. */
export function readProgress(exit: SandboxExit): {
  frames: number
  durationMs: number
  micros: number
} {
  const text = exit.report.toString('latin1')
  const last = (key: string) => {
    const values = [...text.matchAll(new RegExp(`^${key}= *(\\d+)$`, 'gm'))]
    return Number(values.at(-1)?.[1] ?? 0)
  }
  const micros = last('out_time_us')
  return { frames: last('frame'), durationMs: Math.round(micros / 1000), micros }
}

/**
 * The last moment that ffmpeg's `framecrc` lists, in milliseconds.
 *
 * @see ffmpeg-formats(1), "framecrc": `stream, dts, pts, duration, size, checksum`; `#tb 0: 1/25`.
 */
export async function readLastTime(output: AsyncIterable<Buffer>): Promise<number> {
  let text = ''
  let lastMs = 0
  const bases = new Map<string, number>()
  for await (const piece of output) {
    text += piece.toString('latin1')
    const lines = text.split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) {
      const base = /^#tb (\d+): (\d+)\/(\d+)$/.exec(line)
      if (base !== null) bases.set(base[1] ?? '', Number(base[2]) / Number(base[3]))
      const row = /^(\d+), *-?\d+, *(\d+),/.exec(line)
      if (row !== null)
        lastMs = Math.max(lastMs, Number(row[2]) * (bases.get(row[1] ?? '') ?? 0) * 1000)
    }
  }
  return Math.round(lastMs)
}
