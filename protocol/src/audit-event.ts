/** Audit events: who did what to what, one per state change, in a chain that shows tampering. */
import { z } from 'zod'
import { agentId, jobId, principalId } from './ids.ts'
import { limits } from './limits.ts'
import { sha256Hex } from './manifest.ts'

export const auditEventTypes = [
  'control-plane.started',
  'principal.created',
  'token.created',
  'token.revoked',
  'join-token.created',
  'join-token.used',
  'join-token.refused',
  'agent.joined',
  'agent.connected',
  'agent.disconnected',
  'agent.certificate-renewed',
  'agent.revoked',
  'agent.changed',
  'job.state-changed',
  'job.result-delivered',
  'lease.granted',
  'lease.key-released',
  'lease.ended',
  'receipt.accepted',
  'receipt.refused',
  'epoch.rolled',
  'epoch.lost',
  'certificate.issued',
  'obligation.overdue',
  'access.denied',
  'approval.asked',
  'approval.given',
  'approval.refused',
  'approval.expired',
  'job.held',
  'job.hold-lifted',
  'job.exposed',
  'job.written-off',
  'purge.requested',
  'purge.begun',
  'purge.break-glass',
  'purge.concluded',
  'purge.written-off',
  'revocation.made',
  'authority.added',
  'authority.retired',
  'sweep.ended',
  'orphan.quarantined',
  'orphan.deleted',
  'alert.raised',
  'audit-sink.failed',
  'audit-sink.recovered',
] as const
export const auditEventType = z.enum(auditEventTypes)
export type AuditEventType = z.infer<typeof auditEventType>

/** Who acted: a named principal, an agent, or the system by itself. */
export const actor = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('principal'), id: principalId }),
  z.strictObject({ kind: z.literal('agent'), id: agentId }),
  z.strictObject({ kind: z.literal('system') }),
])
export type Actor = z.infer<typeof actor>

export const auditEvent = z.strictObject({
  /** 1, 2, 3 … without gaps. */
  seq: z.int().positive(),
  atMs: z.int().nonnegative(),
  type: auditEventType,
  actor,
  site: z.string().max(limits.nameCharsMax),
  jobId: jobId.optional(),
  agentId: agentId.optional(),
  /** Flat facts: ids, states, codes and counts; never content, never names of files. */
  detail: z.record(
    z.string().max(64),
    z.union([z.string().max(limits.errorTextCharsMax), z.int(), z.boolean()]),
  ),
  /** SHA-256 of the previous event's canonical bytes; zeros for the first. */
  previousSha256: sha256Hex,
})
export type AuditEvent = z.infer<typeof auditEvent>
