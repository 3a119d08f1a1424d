/** Remembers purges: whole sets in single statements, because thousands of jobs share one moment. */
import {
  and,
  asc,
  desc,
  eq,
  inArray,
  isNull,
  lt,
  max,
  type SQL,
  sql as raw,
} from '../database/drizzle.ts'
import type {
  AgentId,
  CommandId,
  JobId,
  LeaseId,
  ObligationId,
  PrincipalId,
  PurgeId,
} from '@sluice/protocol/ids'
import type { JobState } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import type { PurgeScope } from '@sluice/protocol/purge'
import type { BundleEvent } from '@sluice/protocol/purge-bundle'
import type { Changes } from '../changes.ts'
import type { Queries, Transaction } from '../database/database.ts'
import { preparedOnce } from '../database/prepared.ts'
import {
  agents,
  auditEvents,
  commands,
  evidenceDocuments,
  jobs,
  obligations,
  purges,
  receipts,
  revocations,
} from '../database/schema.ts'
import { presentFields } from '../present-fields.ts'

export type PurgeRow = typeof purges.$inferSelect

/** What a purge is about: its scope within its site. */
export type Within = {
  scope: PurgeScope
  site: string
  /** Kind of the one store there is. */
  store: string
  includingHeld: boolean
}

// ---------------------------------------------------------------- scopes

/** Condition on `jobs`: in scope, and not over. */
function inScope(within: Within): SQL {
  const { scope, site } = within
  const there = site === '*' ? raw`1` : raw`jobs.site = ${site}`
  return raw`jobs.state NOT IN ('deleted', 'deleted-unconfirmed') AND ${there} AND (${matches(scope, within.store)})`
}

function matches(scope: PurgeScope, store: string): SQL {
  switch (scope.kind) {
    case 'job':
      return raw`jobs.id = ${scope.jobId}`
    case 'agent':
      return raw`jobs.capture_agent_id = ${scope.agentId} OR jobs.id IN (SELECT job_id FROM leases WHERE node_id = ${scope.agentId})`
    case 'site':
      return raw`jobs.site = ${scope.site}`
    case 'label':
      return raw`jobs.capture_agent_id IN (SELECT id FROM agents WHERE ${labelled(scope)})`
    case 'store':
      return scope.store === store
        ? raw`EXISTS (SELECT 1 FROM uploads WHERE uploads.job_id = jobs.id)`
        : raw`0`
    case 'time':
      return raw`jobs.sealed_at_ms >= ${scope.fromMs} AND jobs.sealed_at_ms < ${scope.untilMs}`
    case 'everything':
      break
  }
  return raw`1`
}

function labelled(label: { key: string; value: string }): SQL {
  return raw`EXISTS (SELECT 1 FROM json_each(agents.labels) AS label WHERE label.key = ${label.key} AND label.value = ${label.value})`
}

/** Condition on `agents`: covered by the scope itself, whatever jobs it has, and can be ordered. */
function covered(within: Pick<Within, 'scope' | 'site'>): SQL {
  return raw`agents.revoked_at_ms IS NULL AND (${meant(within)})`
}

/** Condition on `agents`: the scope is about it, revoked or not. */
function meant({ scope, site }: Pick<Within, 'scope' | 'site'>): SQL {
  const there = site === '*' ? raw`1` : raw`agents.site = ${site}`
  return raw`${there} AND (${covers(scope)})`
}

function covers(scope: PurgeScope): SQL {
  switch (scope.kind) {
    case 'job':
    case 'store':
      return raw`0`
    case 'agent':
      return raw`agents.id = ${scope.agentId}`
    case 'site':
      return raw`agents.site = ${scope.site}`
    case 'label':
      return raw`agents.role = 'capture' AND ${labelled(scope)}`
    case 'time':
      return raw`agents.role = 'capture'`
    case 'everything':
      break
  }
  return raw`1`
}

const notHeld = ({ includingHeld }: Pick<Within, 'includingHeld'>): SQL =>
  includingHeld ? raw`1` : raw`jobs.held_at_ms IS NULL`

const scopeJobs = (within: Within): SQL =>
  raw`SELECT id FROM jobs WHERE ${inScope(within)} AND ${notHeld(within)}`

const jobsOf = (id: PurgeId): SQL => raw`SELECT job_id FROM purge_jobs WHERE purge_id = ${id}`

/** How many jobs a purge would destroy now. */
export function countJobs(sql: Queries, within: Within): number {
  return count(sql, raw`SELECT count(*) AS n FROM (${scopeJobs(within)})`)
}

/** Those of them whose deletion has not begun. */
export function countUndeleted(sql: Queries, within: Within): number {
  return count(
    sql,
    raw`SELECT count(*) AS n FROM jobs WHERE ${inScope(within)} AND ${notHeld(within)} AND state <> 'deleting'`,
  )
}

