/** Lets an agent join with a single-use token, and renews the certificate of one that has. */
import { createPublicKey } from 'node:crypto'
import type { JoinReply, JoinRequest } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import { type AgentId, agentId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { keyIdOf } from '@sluice/protocol/sealing/dsse'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { type Authority, publicKeyOfRequest } from './authority.ts'
import {
  agentNameTaken,
  insertAgent,
  joinedAgent,
  joinedAgentByKey,
  joinTokenBySha256,
  type JoinTokenRow,
  markJoinTokenUsed,
  recordCertificate,
} from './store.ts'
import { secretSha256 } from './tokens.ts'

export type JoinDeps = {
  database: Database
  changes: Changes
  authority: Authority
  /** Origin of the agent listener. */
  agentUrl: () => string
  now: () => number
}

/**
 * Trades a join token for a certificate. An agent that lost the answer may ask again with the same
 * token and the same key while the token lives: it is the same agent then.
 *
 * @throws SluiceError `join.refused` for a token that is unknown, used, expired, revoked or meant
 * for another role; `request.conflict` for a name or key that is taken (the token stays good).
 */
export async function joinAgent(deps: JoinDeps, request: JoinRequest): Promise<JoinReply> {
  const { database, authority, now } = deps
  const publicKey = await publicKeyOfRequest(Buffer.from(request.csr, 'base64'))
  const publicKeyId = keyIdOf(createPublicKey({ key: publicKey, format: 'der', type: 'spki' }))
  const tokenSha256 = secretSha256(request.token)
  const known = await database.read((sql) => joinTokenBySha256(sql, tokenSha256))
  if (!known) throw refusal('the token is not known')
  if (request.role !== undefined && request.role !== known.role)
    throw await refuse(deps, known, `the token is for role ${known.role}`)

  const again = await sameAgent(deps, known, publicKeyId)
  const id = again ?? newId(agentId, now())
  // Before the transaction: signing takes a while, and no other writer should wait for it.
  const issued = await authority.issueAgent({ agentId: id, role: known.role, publicKey })
  const atMs = now()
  const why = again === undefined ? reasonAgainst(known, atMs) : undefined
  if (why !== undefined) throw await refuse(deps, known, why)

  const name = await database.write(async (tx) => {
    if (again !== undefined) {
      await recordCertificate(tx, again, issued)
      const row = await joinedAgent(tx.sql, again)
      return row?.name ?? ''
    }
    const wanted = known.agentName ?? request.name ?? `${known.role}-${id.slice(-8)}`
    if (await agentNameTaken(tx.sql, wanted))
      throw new SluiceError('request.conflict', `an agent is named ${wanted} already`, {
        hint: 'Choose another name with --name; the token is still good.',
      })
    if (await joinedAgentByKey(tx.sql, publicKeyId))
      throw new SluiceError('request.conflict', 'this identity key has joined already', {
        hint: 'Join with an empty state directory, so that a new key is made.',
      })
    if (!(await markJoinTokenUsed(tx, known.id, { atMs, agentId: id })))
      throw refusal('the token was used already')
    await insertAgent(tx, {
      id,
      name: wanted,
      role: known.role,
      site: known.site,
      labels: known.labels,
      publicKey,
      publicKeyId,
      joinedAtMs: atMs,
      certificateSerial: issued.serial,
      certificateExpiresAtMs: issued.expiresAtMs,
    })
    const event = {
      atMs,
      actor: { kind: 'agent', id },
      site: known.site,
      agentId: id,
    } as const
    await appendAudit(tx, { ...event, type: 'join-token.used', detail: { tokenId: known.id } })
    await appendAudit(tx, {
      ...event,
      type: 'agent.joined',
      detail: { name: wanted, role: known.role, publicKeyId, serial: issued.serial },
    })
    tx.afterCommit(() => deps.changes.emit('agent', id))
    return wanted
  })
  return {
    agentId: id,
    name,
    role: known.role,
    site: known.site,
    labels: known.labels,
    chain: issued.chain.map((der) => der.toString('base64')),
    authorities: authority.certificates.map((der) => der.toString('base64')),
    agentUrl: deps.agentUrl(),
  }
}

/** The agent that used this token, when it is the one asking again in time. */
async function sameAgent(
  deps: JoinDeps,
  token: JoinTokenRow,
  publicKeyId: string,
): Promise<AgentId | undefined> {
  const { usedByAgentId } = token
  if (usedByAgentId === null || token.revokedAtMs !== null) return undefined
  if (token.expiresAtMs <= deps.now()) return undefined
  const agent = await deps.database.read((sql) => joinedAgent(sql, usedByAgentId))
  const same = agent?.publicKeyId === publicKeyId && agent.revokedAtMs === null
  return same ? usedByAgentId : undefined
}

function reasonAgainst(token: JoinTokenRow, atMs: number): string | undefined {
  if (token.usedAtMs !== null) return 'the token was used already'
  if (token.revokedAtMs !== null) return 'the token was revoked'
  if (token.expiresAtMs <= atMs) return 'the token has expired'
  return undefined
}

function refusal(why: string): SluiceError {
  return new SluiceError('join.refused', why, {
    hint: 'Make a new one with `sluice tokens join` and use it at once: it serves a single agent.',
  })
}

/** Refusals of tokens that exist are told in the audit log; guesses are not, or they would fill it. */
async function refuse(deps: JoinDeps, token: JoinTokenRow, why: string): Promise<SluiceError> {
  await deps.database.write((tx) =>
    appendAudit(tx, {
      atMs: deps.now(),
      type: 'join-token.refused',
      actor: { kind: 'system' },
      site: token.site,
      detail: { tokenId: token.id, reason: why },
    }),
  )
  return refusal(why)
}

/**
 * Renews the certificate of an agent for the key it joined with.
 *
 * @param csr PKCS#10, DER.
 * @throws SluiceError `request.invalid` for another key; `identity.revoked`.
 */
export async function renewCertificate(
  deps: Pick<JoinDeps, 'database' | 'authority' | 'now'>,
  id: AgentId,
  csr: Buffer,
): Promise<{ chain: string[]; authorities: string[] }> {
  const { database, authority, now } = deps
  const publicKey = await publicKeyOfRequest(csr)
  const agent = await database.read((sql) => joinedAgent(sql, id))
  if (!agent || agent.revokedAtMs !== null)
    throw new SluiceError('identity.revoked', 'this agent was revoked')
  if (!agent.publicKey.equals(publicKey))
    throw new SluiceError('request.invalid', 'csr: not the key this agent joined with')
  const issued = await authority.issueAgent({ agentId: id, role: agent.role, publicKey })
  await database.write(async (tx) => {
    await recordCertificate(tx, id, issued)
    await appendAudit(tx, {
      atMs: now(),
      type: 'agent.certificate-renewed',
      actor: { kind: 'agent', id },
      site: agent.site,
      agentId: id,
      detail: { serial: issued.serial, expiresAtMs: issued.expiresAtMs },
    })
  })
  return {
    chain: issued.chain.map((der) => der.toString('base64')),
    authorities: authority.certificates.map((der) => der.toString('base64')),
  }
}

/**
 * Renews the certificate of an agent that was away for longer than its certificate lived. The
 * request is signed with the key the agent joined with, and the answer is good for that key alone.
 *
 * @param csr PKCS#10, DER.
 * @throws SluiceError `request.invalid`, `join.refused` for a key nobody joined with,
 * `identity.revoked`.
 */
export async function renewByKey(
  deps: Pick<JoinDeps, 'database' | 'authority' | 'now'>,
  csr: Buffer,
): Promise<{ chain: string[]; authorities: string[] }> {
  const publicKey = await publicKeyOfRequest(csr)
  const publicKeyId = keyIdOf(createPublicKey({ key: publicKey, format: 'der', type: 'spki' }))
  const agent = await deps.database.read((sql) => joinedAgentByKey(sql, publicKeyId))
  if (!agent)
    throw new SluiceError('join.refused', 'no agent has joined with this key', {
      hint: 'Join with a token from `sluice tokens join`.',
    })
  return renewCertificate(deps, agent.id, csr)
}
