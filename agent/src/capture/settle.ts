/** Decides when a file is finished, and when finished files are enough for a job: pure, from what looks saw. */
import type { SourceIdentity } from '../journal.ts'

/** One file as the looks saw it. */
export type Sighting = {
  source: SourceIdentity
  /** When it was first seen as it is now, and in how many looks since. */
  sinceMs: number
  looks: number
}

/** What a look makes of what the look before saw. */
export function sight(
  before: Sighting | undefined,
  now: { source: SourceIdentity; isSame: boolean; atMs: number },
): Sighting {
  const { source, atMs } = now
  if (!before || !now.isSame) return { source, sinceMs: atMs, looks: 1 }
  return { source, sinceMs: before.sinceMs, looks: before.looks + 1 }
}

/**
 * Whether nobody writes to it any more, as far as a look from outside can tell: unchanged in two
 * looks and for `settleMs`. It counts on no event and no clock but ours, so it holds on network
 * shares too. What is empty is not even begun.
 */
export function isSettled(seen: Sighting, rule: { settleMs: number; atMs: number }): boolean {
  if (seen.source.bytes === 0 || seen.looks < 2) return false
  return rule.atMs - seen.sinceMs >= rule.settleMs
}

export type BatchRule = {
  filesMax: number
  /** How long finished files wait for more of them. */
  waitMs: number
}

/**
 * Cuts finished files into jobs, in their order. The last, incomplete one waits until its oldest
 * file has waited long enough.
 *
 * @param files Finished files and since when they are as they are.
 */
export function batches(
  files: readonly Sighting[],
  { filesMax, waitMs, atMs }: BatchRule & { atMs: number },
): Sighting[][] {
  const cut: Sighting[][] = []
  for (let first = 0; first < files.length; first += filesMax)
    cut.push(files.slice(first, first + filesMax))
  const last = cut.at(-1)
  if (!last || last.length === filesMax) return cut
  const oldestMs = Math.min(...last.map(({ sinceMs }) => sinceMs))
  return atMs - oldestMs >= waitMs ? cut : cut.slice(0, -1)
}
