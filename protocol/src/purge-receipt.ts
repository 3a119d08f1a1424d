/** Purge receipts: an agent's signed statement that what a purge order named is wiped. */
import { z } from 'zod'
import { agentId, obligationId, purgeId } from './ids.ts'
import { limits } from './limits.ts'
import { makePurgeStatement, purgeStatementOf } from './statement.ts'

const count = z.int().nonnegative()
const instant = z.int().nonnegative()

/** An in-toto Statement v1 about one purge order, named by the SHA-256 of its canonical JSON. */
export const purgeReceiptStatement = purgeStatementOf(
  'urn:sluice:purge-receipt:1',
  z.strictObject({
    purgeId,
    obligationId,
    agentId,
    /** Whether the order was for all that this host holds. */
    everything: z.boolean(),
    spoolsWiped: count,
    /** Drafts that the control plane may never have heard of. */
    draftsWiped: count,
    leasesEnded: count,
    resultsWiped: count,
    /** What was looked at before signing, in words: `spool empty`, `children reaped`. */
    checked: z.array(z.string().max(limits.nameCharsMax)).min(1).max(16),
    startedAtMs: instant,
    wipedAtMs: instant,
  }),
)
export type PurgeReceiptStatement = z.infer<typeof purgeReceiptStatement>
export type PurgeReceipt = PurgeReceiptStatement['predicate']

/** @param orderSha256 SHA-256 of the order as canonical JSON, hex (`orderSha256Of`). */
export function purgeReceiptOf(predicate: PurgeReceipt, orderSha256: string) {
  return makePurgeStatement('urn:sluice:purge-receipt:1', predicate, orderSha256)
}
