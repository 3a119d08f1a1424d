/** Remembers everything still owed about a job, and the receipts that settle it. */
import { setImmediate } from 'node:timers/promises'
import {
  and,
  asc,
  eq,
  gt,
  inArray,
  isNull,
  lte,
  min,
  ne,
  or,
  type SQL,
  sql as raw,
} from '../database/drizzle.ts'
import type { Progress } from '@sluice/protocol/api-obligations'
import type { ErrorCode } from '@sluice/protocol/errors'
import {
  type AgentId,
  type CommandId,
  type JobId,
  type LeaseId,
  type ObligationId,
  obligationId,
  type PurgeId,
} from '@sluice/protocol/ids'
import { jobStates } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import type { Holder } from '@sluice/protocol/receipt'
import type { Changes } from '../changes.ts'
import type { Queries, Transaction } from '../database/database.ts'
import { preparedOnce } from '../database/prepared.ts'
import {
  agents,
  certificates,
  commands,
  evidenceDocuments,
  jobKeys,
  type JobObligationKind,
  jobs,
  leases,
  type ObligationKind,
  obligations,
  receipts,
  results,
  type SubjectObligationKind,
  uploads,
} from '../database/schema.ts'
import { type KnownDuty, type Obligation, progressOf } from './rules.ts'

export type ReceiptRow = typeof receipts.$inferSelect
export type JobRow = typeof jobs.$inferSelect
export type LeaseRow = typeof leases.$inferSelect

/** What a duty is about: one job, a job in the replica `subjectId`, or something else by its id. */
type About =
  | { jobId: JobId; kind: Exclude<JobObligationKind, 'replica.delete'>; subjectId?: never }
  | { jobId: JobId; kind: 'replica.delete'; subjectId: string }
  | { jobId?: never; kind: SubjectObligationKind; subjectId: string }

export type NewObligation = About & {
  /** Given when the id was promised to a holder before; otherwise made here. */
  id?: ObligationId
  /** Who may see it; `*` for what concerns all sites. */
  site: string
  /** Who must sign for it; for the control plane's own holders it may stay open until then. */
  holder?: Holder
  leaseId?: LeaseId
  /** The agent it waits for. */
  agentId?: AgentId
  /** The order that asks the agent for it. */
  commandId?: CommandId
  /** `waiting`: known, not due before the job is deleted. */
  state: 'waiting' | 'due'
  atMs: number
  /** When it may first be worked on; at once by default. */
  nextTryAtMs?: number
  /** Beyond this it is alarmed; `limits.obligationOverdueMs` after `atMs` by default. */
  deadlineAtMs?: number
}

/**
 * Records a duty in the caller's transaction, together with the change that caused it.
 *
 * @returns The id that the holder's receipt must name.
 */
export async function addObligation(
  tx: Transaction,
  owed: NewObligation,
  changes: Changes,
): Promise<ObligationId> {
  const id = owed.id ?? newId(obligationId, owed.atMs)
  await tx.sql.insert(obligations).values({
    id,
    jobId: owed.jobId ?? null,
    kind: owed.kind,
    site: owed.site,
    holder: owed.holder ?? null,
    leaseId: owed.leaseId ?? null,
    agentId: owed.agentId ?? null,
    subjectId: owed.subjectId ?? null,
    commandId: owed.commandId ?? null,
    state: owed.state,
    nextTryAtMs: owed.nextTryAtMs ?? owed.atMs,
    deadlineAtMs: owed.deadlineAtMs ?? owed.atMs + limits.obligationOverdueMs,
    createdAtMs: owed.atMs,
  })
  if (owed.state === 'due') tx.afterCommit(() => changes.emit('obligation'))
  return id
}

/** A duty that comes back: its one row is owed again once it is done, and made when there is none. */
export async function oweAgain(
  tx: Transaction,
  owed: { kind: SubjectObligationKind; subjectId: string; site: string; atMs: number },
  changes: Changes,
): Promise<void> {
  const { kind, subjectId, atMs } = owed
  const its = and(eq(obligations.subjectId, subjectId), eq(obligations.kind, kind))
  const row = await tx.sql.query.obligations.findFirst({ where: its })
  if (row === undefined) {
    await addObligation(tx, { ...owed, state: 'due' }, changes)
    return
  }
  if (row.state !== 'done') return
  await tx.sql
    .update(obligations)
    .set({
      ...{ state: 'due', attempts: 0, nextTryAtMs: atMs, doneAtMs: null, alarmedAtMs: null },
      deadlineAtMs: atMs + limits.obligationOverdueMs,
    })
    .where(its)
  tx.afterCommit(() => changes.emit('obligation'))
}

