/** Ends a purge in its certificate, once nothing is owed any more; until then it only reports. */
import { createHash } from 'node:crypto'
import { type CanonicalValue, canonicalJson } from '@sluice/protocol/canonical'
import {
  certificateStatement,
  exclusions,
  type SanitisationLevel,
} from '@sluice/protocol/certificate'
import { SluiceError } from '@sluice/protocol/errors'
import type { EvidenceSigner } from '@sluice/protocol/evidence-signer'
import type { JobId, PurgeId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import {
  type PurgeCertificate,
  purgeCertificateOf,
  purgeReportOf,
  unaskedExclusion,
} from '@sluice/protocol/purge-certificate'
import { type DsseEnvelope, dsseEnvelope, signStatement } from '@sluice/protocol/sealing/dsse'
import {
  certificatesSha256Of,
  jobsSha256Of,
  scopeSha256Of,
} from '@sluice/protocol/sealing/purge-digests'
import {
  purgeCertificatePayloadType,
  purgeReportPayloadType,
  verifyingPurgeCertificate,
  verifyingPurgeReport,
} from '@sluice/protocol/sealing/verify-purge'
import { orderSha256Of } from '@sluice/protocol/sealing/verify-purge-receipt'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Queries, Transaction } from '../database/database.ts'
import { agentSigner } from '../deletion/certificate.ts'
import type { Evidence } from '../deletion/evidence.ts'
import type { Obligation } from '../deletion/rules.ts'
import { markDone } from '../deletion/store.ts'
import { answerOthers, createPause, inPieces } from '../in-pieces.ts'
import { presentFields } from '../present-fields.ts'
import {
  certifiedJobs,
  changePurge,
  confirmedOrders,
  countCertified,
  countOpenDuties,
  keepDocument,
  openDuties,
  purgeById,
  type PurgeRow,
} from './store.ts'

export type ConcludeParts = {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
  evidence: Evidence
}

/**
 * Ends a purge whose every job and agent is done: its certificate, or, where a holder was written
 * off, a last report. The document, the state and the audit event are one transaction. Verifying
 * thousands of receipts takes a second or more: others read meanwhile, and whoever writes waits.
 *
 * @throws SluiceError `evidence.incomplete` while something is owed; `evidence.untrusted` or
 * `evidence.invalid` when a stored receipt no longer counts: then there is no certificate.
 */
export async function conclude(
  parts: ConcludeParts,
  due: { purgeId: PurgeId; obligation: Obligation },
): Promise<void> {
  await parts.database.write(async (tx) => {
    const purge = await begunPurge(tx.sql, due.purgeId)
    const { id, site } = purge
    const unconfirmed = countOpenDuties(tx.sql, id) > 0
    const document = unconfirmed
      ? await reportOn(tx.sql, parts, purge)
      : await certificateOn(tx.sql, parts, purge)
    const { atMs, kind, text } = document
    await keepDocument(tx, {
      ...{ id: `${kind}:${id}`, kind, subjectId: id, site },
      ...{ envelope: text, issuedAtMs: atMs },
    })
    await changePurge(tx, { id, from: 'running' }, { state: 'concluded', concludedAtMs: atMs })
    await markDone(tx, due.obligation.id, atMs)
    await tellConcluded(parts, tx, { purge, document })
  })
}

async function tellConcluded(
  parts: ConcludeParts,
  tx: Transaction,
  concluded: { purge: PurgeRow; document: Document },
): Promise<void> {
  const { id, site } = concluded.purge
  const { atMs, kind, text } = concluded.document
  const detail = { purgeId: id, document: kind, sha256: sha256Of(text) }
  const actor = { kind: 'system' } as const
  await appendAudit(tx, { atMs, type: 'purge.concluded', actor, site, detail })
  const summary = `a purge has ended in a ${kind}`
  const alert = { type: 'purge.concluded', severity: 'info', site, atMs, summary, detail } as const
  await raiseAlert(tx, alert, parts.changes)
}

/**
 * A signed report on a purge as it stands now. It never is a certificate.
 *
 * @returns The text of its envelope.
 */
