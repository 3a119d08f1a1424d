/** Does long work in pieces, so that nobody waits for the whole of it. */
import type { Pieces } from '@sluice/protocol/pieces'

/** Of about 0.1 ms each (measured: one receipt verified). */
const piecesAtOnce = 64

/** Node's own, also where a test moves the clock by hand. */
const afterOthers = setImmediate

/** Answers everybody else once. */
export function answerOthers(): Promise<void> {
  return new Promise((resolve) => void afterOthers(resolve))
}

/** @returns To be awaited after each small piece: once in a while it answers others. */
export function createPause(): () => Promise<void> {
  let done = 0
  return async () => {
    done += 1
    if (done % piecesAtOnce === 0) await answerOthers()
  }
}

export async function inPieces<T>(pieces: Pieces<T>): Promise<T> {
  const pause = createPause()
  for (;;) {
    const piece = pieces.next()
    if (piece.done === true) return piece.value
    await pause()
  }
}