/** Makes a job's waiting duties of these kinds due; those that are due or done stay as they are. */
export async function makeDue(
  tx: Transaction,
  due: {
    jobId: JobId
    kinds: readonly ObligationKind[]
    /** Only the duty of this lease. */
    leaseId?: LeaseId
    atMs: number
    nextTryAtMs?: number
  },
  changes: Changes,
): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({
      state: 'due',
      nextTryAtMs: due.nextTryAtMs ?? due.atMs,
      deadlineAtMs: due.atMs + limits.obligationOverdueMs,
    })
    .where(
      and(
        eq(obligations.jobId, due.jobId),
        inArray(obligations.kind, [...due.kinds]),
        eq(obligations.state, 'waiting'),
        due.leaseId === undefined ? undefined : eq(obligations.leaseId, due.leaseId),
      ),
    )
  tx.afterCommit(() => changes.emit('obligation'))
}

/** Lets the engine look at a job's due duty at once instead of at its next try. */
export async function bringForward(
  tx: Transaction,
  which: { jobId: JobId; kind: ObligationKind; atMs: number },
  changes: Changes,
): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({ nextTryAtMs: which.atMs })
    .where(
      and(
        eq(obligations.jobId, which.jobId),
        eq(obligations.kind, which.kind),
        eq(obligations.state, 'due'),
      ),
    )
  tx.afterCommit(() => changes.emit('obligation'))
}

/** Lets the engine look at once at what is due about a subject. */
export async function bringSubjectForward(
  tx: Transaction,
  which: { subjectId: string; atMs: number },
  changes: Changes,
): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({ nextTryAtMs: which.atMs })
    .where(and(eq(obligations.subjectId, which.subjectId), eq(obligations.state, 'due')))
  tx.afterCommit(() => changes.emit('obligation'))
}

/**
 * Settles a job's open duties of these kinds without a receipt: they lost their point. Only for
 * kinds that no holder signs for.
 */
export async function dropDuties(
  tx: Transaction,
  which: { jobId: JobId; kinds: readonly ('job.expire' | 'job.expiry-notice')[]; atMs: number },
): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({ state: 'done', doneAtMs: which.atMs })
    .where(
      and(
        eq(obligations.jobId, which.jobId),
        inArray(obligations.kind, [...which.kinds]),
        ne(obligations.state, 'done'),
      ),
    )
}

/** Gives a duty more time before it counts as overdue. */
export async function extendDeadline(
  tx: Transaction,
  id: ObligationId,
  deadlineAtMs: number,
): Promise<void> {
  await tx.sql.update(obligations).set({ deadlineAtMs }).where(eq(obligations.id, id))
}

/** Marks a duty done. @returns Whether this call did it; false when it was done before. */
export async function markDone(tx: Transaction, id: ObligationId, atMs: number): Promise<boolean> {
  return settleDuty(tx.sql).run({ id, atMs }).changes > 0
}

const settleDuty = preparedOnce((sql) =>
  sql
    .update(obligations)
    .set({
      state: 'done',
      doneAtMs: raw`${raw.placeholder('atMs')}`,
      lastError: null,
      lastErrorCode: null,
    })
    .where(and(eq(obligations.id, raw.placeholder('id')), ne(obligations.state, 'done')))
    .prepare(),
)

/** Settles a subject's open duties of a kind that no holder signs for. */
export async function settleSubject(
  tx: Transaction,
  which: { subjectId: string; kind: SubjectObligationKind; atMs: number },
): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({ state: 'done', doneAtMs: which.atMs, lastError: null, lastErrorCode: null })
    .where(
      and(
        eq(obligations.subjectId, which.subjectId),
        eq(obligations.kind, which.kind),
        ne(obligations.state, 'done'),
      ),
    )
}

