/**
 * Takes in purge receipts: each for exactly the order its agent was given, by a purge or to end an
 * orphan.
 */
import { createHash, createPublicKey } from 'node:crypto'
import { canonicalJson } from '@sluice/protocol/canonical'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { type AgentId, purgeId } from '@sluice/protocol/ids'
import { purgeReceiptStatement } from '@sluice/protocol/purge-receipt'
import { type DsseEnvelope, keyIdOf } from '@sluice/protocol/sealing/dsse'
import { orderSha256Of, verifyPurgeReceipt } from '@sluice/protocol/sealing/verify-purge-receipt'
import { appendAudit } from '../audit/store.ts'
import type { Transaction } from '../database/database.ts'
import { claimOf, type ReceiptParts, recordRefusal } from '../deletion/receipts.ts'
import { signerNow } from '../deletion/signer.ts'
import {
  addReceipt,
  bringSubjectForward,
  markDone,
  obligationById,
  receiptOfObligation,
} from '../deletion/store.ts'
import { commandById } from '../fleet/store.ts'
import { lookNow } from './store.ts'

/**
 * Takes in an agent's purge receipt, durable together with the settled duty. The same again is
 * accepted again.
 *
 * @param agentId Whom the link is authenticated as.
 * @throws SluiceError `evidence.untrusted`, `evidence.not_canonical`, `evidence.invalid`;
 * `request.not_found` for a duty that nobody owes.
 */
export async function acceptPurgeReceipt(
  parts: ReceiptParts,
  agentId: AgentId,
  envelope: DsseEnvelope,
): Promise<void> {
  try {
    await parts.database.write((tx) => accept(parts, tx, { agentId, envelope }))
  } catch (error) {
    if (isSluiceError(error) && error.code !== 'host.disk_full')
      await recordRefusal(parts, agentId, error)
    throw error
  }
}

async function accept(
  parts: ReceiptParts,
  tx: Transaction,
  sent: { agentId: AgentId; envelope: DsseEnvelope },
): Promise<void> {
  const { agentId, envelope } = sent
  const atMs = parts.now()
  const signer = await signerNow(tx.sql, agentId, atMs)
  const { obligationId } = claimOf(envelope, purgeReceiptStatement)
  const duty = await obligationById(tx.sql, obligationId)
  const isOrphan = duty?.kind === 'orphan.delete'
  const isOurs = isOrphan || duty?.kind === 'purge.agent'
  if (!duty || !isOurs || duty.agentId !== agentId || duty.commandId === null)
    throw new SluiceError('request.not_found', 'this agent owes no such confirmation')
  const order = (await commandById(tx.sql, duty.commandId))?.body
  if (order?.type !== 'purge')
    throw new SluiceError('evidence.invalid', 'the order of this duty is no purge')
  const key = createPublicKey({ key: signer.publicKey, format: 'der', type: 'spki' })
  const receipt = verifyPurgeReceipt(envelope, {
    publicKey: key,
    agentId,
    // That of the purge; an orphan's order has the id of what was found.
    purgeId: purgeId.parse(duty.subjectId),
    obligationId: duty.id,
    everything: order.everything,
    orderSha256: orderSha256Of(order),
  })
  if (await receiptOfObligation(tx.sql, duty.id)) return
  await addReceipt(tx, {
    obligationId: duty.id,
    jobId: null,
    envelope: canonicalJson(envelope),
    payloadSha256: createHash('sha256')
      .update(Buffer.from(envelope.payload, 'base64'))
      .digest('hex'),
    signerKeyId: keyIdOf(key),
    signerPublicKey: signer.publicKey,
    signerNotBeforeMs: signer.notBeforeMs,
    signerNotAfterMs: signer.notAfterMs,
    // A clock that was set back must not make a confirmation older than its order or its signer.
    receivedAtMs: Math.max(atMs, duty.createdAtMs, signer.notBeforeMs),
  })
  // What ends an orphan looks at the receipt itself.
  if (isOrphan) await bringSubjectForward(tx, { subjectId: duty.subjectId!, atMs }, parts.changes)
  else await markDone(tx, duty.id, atMs)
  const { spoolsWiped, draftsWiped, leasesEnded, resultsWiped } = receipt
  await appendAudit(tx, {
    atMs,
    type: 'receipt.accepted',
    actor: { kind: 'agent', id: agentId },
    site: duty.site,
    agentId,
    detail: {
      obligation: duty.kind,
      obligationId: duty.id,
      ...(isOrphan ? { findingId: receipt.purgeId } : { purgeId: receipt.purgeId }),
      ...{ spoolsWiped, draftsWiped, leasesEnded, resultsWiped },
    },
  })
  if (!isOrphan) await lookNow(tx, receipt.purgeId, atMs, parts.changes)
}
