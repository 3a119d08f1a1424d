/** Certificates, good and bad, made of fixed keys, ids and instants: the same bytes on every run. */
import { createHash, createPrivateKey, createPublicKey, type KeyObject } from 'node:crypto'
import { type CanonicalValue, canonicalJson } from '@sluice/protocol/canonical'
import { certificateOf, exclusions, type Certificate } from '@sluice/protocol/certificate'
import type { EvidenceSigner } from '@sluice/protocol/evidence-signer'
import { agentId, jobId, leaseId, obligationId, principalId, purgeId } from '@sluice/protocol/ids'
import {
  type PurgeCertificate,
  purgeCertificateOf,
  purgeReportOf,
  unaskedExclusion,
} from '@sluice/protocol/purge-certificate'
import { purgeReceiptOf } from '@sluice/protocol/purge-receipt'
import { type Receipt, receiptOf } from '@sluice/protocol/receipt'
import {
  ed25519Signer,
  keyIdOf,
  type PayloadType,
  preAuthEncoding,
  signStatement,
} from '@sluice/protocol/sealing/dsse'
import {
  certificatesSha256Of,
  jobsSha256Of,
  scopeSha256Of,
} from '@sluice/protocol/sealing/purge-digests'
import { certificatePayloadType } from '@sluice/protocol/sealing/verify-certificate'
import {
  purgeCertificatePayloadType,
  purgeReportPayloadType,
} from '@sluice/protocol/sealing/verify-purge'
import { purgeReceiptPayloadType } from '@sluice/protocol/sealing/verify-purge-receipt'
import { receiptPayloadType } from '@sluice/protocol/sealing/verify-receipt'
import { writeOffPayloadType } from '@sluice/protocol/sealing/verify-write-off'
import { writeOffOf } from '@sluice/protocol/write-off'

const t0 = 1_800_000_000_000
const sha256 = (data: string | Buffer) => createHash('sha256').update(data).digest('hex')
const headerSha256 = sha256('header')

/** The n-th id of a kind. */
const id = (n: number) => `01a3185c-5000-7000-8000-${n.toString(16).padStart(12, '0')}`

type Party = { id: string; publicKey: KeyObject; signer: ReturnType<typeof ed25519Signer> }

/** A party with the key of a seed of `n`s (RFC 8410: PKCS#8 of an Ed25519 seed). */
function party(n: number, name?: string): Party {
  const head = Buffer.from('302e020100300506032b657004220420', 'hex')
  const der = Buffer.concat([head, Buffer.alloc(32, n)])
  const privateKey = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
  const publicKey = createPublicKey(privateKey)
  return { id: name ?? keyIdOf(publicKey), publicKey, signer: ed25519Signer(privateKey, publicKey) }
}

export const evidence = party(1)
const capture = party(2, id(2))
const node = party(3, id(3))
export const stranger = party(4, id(4))
const leases = [1, 2].map((fence) => ({ leaseId: leaseId.parse(id(0x100 + fence)), fence }))

type Confirmation = {
  by: Party
  kind: Receipt['holder']['kind']
  method: Receipt['method']
  lease?: (typeof leases)[number]
}

const confirmations: readonly Confirmation[] = [
  { by: capture, kind: 'capture-spool', method: 'unlink' },
  { by: evidence, kind: 'object-store', method: 'object-delete' },
  { by: evidence, kind: 'job-key', method: 'epoch-roll' },
  { by: evidence, kind: 'result-blob', method: 'object-delete' },
  { by: node, kind: 'gpu-lease', method: 'process-exit', lease: leases[0]! },
  { by: node, kind: 'gpu-lease', method: 'never-held', lease: leases[1]! },
]