/** Duties to work on now, the longest waiting first. */
export async function dueObligations(
  sql: Queries,
  which: { kind: ObligationKind; nowMs: number; itemsMax: number },
): Promise<Obligation[]> {
  return sql
    .select()
    .from(obligations)
    .where(
      and(
        eq(obligations.kind, which.kind),
        eq(obligations.state, 'due'),
        lte(obligations.nextTryAtMs, which.nowMs),
      ),
    )
    .orderBy(asc(obligations.nextTryAtMs), asc(obligations.id))
    .limit(which.itemsMax)
}

/** When the next duty after `nowMs` may be worked on, or undefined when there is none. */
export async function nextDutyAtMs(sql: Queries, nowMs: number): Promise<number | undefined> {
  const rows = await sql
    .select({ atMs: min(obligations.nextTryAtMs) })
    .from(obligations)
    .where(and(eq(obligations.state, 'due'), gt(obligations.nextTryAtMs, nowMs)))
  return rows[0]?.atMs ?? undefined
}

/** Duties that are late and were not alarmed yet: each is returned once, ever. */
export async function takeOverdue(tx: Transaction, nowMs: number): Promise<Obligation[]> {
  return tx.sql
    .update(obligations)
    .set({ alarmedAtMs: nowMs })
    .where(
      and(
        eq(obligations.state, 'due'),
        lte(obligations.deadlineAtMs, nowMs),
        isNull(obligations.alarmedAtMs),
        isNull(obligations.writtenOffAtMs),
      ),
    )
    .returning()
}

/** Writes down a try that did not settle the duty. The duty stays, whatever happened. */
export async function recordTry(
  tx: Transaction,
  failed: {
    id: ObligationId
    nextTryAtMs: number
    /** Undefined when nothing failed: the holder's answer is waited for. */
    problem?: { code: ErrorCode; message: string } | undefined
  },
): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({
      attempts: raw`${obligations.attempts} + 1`,
      nextTryAtMs: failed.nextTryAtMs,
      lastErrorCode: failed.problem?.code ?? null,
      lastError: failed.problem?.message.slice(0, limits.errorTextCharsMax) ?? null,
    })
    .where(and(eq(obligations.id, failed.id), ne(obligations.state, 'done')))
}

/** Marks duties as given up. They stay due, at long intervals. */
export async function markWrittenOff(
  tx: Transaction,
  which: { ids: readonly ObligationId[]; atMs: number },
): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({
      writtenOffAtMs: which.atMs,
      nextTryAtMs: which.atMs + limits.writtenOffReminderMs,
    })
    .where(and(inArray(obligations.id, [...which.ids]), ne(obligations.state, 'done')))
}

/** A job that was written off gets no certificate: the duty to write one has lost its point. */
export async function settleCertificate(tx: Transaction, job: JobId, atMs: number): Promise<void> {
  await tx.sql
    .update(obligations)
    .set({ state: 'done', doneAtMs: atMs })
    .where(
      and(
        eq(obligations.jobId, job),
        eq(obligations.kind, 'certificate.issue'),
        ne(obligations.state, 'done'),
      ),
    )
}

/** Writes down the order that asks an agent for a duty, so that one can see how far it came. */
export async function setCommand(tx: Transaction, id: ObligationId, by: CommandId): Promise<void> {
  await tx.sql.update(obligations).set({ commandId: by }).where(eq(obligations.id, id))
}

/** Writes down who signs for a duty of the control plane's own. */
export async function setHolder(tx: Transaction, id: ObligationId, holder: Holder): Promise<void> {
  await tx.sql.update(obligations).set({ holder }).where(eq(obligations.id, id))
}

export async function obligationById(
  sql: Queries,
  id: ObligationId,
): Promise<Obligation | undefined> {
  return obligationWithId(sql).get({ id })
}

const obligationWithId = preparedOnce((sql) =>
  sql
    .select()
    .from(obligations)
    .where(eq(obligations.id, raw.placeholder('id')))
    .prepare(),
)

/** All duties of a job, done ones too, in the order they arose. */
export async function obligationsOfJob(sql: Queries, job: JobId): Promise<Obligation[]> {
  return sql
    .select()
    .from(obligations)
    .where(eq(obligations.jobId, job))
    .orderBy(asc(obligations.createdAtMs), asc(obligations.id))
}

