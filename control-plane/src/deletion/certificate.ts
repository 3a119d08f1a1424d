/** Issues deletion certificates: only for jobs whose every holder has confirmed, and only if they verify. */
import { createHash, createPublicKey } from 'node:crypto'
import { canonicalJson } from '@sluice/protocol/canonical'
import {
  type Certificate,
  certificateOf,
  type CertificateStatement,
  exclusions,
} from '@sluice/protocol/certificate'
import { SluiceError } from '@sluice/protocol/errors'
import type { EvidenceSigner } from '@sluice/protocol/evidence-signer'
import type { Holder } from '@sluice/protocol/receipt'
import { dsseEnvelope, keyIdOf, signStatement } from '@sluice/protocol/sealing/dsse'
import {
  certificatePayloadType,
  verifyCertificate,
} from '@sluice/protocol/sealing/verify-certificate'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Queries } from '../database/database.ts'
import type { DestructionLevel } from '../keys/epoch-key-store.ts'
import type { Evidence } from './evidence.ts'
import { missingOf } from './receipts.ts'
import type { Obligation } from './rules.ts'
import {
  addCertificate,
  agentIdentity,
  changeJob,
  type JobRow,
  leasesOfJob,
  markDone,
  obligationsOfJob,
  type ReceiptRow,
  receiptsOfJob,
} from './store.ts'

/** What a stored receipt says of who signed it. */
export type SignedRow = Pick<
  ReceiptRow,
  'signerKeyId' | 'signerPublicKey' | 'signerNotBeforeMs' | 'signerNotAfterMs' | 'receivedAtMs'
>

export type CertificateParts = {
  database: Database
  changes: Changes
  now: () => number
  evidence: Evidence
  level: DestructionLevel
}

/**
 * Writes a job's deletion certificate and makes the job `deleted`, in one transaction.
 *
 * @throws SluiceError `evidence.incomplete` while a holder has not confirmed, `evidence.untrusted`
 * or `evidence.invalid` when a stored receipt no longer verifies: then there is no certificate.
 */
export async function issueCertificate(
  parts: CertificateParts,
  due: { job: JobRow; obligation: Obligation },
): Promise<void> {
  const { database, evidence, changes } = parts
  const { job, obligation } = due
  await database.write(async (tx) => {
    const statement = await statementOf(tx.sql, parts, job)
    const envelope = signStatement(certificatePayloadType, statement, evidence)
    const text = canonicalJson(envelope)
    verifyCertificate(Buffer.from(text), evidence.publicKey)
    const atMs = statement.predicate.issuedAtMs
    const deleted = await changeJob(
      tx,
      { id: job.id, from: 'deleting' },
      { state: 'deleted', deletedAtMs: atMs, stateChangedAtMs: atMs },
    )
    if (!deleted)
      throw new SluiceError('request.conflict', `job ${job.id} is no longer being deleted`)
    await addCertificate(tx, { jobId: job.id, site: job.site, envelope: text, issuedAtMs: atMs })
    await markDone(tx, obligation.id, atMs)
    const event = { atMs, actor: { kind: 'system' }, site: job.site, jobId: job.id } as const
    await appendAudit(tx, {
      ...event,
      type: 'certificate.issued',
      detail: {
        sha256: createHash('sha256').update(text).digest('hex'),
        holders: statement.predicate.holders.length,
        level: statement.predicate.level,
      },
    })
    await appendAudit(tx, {
      ...event,
      type: 'job.state-changed',
      detail: { from: 'deleting', to: 'deleted' },
    })
    tx.afterCommit(() => changes.emit('job', job.id))
  })
}

async function statementOf(
  sql: Queries,
  parts: CertificateParts,
  job: JobRow,
): Promise<CertificateStatement> {
  const [missing] = await missingOf(sql, job.id)
  if (missing)
    throw new SluiceError('evidence.incomplete', `${missing.kind}: ${missing.reason}`, {
      retry: 'later',
    })
  const receipts = await receiptsOfJob(sql, job.id)
  const obligations = await obligationsOfJob(sql, job.id)
  const holders = receipts.map((receipt) => holderOf(receipt, obligations))
  const leases = await leasesOfJob(sql, job.id)
  const times = timesOf(job)
  const instants = [...Object.values(times), ...holders.map((held) => held.confirmedAtMs)]
  const certificate: Certificate = {
    jobId: job.id,
    site: job.site,
    level: parts.level.level,
    levelReason: parts.level.reason,
    ...times,
    issuedAtMs: Math.max(parts.now(), ...instants),
    leases: leases.map(({ id, fence, nodeId }) => ({ leaseId: id, fence, nodeId })),
    holders,
    receipts: receipts.map(({ envelope }) => dsseEnvelope.parse(JSON.parse(envelope))),
    signers: await signersOf(sql, parts.evidence, receipts, holders),
    exclusions: [...exclusions],
  }
  return certificateOf(certificate, job.sealedHeaderSha256)
}

