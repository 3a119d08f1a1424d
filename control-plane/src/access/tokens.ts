/** Makes, checks and revokes bearer tokens; only their SHA-256 is ever stored. */
import { createHash, randomBytes } from 'node:crypto'
import {
  bearerSecret,
  type CreatedJoinToken,
  type CreatedToken,
  type CreateJoinTokenRequest,
  type CreateTokenRequest,
  encodeToken,
  type JoinTokenView,
  type Right,
  type TokenView,
} from '@sluice/protocol/api'
import type { ApprovalAsked } from '@sluice/protocol/api-approvals'
import type { ApprovalOperation } from '@sluice/protocol/approval'
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import { type PrincipalId, principalId, type TokenId, tokenId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Transaction } from '../database/database.ts'
import { unlessDiskFails } from '../database/write-failure.ts'
import {
  type ApprovalDeps,
  askApproval,
  endApprovalsOfToken,
  type Executors,
  useApproval,
  viewOfApproval,
} from './approvals.ts'
import type { Authority } from './authority.ts'
import { type Access, mayGive, reachesSite, type RouteRule, sitesAllowed } from './rules.ts'
import {
  approvalById,
  type ApprovalRow,
  insertJoinToken,
  insertPrincipal,
  insertToken,
  joinTokenById,
  type JoinTokenRow,
  markJoinTokenRevoked,
  markTokenRevoked,
  markTokenUsed,
  pageOfPrincipals,
  principalByName,
  type PrincipalRow,
  rightsOf,
  tokenById,
  tokenBySha256,
  type TokenRow,
} from './store.ts'
import { siteOfRights, takesTwo } from './two-people.ts'

export type TokensDeps = {
  database: Database
  changes: Changes
  authority: Authority
  /** Origin of the operator listener, which tokens carry. */
  operatorUrl: () => string
  now: () => number
}

/** Who asks: a principal within its sites, or the owner of the data directory. */
export type Giver = { access: Access } | 'owner'

const tokenMsDefault = 90 * 24 * 60 * 60 * 1000
/** How exactly `lastUsedAtMs` is kept: not every request is worth a write. */
const lastUsedEveryMs = 60_000

/** What is stored of a secret. */
export function secretSha256(secret: string): Buffer {
  return createHash('sha256').update(secret).digest()
}

function newSecret(): string {
  return randomBytes(32).toString('base64url')
}

function actorOf(giver: Giver): Actor {
  return giver === 'owner'
    ? { kind: 'system' }
    : { kind: 'principal', id: giver.access.principalId }
}

/**
 * Checks a bearer token against what a route asks for.
 *
 * @param authorization The `Authorization` header as it came.
 * @throws SluiceError `access.unauthenticated` for no token or one that does not count (which of
 * these it is stays untold); `access.forbidden` when the principal holds none of the roles.
 */
export async function authenticate(
  deps: Pick<TokensDeps, 'database' | 'now'>,
  authorization: string | undefined,
  rule: RouteRule & { may: Exclude<RouteRule['may'], 'public'> },
): Promise<Access> {
  const { database, now } = deps
  const refused = new SluiceError('access.unauthenticated', 'no valid token was given', {
    hint: 'Run `sluice login` with a token made by `sluice tokens create`.',
  })
  const secret = bearerSecret.safeParse(authorization?.replace(/^Bearer /, ''))
  if (!secret.success || !authorization?.startsWith('Bearer ')) throw refused
  const found = await database.read(async (sql) => {
    const row = await tokenBySha256(sql, secretSha256(secret.data))
    return row && { ...row, rights: await rightsOf(sql, row.principal.id) }
  })
  const atMs = now()
  if (!found || found.token.revokedAtMs !== null || found.token.expiresAtMs <= atMs) throw refused
  if (atMs - (found.token.lastUsedAtMs ?? 0) >= lastUsedEveryMs)
    await unlessDiskFails(database.write((tx) => markTokenUsed(tx, found.token.id, atMs)))
  const { principal, rights } = found
  const sites = sitesAllowed(rights, rule.may)
  if (sites === undefined) {
    await database.write((tx) =>
      appendAudit(tx, {
        atMs,
        type: 'access.denied',
        actor: { kind: 'principal', id: principal.id },
        site: '*',
        detail: { method: rule.method, path: rule.path },
      }),
    )
    throw new SluiceError('access.forbidden', `${principal.name} may not do this`, {
      hint: `It takes the role ${rule.may.join(' or ')}; roles do not nest.`,
    })
  }
  const who = { principalId: principal.id, principal: principal.name }
  return { ...who, sites, rights, tokenId: found.token.id }
}

