/** What the operator's HTTP API says of everything that is owed. */
import { z } from 'zod'
import { pageQuery } from './api.ts'
import { errorCodes } from './errors.ts'
import { agentId, jobId, leaseId, obligationId, purgeId } from './ids.ts'

const instant = z.int().nonnegative()

/**
 * How far a duty has come; each is in exactly one, and none is shown as another. `owed`: recorded,
 * not asked for yet; `requested`: an order is a row, or a try was made; `delivered`: the agent
 * acknowledged the order durably; `done`: the holder signed, or was looked at again; `proven`: its
 * receipt is inside an issued certificate.
 */
export const progress = z.enum(['owed', 'requested', 'delivered', 'done', 'proven'])
export type Progress = z.infer<typeof progress>

export const dutyView = z.strictObject({
  id: obligationId,
  kind: z.string(),
  site: z.string(),
  progress,
  jobId: jobId.optional(),
  /** What it is about where that is no job: a purge, a revocation, an alert, a finding; or a replica. */
  subjectId: z.string().optional(),
  agentId: agentId.optional(),
  leaseId: leaseId.optional(),
  attempts: z.int().nonnegative(),
  createdAtMs: instant,
  nextTryAtMs: instant,
  deadlineAtMs: instant,
  /** Only of one that is due, not done and not given up. */
  overdue: z.boolean(),
  doneAtMs: instant.optional(),
  /** Two people gave up on its holder; it stays owed. */
  writtenOffAtMs: instant.optional(),
  lastErrorCode: z.enum(errorCodes).optional(),
  lastError: z.string().optional(),
})
export type DutyView = z.infer<typeof dutyView>

const flag = z.enum(['true'])

/** `GET /v1/obligations`, oldest first: `after` is the last id of the page before. */
export const obligationsQuery = z.strictObject({
  ...pageQuery.shape,
  after: obligationId.optional(),
  /** `true`: also what is done and proven. */
  all: flag.optional(),
  overdue: flag.optional(),
  kind: z.string().max(64).optional(),
  job: jobId.optional(),
  agent: agentId.optional(),
  purge: purgeId.optional(),
})
