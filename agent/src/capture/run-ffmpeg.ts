/** Runs ffmpeg in the sandbox with everything switched off that would carry something over. */
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { runInSandbox } from '../sandbox.ts'
import type { SandboxExit } from '../sandbox.ts'
import { requireDecoderEnd } from './decoder-end.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import type { HeldBytes, HoldOptions } from './scratch.ts'

export type AvOptions = HoldOptions & {
  isolation: IsolationLevel
  /** undefined when there is none on this host. */
  ffmpeg: Ffmpeg | undefined
  signal?: AbortSignal
}

/** The words of a command line without variable parts. */
export function words(line: string): string[] {
  return line.split(' ')
}

/** Before every input: no prompts, no surprises, the first error ends it. */
const strictInput = ['-xerror', '-err_detect', 'explode', '-max_alloc', '1073741824']

/** On every output: nothing carried over, nothing about the encoder. */
export const nothingCarriedOver = [
  ...words('-map_metadata -1 -map_chapters -1 -dn -sn'),
  ...words('-fflags +bitexact -flags:v +bitexact -flags:a +bitexact'),
]

/** One run of ffmpeg: from where, to what, and within which bounds. */
export type FfmpegRun = {
  output: readonly string[]
  outputBytesMax: number
  keep: (output: AsyncIterable<Buffer>) => Promise<HeldBytes>
  input: (at: (name: string) => string) => readonly string[]
  inputs?: Readonly<Record<string, string>>
  stdin?: AsyncIterable<Buffer>
  /** As far as it is known; the time that ffmpeg may take follows from it. */
  durationMs: number
  /** How much more work than full HD a second is; default 1. */
  effort?: number
  what: 'film' | 'sound'
}

/**
 * Runs ffmpeg strictly and holds what it wrote; `exit.report` is for {@link readProgress}.
 *
 * @throws SluiceError as `decoder-end.ts` says, and what `keep` throws when ffmpeg itself ended well.
 */
export async function runFfmpeg(
  encoding: AvOptions & { ffmpeg: Ffmpeg },
  run: FfmpegRun,
): Promise<{ exit: SandboxExit; value: HeldBytes }> {
  const { ffmpeg, isolation, signal } = encoding
  const { effort = 1 } = run
  const result = await runInSandbox(
    {
      isolation,
      program: ffmpeg.program,
      visible: [ffmpeg.program],
      args: (at) => [
        ...words('-nostdin -hide_banner -loglevel error -nostats'),
        ...words('-progress pipe:3 -stats_period 10 -filter_threads 1'),
        ...strictInput,
        ...run.input(at),
        // A little more than allowed, so that too much can be told from just enough.
        '-t',
        String(limits.videoDurationMsMax / 1000 + 1),
        ...run.output,
        'pipe:1',
      ],
      ...(run.inputs === undefined ? {} : { inputs: run.inputs }),
      ...(run.stdin === undefined ? {} : { stdin: run.stdin }),
      ...(signal === undefined ? {} : { signal }),
      report: true,
      bounds: {
        wallMs: limits.avDecodeMsBase + Math.ceil(3 * effort * run.durationMs),
        memoryBytes: limits.decoderMemoryBytesMax,
        outputBytesMax: run.outputBytesMax,
        addressSpaceBytes: 2 * limits.decoderMemoryBytesMax,
      },
    },
    // A stream that stops too early is no reason of its own while ffmpeg's end is not known.
    (output) => run.keep(output).then(kept, broken),
  )
  try {
    requireDecoderEnd(result.exit, run.what, 'media.corrupt')
    return { exit: result.exit, value: result.value() }
  } catch (error) {
    await result.value.dispose()
    throw error
  }
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