/**
 * Makes an API token; a principal that does not exist yet is made with it. Once there are two people
 * with the role `security`, making one more of them, or a token of another one, takes both: the
 * answer is then the approval that waits. When it is given, its asker asks again, once, and gets the
 * token: no secret waits anywhere.
 *
 * @throws SluiceError `request.invalid` for a new principal without rights;
 * `request.conflict` for rights of a principal that exists; `access.forbidden` for rights beyond
 * the sites of the giver; `approval.needed` for the owner, who is no named person.
 */
export function createToken(
  deps: TokensDeps,
  giver: 'owner',
  wanted: CreateTokenRequest,
): Promise<CreatedToken>
export function createToken(
  deps: TokensDeps,
  giver: Giver,
  wanted: CreateTokenRequest,
): Promise<CreatedToken | ApprovalAsked>
export async function createToken(
  deps: TokensDeps,
  giver: Giver,
  wanted: CreateTokenRequest,
): Promise<CreatedToken | ApprovalAsked> {
  const secret = newSecret()
  const atMs = deps.now()
  const made = await deps.database.write(async (tx) => {
    const known = await principalByName(tx.sql, wanted.principal)
    const rights = known ? await rightsOf(tx.sql, known.id) : uniqueRights(wanted.rights ?? [])
    if (rights.length === 0)
      throw new SluiceError('request.invalid', `no principal is named ${wanted.principal}`, {
        hint: 'Name its role and site to make it, such as role viewer on site *.',
      })
    if (known && wanted.rights && !sameRights(rights, wanted.rights))
      throw new SluiceError('request.conflict', `${wanted.principal} exists with other rights`, {
        hint: 'Leave the rights out, or choose another name: rights belong to a principal for good.',
      })
    if (giver !== 'owner' && !mayGive(giver.access, rights))
      throw new SluiceError('access.forbidden', 'these rights reach beyond your own sites')
    const waits = await askIfTwo(deps, tx, { giver, wanted, known, rights, atMs })
    if (waits !== undefined) return { approval: await viewOfApproval(tx.sql, waits) }
    const createdBy = giver === 'owner' ? null : giver.access.principalId
    const principal =
      known ?? (await addPrincipal(tx, { name: wanted.principal, rights, createdBy, atMs }))
    const row: TokenRow = {
      id: newId(tokenId, atMs),
      principalId: principal.id,
      tokenSha256: secretSha256(secret),
      createdAtMs: atMs,
      createdBy,
      expiresAtMs: atMs + (wanted.lifeMs ?? tokenMsDefault),
      lastUsedAtMs: null,
      revokedAtMs: null,
    }
    await insertToken(tx, row)
    await appendAudit(tx, {
      atMs,
      type: 'token.created',
      actor: actorOf(giver),
      site: '*',
      detail: { tokenId: row.id, principalId: principal.id },
    })
    return viewOfToken(row, principal, rights)
  })
  if ('approval' in made) return made
  return { ...made, token: encodeToken('token', contentOf(deps, secret)) }
}

/**
 * Asks for the second person where one is needed and was not yet given.
 *
 * @returns What waits now, or undefined when the token may be made.
 */
