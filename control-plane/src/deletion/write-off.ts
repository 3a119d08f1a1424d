/**
 * Gives up on holders of a job that never came back: two people decide it, and what it leaves is a
 * signed report that names the gap, never a certificate.
 */
import { createHash } from 'node:crypto'
import { canonicalJson } from '@sluice/protocol/canonical'
import { SluiceError } from '@sluice/protocol/errors'
import { type AgentId, agentId, type ApprovalId, type JobId } from '@sluice/protocol/ids'
import { signStatement } from '@sluice/protocol/sealing/dsse'
import { verifyWriteOff, writeOffPayloadType } from '@sluice/protocol/sealing/verify-write-off'
import { type WriteOff, writeOffOf } from '@sluice/protocol/write-off'
import { type Approved, askApproval } from '../access/approvals.ts'
import type { Access } from '../access/rules.ts'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Queries, Transaction } from '../database/database.ts'
import { presentFields } from '../present-fields.ts'
import type { Evidence } from './evidence.ts'
import { holderKindOf, type Obligation, writeOffProblem } from './rules.ts'
import {
  addEvidenceDocument,
  agentFacts,
  changeJob,
  jobById,
  type JobRow,
  leasesOfJob,
  markWrittenOff,
  obligationsOfJob,
  receiptsOfJob,
  settleCertificate,
} from './store.ts'

export type WriteOffDeps = {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
  evidence: Evidence
}

/**
 * Asks for the second person who gives up on the missing holders of a job.
 *
 * @throws SluiceError `job.not_found`; `request.conflict` while the job is not one whose only open
 * duties are holders that never came back; what `askApproval` throws.
 */
export async function askWriteOff(
  deps: Pick<WriteOffDeps, 'database' | 'changes' | 'now'>,
  order: { jobId: JobId; access: Access; reason: string },
): Promise<ApprovalId> {
  const { jobId, access, reason } = order
  return deps.database.write(async (tx) => {
    const atMs = deps.now()
    const { job } = await missingHolders(tx.sql, jobId, atMs)
    const operation = { kind: 'job.write-off', jobId } as const
    return askApproval(tx, { operation, access, site: job.site, reason, atMs }, deps.changes)
  })
}

/**
 * Ends a job as `deleted-unconfirmed`, in the transaction in which the second person agrees, with a
 * signed report of every gap. Its open duties stay due: a holder that does come back is still told
 * to wipe, and its receipt recorded; the job stays what it is.
 *
 * @throws SluiceError `request.conflict` when it is not so any more.
 */
export async function writeOff(
  deps: WriteOffDeps,
  tx: Transaction,
  approved: Approved<'job.write-off'>,
): Promise<void> {
  const { approvalId, operation, askedBy, approvedBy, atMs } = approved
  const { job, gaps } = await missingHolders(tx.sql, operation.jobId, atMs)
  const predicate = await reportOf(tx.sql, { job, gaps, approved })
  const statement = writeOffOf(predicate, job.sealedHeaderSha256)
  const envelope = canonicalJson(signStatement(writeOffPayloadType, statement, deps.evidence))
  verifyWriteOff(Buffer.from(envelope), deps.evidence.publicKey)
  const ended = { state: 'deleted-unconfirmed', deletedAtMs: atMs, stateChangedAtMs: atMs } as const
  if (!(await changeJob(tx, { id: job.id, from: 'deleting' }, ended)))
    throw new SluiceError('request.conflict', `job ${job.id} is no longer being deleted`)
  await addEvidenceDocument(tx, {
    id: approvalId,
    kind: 'write-off',
    subjectId: job.id,
    site: job.site,
    envelope,
    issuedAtMs: atMs,
  })
  await markWrittenOff(tx, { ids: gaps.map(({ id }) => id), atMs })
  await settleCertificate(tx, job.id, atMs)
  const event = {
    atMs,
    actor: { kind: 'principal', id: approvedBy },
    site: job.site,
    jobId: job.id,
  } as const
  const sha256 = createHash('sha256').update(envelope).digest('hex')
  const keys = predicate.gaps.filter(({ hadKey }) => hadKey).length
  await appendAudit(tx, {
    ...event,
    type: 'job.written-off',
    detail: { approvalId, askedBy, gaps: gaps.length, withKey: keys, sha256 },
  })
  await appendAudit(tx, {
    ...event,
    type: 'job.state-changed',
    detail: { from: 'deleting', to: 'deleted-unconfirmed' },
  })
  await raiseAlert(
    tx,
    {
      type: 'job.written-off',
      severity: 'critical',
      site: job.site,
      atMs,
      summary: `job ${job.id} ended without ${gaps.length} confirmations: sluice jobs show ${job.id}`,
      detail: { jobId: job.id, approvalId, gaps: gaps.length, withKey: keys },
    },
    deps.changes,
  )
  tx.afterCommit(() => deps.changes.emit('job', job.id))
}