/** What purges that began after an instant destroyed without a second person, by who asked. */
export function destroyedAlone(sql: Queries, sinceMs: number): { by: PrincipalId; jobs: number }[] {
  return sql.all(
    raw`SELECT requested_by AS "by", count(*) AS jobs FROM purges JOIN purge_jobs ON purge_id = purges.id
      WHERE approved_by IS NULL AND intent_at_ms > ${sinceMs} AND from_state <> 'deleting' GROUP BY requested_by`,
  )
}

function count(sql: Queries, query: SQL): number {
  return sql.get<{ n: number }>(query).n
}

/** Held jobs of the scope that a purge leaves alone. */
export function heldJobs(sql: Queries, within: Within): { jobId: JobId; agentId: AgentId }[] {
  if (within.includingHeld) return []
  return sql.all(
    raw`SELECT id AS "jobId", capture_agent_id AS "agentId" FROM jobs WHERE ${inScope(within)} AND held_at_ms IS NOT NULL ORDER BY id`,
  )
}

export type ScopeAgent = {
  id: AgentId
  name: string
  role: 'capture' | 'gpu'
  site: string
  /** By the scope itself, not only by a job it has. */
  covered: 0 | 1
}

/** Agents that hold anything of these jobs, and those that the scope covers. */
function agentsWith(sql: Queries, within: Within, ids: SQL): ScopeAgent[] {
  return sql.all(
    raw`SELECT id, name, role, site, (${covered(within)}) AS covered FROM agents
      WHERE (${covered(within)})
        OR id IN (SELECT capture_agent_id FROM jobs WHERE id IN (${ids}))
        OR id IN (SELECT node_id FROM leases WHERE wiped_at_ms IS NULL AND job_id IN (${ids}))
      ORDER BY id`,
  )
}

/** Revoked capture hosts that the scope is about, and that have no job in it to be ordered for. */
function unaskedHosts(sql: Queries, within: Within, ids: SQL): AgentId[] {
  const rows = sql.all<{ id: AgentId }>(
    raw`SELECT id FROM agents
      WHERE role = 'capture' AND revoked_at_ms IS NOT NULL AND (${meant(within)})
        AND id NOT IN (SELECT capture_agent_id FROM jobs WHERE id IN (${ids}))
      ORDER BY id`,
  )
  return rows.map(({ id }) => id)
}

/**
 * Receive keys that die with a scope, those of revoked hosts too: nobody can order these to wipe
 * their drafts. Those supplied after a time range ended sealed nothing in it.
 */
const unusedReceiveKeys = (within: Within): SQL => {
  const { scope } = within
  const early =
    scope.kind === 'time'
      ? raw`coalesce(supplied_at_ms, 0) < ${scope.untilMs + limits.clockSkewMsMax}`
      : raw`1`
  if (scope.kind === 'everything' && within.site === '*') return raw`1`
  return raw`agent_id IN (SELECT id FROM agents WHERE ${meant(within)}) AND ${early}`
}

/** What a purge would hit now. */
export function lookAhead(sql: Queries, within: Within, receiveKeys: boolean) {
  const ids = scopeJobs(within)
  const leases = raw`FROM leases WHERE wiped_at_ms IS NULL AND (ended_at_ms IS NULL OR key_released_at_ms IS NOT NULL) AND job_id IN (${ids})`
  return {
    jobsByState: sql.all<{ state: JobState; n: number }>(
      raw`SELECT state, count(*) AS n FROM jobs WHERE id IN (${ids}) GROUP BY state`,
    ),
    held: heldJobs(sql, within).map(({ jobId }) => jobId),
    agents: agentsWith(sql, within, ids),
    unasked: unaskedHosts(sql, within, ids),
    leases: sql.all<{ jobId: JobId; nodeId: AgentId; deadlineAtMs: number; keyReleased: 0 | 1 }>(
      raw`SELECT job_id AS "jobId", node_id AS "nodeId", deadline_at_ms AS "deadlineAtMs", key_released_at_ms IS NOT NULL AS "keyReleased" ${leases} ORDER BY deadline_at_ms DESC LIMIT ${limits.pageItemsMax}`,
    ),
    leasesCount: count(sql, raw`SELECT count(*) AS n ${leases}`),
    receiveKeys: receiveKeys
      ? count(sql, raw`SELECT count(*) AS n FROM receive_keys WHERE ${unusedReceiveKeys(within)}`)
      : 0,
  }
}

// ---------------------------------------------------------------- the request

export async function addPurge(tx: Transaction, row: typeof purges.$inferInsert): Promise<void> {
  await tx.sql.insert(purges).values(row)
}

export async function purgeById(sql: Queries, id: PurgeId): Promise<PurgeRow | undefined> {
  return sql.query.purges.findFirst({ where: eq(purges.id, id) })
}

/** Changes a purge while it is in a state. @returns Whether it was. */
export async function changePurge(
  tx: Transaction,
  which: { id: PurgeId; from: PurgeRow['state'] },
  set: Partial<typeof purges.$inferInsert>,
): Promise<boolean> {
  const changed = await tx.sql
    .update(purges)
    .set(set)
    .where(and(eq(purges.id, which.id), eq(purges.state, which.from)))
  return changed.changes > 0
}

