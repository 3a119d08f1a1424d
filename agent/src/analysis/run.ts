/** Runs an analyser over opened media inside the sandbox, and takes nothing from it but one JSON value. */
import { z } from 'zod'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel, MediumEntry } from '@sluice/protocol/manifest'
import { result, type Result } from '@sluice/protocol/result'
import { collectOutput, runInSandbox, type SandboxExit, type SandboxRequest } from '../sandbox.ts'
import type { AnalyserConfig } from './analyser.ts'

type MediaOutput = Result['media'][number]

/** Runs one analyser of one lease. */
export type AnalyserRun = {
  analyser: AnalyserConfig
  isolation: IsolationLevel
  /** Marks the analyser's processes as belonging to the lease. */
  leashDescriptor: number
  /** Counts for the log, after each run of the command. */
  ran: (counts: { outputBytes: number; elapsedMs: number }) => void
}

/** Deeper JSON overflows the stack of recursive readers, ours included. */
const jsonDepthMax = 64

/** Sets the fixed variables; the sandbox itself starts everything with an empty environment. */
const envProgram = '/usr/bin/env'

/**
 * Hands one medium to the analyser's standard input.
 *
 * @param content The medium's bytes in order; when it fails the analyser is killed.
 * @returns What the analyser says about it.
 * @throws SluiceError `analysis.*`, and what `content` throws.
 */
export async function analyseStream(
  run: AnalyserRun,
  medium: Pick<MediumEntry, 'name' | 'kind'>,
  content: AsyncIterable<Buffer>,
): Promise<MediaOutput> {
  const variables = { SLUICE_MEDIUM_NAME: medium.name, SLUICE_MEDIUM_KIND: medium.kind }
  const output = await runCommand(run, { variables: () => variables, stdin: content })
  const checked = z.json().safeParse(output)
  if (!checked.success) throw badOutput('is not JSON')
  return { name: medium.name, output: checked.data }
}

/**
 * Lets the analyser look at a directory that holds all media of the job.
 *
 * @throws SluiceError `analysis.*`; `analysis.bad_output` unless it answers for each medium once.
 */
export async function analyseDirectory(
  run: AnalyserRun,
  media: readonly Pick<MediumEntry, 'name'>[],
  directory: string,
): Promise<MediaOutput[]> {
  const output = await runCommand(run, {
    variables: (at) => ({ SLUICE_MEDIA_DIRECTORY: at('media') }),
    inputs: { media: directory },
  })
  const checked = z.strictObject({ media: result.shape.media }).safeParse(output)
  if (!checked.success) throw badOutput('is not {"media": [{"name", "output"}, …]}')
  const answered = new Map(checked.data.media.map((one) => [one.name, one]))
  const answers = media.map(({ name }) => answered.get(name))
  if (answers.includes(undefined) || checked.data.media.length !== media.length) {
    throw badOutput('does not name each medium exactly once')
  }
  return answers.filter((one) => one !== undefined)
}

/**
 * The bytes of a result document.
 *
 * @throws SluiceError `analysis.output_too_large`.
 */
export function encodeResult(analyser: AnalyserConfig, media: MediaOutput[]): Buffer {
  const bytes = Buffer.from(
    JSON.stringify({
      schema: 'sluice-result/1',
      analyser: analyser.name,
      version: analyser.version,
      media,
    } satisfies Result),
  )
  if (bytes.length <= limits.resultBytesMax) return bytes
  bytes.fill(0)
  throw tooLarge()
}

async function runCommand(
  run: AnalyserRun,
  how: Pick<SandboxRequest, 'inputs' | 'stdin'> & {
    variables: (at: (name: string) => string) => Record<string, string>
  },
): Promise<unknown> {
  const { analyser } = run
  const { variables, ...rest } = how
  const { exit, value } = await runInSandbox(
    {
      ...rest,
      isolation: run.isolation,
      program: envProgram,
      args: (at) => [
        '-i',
        ...Object.entries(variables(at)).map(([name, text]) => `${name}=${text}`),
        ...analyser.command,
      ],
      bounds: {
        wallMs: analyser.timeoutMs,
        memoryBytes: analyser.memoryBytesMax,
        outputBytesMax: analyser.outputBytesMax,
        processesMax: analyser.processesMax,
      },
      visible: analyser.visible,
      devices: analyser.devices,
      descriptors: [run.leashDescriptor],
    },
    collectOutput,
  )
  try {
    requireSuccess(exit, analyser)
    run.ran({ outputBytes: exit.stdoutBytes, elapsedMs: exit.elapsedMs })
    return parseBounded(value)
  } finally {
    value.fill(0)
  }
}

function requireSuccess(exit: SandboxExit, analyser: AnalyserConfig): void {
  switch (exit.outcome) {
    case 'ok':
      return
    case 'failed':
      throw new SluiceError(
        'analysis.failed',
        `The analyser ${analyser.name} ended with ${exit.signal ?? `exit code ${exit.code}`}.`,
        { hint: 'Run it by hand on a medium of that kind; its messages are dropped here.' },
      )
    case 'timeout':
      throw new SluiceError(
        'analysis.timeout',
        `The analyser ${analyser.name} did not end within ${analyser.timeoutMs} ms.`,
        { hint: 'Raise "timeoutMs" of the analyser on the node, or give it less to do.' },
      )
    case 'memory':
      throw new SluiceError(
        'analysis.failed',
        `The analyser ${analyser.name} used more than ${analyser.memoryBytesMax} bytes of memory.`,
        { hint: 'Raise "memoryBytesMax" of the analyser on the node.' },
      )
    case 'processes':
      throw new SluiceError(
        'analysis.failed',
        `The analyser ${analyser.name} started more than ${analyser.processesMax} processes and threads.`,
        { hint: 'Raise "processesMax" of the analyser on the node.' },
      )
    case 'output':
      throw tooLarge()
    case 'aborted':
    case 'abandoned':
      throw new SluiceError('analysis.failed', 'The analysis was stopped.', { retry: 'later' })
  }
}

/** @throws SluiceError `analysis.bad_output` unless it is one JSON value of reasonable depth. */
function parseBounded(bytes: Buffer): unknown {
  if (nestingOf(bytes) > jsonDepthMax) throw badOutput(`nests deeper than ${jsonDepthMax} levels`)
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    // The parser's message quotes the text, so it is not passed on.
    throw badOutput('is not one JSON value')
  }
}

/** Depth of brackets outside strings. */
function nestingOf(bytes: Buffer): number {
  let depth = 0
  let deepest = 0
  let inString = false
  for (let at = 0; at < bytes.length; at += 1) {
    const byte = bytes[at]
    if (byte === 0x5c) at += 1
    else if (byte === 0x22) inString = !inString
    else if (!inString && (byte === 0x5b || byte === 0x7b)) deepest = Math.max(deepest, ++depth)
    else if (!inString && (byte === 0x5d || byte === 0x7d)) depth -= 1
  }
  return deepest
}

function badOutput(why: string): SluiceError {
  return new SluiceError('analysis.bad_output', `The analyser's output ${why}.`, {
    hint: 'An analyser prints one JSON value to standard output, and nothing else.',
  })
}

function tooLarge(): SluiceError {
  return new SluiceError('analysis.output_too_large', 'The analyser answered too much.', {
    hint: `A result has at most ${limits.resultBytesMax} bytes; an analyser's own bound may be lower.`,
  })
}
