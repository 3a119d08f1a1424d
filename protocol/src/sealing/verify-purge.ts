/** Verifies offline what a purge ended in: its certificate, or the report of what is still open. */
import { createHash, type KeyObject } from 'node:crypto'
import { type CanonicalValue, parseCanonicalJson } from '../canonical.ts'
import { exclusions } from '../certificate.ts'
import { limits } from '../limits.ts'
import { atOnce, type Pieces } from '../pieces.ts'
import {
  type PurgeCertificate,
  purgeCertificateStatement,
  type PurgeReport,
  purgeReportStatement,
  unaskedExclusion,
} from '../purge-certificate.ts'
import { verifyStatement } from './dsse.ts'
import { incomplete, invalid } from './evidence-problem.ts'
import { certificatesSha256Of, jobsSha256Of, scopeSha256Of } from './purge-digests.ts'
import { verifyPurgeReceipt } from './verify-purge-receipt.ts'
import {
  requireDistinct,
  requireGoodAt,
  requireOrder,
  type Signer,
  verifyingSigners,
} from './verify-signers.ts'

export const purgeCertificatePayloadType = 'application/vnd.sluice.purge-certificate.v1+json'
export const purgeReportPayloadType = 'application/vnd.sluice.purge-report.v1+json'

/**
 * Verifies the exact bytes of a purge certificate against one pinned key.
 *
 * The deletion certificates of its jobs are files of their own; it fixes their digests.
 *
 * @returns What it says.
 * @throws SluiceError `evidence.not_canonical`, `evidence.untrusted`, `evidence.incomplete` or
 * `evidence.invalid`, as `verifyCertificate`.
 */
export function verifyPurgeCertificate(bytes: Uint8Array, trustedKey: KeyObject): PurgeCertificate {
  return atOnce(verifyingPurgeCertificate(bytes, trustedKey))
}

/** `verifyPurgeCertificate` in pieces of one receipt or signer. */
export function* verifyingPurgeCertificate(
  bytes: Uint8Array,
  trustedKey: KeyObject,
): Pieces<PurgeCertificate> {
  const statement = verifyStatement(envelopeOf(bytes), {
    payloadType: purgeCertificatePayloadType,
    publicKey: trustedKey,
  })
  const parsed = purgeCertificateStatement.safeParse(statement)
  if (!parsed.success) throw invalid('it is no purge certificate', parsed.error)
  const { subject, predicate } = parsed.data
  checkSubject(subject[0]!, predicate)
  checkTimes(predicate)
  checkPersons(predicate)
  checkUnasked(predicate)
  checkExclusions(predicate)
  checkJobs(predicate)
  yield* checkReceipts(predicate, trustedKey)
  return predicate
}

/**
 * Verifies the exact bytes of a purge report: true words of the control plane, and no certificate.
 *
 * @throws SluiceError as `verifyPurgeCertificate`.
 */
export function verifyPurgeReport(bytes: Uint8Array, trustedKey: KeyObject): PurgeReport {
  return atOnce(verifyingPurgeReport(bytes, trustedKey))
}

/** `verifyPurgeReport` in pieces of one receipt or signer. */
export function* verifyingPurgeReport(
  bytes: Uint8Array,
  trustedKey: KeyObject,
): Pieces<PurgeReport> {
  const statement = verifyStatement(envelopeOf(bytes), {
    payloadType: purgeReportPayloadType,
    publicKey: trustedKey,
  })
  const parsed = purgeReportStatement.safeParse(statement)
  if (!parsed.success) throw invalid('it is no purge report', parsed.error)
  const { subject, predicate } = parsed.data
  checkSubject(subject[0]!, predicate)
  requireOrder([predicate.requestedAtMs, predicate.intentAtMs, predicate.reportedAtMs])
  for (const { confirmedAtMs } of predicate.agents)
    requireOrder([predicate.intentAtMs, confirmedAtMs, predicate.reportedAtMs])
  checkPersons(predicate)
  checkUnasked(predicate)
  checkExclusions(predicate)
  yield* checkReceipts(predicate, trustedKey)
  return predicate
}

type Facts = PurgeCertificate | PurgeReport

function envelopeOf(bytes: Uint8Array): CanonicalValue {
  if (bytes.length > limits.purgeCertificateBytesMax)
    throw invalid(`it is larger than ${limits.purgeCertificateBytesMax} bytes`)
  return parseCanonicalJson(bytes)
}

