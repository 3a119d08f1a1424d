/** What the operator's HTTP API says of the certificate authority and its replacement. */
import { z } from 'zod'
import { agentId, revocationId } from './ids.ts'
import { limits } from './limits.ts'
import { sha256Hex } from './manifest.ts'

/** `POST /v1/authority/rotate`. */
export const rotateRequest = z.strictObject({
  reason: z.string().trim().min(1).max(limits.errorTextCharsMax),
  /**
   * Retires the old authority by itself: as soon as every connected agent has adopted the new one,
   * and after this many minutes whoever has not. Left out: a person retires it.
   */
  retireWithinMinutes: z.int().min(1).max(10_080).optional(),
})

/** `POST /v1/authority/retire`. */
export const retireRequest = z.strictObject({
  /** Also while agents have not adopted the new authority; these have to join anew. */
  abandon: z.boolean().default(false),
})

export const authorityView = z.strictObject({
  /** The authority that issues. */
  sha256: sha256Hex,
  /** All that are trusted, the issuing one first. */
  trusted: z.array(z.strictObject({ sha256: sha256Hex, notAfterMs: z.int() })),
  /** The newest replacement, and who has not adopted it yet. */
  rotation: z
    .strictObject({
      revocationId,
      beganAtMs: z.int(),
      waitingFor: z.array(z.strictObject({ agentId, name: z.string() })).max(1000),
      waitingForCount: z.int().nonnegative(),
    })
    .optional(),
})
export type AuthorityView = z.infer<typeof authorityView>
