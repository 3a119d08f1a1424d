/**
 * Replaces the certificate authority. The new one issues from the first moment on; the old one is
 * trusted, and vouches for the new one, until it is retired; every agent owes its adoption.
 */
import assert from 'node:assert/strict'
import { createHash, X509Certificate } from 'node:crypto'
import type { AuthorityView } from '@sluice/protocol/api-authority'
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import {
  type AgentId,
  type PrincipalId,
  type RevocationId,
  revocationId,
} from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { RequestBody } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import type { Authority } from '../access/authority.ts'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Transaction } from '../database/database.ts'
import type { Outcome } from '../deletion/engine.ts'
import type { Obligation } from '../deletion/rules.ts'
import { addObligation, markDone, obligationById, setCommand } from '../deletion/store.ts'
import { enqueueCommand, isOpenCommand } from '../fleet/store.ts'
import { addRevocation, adoptersOf, liveAgents, newestRotation } from './store.ts'

export type RotationDeps = {
  database: Database
  changes: Changes
  now: () => number
  authority: Authority
  /** Makes every listener show a certificate of the authority that issues now. */
  recertify: () => Promise<void>
  isConnected: (agent: AgentId) => boolean
}

export type RotationOrder = {
  reason: string
  by: PrincipalId | undefined
  /** When the old authority is retired by itself; undefined leaves it to a person. */
  retireWithinMs?: number | undefined
}

/**
 * @returns The revocation whose duties are the agents' adoptions.
 * @throws SluiceError `request.conflict` while an older rotation has not ended.
 */
export async function rotateAuthority(
  deps: RotationDeps,
  order: RotationOrder,
): Promise<RevocationId> {
  await deps.authority.rotate()
  await deps.recertify()
  return recordRotation(deps, order)
}

/** At a start: a crash may have come between the new authority and the rows that follow from it. */
export async function resumeRotation(deps: RotationDeps): Promise<void> {
  if (deps.authority.certificates.length < 2) return
  const known = await deps.database.read(newestRotation)
  if (known?.target === deps.authority.sha256) return
  await recordRotation(deps, { reason: 'a rotation that a crash cut short', by: undefined })
}

async function recordRotation(deps: RotationDeps, order: RotationOrder): Promise<RevocationId> {
  const { database, authority, changes, now } = deps
  const { reason, by, retireWithinMs } = order
  const atMs = now()
  const id = newId(revocationId, atMs)
  const actor: Actor = by === undefined ? { kind: 'system' } : { kind: 'principal', id: by }
  await database.write(async (tx) => {
    const agents = await oweAdoption(tx, deps, { id, atMs })
    const detail = { agents, sha256: authority.sha256 }
    await addRevocation(tx, {
      id,
      kind: 'authority',
      target: authority.sha256,
      site: '*',
      reason,
      revokedBy: by ?? null,
      atMs,
      detail: nobodyLockedOut,
    })
    if (retireWithinMs !== undefined)
      await addObligation(
        tx,
        {
          kind: 'authority.retire',
          subjectId: id,
          site: '*',
          state: 'due',
          atMs,
          deadlineAtMs: atMs + retireWithinMs,
        },
        changes,
      )
    const event = { atMs, actor, site: '*' } as const
    await appendAudit(tx, { ...event, type: 'authority.added', detail })
    const summary =
      'the certificate authority was replaced; the old one is trusted until it is retired'
    await raiseAlert(
      tx,
      { type: 'revocation.made', severity: 'warning', site: '*', atMs, summary, detail },
      changes,
    )
  })
  return id
}

/** A rotation locks nobody out and freezes nothing. */
const nobodyLockedOut = {
  agents: 0,
  joinTokens: 0,
  tokens: 0,
  jobsFrozen: 0,
  leasesEnded: 0,
  jobsExposed: 0,
}

/** @returns How many agents owe it. */
async function oweAdoption(
  tx: Transaction,
  deps: RotationDeps,
  rotation: { id: RevocationId; atMs: number },
): Promise<number> {
  const { id, atMs } = rotation
  const agents = await liveAgents(tx.sql)
  for (const { id: agentId, site } of agents)
    await addObligation(
      tx,
      { kind: 'authority.adopt', subjectId: id, agentId, site, state: 'due', atMs },
      deps.changes,
    )
  return agents.length
}

/** How soon an order to adopt is looked at again. */
const lookAgainMs = 30_000
/** How soon a node is looked at that waits for the capture hosts. */
const nodeWaitsMs = 1000

/**
 * The worker of `authority.adopt`: the order is there, once, until the agent has said that it has
 * adopted. Nodes come after the capture hosts that are here: these check what nodes sign.
 */
export async function remindAdopter(deps: RotationDeps, duty: Obligation): Promise<Outcome> {
  const { agentId, subjectId, id } = duty
  assert(agentId !== null && subjectId !== null)
  const { database, authority, changes, now, isConnected } = deps
  const owing = await database.read((sql) => adoptersOf(sql, subjectId))
  const mine = owing.find((one) => one.agentId === agentId)
  if (!mine || mine.revokedAtMs !== null) return settle(deps, duty)
  const first = owing.some((one) => one.role === 'capture' && isConnected(one.agentId))
  if (mine.role === 'gpu' && first) return { waitMs: nodeWaitsMs }
  await database.write(async (tx) => {
    if (duty.commandId !== null && (await isOpenCommand(tx.sql, duty.commandId))) return
    const authorities = authority.certificates.map((der) => der.toString('base64'))
    const command = {
      type: 'authorities',
      revocationId: revocationId.parse(subjectId),
      obligationId: id,
      authorities,
    } as const
    const order = { agentId, lane: 'control', command, atMs: now() } as const
    await setCommand(tx, id, await enqueueCommand(tx, order, changes))
  })
  return { waitMs: lookAgainMs }
}

