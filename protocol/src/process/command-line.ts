/** How both command lines end: which exit code, and two lines when something went wrong. */
import { type ErrorCode, SluiceError } from '../errors.ts'

/** Scripts match these; they never change. */
export const exitCodes = { ok: 0, failed: 1, usage: 2, refused: 3 } as const
export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes]

const usageCodes: ReadonlySet<ErrorCode> = new Set([
  'usage',
  'config.invalid',
  'request.invalid',
  'token.invalid',
  'media.not_a_file',
])
/** Areas in which somebody decided that it must not be. */
const refusingAreas = new Set([
  'access',
  'approval',
  'identity',
  'join',
  'host',
  'node',
  'evidence',
  'sandbox',
  'media',
])
/** Of those areas, what is a failure and no decision. */
const failures: ReadonlySet<ErrorCode> = new Set([
  'host.disk_full',
  'media.decoder_failed',
  'media.timeout',
  'media.changed',
])

/** The exit code of a command that ended with `error`. */
export function exitCodeOf(error: unknown): ExitCode {
  if (!(error instanceof SluiceError)) return exitCodes.failed
  if (usageCodes.has(error.code)) return exitCodes.usage
  const [area = ''] = error.code.split('.')
  return refusingAreas.has(area) && !failures.has(error.code) ? exitCodes.refused : exitCodes.failed
}

/** One line of what went wrong and, when there is one, a line of what to do. */
export function errorLines(error: unknown): string[] {
  if (!(error instanceof SluiceError))
    return [`error: ${error instanceof Error ? error.message : String(error)}`]
  const lines = [`error: ${error.message} (${error.code})`]
  return error.hint === undefined ? lines : [...lines, `hint: ${error.hint}`]
}

/** The same as one JSON object, for `--json`. */
export function errorJson(error: unknown): string {
  const known = error instanceof SluiceError
  return JSON.stringify({
    error: {
      code: known ? error.code : 'internal',
      message: error instanceof Error ? error.message : String(error),
      ...(known && error.hint !== undefined ? { hint: error.hint } : {}),
    },
  })
}

/**
 * Ends this process in silence once nobody reads its standard output any more, as with `| head`. It
 * counts as failed, since not all was read.
 */
function endWithoutReader(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    process.exit(exitCodes.failed)
  })
}

/**
 * Runs one command line to its end: what went wrong becomes two lines (or one of JSON, with `--json`
 * among `argv`) and an exit code, never a stack.
 *
 * @param line.isParserEnd Whether an error is the parser's own; it has said by itself what was wrong.
 * @param line.remark Writes one line to standard error.
 */
export async function runCommandLine(line: {
  argv: readonly string[]
  run: (argv: readonly string[]) => Promise<unknown>
  isParserEnd: (error: unknown) => error is { exitCode: number }
  remark: (text: string) => void
}): Promise<void> {
  endWithoutReader()
  try {
    await line.run(line.argv)
  } catch (error) {
    if (line.isParserEnd(error)) {
      process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage
      return
    }
    if (line.argv.includes('--json')) line.remark(errorJson(error))
    else for (const text of errorLines(error)) line.remark(text)
    process.exitCode = exitCodeOf(error)
  }
}
