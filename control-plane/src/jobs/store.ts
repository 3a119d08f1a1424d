/** Remembers jobs, leases, uploads and results; every change of state is a compare-and-set. */
import {
  and,
  asc,
  count,
  desc,
  eq,
  gt,
  inArray,
  isNotNull,
  isNull,
  lt,
  or,
  type SQL,
} from '../database/drizzle.ts'
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId, JobId, LeaseId } from '@sluice/protocol/ids'
import { isOver, type JobState, mayBecome } from '@sluice/protocol/job'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Queries, Transaction } from '../database/database.ts'
import {
  agents,
  certificates,
  jobKeys,
  jobs,
  leases,
  legalHolds,
  results,
  uploads,
} from '../database/schema.ts'

export type JobRow = typeof jobs.$inferSelect
export type NewJob = typeof jobs.$inferInsert
export type LeaseRow = typeof leases.$inferSelect
export type UploadRow = typeof uploads.$inferSelect
export type LegalHoldRow = typeof legalHolds.$inferSelect
export type ResultRow = typeof results.$inferSelect

// ---------------------------------------------------------------- jobs

export async function jobById(sql: Queries, id: JobId): Promise<JobRow | undefined> {
  return sql.query.jobs.findFirst({ where: eq(jobs.id, id) })
}

/** @throws SluiceError `job.not_found`, also for another agent's job: whose it is stays unsaid. */
export async function jobOf(sql: Queries, captureAgentId: AgentId, id: JobId): Promise<JobRow> {
  const job = await jobById(sql, id)
  if (job?.captureAgentId !== captureAgentId) throw noSuchJob(id)
  return job
}

/** @throws SluiceError `job.not_found`. */
export async function existingJob(sql: Queries, id: JobId): Promise<JobRow> {
  const job = await jobById(sql, id)
  if (!job) throw noSuchJob(id)
  return job
}

function noSuchJob(id: JobId): SluiceError {
  return new SluiceError('job.not_found', `no job ${id}`)
}

export async function jobsOf(
  sql: Queries,
  captureAgentId: AgentId,
  ids: readonly JobId[],
): Promise<JobRow[]> {
  return sql
    .select()
    .from(jobs)
    .where(and(eq(jobs.captureAgentId, captureAgentId), inArray(jobs.id, [...ids])))
}

/** A capture agent's jobs in these states. */
export async function jobsInStates(
  sql: Queries,
  captureAgentId: AgentId,
  states: readonly JobState[],
): Promise<JobRow[]> {
  return sql
    .select()
    .from(jobs)
    .where(and(eq(jobs.captureAgentId, captureAgentId), inArray(jobs.state, [...states])))
}

/**
 * Jobs that wait for their archive without any change since `beforeMs`, and whose capture host was
 * not seen since then either.
 */
export async function waitingForAbsent(
  sql: Queries,
  which: { beforeMs: number; id?: JobId; after?: JobId | undefined; itemsMax: number },
): Promise<JobRow[]> {
  const { beforeMs, id, after, itemsMax } = which
  const rows = await sql
    .select({ job: jobs })
    .from(jobs)
    .innerJoin(agents, eq(agents.id, jobs.captureAgentId))
    .where(
      and(
        id === undefined ? undefined : eq(jobs.id, id),
        after === undefined ? undefined : gt(jobs.id, after),
        inArray(jobs.state, ['announced', 'uploading']),
        lt(jobs.stateChangedAtMs, beforeMs),
        isNull(jobs.heldAtMs),
        isNull(agents.connectedAtMs),
        lt(agents.joinedAtMs, beforeMs),
        or(isNull(agents.lastSeenAtMs), lt(agents.lastSeenAtMs, beforeMs)),
      ),
    )
    .orderBy(asc(jobs.id))
    .limit(itemsMax)
  return rows.map(({ job }) => job)
}

/** What was frozen for nothing but its hold is locked as well: lifting the hold alone frees it not. */
export async function lockHeldJobs(tx: Transaction, captureAgentId: AgentId): Promise<void> {
  await tx.sql
    .update(jobs)
    .set({ frozenByHold: false })
    .where(and(eq(jobs.captureAgentId, captureAgentId), eq(jobs.frozenByHold, true)))
}