async function askIfTwo(
  deps: TokensDeps,
  tx: Transaction,
  asked: {
    giver: Giver
    wanted: CreateTokenRequest
    known: PrincipalRow | undefined
    rights: readonly Right[]
    atMs: number
  },
): Promise<ApprovalRow | undefined> {
  const { giver, wanted, known, rights, atMs } = asked
  // A further token of one's own makes nobody stronger.
  if (giver !== 'owner' && known?.id === giver.access.principalId) return undefined
  if (!(await takesTwo(tx.sql, { rights, byOwner: giver === 'owner', atMs }))) return undefined
  if (giver === 'owner')
    throw new SluiceError('approval.needed', 'this takes two people with the role security', {
      hint: 'One of them runs `sluice tokens create` with a login of their own, another agrees.',
    })
  const { access } = giver
  const used = await useApproval(tx, {
    askedBy: access.principalId,
    matches: (operation) =>
      (operation.kind === 'security.token' && operation.principalId === known?.id) ||
      (operation.kind === 'security.raise' && operation.principal === known?.name),
    atMs,
  })
  if (used !== undefined) return undefined
  const operation: ApprovalOperation = known
    ? { kind: 'security.token', principalId: known.id }
    : { kind: 'security.raise', principal: wanted.principal, rights: [...rights] }
  const reason = wanted.reason ?? `a token for ${wanted.principal}`
  const site = siteOfRights(rights)
  const question = { operation, access, site, reason, atMs, anySite: 'if need be' } as const
  const id = await askApproval(tx, question, deps.changes)
  return approvalById(tx.sql, id)
}

async function addPrincipal(
  tx: Transaction,
  made: {
    name: string
    rights: readonly Right[]
    createdBy: PrincipalId | null
    approvedBy?: PrincipalId
    atMs: number
  },
): Promise<PrincipalRow> {
  const { name, rights, createdBy, approvedBy, atMs } = made
  const row: PrincipalRow = { id: newId(principalId, atMs), name, createdAtMs: atMs, createdBy }
  await insertPrincipal(tx, row, rights)
  await appendAudit(tx, {
    atMs,
    type: 'principal.created',
    actor: createdBy === null ? { kind: 'system' } : { kind: 'principal', id: createdBy },
    site: '*',
    detail: {
      principalId: row.id,
      name,
      rights: rights.map(({ role, site }) => `${role}@${site}`).join(' '),
      approvedBy,
    },
  })
  return row
}

/** What two people agree to about principals: one more with the role `security`, or one token of it. */
export const principalExecutors: Pick<Executors, 'security.raise' | 'security.token'> = {
  async 'security.raise'(tx, { operation, askedBy, approvedBy, atMs }) {
    const { principal: name, rights } = operation
    if (await principalByName(tx.sql, name))
      throw new SluiceError('request.conflict', `${name} exists by now`, {
        hint: 'Refuse this one and ask anew.',
      })
    await addPrincipal(tx, { name, rights, createdBy: askedBy, approvedBy, atMs })
  },
  // Its asker uses it up with the next `POST /v1/tokens`.
  'security.token': () => Promise.resolve(),
}

function contentOf(deps: TokensDeps, secret: string) {
  const [ca] = deps.authority.certificates
  return { url: deps.operatorUrl(), ca: ca?.toString('base64') ?? '', secret }
}

function uniqueRights(rights: readonly Right[]): Right[] {
  return [...new Map(rights.map((right) => [`${right.role}@${right.site}`, right])).values()]
}

function sameRights(left: readonly Right[], right: readonly Right[]): boolean {
  const key = (rights: readonly Right[]) =>
    uniqueRights(rights)
      .map(({ role, site }) => `${role}@${site}`)
      .toSorted()
      .join(' ')
  return key(left) === key(right)
}

export function viewOfToken(
  row: TokenRow,
  principal: PrincipalRow,
  rights: readonly Right[],
): TokenView {
  return {
    id: row.id,
    principalId: principal.id,
    principal: principal.name,
    rights: [...rights],
    createdAtMs: row.createdAtMs,
    expiresAtMs: row.expiresAtMs,
    ...(row.lastUsedAtMs === null ? {} : { lastUsedAtMs: row.lastUsedAtMs }),
    ...(row.revokedAtMs === null ? {} : { revokedAtMs: row.revokedAtMs }),
  }
}

/**
 * Ends an API token, and with the commit every answer to it that still lasts; what was asked with it
 * and waits for a second person is refused. Once revoked it stays so; doing it again changes nothing.
 *
 * @throws SluiceError `request.not_found`, also for a token beyond the sites of the giver.
 */
