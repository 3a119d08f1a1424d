/** What a scanner is, whatever it is made of. */
import type { ScanEngineName } from '@sluice/protocol/manifest'

/** What a scanner reads: the source as it is, not what will become of it. */
export type ScanTarget = {
  readonly path: string
  readonly bytes: number
  stream(): AsyncIterable<Buffer>
}

export type Verdict = { clean: true } | { clean: false; finding: string }

export type EngineFacts = { version: string; signaturesAtMs?: number }

/** One scanner, whatever it is made of. */
export type ScanEngine = {
  readonly name: Exclude<ScanEngineName, 'quarantine'>
  /**
   * Whether its word counts now; called before the first scan, and again whenever one wants to know.
   *
   * @throws SluiceError `scan.unavailable`, `scan.stale`, `scan.unsafe`, `scan.failed`.
   */
  check(): Promise<EngineFacts>
  /**
   * Looks at all of a source.
   *
   * @throws SluiceError `scan.*` whenever there is no verdict about all of it.
   */
  scan(source: ScanTarget, signal?: AbortSignal): Promise<Verdict>
}
