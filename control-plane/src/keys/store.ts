/** Remembers epochs and what is wrapped under them; never a key in clear. */
import { and, asc, count, eq, gte, isNull, lte, or, sql as raw } from '../database/drizzle.ts'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId, EpochId, JobId, ReceiveKeyId } from '@sluice/protocol/ids'
import { appendAudit } from '../audit/store.ts'
import type { Queries, Transaction } from '../database/database.ts'
import { preparedOnce } from '../database/prepared.ts'
import { epochs, jobKeys, receiveKeys } from '../database/schema.ts'
import { type DestructionLevel, weakestOf } from './epoch-key-store.ts'
import {
  wrappedBytes,
  type WrappedKey,
  type WrappedPage,
  type WrappedPurpose,
} from './key-operations.ts'

export type EpochRow = typeof epochs.$inferSelect
export type ReceiveKeyRow = typeof receiveKeys.$inferSelect

// ---------------------------------------------------------------- epochs

export async function addEpoch(
  tx: Transaction,
  epoch: {
    id: EpochId
    createdAtMs: number
    state: 'rolling'
    store: EpochRow['store']
    level: EpochRow['level']
    levelReason: string
  },
): Promise<void> {
  await tx.sql.insert(epochs).values(epoch)
}

/** Epochs in a state, oldest first. */
export async function epochsIn(sql: Queries, state: EpochRow['state']): Promise<EpochRow[]> {
  return sql
    .select()
    .from(epochs)
    .where(eq(epochs.state, state))
    .orderBy(asc(epochs.createdAtMs), asc(epochs.id))
}

/** Epochs that keys may be wrapped under, the current one first. */
export async function liveEpochs(sql: Queries): Promise<EpochId[]> {
  const rows = [...(await epochsIn(sql, 'current')), ...(await epochsIn(sql, 'rolling'))]
  return rows.map((row) => row.id)
}

/** For an epoch whose key is made elsewhere than was meant when its row was written. */
export async function moveEpoch(
  tx: Transaction,
  epoch: Pick<EpochRow, 'id' | 'store' | 'level' | 'levelReason'>,
): Promise<void> {
  const { id, store, level, levelReason } = epoch
  await tx.sql.update(epochs).set({ store, level, levelReason }).where(eq(epochs.id, id))
}

/**
 * The least that the destruction of any epoch may claim which was not over at an instant: a key that
 * once lay under one of them is gone no better than that.
 */
export async function leastLevelSince(sql: Queries, atMs: number): Promise<DestructionLevel> {
  const rows = await sql
    .select({ level: epochs.level, reason: epochs.levelReason })
    .from(epochs)
    .where(or(isNull(epochs.destroyedAtMs), gte(epochs.destroyedAtMs, atMs)))
  return weakestOf(rows)
}

/** Where the keys lay that were destroyed in a span of time, whichever way the clock was set in it. */
export async function placesDestroyed(
  sql: Queries,
  span: { startedAtMs: number; destroyedAtMs: number },
): Promise<EpochRow['store'][]> {
  const fromMs = Math.min(span.startedAtMs, span.destroyedAtMs)
  const toMs = Math.max(span.startedAtMs, span.destroyedAtMs)
  const rows = await sql
    .selectDistinct({ store: epochs.store })
    .from(epochs)
    .where(and(gte(epochs.destroyedAtMs, fromMs), lte(epochs.destroyedAtMs, toMs)))
  return rows.map((row) => row.store)
}

/** @throws SluiceError `request.conflict` when the epoch is not in `from`. */
export async function changeEpoch(
  tx: Transaction,
  change: {
    id: EpochId
    from: EpochRow['state']
    to: EpochRow['state']
    destroyedAtMs?: number
  },
): Promise<void> {
  const changed = await tx.sql
    .update(epochs)
    .set({ state: change.to, destroyedAtMs: change.destroyedAtMs ?? null })
    .where(and(eq(epochs.id, change.id), eq(epochs.state, change.from)))
  if (changed.changes === 1) return
  throw new SluiceError('request.conflict', `epoch ${change.id} is not ${change.from}`)
}

async function takesKeys(sql: Queries, id: EpochId): Promise<boolean> {
  const epoch = stateOfEpoch(sql).get({ id })
  return epoch?.state === 'current' || epoch?.state === 'rolling'
}

