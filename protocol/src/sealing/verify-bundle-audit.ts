/** Follows the audit events of a bundle: a piece of the chain, with gaps where others' events were. */
import { createHash } from 'node:crypto'
import { canonicalJson, parseCanonicalJson } from '../canonical.ts'
import { type BundleEvent, bundleEvent } from '../purge-bundle.ts'
import { invalid } from './evidence-problem.ts'

export type AuditFound = {
  events: number
  /** Of those, how many could be hashed again: all whose texts were not left out. */
  rehashed: number
  /** How many follow right behind the event before them, and name its hash. */
  linked: number
}

/** Takes the files of audit events in order. */
export class BundleAudit {
  readonly found: AuditFound = { events: 0, rehashed: 0, linked: 0 }
  #last: { seq: number; sha256: string } | undefined

  /**
   * @param content One event a line, each in canonical form.
   * @throws SluiceError `evidence.not_canonical`; `evidence.invalid` for an event that is not the
   * one its hash names, that does not follow the one before it, or that stands in another order.
   */
  read(content: Buffer): void {
    let start = 0
    while (start < content.length) {
      const end = content.indexOf(0x0a, start)
      if (end < 0) throw invalid('an audit event is cut')
      const parsed = bundleEvent.safeParse(parseCanonicalJson(content.subarray(start, end)))
      if (!parsed.success) throw invalid('an audit event is none', parsed.error)
      this.#follow(parsed.data)
      start = end + 1
    }
  }

  #follow({ event, sha256, redacted }: BundleEvent): void {
    const { seq, previousSha256 } = event
    const last = this.#last
    if (last && seq <= last.seq) throw invalid('audit events are out of order')
    if (last && seq === last.seq + 1) {
      if (previousSha256 !== last.sha256) throw invalid(`audit event ${seq} follows another one`)
      this.found.linked += 1
    }
    if (redacted === undefined) {
      if (createHash('sha256').update(canonicalJson(event)).digest('hex') !== sha256)
        throw invalid(`audit event ${seq} was changed after it was written`)
      this.found.rehashed += 1
    } else if (Object.keys(redacted).some((name) => Object.hasOwn(event.detail, name)))
      throw invalid(`audit event ${seq} holds what it says was left out`)
    this.found.events += 1
    this.#last = { seq, sha256 }
  }
}
