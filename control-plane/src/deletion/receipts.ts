/** Takes in receipts, signs the control plane's own, and settles the duties they speak for. */
import { createHash, createPublicKey } from 'node:crypto'
import type { z } from 'zod'
import { canonicalJson } from '@sluice/protocol/canonical'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import { type Receipt, receiptOf, receiptStatement } from '@sluice/protocol/receipt'
import { type DsseEnvelope, keyIdOf, signStatement } from '@sluice/protocol/sealing/dsse'
import { receiptPayloadType, verifyReceipt } from '@sluice/protocol/sealing/verify-receipt'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Queries, Transaction } from '../database/database.ts'
import type { Evidence } from './evidence.ts'
import { holderKindOf, missingForCertificate, type Obligation } from './rules.ts'
import { signerNow, type SignerNow } from './signer.ts'
import {
  addReceipt,
  jobById,
  type JobRow,
  type LeaseRow,
  leasesOfJob,
  makeDue,
  markDone,
  markLeaseWiped,
  obligationById,
  obligationsOfJob,
  type ReceiptRow,
  receiptOfObligation,
  receiptsOfJob,
  setHolder,
} from './store.ts'

export type ReceiptParts = { database: Database; changes: Changes; now: () => number }

/**
 * Takes in an agent's receipt: checked against its joined identity key and the very duty it is owed
 * for, then durable together with the settled duty. The same again is accepted again.
 *
 * @param agentId Whom the link is authenticated as.
 * @throws SluiceError `evidence.untrusted`, `evidence.not_canonical`, `evidence.invalid`;
 * `request.not_found` for a duty that nobody owes.
 */
export async function acceptReceipt(
  parts: ReceiptParts,
  agentId: AgentId,
  envelope: DsseEnvelope,
): Promise<void> {
  try {
    await parts.database.write(async (tx) => {
      const claim = await verified(tx.sql, { agentId, envelope, nowMs: parts.now() })
      if (claim.settled) return
      await settle(tx, parts, { ...claim, atMs: parts.now(), envelope })
    })
  } catch (error) {
    if (isSluiceError(error)) await recordRefusal(parts, agentId, error)
    throw error
  }
}

/** A verified claim. `settled`: its duty was settled by the same signer before. */
type Claim = {
  job: JobRow
  obligation: Obligation
  receipt: Receipt
  publicKey: Buffer
  /** Undefined for the control plane itself. */
  signer: SignerNow | undefined
  lease: LeaseRow | undefined
  settled: boolean
}

async function verified(
  sql: Queries,
  sent: { agentId: AgentId; envelope: DsseEnvelope; nowMs: number },
): Promise<Claim> {
  const { agentId, envelope } = sent
  const signer = await signerNow(sql, agentId, sent.nowMs)
  const { publicKey } = signer
  const { obligationId } = claimOf(envelope, receiptStatement)
  const obligation = await obligationById(sql, obligationId)
  const job = obligation?.jobId ? await jobById(sql, obligation.jobId) : undefined
  if (!obligation || !job)
    throw new SluiceError('request.not_found', `nobody owes obligation ${obligationId}`)
  const kind = holderKindOf[obligation.kind]
  if (kind === null || obligation.holder?.kind !== kind || obligation.holder.id !== agentId)
    throw new SluiceError('evidence.invalid', 'this obligation is not owed by this agent')
  const lease = (await leasesOfJob(sql, job.id)).find((one) => one.id === obligation.leaseId)
  const receipt = verifyReceipt(envelope, {
    publicKey: createPublicKey({ key: publicKey, format: 'der', type: 'spki' }),
    jobId: job.id,
    obligationId,
    holder: obligation.holder,
    leaseId: lease?.id,
    fence: lease?.fence,
    sealedHeaderSha256: job.sealedHeaderSha256,
  })
  const earlier = await receiptOfObligation(sql, obligationId)
  if (!earlier && receipt.method === 'never-held' && lease && lease.keyReleasedAtMs !== null)
    throw new SluiceError('evidence.invalid', 'this lease was given the key: it must be wiped', {
      hint: 'The node must look for what the lease left, and confirm what it looked at.',
    })
  return { job, obligation, receipt, publicKey, signer, lease, settled: earlier !== undefined }
}

/**
 * What a receipt claims: read before it is verified, only to find what it must be compared with.
 *
 * @throws SluiceError `evidence.not_canonical`, `evidence.invalid`.
 */
export function claimOf<Predicate>(
  envelope: DsseEnvelope,
  statement: z.ZodType<{ predicate: Predicate }>,
): Predicate {
  let claim: unknown
  try {
    claim = JSON.parse(Buffer.from(envelope.payload, 'base64').toString('utf8'))
  } catch (cause) {
    throw new SluiceError('evidence.not_canonical', 'a receipt is not JSON', { cause })
  }
  const parsed = statement.safeParse(claim)
  if (parsed.success) return parsed.data.predicate
  throw new SluiceError('evidence.invalid', 'this is no such receipt', { cause: parsed.error })
}

