/**
 * Rolls the epoch: afterwards nothing that was deleted before opens with any key that exists.
 *
 * Every step is durable before the next begins, and each is safe to do twice, so a roll that was
 * cut short is finished by the next start and never undone:
 * 1. a row for the new epoch, `rolling`; 2. its key, made by a new key process; 3. the old process
 * moves every survivor under the new key, page by page, each page opened by the new process before
 * it replaces the old wraps; 4. every survivor is read again and opened by the new process; 5. one
 * transaction in which nothing is left under the old epoch: `retired`, `current`; 6. the old key is
 * overwritten and looked for; 7. the old process ends; 8. the old epoch is `destroyed`.
 */
import assert from 'node:assert/strict'
import { SluiceError } from '@sluice/protocol/errors'
import { type EpochId, epochId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { appendAudit } from '../audit/store.ts'
import type { Database } from '../database/database.ts'
import { type EpochKeyLedger, weakestOf } from './epoch-key-store.ts'
import { wrappedBytes, type WrappedPage } from './key-operations.ts'
import type { KeyProcess } from './key-process-link.ts'
import {
  addEpoch,
  anyUnder,
  changeEpoch,
  dropWrapped,
  type EpochRow,
  epochsIn,
  moveEpoch,
  pageUnder,
  replaceWrapped,
  wrappedPurposes,
} from './store.ts'

/** Which process holds which epoch; a process that crashed is started again when it is asked for. */
export type Holders = {
  /** @param mayCreate Only for an epoch under which nothing is wrapped yet. */
  holding(id: EpochId, options?: { mayCreate: boolean }): Promise<KeyProcess>
  /** From now on `id`'s process also holds `next`, and wraps under it. */
  lead(id: EpochId, next: EpochId): Promise<KeyProcess>
  /** Ends the epoch's process and waits until it is gone. */
  end(id: EpochId): Promise<void>
}

export type RollParts = {
  database: Database
  store: EpochKeyLedger
  holders: Holders
  now: () => number
  pageKeys?: number
}

/** What a finished roll did. */
export type RollReport = {
  epochId: EpochId
  /** Null for the first epoch: there was none to destroy. */
  destroyedAtMs: number | null
  survivors: number
  /** Wrapped secrets that no longer opened; their rows are gone. */
  damaged: number
}

/**
 * Finishes what a crash left, or rolls once.
 *
 * @returns `resumed`: a roll begun earlier was finished. It may have carried over what was deleted
 * since, so a caller that needs those gone rolls again.
 */
export async function rollOnce(parts: RollParts): Promise<RollReport & { resumed: boolean }> {
  const { database, holders, now } = parts
  await destroyRetired(parts)
  const [rolling] = await database.read((sql) => epochsIn(sql, 'rolling'))
  const next = rolling?.id ?? newId(epochId, now())
  await recordEpoch(parts, { id: next, rolling })
  const used = await database.read((sql) => anyUnder(sql, next))
  await holders.holding(next, { mayCreate: !used })
  const [current] = await database.read((sql) => epochsIn(sql, 'current'))
  const moved = { survivors: 0, damaged: 0 }
  if (current) {
    await moveSurvivors(parts, { from: current.id, next, moved })
    await verifySurvivors(parts, next, moved)
  }
  await takeOver(parts, { from: current?.id, next, moved })
  const destroyedAtMs = await destroyRetired(parts, moved)
  return { epochId: next, destroyedAtMs, ...moved, resumed: rolling !== undefined }
}

/** Writes down where the epoch's key lives before it is made, and never more than both may claim. */
async function recordEpoch(
  parts: RollParts,
  epoch: { id: EpochId; rolling: EpochRow | undefined },
): Promise<void> {
  const { database, store, now } = parts
  const { id, rolling } = epoch
  const own = await store.level()
  if (!rolling) {
    const claim = { store: store.name, level: own.level, levelReason: own.reason }
    const row = { id, createdAtMs: now(), state: 'rolling', ...claim } as const
    await database.write((tx) => addEpoch(tx, row))
  } else if (rolling.store !== store.name) {
    const { level, reason } = weakestOf([own, { ...rolling, reason: rolling.levelReason }])
    const row = { id, store: store.name, level, levelReason: reason }
    await database.write((tx) => moveEpoch(tx, row))
  }
}

type Moved = { survivors: number; damaged: number }

async function moveSurvivors(
  parts: RollParts,
  roll: { from: EpochId; next: EpochId; moved: Moved },
): Promise<void> {
  for (const purpose of wrappedPurposes) {
    for (;;) {
      const page = await parts.database.read((sql) =>
        pageUnder(sql, { purpose, epochId: roll.from, keysMax: pageKeysOf(parts) }),
      )
      if (page.ids.length === 0) break
      await movePage(parts, page, roll)
    }
  }
}

/** Rows that changed meanwhile are left alone: they are gone, or come again with the next page. */
async function movePage(
  parts: RollParts,
  page: WrappedPage,
  roll: { from: EpochId; next: EpochId; moved: Moved },
): Promise<void> {
  const old = await parts.holders.lead(roll.from, roll.next)
  const resealed = await old.reseal(page)
  const keep = selected(page, resealed.opened, 1)
  const lost = selected(page, resealed.opened, 0)
  const fresh = selected(resealed.page, resealed.opened, 1)
  const verdicts = await (await parts.holders.holding(roll.next)).verify(fresh)
  if (verdicts.some((opened) => opened !== 1))
    throw new SluiceError('keys.damaged', 'a re-sealed key does not open; the old ones stay', {
      retry: 'later',
    })
  await parts.database.write(async (tx) => {
    await replaceWrapped(tx, { before: keep, after: fresh })
    roll.moved.damaged += await dropWrapped(tx, lost)
  })
}

/** Reads every survivor again and lets the new process open it. */
async function verifySurvivors(parts: RollParts, next: EpochId, moved: Moved): Promise<void> {
  for (const purpose of wrappedPurposes) {
    let after: number | undefined
    for (;;) {
      const page = await parts.database.read((sql) =>
        pageUnder(sql, { purpose, epochId: next, keysMax: pageKeysOf(parts), after }),
      )
      if (page.ids.length === 0) break
      after = page.last
      const opened = await (await parts.holders.holding(next)).verify(page)
      const lost = selected(page, opened, 0)
      moved.survivors += page.ids.length - lost.ids.length
      if (lost.ids.length > 0)
        moved.damaged += await parts.database.write((tx) => dropWrapped(tx, lost))
    }
  }
}

/** Makes the new epoch the current one, once nothing at all is under the old. */
async function takeOver(
  parts: RollParts,
  roll: { from: EpochId | undefined; next: EpochId; moved: Moved },
): Promise<void> {
  const { from, next, moved } = roll
  for (;;) {
    const done = await parts.database.write(async (tx) => {
      if (from !== undefined) {
        if (await anyUnder(tx.sql, from)) return false
        await changeEpoch(tx, { id: from, from: 'current', to: 'retired' })
      }
      await changeEpoch(tx, { id: next, from: 'rolling', to: 'current' })
      return true
    })
    if (done) return
    assert(from !== undefined)
    await moveSurvivors(parts, { from, next, moved })
  }
}

/** Destroys the key of every retired epoch. @returns When, or null when there was none. */
async function destroyRetired(parts: RollParts, moved?: Moved): Promise<number | null> {
  const { database, store, holders, now } = parts
  let destroyedAtMs: number | null = null
  for (const { id } of await database.read((sql) => epochsIn(sql, 'retired'))) {
    await store.destroy(id)
    await holders.end(id)
    assert(!(await store.list()).includes(id))
    const atMs = now()
    await database.write(async (tx) => {
      await changeEpoch(tx, { id, from: 'retired', to: 'destroyed', destroyedAtMs: atMs })
      await appendAudit(tx, {
        atMs,
        type: 'epoch.rolled',
        actor: { kind: 'system' },
        site: '*',
        detail: { destroyed: id, survivors: moved?.survivors, damaged: moved?.damaged },
      })
    })
    destroyedAtMs = atMs
  }
  return destroyedAtMs
}

function pageKeysOf(parts: RollParts): number {
  return parts.pageKeys ?? limits.resealPageKeys
}

/** The entries of a page whose flag is `flag`. */
function selected(page: WrappedPage, flags: Uint8Array, flag: 0 | 1): WrappedPage {
  const chosen = page.ids.flatMap((id, index) => (flags[index] === flag ? [{ id, index }] : []))
  return {
    ...page,
    ids: chosen.map(({ id }) => id),
    wrapped: Buffer.concat(
      chosen.map(({ index }) =>
        page.wrapped.subarray(index * wrappedBytes, (index + 1) * wrappedBytes),
      ),
    ),
  }
}