/** One page, newest first. */
export async function pageOfPurges(
  sql: Queries,
  which: { sites: readonly string[] | null; before?: PurgeId | undefined; itemsMax: number },
): Promise<PurgeRow[]> {
  const filters: SQL[] = []
  if (which.sites) filters.push(inArray(purges.site, [...which.sites]))
  if (which.before) filters.push(lt(purges.id, which.before))
  return sql
    .select()
    .from(purges)
    .where(and(...filters))
    .orderBy(desc(purges.id))
    .limit(which.itemsMax)
}

/**
 * Freezes what a waiting purge would destroy: jobs, and the leases on them. Held jobs that it
 * includes are frozen already; from now on they stay so when their hold is lifted.
 *
 * @returns The jobs that this froze, in the order of their ids.
 */
export function lockScope(
  tx: Transaction,
  within: Within,
  atMs: number,
): { jobId: JobId; site: string; from: JobState }[] {
  const { sql } = tx
  const frozen = sql.all<{ jobId: JobId; site: string; from: JobState }>(
    raw`UPDATE jobs SET frozen_from = state, state = 'frozen', state_changed_at_ms = ${atMs}, expires_at_ms = NULL
      WHERE ${inScope(within)} AND held_at_ms IS NULL AND state IN ('announced', 'uploading', 'stored', 'leased', 'failed')
      RETURNING id AS "jobId", site, frozen_from AS "from"`,
  )
  if (within.includingHeld)
    sql.run(raw`UPDATE jobs SET frozen_by_hold = 0 WHERE ${inScope(within)} AND frozen_by_hold = 1`)
  const ids = raw`SELECT value FROM json_each(${JSON.stringify(frozen.map(({ jobId }) => jobId))})`
  dropExpiry(tx, ids, atMs)
  endLeases(tx, { ids, atMs, reason: 'revoked' })
  wipesDue(tx, ids, atMs, atMs)
  return frozen.toSorted((left, right) => (left.jobId < right.jobId ? -1 : 1))
}

function dropExpiry({ sql }: Transaction, ids: SQL, atMs: number): void {
  sql.run(
    raw`UPDATE obligations SET state = 'done', done_at_ms = ${atMs} WHERE job_id IN (${ids}) AND kind IN ('job.expire', 'job.expiry-notice') AND state <> 'done'`,
  )
}

/** Ends open leases and withdraws what was offered. @returns How many ended. */
function endLeases(
  { sql }: Transaction,
  end: { ids: SQL; atMs: number; reason: 'revoked' | 'deleted' },
): number {
  const ended = sql.all<{ id: LeaseId; nodeId: AgentId }>(
    raw`UPDATE leases SET ended_at_ms = ${end.atMs}, end_reason = ${end.reason}
      WHERE ended_at_ms IS NULL AND job_id IN (${end.ids}) RETURNING id, node_id AS "nodeId"`,
  )
  if (ended.length === 0) return 0
  const nodes = JSON.stringify([...new Set(ended.map(({ nodeId }) => nodeId))])
  sql.run(
    raw`UPDATE commands SET cancelled_at_ms = ${end.atMs}
      WHERE agent_id IN (SELECT value FROM json_each(${nodes})) AND acked_at_ms IS NULL AND cancelled_at_ms IS NULL
        AND body ->> 'type' = 'lease.offer'
        AND body ->> 'leaseId' IN (SELECT value FROM json_each(${JSON.stringify(ended.map(({ id }) => id))}))`,
  )
  return ended.length
}

function wipesDue({ sql }: Transaction, ids: SQL, atMs: number, nextTryAtMs: number): void {
  sql.run(
    raw`UPDATE obligations SET state = 'due', next_try_at_ms = ${nextTryAtMs}, deadline_at_ms = ${atMs + limits.obligationOverdueMs}
      WHERE job_id IN (${ids}) AND kind = 'lease.wipe' AND state = 'waiting'`,
  )
}

// ---------------------------------------------------------------- the intent

/** Everything the intent changed, in numbers. */
export type Hit = {
  jobIds: JobId[]
  leases: number
  receiveKeys: number
  heldSkipped: { jobId: JobId; agentId: AgentId }[]
  leasesOverAtMs: number | null
  agents: ScopeAgent[]
  /** Revoked capture hosts of the scope that nobody can order. */
  unasked: AgentId[]
}

/**
 * The intent on jobs, keys and leases: nothing of the scope opens once this is committed. Duties of
 * single jobs become due page by page afterwards (`orderPage`).
 */
