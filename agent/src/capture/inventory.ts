/** Answers a sweep: what really lies in the spool, page by page. */
import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { CommandOf } from '../control-link.ts'
import type { CaptureParts } from './capture-parts.ts'
import { listSpool, spooledBytes } from './spool.ts'

export async function tellInventory(
  { link, spoolDir, signal }: CaptureParts,
  { sweepId }: CommandOf<'inventory'>,
): Promise<void> {
  const { jobIds, unnamed } = await listSpool(spoolDir)
  const pages = pagesOf(jobIds)
  for (const [index, page] of pages.entries()) {
    const spools: { jobId: JobId; sealedBytes: number }[] = []
    for (const id of page) spools.push({ jobId: id, sealedBytes: await spooledBytes(spoolDir, id) })
    const last = index === pages.length - 1
    const body = { sweepId, spools, leases: [], last, ...(last ? { unnamed } : {}) }
    await link.request('inventory.report', body, { signal })
  }
}

/** At least one page, so that an empty spool is told too. */
function pagesOf(ids: readonly JobId[]): JobId[][] {
  const size = limits.inventoryEntriesMax
  const pages: JobId[][] = [ids.slice(0, size)]
  for (let first = size; first < ids.length; first += size)
    pages.push(ids.slice(first, first + size))
  return pages
}
