/** What the operator's HTTP API says of purges: what one would hit, and how far one has come. */
import { z } from 'zod'
import { plainName, siteScope } from './api.ts'
import { agentId, approvalId, jobId, principalId, purgeId } from './ids.ts'
import { limits } from './limits.ts'
import { purgeScope } from './purge.ts'

const instant = z.int().nonnegative()
const count = z.int().nonnegative()

/** `POST /v1/purges`. */
export const purgeRequest = z.strictObject({
  scope: purgeScope,
  reason: z.string().trim().min(1).max(limits.errorTextCharsMax),
  /** Shows what it would hit and changes nothing. */
  dryRun: z.boolean().default(false),
  /** Begins at once and alone, whatever its size; everybody hears of it. */
  breakGlass: z.boolean().default(false),
  /** Destroys held jobs too; always takes two people. */
  includingHeld: z.boolean().default(false),
})

/** An agent a purge reaches. */
const purgeAgent = z.strictObject({
  id: agentId,
  name: plainName,
  role: z.enum(['capture', 'gpu']),
  connected: z.boolean(),
})

/** What a purge of this scope would hit now. Lists end after `limits.pageItemsMax`; counts do not. */
export const purgePreview = z.strictObject({
  dryRun: z.literal(true),
  scope: purgeScope,
  site: siteScope,
  jobs: count,
  /** Jobs by the state they are in. */
  jobsByState: z.record(z.string(), count),
  heldSkipped: z.array(jobId).max(limits.pageItemsMax),
  heldSkippedCount: count,
  agents: z.array(purgeAgent).max(limits.pageItemsMax),
  agentsCount: count,
  /** Revoked capture hosts of the scope without a job in it: nobody can order or ask them. */
  unasked: z.array(agentId).max(limits.pageItemsMax),
  unaskedCount: count,
  /** Leases that would end, with the instant beyond which their nodes have stopped by themselves. */
  leases: z
    .array(z.strictObject({ jobId, nodeId: agentId, overAtMs: instant, keyReleased: z.boolean() }))
    .max(limits.pageItemsMax),
  leasesCount: count,
  receiveKeys: count,
  /** Jobs that the asker, or who is the same person, purged alone within the last 24 hours. */
  destroyedAlone: count,
  /** Whether somebody else would have to approve it. */
  needsApproval: z.boolean(),
})
export type PurgePreview = z.infer<typeof purgePreview>

/** Duties of a purge by how far each has come; nothing counts twice. */
const dutyCounts = z.strictObject({
  /** What is owed, as in `sluice obligations`. */
  kind: z.string(),
  owed: count,
  requested: count,
  delivered: count,
  done: count,
  proven: count,
})

/** An agent that has not confirmed. */
const silentAgent = z.strictObject({
  id: agentId,
  name: plainName,
  role: z.enum(['capture', 'gpu']),
  connected: z.boolean(),
  lastSeenAtMs: instant.optional(),
  /** GPU: no key it was given for this scope works after this instant. */
  leasesOverAtMs: instant.optional(),
})

export const purgeView = z.strictObject({
  id: purgeId,
  scope: purgeScope,
  site: siteScope,
  reason: z.string(),
  state: z.enum(['waiting', 'running', 'concluded', 'refused']),
  requestedBy: principalId,
  requestedAtMs: instant,
  approvalId: approvalId.optional(),
  approvedBy: principalId.optional(),
  breakGlass: z.boolean(),
  includingHeld: z.boolean(),
  /** The steps in their order; one that is left out has not been reached. */
  intentAtMs: instant.optional(),
  keysUnusableAtMs: instant.optional(),
  ordersDurableAtMs: instant.optional(),
  keysUnrecoverableAtMs: instant.optional(),
  objectsAbsentAtMs: instant.optional(),
  concludedAtMs: instant.optional(),
  /** No key handed out before the intent works on any node after this instant. */
  leasesOverAtMs: instant.optional(),
  jobs: count,
  heldSkipped: count,
  agents: count,
  /** Revoked capture hosts of its scope that nobody could order or ask. */
  unasked: count,
  leases: count,
  receiveKeys: count,
})
export type PurgeView = z.infer<typeof purgeView>

/** One purge with what is still owed. */
export const purgeDetail = z.strictObject({
  ...purgeView.shape,
  jobsDeleted: count,
  duties: z.array(dutyCounts),
  /** Agents that have not confirmed, at most `limits.pageItemsMax` of them. */
  silent: z.array(silentAgent).max(limits.pageItemsMax),
  silentCount: count,
})
export type PurgeDetail = z.infer<typeof purgeDetail>
