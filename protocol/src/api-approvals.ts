/** What the operator's HTTP API says of what takes two people. */
import { z } from 'zod'
import { pageQuery, reasonText, siteScope } from './api.ts'
import { approvalOperation } from './approval.ts'
import { approvalId, principalId, tokenId } from './ids.ts'

const instant = z.int().nonnegative()

/** `expired` counts as a refusal that nobody spoke. */
export const approvalState = z.enum(['open', 'given', 'refused', 'expired'])
export type ApprovalState = z.infer<typeof approvalState>

export const approvalView = z.strictObject({
  id: approvalId,
  operation: approvalOperation,
  /** Where it counts: who decides has the role `security` there. */
  site: siteScope,
  /** Nobody but the asker has that role on all of `site`: whoever has it on any site decides. */
  anySite: z.boolean(),
  reason: z.string(),
  askedBy: principalId,
  /** Name of who asked. */
  asker: z.string().optional(),
  /** With which token: when that is revoked, this is refused. */
  askedByToken: tokenId,
  askedAtMs: instant,
  expiresAtMs: instant,
  state: approvalState,
  decidedBy: principalId.optional(),
  /** Name of who decided. */
  decider: z.string().optional(),
  decidedAtMs: instant.optional(),
  /** When the one token was made that it allowed. */
  usedAtMs: instant.optional(),
})
export type ApprovalView = z.infer<typeof approvalView>

/** The answer (202) to what waits for a second person. */
export const approvalAsked = z.strictObject({ approval: approvalView })
export type ApprovalAsked = z.infer<typeof approvalAsked>

export const approvalsQuery = z.strictObject({
  ...pageQuery.shape,
  state: approvalState.optional(),
})

/** The body of every request that needs a reason and nothing else. */
export const reasonRequest = z.strictObject({ reason: reasonText })
