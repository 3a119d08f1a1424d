/** Looks at processes through /proc: who descends from whom, what they hold, whether they still run. */
import { readFileSync, readdirSync } from 'node:fs'

/**
 * Resident memory, processes and threads of a process and its descendants; those that ended meanwhile
 * count as nothing.
 *
 * @param tasksMax Beyond so many it stops counting: who has that many makes more than can be counted.
 */
export function treeUse(pid: number, tasksMax: number): { bytes: number; tasks: number } {
  let bytes = 0
  let tasks = 0
  const waiting = [pid]
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const threads = threadsOf(next)
    tasks += threads.length
    if (tasks > tasksMax) break
    bytes += Number(procText(`/proc/${next}/statm`).split(' ')[1] ?? 0) * 4096
    for (const thread of threads) {
      const children = procText(`/proc/${next}/task/${thread}/children`)
      waiting.push(...children.split(' ').filter(Boolean).map(Number))
    }
  }
  return { bytes, tasks }
}

function threadsOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`)
  } catch (error) {
    if (isGone(error)) return []
    throw error
  }
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
