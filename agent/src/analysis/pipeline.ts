/** Carries every lease of a GPU node from its offer to its receipt, whatever ends it on the way. */
import { SluiceError } from '@sluice/protocol/errors'
import type { LeaseRef, NodeOffer } from '@sluice/protocol/messages'
import type { PurgeWork } from '../purge.ts'
import { type AnalysisOptions, createParts, endLease, refOf } from './analysis-parts.ts'
import { createCapacity } from './capacity.ts'
import { keepDeadlines } from './deadlines.ts'
import { tellInventory } from './inventory.ts'
import { createPurgeWork } from './purge-work.ts'
import { openLeases, recoverLease, wipeLeft } from './recover-lease.ts'
import { takeEnd, takeOffer } from './take-lease.ts'

export type Analysis = AsyncDisposable & {
  /** What this node can do now; for the link's hello. */
  offer(): NodeOffer
  /** Leases that are not over, for status. */
  leases(): LeaseRef[]
  /** Begins to wipe, report and confirm what a process before this one left. */
  recover(): void
  /**
   * This node may do nothing any more: ends every lease and wipes, however long that takes. Nothing
   * is reported; the receipts stay in the journal.
   */
  endForGood(): Promise<void>
  /** What an emergency purge takes from this node. */
  readonly purging: PurgeWork
  /** Ends every lease, wipes, and gives reports a short time to get out. Also `asyncDispose`. */
  stop(): Promise<void>
}

/** How long reports may take when the agent stops; the next start sends what did not get out. */
const lastReportMs = 3_000

/**
 * Registers with the link; nothing runs before it starts.
 *
 * @throws SluiceError `node.swap_possible`; `config.invalid` when an analyser wants its media as a
 * directory and this host cannot mount one in memory.
 */
export async function createAnalysis(options: AnalysisOptions): Promise<Analysis> {
  const parts = createParts(options)
  const { link, live, ending, closing } = parts
  const capacity = await createCapacity(parts)

  link.onCommand('lease.offer', (offer) => takeOffer(parts, capacity, offer))
  link.onCommand('lease.end', (command) => takeEnd(parts, command))
  link.onCommand('inventory', (command) => tellInventory(parts, command))
  keepDeadlines(parts)

  async function endForGood(): Promise<void> {
    ending.begun = true
    ending.forGood = true
    const why = new SluiceError('identity.revoked', 'This node was revoked.')
    for (const lease of live.values()) endLease(lease, why)
    await Promise.all([...live.values()].map(({ wiped }) => wiped.promise))
    for (const record of openLeases(parts)) await wipeLeft(parts, record)
    // Nobody is there to report to: what waits for an answer ends here.
    closing.abort()
    await parts.settled()
  }

  async function stop(): Promise<void> {
    ending.begun = true
    const why = new SluiceError('analysis.failed', 'The node is shutting down.', { retry: 'later' })
    for (const lease of live.values()) endLease(lease, why)
    const timer = setTimeout(() => closing.abort(), lastReportMs)
    await parts.settled()
    clearTimeout(timer)
    closing.abort()
  }

  return {
    offer: () => capacity.offer(),
    leases: () => [...live.values()].map(({ offer }) => refOf(offer)),
    recover() {
      for (const record of openLeases(parts))
        if (!live.has(record.leaseId)) parts.inBackground(recoverLease(parts, record))
    },
    endForGood,
    purging: createPurgeWork(parts),
    stop,
    [Symbol.asyncDispose]: stop,
  }
}