// ---------------------------------------------------------------- legal holds

export async function addLegalHold(
  tx: Transaction,
  hold: typeof legalHolds.$inferInsert,
): Promise<void> {
  await tx.sql.insert(legalHolds).values(hold)
}

/** The hold a job is under now. */
export async function standingHold(sql: Queries, job: JobId): Promise<LegalHoldRow | undefined> {
  return sql.query.legalHolds.findFirst({
    where: and(eq(legalHolds.jobId, job), isNull(legalHolds.liftedAtMs)),
  })
}

export async function endLegalHold(
  tx: Transaction,
  job: JobId,
  end: Pick<LegalHoldRow, 'liftAskedBy' | 'liftedBy' | 'liftedAtMs'>,
): Promise<void> {
  await tx.sql
    .update(legalHolds)
    .set(end)
    .where(and(eq(legalHolds.jobId, job), isNull(legalHolds.liftedAtMs)))
}

export async function addJob(tx: Transaction, job: NewJob): Promise<void> {
  await tx.sql.insert(jobs).values(job)
}

export type StateChange = {
  jobId: JobId
  from: JobState
  to: JobState
  actor: Actor
  atMs: number
  /** Columns that change with the state. */
  set?: Partial<NewJob>
  /** Flat facts for the audit event. */
  detail?: Record<string, string | number | boolean>
}

/**
 * Changes a job's state if it still is `from`, and writes the audit event, in the caller's
 * transaction. Whoever comes second gets the conflict.
 *
 * @throws SluiceError `request.conflict` when the job is in another state by now.
 */
export async function changeState(
  tx: Transaction,
  change: StateChange,
  changes: Changes,
): Promise<void> {
  const { jobId, from, to, atMs } = change
  if (!mayBecome(from, to))
    throw new SluiceError('job.wrong_state', `a job that is ${from} cannot become ${to}`)
  const changed = await tx.sql
    .update(jobs)
    .set({ ...change.set, state: to, stateChangedAtMs: atMs })
    .where(and(eq(jobs.id, jobId), eq(jobs.state, from)))
    .returning({ site: jobs.site })
  const job = changed[0]
  if (!job)
    throw new SluiceError('request.conflict', `job ${jobId} is no longer ${from}`, {
      hint: 'Look at its state again; another decision came first.',
    })
  await appendAudit(tx, {
    atMs,
    type: 'job.state-changed',
    actor: change.actor,
    site: job.site,
    jobId,
    detail: { from, to, ...change.detail },
  })
  tx.afterCommit(() => changes.emit('job', jobId))
}

/** One page of jobs, newest first. */
export async function pageOfJobs(
  sql: Queries,
  which: {
    /** Sites the asker may see; null for all. */
    sites: readonly string[] | null
    states?: readonly JobState[] | undefined
    site?: string | undefined
    captureAgentId?: AgentId | undefined
    analyser?: string | undefined
    /** Only jobs older than this one. */
    before?: JobId | undefined
    itemsMax: number
  },
): Promise<JobRow[]> {
  const filters: SQL[] = []
  if (which.sites) filters.push(inArray(jobs.site, [...which.sites]))
  if (which.site) filters.push(eq(jobs.site, which.site))
  if (which.states) filters.push(inArray(jobs.state, [...which.states]))
  if (which.captureAgentId) filters.push(eq(jobs.captureAgentId, which.captureAgentId))
  if (which.analyser) filters.push(eq(jobs.analyser, which.analyser))
  if (which.before) filters.push(lt(jobs.id, which.before))
  return sql
    .select()
    .from(jobs)
    .where(and(...filters))
    .orderBy(desc(jobs.id))
    .limit(which.itemsMax)
}

export async function hasKey(sql: Queries, id: JobId): Promise<boolean> {
  const key = await sql.query.jobKeys.findFirst({
    columns: { jobId: true },
    where: eq(jobKeys.jobId, id),
  })
  return key !== undefined
}

/** Forgets the fate of an earlier try: a job is given a fresh start. */
export const freshStart = {
  expiresAtMs: null,
  problemCode: null,
  problemMessage: null,
  leaseAttempts: 0,
} as const

// ---------------------------------------------------------------- uploads