export function strike(
  tx: Transaction,
  purge: Pick<PurgeRow, 'id'> & { within: Within; atMs: number; receiveKeys: boolean },
): Hit {
  const { sql } = tx
  const { id, within, atMs } = purge
  sql.run(
    raw`INSERT INTO purge_jobs (purge_id, job_id, from_state)
      SELECT ${id}, id, state FROM jobs WHERE ${inScope(within)} AND ${notHeld(within)}`,
  )
  const ids = jobsOf(id)
  const fresh = raw`SELECT job_id FROM purge_jobs WHERE purge_id = ${id} AND from_state <> 'deleting'`
  sql.run(raw`DELETE FROM job_keys WHERE job_id IN (${ids})`)
  const receiveKeys = purge.receiveKeys
    ? sql.run(raw`DELETE FROM receive_keys WHERE ${unusedReceiveKeys(within)}`).changes
    : 0
  const leases = endLeases(tx, { ids, atMs, reason: 'deleted' })
  const [over] = sql.all<{ atMs: number | null }>(
    raw`SELECT max(deadline_at_ms) AS "atMs" FROM leases WHERE key_released_at_ms IS NOT NULL AND wiped_at_ms IS NULL AND job_id IN (${ids})`,
  )
  // A clock that was set back must not make the end of a job older than its beginning.
  sql.run(
    raw`UPDATE jobs SET state = 'deleting', purge_id = ${id}, intent_at_ms = max(${atMs}, announced_at_ms),
        state_changed_at_ms = max(${atMs}, announced_at_ms), keys_unusable_at_ms = max(${atMs}, announced_at_ms),
        expires_at_ms = NULL, frozen_from = NULL, held_at_ms = NULL
      WHERE id IN (${fresh})`,
  )
  sql.run(
    raw`UPDATE results SET sealed = NULL, expires_at_ms = min(expires_at_ms, ${atMs}) WHERE delivered_at_ms IS NULL AND job_id IN (${ids})`,
  )
  if (within.includingHeld)
    sql.run(
      raw`UPDATE legal_holds SET lifted_at_ms = ${atMs} WHERE lifted_at_ms IS NULL AND job_id IN (${ids})`,
    )
  return {
    jobIds: sortedJobs(sql, id),
    leases,
    receiveKeys,
    heldSkipped: heldJobs(sql, within),
    leasesOverAtMs: over?.atMs == null ? null : over.atMs + limits.leaseGraceMs,
    agents: agentsWith(sql, within, ids),
    unasked: unaskedHosts(sql, within, ids),
  }
}

/** One text for all of them: thousands of rows would cost the moment that counts. */
function sortedJobs(sql: Queries, id: PurgeId): JobId[] {
  const { ids } = sql.get<{ ids: string }>(
    raw`SELECT json_group_array(job_id) AS ids FROM (${jobsOf(id)})`,
  )
  return (JSON.parse(ids) as JobId[]).toSorted()
}

/** Which jobs of a purge lie with which agent: capture hosts, and nodes that have not wiped. */
export function jobsByAgent(sql: Queries, id: PurgeId): Map<AgentId, JobId[]> {
  const rows = sql.all<{ agentId: AgentId; jobId: JobId }>(
    raw`SELECT capture_agent_id AS "agentId", id AS "jobId" FROM jobs WHERE id IN (${jobsOf(id)})
      UNION SELECT node_id, job_id FROM leases WHERE wiped_at_ms IS NULL AND job_id IN (${jobsOf(id)})
      ORDER BY 2`,
  )
  const found = new Map<AgentId, JobId[]>()
  for (const { agentId, jobId } of rows) {
    const list = found.get(agentId)
    if (list) list.push(jobId)
    else found.set(agentId, [jobId])
  }
  return found
}

/** Records the duties of many agents at once; each names the order that asks for it. */
export function addAgentDuties(
  tx: Transaction,
  purgeId: PurgeId,
  duties: readonly {
    id: ObligationId
    agentId: AgentId
    site: string
    commandId: CommandId
  }[],
  due: { atMs: number; nextTryAtMs: number },
): void {
  const { atMs, nextTryAtMs } = due
  const insert = insertAgentDuty(tx.sql)
  for (const { id, agentId, site, commandId } of duties) {
    const same = [nextTryAtMs, atMs + limits.obligationOverdueMs, atMs] as const
    insert.run(id, purgeId, agentId, site, commandId, ...same)
  }
}

const insertAgentDuty = preparedOnce((sql) =>
  sql.$client.prepare<[ObligationId, PurgeId, AgentId, string, CommandId, number, number, number]>(
    `INSERT INTO obligations (id, kind, subject_id, agent_id, site, command_id, state, next_try_at_ms, deadline_at_ms, created_at_ms)
      VALUES (?, 'purge.agent', ?, ?, ?, ?, 'due', ?, ?, ?)`,
  ),
)

// ---------------------------------------------------------------- orders for single jobs

export type PurgedJob = {
  id: JobId
  site: string
  captureAgentId: AgentId
  sealedHeaderSha256: string
  fromState: JobState
}

/** Jobs whose holders were not ordered yet. */
export function unordered(sql: Queries, id: PurgeId, itemsMax: number): PurgedJob[] {
  return sql.all(
    raw`SELECT jobs.id AS id, jobs.site AS site, capture_agent_id AS "captureAgentId", sealed_header_sha256 AS "sealedHeaderSha256", from_state AS "fromState"
      FROM purge_jobs JOIN jobs ON jobs.id = purge_jobs.job_id
      WHERE purge_jobs.purge_id = ${id} AND ordered_at_ms IS NULL ORDER BY jobs.id LIMIT ${itemsMax}`,
  )
}

