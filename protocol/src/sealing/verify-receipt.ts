/** Accepts a receipt only for exactly what it was asked for, signed by exactly whom it was asked from. */
import type { KeyObject } from 'node:crypto'
import { SluiceError } from '../errors.ts'
import {
  type Holder,
  type HolderKind,
  type Receipt,
  type receiptMethods,
  receiptStatement,
} from '../receipt.ts'
import { verifyStatement } from './dsse.ts'

export const receiptPayloadType = 'application/vnd.sluice.receipt.v1+json'

/** How each kind of holder may have wiped its copy. */
export const methodsOf: Readonly<Record<HolderKind, readonly (typeof receiptMethods)[number][]>> = {
  'capture-spool': ['unlink', 'never-held'],
  'gpu-lease': ['process-exit', 'never-held'],
  'object-store': ['object-delete'],
  'object-replica': ['object-delete'],
  'job-key': ['epoch-roll'],
  'result-blob': ['object-delete'],
}

/** What a receipt must say to count. */
export type ExpectedReceipt = {
  publicKey: KeyObject
  jobId: string
  obligationId: string
  holder: Holder
  /** Both for a lease, neither for any other holder. */
  leaseId?: string | undefined
  fence?: number | undefined
  /** SHA-256 of the 56-byte header, hex. */
  sealedHeaderSha256: string
}

/**
 * Verifies a receipt.
 *
 * @returns What it says.
 * @throws SluiceError `evidence.untrusted` when another key signed it, `evidence.not_canonical`,
 * `evidence.invalid` when it is about anything else than what is expected.
 */
export function verifyReceipt(envelope: unknown, expected: ExpectedReceipt): Receipt {
  const { publicKey } = expected
  const statement = verifyStatement(envelope, { payloadType: receiptPayloadType, publicKey })
  const parsed = receiptStatement.safeParse(statement)
  if (!parsed.success) throw refused('it is no receipt', parsed.error)
  const { subject, predicate } = parsed.data
  const about = subject[0]
  if (about?.name !== `job:${expected.jobId}` || predicate.jobId !== expected.jobId)
    throw refused('it is about another job')
  if (about.digest.sha256 !== expected.sealedHeaderSha256)
    throw refused('it is about another sealed archive')
  if (predicate.obligationId !== expected.obligationId)
    throw refused('it is for another obligation')
  if (predicate.holder.kind !== expected.holder.kind || predicate.holder.id !== expected.holder.id)
    throw refused('it is from another holder')
  if (predicate.holder.place !== expected.holder.place) throw refused('it is about another place')
  if (predicate.leaseId !== expected.leaseId || predicate.fence !== expected.fence)
    throw refused('it is about another lease')
  if (!methodsOf[predicate.holder.kind].includes(predicate.method))
    throw refused(`a ${predicate.holder.kind} is not wiped by ${predicate.method}`)
  if (predicate.wipedAtMs < predicate.startedAtMs) throw refused('it ends before it begins')
  return predicate
}

function refused(why: string, cause?: unknown): SluiceError {
  return new SluiceError('evidence.invalid', `the receipt does not count: ${why}`, { cause })
}
