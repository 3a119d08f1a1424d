/**
 * Verifies a deletion certificate offline: no network, no database, and no trust in anything that
 * the file itself says about whom to trust.
 */
import { createHash, type KeyObject } from 'node:crypto'
import { type CanonicalValue, parseCanonicalJson } from '../canonical.ts'
import { type Certificate, certificateStatement, exclusions } from '../certificate.ts'
import { limits } from '../limits.ts'
import type { HolderKind, Receipt } from '../receipt.ts'
import { keyIdOf, verifyStatement } from './dsse.ts'
import { incomplete, invalid, untrusted } from './evidence-problem.ts'
import { verifyReceipt } from './verify-receipt.ts'
import {
  requireDistinct,
  requireGoodAt,
  requireOrder,
  type Signer,
  verifySigners,
} from './verify-signers.ts'

export const certificatePayloadType = 'application/vnd.sluice.deletion-certificate.v1+json'

/** Holders that every job has, each exactly once. */
const alwaysHeld = ['capture-spool', 'object-store', 'job-key'] as const
/** Holders inside the control plane: the evidence key itself speaks for them. */
const ownKinds: ReadonlySet<HolderKind> = new Set([
  'object-store',
  'object-replica',
  'job-key',
  'result-blob',
])

/** What a verified certificate says, in the order one would tell it. */
export type CertificateSummary = Pick<
  Certificate,
  | 'jobId'
  | 'site'
  | 'level'
  | 'levelReason'
  | 'announcedAtMs'
  | 'intentAtMs'
  | 'keysUnusableAtMs'
  | 'keysUnrecoverableAtMs'
  | 'objectsAbsentAtMs'
  | 'issuedAtMs'
  | 'leases'
  | 'exclusions'
> & {
  /** SHA-256 of the sealed archive's header, hex. */
  sealedHeaderSha256: string
  /** The key that signed it: the trusted one. */
  keyId: string
  holders: (Pick<
    Receipt,
    'holder' | 'method' | 'checked' | 'memoryLevel' | 'isolation' | 'wipedAtMs'
  > & { confirmedAtMs: number; leaseId?: string })[]
}

type Facts = Certificate & { sealedHeaderSha256: string }

/**
 * Verifies the exact bytes of a certificate file against one pinned key.
 *
 * @param trustedKey The evidence key's public half, exported at setup; never taken from the file.
 * @throws SluiceError `evidence.not_canonical` unless the bytes are the one canonical form,
 * `evidence.untrusted` when anything is signed by a key that is not trusted for it,
 * `evidence.incomplete` when a holder, a lease or an exclusion is missing, `evidence.invalid` for
 * every other contradiction.
 */
export function verifyCertificate(bytes: Uint8Array, trustedKey: KeyObject): CertificateSummary {
  if (bytes.length > limits.certificateBytesMax)
    throw invalid(`it is larger than ${limits.certificateBytesMax} bytes`)
  const envelope = parseCanonicalJson(bytes)
  const facts = factsOf(envelope, trustedKey)
  checkTimes(facts)
  checkExclusions(facts)
  const signers = checkSigners(facts, trustedKey)
  checkHolders(facts, keyIdOf(trustedKey))
  const receipts = facts.holders.map((held, index) => checkReceipt(facts, held, index, signers))
  if (facts.receipts.length !== facts.holders.length) throw invalid('a receipt has no holder')
  return summaryOf(facts, receipts, keyIdOf(trustedKey))
}

function factsOf(envelope: CanonicalValue, publicKey: KeyObject): Facts {
  const statement = verifyStatement(envelope, { payloadType: certificatePayloadType, publicKey })
  const parsed = certificateStatement.safeParse(statement)
  if (!parsed.success) throw invalid('it is no deletion certificate', parsed.error)
  const { subject, predicate } = parsed.data
  const [about] = subject
  if (about?.name !== `job:${predicate.jobId}`) throw invalid('it names two jobs')
  return { ...predicate, sealedHeaderSha256: about.digest.sha256 }
}

function checkTimes(facts: Facts): void {
  requireOrder([
    facts.announcedAtMs,
    facts.intentAtMs,
    facts.keysUnusableAtMs,
    facts.keysUnrecoverableAtMs,
    facts.issuedAtMs,
  ])
  requireOrder([facts.intentAtMs, facts.objectsAbsentAtMs, facts.issuedAtMs])
  for (const { confirmedAtMs } of facts.holders)
    requireOrder([facts.announcedAtMs, confirmedAtMs, facts.issuedAtMs])
}