export function interimReport(parts: ConcludeParts, id: PurgeId): Promise<string> {
  const report = lastReport.then(() =>
    parts.database.read(async (sql) => {
      const purge = await begunPurge(sql, id)
      return (await reportOn(sql, parts, purge)).text
    }),
  )
  lastReport = report.then(
    () => undefined,
    () => undefined,
  )
  return report
}

/** One after the other: on thousands of agents each takes tens of megabytes while it is made. */
let lastReport: Promise<undefined> = Promise.resolve(undefined)

type Begun = PurgeRow & { intentAtMs: number; jobsSha256: string }

async function begunPurge(sql: Queries, id: PurgeId): Promise<Begun> {
  const purge = await purgeById(sql, id)
  if (purge?.state !== 'running' || purge.intentAtMs === null || purge.jobsSha256 === null)
    throw new SluiceError('request.conflict', `purge ${id} is ${purge?.state ?? 'unknown'}`, {
      hint: 'Only a purge that runs is reported on.',
    })
  return { ...purge, intentAtMs: purge.intentAtMs, jobsSha256: purge.jobsSha256 }
}

type Document = { kind: 'purge-certificate' | 'purge-report'; text: string; atMs: number }

/** Signs a document, and keeps none that does not verify. */
async function sealed(
  parts: ConcludeParts,
  kind: Document['kind'],
  statement: CanonicalValue,
  atMs: number,
): Promise<Document> {
  const isCertificate = kind === 'purge-certificate'
  const type = isCertificate ? purgeCertificatePayloadType : purgeReportPayloadType
  const envelope = signStatement(type, statement, parts.evidence)
  await answerOthers()
  const text = canonicalJson(envelope)
  await answerOthers()
  const verifying = isCertificate ? verifyingPurgeCertificate : verifyingPurgeReport
  await inPieces<unknown>(verifying(Buffer.from(text), parts.evidence.publicKey))
  return { kind, text, atMs }
}

async function certificateOn(sql: Queries, parts: ConcludeParts, purge: Begun): Promise<Document> {
  const { keysUnusableAtMs, keysUnrecoverableAtMs, ordersDurableAtMs, objectsAbsentAtMs } = purge
  const known =
    keysUnusableAtMs !== null &&
    keysUnrecoverableAtMs !== null &&
    ordersDurableAtMs !== null &&
    objectsAbsentAtMs !== null
  if (!known) throw new SluiceError('evidence.incomplete', `purge ${purge.id} misses a time`)
  let level: PurgeLevel | undefined
  const certified: PurgeCertificate['jobs'] = []
  const pause = createPause()
  for (const { jobId, envelope } of certifiedJobs(sql, purge.id)) {
    if (envelope === null)
      throw new SluiceError('evidence.incomplete', `job ${jobId} has no certificate`)
    certified.push({ jobId, certificateSha256: sha256Of(envelope) })
    level = weaker(level, levelIn(envelope))
    await pause()
  }
  if (jobsSha256Of(certified.map(({ jobId }) => jobId)) !== purge.jobsSha256)
    throw new SluiceError('evidence.invalid', 'the jobs of this purge are not those it began with')
  const facts = await factsOf(sql, purge)
  const times = { keysUnusableAtMs, keysUnrecoverableAtMs, ordersDurableAtMs, objectsAbsentAtMs }
  const instants = [...Object.values(times), ...facts.agents.map((one) => one.confirmedAtMs)]
  const concludedAtMs = Math.max(parts.now(), ...instants)
  const predicate: PurgeCertificate = {
    ...facts,
    ...times,
    concludedAtMs,
    ...(level ?? { level: 'none', levelReason: 'no job was in its scope' }),
    jobs: certified.length > limits.purgeJobsListedMax ? [] : certified,
    certificatesSha256: certificatesSha256Of(certified),
  }
  const { scope, jobsSha256 } = purge
  const statement = purgeCertificateOf(predicate, scopeSha256Of({ scope, jobsSha256 }))
  return sealed(parts, 'purge-certificate', statement, concludedAtMs)
}

