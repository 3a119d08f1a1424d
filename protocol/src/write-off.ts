/** The report of a job whose holder never came back: it names the gap, and is no certificate. */
import { z } from 'zod'
import { agentId, jobId, leaseId, obligationId, principalId } from './ids.ts'
import { limits } from './limits.ts'
import { sha256Hex } from './manifest.ts'
import { holder, holderKind } from './receipt.ts'
import { jobStatementOf, makeJobStatement } from './statement.ts'

const instant = z.int().nonnegative()

/** A statement about one job, named by the SHA-256 of its sealed header. */
export const writeOffStatement = jobStatementOf(
  'urn:sluice:write-off:1',
  z.strictObject({
    jobId,
    site: z.string().min(1).max(limits.nameCharsMax),
    /** Of the reason's UTF-8 bytes: the text may name persons. */
    reasonSha256: sha256Hex,
    askedBy: principalId,
    askedAtMs: instant,
    /** The second person. */
    approvedBy: principalId,
    announcedAtMs: instant,
    intentAtMs: instant,
    keysUnusableAtMs: instant.optional(),
    keysUnrecoverableAtMs: instant.optional(),
    objectsAbsentAtMs: instant.optional(),
    writtenOffAtMs: instant,
    /** Every holder that did not confirm. */
    gaps: z
      .array(
        z.strictObject({
          obligationId,
          kind: holderKind,
          /** Missing for holders of the control plane's own. */
          agentId: agentId.optional(),
          leaseId: leaseId.optional(),
          /** When the agent was last heard of. */
          lastSeenAtMs: instant.optional(),
          /** Whether this holder was ever given the job key, or made it. */
          hadKey: z.boolean(),
          /** After it the node was to have no key, if it kept to its orders. */
          leaseDeadlineAtMs: instant.optional(),
          attempts: z.int().nonnegative(),
          revokedAtMs: instant.optional(),
        }),
      )
      .min(1)
      .max(1024),
    /** The holders that did. */
    confirmed: z
      .array(
        z.strictObject({ obligationId, holder, confirmedAtMs: instant, receiptSha256: sha256Hex }),
      )
      .max(1024),
  }),
)
export type WriteOffStatement = z.infer<typeof writeOffStatement>
export type WriteOff = WriteOffStatement['predicate']

/** @param sealedHeaderSha256 Names the ciphertext this is about. */
export function writeOffOf(predicate: WriteOff, sealedHeaderSha256: string) {
  return makeJobStatement('urn:sluice:write-off:1', predicate, sealedHeaderSha256)
}