/** Asked for every key that is written. */
const stateOfEpoch = preparedOnce((sql) =>
  sql
    .select({ state: epochs.state })
    .from(epochs)
    .where(eq(epochs.id, raw.placeholder('id')))
    .prepare(),
)

async function requireTakesKeys(sql: Queries, id: EpochId): Promise<void> {
  if (await takesKeys(sql, id)) return
  throw new SluiceError('keys.destroyed', 'the epoch ended while a key was wrapped under it', {
    retry: 'later',
  })
}

// ---------------------------------------------------------------- wrapped keys

export const wrappedPurposes = ['job-key', 'receive-seed'] as const satisfies WrappedPurpose[]

/** The two tables look alike to a roll. */
const wrappedColumns = {
  'job-key': {
    table: jobKeys,
    id: jobKeys.jobId,
    epoch: jobKeys.epochId,
    wrapped: jobKeys.wrapped,
  },
  'receive-seed': {
    table: receiveKeys,
    id: receiveKeys.id,
    epoch: receiveKeys.epochId,
    wrapped: receiveKeys.wrappedSeed,
  },
} as const

/**
 * Wrapped keys of one epoch, those after `after`, in the order of their rows: the index by epoch has
 * them in it, so that no page costs more than its own length.
 *
 * @returns `last`: what to pass as `after` next.
 */
export async function pageUnder(
  sql: Queries,
  page: {
    purpose: WrappedPurpose
    epochId: EpochId
    keysMax: number
    after?: number | undefined
  },
): Promise<WrappedPage & { last: number | undefined }> {
  const { table, id, epoch, wrapped } = wrappedColumns[page.purpose]
  const row = raw<number>`${table}.rowid`
  const rows = await sql
    .select({ row, id: raw<string>`${id}`, wrapped: raw<Buffer>`${wrapped}` })
    .from(table)
    .where(
      and(
        eq(epoch, page.epochId),
        page.after === undefined ? undefined : raw`${row} > ${page.after}`,
      ),
    )
    .orderBy(row)
    .limit(page.keysMax)
  return {
    purpose: page.purpose,
    epochId: page.epochId,
    ids: rows.map((one) => one.id),
    // One of a wrong size opens no more than zeros do.
    wrapped: Buffer.concat(
      rows.map(({ wrapped: bytes }) =>
        bytes.length === wrappedBytes ? bytes : Buffer.alloc(wrappedBytes),
      ),
    ),
    last: rows.at(-1)?.row,
  }
}

export async function anyUnder(sql: Queries, id: EpochId): Promise<boolean> {
  const job = await sql.query.jobKeys.findFirst({ where: eq(jobKeys.epochId, id) })
  const seed = await sql.query.receiveKeys.findFirst({ where: eq(receiveKeys.epochId, id) })
  return job !== undefined || seed !== undefined
}

/**
 * Replaces each wrapped key that is still the one that was re-sealed: one statement a page, which
 * takes both pages as they are.
 */
export async function replaceWrapped(
  tx: Transaction,
  pages: { before: WrappedPage; after: WrappedPage },
): Promise<void> {
  const { before, after } = pages
  const size = raw.raw(String(wrappedBytes))
  const piece = (page: WrappedPage) => raw`substr(${page.wrapped}, page.key * ${size} + 1, ${size})`
  const ids = raw`json_each(${JSON.stringify(before.ids)}) AS page`
  const statement =
    before.purpose === 'job-key'
      ? raw`UPDATE job_keys SET epoch_id = ${after.epochId}, wrapped = ${piece(after)}
          FROM ${ids} WHERE job_id = page.value AND wrapped = ${piece(before)}`
      : raw`UPDATE receive_keys SET epoch_id = ${after.epochId}, wrapped_seed = ${piece(after)}
          FROM ${ids} WHERE receive_keys.id = page.value AND wrapped_seed = ${piece(before)}`
  // Runs at once: this query builder has no promise.
  tx.sql.run(statement)
}

/** Drops wrapped keys that do not open. @returns How many there were. */
export async function dropWrapped(tx: Transaction, page: WrappedPage): Promise<number> {
  const { table, id, epoch } = wrappedColumns[page.purpose]
  if (page.ids.length === 0) return 0
  const dropped = await tx.sql
    .delete(table)
    .where(and(raw`${id} IN ${page.ids}`, eq(epoch, page.epochId)))
  return dropped.changes
}

