/** Accepts a purge receipt only for exactly the order it answers, from exactly the agent that got it. */
import { createHash, type KeyObject } from 'node:crypto'
import { canonicalJson } from '../canonical.ts'
import { SluiceError } from '../errors.ts'
import type { Command } from '../messages.ts'
import { type PurgeReceipt, purgeReceiptStatement } from '../purge-receipt.ts'
import { verifyStatement } from './dsse.ts'

export const purgeReceiptPayloadType = 'application/vnd.sluice.purge-receipt.v1+json'

export type PurgeOrder = Extract<Command, { type: 'purge' }>

/** What names an order in its receipt: SHA-256 of its canonical JSON, lower-case hex. */
export function orderSha256Of(order: PurgeOrder): string {
  return createHash('sha256').update(canonicalJson(order)).digest('hex')
}

/** What a purge receipt must say to count. */
export type ExpectedPurgeReceipt = {
  publicKey: KeyObject
  agentId: string
  purgeId: string
  obligationId: string
  everything: boolean
  orderSha256: string
}

/**
 * Verifies a purge receipt.
 *
 * @returns What it says.
 * @throws SluiceError `evidence.untrusted` when another key signed it, `evidence.not_canonical`,
 * `evidence.invalid` when it is about anything else than what is expected.
 */
export function verifyPurgeReceipt(
  envelope: unknown,
  expected: ExpectedPurgeReceipt,
): PurgeReceipt {
  const { publicKey } = expected
  const statement = verifyStatement(envelope, { payloadType: purgeReceiptPayloadType, publicKey })
  const parsed = purgeReceiptStatement.safeParse(statement)
  if (!parsed.success) throw refused('it is no purge receipt', parsed.error)
  const { subject, predicate } = parsed.data
  const about = subject[0]
  if (about?.name !== `purge:${expected.purgeId}` || predicate.purgeId !== expected.purgeId)
    throw refused('it is about another purge')
  if (about.digest.sha256 !== expected.orderSha256) throw refused('it answers another order')
  if (predicate.obligationId !== expected.obligationId)
    throw refused('it is for another obligation')
  if (predicate.agentId !== expected.agentId) throw refused('it is from another agent')
  if (predicate.everything !== expected.everything) throw refused('it is about another scope')
  if (predicate.wipedAtMs < predicate.startedAtMs) throw refused('it ends before it begins')
  return predicate
}

function refused(why: string, cause?: unknown): SluiceError {
  return new SluiceError('evidence.invalid', `the purge receipt does not count: ${why}`, { cause })
}
