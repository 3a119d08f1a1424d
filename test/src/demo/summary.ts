/** The facts of one run of the demo, as one document for machines and as a page for people. */

import { readFile } from 'node:fs/promises'

import type { JobDetail } from '@sluice/protocol/api-fleet'
import type { IsolationLevel, MediumEntry } from '@sluice/protocol/manifest'
import type { Result } from '@sluice/protocol/result'
import { result } from '@sluice/protocol/result'

import type { Fleet } from '../tools/fleet.ts'
import type { CheckedCertificate, Evidence } from './evidence.ts'
import type { Progress } from './progress.ts'
import { secondsOf, sizeOf } from './progress.ts'
import type { DemoJob } from './stages.ts'
import type { EarlyThief, LateAttempts } from './thief.ts'
import type { Leftovers, TraceReport } from './traces.ts'

export type JobSummary = {
  jobId: string
  file: string
  fileBytes: number
  sealedBytes: number
  /** What travelled: the normalised media, and the kinds of metadata that did not. */
  media: readonly MediumEntry[]
  states: { state: string; atMs: number }[]
  result: Result
  leases: JobDetail['leases']
  certificate: CheckedCertificate
}

export type Summary = {
  schema: 'sluice-demo/1'
  startedAtMs: number
  elapsedMs: number
  /** What is missing on this host or was allowed by name, in words. */
  remarks: readonly string[]
  isolation: IsolationLevel
  ffmpeg: { version: string; origin: string } | null
  controlPlane: { operatorUrl: string; agentUrl: string }
  agents: { id: string; name: string; role: string }[]
  jobs: JobSummary[]
  thief: {
    early: { takenAtMs: number; files: number; jobsOpened: number }
    late: LateAttempts
  }
  leftovers: Leftovers
  traces: TraceReport
  evidence: { folder: string; publicKeyFile: string; otherKeyRefused: boolean }
}

/** Puts together what the API and the capture host say about a finished job. */
export async function summariseJob(parts: {
  fleet: Fleet
  job: DemoJob
  detail: JobDetail
  media: readonly MediumEntry[]
  certificate: CheckedCertificate
  resultFile: string
}): Promise<JobSummary> {
  const { job, detail } = parts
  return {
    jobId: job.jobId,
    file: job.file,
    fileBytes: job.fileBytes,
    sealedBytes: detail.sealedBytes,
    media: parts.media,
    states: await statesOf(parts.fleet, job.jobId),
    result: await readResult(parts.resultFile),
    leases: detail.leases,
    certificate: parts.certificate,
  }
}

/** The states a job went through, from the audit log. */
async function statesOf(fleet: Fleet, jobId: string): Promise<JobSummary['states']> {
  const page = await fleet.ask(`/v1/audit?jobId=${jobId}&limit=100`, { role: 'security' })
  const { items } = page as { items: { type: string; atMs: number; detail: { to?: string } }[] }
  return items.flatMap(({ type, atMs, detail }) =>
    type === 'job.state-changed' && detail.to !== undefined ? [{ state: detail.to, atMs }] : [],
  )
}

/** A result as the capture agent delivered it. */
export async function readResult(path: string): Promise<Result> {
  const said = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>
  // The agent adds where it came from; what the analyser said is checked as strictly as on the way.
  const known = Object.keys(result.shape).map((key) => [key, said[key]])
  return result.parse(Object.fromEntries(known))
}

/** Prints one job's result: the file, what was left behind at the gate, and what the analyser says. */
export function printResult(
  progress: Progress,
  job: DemoJob,
  media: readonly MediumEntry[],
  said: Result,
): void {
  const removed = [...new Set(media.flatMap((medium) => medium.removed))]
  progress.line()
  progress.line(`${job.name} (${sizeOf(job.fileBytes)})`)
  if (removed.length > 0) progress.line(`  left behind     ${removed.join(', ')}`)
  for (const { name, output } of said.media) {
    progress.line(`  ${name}`)
    for (const [key, value] of flatten(output)) progress.line(`    ${key.padEnd(23)} ${value}`)
  }
}

/** Nested values as `outer.inner`, lists on one line. */
function flatten(value: unknown, prefix = ''): [string, string][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return [[prefix === '' ? 'output' : prefix, inWords(value)]]
  return Object.entries(value).flatMap(([key, inner]) =>
    flatten(inner, prefix === '' ? key : `${prefix}.${key}`),
  )
}

function inWords(value: unknown): string {
  if (!Array.isArray(value)) return typeof value === 'string' ? value : JSON.stringify(value)
  const shown = value.slice(0, 8).map((one) => inWords(one))
  return `${shown.join(', ')}${value.length > shown.length ? ', …' : ''}` || 'none'
}

/** What is proven, what it was measured against, and what is not claimed. */
export function printProof(
  progress: Progress,
  facts: {
    thief: EarlyThief
    late: LateAttempts
    leftovers: Leftovers
    traces: TraceReport
    evidence: Evidence
  },
): void {
  const { thief, late, leftovers, traces, evidence } = facts
  const row = (title: string, text: string): void => progress.line(`${title.padEnd(18)}${text}`)
  row('early thief', `opened ${thief.jobs.length} of ${thief.jobs.length} jobs (as it must be)`)
  row(
    'late thief',
    `opened ${late.opened} of ${late.attempts}; found ${late.objectsFound} objects, ${late.jobKeysFound} job keys`,
  )
  row(
    'left over',
    `${leftovers.objectFiles} objects, ${leftovers.spoolFiles} spooled files, ${leftovers.nodeFiles} files on the node`,
  )
  row(
    'files and logs',
    `${traces.files.hits} traces in ${traces.files.places} places, ${sizeOf(traces.files.bytes)}`,
  )
  if (traces.memory === undefined) row('memory', 'not looked at: this user may not')
  else
    row(
      'memory',
      `${traces.memory.hits} traces in ${traces.memory.processes} running processes, ${sizeOf(traces.memory.bytes)}`,
    )
  row(
    'looked for',
    `${traces.needles} pieces of media, manifests and keys; a planted one was found`,
  )
  row('certificates', `${evidence.certificates.length} verified offline; with another key, refused`)
}

/** The page's end. */
export function printEnd(progress: Progress, summary: Summary): void {
  progress.line()
  progress.line('Not proven here: that no copy was made outside, the sources and their disk,')
  progress.line(
    'raw blocks below the file system, GPU memory. Each certificate lists its exclusions.',
  )
  progress.line()
  progress.line(
    `Done in ${secondsOf(summary.elapsedMs)}. The certificates stay; verify one again, offline:`,
  )
  const [job] = summary.jobs
  if (job === undefined) return
  progress.line(
    `  npm run -s sluice -- verify ${job.certificate.path} --trust ${summary.evidence.publicKeyFile}`,
  )
}
