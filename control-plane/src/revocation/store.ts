/** Remembers what was revoked, finds what a revocation hits, and what is still owed of it. */
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
  max,
  ne,
  or,
  type SQL,
  sql as raw,
} from '../database/drizzle.ts'
import type { AgentId, JobId, RevocationId, TokenId } from '@sluice/protocol/ids'
import type { JobState } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import type { Queries, Transaction } from '../database/database.ts'
import { agents, jobs, joinTokens, leases, obligations, revocations } from '../database/schema.ts'

export type RevocationRow = typeof revocations.$inferSelect

export async function addRevocation(tx: Transaction, row: RevocationRow): Promise<void> {
  await tx.sql.insert(revocations).values(row)
}

export async function revocationById(
  sql: Queries,
  id: RevocationId,
): Promise<RevocationRow | undefined> {
  return sql.query.revocations.findFirst({ where: eq(revocations.id, id) })
}

/** The first revocation of this very target: since when it holds. */
export async function revocationOf(
  sql: Queries,
  target: Pick<RevocationRow, 'kind' | 'target'>,
): Promise<RevocationRow | undefined> {
  return sql.query.revocations.findFirst({
    where: and(eq(revocations.kind, target.kind), eq(revocations.target, target.target)),
    orderBy: [asc(revocations.id)],
  })
}

/**
 * Revocations, newest first.
 *
 * @param which.sites Sites the asker may see; null for all.
 */
export async function pageOfRevocations(
  sql: Queries,
  which: {
    sites: readonly string[] | null
    before: RevocationId | undefined
    itemsMax: number
  },
): Promise<RevocationRow[]> {
  return sql
    .select()
    .from(revocations)
    .where(
      and(
        which.sites === null ? undefined : inArray(revocations.site, [...which.sites]),
        which.before === undefined ? undefined : lt(revocations.id, which.before),
      ),
    )
    .orderBy(desc(revocations.id))
    .limit(which.itemsMax)
}

// ---------------------------------------------------------------- what it hits

type Label = { key: string; value: string; site: string }

function labelled(column: SQL, label: Label): SQL {
  return raw`EXISTS (SELECT 1 FROM json_each(${column}) AS label WHERE label.key = ${label.key} AND label.value = ${label.value})`
}

/** Agents that carry a label and are not locked out yet. `site` `*` means all. */
export async function agentsWithLabel(sql: Queries, label: Label): Promise<AgentId[]> {
  const rows = await sql
    .select({ id: agents.id })
    .from(agents)
    .where(
      and(
        isNull(agents.revokedAtMs),
        label.site === '*' ? undefined : eq(agents.site, label.site),
        labelled(raw`agents.labels`, label),
      ),
    )
    .orderBy(asc(agents.id))
  return rows.map(({ id }) => id)
}

/** Join tokens that would still make an agent with this label. */
export async function joinTokensWithLabel(
  sql: Queries,
  label: Label & { atMs: number },
): Promise<TokenId[]> {
  const rows = await sql
    .select({ id: joinTokens.id })
    .from(joinTokens)
    .where(
      and(
        isNull(joinTokens.revokedAtMs),
        isNull(joinTokens.usedAtMs),
        gt(joinTokens.expiresAtMs, label.atMs),
        label.site === '*' ? undefined : eq(joinTokens.site, label.site),
        labelled(raw`join_tokens.labels`, label),
      ),
    )
    .orderBy(asc(joinTokens.id))
  return rows.map(({ id }) => id)
}

/** What locking these agents out means for jobs and leases, before it is done. */
export async function reachOf(
  sql: Queries,
  which: { agents: readonly AgentId[]; freezable: readonly JobState[] },
): Promise<{ jobsFrozen: number; leasesEnded: number; leasesOverAtMs: number | undefined }> {
  const ids = [...which.agents]
  const [frozen] = await sql
    .select({ found: count() })
    .from(jobs)
    .where(and(inArray(jobs.captureAgentId, ids), inArray(jobs.state, [...which.freezable])))
  const [open] = await sql
    .select({ found: count() })
    .from(leases)
    .innerJoin(jobs, eq(leases.jobId, jobs.id))
    .where(
      and(
        isNull(leases.endedAtMs),
        or(inArray(leases.nodeId, ids), inArray(jobs.captureAgentId, ids)),
      ),
    )
  const [over] = await sql
    .select({ atMs: max(leases.deadlineAtMs) })
    .from(leases)
    .where(and(inArray(leases.nodeId, ids), isNull(leases.wipedAtMs)))
  return {
    jobsFrozen: frozen?.found ?? 0,
    leasesEnded: open?.found ?? 0,
    leasesOverAtMs: over?.atMs == null ? undefined : over.atMs + limits.leaseGraceMs,
  }
}

