/**
 * Begins a purge: one transaction after which no key of its scope opens anything and every holder's
 * order is a row, whatever breaks next. What waits for a second person is locked meanwhile.
 */
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import {
  commandId,
  type JobId,
  obligationId,
  type PrincipalId,
  type PurgeId,
  purgeId,
} from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId, newIds } from '@sluice/protocol/process/new-id'
import type { PurgeScope } from '@sluice/protocol/purge'
import { jobsSha256Of } from '@sluice/protocol/sealing/purge-digests'
import { type Approved, askApproval, type NotApproved } from '../access/approvals.ts'
import type { Access } from '../access/rules.ts'
import { isTwoPeople } from '../access/two-people.ts'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Queries, Transaction } from '../database/database.ts'
import { addObligation } from '../deletion/store.ts'
import { enqueueCommands } from '../fleet/store.ts'
import type { Reserve } from './reserve.ts'
import { endsReceiveKeys, needsApproval, ordersFor, reachOf, siteOfPurge } from './rules.ts'
import {
  addAgentDuties,
  addPurge,
  changePurge,
  countJobs,
  countUndeleted,
  destroyedAlone,
  type Hit,
  jobsByAgent,
  lockScope,
  purgeById,
  siteOfSubject,
  strike,
  type Within,
} from './store.ts'

export type PurgeDeps = {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
  /** Kind of the one store there is. */
  storeKind: string
  /** Jobs that one person may destroy within `limits.purgeAloneMs`. */
  aloneJobsMax: number
  reserve: Pick<Reserve, 'free'>
}

export type PurgeRequest = {
  scope: PurgeScope
  reason: string
  breakGlass: boolean
  includingHeld: boolean
  access: Pick<Access, 'principalId' | 'tokenId' | 'rights' | 'sites'>
}

/**
 * What a request is about, within its asker's sites.
 *
 * @throws SluiceError `request.not_found`, `request.invalid`.
 */
export async function withinOf(
  deps: Pick<PurgeDeps, 'storeKind'>,
  sql: Queries,
  request: Pick<PurgeRequest, 'scope' | 'includingHeld'> & { access: Pick<Access, 'sites'> },
): Promise<Within> {
  const { scope, includingHeld, access } = request
  const subject = await siteOfSubject(sql, scope)
  if ((scope.kind === 'job' || scope.kind === 'agent') && subject === undefined)
    throw new SluiceError('request.not_found', `no such ${scope.kind}`)
  const site = siteOfPurge(scope, access.sites, subject)
  return { scope, includingHeld, site, store: deps.storeKind }
}

/**
 * Takes in a purge. Where one person may do it alone it has begun when this returns; else its scope
 * is locked and it waits for its second person. A full disk does not stop it while there is a
 * reserve to free.
 *
 * @throws SluiceError `request.invalid` for break-glass with held jobs; `request.not_found`;
 * `host.disk_full` when even the reserve did not do.
 */
export async function requestPurge(deps: PurgeDeps, request: PurgeRequest): Promise<PurgeId> {
  if (request.breakGlass && request.includingHeld)
    throw new SluiceError('request.invalid', 'held jobs always take two people', {
      hint: 'Leave out either --break-glass or --including-held.',
    })
  return withRoom(deps, () =>
    deps.database.write((tx) => take(deps, tx, request), { urgent: true }),
  )
}

/** Runs work that writes; when the disk is full, again on the room of the reserve. */
export async function withRoom<T>(
  deps: Pick<PurgeDeps, 'reserve'>,
  write: () => Promise<T>,
): Promise<T> {
  try {
    return await write()
  } catch (error) {
    const full = error instanceof SluiceError && error.code === 'host.disk_full'
    if (!full || !(await deps.reserve.free())) throw error
    return write()
  }
}

