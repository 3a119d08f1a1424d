/** Looks at processes through /proc: who descends from whom, what they hold, whether they still run. */
import { readFileSync, readdirSync } from 'node:fs'

/** Resident memory of a process and its descendants; 0 for those that ended meanwhile. */
export function residentBytes(pid: number): number {
  const pages = Number(procText(`/proc/${pid}/statm`).split(' ')[1] ?? 0)
  return childrenOf(pid).reduce((total, child) => total + residentBytes(child), pages * 4096)
}

function childrenOf(pid: number): number[] {
  let threads: string[]
  try {
    threads = readdirSync(`/proc/${pid}/task`)
  } catch (error) {
    if (isGone(error)) return []
    throw error
  }
  return threads.flatMap((thread) =>
    procText(`/proc/${pid}/task/${thread}/children`).split(' ').filter(Boolean).map(Number),
  )
}

function procText(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    if (isGone(error)) return ''
    throw error
  }
}

function isGone(error: unknown): boolean {
  if (!(error instanceof Error) || !('code' in error)) return false
  return error.code === 'ENOENT' || error.code === 'ESRCH'
}

/** Kills a process, or with a negative number a group; one that is gone already is as good. */
export function killNow(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if (!isGone(error)) throw error
  }
}

/** Field 22 of `/proc/PID/stat`, in clock ticks since boot; empty when there is no such process. */
export function startOf(pid: number): string {
  const stat = procText(`/proc/${pid}/stat`)
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
}

/** A zombie runs no more and holds no memory; only its parent can clear the entry. */
export function isRunning(pid: number): boolean {
  const state = /\) (\S)/.exec(procText(`/proc/${pid}/stat`))?.[1]
  return state !== undefined && state !== 'Z' && state !== 'X'
}

/** Whether any process of a group still runs; zombies don't. */
export function groupHasRunning(group: number): boolean {
  try {
    process.kill(-group, 0)
  } catch (error) {
    if (isGone(error)) return false
    throw error
  }
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .some((name) => {
      const fields = /\) \S \d+ (\d+)/.exec(procText(`/proc/${name}/stat`))
      return Number(fields?.[1]) === group && isRunning(Number(name))
    })
}