/** Duties with what tells how far each has come, in the order of their ids. */
export async function pageOfDuties(
  sql: Queries,
  which: {
    /** Sites the asker may see; null for all. */
    sites: readonly string[] | null
    nowMs: number
    after?: ObligationId | undefined
    /** Also what is done. */
    all?: boolean
    overdue?: boolean
    kind?: string | undefined
    jobId?: JobId | undefined
    agentId?: AgentId | undefined
    purgeId?: PurgeId | undefined
    itemsMax: number
  },
): Promise<KnownDuty[]> {
  const { sites, all = false, overdue = false } = which
  const rows = await knownDuties(sql)
    .where(
      and(
        sites === null ? undefined : inArray(obligations.site, [...sites]),
        which.after === undefined ? undefined : gt(obligations.id, which.after),
        all ? undefined : ne(obligations.state, 'done'),
        overdue ? isOverdue(which.nowMs) : undefined,
        which.kind === undefined ? undefined : eq(obligations.kind, which.kind as ObligationKind),
        which.jobId === undefined ? undefined : eq(obligations.jobId, which.jobId),
        which.agentId === undefined ? undefined : eq(obligations.agentId, which.agentId),
        which.purgeId === undefined ? undefined : belongsTo(which.purgeId),
      ),
    )
    .orderBy(asc(obligations.id))
    .limit(which.itemsMax)
  return rows.map(known)
}

/** All duties of a job, done ones too, in the order they arose, with what tells how far each is. */
export async function dutiesOfJob(sql: Queries, job: JobId): Promise<KnownDuty[]> {
  const rows = await knownDuties(sql)
    .where(eq(obligations.jobId, job))
    .orderBy(asc(obligations.createdAtMs), asc(obligations.id))
  return rows.map(known)
}

function knownDuties(sql: Queries) {
  return sql
    .select({ duty: obligations, ackedAtMs: commands.ackedAtMs, proven: isProven })
    .from(obligations)
    .leftJoin(commands, eq(commands.id, obligations.commandId))
}

function known(row: { duty: Obligation; ackedAtMs: number | null; proven: 0 | 1 }): KnownDuty {
  return { duty: row.duty, acked: row.ackedAtMs !== null, proven: row.proven === 1 }
}

/**
 * How many duties have come how far. What is over is not looked at one by one: proven are all
 * receipts but those of jobs and purges that have no certificate, and these are gone through a page
 * at a time, with room for others between.
 */
export async function countProgress(sql: Queries): Promise<Record<Progress, number>> {
  const open = sql.all<{ asked: 0 | 1; acked: 0 | 1; duties: number }>(
    raw`SELECT attempts > 0 OR command_id IS NOT NULL AS asked, acked_at_ms IS NOT NULL AS acked, count(*) AS duties
      FROM obligations LEFT JOIN commands ON commands.id = command_id
      WHERE state IN ('due', 'waiting') GROUP BY 1, 2`,
  )
  const loose = await countLooseReceipts(sql)
  const [over] = sql.all<{ done: number; signed: number }>(
    raw`SELECT (SELECT count(*) FROM obligations WHERE state = 'done') AS done,
      (SELECT count(*) FROM receipts) AS signed`,
  )
  const proven = Math.max(0, (over?.signed ?? 0) - loose)
  const done = Math.max(0, (over?.done ?? 0) - proven)
  const counts: Record<Progress, number> = { owed: 0, requested: 0, delivered: 0, done, proven }
  for (const { asked, acked, duties } of open)
    counts[progressOf({ done: false, asked: asked === 1, acked: acked === 1, proven: false })] +=
      duties
  return counts
}

async function countLooseReceipts(sql: Queries): Promise<number> {
  const count = (query: SQL) => sql.get<{ receipts: number }>(query).receipts
  let loose = count(
    raw`SELECT count(*) AS receipts FROM purges CROSS JOIN obligations ON subject_id = purges.id
        CROSS JOIN receipts ON obligation_id = obligations.id
      WHERE NOT EXISTS (SELECT 1 FROM evidence_documents
        WHERE evidence_documents.subject_id = purges.id AND kind = 'purge-certificate')`,
  )
  let after = ''
  for (;;) {
    const page = await sql
      .select({ id: jobs.id })
      .from(jobs)
      .where(and(inArray(jobs.state, uncertified), gt(jobs.id, after as JobId)))
      .orderBy(asc(jobs.id))
      .limit(countPageJobs)
    const ids = raw`SELECT value FROM json_each(${JSON.stringify(page.map(({ id }) => id))})`
    loose += count(
      raw`SELECT count(*) AS receipts FROM obligations CROSS JOIN receipts ON obligation_id = obligations.id
        WHERE obligations.job_id IN (${ids}) AND state = 'done'
          AND NOT EXISTS (SELECT 1 FROM certificates WHERE certificates.job_id = obligations.job_id)`,
    )
    if (page.length < countPageJobs) return loose
    after = page.at(-1)!.id
    await setImmediate()
  }
}

