/** Answers a sweep: leases that are not wiped yet, page by page. */
import { limits } from '@sluice/protocol/limits'
import type { CommandOf } from '../control-link.ts'
import { type AnalysisParts, refOf } from './analysis-parts.ts'
import { openLeases } from './recover-lease.ts'
import { leasesOnDisk } from './wipe.ts'

export async function tellInventory(
  parts: AnalysisParts,
  { sweepId }: CommandOf<'inventory'>,
): Promise<void> {
  const held = openLeases(parts)
  const size = limits.inventoryEntriesMax
  for (let first = 0; first === 0 || first < held.length; first += size) {
    const leases = held.slice(first, first + size).map(refOf)
    const last = first + size >= held.length
    const strays = last ? await strayLeases(parts) : 0
    const body = { sweepId, spools: [], leases, last, ...(last ? { unnamed: strays } : {}) }
    await parts.link.request('inventory.report', body, { signal: parts.closing.signal })
  }
}

/** Folders of leases that the journal does not know. */
async function strayLeases({ runtimeDirectory, journal }: AnalysisParts): Promise<number> {
  const onDisk = await leasesOnDisk(runtimeDirectory)
  return onDisk.filter((id) => journal.data.leases[id] === undefined).length
}
