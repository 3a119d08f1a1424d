/** Locks an agent out: its row, its jobs and its leases, in one transaction. */
import type { Actor } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Transaction } from '../database/database.ts'
import { type AgentRow, agentById, markRevoked } from './store.ts'

export type LockOutDeps = {
  changes: Changes
  now: () => number
  /** Holds a capture host's jobs, or ends a node's leases, in the same transaction. */
  holdJobs: (tx: Transaction, held: { agentId: AgentId; actor: Actor }) => Promise<void>
}

/**
 * Locks an agent out for good: from the commit on, the gate refuses it. Its open links are the
 * caller's to cut.
 *
 * @returns Whether this call did it; one that is locked out already stays so, since when it was.
 * @throws SluiceError `request.not_found`.
 */
export async function lockOut(
  deps: LockOutDeps,
  tx: Transaction,
  order: { agentId: AgentId; actor: Actor },
): Promise<{ agent: AgentRow; isNew: boolean }> {
  const { agentId, actor } = order
  const row = await agentById(tx.sql, agentId)
  if (!row) throw noSuchAgent()
  const atMs = deps.now()
  if (!(await markRevoked(tx, agentId, atMs))) return { agent: row, isNew: false }
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
  return { agent: { ...row, revokedAtMs: atMs }, isNew: true }
}

export function noSuchAgent(): SluiceError {
  return new SluiceError('request.not_found', 'no such agent')
}
