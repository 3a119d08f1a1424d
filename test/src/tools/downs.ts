/** What can be down while a purge is asked for, in every combination. */

export const downs = ['store', 'audit sink', 'alerting', 'half the fleet', 'disk full'] as const
export type Down = (typeof downs)[number]

/** All 32, beginning with the one in which everything works. */
export const combinations: readonly ReadonlySet<Down>[] = Array.from(
  { length: 2 ** downs.length },
  (_, bits) => new Set(downs.filter((_down, index) => (bits >> index) & 1)),
)

export function nameOf(down: ReadonlySet<Down>): string {
  return down.size === 0 ? 'nothing' : [...down].join(', ')
}
