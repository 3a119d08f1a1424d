/** Verifies offline the report of a job that was written off: true words, and no certificate. */
import type { KeyObject } from 'node:crypto'
import { parseCanonicalJson } from '../canonical.ts'
import { limits } from '../limits.ts'
import { type WriteOff, writeOffStatement } from '../write-off.ts'
import { verifyStatement } from './dsse.ts'
import { invalid } from './evidence-problem.ts'
import { requireDistinct, requireOrder } from './verify-signers.ts'

export const writeOffPayloadType = 'application/vnd.sluice.write-off.v1+json'

/**
 * Verifies the exact bytes of a write-off report against one pinned key.
 *
 * @throws SluiceError `evidence.not_canonical`, `evidence.untrusted` or `evidence.invalid`.
 */
export function verifyWriteOff(bytes: Uint8Array, trustedKey: KeyObject): WriteOff {
  if (bytes.length > limits.certificateBytesMax)
    throw invalid(`it is larger than ${limits.certificateBytesMax} bytes`)
  const statement = verifyStatement(parseCanonicalJson(bytes), {
    payloadType: writeOffPayloadType,
    publicKey: trustedKey,
  })
  const parsed = writeOffStatement.safeParse(statement)
  if (!parsed.success) throw invalid('it is no write-off report', parsed.error)
  const { subject, predicate } = parsed.data
  if (subject[0]?.name !== `job:${predicate.jobId}`) throw invalid('it names two jobs')
  requireOrder([predicate.announcedAtMs, predicate.intentAtMs, predicate.writtenOffAtMs])
  requireOrder([predicate.askedAtMs, predicate.writtenOffAtMs])
  if (predicate.askedBy === predicate.approvedBy) throw invalid('one person asked and approved')
  requireDistinct(
    [...predicate.gaps, ...predicate.confirmed].map(({ obligationId }) => obligationId),
    'an obligation is listed twice',
  )
  return predicate
}
