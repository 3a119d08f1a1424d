/** What takes two people: one asks, another, neither having created the other, agrees. */
import { z } from 'zod'
import { jobId, principalId, purgeId } from './ids.ts'
import { limits } from './limits.ts'

const name = z.string().min(1).max(limits.nameCharsMax)

export const approvalOperation = z.discriminatedUnion('kind', [
  /** Begins a purge that waits for its second person. */
  z.strictObject({ kind: z.literal('purge.begin'), purgeId }),
  z.strictObject({ kind: z.literal('hold.lift'), jobId }),
  /** Gives up on the holders of a job that never came back: `deleted-unconfirmed`. */
  z.strictObject({ kind: z.literal('job.write-off'), jobId }),
  /** Makes a principal with the role `security`, or gives that role to one that exists. */
  z.strictObject({ kind: z.literal('security.raise'), principal: name, site: name }),
  /** A token for a principal with the role `security` that is somebody else. */
  z.strictObject({ kind: z.literal('security.token'), principalId }),
])
export type ApprovalOperation = z.infer<typeof approvalOperation>
