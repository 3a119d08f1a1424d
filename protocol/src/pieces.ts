/** Long work as pieces, so that who does it may let others go between them. */
export type Pieces<T> = Generator<void, T, void>

/** Does all of it without a pause. */
export function atOnce<T>(pieces: Pieces<T>): T {
  for (;;) {
    const piece = pieces.next()
    if (piece.done === true) return piece.value
  }
}