async function settle(deps: RotationDeps, duty: Obligation): Promise<Outcome> {
  await deps.database.write((tx) => markDone(tx, duty.id, deps.now()))
  return 'settled'
}

/**
 * An agent says which authorities it trusts. What it owes is settled when these are exactly the ones
 * that count now; else the order is given again.
 *
 * @throws SluiceError `request.not_found` for a duty that is not this agent's.
 */
export async function takeAdoption(
  deps: RotationDeps,
  agent: AgentId,
  body: RequestBody<'authorities.adopted'>,
): Promise<void> {
  const wanted = deps.authority.certificates.map(sha256Of).toSorted()
  const exact = wanted.join() === body.authorities.toSorted().join()
  await deps.database.write(async (tx) => {
    const duty = await obligationById(tx.sql, body.obligationId)
    if (duty?.kind !== 'authority.adopt' || duty.agentId !== agent)
      throw new SluiceError('request.not_found', 'this agent does not owe that')
    if (exact) await markDone(tx, duty.id, deps.now())
  })
}

/**
 * Ends the trust in the old authority.
 *
 * @throws SluiceError `request.conflict` while agents have not adopted the new one, unless `abandon`.
 */
export async function retireAuthority(
  deps: RotationDeps,
  order: { abandon: boolean; actor: Actor },
): Promise<void> {
  const { database, authority, now } = deps
  if (authority.certificates.length < 2) return
  const rotation = await database.read(newestRotation)
  const owing = rotation ? await database.read((sql) => adoptersOf(sql, rotation.id)) : []
  const left = owing.filter(({ revokedAtMs }) => revokedAtMs === null)
  if (left.length > 0 && !order.abandon)
    throw new SluiceError(
      'request.conflict',
      `${left.length} agents trust only the old authority`,
      {
        hint: `They are ${left
          .slice(0, 5)
          .map(({ name }) => name)
          .join(', ')}; wait for them, or retire with --abandon: these have to join anew.`,
      },
    )
  await authority.retire()
  await deps.recertify()
  await database.write(async (tx) => {
    const atMs = now()
    for (const { obligationId } of owing) await markDone(tx, obligationId, atMs)
    if (rotation) await oweAdoption(tx, deps, { id: rotation.id, atMs })
    await appendAudit(tx, {
      atMs,
      type: 'authority.retired',
      actor: order.actor,
      site: '*',
      detail: { sha256: authority.sha256, abandoned: left.length },
    })
  })
}

/** An agent that is away for so long does not come back by itself soon: it tries twice in that time. */
const awayMs = 2 * limits.reconnectMsMax
/** Since when nobody who owes an adoption was seen; of this process, as links are. */
const awaySince = new WeakMap<RotationDeps, { duty: Obligation['id']; atMs: number }>()

/**
 * The worker of `authority.retire`: once all that are here have adopted, or when the time is over.
 * Who has just lost its link, as all have at a start, is not given up for that.
 */
export async function retireInTime(deps: RotationDeps, duty: Obligation): Promise<Outcome> {
  const { database, now, isConnected } = deps
  const owing = await database.read((sql) => adoptersOf(sql, duty.subjectId ?? ''))
  const left = owing.filter(({ revokedAtMs }) => revokedAtMs === null)
  const leftMs = duty.deadlineAtMs - now()
  const areAway = left.every(({ agentId }) => !isConnected(agentId))
  const known = awaySince.get(deps)
  const since = areAway && known?.duty === duty.id ? known.atMs : now()
  if (areAway) awaySince.set(deps, { duty: duty.id, atMs: since })
  else awaySince.delete(deps)
  const isOver = left.length === 0 || (areAway && now() - since >= awayMs)
  if (!isOver && leftMs > 0) return { waitMs: Math.min(leftMs, nodeWaitsMs) }
  await retireAuthority(deps, { abandon: true, actor: { kind: 'system' } })
  return settle(deps, duty)
}

/** What `GET /v1/authority` says. */
export async function viewOfAuthority(deps: RotationDeps): Promise<AuthorityView> {
  const { database, authority } = deps
  const trusted = authority.certificates.map((der) => ({
    sha256: sha256Of(der),
    notAfterMs: new X509Certificate(der).validToDate.getTime(),
  }))
  const rotation = await database.read(newestRotation)
  if (!rotation) return { sha256: authority.sha256, trusted }
  const owing = await database.read((sql) => adoptersOf(sql, rotation.id))
  return {
    sha256: authority.sha256,
    trusted,
    rotation: {
      revocationId: rotation.id,
      beganAtMs: rotation.atMs,
      waitingFor: owing
        .slice(0, limits.pageItemsMax)
        .map(({ agentId, name }) => ({ agentId, name })),
      waitingForCount: owing.length,
    },
  }
}

function sha256Of(der: Uint8Array): string {
  return createHash('sha256').update(der).digest('hex')
}
