/** The forensic bundle of a purge: a tar whose last entry is a signed statement about all others. */
import { z } from 'zod'
import { purgeId } from './ids.ts'
import { limits } from './limits.ts'
import { sha256Hex } from './manifest.ts'
import { makePurgeStatement, purgeStatementOf } from './statement.ts'

/** The last entry. */
export const bundleManifestName = 'MANIFEST.json'
/** The first entry: the purge's certificate, or its report. */
export const bundleDocumentName = 'purge.json'

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
  }),
)
export type PurgeBundle = z.infer<typeof purgeBundleStatement>['predicate']

export function purgeBundleOf(predicate: PurgeBundle) {
  return makePurgeStatement('urn:sluice:purge-bundle:1', predicate, predicate.filesSha256)
}
