/** What the operator's HTTP API says of agents and jobs: requests and answers, each with its bounds. */
import { z } from 'zod'
import { agentRole, labels, pageQuery, plainName } from './api.ts'
import { progress } from './api-obligations.ts'
import { errorCodes } from './errors.ts'
import { agentId, jobId, leaseId, obligationId, principalId } from './ids.ts'
import { jobState, sourcePolicy } from './job.ts'
import { limits } from './limits.ts'
import { analyserName, sha256Hex } from './manifest.ts'
import { nodeOffer } from './messages.ts'

const instant = z.int().nonnegative()
const count = z.int().nonnegative()

// ---------------------------------------------------------------- agents

export const agentView = z.strictObject({
  id: agentId,
  name: plainName,
  role: agentRole,
  site: plainName,
  labels,
  connected: z.boolean(),
  joinedAtMs: instant,
  revokedAtMs: instant.optional(),
  connectedAtMs: instant.optional(),
  lastSeenAtMs: instant.optional(),
  build: z.string().optional(),
  /** The agent's clock minus ours when it connected. */
  clockSkewMs: z.int().optional(),
  certificateExpiresAtMs: instant.optional(),
  /** GPU: analysers it may run; left out when any. */
  allowedAnalysers: z.array(analyserName).optional(),
  /** GPU: leases it may hold at once. */
  leasesMax: count,
  /** GPU: what it says it can do; only narrows the two above. */
  offer: nodeOffer.optional(),
})
export type AgentView = z.infer<typeof agentView>

export const agentsQuery = z.strictObject({ ...pageQuery.shape, role: agentRole.optional() })

/** `POST /v1/agents/:id`. What is left out stays as it is. */
export const changeAgentRequest = z.strictObject({
  /** Null allows any. */
  allowedAnalysers: z.array(analyserName).max(64).nullable().optional(),
  leasesMax: count.max(64).optional(),
  labels: labels.optional(),
})
export type ChangeAgentRequest = z.infer<typeof changeAgentRequest>

// ---------------------------------------------------------------- jobs

export const jobView = z.strictObject({
  id: jobId,
  site: plainName,
  captureAgentId: agentId,
  analyser: analyserName,
  state: jobState,
  frozenFrom: jobState.optional(),
  /** Under legal hold since then. */
  heldAtMs: instant.optional(),
  /** Since then it counts as seen by others: a node that was revoked had been given its key. */
  exposedAtMs: instant.optional(),
  mediaCount: count,
  sealedBytes: count,
  sealedHeaderSha256: sha256Hex,
  source: sourcePolicy,
  sealedAtMs: instant,
  announcedAtMs: instant,
  storedAtMs: instant.optional(),
  analysedAtMs: instant.optional(),
  intentAtMs: instant.optional(),
  keysUnusableAtMs: instant.optional(),
  keysUnrecoverableAtMs: instant.optional(),
  objectsAbsentAtMs: instant.optional(),
  deletedAtMs: instant.optional(),
  stateChangedAtMs: instant,
  expiresAtMs: instant.optional(),
  leaseAttempts: count,
  fence: count,
  problem: z.strictObject({ code: z.enum(errorCodes), message: z.string() }).optional(),
})
export type JobView = z.infer<typeof jobView>

export const leaseView = z.strictObject({
  id: leaseId,
  nodeId: agentId,
  fence: z.int().positive(),
  grantedAtMs: instant,
  acceptedAtMs: instant.optional(),
  keyReleasedAtMs: instant.optional(),
  deadlineAtMs: instant,
  endedAtMs: instant.optional(),
  endReason: z.string().optional(),
  wipedAtMs: instant.optional(),
})
export type LeaseView = z.infer<typeof leaseView>

export const obligationView = z.strictObject({
  id: obligationId,
  kind: z.string(),
  state: z.enum(['waiting', 'due', 'done']),
  progress,
  attempts: count,
  nextTryAtMs: instant,
  deadlineAtMs: instant,
  doneAtMs: instant.optional(),
  lastError: z.string().optional(),
})
export type ObligationView = z.infer<typeof obligationView>

/** One job with everything that holds or held a copy, and what is still owed. */
export const jobDetail = z.strictObject({
  ...jobView.shape,
  /** The hold it is under; why is in the audit log. */
  legalHold: z.strictObject({ setBy: principalId, setAtMs: instant }).optional(),
  leases: z.array(leaseView),
  obligations: z.array(obligationView),
  result: z
    .strictObject({
      sealedBytes: count,
      sealedSha256: sha256Hex,
      receivedAtMs: instant,
      deliveredAtMs: instant.optional(),
      expiresAtMs: instant,
      /** Whether the sealed bytes are still here. */
      held: z.boolean(),
    })
    .optional(),
})
export type JobDetail = z.infer<typeof jobDetail>

export const jobsQuery = z.strictObject({
  ...pageQuery.shape,
  state: jobState.optional(),
  site: plainName.optional(),
  agent: agentId.optional(),
  analyser: analyserName.optional(),
})

export const certificateEntry = z.strictObject({
  jobId,
  site: z.string().max(limits.nameCharsMax),
  issuedAtMs: instant,
})
export type CertificateEntry = z.infer<typeof certificateEntry>