/** A duty that an agent must be asked for, with what its order says. */
export type OwedByAgent = {
  id: ObligationId
  kind: 'spool.delete' | 'lease.wipe'
  jobId: JobId
  leaseId: LeaseId | null
  nodeId: AgentId | null
  fence: number | null
  endReason: 'finished' | 'failed' | 'declined' | 'expired' | 'revoked' | 'deleted' | null
  endedAtMs: number | null
}

/**
 * Makes every duty of a page of jobs due, those of expiry pointless, and a duty for the certificate
 * exist.
 *
 * @param page.reminderAtMs When the engine itself asks agents again.
 * @param page.newIds One fresh id for each job.
 * @returns What agents must be asked for.
 */
export function orderPage(
  tx: Transaction,
  page: {
    purgeId: PurgeId
    jobIds: readonly JobId[]
    newIds: readonly ObligationId[]
    atMs: number
    reminderAtMs: number
  },
): OwedByAgent[] {
  const { sql } = tx
  const { atMs, reminderAtMs } = page
  const ids = raw`SELECT value FROM json_each(${JSON.stringify(page.jobIds)})`
  // The purge's own roll destroys the keys; only where that fails does each ask for another.
  const rolled = raw`EXISTS (SELECT 1 FROM purges WHERE id = ${page.purgeId} AND keys_unrecoverable_at_ms IS NOT NULL)`
  const keysAtMs = raw`CASE WHEN ${rolled} THEN ${atMs} ELSE ${atMs + limits.epochRollCoalesceMs} END`
  dropExpiry(tx, ids, atMs)
  sql.run(
    raw`UPDATE obligations SET state = 'due', deadline_at_ms = ${atMs + limits.obligationOverdueMs},
        next_try_at_ms = CASE WHEN kind IN ('spool.delete', 'lease.wipe') THEN ${reminderAtMs} WHEN kind = 'key.destroy' THEN ${keysAtMs} ELSE ${atMs} END
      WHERE job_id IN (${ids}) AND state = 'waiting' AND kind IN ('spool.delete', 'lease.wipe', 'object.delete', 'replica.delete', 'key.destroy', 'result.deliver')`,
  )
  // What an earlier deletion had begun need not wait for its next try.
  sql.run(
    raw`UPDATE obligations SET next_try_at_ms = CASE WHEN kind = 'key.destroy' THEN ${keysAtMs} ELSE ${atMs} END
      WHERE job_id IN (${ids}) AND state = 'due' AND kind IN ('object.delete', 'replica.delete', 'key.destroy', 'result.deliver')`,
  )
  sql.run(
    raw`INSERT INTO obligations (id, job_id, kind, site, state, next_try_at_ms, deadline_at_ms, created_at_ms)
      SELECT fresh.value, jobs.id, 'certificate.issue', jobs.site, 'waiting', ${atMs}, ${atMs + limits.obligationOverdueMs}, ${atMs}
      FROM json_each(${JSON.stringify(page.jobIds)}) AS page
      JOIN json_each(${JSON.stringify(page.newIds)}) AS fresh ON fresh.key = page.key
      JOIN jobs ON jobs.id = page.value
      WHERE NOT EXISTS (SELECT 1 FROM obligations WHERE job_id = jobs.id AND kind = 'certificate.issue')`,
  )
  sql.run(
    raw`UPDATE purge_jobs SET ordered_at_ms = ${atMs} WHERE purge_id = ${page.purgeId} AND job_id IN (${ids})`,
  )
  return sql.all(
    raw`SELECT obligations.id AS id, kind, obligations.job_id AS "jobId", obligations.lease_id AS "leaseId", node_id AS "nodeId", fence, end_reason AS "endReason", ended_at_ms AS "endedAtMs"
      FROM obligations LEFT JOIN leases ON leases.id = obligations.lease_id
      WHERE obligations.job_id IN (${ids}) AND kind IN ('spool.delete', 'lease.wipe') AND state = 'due'
        AND NOT EXISTS (SELECT 1 FROM commands WHERE commands.id = obligations.command_id AND acked_at_ms IS NULL AND cancelled_at_ms IS NULL)
      ORDER BY obligations.id`,
  )
}

/** The purge's roll has destroyed the keys of all its jobs: their duties only have to be signed. */
export function hurryKeys(tx: Transaction, id: PurgeId, atMs: number): void {
  tx.sql.run(
    raw`UPDATE obligations SET next_try_at_ms = ${atMs}
      WHERE job_id IN (${jobsOf(id)}) AND kind = 'key.destroy' AND state = 'due'`,
  )
}

/** Writes down which orders ask for these duties. */
export function setCommands(
  tx: Transaction,
  pairs: readonly { id: ObligationId; commandId: CommandId }[],
): void {
  tx.sql.run(
    raw`UPDATE obligations SET command_id = pair.value FROM json_each(${JSON.stringify(
      Object.fromEntries(pairs.map(({ id, commandId }) => [id, commandId])),
    )}) AS pair WHERE obligations.id = pair.key`,
  )
}

// ---------------------------------------------------------------- how far it came

