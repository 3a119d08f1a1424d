/** What takes two people: one asks, another, neither having created the other, agrees. */
import { z } from 'zod'
import { plainName, right } from './api.ts'
import { jobId, principalId, purgeId } from './ids.ts'

export const approvalOperation = z.discriminatedUnion('kind', [
  /** Begins a purge that waits for its second person. */
  z.strictObject({ kind: z.literal('purge.begin'), purgeId }),
  z.strictObject({ kind: z.literal('hold.lift'), jobId }),
  /** Gives up on the agents of a purge that can't confirm it any more: it ends in a report. */
  z.strictObject({ kind: z.literal('purge.write-off'), purgeId }),
  /** Gives up on the holders of a job that never came back: `deleted-unconfirmed`. */
  z.strictObject({ kind: z.literal('job.write-off'), jobId }),
  /** Makes a principal with these rights, the role `security` among them; then one token for it. */
  z.strictObject({
    kind: z.literal('security.raise'),
    principal: plainName,
    rights: z.array(right).min(1).max(32),
  }),
  /** One token for a principal with the role `security` that is somebody else. */
  z.strictObject({ kind: z.literal('security.token'), principalId }),
])
export type ApprovalOperation = z.infer<typeof approvalOperation>
