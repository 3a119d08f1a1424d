/** Lets only so many run at once; the others wait in the order they came. */

export type Turns = { take<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> }

/**
 * After an outage hundreds of jobs may want to upload or open at the same moment; each holds parts
 * or a process in memory.
 */
export function createTurns(atOnce: number): Turns {
  let running = 0
  const waiting: (() => void)[] = []
  return {
    async take(work, signal) {
      // A turn is handed on, so that nobody who comes later takes it in between.
      if (running >= atOnce) await new Promise<void>((go) => waiting.push(go))
      else running += 1
      try {
        // Whoever waited while everything ended does not begin any more.
        signal.throwIfAborted()
        return await work()
      } finally {
        const next = waiting.shift()
        if (next) next()
        else running -= 1
      }
    },
  }
}