function checkExclusions(facts: Facts): void {
  const missing = exclusions.find((exclusion) => !facts.exclusions.includes(exclusion))
  if (missing !== undefined) throw incomplete(`it does not exclude ${missing}`)
}

/** @returns The signers by the holder's id. */
function checkSigners(facts: Facts, trustedKey: KeyObject): Map<string, Signer> {
  const signers = verifySigners(facts.signers, trustedKey)
  const holderIds = new Set<string>(facts.holders.map(({ holder }) => holder.id))
  if ([...signers.keys()].some((id) => !holderIds.has(id))) throw invalid('a signer holds nothing')
  return signers
}

function checkHolders(facts: Facts, trustedId: string): void {
  const { holders, leases } = facts
  requireDistinct(
    holders.map((held) => held.obligationId),
    'an obligation is listed twice',
  )
  requireDistinct(
    leases.map((lease) => lease.leaseId),
    'a lease is listed twice',
  )
  requireDistinct(
    leases.map((lease) => String(lease.fence)),
    'two leases have one fence',
  )
  for (const kind of alwaysHeld)
    if (!holders.some(({ holder }) => holder.kind === kind))
      throw incomplete(`no ${kind} confirmed`)
  for (const lease of leases)
    if (!holders.some((held) => held.leaseId === lease.leaseId))
      throw incomplete(`lease ${lease.leaseId} was never confirmed`)
  requireDistinct(
    holders.map(({ leaseId, holder }) => leaseId ?? `${holder.kind} ${holder.place ?? ''}`),
    'a holder is listed twice',
  )
  for (const { holder, leaseId } of holders) {
    const own = ownKinds.has(holder.kind)
    if (own !== (holder.id === trustedId))
      throw untrusted(`${holder.kind} is spoken for by another`)
    if ((holder.kind === 'gpu-lease') !== (leaseId !== undefined))
      throw invalid('a lease and its holder do not fit')
    if ((holder.kind === 'object-replica') !== (holder.place !== undefined))
      throw invalid('a replica and its place do not fit')
    if (leaseId === undefined) continue
    const lease = leases.find((one) => one.leaseId === leaseId)
    if (lease?.nodeId !== holder.id) throw invalid('a lease is confirmed by another node')
  }
}

function checkReceipt(
  facts: Facts,
  held: Facts['holders'][number],
  index: number,
  signers: ReadonlyMap<string, Signer>,
): Receipt {
  const { obligationId, holder, leaseId } = held
  const envelope = facts.receipts[index]
  const signer = signers.get(holder.id)
  if (!envelope) throw incomplete(`${holder.kind} has no receipt`)
  if (!signer) throw incomplete(`the signer of ${holder.kind} is not listed`)
  requireGoodAt(signer, held.confirmedAtMs)
  const digest = createHash('sha256').update(Buffer.from(envelope.payload, 'base64')).digest('hex')
  if (digest !== held.receiptSha256) throw invalid('a receipt is not the one that was confirmed')
  const { jobId, sealedHeaderSha256 } = facts
  const fence = facts.leases.find((lease) => lease.leaseId === leaseId)?.fence
  return verifyReceipt(envelope, {
    publicKey: signer.key,
    jobId,
    obligationId,
    holder,
    leaseId,
    fence,
    sealedHeaderSha256,
  })
}

function summaryOf(facts: Facts, receipts: readonly Receipt[], keyId: string): CertificateSummary {
  const { holders, receipts: _receipts, signers: _signers, ...rest } = facts
  return {
    ...rest,
    keyId,
    holders: receipts.map((receipt, index) => {
      const { holder, method, checked, memoryLevel, isolation, wipedAtMs, leaseId } = receipt
      return {
        holder,
        method,
        checked,
        wipedAtMs,
        confirmedAtMs: holders[index]!.confirmedAtMs,
        ...(leaseId === undefined ? {} : { leaseId }),
        ...(memoryLevel === undefined ? {} : { memoryLevel }),
        ...(isolation === undefined ? {} : { isolation }),
      }
    }),
  }
}
