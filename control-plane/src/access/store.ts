/** Remembers principals, their rights and tokens, and what was answered to repeated requests. */
import { and, asc, desc, eq, gt, inArray, isNull, lt, or, type SQL } from '../database/drizzle.ts'
import type { AgentRole, Right } from '@sluice/protocol/api'
import type { AgentId, ApprovalId, PrincipalId, TokenId } from '@sluice/protocol/ids'
import type { Queries, Transaction } from '../database/database.ts'
import {
  agents,
  apiTokens,
  approvals,
  idempotencyKeys,
  joinTokens,
  principals,
  rights,
} from '../database/schema.ts'

export type PrincipalRow = typeof principals.$inferSelect
export type TokenRow = typeof apiTokens.$inferSelect
export type JoinTokenRow = typeof joinTokens.$inferSelect
export type JoinedAgentRow = typeof agents.$inferSelect
export type ApprovalRow = typeof approvals.$inferSelect

// ---------------------------------------------------------------- principals

export async function principalByName(
  sql: Queries,
  name: string,
): Promise<PrincipalRow | undefined> {
  const [row] = await sql.select().from(principals).where(eq(principals.name, name)).limit(1)
  return row
}

export async function rightsOf(sql: Queries, principal: PrincipalId): Promise<Right[]> {
  return await sql
    .select({ role: rights.role, site: rights.site })
    .from(rights)
    .where(eq(rights.principalId, principal))
    .orderBy(asc(rights.role), asc(rights.site))
}

export async function insertPrincipal(
  tx: Transaction,
  row: PrincipalRow,
  given: readonly Right[],
): Promise<void> {
  await tx.sql.insert(principals).values(row)
  await tx.sql
    .insert(rights)
    .values(given.map((right) => ({ principalId: row.id, ...right })))
    .onConflictDoNothing()
}

/** In the order of ids, after `after`. */
export async function pageOfPrincipals(
  sql: Queries,
  page: { after?: string | undefined; items: number },
): Promise<PrincipalRow[]> {
  return await sql
    .select()
    .from(principals)
    .where(page.after === undefined ? undefined : gt(principals.id, page.after as PrincipalId))
    .orderBy(asc(principals.id))
    .limit(page.items)
}

export async function principalById(
  sql: Queries,
  id: PrincipalId,
): Promise<PrincipalRow | undefined> {
  const [row] = await sql.select().from(principals).where(eq(principals.id, id)).limit(1)
  return row
}

/** Everybody with the role `security` on all of `site`; for `*`, on all sites; undefined: anywhere. */
export async function securityPrincipals(sql: Queries, site?: string): Promise<PrincipalId[]> {
  const there = site === undefined ? undefined : inArray(rights.site, [...new Set([site, '*'])])
  const rows = await sql
    .selectDistinct({ id: rights.principalId })
    .from(rights)
    .where(and(eq(rights.role, 'security'), there))
  return rows.map((row) => row.id)
}

/** Who was ever handed a token of a principal; null for the owner. */
export async function tokenMakers(sql: Queries, id: PrincipalId): Promise<(PrincipalId | null)[]> {
  const rows = await sql
    .selectDistinct({ by: apiTokens.createdBy })
    .from(apiTokens)
    .where(eq(apiTokens.principalId, id))
  return rows.map((row) => row.by)
}

/** Whether a principal has a token that counts. */
export async function hasTokenThatCounts(
  sql: Queries,
  id: PrincipalId,
  atMs: number,
): Promise<boolean> {
  const rows = await sql
    .select({ id: apiTokens.id })
    .from(apiTokens)
    .where(
      and(
        eq(apiTokens.principalId, id),
        isNull(apiTokens.revokedAtMs),
        gt(apiTokens.expiresAtMs, atMs),
      ),
    )
    .limit(1)
  return rows.length > 0
}

// ---------------------------------------------------------------- approvals

export async function insertApproval(tx: Transaction, row: ApprovalRow): Promise<void> {
  await tx.sql.insert(approvals).values(row)
}

export async function approvalById(sql: Queries, id: ApprovalId): Promise<ApprovalRow | undefined> {
  const [row] = await sql.select().from(approvals).where(eq(approvals.id, id)).limit(1)
  return row
}

/** What one principal asked for and is still open, or was given and not used yet. */
export async function approvalsAskedBy(
  sql: Queries,
  askedBy: PrincipalId,
  state: 'open' | 'given',
): Promise<ApprovalRow[]> {
  return await sql
    .select()
    .from(approvals)
    .where(
      and(eq(approvals.askedBy, askedBy), eq(approvals.state, state), isNull(approvals.usedAtMs)),
    )
    .orderBy(asc(approvals.id))
}

