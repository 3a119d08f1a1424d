/** Emergency purge: its scope, and the order an agent gets. */
import { z } from 'zod'
import { agentId, jobId } from './ids.ts'
import { limits } from './limits.ts'

const instant = z.int().nonnegative()
const label = z.string().min(1).max(limits.labelCharsMax)

/** What a purge destroys: every job that fits, and with it every copy and key there ever was of it. */
export const purgeScope = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('job'), jobId }),
  /** Jobs captured by this agent, or, for a GPU node, jobs it ever held a lease of. */
  z.strictObject({ kind: z.literal('agent'), agentId }),
  z.strictObject({ kind: z.literal('site'), site: z.string().min(1).max(limits.nameCharsMax) }),
  /** Jobs captured by agents that carry this label. */
  z.strictObject({ kind: z.literal('label'), key: label, value: label }),
  /** Jobs with anything in this store, by its kind. */
  z.strictObject({ kind: z.literal('store'), store: z.enum(['directory', 's3']) }),
  /** Jobs sealed in `fromMs ≤ t < untilMs`, by the capture host's clock. */
  z
    .strictObject({ kind: z.literal('time'), fromMs: instant, untilMs: instant })
    .refine(({ fromMs, untilMs }) => fromMs < untilMs, 'fromMs must lie before untilMs'),
  z.strictObject({ kind: z.literal('everything') }),
])
export type PurgeScope = z.infer<typeof purgeScope>