/** Of the n-th holder of job number `job`; `changed` says something else than it should. */
export function confirm(n: number, changed: Partial<Receipt> = {}, by?: Party, job = 1) {
  const { by: owner, kind, method, lease } = confirmations[n]!
  const receipt: Receipt = {
    jobId: jobId.parse(id(0x1000 + job)),
    obligationId: obligationId.parse(id(0x2000 + job * 16 + n)),
    holder: { kind, id: owner.id },
    ...lease,
    method,
    checked: ['looked again: „nichts“ \u007f\u0001\t"\\ 😀'],
    startedAtMs: t0 + 10,
    wipedAtMs: t0 + 20,
    ...changed,
  }
  const statement = receiptOf(receipt, headerSha256)
  const envelope = signStatement(receiptPayloadType, statement, (by ?? owner).signer)
  return {
    envelope,
    held: {
      obligationId: receipt.obligationId,
      holder: receipt.holder,
      ...(lease === undefined ? {} : { leaseId: lease.leaseId }),
      confirmedAtMs: t0 + 30,
      receiptSha256: sha256(Buffer.from(envelope.payload, 'base64')),
    },
  }
}

/** The n-th confirmation in other bytes, signed by whom it should be. */
export function confirmInBytes(
  n: number,
  bytesOf: (text: string) => string | Buffer,
): ReturnType<typeof confirm> {
  const { held } = confirm(n)
  const { signer } = confirmations[n]!.by
  const statement = Buffer.from(confirm(n).envelope.payload, 'base64').toString()
  const payload = Buffer.from(bytesOf(statement))
  const sig = signer.sign(preAuthEncoding(receiptPayloadType, payload)).toString('base64')
  const envelope = {
    payload: payload.toString('base64'),
    payloadType: receiptPayloadType as PayloadType,
    signatures: [{ keyid: signer.keyId, sig }],
  }
  return { envelope, held: { ...held, receiptSha256: sha256(payload) } }
}

export function signerOf({ id: holderId, publicKey }: Party): EvidenceSigner {
  const spki = publicKey.export({ format: 'der', type: 'spki' })
  const good = holderId === evidence.id ? {} : { notBeforeMs: t0, notAfterMs: t0 + 1000 }
  return {
    keyId: keyIdOf(publicKey),
    publicKey: spki.toString('base64'),
    holderId,
    ...good,
  }
}

/** What a good certificate of a job says. */
export function jobFacts(job = 1): Certificate {
  const all = confirmations.map((_, n) => confirm(n, {}, undefined, job))
  return {
    jobId: jobId.parse(id(0x1000 + job)),
    site: 'berlin',
    level: 'Clear',
    levelReason: 'overwritten in place',
    announcedAtMs: t0,
    intentAtMs: t0 + 5,
    keysUnusableAtMs: t0 + 5,
    keysUnrecoverableAtMs: t0 + 25,
    objectsAbsentAtMs: t0 + 20,
    issuedAtMs: t0 + 40,
    leases: leases.map((lease) => ({ ...lease, nodeId: agentId.parse(node.id) })),
    holders: all.map(({ held }) => held),
    receipts: all.map(({ envelope }) => envelope),
    signers: [capture, evidence, node].map(signerOf),
    exclusions: [...exclusions],
  }
}

const signed = (type: PayloadType, statement: CanonicalValue, by = evidence) =>
  Buffer.from(canonicalJson(signStatement(type, statement, by.signer)))

export const jobFile = (facts = jobFacts(), by = evidence) =>
  signed(certificatePayloadType, certificateOf(facts, headerSha256), by)

const purge = purgeId.parse(id(0x3000))
const orderSha256 = sha256('order')

function confirmPurge(by: Party, n: number) {
  const duty = obligationId.parse(id(0x4000 + n))
  const statement = purgeReceiptOf(
    {
      purgeId: purge,
      obligationId: duty,
      agentId: agentId.parse(by.id),
      everything: true,
      spoolsWiped: 2,
      draftsWiped: 1,
      leasesEnded: 0,
      resultsWiped: 0,
      checked: ['spool empty'],
      startedAtMs: t0 + 10,
      wipedAtMs: t0 + 20,
    },
    orderSha256,
  )
  const envelope = signStatement(purgeReceiptPayloadType, statement, by.signer)
  const agent = {
    agentId: agentId.parse(by.id),
    obligationId: duty,
    everything: true,
    orderSha256,
    confirmedAtMs: t0 + 30,
    receiptSha256: sha256(Buffer.from(envelope.payload, 'base64')),
  }
  return { agent, envelope }
}

