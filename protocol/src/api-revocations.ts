/** What the operator's HTTP API says of revocations: who is locked out, and what is still owed of it. */
import { z } from 'zod'
import { plainName, siteScope } from './api.ts'
import { agentId, jobId, principalId, revocationId, tokenId } from './ids.ts'
import { limits } from './limits.ts'

const instant = z.int().nonnegative()
const count = z.int().nonnegative()

/** What may be revoked. Nothing is destroyed by it: jobs freeze, and can be released or purged. */
export const revocationTarget = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('agent'), agentId }),
  z.strictObject({ kind: z.literal('join-token'), tokenId }),
  z.strictObject({ kind: z.literal('token'), tokenId }),
  /** Every agent that carries the label, and every unused join token that would give it. */
  z.strictObject({
    kind: z.literal('label'),
    key: plainName,
    value: z.string().max(limits.labelCharsMax),
  }),
  /** Every grant to touch an object that is out, of whichever job and agent. */
  z.strictObject({ kind: z.literal('grants') }),
])
export type RevocationTarget = z.infer<typeof revocationTarget>

/** `POST /v1/revocations`. */
export const revocationRequest = z.strictObject({
  target: revocationTarget,
  reason: z.string().trim().min(1).max(limits.errorTextCharsMax),
  /** Shows what it would hit and changes nothing. */
  dryRun: z.boolean().default(false),
})

/** What is in force from the moment the answer is given. */
const inForce = {
  agents: count,
  joinTokens: count,
  tokens: count,
  jobsFrozen: count,
  leasesEnded: count,
  /** Jobs whose key one of these nodes was given and has not confirmed to have wiped. */
  jobsExposed: count,
  /** No key that one of these nodes was given works beyond this instant on a node that obeys. */
  leasesOverAtMs: instant.optional(),
  /** Grants given out before, where the store can't take them back, work until then at the latest. */
  grantsOverAtMs: instant.optional(),
}

/** What a revocation would hit now. */
export const revocationPreview = z.strictObject({
  dryRun: z.literal(true),
  target: revocationTarget,
  site: siteScope,
  ...inForce,
})
export type RevocationPreview = z.infer<typeof revocationPreview>

export const revocationView = z.strictObject({
  id: revocationId,
  kind: z.enum(['agent', 'join-token', 'token', 'grants', 'label', 'authority']),
  /** An id, `key=value`, or `*`. */
  target: z.string(),
  site: siteScope,
  reason: z.string(),
  revokedBy: principalId.optional(),
  atMs: instant,
  inForce: z.strictObject(inForce),
})
export type RevocationView = z.infer<typeof revocationView>

/** One revocation with what is still owed of it. */
export const revocationDetail = z.strictObject({
  ...revocationView.shape,
  /** Duties that are not done, as in `sluice obligations`; empty when everything is in force. */
  owed: z.array(
    z.strictObject({
      kind: z.string(),
      count,
      /** Why the newest try failed. */
      lastError: z.string().optional(),
    }),
  ),
  /** At most `limits.pageItemsMax` of the exposed jobs. */
  exposed: z.array(jobId).max(limits.pageItemsMax),
})
export type RevocationDetail = z.infer<typeof revocationDetail>
