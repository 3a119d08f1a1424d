/** Remembers what happened: one audit event per state change, appended in its transaction. */
import { and, asc, desc, eq, gt, inArray, type SQL, sql } from '../database/drizzle.ts'
import type { Actor, AuditEvent, AuditEventType } from '@sluice/protocol/audit-event'
import type { AgentId, JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Database, Queries, Transaction } from '../database/database.ts'
import { preparedOnce } from '../database/prepared.ts'
import { auditEvents, auditExports, obligations } from '../database/schema.ts'
import {
  auditEventSha256,
  type ChainedEvent,
  type ChainHead,
  type ChainVerdict,
  chainStart,
  followChain,
} from './rules.ts'

/** An event before it has its place in the chain. */
export type NewAuditEvent = {
  atMs: number
  type: AuditEventType
  actor: Actor
  /** The site it belongs to; `*` for what concerns all of them. */
  site: string
  jobId?: JobId
  agentId?: AgentId
  /** Flat facts: ids, states, codes and counts. Undefined ones are left out, long texts cut. */
  detail?: Record<string, string | number | boolean | undefined>
}

/**
 * Appends an event to the chain. It is durable exactly when the transaction is, so a state change
 * and its event are never apart.
 *
 * @returns The event's number.
 */
export async function appendAudit(tx: Transaction, event: NewAuditEvent): Promise<number> {
  const last = chainHead(tx.sql).get()
  const seq = (last?.seq ?? 0) + 1
  const chained: AuditEvent = {
    seq,
    atMs: event.atMs,
    type: event.type,
    actor: event.actor,
    site: event.site,
    ...(event.jobId === undefined ? {} : { jobId: event.jobId }),
    ...(event.agentId === undefined ? {} : { agentId: event.agentId }),
    detail: flatDetail(event.detail ?? {}),
    previousSha256: last?.sha256 ?? chainStart,
  }
  insertEvent(tx.sql).run({
    ...chained,
    jobId: event.jobId ?? null,
    agentId: event.agentId ?? null,
    sha256: auditEventSha256(chained),
  })
  return seq
}

const chainHead = preparedOnce((queries) =>
  queries
    .select({ seq: auditEvents.seq, sha256: auditEvents.sha256 })
    .from(auditEvents)
    .orderBy(desc(auditEvents.seq))
    .limit(1)
    .prepare(),
)

const insertEvent = preparedOnce((queries) =>
  queries
    .insert(auditEvents)
    .values({
      seq: sql.placeholder('seq'),
      atMs: sql.placeholder('atMs'),
      type: sql.placeholder('type'),
      actor: sql.placeholder('actor'),
      site: sql.placeholder('site'),
      jobId: sql.placeholder('jobId'),
      agentId: sql.placeholder('agentId'),
      detail: sql.placeholder('detail'),
      previousSha256: sql.placeholder('previousSha256'),
      sha256: sql.placeholder('sha256'),
    })
    .prepare(),
)

function flatDetail(
  detail: Record<string, string | number | boolean | undefined>,
): Record<string, string | number | boolean> {
  const flat: Record<string, string | number | boolean> = {}
  for (const [key, value] of Object.entries(detail)) {
    if (value === undefined) continue
    flat[key] = typeof value === 'string' ? value.slice(0, limits.errorTextCharsMax) : value
  }
  return flat
}

export type AuditFilter = {
  jobId?: JobId | undefined
  agentId?: AgentId | undefined
  /** Sites the reader may see; undefined: all. */
  sites?: readonly string[] | undefined
  /** Only events after this one. */
  afterSeq: number
  /** At most this many. */
  items: number
}

/** Events in the order they happened. */
export function listAudit(database: Database, filter: AuditFilter): Promise<ChainedEvent[]> {
  const conditions: SQL[] = [gt(auditEvents.seq, filter.afterSeq)]
  if (filter.jobId !== undefined) conditions.push(eq(auditEvents.jobId, filter.jobId))
  if (filter.agentId !== undefined) conditions.push(eq(auditEvents.agentId, filter.agentId))
  if (filter.sites !== undefined) conditions.push(inArray(auditEvents.site, [...filter.sites]))
  return database.read(async (queries) => {
    const rows = await queries
      .select()
      .from(auditEvents)
      .where(and(...conditions))
      .orderBy(asc(auditEvents.seq))
      .limit(filter.items)
    return rows.map(chainedEvent)
  })
}

