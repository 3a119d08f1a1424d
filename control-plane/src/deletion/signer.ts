/** Whose signature counts now: that of an agent which is neither revoked nor expired. */
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import type { Queries } from '../database/database.ts'
import { agentIdentity } from './store.ts'

/** An agent's identity as known when it signed; stored with its receipt. */
export type SignerNow = {
  /** SubjectPublicKeyInfo, DER. */
  publicKey: Buffer
  notBeforeMs: number
  notAfterMs: number
}

/**
 * @throws SluiceError `evidence.untrusted` for an agent that is unknown, revoked or expired: its
 * receipts do not count, whatever they say.
 */
export async function signerNow(sql: Queries, id: AgentId, nowMs: number): Promise<SignerNow> {
  const agent = await agentIdentity(sql, id)
  if (!agent) throw new SluiceError('evidence.untrusted', `no agent ${id}`)
  if (agent.revokedAtMs !== null)
    throw new SluiceError('evidence.untrusted', `agent ${id} is revoked: its receipts do not count`)
  const { publicKey, joinedAtMs, certificateExpiresAtMs } = agent
  if (certificateExpiresAtMs === null || nowMs >= certificateExpiresAtMs)
    throw new SluiceError('evidence.untrusted', `the identity of agent ${id} has expired`, {
      hint: 'Let the agent join again; what the old identity holds must be written off.',
    })
  return { publicKey, notBeforeMs: joinedAtMs, notAfterMs: certificateExpiresAtMs }
}
