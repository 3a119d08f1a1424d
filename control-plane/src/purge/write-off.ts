/**
 * Gives up on the agents of a purge that can't confirm it any more: revoked, expired, or long
 * overdue. Two people decide it; the purge then ends in a report that names them, never a certificate.
 */
import { SluiceError } from '@sluice/protocol/errors'
import type { ApprovalId, PurgeId } from '@sluice/protocol/ids'
import { type Approved, askApproval } from '../access/approvals.ts'
import type { Access } from '../access/rules.ts'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Queries, Transaction } from '../database/database.ts'
import { bringSubjectForward, markWrittenOff } from '../deletion/store.ts'
import { purgeById, type PurgeRow, waitedFor } from './store.ts'

type WriteOffDeps = {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
}

/**
 * Asks for the second person.
 *
 * @throws SluiceError `request.conflict` unless every agent it waits for can't confirm any more; what
 * `askApproval` throws.
 */
export async function askPurgeWriteOff(
  deps: WriteOffDeps,
  order: { purgeId: PurgeId; access: Access; reason: string },
): Promise<ApprovalId> {
  const { purgeId, access, reason } = order
  return deps.database.write(async (tx) => {
    const atMs = deps.now()
    const { purge } = await silentOf(tx.sql, purgeId, atMs)
    const operation = { kind: 'purge.write-off', purgeId } as const
    return askApproval(tx, { operation, access, site: purge.site, reason, atMs }, deps.changes)
  })
}

/** Does it, in the transaction in which the second person agrees; the duties stay rows. */
export async function writeOffPurge(
  deps: WriteOffDeps,
  tx: Transaction,
  approved: Approved<'purge.write-off'>,
): Promise<void> {
  const { operation, approvalId, askedBy, approvedBy, atMs } = approved
  const { purgeId } = operation
  const { purge, silent } = await silentOf(tx.sql, purgeId, atMs)
  await markWrittenOff(tx, { ids: silent.map(({ obligationId }) => obligationId), atMs })
  await bringSubjectForward(tx, { subjectId: purgeId, atMs }, deps.changes)
  const detail = { purgeId, approvalId, askedBy, agents: silent.length }
  await appendAudit(tx, {
    atMs,
    type: 'purge.written-off',
    actor: { kind: 'principal', id: approvedBy },
    site: purge.site,
    detail,
  })
  const summary = `a purge will end without the word of ${silent.length} agents`
  const alert = { type: 'job.written-off', severity: 'critical', site: purge.site } as const
  await raiseAlert(tx, { ...alert, atMs, summary, detail }, deps.changes)
}

async function silentOf(
  sql: Queries,
  id: PurgeId,
  atMs: number,
): Promise<{ purge: PurgeRow; silent: ReturnType<typeof waitedFor> }> {
  const purge = await purgeById(sql, id)
  const silent = waitedFor(sql, id, atMs)
  const hopeful = silent.find(({ mayConfirm }) => mayConfirm === 1)
  const problem =
    purge?.state !== 'running'
      ? `it is ${purge?.state ?? 'unknown'}, not running`
      : silent.length === 0
        ? 'every agent has confirmed'
        : hopeful && `${hopeful.name} still has time to confirm`
  if (!purge || problem !== undefined)
    throw new SluiceError('request.conflict', `purge ${id} cannot be written off: ${problem}`, {
      hint: `\`sluice purges show ${id}\` says who is waited for.`,
    })
  return { purge, silent }
}
