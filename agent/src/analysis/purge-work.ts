/** Does what an emergency purge orders of a GPU node: its leases end at once and leave nothing. */
import type { PurgeWork } from '../purge.ts'
import { type AnalysisParts, endLease } from './analysis-parts.ts'
import { lostLease } from './problem.ts'
import { leasesOnDisk, tracesOf, wipeTraces } from './wipe.ts'

export function createPurgeWork({ live, runtimeDirectory }: AnalysisParts): PurgeWork {
  return {
    async prepare(order) {
      const named = new Set(order.jobIds)
      return (draft) => {
        const inScope = Object.values(draft.leases).filter(
          ({ jobId, state }) => state !== 'over' && (order.everything || named.has(jobId)),
        )
        for (const record of inScope) record.state = 'wiping'
        const counts = { spools: 0, drafts: 0, leases: inScope.length, results: 0 }
        return { counts, jobIds: [], leaseIds: inScope.map(({ leaseId }) => leaseId) }
      }
    },
    async wipe(scope) {
      const { everything, startedAtMs } = scope
      const leases = new Set(scope.leaseIds)
      const jobs = new Set(scope.jobIds)
      // Also an offer that was just being written down when the order came.
      const running = [...live.values()].filter(
        ({ record }) =>
          leases.has(record.leaseId) ||
          jobs.has(record.jobId) ||
          (everything && record.acceptedAtMs < startedAtMs),
      )
      for (const lease of running) endLease(lease, lostLease('The job of this lease was purged.'))
      await Promise.all(running.map(({ wiped }) => wiped.promise))
      const strays = everything
        ? (await leasesOnDisk(runtimeDirectory)).filter((id) => !live.has(id))
        : []
      const ended = new Set([...leases, ...running.map(({ record }) => record.leaseId), ...strays])
      for (const id of ended) await wipeTraces(tracesOf(runtimeDirectory, id))
      return ['analysers and lease processes ended', 'mounts gone', 'no folder of a lease left']
    },
  }
}