async function reportOn(sql: Queries, parts: ConcludeParts, purge: Begun): Promise<Document> {
  const { scope, jobsSha256, id } = purge
  const { keysUnusableAtMs, keysUnrecoverableAtMs, ordersDurableAtMs, objectsAbsentAtMs } = purge
  // All of it as it is now: between the pieces of what follows others write.
  const duties = openDuties(sql, id, limits.purgeOpenListedMax)
  const openCount = countOpenDuties(sql, id)
  const jobsCertified = countCertified(sql, id)
  const atMs = parts.now()
  const predicate = {
    ...(await factsOf(sql, purge)),
    ...presentFields({
      keysUnusableAtMs,
      keysUnrecoverableAtMs,
      ordersDurableAtMs,
      objectsAbsentAtMs,
      leasesOverAtMs: purge.leasesOverAtMs,
    }),
    reportedAtMs: atMs,
    jobsCertified,
    open: {
      // The end itself is the last duty: a purge that only lacks its document still lacks it.
      count: Math.max(1, openCount),
      duties: duties.map(({ kind, attempts, ...rest }) => ({
        kind,
        attempts,
        ...presentFields(rest),
      })),
    },
  }
  const statement = purgeReportOf(predicate, scopeSha256Of({ scope, jobsSha256 }))
  return sealed(parts, 'purge-report', statement, atMs)
}

/** What certificate and report say alike; the receipts are those of the moment it is called. */
async function factsOf(sql: Queries, purge: Begun) {
  const confirmed = await confirmedOrders(sql, purge.id)
  const signers = new Map<string, EvidenceSigner>()
  const agents: PurgeCertificate['agents'] = []
  const receipts: DsseEnvelope[] = []
  const pause = createPause()
  for (const { receipt, agentId, order } of confirmed) {
    if (agentId === null || order.type !== 'purge')
      throw new SluiceError('evidence.invalid', `receipt ${receipt.obligationId} has no order`)
    const earlier = signers.get(agentId)
    signers.set(agentId, await agentSigner(sql, { holderId: agentId, receipt, earlier }))
    agents.push({
      agentId,
      obligationId: receipt.obligationId,
      everything: order.everything,
      orderSha256: orderSha256Of(order),
      confirmedAtMs: receipt.receivedAtMs,
      receiptSha256: receipt.payloadSha256,
    })
    receipts.push(dsseEnvelope.parse(JSON.parse(receipt.envelope)))
    await pause()
  }
  const { id, scope, site, includingHeld, requestedBy, breakGlass, requestedAtMs } = purge
  return {
    ...{ purgeId: id, scope, site, includingHeld, requestedBy, breakGlass, requestedAtMs },
    ...(purge.approvedBy === null ? {} : { approvedBy: purge.approvedBy }),
    reasonSha256: sha256Of(purge.reason),
    intentAtMs: purge.intentAtMs,
    jobsCount: purge.jobs,
    jobsSha256: purge.jobsSha256,
    heldSkipped: { count: purge.heldSkipped, jobIds: purge.heldSkippedIds ?? ([] as JobId[]) },
    agents,
    receipts,
    signers: [...signers.values()].toSorted((left, right) => (left.keyId < right.keyId ? -1 : 1)),
    unasked: { count: purge.unasked, agentIds: purge.unaskedIds ?? [] },
    exclusions: [...exclusions, ...(purge.unasked > 0 ? [unaskedExclusion] : [])],
  }
}

type PurgeLevel = { level: SanitisationLevel; levelReason: string }

/** From a certificate of our own, which was verified before it was stored. */
function levelIn(envelope: string): PurgeLevel {
  const { payload } = dsseEnvelope.parse(JSON.parse(envelope))
  const statement: unknown = JSON.parse(Buffer.from(payload, 'base64').toString('utf8'))
  const { level, levelReason } = certificateStatement.parse(statement).predicate
  return { level, levelReason }
}

/** The earlier of two that claim the same. */
function weaker(first: PurgeLevel | undefined, second: PurgeLevel): PurgeLevel {
  const order: readonly SanitisationLevel[] = ['none', 'Clear', 'Purge']
  return first && order.indexOf(first.level) <= order.indexOf(second.level) ? first : second
}

function sha256Of(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}
