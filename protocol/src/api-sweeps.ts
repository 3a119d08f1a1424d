/** What the operator's HTTP API says of sweeps and what they found. */
import { z } from 'zod'
import { pageQuery } from './api.ts'
import { agentId, findingId, jobId, sweepId } from './ids.ts'
import { sweepFindingKind } from './sweep.ts'

const instant = z.int().nonnegative()

/** `POST /v1/sweeps`. A dry run looks and reports, and changes nothing else. */
export const sweepRequest = z.strictObject({ dryRun: z.boolean().default(false) })

export const sweepView = z.strictObject({
  id: sweepId,
  trigger: z.enum(['daily', 'asked']),
  dryRun: z.boolean(),
  state: z.enum(['running', 'ended', 'failed']),
  startedAtMs: instant,
  endedAtMs: instant.optional(),
  /**
   * How much was seen (`jobs`, `objects`, `versions`, `uploads`, `spools`, `leases`, `keyRows`,
   * `epochKeys`, `foreign`), what was found by its kind, and what could not be looked at
   * (`placesNotSeen`, `agentsNotSeen`): a sweep with one of those is no clean one.
   */
  counts: z.record(z.string(), z.int()),
})
export type SweepView = z.infer<typeof sweepView>

export const findingView = z.strictObject({
  id: findingId,
  /** The newest sweep that saw it. */
  sweepId,
  kind: sweepFindingKind,
  subject: z.string(),
  agentId: agentId.optional(),
  jobId: jobId.optional(),
  state: z.enum(['quarantined', 'reported', 'kept', 'deleted', 'gone']),
  firstSeenAtMs: instant,
  lastSeenAtMs: instant,
  /** It is deleted after this. */
  graceUntilMs: instant.optional(),
  endedAtMs: instant.optional(),
})
export type FindingView = z.infer<typeof findingView>

/** `GET /v1/sweep-findings`. */
export const findingsQuery = z.strictObject({
  ...pageQuery.shape,
  sweep: sweepId.optional(),
  /** `true`: only what is still there. */
  open: z.enum(['true']).optional(),
})
