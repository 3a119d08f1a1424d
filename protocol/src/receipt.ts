/** Receipts: a holder's signed statement that its copy of a job is wiped. */
import { z } from 'zod'
import { agentId, jobId, leaseId, obligationId } from './ids.ts'
import { limits } from './limits.ts'
import { isolationLevel, sha256Hex } from './manifest.ts'
import { jobStatementOf, makeJobStatement } from './statement.ts'

/** Where plaintext lived on a node, best first; DESIGN "Plaintext in memory". */
export const memoryLevel = z.enum([
  'no-swap',
  'tmpfs-noswap',
  'cgroup-swap-max-0',
  'ramfs',
  'swap-allowed',
])
export type MemoryLevel = z.infer<typeof memoryLevel>

export const holderKinds = [
  'capture-spool',
  'gpu-lease',
  'object-store',
  /** A bucket that the operator's own replication copies to; `place` names it. */
  'object-replica',
  'job-key',
  'result-blob',
] as const
export const holderKind = z.enum(holderKinds)
export type HolderKind = z.infer<typeof holderKind>

/** What a replica is called: one short word, the same for as long as it is the same bucket. */
export const replicaName = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,31}$/, 'not the name of a replica')

/** Who held a copy: an agent, or the control plane (`id` is then the evidence key's id). */
export const holder = z.strictObject({
  kind: holderKind,
  id: z.union([agentId, sha256Hex]),
  /** Which replica; every `object-replica` has it, and nothing else. */
  place: replicaName.optional(),
})
export type Holder = z.infer<typeof holder>

export const receiptMethods = [
  /** The spool's files were unlinked and looked for again. */
  'unlink',
  /** The process that held key and plaintext ended and was reaped; its mount is gone. */
  'process-exit',
  /** Every version, marker and incomplete upload was deleted and looked for again. */
  'object-delete',
  /** The epoch key the job key was wrapped under was destroyed after a roll. */
  'epoch-roll',
  /** The holder was told but never had the copy. */
  'never-held',
] as const

/** An in-toto Statement v1 about one job and one obligation. */
export const receiptStatement = jobStatementOf(
  'urn:sluice:receipt:1',
  z.strictObject({
    jobId,
    obligationId,
    holder,
    leaseId: leaseId.optional(),
    fence: z.int().positive().optional(),
    method: z.enum(receiptMethods),
    /** What was looked at before signing, in words: `child reaped`, `mount gone`. */
    checked: z.array(z.string().max(limits.nameCharsMax)).min(1).max(16),
    memoryLevel: memoryLevel.optional(),
    isolation: isolationLevel.optional(),
    startedAtMs: z.int().nonnegative(),
    wipedAtMs: z.int().nonnegative(),
  }),
)
export type ReceiptStatement = z.infer<typeof receiptStatement>
export type Receipt = ReceiptStatement['predicate']

/** The statement of a receipt; `sealedHeaderSha256` names the ciphertext that is gone. */
export function receiptOf(predicate: Receipt, sealedHeaderSha256: string) {
  return makeJobStatement('urn:sluice:receipt:1', predicate, sealedHeaderSha256)
}