/** The newest upload of a job that is neither completed nor aborted. */
export async function openUpload(sql: Queries, id: JobId): Promise<UploadRow | undefined> {
  return sql.query.uploads.findFirst({
    where: and(eq(uploads.jobId, id), inArray(uploads.state, ['creating', 'open'])),
    orderBy: [desc(uploads.createdAtMs), desc(uploads.id)],
  })
}

export async function uploadById(sql: Queries, id: string): Promise<UploadRow | undefined> {
  return sql.query.uploads.findFirst({ where: eq(uploads.id, id) })
}

/** Every upload of a capture host's jobs that is neither completed nor aborted. */
export async function openUploadsOfAgent(
  sql: Queries,
  agent: AgentId,
): Promise<{ id: string; jobId: JobId }[]> {
  return sql
    .select({ id: uploads.id, jobId: uploads.jobId })
    .from(uploads)
    .innerJoin(jobs, eq(uploads.jobId, jobs.id))
    .where(and(eq(jobs.captureAgentId, agent), inArray(uploads.state, ['creating', 'open'])))
    .orderBy(asc(uploads.id))
}

export async function addUpload(tx: Transaction, upload: UploadRow): Promise<void> {
  await tx.sql.insert(uploads).values(upload)
}

export async function changeUpload(
  tx: Transaction,
  id: string,
  set: Partial<Pick<UploadRow, 'state' | 'storeUploadId' | 'endedAtMs'>>,
): Promise<void> {
  await tx.sql.update(uploads).set(set).where(eq(uploads.id, id))
}

// ---------------------------------------------------------------- leases

/** A lease together with its job, as far as both exist and belong to this node. */
export async function leaseOf(
  sql: Queries,
  node: AgentId,
  ref: { jobId: JobId; leaseId: LeaseId },
): Promise<{ lease: LeaseRow; job: JobRow } | undefined> {
  const rows = await sql
    .select({ lease: leases, job: jobs })
    .from(leases)
    .innerJoin(jobs, eq(leases.jobId, jobs.id))
    .where(and(eq(leases.id, ref.leaseId), eq(leases.jobId, ref.jobId), eq(leases.nodeId, node)))
  return rows[0]
}

export async function addLease(tx: Transaction, lease: typeof leases.$inferInsert): Promise<void> {
  await tx.sql.insert(leases).values(lease)
}

export async function changeLease(
  tx: Transaction,
  id: LeaseId,
  set: Partial<Pick<LeaseRow, 'acceptedAtMs' | 'keyReleasedAtMs' | 'deadlineAtMs'>>,
): Promise<void> {
  await tx.sql.update(leases).set(set).where(eq(leases.id, id))
}

/** Ends a lease if it holds. @returns Whether this call did it. */
export async function endLease(
  tx: Transaction,
  id: LeaseId,
  end: { atMs: number; reason: NonNullable<LeaseRow['endReason']> },
): Promise<boolean> {
  const ended = await tx.sql
    .update(leases)
    .set({ endedAtMs: end.atMs, endReason: end.reason })
    .where(and(eq(leases.id, id), isNull(leases.endedAtMs)))
  return ended.changes > 0
}

/** The lease that holds a job now. */
export async function openLease(sql: Queries, job: JobId): Promise<LeaseRow | undefined> {
  return sql.query.leases.findFirst({ where: and(eq(leases.jobId, job), isNull(leases.endedAtMs)) })
}

export async function leasesOfJob(sql: Queries, job: JobId): Promise<LeaseRow[]> {
  return sql.select().from(leases).where(eq(leases.jobId, job)).orderBy(asc(leases.fence))
}

export async function openLeasesOfNode(sql: Queries, node: AgentId): Promise<LeaseRow[]> {
  return sql
    .select()
    .from(leases)
    .where(and(eq(leases.nodeId, node), isNull(leases.endedAtMs)))
}

/** Every lease that holds, the oldest first. */
export async function openLeases(sql: Queries): Promise<LeaseRow[]> {
  return sql
    .select()
    .from(leases)
    .where(isNull(leases.endedAtMs))
    .orderBy(asc(leases.grantedAtMs), asc(leases.id))
}

// ---------------------------------------------------------------- dispatch