/** What stands between a purge and its end. */
export type Open = { jobs: number; agents: number; unordered: number }

export function openOf(sql: Queries, id: PurgeId): Open {
  return {
    jobs: count(
      sql,
      raw`SELECT count(*) AS n FROM jobs WHERE id IN (${jobsOf(id)}) AND state NOT IN ('deleted', 'deleted-unconfirmed')`,
    ),
    agents: count(
      sql,
      raw`SELECT count(*) AS n FROM obligations WHERE subject_id = ${id} AND kind = 'purge.agent' AND state <> 'done' AND written_off_at_ms IS NULL`,
    ),
    unordered: count(
      sql,
      raw`SELECT count(*) AS n FROM purge_jobs WHERE purge_id = ${id} AND ordered_at_ms IS NULL`,
    ),
  }
}

/** Agents that a purge still waits for, and whether they could confirm it at `atMs`. */
export function waitedFor(sql: Queries, id: PurgeId, atMs: number) {
  return sql.all<{ obligationId: ObligationId; name: string; mayConfirm: 0 | 1 }>(
    raw`SELECT obligations.id AS "obligationId", agents.name AS name,
        agents.revoked_at_ms IS NULL AND obligations.deadline_at_ms > ${atMs}
          AND coalesce(agents.certificate_expires_at_ms, 0) > ${atMs} AS "mayConfirm"
      FROM obligations JOIN agents ON agents.id = obligations.agent_id
      WHERE subject_id = ${id} AND kind = 'purge.agent' AND state <> 'done' AND written_off_at_ms IS NULL
      ORDER BY agents.id`,
  )
}

/** When the last object of a purge was seen to be absent; undefined while one may be there. */
export async function objectsAbsentAtMs(sql: Queries, id: PurgeId): Promise<number | undefined> {
  const unseen = count(
    sql,
    raw`SELECT count(*) AS n FROM jobs WHERE id IN (${jobsOf(id)}) AND objects_absent_at_ms IS NULL`,
  )
  if (unseen > 0) return undefined
  const [row] = await sql
    .select({ atMs: max(jobs.objectsAbsentAtMs) })
    .from(jobs)
    .where(raw`${jobs.id} IN (${jobsOf(id)})`)
  return row?.atMs ?? undefined
}

/** Duties of a purge and of its jobs, counted by everything that tells how far each has come. */
export function dutiesOf(sql: Queries, id: PurgeId) {
  return sql.all<{
    kind: string
    done: 0 | 1
    asked: 0 | 1
    acked: 0 | 1
    proven: 0 | 1
    n: number
  }>(
    raw`SELECT kind, obligations.state = 'done' AS done,
        obligations.attempts > 0 OR obligations.command_id IS NOT NULL AS asked,
        coalesce(commands.acked_at_ms IS NOT NULL, 0) AS acked,
        CASE WHEN obligations.job_id IS NULL
          THEN EXISTS (SELECT 1 FROM evidence_documents WHERE subject_id = obligations.subject_id AND kind = 'purge-certificate')
          ELSE EXISTS (SELECT 1 FROM certificates WHERE certificates.job_id = obligations.job_id) END AS proven,
        count(*) AS n
      FROM obligations LEFT JOIN commands ON commands.id = obligations.command_id
      WHERE (subject_id = ${id} OR obligations.job_id IN (${jobsOf(id)}))
        AND kind IN ('purge.agent', 'spool.delete', 'lease.wipe', 'object.delete', 'replica.delete', 'key.destroy', 'result.deliver')
      GROUP BY 1, 2, 3, 4, 5`,
  )
}

/** Agents that have not confirmed a purge, or jobs of it. */
export function silentAgents(sql: Queries, id: PurgeId, itemsMax: number) {
  return sql.all<{
    id: AgentId
    name: string
    role: 'capture' | 'gpu'
    lastSeenAtMs: number | null
    leaseDeadlineAtMs: number | null
  }>(
    raw`SELECT agents.id AS id, name, role, last_seen_at_ms AS "lastSeenAtMs",
        (SELECT max(deadline_at_ms) FROM leases WHERE node_id = agents.id AND key_released_at_ms IS NOT NULL AND wiped_at_ms IS NULL AND job_id IN (${jobsOf(id)})) AS "leaseDeadlineAtMs"
      FROM agents WHERE ${isSilent(id)} ORDER BY agents.id LIMIT ${itemsMax}`,
  )
}

export function countSilent(sql: Queries, id: PurgeId): number {
  return count(sql, raw`SELECT count(*) AS n FROM agents WHERE ${isSilent(id)}`)
}

const isSilent = (id: PurgeId): SQL =>
  raw`agents.id IN (SELECT agent_id FROM obligations WHERE state <> 'done' AND agent_id IS NOT NULL
    AND (subject_id = ${id} OR job_id IN (${jobsOf(id)})))`

export function countDeleted(sql: Queries, id: PurgeId): number {
  return count(
    sql,
    raw`SELECT count(*) AS n FROM jobs WHERE id IN (${jobsOf(id)}) AND state = 'deleted'`,
  )
}

