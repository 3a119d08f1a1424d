/** How a daemon begins and ends: no core dumps, no swap, one graceful end on a signal, word to systemd. */
import { execFile, execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { SluiceError } from '../errors.ts'
import type { Log } from './log.ts'
import { checkSwap } from './swap.ts'

/** What the host says about this process; an argument so that tests can play any host. */
export type HostFacts = {
  /** Text of a file under /proc. */
  readText(path: string): string
  writeText(path: string, text: string): void
  /** Runs a program to its end; throws unless it succeeds. */
  run(program: string, args: readonly string[]): void
}

const thisHost: HostFacts = {
  readText: (path) => readFileSync(path, 'utf8'),
  writeText: (path, text) => writeFileSync(path, text),
  run: (program, args) => void execFileSync(program, args, { stdio: 'ignore' }),
}

/**
 * Switches core dumps off for this process and all it starts, and reads that back.
 *
 * The size limit alone is not enough: the kernel ignores it when `core_pattern` is a pipe
 * (core(5)), so the filter is emptied too and a dump would hold no memory at all.
 *
 * @throws SluiceError `node.core_dumps` when the host does not let it happen.
 */
export function disableCoreDumps(host: HostFacts = thisHost): void {
  try {
    host.run('prlimit', ['--core=0:0', '--pid', String(process.pid)])
    host.writeText('/proc/self/coredump_filter', '0')
    const limit = /^Max core file size\s+(\S+)\s+(\S+)/m.exec(host.readText('/proc/self/limits'))
    const filter = Number.parseInt(host.readText('/proc/self/coredump_filter').trim(), 16)
    if (limit?.[1] === '0' && limit[2] === '0' && filter === 0) return
  } catch (cause) {
    throw coreDumpsStayOn(cause)
  }
  throw coreDumpsStayOn()
}

function coreDumpsStayOn(cause?: unknown): SluiceError {
  return new SluiceError('node.core_dumps', 'core dumps could not be switched off', {
    hint: 'Install prlimit (package util-linux), or set LimitCORE=0 in the unit, and start again.',
    cause,
  })
}

/** Word to systemd (sd_notify(3)); without `NOTIFY_SOCKET` every call does nothing. */
export type Supervisor = Disposable & {
  /** The daemon works; from now on the watchdog is fed. */
  ready(status: string): void
  status(text: string): void
  stopping(): void
}

/**
 * Speaks to systemd through its own `systemd-notify`, since Node has no datagram Unix sockets. The
 * unit therefore needs `NotifyAccess=all`.
 *
 * @param send Runs `systemd-notify` with these arguments.
 */
export function createSupervisor(
  env: { NOTIFY_SOCKET?: string | undefined; WATCHDOG_USEC?: string | undefined } = process.env,
  send: (args: readonly string[]) => void = systemdNotify,
): Supervisor {
  if (!env.NOTIFY_SOCKET) return { ready() {}, status() {}, stopping() {}, [Symbol.dispose]() {} }
  const watchdogMs = Number(env.WATCHDOG_USEC ?? 0) / 1000
  let timer: NodeJS.Timeout | undefined
  return {
    ready(status) {
      send(['--ready', `--pid=${process.pid}`, `--status=${status}`])
      if (!(watchdogMs > 0) || timer) return
      // Half the interval, as sd_watchdog_enabled(3) asks for. A blocked event loop feeds nothing.
      timer = setInterval(() => send(['WATCHDOG=1']), watchdogMs / 2)
      timer.unref()
    },
    status: (text) => send([`--status=${text}`]),
    stopping: () => send(['STOPPING=1']),
    [Symbol.dispose]: () => clearInterval(timer),
  }
}

function systemdNotify(args: readonly string[]): void {
  // A word that does not arrive is noticed by systemd itself, which then acts on its own timers.
  execFile('systemd-notify', args, () => {})
}

/**
 * Runs a daemon's main function until it returns or a signal ends it.
 *
 * The first SIGTERM or SIGINT aborts the signal given to `run`; a second one, or `graceMs` later,
 * ends the process with exit code 1. An error nobody caught ends it at once: systemd starts it
 * anew, and everything owed is on disk.
 *
 * @param options.run Resolves when everything is closed. What it rejects with is thrown on.
 */
export async function runDaemon(options: {
  log: Log
  allowSwap: boolean
  graceMs: number
  run: (signal: AbortSignal, supervisor: Supervisor) => Promise<void>
}): Promise<void> {
  disableCoreDumps()
  checkSwap(options)
  using supervisor = createSupervisor()
  const ending = new AbortController()
  let deadline: NodeJS.Timeout | undefined
  const end = (name: NodeJS.Signals): void => {
    if (ending.signal.aborted) process.exit(1)
    options.log('info', 'process.ending', { signal: name })
    supervisor.stopping()
    deadline = setTimeout(() => {
      options.log('error', 'process.grace_over', { graceMs: options.graceMs })
      process.exit(1)
    }, options.graceMs)
    deadline.unref()
    ending.abort()
  }
  const crash = (error: unknown): void => {
    // The stack names code, never data; messages of bugs are ours.
    const stack = error instanceof Error ? (error.stack ?? error.message) : String(error)
    options.log('error', 'process.crashed', { stack: stack.slice(0, 4000) })
    process.exit(70)
  }
  process.on('SIGTERM', end).on('SIGINT', end)
  process.on('uncaughtException', crash).on('unhandledRejection', crash)
  try {
    await options.run(ending.signal, supervisor)
  } finally {
    clearTimeout(deadline)
    process.off('SIGTERM', end).off('SIGINT', end)
    process.off('uncaughtException', crash).off('unhandledRejection', crash)
  }
}
