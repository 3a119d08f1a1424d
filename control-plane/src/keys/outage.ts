/** Notices that keys are out of reach, and that they are back: each is told once. */
import { isSluiceError, type SluiceError } from '@sluice/protocol/errors'
import type { EpochKeyLedger } from './epoch-key-store.ts'

/** Who is told. What `began` could not pass on is told again at the next failure. */
export type OutageListener = {
  began(problem: SluiceError): Promise<void>
  ended(): void
}

export type Outage = {
  /** Does work that needs the store of the keys; `keys.unavailable` begins an outage. */
  watch<T>(work: () => Promise<T>): Promise<T>
  /** Everything was in reach: a roll came to its end. */
  end(): void
}

/** What an administrator is told; the log has the hint, which may name a file. */
export function outageAlert(problem: SluiceError, store: EpochKeyLedger['name'], atMs: number) {
  return {
    type: 'keys.unavailable',
    severity: 'critical',
    site: '*',
    atMs,
    summary: 'the epoch keys are out of reach: deletions and purges are owed until they are back',
    detail: { code: problem.code, store },
  } as const
}

export function createOutage(listener: OutageListener | undefined): Outage {
  let begun = false
  return {
    async watch(work) {
      try {
        return await work()
      } catch (error) {
        if (isSluiceError(error, 'keys.unavailable') && !begun) {
          begun = true
          // Not waited for: a full disk must not keep the failure from whoever has to know.
          void listener?.began(error).catch(() => (begun = false))
        }
        throw error
      }
    },
    end() {
      if (begun) listener?.ended()
      begun = false
    },
  }
}