/** The open duties of a job, all of which holders owe that never came back. */
async function missingHolders(
  sql: Queries,
  id: JobId,
  atMs: number,
): Promise<{ job: JobRow; gaps: Obligation[] }> {
  const job = await jobById(sql, id)
  if (!job) throw new SluiceError('job.not_found', `no job ${id}`)
  const open = (await obligationsOfJob(sql, id)).filter(
    ({ kind, state }) => holderKindOf[kind] !== null && state !== 'done',
  )
  const gone = new Set<string>()
  for (const { holder } of open) {
    const agent = agentId.safeParse(holder?.id)
    const facts = agent.success ? await agentFacts(sql, agent.data) : undefined
    if (facts && mayNotConfirm(facts, atMs)) gone.add(facts.id)
  }
  const problem = writeOffProblem({ state: job.state, open, gone, atMs })
  if (problem !== undefined)
    throw new SluiceError('request.conflict', `job ${id} cannot be written off: ${problem}`, {
      hint: `\`sluice jobs show ${id}\` says what is still owed, and until when.`,
    })
  return { job, gaps: open }
}

/** Its receipts do not count any more. */
function mayNotConfirm(
  agent: { revokedAtMs: number | null; certificateExpiresAtMs: number | null },
  atMs: number,
): boolean {
  return agent.revokedAtMs !== null || (agent.certificateExpiresAtMs ?? atMs) <= atMs
}

async function reportOf(
  sql: Queries,
  about: { job: JobRow; gaps: readonly Obligation[]; approved: Approved<'job.write-off'> },
): Promise<WriteOff> {
  const { job, gaps, approved } = about
  const { askedBy, askedAtMs, approvedBy, reason, atMs } = approved
  const { intentAtMs, keysUnusableAtMs, keysUnrecoverableAtMs, objectsAbsentAtMs } = job
  if (intentAtMs === null)
    throw new SluiceError('evidence.incomplete', `job ${job.id} misses the time of its intent`)
  const obligations = await obligationsOfJob(sql, job.id)
  const confirmed = (await receiptsOfJob(sql, job.id)).flatMap((receipt) => {
    const holder = obligations.find(({ id }) => id === receipt.obligationId)?.holder
    if (!holder) return []
    const { obligationId, receivedAtMs, payloadSha256 } = receipt
    return [{ obligationId, holder, confirmedAtMs: receivedAtMs, receiptSha256: payloadSha256 }]
  })
  return {
    jobId: job.id,
    site: job.site,
    reasonSha256: createHash('sha256').update(reason).digest('hex'),
    askedBy,
    askedAtMs,
    approvedBy,
    announcedAtMs: job.announcedAtMs,
    intentAtMs,
    ...presentFields({ keysUnusableAtMs, keysUnrecoverableAtMs, objectsAbsentAtMs }),
    writtenOffAtMs: Math.max(atMs, intentAtMs),
    gaps: await Promise.all(gaps.map((gap) => gapOf(sql, job.id, gap))),
    confirmed,
  }
}

async function gapOf(sql: Queries, job: JobId, gap: Obligation): Promise<WriteOff['gaps'][number]> {
  const kind = holderKindOf[gap.kind]
  if (kind === null || !gap.holder)
    throw new SluiceError('evidence.invalid', `no holder owes ${gap.kind}`)
  const agent: AgentId = agentId.parse(gap.holder.id)
  const facts = await agentFacts(sql, agent)
  const lease = (await leasesOfJob(sql, job)).find(({ id }) => id === gap.leaseId)
  return {
    obligationId: gap.id,
    kind,
    agentId: agent,
    // The capture host made the key; a node had it once it was released to its lease.
    hadKey: lease === undefined || lease.keyReleasedAtMs !== null,
    attempts: gap.attempts,
    ...presentFields({
      leaseId: gap.leaseId,
      leaseDeadlineAtMs: lease?.deadlineAtMs ?? null,
      lastSeenAtMs: facts?.lastSeenAtMs ?? null,
      revokedAtMs: facts?.revokedAtMs ?? null,
    }),
  }
}
