/** Locks an agent out at once: its row, its link, its jobs and its leases. */
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Transaction } from '../database/database.ts'
import { type AgentRow, agentById, markRevoked } from './store.ts'

export type RevokeDeps = {
  database: Database
  changes: Changes
  now: () => number
  /** Holds a capture host's jobs, or ends a node's leases, in the same transaction. */
  holdJobs: (tx: Transaction, held: { agentId: AgentId; actor: Actor }) => Promise<void>
  /** Closes every connection of the agent. */
  disconnect: (agent: AgentId) => void
  /** Takes away what grants of the agent could still reach. */
  abortUploads: (agent: AgentId) => Promise<void>
}

/**
 * Revokes an agent; a revoked one stays revoked. From the commit on, the gate refuses it.
 *
 * @throws SluiceError `request.not_found`.
 */
export async function revokeAgent(
  deps: RevokeDeps,
  order: { agentId: AgentId; actor: Actor },
): Promise<AgentRow> {
  const { agentId, actor } = order
  const agent = await deps.database.write(async (tx) => {
    const row = await agentById(tx.sql, agentId)
    if (!row) throw noSuchAgent()
    const atMs = deps.now()
    if (!(await markRevoked(tx, agentId, atMs))) return row
    await deps.holdJobs(tx, { agentId, actor })
    await appendAudit(tx, {
      atMs,
      type: 'agent.revoked',
      actor,
      site: row.site,
      agentId,
      detail: { role: row.role },
    })
    tx.afterCommit(() => deps.changes.emit('agent', agentId))
    return { ...row, revokedAtMs: atMs }
  })
  deps.disconnect(agentId)
  await deps.abortUploads(agentId)
  return agent
}

export function noSuchAgent(): SluiceError {
  return new SluiceError('request.not_found', 'no such agent')
}
