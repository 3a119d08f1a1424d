/** What a purge ends in: its certificate, or a report that names what is still open. */
import { z } from 'zod'
import { exclusions, sanitisationLevel } from './certificate.ts'
import { evidenceSigner } from './evidence-signer.ts'
import { agentId, jobId, obligationId, principalId, purgeId } from './ids.ts'
import { limits } from './limits.ts'
import { sha256Hex } from './manifest.ts'
import { purgeScope } from './purge.ts'
import { dsseEnvelope } from './sealing/dsse.ts'
import { makePurgeStatement, purgeStatementOf } from './statement.ts'

const instant = z.int().nonnegative()
const count = z.int().nonnegative()

/** What a purge excludes too when it could not ask every host; part of the signed bytes. */
export const unaskedExclusion =
  'what lies on the revoked hosts it names as unasked; the keys of what they never announced are gone'

const purgeFacts = z.strictObject({
  purgeId,
  scope: purgeScope,
  /** The one site it stayed within; `*` for all. */
  site: z.string().min(1).max(limits.nameCharsMax),
  includingHeld: z.boolean(),
  requestedBy: principalId,
  /** The second person, where one was needed and was there. */
  approvedBy: principalId.optional(),
  breakGlass: z.boolean(),
  /** Of the reason's UTF-8 bytes: the text may name persons, and stays at the control plane. */
  reasonSha256: sha256Hex,
  requestedAtMs: instant,
  intentAtMs: instant,
  /** How many jobs were in its scope, held ones that it skipped left out. */
  jobsCount: count,
  /** SHA-256 over the sorted ids of those jobs, each with a line feed; fixed by the intent. */
  jobsSha256: sha256Hex,
  /** Jobs under legal hold, which it did not touch. */
  heldSkipped: z.strictObject({
    count,
    jobIds: z.array(jobId).max(limits.purgeOpenListedMax),
  }),
  /**
   * Revoked capture hosts of its scope that had no job in it. Nobody could order or ask them, and
   * what they sealed and never announced is known to nobody; its receive keys were destroyed.
   */
  unasked: z.strictObject({
    count,
    agentIds: z.array(agentId).max(limits.purgeOpenListedMax),
  }),
  /** Each order to an agent that was confirmed, with the receipt that speaks for it. */
  agents: z
    .array(
      z.strictObject({
        agentId,
        obligationId,
        everything: z.boolean(),
        /** SHA-256 of the order as canonical JSON. */
        orderSha256: sha256Hex,
        confirmedAtMs: instant,
        /** SHA-256 of the receipt's payload bytes. */
        receiptSha256: sha256Hex,
      }),
    )
    .max(limits.purgeReceiptsMax),
  /** In the order of `agents`. */
  receipts: z.array(dsseEnvelope).max(limits.purgeReceiptsMax),
  signers: z.array(evidenceSigner).max(limits.purgeReceiptsMax),
  exclusions: z.array(z.string().max(limits.errorTextCharsMax)).min(exclusions.length).max(64),
})

const certified = z.strictObject({
  jobId,
  /** SHA-256 of the exact bytes of the job's deletion certificate. */
  certificateSha256: sha256Hex,
})

/** The subject's digest is SHA-256 over the canonical JSON of `{jobsSha256, scope}`. */
export const purgeCertificateStatement = purgeStatementOf(
  'urn:sluice:purge-certificate:1',
  z.strictObject({
    ...purgeFacts.shape,
    keysUnusableAtMs: instant,
    keysUnrecoverableAtMs: instant,
    ordersDurableAtMs: instant,
    objectsAbsentAtMs: instant,
    concludedAtMs: instant,
    /** The weakest level of its jobs' certificates. */
    level: sanitisationLevel,
    levelReason: z.string().max(limits.errorTextCharsMax),
    /** By id. Empty above `limits.purgeJobsListedMax`: then the bundle has the list. */
    jobs: z.array(certified).max(limits.purgeJobsListedMax),
    /** SHA-256 over `<job id> <certificate SHA-256>` by id, each with a line feed. */
    certificatesSha256: sha256Hex,
  }),
)
export type PurgeCertificateStatement = z.infer<typeof purgeCertificateStatement>
export type PurgeCertificate = PurgeCertificateStatement['predicate']

/** What kept a purge from its certificate. */
const openDuty = z.strictObject({
  /** The kind of the duty, `job.unconfirmed` for a job whose holder was written off. */
  kind: z.string().min(1).max(limits.nameCharsMax),
  obligationId: obligationId.optional(),
  jobId: jobId.optional(),
  agentId: agentId.optional(),
  attempts: count,
  lastErrorCode: z.string().max(limits.nameCharsMax).optional(),
})

/** Never a certificate: another type, another payload type, and it says what is missing. */
export const purgeReportStatement = purgeStatementOf(
  'urn:sluice:purge-report:1',
  z.strictObject({
    ...purgeFacts.shape,
    keysUnusableAtMs: instant.optional(),
    keysUnrecoverableAtMs: instant.optional(),
    ordersDurableAtMs: instant.optional(),
    objectsAbsentAtMs: instant.optional(),
    /** When this was found. */
    reportedAtMs: instant,
    /** No key handed out before the intent works on any node after this. */
    leasesOverAtMs: instant.optional(),
    /** How many of its jobs have their deletion certificate. */
    jobsCertified: count,
    open: z.strictObject({
      count: z.int().positive(),
      duties: z.array(openDuty).max(limits.purgeOpenListedMax),
    }),
  }),
)
export type PurgeReportStatement = z.infer<typeof purgeReportStatement>
export type PurgeReport = PurgeReportStatement['predicate']

/** @param scopeSha256 What names the scope: `scopeSha256Of`. */
export function purgeCertificateOf(predicate: PurgeCertificate, scopeSha256: string) {
  return makePurgeStatement('urn:sluice:purge-certificate:1', predicate, scopeSha256)
}

/** @param scopeSha256 What names the scope: `scopeSha256Of`. */
export function purgeReportOf(predicate: PurgeReport, scopeSha256: string) {
  return makePurgeStatement('urn:sluice:purge-report:1', predicate, scopeSha256)
}