function chainedEvent(row: typeof auditEvents.$inferSelect): ChainedEvent {
  const { jobId, agentId, ...rest } = row
  return {
    ...rest,
    ...(jobId === null ? {} : { jobId }),
    ...(agentId === null ? {} : { agentId }),
  }
}

/** Events are checked in pieces of this many, so that memory stays flat. */
const verifyPageEvents = 2000

/**
 * Follows the whole chain.
 *
 * @param known A head somebody noted earlier: a chain that ends before it, or holds another event
 * in its place, was cut or rewritten.
 */
export async function verifyAudit(database: Database, known?: ChainHead): Promise<ChainVerdict> {
  let head: ChainHead = { seq: 0, sha256: chainStart }
  for (;;) {
    const rows = await storedEvents(database, head.seq)
    const verdict = followChain(rows, head)
    if (!verdict.whole) return verdict
    const noted = known === undefined ? undefined : rows.find((row) => row.seq === known.seq)
    if (noted !== undefined && noted.sha256 !== known?.sha256)
      return { whole: false, seq: noted.seq, reason: 'the noted head is not in this chain' }
    head = verdict.head
    if (rows.length < verifyPageEvents) break
  }
  if (known !== undefined && head.seq < known.seq)
    return { whole: false, seq: head.seq + 1, reason: 'the chain ends before the noted head' }
  return { whole: true, head }
}

/** Rows as they lie in the file, whatever became of them; also those that are not JSON any more. */
function storedEvents(database: Database, afterSeq: number) {
  return database.read(async (queries) => {
    const rows = await queries
      .select({
        seq: auditEvents.seq,
        atMs: auditEvents.atMs,
        type: auditEvents.type,
        actor: sql<string>`${auditEvents.actor}`,
        site: auditEvents.site,
        jobId: auditEvents.jobId,
        agentId: auditEvents.agentId,
        detail: sql<string>`${auditEvents.detail}`,
        previousSha256: auditEvents.previousSha256,
        sha256: auditEvents.sha256,
      })
      .from(auditEvents)
      .where(gt(auditEvents.seq, afterSeq))
      .orderBy(asc(auditEvents.seq))
      .limit(verifyPageEvents)
    return rows.map(({ jobId, agentId, actor, detail, ...rest }) => ({
      ...rest,
      ...(jobId === null ? {} : { jobId }),
      ...(agentId === null ? {} : { agentId }),
      actor: jsonOrText(actor),
      detail: jsonOrText(detail),
    }))
  })
}

function jsonOrText(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // A damaged row: the chain's schema check refuses the bare text.
    return text
  }
}

// ---------------------------------------------------------------- sink

/** The number of the newest event, 0 without any. */
export async function lastSeqOf(queries: Queries): Promise<number> {
  const [last] = await queries
    .select({ seq: auditEvents.seq })
    .from(auditEvents)
    .orderBy(desc(auditEvents.seq))
    .limit(1)
  return last?.seq ?? 0
}

/** How far a sink is known to hold the chain. */
export async function sinkPosition(queries: Queries, sink: string): Promise<ChainHead> {
  const row = await queries.query.auditExports.findFirst({ where: eq(auditExports.sink, sink) })
  return row === undefined
    ? { seq: 0, sha256: chainStart }
    : { seq: row.lastSeq, sha256: row.lastSha256 }
}

/** When the sink last took something, and what last went wrong with it. */
export async function sinkFacts(queries: Queries, sink: string) {
  const row = await queries.query.auditExports.findFirst({ where: eq(auditExports.sink, sink) })
  const duty = await queries.query.obligations.findFirst({
    columns: { lastErrorCode: true, lastError: true },
    where: and(eq(obligations.subjectId, sink), eq(obligations.kind, 'audit.export')),
  })
  return {
    exportedAtMs: row?.exportedAtMs ?? null,
    lastErrorCode: duty?.lastErrorCode ?? null,
    lastError: duty?.lastError ?? null,
  }
}

export async function advanceSink(
  tx: Transaction,
  to: { sink: string; head: ChainHead; atMs: number },
): Promise<void> {
  const reached = { lastSeq: to.head.seq, lastSha256: to.head.sha256, exportedAtMs: to.atMs }
  await tx.sql
    .insert(auditExports)
    .values({ sink: to.sink, ...reached })
    .onConflictDoUpdate({ target: auditExports.sink, set: reached })
}