/** What was asked with a token and waits. */
export async function approvalsOfToken(sql: Queries, token: TokenId): Promise<ApprovalRow[]> {
  return await sql
    .select()
    .from(approvals)
    .where(and(eq(approvals.askedByToken, token), eq(approvals.state, 'open')))
    .orderBy(asc(approvals.id))
}

/** Newest first, those older than `before`. */
export async function pageOfApprovals(
  sql: Queries,
  page: {
    before?: string | undefined
    items: number
    sites: 'all' | readonly string[]
    state?: ApprovalRow['state'] | undefined
  },
): Promise<ApprovalRow[]> {
  const conditions: (SQL | undefined)[] = []
  if (page.before !== undefined) conditions.push(lt(approvals.id, page.before as ApprovalId))
  if (page.sites !== 'all')
    conditions.push(or(inArray(approvals.site, [...page.sites]), eq(approvals.anySite, true)))
  if (page.state !== undefined) conditions.push(eq(approvals.state, page.state))
  return await sql
    .select()
    .from(approvals)
    .where(and(...conditions))
    .orderBy(desc(approvals.id))
    .limit(page.items)
}

/** Decides an approval that is open. @returns Whether this call did it. */
export async function closeApproval(
  tx: Transaction,
  id: ApprovalId,
  end: {
    state: 'given' | 'refused' | 'expired'
    decidedBy: PrincipalId | null
    decidedAtMs: number
  },
): Promise<boolean> {
  const changed = await tx.sql
    .update(approvals)
    .set(end)
    .where(and(eq(approvals.id, id), eq(approvals.state, 'open')))
    .returning({ id: approvals.id })
  return changed.length > 0
}

/** Uses up a given approval. @returns Whether this call did it: it counts once. */
export async function markApprovalUsed(
  tx: Transaction,
  id: ApprovalId,
  atMs: number,
): Promise<boolean> {
  const changed = await tx.sql
    .update(approvals)
    .set({ usedAtMs: atMs })
    .where(and(eq(approvals.id, id), eq(approvals.state, 'given'), isNull(approvals.usedAtMs)))
    .returning({ id: approvals.id })
  return changed.length > 0
}

// ---------------------------------------------------------------- API tokens

export async function insertToken(tx: Transaction, row: TokenRow): Promise<void> {
  await tx.sql.insert(apiTokens).values(row)
}

export async function tokenBySha256(
  sql: Queries,
  sha256: Buffer,
): Promise<{ token: TokenRow; principal: PrincipalRow } | undefined> {
  const [row] = await sql
    .select({ token: apiTokens, principal: principals })
    .from(apiTokens)
    .innerJoin(principals, eq(apiTokens.principalId, principals.id))
    .where(eq(apiTokens.tokenSha256, sha256))
    .limit(1)
  return row
}

export async function tokenById(
  sql: Queries,
  id: TokenId,
): Promise<{ token: TokenRow; principal: PrincipalRow } | undefined> {
  const [row] = await sql
    .select({ token: apiTokens, principal: principals })
    .from(apiTokens)
    .innerJoin(principals, eq(apiTokens.principalId, principals.id))
    .where(eq(apiTokens.id, id))
    .limit(1)
  return row
}

export async function pageOfTokens(
  sql: Queries,
  page: { after?: string | undefined; items: number },
): Promise<{ token: TokenRow; principal: PrincipalRow }[]> {
  return await sql
    .select({ token: apiTokens, principal: principals })
    .from(apiTokens)
    .innerJoin(principals, eq(apiTokens.principalId, principals.id))
    .where(page.after === undefined ? undefined : gt(apiTokens.id, page.after as TokenId))
    .orderBy(asc(apiTokens.id))
    .limit(page.items)
}

export async function markTokenUsed(tx: Transaction, id: TokenId, atMs: number): Promise<void> {
  await tx.sql.update(apiTokens).set({ lastUsedAtMs: atMs }).where(eq(apiTokens.id, id))
}

/** @returns Whether it was still good. */
export async function markTokenRevoked(
  tx: Transaction,
  id: TokenId,
  atMs: number,
): Promise<boolean> {
  const changed = await tx.sql
    .update(apiTokens)
    .set({ revokedAtMs: atMs })
    .where(and(eq(apiTokens.id, id), isNull(apiTokens.revokedAtMs)))
    .returning({ id: apiTokens.id })
  return changed.length > 0
}

// ---------------------------------------------------------------- join tokens and agents

export async function insertJoinToken(tx: Transaction, row: JoinTokenRow): Promise<void> {
  await tx.sql.insert(joinTokens).values(row)
}

export async function joinTokenBySha256(
  sql: Queries,
  sha256: Buffer,
): Promise<JoinTokenRow | undefined> {
  const [row] = await sql
    .select()
    .from(joinTokens)
    .where(eq(joinTokens.tokenSha256, sha256))
    .limit(1)
  return row
}