async function take(deps: PurgeDeps, tx: Transaction, request: PurgeRequest): Promise<PurgeId> {
  const { scope, reason, breakGlass, includingHeld, access } = request
  const atMs = deps.now()
  const id = newId(purgeId, atMs)
  const within = await withinOf(deps, tx.sql, request)
  const jobs = countJobs(tx.sql, within)
  const beyond = needsApproval({
    ...(await sizeFor(tx.sql, { within, principalId: access.principalId, atMs })),
    ...{ includingHeld, breakGlass: false, aloneJobsMax: deps.aloneJobsMax },
  })
  const requestedBy = access.principalId
  await addPurge(tx, {
    id,
    scope,
    site: within.site,
    reason,
    includingHeld,
    breakGlass,
    state: 'waiting',
    requestedBy,
    requestedAtMs: atMs,
    jobs,
  })
  const actor = { kind: 'principal', id: requestedBy } as const
  if (beyond && !breakGlass) await lock(deps, tx, { id, within, request, jobs, atMs })
  else await begin(deps, tx, { id, within, reason, actor, atMs })
  if (beyond && breakGlass) await tellBreakGlass(deps, tx, { id, within, actor, atMs })
  return id
}

/** What decides whether one person may do it: what it destroys, and what that person just did. */
export async function sizeFor(
  sql: Queries,
  ask: { within: Within; principalId: PrincipalId; atMs: number },
): Promise<{ jobs: number; before: number }> {
  const { within, principalId, atMs } = ask
  let before = 0
  for (const { by, jobs } of destroyedAlone(sql, atMs - limits.purgeAloneMs))
    if (!(await isTwoPeople(sql, principalId, by))) before += jobs
  return { jobs: countUndeleted(sql, within), before }
}

async function lock(
  deps: PurgeDeps,
  tx: Transaction,
  waiting: { id: PurgeId; within: Within; request: PurgeRequest; jobs: number; atMs: number },
): Promise<void> {
  const { id, within, request, jobs, atMs } = waiting
  const { access, reason } = request
  const actor = { kind: 'principal', id: access.principalId } as const
  const { site } = within
  const locked = lockScope(tx, within, atMs)
  const approvalId = await askApproval(
    tx,
    { operation: { kind: 'purge.begin', purgeId: id }, access, site, reason, atMs },
    deps.changes,
  )
  await changePurge(tx, { id, from: 'waiting' }, { approvalId })
  const ids = locked.map(({ jobId }) => jobId)
  const detail = { purgeId: id, scope: within.scope.kind, jobs, approvalId, reason }
  const covers = { locked: ids.length, lockedSha256: jobsSha256Of(ids) }
  await appendAudit(tx, {
    ...{ atMs, type: 'purge.requested', actor, site },
    detail: { ...detail, ...covers, includingHeld: within.includingHeld },
  })
  for (const job of locked.slice(0, limits.purgeEventsAtOnceMax))
    await appendAudit(tx, {
      ...{ atMs, type: 'job.state-changed', actor, site: job.site, jobId: job.jobId },
      detail: { from: job.from, to: 'frozen', purgeId: id },
    })
  tellJobs(deps, tx, ids)
}

async function tellBreakGlass(
  deps: PurgeDeps,
  tx: Transaction,
  broken: { id: PurgeId; within: Within; actor: Actor; atMs: number },
): Promise<void> {
  const { id, within, actor, atMs } = broken
  const { site } = within
  const detail = { purgeId: id, scope: within.scope.kind }
  await appendAudit(tx, { atMs, type: 'purge.break-glass', actor, site, detail })
  const summary = `a purge of ${within.scope.kind} began without its second person`
  const type = 'purge.break-glass'
  await raiseAlert(tx, { type, severity: 'critical', site, atMs, summary, detail }, deps.changes)
}

/** What two people agreed to: the size is counted again, now. */
export function beginApproved(deps: PurgeDeps) {
  return async (tx: Transaction, approved: Approved<'purge.begin'>): Promise<void> => {
    const { operation, approvedBy, atMs } = approved
    const purge = await purgeById(tx.sql, operation.purgeId)
    if (purge?.state !== 'waiting')
      throw new SluiceError('request.conflict', `this purge is ${purge?.state ?? 'gone'}`)
    const { id, scope, site, includingHeld, reason } = purge
    const within = { scope, site, includingHeld, store: deps.storeKind }
    const actor = { kind: 'principal', id: approvedBy } as const
    await begin(deps, tx, { id, within, reason, actor, atMs, approvedBy })
  }
}

/** Nobody agreed: nothing is destroyed, and what was locked stays frozen until it is released. */
export async function endRefused(
  tx: Transaction,
  refused: NotApproved<'purge.begin'>,
): Promise<void> {
  const { purgeId: id } = refused.operation
  await changePurge(tx, { id, from: 'waiting' }, { state: 'refused' })
}