/** Jobs whose key one of these nodes was given and has not confirmed to have wiped. */
export async function jobsHeldBy(
  sql: Queries,
  nodes: readonly AgentId[],
): Promise<{ id: JobId; site: string; exposedAtMs: number | null }[]> {
  return sql
    .selectDistinct({ id: jobs.id, site: jobs.site, exposedAtMs: jobs.exposedAtMs })
    .from(leases)
    .innerJoin(jobs, eq(leases.jobId, jobs.id))
    .where(
      and(
        inArray(leases.nodeId, [...nodes]),
        isNotNull(leases.keyReleasedAtMs),
        isNull(leases.wipedAtMs),
      ),
    )
    .orderBy(asc(jobs.id))
}

export async function markExposed(tx: Transaction, id: JobId, atMs: number): Promise<void> {
  await tx.sql
    .update(jobs)
    .set({ exposedAtMs: atMs })
    .where(and(eq(jobs.id, id), isNull(jobs.exposedAtMs)))
}

// ---------------------------------------------------------------- what is owed

/** Agents a revocation locked out: each has its duty to have its uploads aborted. */
export async function agentsOf(sql: Queries, id: RevocationId): Promise<AgentId[]> {
  const rows = await sql
    .selectDistinct({ agentId: obligations.agentId })
    .from(obligations)
    .where(and(eq(obligations.subjectId, id), isNotNull(obligations.agentId)))
  return rows.flatMap(({ agentId }) => agentId ?? [])
}

/** Duties of a revocation that are not done, by kind; the wipes its nodes owe are among them. */
export async function owedOf(
  sql: Queries,
  which: { id: RevocationId; agents: readonly AgentId[] },
): Promise<{ kind: string; count: number; lastError: string | null }[]> {
  const own = await sql
    .select({ kind: obligations.kind, count: count(), lastError: max(obligations.lastError) })
    .from(obligations)
    .where(and(eq(obligations.subjectId, which.id), ne(obligations.state, 'done')))
    .groupBy(obligations.kind)
  const [wipes] = await sql
    .select({ found: count() })
    .from(leases)
    .where(
      and(
        inArray(leases.nodeId, [...which.agents]),
        isNotNull(leases.endedAtMs),
        isNull(leases.wipedAtMs),
      ),
    )
  const unwiped = wipes?.found ?? 0
  if (unwiped === 0) return own
  return [...own, { kind: 'lease.wipe', count: unwiped, lastError: null }]
}

/** Jobs that these nodes held, and that count as seen by others. */
export async function exposedBy(sql: Queries, nodes: readonly AgentId[]): Promise<JobId[]> {
  const rows = await sql
    .selectDistinct({ id: jobs.id })
    .from(leases)
    .innerJoin(jobs, eq(leases.jobId, jobs.id))
    .where(
      and(
        inArray(leases.nodeId, [...nodes]),
        isNotNull(leases.keyReleasedAtMs),
        isNotNull(jobs.exposedAtMs),
      ),
    )
    .orderBy(asc(jobs.id))
    .limit(limits.pageItemsMax)
  return rows.map(({ id }) => id)
}

// ---------------------------------------------------------------- the authority

/** The newest replacement of the authority. */
export async function newestRotation(sql: Queries): Promise<RevocationRow | undefined> {
  return sql.query.revocations.findFirst({
    where: eq(revocations.kind, 'authority'),
    orderBy: desc(revocations.id),
  })
}

export async function liveAgents(sql: Queries): Promise<{ id: AgentId; site: string }[]> {
  return sql
    .select({ id: agents.id, site: agents.site })
    .from(agents)
    .where(isNull(agents.revokedAtMs))
    .orderBy(asc(agents.id))
}

/** Agents that still owe the adoption of an authority. */
export async function adoptersOf(sql: Queries, rotation: string) {
  return sql
    .select({
      agentId: agents.id,
      obligationId: obligations.id,
      name: agents.name,
      role: agents.role,
      revokedAtMs: agents.revokedAtMs,
    })
    .from(obligations)
    .innerJoin(agents, eq(agents.id, obligations.agentId))
    .where(
      and(
        eq(obligations.subjectId, rotation),
        eq(obligations.kind, 'authority.adopt'),
        eq(obligations.state, 'due'),
      ),
    )
    .orderBy(asc(agents.id))
}
