/** The thief of the demo: what he took in time opens the jobs, and what he takes later opens nothing. */

import type { JobId } from '@sluice/protocol/ids'
import type { MediumEntry } from '@sluice/protocol/manifest'

import { copyDataDirectory, needlesOf, openStolen } from '../tools/early-copy.ts'
import type { StolenCopy, StolenKey } from '../tools/early-copy.ts'
import type { Needle } from '../tools/needles.ts'

/** What the early thief held, by job. */
export type EarlyJob = {
  readonly jobId: JobId
  readonly media: readonly MediumEntry[]
  readonly needles: readonly Needle[]
}

export type EarlyThief = AsyncDisposable & {
  readonly takenAtMs: number
  readonly files: number
  readonly jobs: readonly EarlyJob[]
  /** Of all jobs, and of the epoch keys that were in the copy. */
  readonly needles: readonly Needle[]
  readonly copy: StolenCopy
}

/** What a late thief tried, and how many archives opened: none, or the proof has failed. */
export type LateAttempts = {
  takenAtMs: number
  files: number
  /** Wrapped job keys and sealed objects of the jobs that are still there. */
  jobKeysFound: number
  objectsFound: number
  /** Wrapped keys and archives of the early copy, tried with every epoch key of the late one. */
  attempts: number
  opened: number
}

/**
 * Copies everything while jobs are stored, and opens each: the positive control of all that follows.
 *
 * @throws Error when a job does not open: then this demo would prove nothing later on.
 */
export async function stealEarly(
  dataDirectory: string,
  jobIds: readonly JobId[],
): Promise<EarlyThief> {
  await using cleanup = new AsyncDisposableStack()
  const copy = cleanup.use(await copyDataDirectory(dataDirectory))
  const jobs: EarlyJob[] = []
  for (const id of jobIds) jobs.push(await openEarly(copy, id))
  const epochKeys = await copy.epochKeyNeedles()
  const owned = cleanup.move()
  return {
    takenAtMs: copy.takenAtMs,
    files: copy.files,
    jobs,
    needles: [...jobs.flatMap((job) => job.needles), ...epochKeys],
    copy,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

async function openEarly(copy: StolenCopy, id: JobId): Promise<EarlyJob> {
  const key = copy.keys.find((one) => one.jobId === id)
  const sealed = key && (await copy.readSealed(key.objectKey))
  if (key === undefined || sealed === undefined)
    throw new Error(`the early copy holds no key or no object of job ${id}`)
  using opened = await openStolen({ key, slotFile: copy.slotFile, sealed })
  if (opened === undefined) throw new Error(`the early copy does not open job ${id}`)
  return { jobId: id, media: opened.manifest.media, needles: needlesOf(opened) }
}

/** Copies everything once more, after deletion, and tries all there is from both copies. */
export async function stealLate(dataDirectory: string, early: EarlyThief): Promise<LateAttempts> {
  await using copy = await copyDataDirectory(dataDirectory)
  const ids = new Set<string>(early.jobs.map((job) => job.jobId))
  const earlyKeys = early.copy.keys.filter((key) => ids.has(key.jobId))
  const late: LateAttempts = {
    takenAtMs: copy.takenAtMs,
    files: copy.files,
    jobKeysFound: copy.keys.filter((key) => ids.has(key.jobId)).length,
    objectsFound: 0,
    attempts: 0,
    opened: 0,
  }
  for (const key of earlyKeys) {
    if ((await copy.readSealed(key.objectKey)) !== undefined) late.objectsFound += 1
    late.attempts += 1
    if (await opensLate(key, early.copy, copy)) late.opened += 1
  }
  return late
}

/** The most a thief can have: archive and wrapped key from before, epoch keys of now. */
async function opensLate(key: StolenKey, before: StolenCopy, now: StolenCopy): Promise<boolean> {
  const sealed = await before.readSealed(key.objectKey)
  if (sealed === undefined) throw new Error('the early copy has lost an object')
  using opened = await openStolen({ key, slotFile: now.slotFile, sealed })
  return opened !== undefined
}
