/** Identifiers: UUIDv7, branded so that one kind can't be passed for another. */
import { z } from 'zod'

const uuidV7 = z.uuidv7()

export const jobId = uuidV7.brand<'JobId'>()
export const agentId = uuidV7.brand<'AgentId'>()
export const leaseId = uuidV7.brand<'LeaseId'>()
export const commandId = uuidV7.brand<'CommandId'>()
export const obligationId = uuidV7.brand<'ObligationId'>()
export const receiveKeyId = uuidV7.brand<'ReceiveKeyId'>()
export const submissionId = uuidV7.brand<'SubmissionId'>()
export const principalId = uuidV7.brand<'PrincipalId'>()
export const tokenId = uuidV7.brand<'TokenId'>()
export const epochId = uuidV7.brand<'EpochId'>()
export const purgeId = uuidV7.brand<'PurgeId'>()
export const approvalId = uuidV7.brand<'ApprovalId'>()
export const legalHoldId = uuidV7.brand<'LegalHoldId'>()
export const revocationId = uuidV7.brand<'RevocationId'>()
export const sweepId = uuidV7.brand<'SweepId'>()
export const findingId = uuidV7.brand<'FindingId'>()
export const alertId = uuidV7.brand<'AlertId'>()
export const infectionId = uuidV7.brand<'InfectionId'>()
export const controlPlaneId = uuidV7.brand<'ControlPlaneId'>()

export type JobId = z.infer<typeof jobId>
export type AgentId = z.infer<typeof agentId>
export type LeaseId = z.infer<typeof leaseId>
export type CommandId = z.infer<typeof commandId>
export type ObligationId = z.infer<typeof obligationId>
export type ReceiveKeyId = z.infer<typeof receiveKeyId>
export type SubmissionId = z.infer<typeof submissionId>
export type PrincipalId = z.infer<typeof principalId>
export type TokenId = z.infer<typeof tokenId>
export type EpochId = z.infer<typeof epochId>
export type PurgeId = z.infer<typeof purgeId>
export type ApprovalId = z.infer<typeof approvalId>
export type LegalHoldId = z.infer<typeof legalHoldId>
export type RevocationId = z.infer<typeof revocationId>
export type SweepId = z.infer<typeof sweepId>
export type FindingId = z.infer<typeof findingId>
export type AlertId = z.infer<typeof alertId>
export type InfectionId = z.infer<typeof infectionId>
export type ControlPlaneId = z.infer<typeof controlPlaneId>
