/** Remembers sweeps and what they found, and reads the database in pages for them to compare. */
import {
  and,
  asc,
  count,
  desc,
  eq,
  gt,
  inArray,
  isNull,
  lte,
  notInArray,
  or,
} from '../database/drizzle.ts'
import {
  type AgentId,
  findingId,
  type FindingId,
  type JobId,
  type SweepId,
} from '@sluice/protocol/ids'
import { type JobState, jobStates } from '@sluice/protocol/job'
import { newId } from '@sluice/protocol/process/new-id'
import type { SweepFindingKind } from '@sluice/protocol/sweep'
import type { Queries, Transaction } from '../database/database.ts'
import {
  agents,
  epochs,
  jobKeys,
  jobs,
  leases,
  sweepFindings,
  sweeps,
  uploads,
} from '../database/schema.ts'
import { type Difference, needsKey, needsSpool, type SweptJob } from './rules.ts'

export type SweepRow = typeof sweeps.$inferSelect
export type FindingRow = typeof sweepFindings.$inferSelect

// ---------------------------------------------------------------- sweeps

export async function addSweep(tx: Transaction, sweep: typeof sweeps.$inferInsert): Promise<void> {
  await tx.sql.insert(sweeps).values(sweep)
}

export async function endSweep(
  tx: Transaction,
  id: SweepId,
  end: Partial<typeof sweeps.$inferInsert>,
): Promise<void> {
  await tx.sql.update(sweeps).set(end).where(eq(sweeps.id, id))
}

/** Ends what a crash cut short. */
export async function failUnfinished(tx: Transaction, atMs: number): Promise<void> {
  await tx.sql
    .update(sweeps)
    .set({ state: 'failed', endedAtMs: atMs, problemCode: 'internal' })
    .where(eq(sweeps.state, 'running'))
}

export async function sweepById(sql: Queries, id: SweepId): Promise<SweepRow | undefined> {
  return sql.query.sweeps.findFirst({ where: eq(sweeps.id, id) })
}

/** The newest sweep that was for real and came to its end. */
export async function lastWhole(sql: Queries): Promise<SweepRow | undefined> {
  return sql.query.sweeps.findFirst({
    where: and(eq(sweeps.state, 'ended'), eq(sweeps.dryRun, false)),
    orderBy: desc(sweeps.startedAtMs),
  })
}

/** Newest first. */
export async function pageOfSweeps(
  sql: Queries,
  which: { before?: SweepId | undefined; itemsMax: number },
): Promise<SweepRow[]> {
  return sql
    .select()
    .from(sweeps)
    .where(which.before === undefined ? undefined : lte(sweeps.id, which.before))
    .orderBy(desc(sweeps.id))
    .limit(which.itemsMax)
}

// ---------------------------------------------------------------- findings

/**
 * Writes a difference down. One that was known is seen again; one that had ended begins anew.
 *
 * @returns Its row, and whether it begins now to be in this state.
 */
export async function recordFinding(
  tx: Transaction,
  found: Difference & {
    sweepId: SweepId
    state: 'quarantined' | 'reported'
    atMs: number
    graceUntilMs: number | null
  },
): Promise<{ finding: FindingRow; fresh: boolean }> {
  const { sweepId, kind, subject, state, atMs, graceUntilMs } = found
  const mine = and(eq(sweepFindings.kind, kind), eq(sweepFindings.subject, subject))
  const known = await tx.sql.query.sweepFindings.findFirst({ where: mine })
  const seen = { sweepId, lastSeenAtMs: atMs }
  if (known?.endedAtMs === null) {
    // What a dry run only reported is taken into quarantine by the first one that is for real.
    const raised = known.state === 'reported' && state === 'quarantined'
    const again = raised ? { ...seen, state, graceUntilMs } : seen
    await tx.sql.update(sweepFindings).set(again).where(mine)
    return { finding: { ...known, ...again }, fresh: raised }
  }
  const row = {
    id: newId(findingId, atMs),
    ...seen,
    kind,
    subject,
    agentId: found.agentId ?? null,
    jobId: found.jobId ?? null,
    state,
    firstSeenAtMs: atMs,
    graceUntilMs,
    endedAtMs: null,
  }
  if (known) await tx.sql.delete(sweepFindings).where(mine)
  await tx.sql.insert(sweepFindings).values(row)
  return { finding: row, fresh: true }
}

