/** Joins the parts of a job's life for the composition root. */
import type { AgentRequest, Heartbeat } from '@sluice/protocol/messages'
import type { Actor } from '@sluice/protocol/audit-event'
import type { AgentId, JobId } from '@sluice/protocol/ids'
import type { Transaction } from '../database/database.ts'
import type { RenewedLeases } from '../fleet/fleet.ts'
import type { Answer, LinkAgent } from '../fleet/link.ts'
import { expireJob, noticeExpiry } from './delete.ts'
import type { JobDeps } from './deps.ts'
import { startDispatch } from './dispatch.ts'
import { abortUploadsOf, holdJobsOf } from './hold.ts'
import { renewLeases } from './leases.ts'
import { answerRequest, type OtherRequests } from './requests.ts'

export type Jobs = {
  /** Works off a request of the channel. */
  answer: (
    agent: LinkAgent,
    request: AgentRequest,
    attachment: Buffer | undefined,
  ) => Promise<Answer>
  renewLeases: (agent: LinkAgent, heartbeat: Heartbeat) => Promise<RenewedLeases>
  /** Workers of the duties `job.expire` and `job.expiry-notice`; settled once they return. */
  expireJob: (job: JobId) => Promise<void>
  noticeExpiry: (job: JobId) => Promise<void>
  /** For a revocation. */
  holdJobs: (tx: Transaction, held: { agentId: AgentId; actor: Actor }) => Promise<void>
  abortUploads: (agent: AgentId) => Promise<void>
  /** Starts to give stored jobs to connected nodes, until it is disposed of. */
  startDispatch: (fleet: { connected: () => readonly AgentId[] }) => AsyncDisposable
}

export function createJobs(deps: JobDeps & OtherRequests): Jobs {
  return {
    answer: (agent, request, attachment) => answerRequest(deps, agent, request, attachment),
    renewLeases: (agent, heartbeat) => renewLeases(deps, agent, heartbeat),
    expireJob: (job) => expireJob(deps, job),
    noticeExpiry: (job) => noticeExpiry(deps, job),
    holdJobs: (tx, held) => holdJobsOf(deps, tx, held),
    abortUploads: (agent) => abortUploadsOf(deps, agent),
    startDispatch: (fleet) => startDispatch({ ...deps, connected: fleet.connected }),
  }
}