const countPageJobs = 500

/** A job is `deleted` in the transaction that writes its certificate. */
const uncertified = jobStates.filter((state) => state !== 'deleted')

/** Its receipt is there, and the document that holds the receipts of its job or purge. */
const isProven = raw<
  0 | 1
>`(EXISTS (SELECT 1 FROM receipts WHERE receipts.obligation_id = ${obligations.id})
  AND (EXISTS (SELECT 1 FROM certificates WHERE certificates.job_id = ${obligations.jobId})
    OR EXISTS (SELECT 1 FROM evidence_documents
      WHERE subject_id = ${obligations.subjectId} AND kind = 'purge-certificate')))`

const isOverdue = (nowMs: number) =>
  and(
    eq(obligations.state, 'due'),
    lte(obligations.deadlineAtMs, nowMs),
    isNull(obligations.writtenOffAtMs),
  )

const belongsTo = (purge: PurgeId) =>
  or(
    eq(obligations.subjectId, purge),
    raw`${obligations.jobId} IN (SELECT job_id FROM purge_jobs WHERE purge_id = ${purge})`,
  )

/** The roll of a purge that deleted the key of this job; undefined while there is none. */
export function rollOfPurge(
  sql: Queries,
  job: JobId,
): { startedAtMs: number; destroyedAtMs: number } | undefined {
  return sql.get(
    raw`SELECT intent_at_ms AS "startedAtMs", keys_unrecoverable_at_ms AS "destroyedAtMs" FROM purges
      WHERE keys_unrecoverable_at_ms IS NOT NULL
        AND EXISTS (SELECT 1 FROM purge_jobs WHERE purge_id = purges.id AND job_id = ${job})
      ORDER BY keys_unrecoverable_at_ms LIMIT 1`,
  )
}

// ---------------------------------------------------------------- receipts

export async function addReceipt(tx: Transaction, receipt: ReceiptRow): Promise<void> {
  insertReceipt(tx.sql).run(receipt)
}

const insertReceipt = preparedOnce((sql) =>
  sql
    .insert(receipts)
    .values({
      obligationId: raw.placeholder('obligationId'),
      jobId: raw.placeholder('jobId'),
      envelope: raw.placeholder('envelope'),
      payloadSha256: raw.placeholder('payloadSha256'),
      signerKeyId: raw.placeholder('signerKeyId'),
      signerPublicKey: raw.placeholder('signerPublicKey'),
      signerNotBeforeMs: raw.placeholder('signerNotBeforeMs'),
      signerNotAfterMs: raw.placeholder('signerNotAfterMs'),
      receivedAtMs: raw.placeholder('receivedAtMs'),
    })
    .prepare(),
)

export async function receiptOfObligation(
  sql: Queries,
  id: ObligationId,
): Promise<ReceiptRow | undefined> {
  return receiptForDuty(sql).get({ id })
}

const receiptForDuty = preparedOnce((sql) =>
  sql
    .select()
    .from(receipts)
    .where(eq(receipts.obligationId, raw.placeholder('id')))
    .prepare(),
)

export async function receiptsOfJob(sql: Queries, job: JobId): Promise<ReceiptRow[]> {
  return sql
    .select()
    .from(receipts)
    .where(eq(receipts.jobId, job))
    .orderBy(asc(receipts.obligationId))
}

// ---------------------------------------------------------------- what deletion reads and changes of a job

export async function jobById(sql: Queries, id: JobId): Promise<JobRow | undefined> {
  return sql.query.jobs.findFirst({ where: eq(jobs.id, id) })
}

/** Every lease a job ever had, in the order of their fences. */
export async function leasesOfJob(sql: Queries, job: JobId): Promise<LeaseRow[]> {
  return sql.select().from(leases).where(eq(leases.jobId, job)).orderBy(asc(leases.fence))
}

