/** Counts how long leases hold on a clock that nobody can set. */
import type { LeaseId } from '@sluice/protocol/ids'
import { deadlineOfNew, type LeaseTime, renewedDeadlineMs } from './rules.ts'

/** Times are of the monotonic clock of this process, in milliseconds; rows keep those for people. */
export type LeaseTimes = {
  /** The time of a lease; one that is not known yet was left by an earlier process, and counts anew. */
  of(id: LeaseId): LeaseTime
  /** Renews a lease from now on. @returns How long it holds now. */
  renew(id: LeaseId): number
  /** Forgets all but these. */
  keep(ids: readonly LeaseId[]): void
  now: () => number
}

/**
 * Knows no lease yet. A lease that an earlier process granted holds for a whole duration from the
 * first look of this one, which is later than whatever its node was told.
 */
export function createLeaseTimes(monotonicMs: () => number): LeaseTimes {
  const times = new Map<LeaseId, LeaseTime>()
  const of = (id: LeaseId): LeaseTime => {
    const known = times.get(id)
    if (known) return known
    const time = deadlineOfNew(monotonicMs())
    times.set(id, time)
    return time
  }
  return {
    of,
    renew(id) {
      const nowMs = monotonicMs()
      const time = of(id)
      const deadlineMs = renewedDeadlineMs(time, nowMs)
      times.set(id, { ...time, deadlineMs })
      return deadlineMs - nowMs
    },
    keep(ids) {
      const kept = new Set(ids)
      for (const id of times.keys()) if (!kept.has(id)) times.delete(id)
    },
    now: monotonicMs,
  }
}