/** What a good purge certificate says. */
export function purgeFacts(): PurgeCertificate {
  const jobs = [1, 2].map((job) => ({
    jobId: jobId.parse(id(0x1000 + job)),
    certificateSha256: sha256(jobFile(jobFacts(job))),
  }))
  const all = [capture, node].map(confirmPurge)
  return {
    purgeId: purge,
    scope: { kind: 'site', site: 'berlin' },
    site: 'berlin',
    includingHeld: false,
    requestedBy: principalId.parse(id(0x5001)),
    approvedBy: principalId.parse(id(0x5002)),
    breakGlass: false,
    reasonSha256: sha256('reason'),
    requestedAtMs: t0,
    intentAtMs: t0 + 5,
    keysUnusableAtMs: t0 + 5,
    keysUnrecoverableAtMs: t0 + 25,
    ordersDurableAtMs: t0 + 6,
    objectsAbsentAtMs: t0 + 35,
    concludedAtMs: t0 + 50,
    jobsCount: jobs.length,
    jobsSha256: jobsSha256Of(jobs.map((job) => job.jobId)),
    jobs,
    certificatesSha256: certificatesSha256Of(jobs),
    heldSkipped: { count: 1, jobIds: [jobId.parse(id(0x1003))] },
    agents: all.map(({ agent }) => agent),
    receipts: all.map(({ envelope }) => envelope),
    signers: [capture, node].map(signerOf),
    level: 'Clear',
    levelReason: 'overwritten in place',
    unasked: { count: 1, agentIds: [agentId.parse(id(0x2009))] },
    exclusions: [...exclusions, unaskedExclusion],
  }
}

export const purgeFile = (facts = purgeFacts(), by = evidence) =>
  signed(purgeCertificatePayloadType, purgeCertificateOf(facts, scopeSha256Of(facts)), by)

export function purgeReportFile(): Buffer {
  const facts = purgeFacts()
  const { level: _level, levelReason: _reason, certificatesSha256: _digest, ...others } = facts
  const { jobs, concludedAtMs, ...rest } = others
  const report = {
    ...rest,
    reportedAtMs: concludedAtMs,
    jobsCertified: jobs.length,
    open: { count: 1, duties: [{ kind: 'lease.wipe', jobId: jobs[0]!.jobId, attempts: 3 }] },
  }
  return signed(purgeReportPayloadType, purgeReportOf(report, scopeSha256Of(report)))
}

export function writeOffFile(): Buffer {
  const { jobId: about, site, announcedAtMs, intentAtMs } = jobFacts()
  const { held } = confirm(1)
  const facts = {
    ...{ jobId: about, site, announcedAtMs, intentAtMs },
    reasonSha256: sha256('reason'),
    askedBy: principalId.parse(id(0x5001)),
    askedAtMs: t0 + 30,
    approvedBy: principalId.parse(id(0x5002)),
    writtenOffAtMs: t0 + 40,
    gaps: [
      {
        obligationId: obligationId.parse(id(0x6000)),
        kind: 'gpu-lease' as const,
        agentId: agentId.parse(node.id),
        leaseId: leases[0]!.leaseId,
        lastSeenAtMs: t0 + 1,
        hadKey: true,
        leaseDeadlineAtMs: t0 + 20,
        attempts: 9,
      },
    ],
    confirmed: [
      {
        obligationId: held.obligationId,
        holder: held.holder,
        confirmedAtMs: held.confirmedAtMs,
        receiptSha256: held.receiptSha256,
      },
    ],
  }
  return signed(writeOffPayloadType, writeOffOf(facts, headerSha256))
}
