/** Who signed the receipts inside a document, and in which time their word counted. */
import { z } from 'zod'
import { agentId } from './ids.ts'
import { sha256Hex } from './manifest.ts'

const instant = z.int().nonnegative()

/** The document's own signature vouches for each of them. */
export const evidenceSigner = z.strictObject({
  keyId: sha256Hex,
  /** SubjectPublicKeyInfo in DER, base64. */
  publicKey: z.base64().max(128),
  holderId: z.union([agentId, sha256Hex]),
  /**
   * The agent's identity was good in `notBeforeMs ≤ t < notAfterMs`, as the control plane knew when
   * it accepted the newest receipt. Both for every agent; neither for the evidence key itself, which
   * has no end.
   */
  notBeforeMs: instant.optional(),
  notAfterMs: instant.optional(),
  /** Revoked since then: what was confirmed from then on does not count. */
  revokedAtMs: instant.optional(),
})
export type EvidenceSigner = z.infer<typeof evidenceSigner>
