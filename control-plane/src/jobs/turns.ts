/** Lets work on the same thing happen one after the other, and on different things at once. */

export type Turns = {
  /** Runs `work` once everything queued before under `key` has ended, however it ended. */
  take<T>(key: string, work: () => Promise<T>): Promise<T>
}

export function createTurns(): Turns {
  const tails = new Map<string, Promise<unknown>>()
  return {
    take(key, work) {
      const turn = (tails.get(key) ?? Promise.resolve()).then(work)
      const tail = settle(turn)
      tails.set(key, tail)
      async function settle(taken: Promise<unknown>): Promise<void> {
        // The queue goes on whatever became of this turn; its caller gets the failure.
        await taken.catch(() => undefined)
        if (tails.get(key) === tail) tails.delete(key)
      }
      return turn
    },
  }
}
