/** Decides about every connection and request of an agent: known, not revoked, and with its own key. */
import { createHash } from 'node:crypto'
import type { TLSSocket } from 'node:tls'
import type { AgentRole } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import type { Database } from '../database/database.ts'
import { agentUri } from './authority.ts'
import { joinedAgentByKey } from './store.ts'

export type AdmittedAgent = {
  id: AgentId
  role: AgentRole
  site: string
  certificateExpiresAtMs: number
}

/**
 * The agent at the other end. TLS has verified its chain; that is not enough: a revoked agent still
 * has a good certificate, and a resumed session verifies nothing anew.
 *
 * @throws SluiceError `identity.missing`, `identity.expired`, `identity.revoked`, or
 * `identity.unknown` for a certificate of ours whose agent has no row: forged, or from a time that a
 * restore has forgotten. Only a revoked agent takes itself out for good.
 */
export async function admitAgent(
  deps: { database: Database; now: () => number },
  socket: TLSSocket,
): Promise<AdmittedAgent> {
  const certificate = socket.authorized ? socket.getPeerX509Certificate() : undefined
  if (!certificate)
    throw new SluiceError('identity.missing', 'no verified client certificate', {
      hint: 'Join with `sluice-agent join`.',
    })
  const expiresAtMs = certificate.validToDate.getTime()
  if (expiresAtMs <= deps.now())
    throw new SluiceError('identity.expired', 'the client certificate has expired', {
      hint: 'Join again with a new token.',
    })
  const spki = certificate.publicKey.export({ format: 'der', type: 'spki' })
  const publicKeyId = createHash('sha256').update(spki).digest('hex')
  const agent = await deps.database.read((sql) => joinedAgentByKey(sql, publicKeyId))
  const uri = agent && `URI:${agentUri({ agentId: agent.id, role: agent.role })}`
  if (!agent || certificate.subjectAltName !== uri)
    throw new SluiceError('identity.unknown', 'this agent is not known here', {
      hint: 'After a restore of the control plane: join again with a new token.',
    })
  if (agent.revokedAtMs !== null)
    throw new SluiceError('identity.revoked', 'this agent was revoked', {
      hint: 'Ask security; a revoked agent joins again with an empty state directory.',
    })
  return {
    id: agent.id,
    role: agent.role,
    site: agent.site,
    certificateExpiresAtMs: expiresAtMs,
  }
}
