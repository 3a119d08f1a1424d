/**
 * Revokes: from the commit on, what was revoked is refused. It freezes and destroys nothing; what
 * others still have to do is owed, and written in the same transaction.
 */
import type { RevocationPreview, RevocationTarget } from '@sluice/protocol/api-revocations'
import { SluiceError } from '@sluice/protocol/errors'
import { type AgentId, type RevocationId, revocationId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { type Access, mayGive, reachesSite } from '../access/rules.ts'
import type { ApprovalDeps } from '../access/approvals.ts'
import { rightsOf, tokenById, joinTokenById } from '../access/store.ts'
import { revokeJoinToken, revokeToken } from '../access/tokens.ts'
import { siteOfRights } from '../access/two-people.ts'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Database, Queries, Transaction } from '../database/database.ts'
import { addObligation } from '../deletion/store.ts'
import { type LockOutDeps, lockOut, noSuchAgent } from '../fleet/revoke.ts'
import { agentById } from '../fleet/store.ts'
import { freezableStates } from '../jobs/rules.ts'
import type { ObjectStore } from '../storage/object-store.ts'
import { grantsOverAtMs, siteOfWhole, targetText } from './rules.ts'
import {
  addRevocation,
  agentsWithLabel,
  jobsHeldBy,
  joinTokensWithLabel,
  markExposed,
  reachOf,
  revocationOf,
} from './store.ts'

export type RevocationDeps = LockOutDeps &
  Pick<ApprovalDeps, 'refusals'> & {
    database: Database
    store: Pick<ObjectStore, 'kind' | 'revokeGrants'>
    /** Cuts every connection of these agents, and lets no session be resumed. */
    cutOff: (agents: readonly AgentId[]) => void
    /** Aborts every incomplete upload of an agent in the store. */
    abortUploads: (agent: AgentId) => Promise<void>
  }

export type RevocationOrder = { target: RevocationTarget; reason: string; access: Access }

/** What a revocation hits, found in the transaction that makes it. */
type Hit = {
  site: string
  agents: AgentId[]
  joinTokens: number
  tokens: number
}

/**
 * Revokes one target. Doing it again is no error: the answer is then the revocation by which it
 * holds, with its own instant.
 *
 * @throws SluiceError `request.not_found`, also for what is beyond the sites of the asker;
 * `access.forbidden` for a label or all grants without the sites they take.
 */
export async function revoke(deps: RevocationDeps, order: RevocationOrder): Promise<RevocationId> {
  const { database } = deps
  const made = await database.write((tx) => revokeIn(deps, tx, order))
  // Also for one that was locked out before: cutting a link that is not there hurts nobody.
  if (made.agents.length > 0) deps.cutOff(made.agents)
  return made.id
}

async function revokeIn(
  deps: RevocationDeps,
  tx: Transaction,
  { target, reason, access }: RevocationOrder,
): Promise<{ id: RevocationId; agents: AgentId[] }> {
  const { changes } = deps
  const atMs = deps.now()
  const actor = { kind: 'principal', id: access.principalId } as const
  const hit = await hitOf(tx.sql, { target, access, atMs })
  const before = await revocationOf(tx.sql, { kind: target.kind, target: targetText(target) })
  const facts = await factsOf(deps, tx.sql, { target, hit, atMs })
  const exposed = await jobsHeldBy(tx.sql, hit.agents)

  let isNew = target.kind === 'grants' || hit.tokens + hit.joinTokens > 0
  const lockedOut: AgentId[] = []
  for (const agentId of hit.agents)
    if ((await lockOut(deps, tx, { agentId, actor })).isNew) lockedOut.push(agentId)
  if (lockedOut.length > 0) isNew = true
  if (target.kind === 'token') await revokeToken(deps, tx, { access }, target.tokenId)
  if (target.kind === 'join-token') await revokeJoinToken(deps, tx, { access }, target.tokenId)
  if (target.kind === 'label')
    for (const id of await joinTokensWithLabel(tx.sql, { ...target, site: hit.site, atMs }))
      await revokeJoinToken(deps, tx, { access }, id)
  if (before && !isNew) return { id: before.id, agents: hit.agents }

  const id = newId(revocationId, atMs)
  await addRevocation(tx, {
    id,
    kind: target.kind,
    target: targetText(target),
    site: hit.site,
    reason,
    revokedBy: access.principalId,
    atMs,
    detail: facts,
  })
  const { site } = hit
  const owe = { subjectId: id, site, state: 'due', atMs } as const
  for (const agentId of lockedOut)
    await addObligation(tx, { ...owe, kind: 'uploads.abort', agentId }, changes)
  if (target.kind === 'grants') await addObligation(tx, { ...owe, kind: 'grants.revoke' }, changes)
  await appendAudit(tx, {
    atMs,
    type: 'revocation.made',
    actor,
    site,
    ...(target.kind === 'agent' ? { agentId: target.agentId } : {}),
    detail: { revocationId: id, kind: target.kind, target: targetText(target), reason, ...facts },
  })
  const detail = { revocationId: id, kind: target.kind, ...facts }
  const summary = `revoked: ${target.kind} ${targetText(target)}`
  await raiseAlert(
    tx,
    { type: 'revocation.made', severity: 'warning', site, atMs, summary, detail },
    changes,
  )
  await tellExposed(deps, tx, { id, site, atMs, exposed })
  return { id, agents: hit.agents }
}

