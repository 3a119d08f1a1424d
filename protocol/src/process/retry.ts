/** Waiting between tries: exponential with full jitter, so that a fleet does not come back at once. */

/**
 * Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").
 *
 * @param attempt 0 for the first wait.
 * @param random In [0, 1).
 * @returns Milliseconds in [0, min(maxMs, minMs · 2^attempt)).
 */
export function backoffMs(
  attempt: number,
  bounds: { minMs: number; maxMs: number },
  random: number,
): number {
  const ceiling = Math.min(bounds.maxMs, bounds.minMs * 2 ** Math.min(attempt, 30))
  return Math.floor(random * ceiling)
}
