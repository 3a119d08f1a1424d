/** Verifies any signed document of the control plane, and says what it is: this is `sluice verify`. */
import type { KeyObject } from 'node:crypto'
import { parseCanonicalJson } from '../canonical.ts'
import { limits } from '../limits.ts'
import type { PurgeCertificate, PurgeReport } from '../purge-certificate.ts'
import type { WriteOff } from '../write-off.ts'
import { invalid } from './evidence-problem.ts'
import { type CertificateSummary, verifyCertificate } from './verify-certificate.ts'
import {
  purgeCertificatePayloadType,
  purgeReportPayloadType,
  verifyPurgeCertificate,
  verifyPurgeReport,
} from './verify-purge.ts'
import { verifyWriteOff, writeOffPayloadType } from './verify-write-off.ts'

/** Only the first two are certificates; the others say what is missing. */
export type VerifiedDocument =
  | { kind: 'deletion-certificate'; facts: CertificateSummary }
  | { kind: 'purge-certificate'; facts: PurgeCertificate }
  | { kind: 'purge-report'; facts: PurgeReport }
  | { kind: 'write-off'; facts: WriteOff }

/**
 * @param bytes The file, byte for byte.
 * @param trustedKey The evidence key's public half; never taken from the file.
 * @throws SluiceError `evidence.not_canonical`, `evidence.untrusted`, `evidence.incomplete` or
 * `evidence.invalid`.
 */
export function verifyDocument(bytes: Uint8Array, trustedKey: KeyObject): VerifiedDocument {
  if (bytes.length > limits.purgeCertificateBytesMax)
    throw invalid(`it is larger than ${limits.purgeCertificateBytesMax} bytes`)
  // Believed of the file is only how it wants to be judged.
  switch (claimedTypeOf(bytes)) {
    case purgeCertificatePayloadType:
      return { kind: 'purge-certificate', facts: verifyPurgeCertificate(bytes, trustedKey) }
    case purgeReportPayloadType:
      return { kind: 'purge-report', facts: verifyPurgeReport(bytes, trustedKey) }
    case writeOffPayloadType:
      return { kind: 'write-off', facts: verifyWriteOff(bytes, trustedKey) }
    default:
      return { kind: 'deletion-certificate', facts: verifyCertificate(bytes, trustedKey) }
  }
}

function claimedTypeOf(bytes: Uint8Array): unknown {
  const envelope = parseCanonicalJson(bytes)
  if (typeof envelope !== 'object' || envelope === null) return undefined
  return (envelope as { readonly [key: string]: unknown })['payloadType']
}
