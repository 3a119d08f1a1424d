/** Runs a command and says how long it took, how much processor it used and how much memory it had at most. */

import { spawn } from 'node:child_process'
import type { StdioOptions } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** How often a running command is looked at. Peaks are kept by the kernel, so only the very last could slip. */
const lookEveryMs = 5

const commandMsMax = 30 * 60 * 1000

export type Command = {
  program: string
  args: readonly string[]
  env?: NodeJS.ProcessEnv
  /** Bytes the command finds on file descriptor 3: keys never stand in arguments. */
  onFd3?: Uint8Array
  /** A file for standard input; default: nothing. */
  stdinFile?: string
  /** A file for standard output; default: kept as text. */
  stdoutFile?: string
}

export type Measurement = {
  /** From the start to the exit of the command. */
  ms: number
  cpuMs: number
  /** The most memory its processes had resident, each at its own peak, added up. */
  peakBytes: number
  stdout: string
}

type Usage = { cpuTicks: number; peakBytes: number }

/** The kernel counts processor time in hundredths of a second (`getconf CLK_TCK`, fixed on Linux). */
const tickMs = 10

function readOrNothing(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    // The process ended between two looks.
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return ''
    throw error
  }
}

function childrenOf(pid: number): number[] {
  const text = readOrNothing(`/proc/${pid}/task/${pid}/children`)
  return text.split(' ').filter(Boolean).map(Number)
}

/** Looks at a process and all below it, and keeps what is highest. */
function look(pid: number, usages: Map<number, Usage>): void {
  const peak = /^VmHWM:\s+(\d+) kB/m.exec(readOrNothing(`/proc/${pid}/status`))
  const stat = readOrNothing(`/proc/${pid}/stat`)
  // After the name, which may hold anything: fields 14 and 15 are user and system time (man 5 proc).
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const before = usages.get(pid) ?? { cpuTicks: 0, peakBytes: 0 }
  usages.set(pid, {
    cpuTicks: Math.max(before.cpuTicks, Number(fields[11] ?? 0) + Number(fields[12] ?? 0)),
    peakBytes: Math.max(before.peakBytes, Number(peak?.[1] ?? 0) * 1024),
  })
  for (const child of childrenOf(pid)) look(child, usages)
}

/**
 * @throws Error with the end of what the command said when it fails.
 */
export async function measureCommand(command: Command): Promise<Measurement> {
  const opened: number[] = []
  const open = (path: string, flags: string): number => {
    const fd = openSync(path, flags, 0o600)
    opened.push(fd)
    return fd
  }
  const secretFolder = mkdtempSync(join(tmpdir(), 'sluice-bench-'))
  try {
    const stdio: StdioOptions = [
      command.stdinFile === undefined ? 'ignore' : open(command.stdinFile, 'r'),
      command.stdoutFile === undefined ? 'pipe' : open(command.stdoutFile, 'w'),
      'pipe',
    ]
    if (command.onFd3 !== undefined) {
      const file = join(secretFolder, 'key')
      writeFileSync(file, command.onFd3, { mode: 0o600 })
      stdio.push(open(file, 'r'))
    }
    return await measureChild(command, stdio)
  } finally {
    for (const fd of opened) closeSync(fd)
    rmSync(secretFolder, { recursive: true })
  }
}

function measureChild(command: Command, stdio: StdioOptions): Promise<Measurement> {
  const usages = new Map<number, Usage>()
  const startedMs = performance.now()
  const child = spawn(command.program, command.args, {
    stdio,
    env: command.env ?? process.env,
    timeout: commandMsMax,
  })
  const { pid } = child
  const timer = setInterval(() => {
    if (pid !== undefined) look(pid, usages)
  }, lookEveryMs)
  let stdout = ''
  let stderr = ''
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  return new Promise((resolve, reject) => {
    let ms = 0
    child.on('error', reject)
    child.on('exit', () => {
      ms = performance.now() - startedMs
    })
    child.on('close', (code, signal) => {
      clearInterval(timer)
      if (code !== 0) {
        const said = `${stdout}${stderr}`.trim().slice(-1000)
        reject(new Error(`${command.program} ended with ${signal ?? code}: ${said}`))
        return
      }
      const all = [...usages.values()]
      resolve({
        ms,
        cpuMs: all.reduce((sum, { cpuTicks }) => sum + cpuTicks * tickMs, 0),
        peakBytes: all.reduce((sum, { peakBytes }) => sum + peakBytes, 0),
        stdout,
      })
    })
  })
}
