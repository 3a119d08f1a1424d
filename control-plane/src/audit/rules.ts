/** Decides how audit events are chained, and whether a chain is whole. */
import { createHash } from 'node:crypto'
import { type AuditEvent, auditEvent } from '@sluice/protocol/audit-event'
import { canonicalJson } from '@sluice/protocol/canonical'

/** What the first event names as its predecessor. */
export const chainStart = '0'.repeat(64)

/** SHA-256 of the event's canonical bytes (RFC 8785), lower-case hex. */
export function auditEventSha256(event: AuditEvent): string {
  return createHash('sha256').update(canonicalJson(event)).digest('hex')
}

/** An event as it is stored: with the digest that the next one names. */
export type ChainedEvent = AuditEvent & { sha256: string }

/** How far a chain was followed: the last good event, or the start. */
export type ChainHead = { seq: number; sha256: string }

export type ChainVerdict =
  | { whole: true; head: ChainHead }
  /** `seq`: the first place where the chain does not hold. */
  | { whole: false; seq: number; reason: string }

/**
 * Follows a chain, so that any edit, deletion, insertion or reordering before its end is seen. What
 * is missing at the end shows only to someone who holds a later head: pass it as `expected`.
 *
 * @param rows In the order of the database, from `from` on.
 */
export function followChain(
  rows: readonly unknown[],
  from: ChainHead = { seq: 0, sha256: chainStart },
): ChainVerdict {
  let head = from
  for (const row of rows) {
    const seq = head.seq + 1
    const broken = (reason: string): ChainVerdict => ({ whole: false, seq, reason })
    if (typeof row !== 'object' || row === null) return broken('the event is no event')
    const { sha256, ...fields } = row as Record<string, unknown>
    const parsed = auditEvent.safeParse(fields)
    if (!parsed.success) return broken('the event is malformed')
    const event = parsed.data
    if (event.seq !== seq) return broken(`expected event ${seq}, found ${event.seq}`)
    if (event.previousSha256 !== head.sha256)
      return broken('the event does not follow the one before it')
    if (auditEventSha256(event) !== sha256)
      return broken('the event was changed after it was written')
    head = { seq, sha256 }
  }
  return { whole: true, head }
}