/**
 * Ends epochs whose key is lost, with everything that was wrapped under them: nothing opens it any
 * more. Lost is not destroyed, so certificates may claim nothing for them.
 */
export async function giveUpEpochs(
  tx: Transaction,
  lost: { ids: readonly EpochId[]; atMs: number },
): Promise<void> {
  const { atMs } = lost
  for (const id of lost.ids) {
    const keys = await tx.sql.delete(jobKeys).where(eq(jobKeys.epochId, id))
    const seeds = await tx.sql.delete(receiveKeys).where(eq(receiveKeys.epochId, id))
    await tx.sql
      .update(epochs)
      .set({
        state: 'destroyed',
        destroyedAtMs: atMs,
        level: 'none',
        levelReason: 'an epoch key was lost, not destroyed: a copy may be somewhere',
      })
      .where(eq(epochs.id, id))
    await appendAudit(tx, {
      atMs,
      type: 'epoch.lost',
      actor: { kind: 'system' },
      site: '*',
      detail: { epochId: id, jobKeys: keys.changes, receiveKeys: seeds.changes },
    })
  }
}

/**
 * Stores an escrowed job key and deletes the receive key it came by, in the transaction that writes
 * the job. From the next roll on, the envelope opens for nobody.
 *
 * @throws SluiceError `keys.destroyed`: with `later`, open the escrow again, its epoch ended
 * meanwhile; with `never`, the receive key was used before.
 */
export async function storeJobKey(
  tx: Transaction,
  escrowed: { jobId: JobId; senderId: AgentId; receiveKeyId: ReceiveKeyId; key: WrappedKey },
): Promise<void> {
  const { jobId, senderId, receiveKeyId, key } = escrowed
  await requireTakesKeys(tx.sql, key.epochId)
  const used = await tx.sql
    .delete(receiveKeys)
    .where(and(eq(receiveKeys.id, receiveKeyId), eq(receiveKeys.agentId, senderId)))
  if (used.changes === 0) throw receiveKeyGone()
  await tx.sql.insert(jobKeys).values({ jobId, epochId: key.epochId, wrapped: key.wrapped })
}

export async function jobKeyOf(sql: Queries, job: JobId): Promise<WrappedKey | undefined> {
  return sql.query.jobKeys.findFirst({
    columns: { epochId: true, wrapped: true },
    where: eq(jobKeys.jobId, job),
  })
}

// ---------------------------------------------------------------- receive keys

export function receiveKeyGone(): SluiceError {
  return new SluiceError('keys.destroyed', 'this receive key is used up or expired', {
    hint: 'Seal the media again: a receive key opens one envelope, once.',
  })
}

export async function seedOf(
  sql: Queries,
  which: { id: ReceiveKeyId; agentId: AgentId },
): Promise<WrappedKey | undefined> {
  const row = await sql.query.receiveKeys.findFirst({
    columns: { epochId: true, wrappedSeed: true },
    where: and(eq(receiveKeys.id, which.id), eq(receiveKeys.agentId, which.agentId)),
  })
  return row && { epochId: row.epochId, wrapped: row.wrappedSeed }
}

export async function countReceiveKeys(sql: Queries, agent: AgentId): Promise<number> {
  const rows = await sql
    .select({ keys: count() })
    .from(receiveKeys)
    .where(eq(receiveKeys.agentId, agent))
  return rows[0]?.keys ?? 0
}

/** @throws SluiceError `keys.destroyed` (`later`) when their epoch ended meanwhile. */
export async function addReceiveKeys(
  tx: Transaction,
  rows: readonly (typeof receiveKeys.$inferInsert)[],
): Promise<void> {
  for (const row of rows) await requireTakesKeys(tx.sql, row.epochId)
  if (rows.length > 0) await tx.sql.insert(receiveKeys).values([...rows])
}

/** Deletes receive keys that nobody used in time. @returns How many. */
export async function expireReceiveKeys(tx: Transaction, nowMs: number): Promise<number> {
  const expired = await tx.sql.delete(receiveKeys).where(lte(receiveKeys.expiresAtMs, nowMs))
  return expired.changes
}
