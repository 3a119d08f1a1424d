/** The deletion certificate: all receipts of one job in one signed statement that verifies offline. */
import { z } from 'zod'
import { evidenceSigner } from './evidence-signer.ts'
import { agentId, jobId, leaseId, obligationId } from './ids.ts'
import { limits } from './limits.ts'
import { sha256Hex } from './manifest.ts'
import { holder } from './receipt.ts'
import { dsseEnvelope } from './sealing/dsse.ts'
import { jobStatementOf, makeJobStatement } from './statement.ts'

const instant = z.int().nonnegative()

/** What no certificate of ours claims. Part of the signed bytes, so that no reader can miss it. */
export const exclusions = [
  'copies made outside the system, such as screenshots or results derived from the media',
  'the source file and the disk it was captured on',
  'results delivered to the capture host',
  'memory of graphics processors and other devices',
  'pages freed by the operating system that were not overwritten yet',
  'snapshots or migrations by a hypervisor',
  'backups and disk images made by others; this version makes no backups and keeps no caches',
  'copies of the database that upgrades leave; in them the keys are wrapped by destroyed epoch keys',
] as const

/** NIST SP 800-88r1 level claimed for key destruction. `none`: the file system may keep old copies. */
export const sanitisationLevel = z.enum(['Purge', 'Clear', 'none'])
export type SanitisationLevel = z.infer<typeof sanitisationLevel>

export const certificateStatement = jobStatementOf(
  'urn:sluice:deletion-certificate:1',
  z.strictObject({
    jobId,
    site: z.string().max(limits.nameCharsMax),
    level: sanitisationLevel,
    /** Why the level is what it is, in words. */
    levelReason: z.string().max(limits.errorTextCharsMax),
    announcedAtMs: instant,
    intentAtMs: instant,
    keysUnusableAtMs: instant,
    keysUnrecoverableAtMs: instant,
    objectsAbsentAtMs: instant,
    issuedAtMs: instant,
    /** Every lease the job ever had; each has a receipt among the holders. */
    leases: z.array(z.strictObject({ leaseId, fence: z.int().positive(), nodeId: agentId })),
    /** Every holder there ever was, with the receipt that speaks for it. */
    holders: z
      .array(
        z.strictObject({
          obligationId,
          holder,
          leaseId: leaseId.optional(),
          confirmedAtMs: instant,
          /** SHA-256 of the receipt's payload bytes. */
          receiptSha256: sha256Hex,
        }),
      )
      .min(3)
      .max(1024),
    receipts: z.array(dsseEnvelope).min(3).max(1024),
    signers: z.array(evidenceSigner).min(1).max(1024),
    exclusions: z.array(z.string().max(limits.errorTextCharsMax)).min(exclusions.length).max(64),
  }),
)
export type CertificateStatement = z.infer<typeof certificateStatement>
export type Certificate = CertificateStatement['predicate']

/** The statement of a certificate; `sealedHeaderSha256` names the ciphertext that is gone. */
export function certificateOf(predicate: Certificate, sealedHeaderSha256: string) {
  return makeJobStatement('urn:sluice:deletion-certificate:1', predicate, sealedHeaderSha256)
}
