/** Measures what a piece of work costs from outside: time, and the memory of the processes it starts and of this one. */

import { readFileSync, readdirSync, writeFileSync } from 'node:fs'

export type Cost = {
  elapsedMs: number
  /** Highest resident memory of one child with all that it started, by the kernel's own mark. */
  childPeakBytes: number
  /** How far this process rose above where it began. */
  ownRiseBytes: number
}

const lookMs = 10

/** Children that the work leaves behind count as long as it runs. */
export async function measured(work: () => Promise<void>): Promise<Cost> {
  // Sets the mark back to what is held now (proc(5), "clear_refs").
  writeFileSync('/proc/self/clear_refs', '5')
  const heldBytes = peakOf('self')
  let childPeakBytes = 0
  const look = () => {
    for (const child of childrenOf('self')) {
      childPeakBytes = Math.max(childPeakBytes, treePeak(child))
    }
  }
  const timer = setInterval(look, lookMs)
  const startedAt = performance.now()
  try {
    await work()
  } finally {
    clearInterval(timer)
  }
  return {
    elapsedMs: Math.round(performance.now() - startedAt),
    childPeakBytes,
    ownRiseBytes: peakOf('self') - heldBytes,
  }
}

function treePeak(pid: string): number {
  return childrenOf(pid).reduce((sum, child) => sum + treePeak(child), peakOf(pid))
}

function peakOf(pid: string): number {
  return 1024 * Number(/^VmHWM:\s+(\d+) kB$/m.exec(textOf(`/proc/${pid}/status`))?.[1] ?? 0)
}

function childrenOf(pid: string): string[] {
  let threads: string[]
  try {
    threads = readdirSync(`/proc/${pid}/task`)
  } catch {
    // It ended meanwhile.
    return []
  }
  return threads.flatMap((thread) =>
    textOf(`/proc/${pid}/task/${thread}/children`).split(' ').filter(Boolean),
  )
}

function textOf(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    return ''
  }
}
