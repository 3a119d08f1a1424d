/** Lets only so many run at once; the others wait in the order they came. */

export type Turns = { take<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> }

/**
 * After an outage hundreds of jobs may want to upload or open at the same moment; each holds parts
 * or a process in memory.
 */
export function createTurns(atOnce: number): Turns {
  let running = 0
  const waiting: { go: () => void }[] = []

  /** Whoever is told to end while it waits goes at once: others may wait for its end. */
  async function wait(signal: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const mine = { go: resolve }
    const giveUp = () => {
      const place = waiting.indexOf(mine)
      if (place < 0) return
      waiting.splice(place, 1)
      reject(signal.reason as Error)
    }
    waiting.push(mine)
    signal.addEventListener('abort', giveUp, { once: true })
    try {
      await promise
    } finally {
      signal.removeEventListener('abort', giveUp)
    }
  }

  return {
    async take(work, signal) {
      signal.throwIfAborted()
      // A turn is handed on, so that nobody who comes later takes it in between.
      if (running >= atOnce) await wait(signal)
      else running += 1
      try {
        // Whoever was handed a turn while everything ended does not begin any more.
        signal.throwIfAborted()
        return await work()
      } finally {
        const next = waiting.shift()
        if (next) next.go()
        else running -= 1
      }
    },
  }
}