function checkSubject(about: { name: string; digest: { sha256: string } }, facts: Facts): void {
  if (about.name !== `purge:${facts.purgeId}`) throw invalid('it names two purges')
  if (about.digest.sha256 !== scopeSha256Of(facts)) throw invalid('its scope is another')
}

function checkTimes(facts: PurgeCertificate): void {
  const { requestedAtMs, intentAtMs, ordersDurableAtMs, objectsAbsentAtMs, concludedAtMs } = facts
  requireOrder([
    requestedAtMs,
    intentAtMs,
    facts.keysUnusableAtMs,
    facts.keysUnrecoverableAtMs,
    concludedAtMs,
  ])
  for (const between of [ordersDurableAtMs, objectsAbsentAtMs])
    requireOrder([intentAtMs, between, concludedAtMs])
  for (const { confirmedAtMs } of facts.agents)
    requireOrder([intentAtMs, confirmedAtMs, concludedAtMs])
}

function checkPersons({ requestedBy, approvedBy, includingHeld, heldSkipped }: Facts): void {
  if (approvedBy === requestedBy) throw invalid('one person asked and approved')
  if (includingHeld && approvedBy === undefined)
    throw incomplete('held jobs take a second person, and it names none')
  if (includingHeld && heldSkipped.count > 0) throw invalid('it skipped and included held jobs')
  const { count, jobIds } = heldSkipped
  if (jobIds.length !== Math.min(count, limits.purgeOpenListedMax))
    throw incomplete('it does not name the held jobs it skipped')
}

function checkUnasked({ unasked: { count, agentIds }, agents, exclusions: named }: Facts): void {
  if (agentIds.length !== Math.min(count, limits.purgeOpenListedMax))
    throw incomplete('it does not name the hosts it could not ask')
  requireDistinct(agentIds, 'a host is named twice')
  if (agents.some(({ agentId }) => agentIds.includes(agentId)))
    throw invalid('a host confirmed that it could not ask')
  if (count > 0 && !named.includes(unaskedExclusion))
    throw incomplete(`it does not exclude ${unaskedExclusion}`)
}

function checkExclusions(facts: Facts): void {
  const missing = exclusions.find((exclusion) => !facts.exclusions.includes(exclusion))
  if (missing !== undefined) throw incomplete(`it does not exclude ${missing}`)
}

function checkJobs({ jobs, jobsCount, jobsSha256, certificatesSha256 }: PurgeCertificate): void {
  if (jobsCount > limits.purgeJobsListedMax && jobs.length === 0) return
  if (jobs.length !== jobsCount) throw incomplete('a job has no certificate')
  const ids = jobs.map(({ jobId }) => jobId)
  if (ids.some((id, index) => index > 0 && ids[index - 1]! >= id))
    throw invalid('its jobs are not in order')
  if (jobsSha256Of(ids) !== jobsSha256) throw invalid('its jobs are not those of the intent')
  if (certificatesSha256Of(jobs) !== certificatesSha256)
    throw invalid('its certificates are not those it names')
}

function* checkReceipts(facts: Facts, trustedKey: KeyObject): Pieces<void> {
  const { agents, receipts } = facts
  const signers = yield* verifyingSigners(facts.signers, trustedKey)
  const agentIds = new Set<string>(agents.map(({ agentId }) => agentId))
  if ([...signers.keys()].some((id) => !agentIds.has(id))) throw invalid('a signer holds nothing')
  requireDistinct(
    agents.map(({ obligationId }) => obligationId),
    'an obligation is listed twice',
  )
  for (const [index, agent] of agents.entries()) {
    checkReceipt(facts, { agent, index, signers })
    yield
  }
  if (receipts.length !== agents.length) throw invalid('a receipt has no agent')
}

function checkReceipt(
  facts: Facts,
  at: { agent: Facts['agents'][number]; index: number; signers: ReadonlyMap<string, Signer> },
): void {
  const { agentId, obligationId, everything, orderSha256 } = at.agent
  const envelope = facts.receipts[at.index]
  const signer = at.signers.get(agentId)
  if (!envelope) throw incomplete(`agent ${agentId} has no receipt`)
  if (!signer) throw incomplete(`the key of agent ${agentId} is not listed`)
  requireGoodAt(signer, at.agent.confirmedAtMs)
  const digest = createHash('sha256').update(Buffer.from(envelope.payload, 'base64')).digest('hex')
  if (digest !== at.agent.receiptSha256)
    throw invalid('a receipt is not the one that was confirmed')
  const { purgeId } = facts
  const expected = { agentId, purgeId, obligationId, everything, orderSha256 }
  verifyPurgeReceipt(envelope, { publicKey: signer.key, ...expected })
}