/** The site of the job or agent that a scope names. */
export async function siteOfSubject(sql: Queries, scope: PurgeScope): Promise<string | undefined> {
  if (scope.kind === 'job')
    return (await sql.query.jobs.findFirst({ where: eq(jobs.id, scope.jobId) }))?.site
  if (scope.kind === 'agent')
    return (await sql.query.agents.findFirst({ where: eq(agents.id, scope.agentId) }))?.site
  return undefined
}

/** The newest signed document of one kind about a purge. */
export async function documentOf(
  sql: Queries,
  id: PurgeId,
  kind: 'purge-certificate' | 'purge-report',
): Promise<string | undefined> {
  const row = await sql.query.evidenceDocuments.findFirst({
    where: and(eq(evidenceDocuments.subjectId, id), eq(evidenceDocuments.kind, kind)),
  })
  return row?.envelope
}

// ---------------------------------------------------------------- the end

/** Lets the engine look at a purge at once, when nothing but its end is left to do. */
export async function lookNow(
  tx: Transaction,
  id: PurgeId,
  atMs: number,
  changes: Changes,
): Promise<void> {
  if (anyAgentOwes(tx.sql, id)) return
  const open = openOf(tx.sql, id)
  if (open.agents + open.jobs + open.unordered > 0) return
  await tx.sql
    .update(obligations)
    .set({ nextTryAtMs: atMs })
    .where(
      and(
        eq(obligations.subjectId, id),
        eq(obligations.kind, 'purge.conclude'),
        eq(obligations.state, 'due'),
      ),
    )
  tx.afterCommit(() => changes.emit('obligation'))
}

/** Ends at the first duty it finds: it is asked after each receipt of thousands. */
function anyAgentOwes(sql: Queries, id: PurgeId): boolean {
  return someAgentOwes(sql).get({ id }) !== undefined
}

const someAgentOwes = preparedOnce((sql) =>
  sql
    .select({ id: obligations.id })
    .from(obligations)
    .where(
      and(
        eq(obligations.subjectId, raw.placeholder('id')),
        // Literals, as a partial index needs them.
        raw`${obligations.state} IN ('due', 'waiting') AND ${obligations.kind} = 'purge.agent'`,
        isNull(obligations.writtenOffAtMs),
      ),
    )
    .limit(1)
    .prepare(),
)

/** Every confirmed order of a purge with its receipt, by obligation. */
export async function confirmedOrders(sql: Queries, id: PurgeId) {
  return sql
    .select({ receipt: receipts, agentId: obligations.agentId, order: commands.body })
    .from(obligations)
    .innerJoin(receipts, eq(receipts.obligationId, obligations.id))
    .innerJoin(commands, eq(commands.id, obligations.commandId))
    .where(and(eq(obligations.subjectId, id), eq(obligations.kind, 'purge.agent')))
    .orderBy(asc(obligations.id))
}

/** Certificates in memory at a time; that of a job with many leases has a few hundred KiB. */
const certificatePageJobs = 100

/** Jobs of a purge by id, each with its certificate where it has one; a page in memory. */
export function* certifiedJobs(
  sql: Queries,
  id: PurgeId,
): Generator<{ jobId: JobId; envelope: string | null }> {
  let after = ''
  for (;;) {
    const page = sql.all<{ jobId: JobId; envelope: string | null }>(
      raw`SELECT purge_jobs.job_id AS "jobId", envelope FROM purge_jobs
        LEFT JOIN certificates ON certificates.job_id = purge_jobs.job_id
        WHERE purge_id = ${id} AND purge_jobs.job_id > ${after} ORDER BY purge_jobs.job_id LIMIT ${certificatePageJobs}`,
    )
    yield* page
    if (page.length < certificatePageJobs) return
    after = page.at(-1)!.jobId
  }
}

export function countCertified(sql: Queries, id: PurgeId): number {
  return count(
    sql,
    raw`SELECT count(*) AS n FROM purge_jobs JOIN certificates ON certificates.job_id = purge_jobs.job_id WHERE purge_id = ${id}`,
  )
}

/** Duties that keep a purge open. */
export function openDuties(sql: Queries, id: PurgeId, itemsMax: number) {
  return sql.all<{
    kind: string
    obligationId: ObligationId | null
    jobId: JobId | null
    agentId: AgentId | null
    attempts: number
    lastErrorCode: string | null
  }>(
    raw`SELECT kind, id AS "obligationId", job_id AS "jobId", agent_id AS "agentId", attempts, last_error_code AS "lastErrorCode"
      FROM obligations WHERE ${isOpenDuty(id)}
      UNION ALL SELECT 'job.unconfirmed', NULL, id, NULL, 0, NULL FROM jobs WHERE state = 'deleted-unconfirmed' AND id IN (${jobsOf(id)})
      LIMIT ${itemsMax}`,
  )
}

export function countOpenDuties(sql: Queries, id: PurgeId): number {
  return (
    count(sql, raw`SELECT count(*) AS n FROM obligations WHERE ${isOpenDuty(id)}`) +
    count(
      sql,
      raw`SELECT count(*) AS n FROM jobs WHERE state = 'deleted-unconfirmed' AND id IN (${jobsOf(id)})`,
    )
  )
}

