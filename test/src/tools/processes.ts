/** Programs that a test starts end with it, together with everything they started. */

import { spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { setTimeout } from 'node:timers/promises'

/** Output kept per stream; older bytes are dropped. */
const outputBytesMax = 8 * 1024 * 1024

/** How long a program may take to end by itself after SIGTERM. */
const endMsDefault = 10_000

const waitMsDefault = 30_000

/** How long output is waited for after the program itself is gone. */
const drainMsMax = 500

const setTimer = globalThis.setTimeout

export type ProgramOptions = {
  command: string
  args?: readonly string[]
  cwd?: string
  /** The whole environment of the program; the default is that of the test. */
  env?: NodeJS.ProcessEnv
  /** Written to standard input, which is then closed. Default: no input. */
  input?: string | Uint8Array
}

export type ProgramEnd = { code: number | null; signal: NodeJS.Signals | null }

export type RunningProgram = AsyncDisposable & {
  readonly pid: number
  /** What was written so far. */
  readonly stdout: string
  readonly stderr: string
  /** Settles when the program has ended and all of its output was read. */
  readonly ended: Promise<ProgramEnd>
  readonly hasEnded: boolean
  /**
   * The first line, of either stream, that `matches`, also one written before the call.
   *
   * @throws Error with the output so far when the program ends or `timeoutMs` passes before.
   */
  waitForLine(matches: RegExp | ((line: string) => boolean), timeoutMs?: number): Promise<string>
  /** The first line that is a JSON object for which `matches` is true; other lines are passed over. */
  waitForJson(
    matches: (value: Record<string, unknown>) => boolean,
    timeoutMs?: number,
  ): Promise<Record<string, unknown>>
  /** Sends a signal to the program alone. */
  signal(signal: NodeJS.Signals): void
  /** Sends SIGKILL to the program alone, as a crash would look, and waits until it is gone. */
  kill(): Promise<ProgramEnd>
  /** SIGTERM, and SIGKILL after `timeoutMs`. */
  stop(timeoutMs?: number): Promise<ProgramEnd>
}

type Waiter = { look: () => void }

/** Groups that must not outlive this process, whatever ends it. */
const runningGroups = new Set<number>()
process.on('exit', () => {
  for (const group of runningGroups) killGroup(group)
})
// A test that takes too long is ended by a signal, which alone would leave everything running.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.once(signal, () => {
    // Who handles signals by itself, as the demo does, also ends what it started.
    if (process.listenerCount(signal) === 0) process.exit(1)
  })

function killGroup(group: number): void {
  try {
    process.kill(-group, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/** Starts a program in a process group of its own and gives it back once it runs. */
export async function startProgram(options: ProgramOptions): Promise<RunningProgram> {
  const args = options.args ?? []
  const child = spawn(options.command, args, {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    env: options.env ?? process.env,
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    detached: true,
  })
  const exited = new Promise<ProgramEnd>((resolve) => {
    child.on('exit', (code, signal) => resolve({ code, signal }))
  })
  const closed = new Promise<void>((resolve) => {
    child.on('close', () => resolve())
  })
  const pid = await new Promise<number>((resolve, reject) => {
    child.on('error', reject)
    child.on('spawn', () => resolve(child.pid as number))
  })
  runningGroups.add(pid)
  if (options.input !== undefined) writeAll(child.stdin as Writable, options.input)

  const waiters = new Set<Waiter>()
  const changed = (): void => {
    for (const waiter of waiters) waiter.look()
  }
  const stdout = collectText(child.stdout as Readable, changed)
  const stderr = collectText(child.stderr as Readable, changed)
  let end: ProgramEnd | undefined
  const ended = exited.then(async (value) => {
    // A surviving grandchild holds the pipes open, so their end is not waited for without bound.
    await Promise.race([closed, setTimeout(drainMsMax, undefined, { ref: false })])
    end = value
    changed()
    return value
  })

  const describe = (): string =>
    [
      `${options.command} ${args.join(' ')} (pid ${pid})`,
      end === undefined ? 'still runs' : `ended with ${end.signal ?? end.code}`,
      `stdout: ${stdout().slice(-4000)}`,
      `stderr: ${stderr().slice(-4000)}`,
    ].join('\n')

  function waitFor<T>(find: (line: string) => T | undefined, timeoutMs: number): Promise<T> {
    return new Promise((resolve, reject) => {
      const finish = (settle: () => void): void => {
        clearTimeout(timer)
        waiters.delete(waiter)
        settle()
      }
      const timer = setTimer(
        () => finish(() => reject(new Error(`no such line in ${timeoutMs} ms: ${describe()}`))),
        timeoutMs,
      )
      const look = (): void => {
        for (const text of [stdout(), stderr()]) {
          // The last piece is not a whole line until the program has ended.
          const lines = text.split('\n')
          if (end === undefined) lines.pop()
          for (const line of lines) {
            const found = find(line)
            if (found !== undefined) return finish(() => resolve(found))
          }
        }
        if (end !== undefined) finish(() => reject(new Error(`no such line: ${describe()}`)))
      }
      const waiter: Waiter = { look }
      waiters.add(waiter)
      look()
    })
  }

  const hasExited = (): boolean => child.exitCode !== null || child.signalCode !== null
  const signal = (name: NodeJS.Signals): void => {
    if (!hasExited()) child.kill(name)
  }

  async function stop(timeoutMs: number = endMsDefault): Promise<ProgramEnd> {
    signal('SIGTERM')
    const timer = setTimer(() => signal('SIGKILL'), timeoutMs)
    try {
      return await ended
    } finally {
      clearTimeout(timer)
    }
  }

  return {
    pid,
    get stdout() {
      return stdout()
    },
    get stderr() {
      return stderr()
    },
    get hasEnded() {
      return hasExited()
    },
    ended,
    waitForLine: (matches, timeoutMs = waitMsDefault) =>
      waitFor((line) => {
        const fits = typeof matches === 'function' ? matches(line) : matches.test(line)
        return fits ? line : undefined
      }, timeoutMs),
    waitForJson: (matches, timeoutMs = waitMsDefault) =>
      waitFor((line) => {
        const value = parseObject(line)
        return value !== undefined && matches(value) ? value : undefined
      }, timeoutMs),
    signal,
    kill() {
      signal('SIGKILL')
      return ended
    },
    stop,
    async [Symbol.asyncDispose]() {
      await stop()
      killGroup(pid)
      runningGroups.delete(pid)
    },
  }
}

/** A program may end without reading what it was given. */
function writeAll(stdin: Writable, input: string | Uint8Array): void {
  stdin.on('error', () => stdin.destroy())
  stdin.end(input)
}

/** Gathers a stream as text; gives a function that reads what there is. */
function collectText(stream: Readable, changed: () => void): () => string {
  const chunks: Buffer[] = []
  let bytes = 0
  let text: string | undefined
  stream.on('data', (chunk: Buffer) => {
    chunks.push(chunk)
    bytes += chunk.length
    while (chunks.length > 1 && bytes > outputBytesMax) bytes -= chunks.shift()?.length ?? 0
    text = undefined
    changed()
  })
  return () => {
    text ??= Buffer.concat(chunks).toString('utf8')
    return text
  }
}

function parseObject(line: string): Record<string, unknown> | undefined {
  // A journald priority such as `<6>` may stand before it.
  const json = line.replace(/^<\d>/, '')
  if (!json.startsWith('{')) return undefined
  try {
    return JSON.parse(json) as Record<string, unknown>
  } catch {
    return undefined
  }
}
