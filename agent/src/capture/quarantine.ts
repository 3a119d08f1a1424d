/** Remembers infected sources by their hash, and tells of each until the control plane knows. */
import { infectionId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import type { JournalData } from '../journal.ts'
import { type CaptureParts, createErrand } from './capture-parts.ts'
import type { Infection } from './scan.ts'

/** Hash and reason stay; an administrator is still to be told. */
export function quarantine(
  draft: JournalData,
  { sha256, ...reason }: Infection,
  atMs: number,
): void {
  if (draft.quarantine[sha256] !== undefined) return
  const id = newId(infectionId, atMs)
  draft.quarantine[sha256] = { ...reason, infectionId: id, foundAtMs: atMs, told: false }
  const newestFirst = Object.entries(draft.quarantine).toSorted(
    ([, one], [, other]) => other.foundAtMs - one.foundAtMs,
  )
  draft.quarantine = Object.fromEntries(newestFirst.slice(0, limits.quarantineEntriesMax))
}

/** @returns Tells of every source that nobody was told of yet. */
export function createWarning(parts: CaptureParts): () => void {
  const { journal, link, signal } = parts
  return createErrand(parts, async () => {
    for (;;) {
      const untold = Object.entries(journal.data.quarantine).find(([, { told }]) => !told)
      if (!untold) return
      const [sha256, { infectionId: id, engine, finding, foundAtMs }] = untold
      const body = { infectionId: id, engine, finding, foundAtMs }
      await link.request('medium.infected', body, { signal })
      await journal.change((draft) => {
        const entry = draft.quarantine[sha256]
        if (entry) entry.told = true
      })
    }
  })
}