export async function revokeToken(
  deps: Pick<TokensDeps, 'changes' | 'now'> & Pick<ApprovalDeps, 'refusals'>,
  tx: Transaction,
  giver: Giver,
  id: TokenId,
): Promise<TokenView> {
  const atMs = deps.now()
  const found = await tokenById(tx.sql, id)
  const rights = found ? await rightsOf(tx.sql, found.principal.id) : []
  if (!found || (giver !== 'owner' && !mayGive(giver.access, rights)))
    throw new SluiceError('request.not_found', 'no such token')
  if (await markTokenRevoked(tx, id, atMs)) {
    await appendAudit(tx, {
      atMs,
      type: 'token.revoked',
      actor: actorOf(giver),
      site: '*',
      detail: { tokenId: id, principalId: found.principal.id },
    })
    const decidedBy = giver === 'owner' ? null : giver.access.principalId
    await endApprovalsOfToken(deps, tx, { tokenId: id, decidedBy, atMs })
    tx.afterCommit(() => deps.changes.emit('token', id))
  }
  const revokedAtMs = found.token.revokedAtMs ?? atMs
  return viewOfToken({ ...found.token, revokedAtMs }, found.principal, rights)
}

/**
 * Makes a join token: single use, bound to role, site and labels.
 *
 * @throws SluiceError `access.forbidden` for a site the giver does not reach.
 */
export async function createJoinToken(
  deps: TokensDeps,
  giver: Giver,
  wanted: CreateJoinTokenRequest,
): Promise<CreatedJoinToken> {
  if (giver !== 'owner' && !reachesSite(giver.access, wanted.site))
    throw new SluiceError('access.forbidden', `site ${wanted.site} is beyond your own sites`)
  const secret = newSecret()
  const atMs = deps.now()
  const row: JoinTokenRow = {
    id: newId(tokenId, atMs),
    tokenSha256: secretSha256(secret),
    role: wanted.role,
    site: wanted.site,
    labels: wanted.labels,
    agentName: wanted.name ?? null,
    createdAtMs: atMs,
    createdBy: giver === 'owner' ? null : giver.access.principalId,
    expiresAtMs: atMs + Math.min(wanted.lifeMs, limits.joinTokenMsMax),
    usedAtMs: null,
    usedByAgentId: null,
    revokedAtMs: null,
  }
  await deps.database.write(async (tx) => {
    await insertJoinToken(tx, row)
    await appendAudit(tx, {
      atMs,
      type: 'join-token.created',
      actor: actorOf(giver),
      site: row.site,
      detail: { tokenId: row.id, role: row.role, expiresAtMs: row.expiresAtMs },
    })
  })
  return { ...viewOfJoinToken(row), token: encodeToken('join', contentOf(deps, secret)) }
}

export function viewOfJoinToken(row: JoinTokenRow): JoinTokenView {
  return {
    id: row.id,
    role: row.role,
    site: row.site,
    labels: row.labels,
    ...(row.agentName === null ? {} : { name: row.agentName }),
    createdAtMs: row.createdAtMs,
    ...(row.createdBy === null ? {} : { createdBy: row.createdBy }),
    expiresAtMs: row.expiresAtMs,
    ...(row.usedAtMs === null ? {} : { usedAtMs: row.usedAtMs }),
    ...(row.usedByAgentId === null ? {} : { usedByAgentId: row.usedByAgentId }),
    ...(row.revokedAtMs === null ? {} : { revokedAtMs: row.revokedAtMs }),
  }
}

/**
 * Ends a join token; one that was used stays used.
 *
 * @throws SluiceError `request.not_found`, also for a token beyond the sites of the giver.
 */
export async function revokeJoinToken(
  deps: Pick<TokensDeps, 'now'>,
  tx: Transaction,
  giver: Giver,
  id: TokenId,
): Promise<JoinTokenView> {
  const atMs = deps.now()
  const row = await joinTokenById(tx.sql, id)
  if (!row || (giver !== 'owner' && !reachesSite(giver.access, row.site)))
    throw new SluiceError('request.not_found', 'no such join token')
  if (await markJoinTokenRevoked(tx, id, atMs))
    await appendAudit(tx, {
      atMs,
      type: 'token.revoked',
      actor: actorOf(giver),
      site: row.site,
      detail: { tokenId: id },
    })
  return viewOfJoinToken({ ...row, revokedAtMs: row.revokedAtMs ?? atMs })
}

/** Whether any principal exists: before the first one, the owner is told how to make it. */
export async function hasPrincipal(database: Database): Promise<boolean> {
  const rows = await database.read((sql) => pageOfPrincipals(sql, { items: 1 }))
  return rows.length > 0
}