function timesOf(job: JobRow) {
  const { announcedAtMs, intentAtMs, keysUnusableAtMs, keysUnrecoverableAtMs, objectsAbsentAtMs } =
    job
  const known =
    intentAtMs !== null &&
    keysUnusableAtMs !== null &&
    keysUnrecoverableAtMs !== null &&
    objectsAbsentAtMs !== null
  if (!known) throw new SluiceError('evidence.incomplete', `job ${job.id} misses a time`)
  return { announcedAtMs, intentAtMs, keysUnusableAtMs, keysUnrecoverableAtMs, objectsAbsentAtMs }
}

function holderOf(receipt: ReceiptRow, obligations: readonly Obligation[]) {
  const obligation = obligations.find((one) => one.id === receipt.obligationId)
  if (!obligation?.holder)
    throw new SluiceError('evidence.invalid', `receipt ${receipt.obligationId} has no holder`)
  const { id, holder, leaseId } = obligation
  return {
    obligationId: id,
    holder,
    ...(leaseId === null ? {} : { leaseId }),
    confirmedAtMs: receipt.receivedAtMs,
    receiptSha256: receipt.payloadSha256,
  }
}

/** The keys of the signers as they joined: a receipt row cannot bring its own. */
async function signersOf(
  sql: Queries,
  evidence: Evidence,
  receipts: readonly ReceiptRow[],
  holders: readonly { holder: Holder }[],
): Promise<EvidenceSigner[]> {
  const signers = new Map<string, EvidenceSigner>()
  for (const [index, receipt] of receipts.entries()) {
    const holderId = holders[index]!.holder.id
    const signer =
      holderId === evidence.keyId
        ? signerOf(evidence.publicKey.export({ format: 'der', type: 'spki' }), holderId)
        : await agentSigner(sql, { holderId, receipt, earlier: signers.get(holderId) })
    if (signer.keyId !== receipt.signerKeyId)
      throw new SluiceError('evidence.untrusted', `a receipt is not signed by holder ${holderId}`)
    signers.set(holderId, signer)
  }
  return [...signers.values()].toSorted((left, right) => (left.keyId < right.keyId ? -1 : 1))
}

function signerOf(spki: Buffer, holderId: Holder['id']): EvidenceSigner {
  const key = createPublicKey({ key: spki, format: 'der', type: 'spki' })
  return { keyId: keyIdOf(key), publicKey: spki.toString('base64'), holderId }
}

/**
 * An agent as it signed.
 *
 * @param signed.earlier The same agent, from another receipt of this document.
 * @throws SluiceError `evidence.untrusted` when it never joined, or its time was not recorded.
 */
export async function agentSigner(
  sql: Queries,
  signed: { holderId: Holder['id']; receipt: SignedRow; earlier: EvidenceSigner | undefined },
): Promise<EvidenceSigner> {
  const { holderId, receipt, earlier } = signed
  const agent = await agentIdentity(sql, holderId)
  const { signerNotBeforeMs, signerNotAfterMs, receivedAtMs } = receipt
  if (!agent?.publicKey.equals(receipt.signerPublicKey))
    throw new SluiceError('evidence.untrusted', `a receipt is not signed by holder ${holderId}`)
  if (signerNotBeforeMs === null || signerNotAfterMs === null)
    throw new SluiceError('evidence.untrusted', `nobody knows when ${holderId} was good`)
  // It was taken in before the revocation, whatever the clock said: a revoked one is refused then.
  const revokedAtMs =
    agent.revokedAtMs === null
      ? undefined
      : Math.max(agent.revokedAtMs, receivedAtMs + 1, earlier?.revokedAtMs ?? 0)
  return {
    ...signerOf(agent.publicKey, holderId),
    notBeforeMs: signerNotBeforeMs,
    notAfterMs: Math.max(signerNotAfterMs, earlier?.notAfterMs ?? 0),
    ...(revokedAtMs === undefined ? {} : { revokedAtMs }),
  }
}