/** A receipt that was refused leaves an audit event. */
export async function recordRefusal(
  parts: Pick<ReceiptParts, 'database' | 'now'>,
  agentId: AgentId,
  error: SluiceError,
): Promise<void> {
  await parts.database.write((tx) =>
    appendAudit(tx, {
      atMs: parts.now(),
      type: 'receipt.refused',
      actor: { kind: 'agent', id: agentId },
      site: '*',
      agentId,
      detail: { code: error.code, reason: error.message },
    }),
  )
}

/** What the control plane itself did and saw. */
export type OwnWork = Pick<Receipt, 'method' | 'checked' | 'startedAtMs' | 'wipedAtMs'>

/** Signs a receipt for a copy of the control plane's own, and settles its duty. */
export async function settleOwn(
  tx: Transaction,
  parts: ReceiptParts & { evidence: Evidence },
  done: { job: JobRow; obligation: Obligation; work: OwnWork },
): Promise<void> {
  const { job, obligation, work } = done
  const { evidence } = parts
  const kind = holderKindOf[obligation.kind]
  if (kind === null) throw new SluiceError('evidence.invalid', 'no holder signs for this duty')
  const { subjectId } = obligation
  const place = kind === 'object-replica' && subjectId !== null ? { place: subjectId } : {}
  const holder = { kind, id: evidence.keyId, ...place }
  const receipt: Receipt = { jobId: job.id, obligationId: obligation.id, holder, ...work }
  const statement = receiptOf(receipt, job.sealedHeaderSha256)
  const envelope = signStatement(receiptPayloadType, statement, evidence)
  const publicKey = evidence.publicKey.export({ format: 'der', type: 'spki' })
  if (await receiptOfObligation(tx.sql, obligation.id)) return
  await setHolder(tx, obligation.id, holder)
  await settle(tx, parts, {
    job,
    obligation,
    receipt,
    publicKey,
    signer: undefined,
    lease: undefined,
    envelope,
    atMs: parts.now(),
  })
}

/** Stores a verified receipt, settles its duty, and makes the certificate due after the last one. */
async function settle(
  tx: Transaction,
  parts: ReceiptParts,
  claim: Omit<Claim, 'settled'> & { envelope: DsseEnvelope; atMs: number },
): Promise<void> {
  const { job, obligation, receipt, publicKey, signer, lease, envelope, atMs } = claim
  const payload = Buffer.from(envelope.payload, 'base64')
  const row: ReceiptRow = {
    obligationId: obligation.id,
    jobId: job.id,
    envelope: canonicalJson(envelope),
    payloadSha256: createHash('sha256').update(payload).digest('hex'),
    signerKeyId: keyIdOf(createPublicKey({ key: publicKey, format: 'der', type: 'spki' })),
    signerPublicKey: publicKey,
    signerNotBeforeMs: signer?.notBeforeMs ?? null,
    signerNotAfterMs: signer?.notAfterMs ?? null,
    // A clock that was set back must not make a confirmation older than its job or its signer.
    receivedAtMs: Math.max(atMs, job.announcedAtMs, signer?.notBeforeMs ?? 0),
  }
  await addReceipt(tx, row)
  await markDone(tx, obligation.id, atMs)
  if (lease) await markLeaseWiped(tx, lease.id, atMs)
  await appendAudit(tx, {
    atMs,
    type: 'receipt.accepted',
    actor: lease || obligation.kind === 'spool.delete' ? agentActor(receipt) : { kind: 'system' },
    site: job.site,
    jobId: job.id,
    ...(lease ? { agentId: lease.nodeId } : {}),
    detail: { obligation: obligation.kind, obligationId: obligation.id, method: receipt.method },
  })
  await advance(tx, job, parts, atMs)
  tx.afterCommit(() => parts.changes.emit('job', job.id))
}

function agentActor(receipt: Receipt) {
  return { kind: 'agent', id: receipt.holder.id as AgentId } as const
}

/** Makes a job's certificate due once nothing stands between it and the job. */
async function advance(
  tx: Transaction,
  job: JobRow,
  parts: ReceiptParts,
  atMs: number,
): Promise<void> {
  const current = await jobById(tx.sql, job.id)
  if (current?.state !== 'deleting') return
  const missing = await missingOf(tx.sql, job.id)
  if (missing.length > 0) return
  await makeDue(tx, { jobId: job.id, kinds: ['certificate.issue'], atMs }, parts.changes)
}

/** What still stands between a job and its certificate. */
export async function missingOf(sql: Queries, jobId: JobRow['id']) {
  const obligations = await obligationsOfJob(sql, jobId)
  const leaseIds = (await leasesOfJob(sql, jobId)).map((lease) => lease.id)
  const confirmed = (await receiptsOfJob(sql, jobId)).map((receipt) => receipt.obligationId)
  return missingForCertificate({ obligations, leaseIds }, new Set(confirmed))
}
