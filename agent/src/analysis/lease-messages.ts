/** What crosses between the agent and the child process of a lease: ciphertext and public facts only. */
import { z } from 'zod'
import { agentId, jobId, leaseId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { isolationLevel, sha256Hex } from '@sluice/protocol/manifest'
import { problem } from '@sluice/protocol/messages'
import { encapsulationBytes } from '@sluice/protocol/sealing/key-envelope'
import { analyserConfig } from './analyser.ts'
import { directoryKinds } from './media-mount.ts'

/** Largest range of ciphertext in one message. */
export const sealedRangeBytesMax = 4 * 1024 ** 2

const bytes = (bytesMax: number) =>
  z.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.byteLength <= bytesMax,
    'must be bytes within their bound',
  )
const count = z.int().nonnegative()

/** Everything a child has to know; it gets nothing by argument, environment or file. */
export const leaseOrder = z.strictObject({
  jobId,
  leaseId,
  fence: z.int().positive(),
  nodeId: agentId,
  sealedBytes: count.max(limits.sealedBytesMax),
  /** The 56-byte header that was announced. */
  sealedHeader: bytes(56),
  analyser: analyserConfig,
  isolation: isolationLevel,
  /** An empty file whose open descriptor marks every process of this lease. */
  leash: z.string(),
  /** The directory in memory that the child mounts for an analyser that wants one. */
  mediaMount: z
    .strictObject({
      kind: z.enum(directoryKinds),
      folder: z.string(),
      bytesMax: count,
      filesMax: count,
    })
    .optional(),
})
export type LeaseOrder = z.infer<typeof leaseOrder>

/** From the agent to the child. */
export const toChild = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('order'), order: leaseOrder }),
  /** The job key, sealed to the child's public key. */
  z.strictObject({ type: z.literal('envelope'), envelope: bytes(4096), deadlineAtMs: count }),
  z.strictObject({ type: z.literal('range'), id: count, sealed: bytes(sealedRangeBytesMax) }),
  z.strictObject({ type: z.literal('no-range'), id: count, problem }),
  z.strictObject({
    type: z.literal('statement'),
    statement: bytes(limits.receiptBytesMax),
    certificate: bytes(limits.receiptBytesMax),
  }),
])
export type ToChild = z.infer<typeof toChild>

/** From the child to the agent. */
export const fromChild = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('public-key'), publicKey: bytes(encapsulationBytes + 96) }),
  z.strictObject({
    type: z.literal('read'),
    id: count,
    offset: count,
    length: count.max(sealedRangeBytesMax),
  }),
  /** One medium went through the analyser: counts for the log, nothing of its content. */
  z.strictObject({
    type: z.literal('analysed'),
    medium: count,
    bytes: count,
    outputBytes: count,
    elapsedMs: count,
  }),
  z.strictObject({ type: z.literal('sign'), resultSha256: sha256Hex, finishedAtMs: count }),
  z.strictObject({ type: z.literal('result'), sealed: bytes(limits.sealedResultBytesMax) }),
  z.strictObject({ type: z.literal('failed'), problem }),
])
export type FromChild = z.infer<typeof fromChild>