type Beginning = {
  id: PurgeId
  within: Within
  reason: string
  actor: Actor
  atMs: number
  approvedBy?: PrincipalId
}

async function begin(deps: PurgeDeps, tx: Transaction, from: Beginning): Promise<void> {
  const { id, within, reason, actor, atMs, approvedBy } = from
  const { site, scope } = within
  tx.hurry()
  const hit = strike(tx, { id, within, atMs, receiveKeys: endsReceiveKeys(scope) })
  orderAgents(deps, tx, { id, within, atMs, hit })
  const facts = {
    jobs: hit.jobIds.length,
    heldSkipped: hit.heldSkipped.length,
    agents: hit.agents.length,
    unasked: hit.unasked.length,
    leases: hit.leases,
    receiveKeys: hit.receiveKeys,
    jobsSha256: jobsSha256Of(hit.jobIds),
  }
  await changePurge(
    tx,
    { id, from: 'waiting' },
    {
      ...facts,
      state: 'running',
      heldSkippedIds: hit.heldSkipped.map(({ jobId }) => jobId).slice(0, limits.purgeOpenListedMax),
      unaskedIds: hit.unasked.slice(0, limits.purgeOpenListedMax),
      intentAtMs: atMs,
      keysUnusableAtMs: atMs,
      ordersDurableAtMs: atMs,
      leasesOverAtMs: hit.leasesOverAtMs,
      ...(approvedBy === undefined ? {} : { approvedBy }),
    },
  )
  await addObligation(
    tx,
    { kind: 'purge.conclude', subjectId: id, site, state: 'due', atMs },
    deps.changes,
  )
  const detail = { purgeId: id, scope: scope.kind, ...facts }
  const because = { ...detail, reason }
  await appendAudit(tx, { atMs, type: 'purge.begun', actor, site, detail: because })
  const summary = `a purge of ${scope.kind} began: ${facts.jobs} jobs, ${facts.agents} agents`
  const alert = { type: 'purge.begun', severity: 'warning', site, atMs, summary, detail } as const
  await raiseAlert(tx, alert, deps.changes)
  tellJobs(deps, tx, hit.jobIds)
}

/** Orders for all agents, emergency lane, each with the duty to confirm it. */
function orderAgents(
  deps: PurgeDeps,
  tx: Transaction,
  of: { id: PurgeId; within: Within; atMs: number; hit: Hit },
): void {
  const { id, within, atMs, hit } = of
  const holding = new Set(hit.heldSkipped.map(({ agentId }) => agentId))
  const reached = hit.agents.map((agent) => ({
    agent,
    reach:
      agent.covered === 1
        ? reachOf(within.scope, holding.has(agent.id))
        : ({ kind: 'jobs' } as const),
  }))
  // Who is told to wipe all needs no list of jobs.
  const lists = reached.some(({ reach }) => reach.kind !== 'everything')
  const jobsOf = lists ? jobsByAgent(tx.sql, id) : undefined
  const orders = reached.flatMap(({ agent, reach }) =>
    ordersFor({ reach, jobIds: jobsOf?.get(agent.id) ?? [] }).map((what) => ({ agent, what })),
  )
  // In order: rows that follow each other in every index are written a tenth faster.
  const dutyIds = newIds(obligationId, atMs, orders.length).toSorted()
  const orderIds = newIds(commandId, atMs, orders.length).toSorted()
  const commands = orders.map(({ agent, what }, index) => ({
    id: orderIds[index]!,
    agentId: agent.id,
    lane: 'emergency' as const,
    command: { type: 'purge' as const, purgeId: id, obligationId: dutyIds[index]!, ...what },
  }))
  const duties = commands.map((order, index) => ({
    id: order.command.obligationId,
    agentId: order.agentId,
    site: orders[index]!.agent.site,
    commandId: order.id,
  }))
  enqueueCommands(tx, commands, atMs, deps.changes)
  // Who is connected answers much sooner by itself.
  addAgentDuties(tx, id, duties, { atMs, nextTryAtMs: atMs + limits.wipeReminderMs })
}

/** A signal wakes every watcher, whichever job it names; thousands of them would only hold it up. */
function tellJobs(deps: Pick<PurgeDeps, 'changes'>, tx: Transaction, ids: readonly JobId[]): void {
  const [first] = ids
  if (first !== undefined) tx.afterCommit(() => deps.changes.emit('job', first))
}