export async function joinTokenById(sql: Queries, id: TokenId): Promise<JoinTokenRow | undefined> {
  const [row] = await sql.select().from(joinTokens).where(eq(joinTokens.id, id)).limit(1)
  return row
}

export async function pageOfJoinTokens(
  sql: Queries,
  page: { after?: string | undefined; items: number; sites: 'all' | readonly string[] },
): Promise<JoinTokenRow[]> {
  const conditions: SQL[] = []
  if (page.after !== undefined) conditions.push(gt(joinTokens.id, page.after as TokenId))
  if (page.sites !== 'all') conditions.push(inArray(joinTokens.site, [...page.sites]))
  return await sql
    .select()
    .from(joinTokens)
    .where(and(...conditions))
    .orderBy(asc(joinTokens.id))
    .limit(page.items)
}

/** @returns Whether it was still unused and good. */
export async function markJoinTokenUsed(
  tx: Transaction,
  id: TokenId,
  use: { atMs: number; agentId: AgentId },
): Promise<boolean> {
  const changed = await tx.sql
    .update(joinTokens)
    .set({ usedAtMs: use.atMs, usedByAgentId: use.agentId })
    .where(and(eq(joinTokens.id, id), isNull(joinTokens.usedAtMs), isNull(joinTokens.revokedAtMs)))
    .returning({ id: joinTokens.id })
  return changed.length > 0
}

/** @returns Whether it was still good. */
export async function markJoinTokenRevoked(
  tx: Transaction,
  id: TokenId,
  atMs: number,
): Promise<boolean> {
  const changed = await tx.sql
    .update(joinTokens)
    .set({ revokedAtMs: atMs })
    .where(and(eq(joinTokens.id, id), isNull(joinTokens.revokedAtMs)))
    .returning({ id: joinTokens.id })
  return changed.length > 0
}

export async function insertAgent(
  tx: Transaction,
  row: {
    id: AgentId
    name: string
    role: AgentRole
    site: string
    labels: Record<string, string>
    publicKey: Buffer
    publicKeyId: string
    joinedAtMs: number
    certificateSerial: string
    certificateExpiresAtMs: number
  },
): Promise<void> {
  await tx.sql.insert(agents).values(row)
}

export async function joinedAgent(sql: Queries, id: AgentId): Promise<JoinedAgentRow | undefined> {
  const [row] = await sql.select().from(agents).where(eq(agents.id, id)).limit(1)
  return row
}

export async function joinedAgentByKey(
  sql: Queries,
  publicKeyId: string,
): Promise<JoinedAgentRow | undefined> {
  const [row] = await sql.select().from(agents).where(eq(agents.publicKeyId, publicKeyId)).limit(1)
  return row
}

export async function agentNameTaken(sql: Queries, name: string): Promise<boolean> {
  const rows = await sql
    .select({ id: agents.id })
    .from(agents)
    .where(eq(agents.name, name))
    .limit(1)
  return rows.length > 0
}

export async function recordCertificate(
  tx: Transaction,
  id: AgentId,
  certificate: { serial: string; expiresAtMs: number },
): Promise<void> {
  await tx.sql
    .update(agents)
    .set({
      certificateSerial: certificate.serial,
      certificateExpiresAtMs: certificate.expiresAtMs,
    })
    .where(eq(agents.id, id))
}

// ---------------------------------------------------------------- repeated requests

export type RememberedAnswer = typeof idempotencyKeys.$inferSelect

export async function rememberedAnswer(
  sql: Queries,
  principal: PrincipalId,
  key: string,
): Promise<RememberedAnswer | undefined> {
  const [row] = await sql
    .select()
    .from(idempotencyKeys)
    .where(and(eq(idempotencyKeys.principalId, principal), eq(idempotencyKeys.key, key)))
    .limit(1)
  return row
}

/** In the place of what was remembered before; also forgets the answers given before `forgetBeforeMs`. */
export async function rememberAnswer(
  tx: Transaction,
  answer: RememberedAnswer,
  forgetBeforeMs: number,
): Promise<void> {
  await tx.sql.delete(idempotencyKeys).where(lt(idempotencyKeys.createdAtMs, forgetBeforeMs))
  await tx.sql
    .insert(idempotencyKeys)
    .values(answer)
    .onConflictDoUpdate({
      target: [idempotencyKeys.principalId, idempotencyKeys.key],
      set: { status: answer.status, body: answer.body },
    })
}

/** For a request that came to nothing: it may be made again. */
export async function forgetAnswer(
  tx: Transaction,
  principal: PrincipalId,
  key: string,
): Promise<void> {
  await tx.sql
    .delete(idempotencyKeys)
    .where(and(eq(idempotencyKeys.principalId, principal), eq(idempotencyKeys.key, key)))
}
