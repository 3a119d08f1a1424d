/** The forensic bundle of a purge: a tar whose last entry is a signed statement about all others. */
import { z } from 'zod'
import { auditEvent } from './audit-event.ts'
import { purgeId } from './ids.ts'
import { limits } from './limits.ts'
import { sha256Hex } from './manifest.ts'
import { makePurgeStatement, purgeStatementOf } from './statement.ts'

/** The last entry. */
export const bundleManifestName = 'MANIFEST.json'
/** The first entry: the purge's certificate, or its report. */
export const bundleDocumentName = 'purge.json'

/** Members of an audit event's detail that may hold words of a person; a bundle has their digests. */
export const personalDetails = ['reason', 'target', 'why'] as const

/** One line of `audit-N.jsonl`. */
export const bundleEvent = z.strictObject({
  /** Without what is in `redacted`. */
  event: auditEvent,
  /** Of the whole event: what the next one names as `previousSha256`. */
  sha256: sha256Hex,
  /** SHA-256 of each text that was left out of `detail`, by its name; at least one. */
  redacted: z
    .partialRecord(z.enum(personalDetails), sha256Hex)
    .refine((left) => Object.keys(left).length > 0)
    .optional(),
})
export type BundleEvent = z.infer<typeof bundleEvent>

/** The subject's digest is `filesSha256`. */
export const purgeBundleStatement = purgeStatementOf(
  'urn:sluice:purge-bundle:1',
  z.strictObject({
    purgeId,
    /** Entries before the manifest. */
    filesCount: z.int().positive(),
    /** SHA-256 over `<SHA-256> <name>` of each entry in order, each with a line feed. */
    filesSha256: sha256Hex,
    builtAtMs: z.int().nonnegative(),
    /** Of the control plane. */
    version: z.string().max(limits.nameCharsMax),
    /** Of the configuration in force, which holds no secrets: whether two bundles saw the same. */
    configSha256: sha256Hex,
  }),
)
export type PurgeBundle = z.infer<typeof purgeBundleStatement>['predicate']

export function purgeBundleOf(predicate: PurgeBundle) {
  return makePurgeStatement('urn:sluice:purge-bundle:1', predicate, predicate.filesSha256)
}