export async function findingById(sql: Queries, id: string): Promise<FindingRow | undefined> {
  return sql.query.sweepFindings.findFirst({ where: eq(sweepFindings.id, id as FindingId) })
}

/** @returns Whether it had not ended before. */
export async function endFinding(
  tx: Transaction,
  id: FindingId,
  end: { state: 'deleted' | 'gone'; atMs: number },
): Promise<boolean> {
  const ended = await tx.sql
    .update(sweepFindings)
    .set({ state: end.state, endedAtMs: end.atMs })
    .where(and(eq(sweepFindings.id, id), isNull(sweepFindings.endedAtMs)))
  return ended.changes > 0
}

export async function changeFinding(
  tx: Transaction,
  id: FindingId,
  set: { state: 'quarantined' | 'kept'; graceUntilMs: number | null },
): Promise<void> {
  await tx.sql.update(sweepFindings).set(set).where(eq(sweepFindings.id, id))
}

/** Findings of these kinds that a whole look no longer saw are over. @returns How many. */
export async function endUnseen(
  tx: Transaction,
  which: { sweepId: SweepId; kinds: readonly SweepFindingKind[]; agentId?: AgentId; atMs: number },
): Promise<number> {
  const ended = await tx.sql
    .update(sweepFindings)
    .set({ state: 'gone', endedAtMs: which.atMs })
    .where(
      and(
        isNull(sweepFindings.endedAtMs),
        inArray(sweepFindings.kind, [...which.kinds]),
        notInArray(sweepFindings.sweepId, [which.sweepId]),
        which.agentId === undefined ? undefined : eq(sweepFindings.agentId, which.agentId),
      ),
    )
  return ended.changes
}

export async function pageOfFindings(
  sql: Queries,
  which: {
    sweepId?: SweepId | undefined
    open?: boolean
    after?: FindingId | undefined
    itemsMax: number
  },
): Promise<FindingRow[]> {
  return sql
    .select()
    .from(sweepFindings)
    .where(
      and(
        which.sweepId === undefined ? undefined : eq(sweepFindings.sweepId, which.sweepId),
        which.open === true ? isNull(sweepFindings.endedAtMs) : undefined,
        which.after === undefined ? undefined : gt(sweepFindings.id, which.after),
      ),
    )
    .orderBy(asc(sweepFindings.id))
    .limit(which.itemsMax)
}

// ---------------------------------------------------------------- what is compared

/** Jobs in the order of their object keys, as far as a sweep needs them. */
export async function jobsByObjectKey(
  sql: Queries,
  which: { after: string; itemsMax: number },
): Promise<SweptJob[]> {
  const rows = await sql
    .select(sweptColumns)
    .from(jobs)
    .where(gt(jobs.objectKey, which.after as typeof jobs.$inferSelect.objectKey))
    .orderBy(asc(jobs.objectKey))
    .limit(which.itemsMax)
  return withUploads(sql, rows)
}

export async function jobByObjectKey(sql: Queries, key: string): Promise<SweptJob | undefined> {
  const rows = await sql
    .select(sweptColumns)
    .from(jobs)
    .where(eq(jobs.objectKey, key as typeof jobs.$inferSelect.objectKey))
  return (await withUploads(sql, rows))[0]
}

const sweptColumns = {
  id: jobs.id,
  objectKey: jobs.objectKey,
  state: jobs.state,
  frozenFrom: jobs.frozenFrom,
  storedAtMs: jobs.storedAtMs,
  sealedBytes: jobs.sealedBytes,
}

