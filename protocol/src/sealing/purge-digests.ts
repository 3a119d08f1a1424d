/** The digests that name what a purge was about; each is made of a stream, whatever its size. */
import { createHash, type Hash } from 'node:crypto'
import { canonicalJson } from '../canonical.ts'
import type { PurgeScope } from '../purge.ts'

/** @param ids Of its jobs, sorted. @returns SHA-256 over them, each with a line feed, hex. */
export function jobsSha256Of(ids: Iterable<string>): string {
  return digestOfLines(ids)
}

/** @param jobs By id. @returns SHA-256 over `<job id> <certificate SHA-256>` lines, hex. */
export function certificatesSha256Of(
  jobs: Iterable<{ jobId: string; certificateSha256: string }>,
): string {
  const hash = createHash('sha256')
  for (const job of jobs) addLine(hash, `${job.jobId} ${job.certificateSha256}`)
  return hash.digest('hex')
}

/** The digest of the subject of a purge's certificate and report. */
export function scopeSha256Of(about: { scope: PurgeScope; jobsSha256: string }): string {
  const { scope, jobsSha256 } = about
  return createHash('sha256').update(canonicalJson({ jobsSha256, scope })).digest('hex')
}

function digestOfLines(lines: Iterable<string>): string {
  const hash = createHash('sha256')
  for (const line of lines) addLine(hash, line)
  return hash.digest('hex')
}

function addLine(hash: Hash, line: string): void {
  hash.update(`${line}\n`)
}