const isOpenDuty = (id: PurgeId): SQL =>
  raw`state <> 'done' AND ((subject_id = ${id} AND kind = 'purge.agent') OR (job_id IN (${jobsOf(id)})
    AND kind IN ('spool.delete', 'lease.wipe', 'object.delete', 'replica.delete', 'key.destroy', 'result.deliver', 'certificate.issue')))`

/** Keeps a signed document; a report gives way to a newer one. */
export async function keepDocument(
  tx: Transaction,
  document: typeof evidenceDocuments.$inferInsert,
): Promise<void> {
  const { envelope, issuedAtMs } = document
  await tx.sql
    .insert(evidenceDocuments)
    .values(document)
    .onConflictDoUpdate({
      target: [evidenceDocuments.subjectId, evidenceDocuments.kind],
      set: { envelope, issuedAtMs },
    })
}

// ---------------------------------------------------------------- what its forensic bundle holds

type BundlePage = { id: PurgeId; after: string; items: number }

/** Certificates and write-offs of its jobs, by job. */
export function bundleDocuments(sql: Queries, { id, after, items }: BundlePage) {
  return sql.all<{ kind: string; subjectId: string; envelope: string }>(
    raw`SELECT * FROM (
        SELECT 'certificate' AS kind, job_id AS "subjectId", envelope FROM certificates
        UNION ALL SELECT kind, subject_id, envelope FROM evidence_documents WHERE kind = 'write-off')
      WHERE "subjectId" > ${after} AND "subjectId" IN (${jobsOf(id)}) ORDER BY "subjectId" LIMIT ${items}`,
  )
}

/** Every receipt of its jobs and of its orders, by obligation. */
export function bundleReceipts(sql: Queries, { id, after, items }: BundlePage) {
  return sql.all<{ obligationId: string; envelope: string }>(
    raw`SELECT obligation_id AS "obligationId", envelope FROM receipts
      WHERE obligation_id > ${after} AND (job_id IN (${jobsOf(id)}) OR obligation_id IN
        (SELECT id FROM obligations WHERE subject_id = ${id} AND kind = 'purge.agent'))
      ORDER BY obligation_id LIMIT ${items}`,
  )
}

/** Every agent it ordered or whose copies it destroyed, and the time in which each was good. */
export function bundleAgents(sql: Queries, { id, after, items }: BundlePage) {
  return sql.all<{ id: string }>(
    raw`SELECT id, name, role, site, public_key_id AS "publicKeyId", joined_at_ms AS "joinedAtMs",
        certificate_serial AS "certificateSerial", certificate_expires_at_ms AS "certificateExpiresAtMs",
        revoked_at_ms AS "revokedAtMs", build
      FROM agents WHERE id > ${after} AND ${isBundleAgent(id)} ORDER BY id LIMIT ${items}`,
  )
}

const isBundleAgent = (id: PurgeId): SQL =>
  raw`(agents.id IN (SELECT agent_id FROM obligations WHERE subject_id = ${id} AND kind = 'purge.agent')
    OR agents.id IN (SELECT capture_agent_id FROM jobs WHERE id IN (${jobsOf(id)}))
    OR agents.id IN (SELECT node_id FROM leases WHERE job_id IN (${jobsOf(id)})))`

/** Revocations of its agents, of a label that one of them carries, and of authorities. */
export async function bundleRevocations(sql: Queries, { id, after, items }: BundlePage) {
  return sql
    .select()
    .from(revocations)
    .where(
      raw`${revocations.id} > ${after} AND (kind = 'authority'
        OR (kind = 'agent' AND target IN (SELECT id FROM agents WHERE ${isBundleAgent(id)}))
        OR (kind = 'label' AND EXISTS (SELECT 1 FROM agents, json_each(agents.labels) AS label
          WHERE label.key || '=' || label.value = target AND ${isBundleAgent(id)})))`,
    )
    .orderBy(asc(revocations.id))
    .limit(items)
}

/** Audit events of the purge, its approval and its jobs, and of the revocation of its agents. */
export async function bundleEvents(
  sql: Queries,
  { id, afterSeq, items }: { id: PurgeId; afterSeq: number; items: number },
): Promise<BundleEvent[]> {
  const rows = await sql
    .select()
    .from(auditEvents)
    .where(
      raw`seq > ${afterSeq} AND (job_id IN (${jobsOf(id)}) OR json_extract(detail, '$.purgeId') = ${id}
        OR json_extract(detail, '$.approvalId') = (SELECT approval_id FROM purges WHERE id = ${id})
        OR (type IN ('agent.revoked', 'revocation.made') AND agent_id IN (SELECT id FROM agents WHERE ${isBundleAgent(id)})))`,
    )
    .orderBy(asc(auditEvents.seq))
    .limit(items)
  return rows.map(({ jobId, agentId, sha256, ...rest }) => ({
    event: { ...rest, ...presentFields({ jobId, agentId }) },
    sha256,
  }))
}