/** What a node held when it was locked out counts as seen by whoever had the node. */
async function tellExposed(
  deps: RevocationDeps,
  tx: Transaction,
  found: { id: RevocationId; site: string; atMs: number; exposed: Awaited<Held> },
): Promise<void> {
  const { id, site, atMs } = found
  const fresh = found.exposed.filter((job) => job.exposedAtMs === null)
  for (const job of fresh) {
    await markExposed(tx, job.id, atMs)
    await appendAudit(tx, {
      atMs,
      type: 'job.exposed',
      actor: { kind: 'system' },
      site: job.site,
      jobId: job.id,
      detail: { revocationId: id },
    })
    tx.afterCommit(() => deps.changes.emit('job', job.id))
  }
  if (fresh.length === 0) return
  const summary = `${fresh.length} jobs are exposed: a revoked node had been given their keys`
  const detail = { revocationId: id, jobs: fresh.length }
  await raiseAlert(
    tx,
    { type: 'job.exposed', severity: 'critical', site, atMs, summary, detail },
    deps.changes,
  )
}
type Held = ReturnType<typeof jobsHeldBy>

/** What revoking would hit now; changes nothing. */
export async function previewRevocation(
  deps: Pick<RevocationDeps, 'database' | 'now' | 'store'>,
  order: Omit<RevocationOrder, 'reason'>,
): Promise<RevocationPreview> {
  const { target, access } = order
  return deps.database.read(async (sql) => {
    const atMs = deps.now()
    const hit = await hitOf(sql, { target, access, atMs })
    const facts = await factsOf(deps, sql, { target, hit, atMs })
    return { dryRun: true, target, site: hit.site, ...facts }
  })
}

/** As shown, with nothing undefined in it: it is written down too. */
type Facts = Record<
  'agents' | 'joinTokens' | 'tokens' | 'jobsFrozen' | 'leasesEnded' | 'jobsExposed',
  number
> & { [instant: string]: number }

/** Counts, and the instants by which the last of what was handed out is over by itself. */
async function factsOf(
  deps: Pick<RevocationDeps, 'store'>,
  sql: Queries,
  found: { target: RevocationTarget; hit: Hit; atMs: number },
): Promise<Facts> {
  const { target, hit, atMs } = found
  const reach = await reachOf(sql, { agents: hit.agents, freezable: freezableStates })
  // A store that lives here asks for the agent's certificate with every grant.
  const grantsWork = deps.store.kind === 's3' && (target.kind === 'grants' || hit.agents.length > 0)
  const { leasesOverAtMs, ...counts } = reach
  return {
    agents: hit.agents.length,
    joinTokens: hit.joinTokens,
    tokens: hit.tokens,
    ...counts,
    jobsExposed: (await jobsHeldBy(sql, hit.agents)).length,
    ...(leasesOverAtMs === undefined ? {} : { leasesOverAtMs }),
    ...(grantsWork ? { grantsOverAtMs: grantsOverAtMs(atMs) } : {}),
  }
}

async function hitOf(
  sql: Queries,
  asked: { target: RevocationTarget; access: Access; atMs: number },
): Promise<Hit> {
  const { target, access, atMs } = asked
  const none = { agents: [], joinTokens: 0, tokens: 0 }
  switch (target.kind) {
    case 'agent': {
      const agent = await agentById(sql, target.agentId)
      if (!agent || !reachesSite(access, agent.site)) throw noSuchAgent()
      return { ...none, site: agent.site, agents: [agent.id] }
    }
    case 'token': {
      const found = await tokenById(sql, target.tokenId)
      const rights = found ? await rightsOf(sql, found.principal.id) : []
      if (!found || !mayGive(access, rights)) throw noSuchToken()
      const tokens = found.token.revokedAtMs === null ? 1 : 0
      return { ...none, site: siteOfRights(rights), tokens }
    }
    case 'join-token': {
      const found = await joinTokenById(sql, target.tokenId)
      if (!found || !reachesSite(access, found.site)) throw noSuchToken()
      return { ...none, site: found.site, joinTokens: found.revokedAtMs === null ? 1 : 0 }
    }
    case 'label': {
      const label = { ...target, site: siteOfWhole(access.sites) }
      const tokens = await joinTokensWithLabel(sql, { ...label, atMs })
      const agents = await agentsWithLabel(sql, label)
      return { ...none, site: label.site, agents, joinTokens: tokens.length }
    }
    case 'grants':
      if (access.sites !== 'all')
        throw new SluiceError('access.forbidden', 'grants of every site would be refused', {
          hint: 'It takes the role security on all sites (`*`).',
        })
  }
  return { ...none, site: '*' }
}

function noSuchToken(): SluiceError {
  return new SluiceError('request.not_found', 'no such token')
}
