/** One daemon of a fleet: a process that can be killed and started again over the same state. */

import { setTimeout as sleep } from 'node:timers/promises'

import { startProgram } from './processes.ts'
import type { ProgramEnd, ProgramOptions, RunningProgram } from './processes.ts'

export type Daemon = AsyncDisposable & {
  readonly name: string
  readonly isRunning: boolean
  /** Of the running process. @throws Error when there is none. */
  readonly pid: number
  /** Everything it wrote, over all of its lives. */
  readonly output: string
  /** Starts it, and waits until it is ready. */
  start(): Promise<void>
  /** SIGTERM, and waits for its own end. */
  stop(): Promise<ProgramEnd>
  /** SIGKILL, as a crash looks; its children are on their own. */
  kill9(): Promise<void>
  restart(): Promise<void>
  /** A line of its present life that `matches`, also one written before the call. */
  waitForLine(matches: RegExp, timeoutMs?: number): Promise<string>
}

/**
 * @param name For messages.
 * @param options What to run; asked at every start, so that a restart may run it otherwise.
 * @param isReady Settles once the daemon does its work; called after every start.
 */
export function makeDaemon(parts: {
  name: string
  options: () => ProgramOptions
  isReady: (program: RunningProgram) => Promise<void>
}): Daemon {
  const { name } = parts
  let program: RunningProgram | undefined
  let past = ''
  /** Ended, but their groups may hold a grandchild that does not end by itself. */
  const ended: RunningProgram[] = []

  const running = (): RunningProgram => {
    if (program === undefined || program.hasEnded) throw new Error(`${name} does not run`)
    return program
  }
  async function endWith(how: (one: RunningProgram) => Promise<ProgramEnd>): Promise<ProgramEnd> {
    const one = running()
    const end = await how(one)
    forget(one)
    return end
  }
  function forget(one: RunningProgram): void {
    past += outputOf(one)
    ended.push(one)
    program = undefined
  }

  const daemon: Daemon = {
    name,
    get isRunning() {
      return program !== undefined && !program.hasEnded
    },
    get pid() {
      return running().pid
    },
    get output() {
      return past + (program === undefined ? '' : outputOf(program))
    },
    async start() {
      if (daemon.isRunning) throw new Error(`${name} runs already`)
      if (program !== undefined) forget(program)
      program = await startProgram(parts.options())
      await readyOrEnded(name, program, parts.isReady)
    },
    stop: () => endWith((one) => one.stop()),
    async kill9() {
      await endWith((one) => one.kill())
    },
    async restart() {
      if (daemon.isRunning) await daemon.stop()
      await daemon.start()
    },
    waitForLine: (matches, timeoutMs) => running().waitForLine(matches, timeoutMs),
    async [Symbol.asyncDispose]() {
      if (program !== undefined) {
        await program[Symbol.asyncDispose]()
        forget(program)
      }
      for (const one of ended.splice(0)) await one[Symbol.asyncDispose]()
    },
  }
  return daemon
}

/** The log, which goes to standard output, comes last: its end is what a reader wants. */
function outputOf(program: RunningProgram): string {
  return program.stderr + program.stdout
}

async function readyOrEnded(
  name: string,
  program: RunningProgram,
  isReady: (program: RunningProgram) => Promise<void>,
): Promise<void> {
  const early = program.ended.then((end) => {
    const how = end.signal ?? `exit code ${end.code}`
    throw new Error(`${name} ended at its start (${how}):\n${outputOf(program).slice(-4000)}`)
  })
  const ready = isReady(program)
  // The loser of the race may reject later, when nobody listens any more.
  for (const either of [early, ready]) either.catch(() => undefined)
  await Promise.race([ready, early])
}

/**
 * Asks again and again until there is an answer.
 *
 * @param what For the message when there is none in time.
 */
export async function waitFor<T>(
  what: string,
  timeoutMs: number,
  look: () => Promise<T | undefined>,
): Promise<T> {
  const end = performance.now() + timeoutMs
  for (;;) {
    const value = await look()
    if (value !== undefined) return value
    if (performance.now() > end) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`)
    await sleep(50)
  }
}