/** Changes a job only while it is still in the state it was decided on. @returns Whether it was. */
export async function changeJob(
  tx: Transaction,
  which: { id: JobId; from: JobRow['state'] },
  set: Partial<typeof jobs.$inferInsert>,
): Promise<boolean> {
  const changed = await tx.sql
    .update(jobs)
    .set(set)
    .where(and(eq(jobs.id, which.id), eq(jobs.state, which.from)))
  return changed.changes > 0
}

/** @returns Whether there was a key. */
export async function deleteJobKey(tx: Transaction, job: JobId): Promise<boolean> {
  const deleted = await tx.sql.delete(jobKeys).where(eq(jobKeys.jobId, job))
  return deleted.changes > 0
}

export async function hasJobKey(sql: Queries, job: JobId): Promise<boolean> {
  return (await sql.query.jobKeys.findFirst({ where: eq(jobKeys.jobId, job) })) !== undefined
}

/**
 * Ends the job's open leases: no renewal and no result counts for them any more.
 *
 * @returns Those that this call ended.
 */
export async function endOpenLeases(
  tx: Transaction,
  job: JobId,
  atMs: number,
): Promise<LeaseRow[]> {
  return tx.sql
    .update(leases)
    .set({ endedAtMs: atMs, endReason: 'deleted' })
    .where(and(eq(leases.jobId, job), isNull(leases.endedAtMs)))
    .returning()
}

export async function markLeaseWiped(tx: Transaction, id: LeaseId, atMs: number): Promise<void> {
  await tx.sql.update(leases).set({ wipedAtMs: atMs }).where(eq(leases.id, id))
}

/** The identity an agent joined with, and how long it is good. */
export async function agentIdentity(sql: Queries, id: Holder['id']) {
  return identityOfAgent(sql).get({ id })
}

const identityOfAgent = preparedOnce((sql) =>
  sql
    .select({
      publicKey: agents.publicKey,
      joinedAtMs: agents.joinedAtMs,
      certificateExpiresAtMs: agents.certificateExpiresAtMs,
      revokedAtMs: agents.revokedAtMs,
    })
    .from(agents)
    .where(eq(agents.id, raw.placeholder('id')))
    .prepare(),
)

export async function resultOfJob(sql: Queries, job: JobId) {
  return sql.query.results.findFirst({
    columns: { sealed: false },
    extras: { held: raw<number>`${results.sealed} IS NOT NULL`.as('held') },
    where: eq(results.jobId, job),
  })
}

/** Takes the sealed result away; what it was stays. */
export async function clearResult(tx: Transaction, job: JobId): Promise<void> {
  await tx.sql.update(results).set({ sealed: null }).where(eq(results.jobId, job))
}

// ---------------------------------------------------------------- certificates and reports

/** What tells of an agent that does not answer. */
export async function agentFacts(sql: Queries, id: AgentId) {
  return sql.query.agents.findFirst({
    columns: { id: true, lastSeenAtMs: true, revokedAtMs: true, certificateExpiresAtMs: true },
    where: eq(agents.id, id),
  })
}

export async function addEvidenceDocument(
  tx: Transaction,
  document: typeof evidenceDocuments.$inferInsert,
): Promise<void> {
  await tx.sql.insert(evidenceDocuments).values(document)
}

/** The report of a job that was written off, byte for byte as it was signed. */
export async function writeOffText(sql: Queries, job: JobId): Promise<string | undefined> {
  const row = await sql.query.evidenceDocuments.findFirst({
    columns: { envelope: true },
    where: and(eq(evidenceDocuments.subjectId, job), eq(evidenceDocuments.kind, 'write-off')),
  })
  return row?.envelope
}

export async function addCertificate(
  tx: Transaction,
  certificate: typeof certificates.$inferInsert,
): Promise<void> {
  await tx.sql.insert(certificates).values(certificate)
}

export async function certificateOfJob(sql: Queries, job: JobId): Promise<string | undefined> {
  const row = await sql.query.certificates.findFirst({ where: eq(certificates.jobId, job) })
  return row?.envelope
}

/** Ends the ledger's open uploads of a job: the store has none of them any more. */
export async function endUploads(tx: Transaction, job: JobId, atMs: number): Promise<void> {
  await tx.sql
    .update(uploads)
    .set({ state: 'aborted', endedAtMs: atMs })
    .where(and(eq(uploads.jobId, job), inArray(uploads.state, ['creating', 'open'])))
}