async function withUploads(
  sql: Queries,
  rows: Omit<SweptJob, 'openUploads'>[],
): Promise<SweptJob[]> {
  if (rows.length === 0) return []
  const open = await sql
    .select({ jobId: uploads.jobId, storeUploadId: uploads.storeUploadId })
    .from(uploads)
    .where(
      and(
        inArray(
          uploads.jobId,
          rows.map(({ id }) => id),
        ),
        inArray(uploads.state, ['creating', 'open']),
      ),
    )
  const byJob = Map.groupBy(open, ({ jobId }) => jobId)
  return rows.map((row) => ({
    ...row,
    openUploads: (byJob.get(row.id) ?? []).flatMap(({ storeUploadId }) => storeUploadId ?? []),
  }))
}

export async function jobStatesOf(
  sql: Queries,
  agent: AgentId,
  ids: readonly JobId[],
): Promise<Map<JobId, JobState>> {
  if (ids.length === 0) return new Map()
  const rows = await sql
    .select({ id: jobs.id, state: jobs.state })
    .from(jobs)
    .where(and(eq(jobs.captureAgentId, agent), inArray(jobs.id, [...ids])))
  return new Map(rows.map(({ id, state }) => [id, state]))
}

/** Jobs of a capture host that nothing but its spool holds yet. */
export async function jobsWithSpoolOnly(sql: Queries, agent: AgentId): Promise<JobId[]> {
  const rows = await sql
    .select({ id: jobs.id, state: jobs.state, frozenFrom: jobs.frozenFrom })
    .from(jobs)
    .where(
      and(
        eq(jobs.captureAgentId, agent),
        inArray(jobs.state, ['announced', 'uploading', 'frozen']),
      ),
    )
  return rows.filter(needsSpool).map(({ id }) => id)
}

export async function agentsToAsk(sql: Queries): Promise<{ id: AgentId; site: string }[]> {
  return sql
    .select({ id: agents.id, site: agents.site })
    .from(agents)
    .where(isNull(agents.revokedAtMs))
    .orderBy(asc(agents.id))
}

/** When each of these leases ended; null while it holds, absent when there never was one. */
export async function leaseEnds(
  sql: Queries,
  node: AgentId,
  ids: readonly (typeof leases.$inferSelect)['id'][],
): Promise<Map<string, number | null>> {
  if (ids.length === 0) return new Map()
  const rows = await sql
    .select({ id: leases.id, endedAtMs: leases.endedAtMs })
    .from(leases)
    .where(and(eq(leases.nodeId, node), inArray(leases.id, [...ids])))
  return new Map(rows.map(({ id, endedAtMs }) => [id, endedAtMs]))
}

const keyedStates = jobStates.filter(needsKey)

/** Key rows that should not be: of no job, or of one that needs its key no more. */
export async function strangeKeyRows(sql: Queries, itemsMax: number): Promise<JobId[]> {
  const rows = await sql
    .select({ id: jobKeys.jobId })
    .from(jobKeys)
    .leftJoin(jobs, eq(jobs.id, jobKeys.jobId))
    .where(or(isNull(jobs.id), inArray(jobs.state, ['deleting', 'deleted', 'deleted-unconfirmed'])))
    .limit(itemsMax)
  return rows.map(({ id }) => id)
}

/** Jobs that need a key and have none. */
export async function jobsWithoutKey(sql: Queries, itemsMax: number): Promise<JobId[]> {
  const rows = await sql
    .select({ id: jobs.id })
    .from(jobs)
    .leftJoin(jobKeys, eq(jobs.id, jobKeys.jobId))
    .where(and(isNull(jobKeys.jobId), inArray(jobs.state, keyedStates)))
    .limit(itemsMax)
  return rows.map(({ id }) => id)
}

export async function keyRowsCount(sql: Queries): Promise<number> {
  const rows = await sql.select({ rows: count() }).from(jobKeys)
  return rows[0]?.rows ?? 0
}

/** Epochs whose key should be in the key store. */
export async function epochsWithKey(sql: Queries): Promise<string[]> {
  const rows = await sql
    .select({ id: epochs.id })
    .from(epochs)
    .where(inArray(epochs.state, ['current', 'rolling', 'retired']))
  return rows.map(({ id }) => id)
}
