/** Hashes files by content, in the sandbox: the agent itself never reads a medium. */
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { collectOutput, requireProgram, runInSandbox } from '../sandbox.ts'
import { scanWallMs } from './scan-time.ts'

/** More at once would only make the command line long. */
const filesAtOnceMax = 64

/**
 * SHA-256 of each file, lower-case hex.
 *
 * @returns In the order of `files`; undefined for one that could not be read.
 */
export async function hashFiles(
  files: Files,
  options: { isolation: IsolationLevel; signal?: AbortSignal },
): Promise<(string | undefined)[]> {
  const digests: (string | undefined)[] = []
  for (let first = 0; first < files.length; first += filesAtOnceMax)
    digests.push(...(await hashAtOnce(files.slice(first, first + filesAtOnceMax), options)))
  return digests
}

type Files = readonly { path: string; bytes: number }[]

/** With one file missing the others can no longer be told apart by their place: each by itself then. */
async function hashAtOnce(
  files: Files,
  options: { isolation: IsolationLevel; signal?: AbortSignal },
): Promise<(string | undefined)[]> {
  const digests = await runSha256sum(files, options)
  if (digests || files.length === 1) return digests ?? [undefined]
  const alone: (string | undefined)[] = []
  for (const file of files) alone.push((await runSha256sum([file], options))?.[0])
  return alone
}

async function runSha256sum(
  files: Files,
  { isolation, signal }: { isolation: IsolationLevel; signal?: AbortSignal },
): Promise<(string | undefined)[] | undefined> {
  const names = files.map((_, place) => String(place))
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0)
  const { exit, value } = await runInSandbox(
    {
      isolation,
      program: requireProgram('sha256sum'),
      args: (at) => ['--zero', '--binary', '--', ...names.map(at)],
      inputs: Object.fromEntries(files.map((file, place) => [String(place), file.path])),
      bounds: {
        wallMs: scanWallMs(bytes),
        memoryBytes: 128 * 1024 ** 2,
        outputBytesMax: files.length * 8192,
      },
      ...(signal === undefined ? {} : { signal }),
    },
    collectOutput,
  )
  if (exit.outcome !== 'ok') return undefined
  const lines = value.toString('latin1').split('\0').slice(0, -1)
  if (lines.length !== files.length) return undefined
  return lines.map((line) => /^([0-9a-f]{64}) /.exec(line)?.[1])
}