/** Which kinds of jobs wait for a lease. */
export async function waitingKinds(sql: Queries): Promise<{ site: string; analyser: string }[]> {
  return sql
    .selectDistinct({ site: jobs.site, analyser: jobs.analyser })
    .from(jobs)
    .where(eq(jobs.state, 'stored'))
}

/** Stored jobs of one kind, the longest waiting first. */
export async function waitingJobs(
  sql: Queries,
  kind: { site: string; analyser: string },
  itemsMax: number,
): Promise<JobRow[]> {
  return sql
    .select()
    .from(jobs)
    .where(
      and(eq(jobs.state, 'stored'), eq(jobs.site, kind.site), eq(jobs.analyser, kind.analyser)),
    )
    .orderBy(asc(jobs.stateChangedAtMs), asc(jobs.id))
    .limit(itemsMax)
}

/**
 * How many leases fill each node: those it holds, and those that ended after it had the key and
 * before it confirmed the wipe. A node that does not confirm gets no more work.
 */
export async function leaseLoad(sql: Queries): Promise<Map<AgentId, number>> {
  const rows = await sql
    .select({ nodeId: leases.nodeId, leases: count() })
    .from(leases)
    .where(
      and(
        isNull(leases.wipedAtMs),
        or(isNull(leases.endedAtMs), isNotNull(leases.keyReleasedAtMs)),
      ),
    )
    .groupBy(leases.nodeId)
  return new Map(rows.map((row) => [row.nodeId, row.leases]))
}

/** How often a job's leases came to nothing, by node. */
export async function failuresByNode(sql: Queries, job: JobId): Promise<Map<AgentId, number>> {
  const rows = await sql
    .select({ nodeId: leases.nodeId, leases: count() })
    .from(leases)
    .where(and(eq(leases.jobId, job), isNotNull(leases.endedAtMs)))
    .groupBy(leases.nodeId)
  return new Map(rows.map((row) => [row.nodeId, row.leases]))
}

/** GPU nodes that may be given work, as the operator set them. */
export async function gpuNodes(sql: Queries, ids: readonly AgentId[]) {
  if (ids.length === 0) return []
  return sql
    .select()
    .from(agents)
    .where(and(inArray(agents.id, [...ids]), eq(agents.role, 'gpu'), isNull(agents.revokedAtMs)))
}

// ---------------------------------------------------------------- results and certificates

export async function resultOf(sql: Queries, job: JobId): Promise<ResultRow | undefined> {
  return sql.query.results.findFirst({ where: eq(results.jobId, job) })
}

export async function addResult(
  tx: Transaction,
  result: typeof results.$inferInsert,
): Promise<void> {
  await tx.sql.insert(results).values(result)
}

/** @returns Whether this call recorded it; false when it was recorded before. */
export async function markDelivered(tx: Transaction, job: JobId, atMs: number): Promise<boolean> {
  const marked = await tx.sql
    .update(results)
    .set({ deliveredAtMs: atMs })
    .where(and(eq(results.jobId, job), isNull(results.deliveredAtMs)))
  return marked.changes > 0
}

export async function certificateText(sql: Queries, job: JobId): Promise<string | undefined> {
  const row = await sql.query.certificates.findFirst({
    columns: { envelope: true },
    where: eq(certificates.jobId, job),
  })
  return row?.envelope
}

/** One page of certificates, without their text, oldest job first. */
export async function pageOfCertificates(
  sql: Queries,
  which: { sites: readonly string[] | null; after?: JobId | undefined; itemsMax: number },
) {
  const filters: SQL[] = []
  if (which.sites) filters.push(inArray(certificates.site, [...which.sites]))
  if (which.after) filters.push(gt(certificates.jobId, which.after))
  return sql
    .select({
      jobId: certificates.jobId,
      site: certificates.site,
      issuedAtMs: certificates.issuedAtMs,
    })
    .from(certificates)
    .where(and(...filters))
    .orderBy(asc(certificates.jobId))
    .limit(which.itemsMax)
}

/** @throws SluiceError `request.conflict` when nothing of the job can change any more. */
export function refuseOver(job: Pick<JobRow, 'id' | 'state'>): void {
  if (job.state === 'deleting' || isOver(job.state))
    throw new SluiceError('request.conflict', `job ${job.id} is ${job.state} already`)
}
