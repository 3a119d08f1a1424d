/** Decides what a difference between a place and the database means. Pure: what to do with it is decided elsewhere. */
import type { AgentId, JobId } from '@sluice/protocol/ids'
import { isOver, type JobState } from '@sluice/protocol/job'
import { type ObjectKey, objectKey } from '@sluice/protocol/object-keys'
import type { SweepFindingKind } from '@sluice/protocol/sweep'

/** A job as far as its object is concerned. */
export type SweptJob = {
  id: JobId
  objectKey: ObjectKey
  state: JobState
  /** The state it was frozen in. */
  frozenFrom: JobState | null
  storedAtMs: number | null
  sealedBytes: number
  /** Store ids of the uploads that the ledger holds open. */
  openUploads: readonly string[]
}

/** Everything a store holds under one key. */
export type SweptEntry = {
  key: string
  objects: number
  versions: number
  /** Store ids of incomplete uploads. */
  uploads: readonly string[]
}

export type Difference = {
  kind: SweepFindingKind
  /** What it is, unique within its kind: an object key, `key upload-id`, a job id, an epoch; before a key, the replica. */
  subject: string
  jobId?: JobId
  agentId?: AgentId
}

/**
 * Compares what the store holds under one key with the job that owns the key.
 *
 * @param job Undefined when no job has this key.
 * @param entry Undefined when the store holds nothing under it.
 */
export function storeDifferences(
  job: SweptJob | undefined,
  entry: SweptEntry | undefined,
): Difference[] {
  const key = entry?.key ?? job?.objectKey
  if (key === undefined) return []
  const owner = job === undefined ? {} : { jobId: job.id }
  if (!entry)
    return job && needsObject(job) ? [{ kind: 'missing.object', subject: key, ...owner }] : []
  const held = entry.objects + entry.versions
  if (job === undefined || isOver(job.state)) {
    const found: Difference[] = held > 0 ? [{ kind: 'orphan.object', subject: key, ...owner }] : []
    return [...found, ...strangeUploads(entry, [], owner)]
  }
  // Its own deletion takes everything under the key.
  if (job.state === 'deleting') return []
  const lost: Difference[] =
    needsObject(job) && entry.objects === 0
      ? [{ kind: 'missing.object', subject: key, ...owner }]
      : []
  return [...lost, ...strangeUploads(entry, job.openUploads, owner)]
}

function strangeUploads(
  entry: SweptEntry,
  known: readonly string[],
  owner: { jobId?: JobId },
): Difference[] {
  return entry.uploads
    .filter((id) => !known.includes(id))
    .map((id) => ({ kind: 'orphan.upload', subject: `${entry.key} ${id}`, ...owner }))
}

/** Whether a job could not go on without its object. */
export function needsObject(job: Pick<SweptJob, 'state' | 'frozenFrom' | 'storedAtMs'>): boolean {
  const state = job.state === 'frozen' ? job.frozenFrom : job.state
  if (state === 'failed') return job.storedAtMs !== null
  return state === 'stored' || state === 'leased'
}

/** Whether a job could not go on without its spool: nothing else holds its archive yet. */
export function needsSpool(job: { state: JobState; frozenFrom: JobState | null }): boolean {
  const state = job.state === 'frozen' ? job.frozenFrom : job.state
  return state === 'announced' || state === 'uploading'
}

/** Whether a job could not go on without its key. */
export function needsKey(state: JobState): boolean {
  return ['announced', 'uploading', 'stored', 'leased', 'failed', 'frozen'].includes(state)
}

/**
 * What a spool means that an agent reports.
 *
 * @param job Undefined when no job of this agent has this id.
 * @param sealedAtMs When its id was made.
 * @param announceUntilMs Drafts sealed before this can't be announced any more: their receive keys
 * have run out.
 */
export function spoolDifference(
  spool: { jobId: JobId; agentId: AgentId },
  job: { state: JobState } | undefined,
  times: { sealedAtMs: number; announceUntilMs: number },
): Difference | undefined {
  const { jobId, agentId } = spool
  const orphan: Difference = {
    kind: 'orphan.spool',
    subject: `${agentId} ${jobId}`,
    jobId,
    agentId,
  }
  if (!job) return times.sealedAtMs < times.announceUntilMs ? orphan : undefined
  return isOver(job.state) ? orphan : undefined
}

/** The instant inside a UUIDv7 (RFC 9562, section 5.7: its first 48 bits are milliseconds). */
export function madeAtMs(id: string): number {
  return Number.parseInt(id.replace('-', '').slice(0, 12), 16)
}

/** Whether a key of the store is one of ours; others are counted and never touched. */
export function isOurs(key: string): boolean {
  return objectKey.safeParse(key).success
}

/**
 * Joins two ascending streams by key, in memory for one page of each.
 *
 * @param left,right In ascending order of UTF-16 code units, each key at most once.
 */
export async function* joinByKey<L, R>(
  left: AsyncIterable<readonly [string, L]>,
  right: AsyncIterable<readonly [string, R]>,
): AsyncGenerator<[L | undefined, R | undefined]> {
  const lefts = left[Symbol.asyncIterator]()
  const rights = right[Symbol.asyncIterator]()
  try {
    let [l, r] = [await lefts.next(), await rights.next()]
    while (l.done !== true || r.done !== true) {
      if (r.done === true || (l.done !== true && l.value[0] < r.value[0])) {
        if (l.done === true) return
        yield [l.value[1], undefined]
        l = await lefts.next()
      } else if (l.done === true || r.value[0] < l.value[0]) {
        yield [undefined, r.value[1]]
        r = await rights.next()
      } else {
        yield [l.value[1], r.value[1]]
        ;[l, r] = [await lefts.next(), await rights.next()]
      }
    }
  } finally {
    await lefts.return?.()
    await rights.return?.()
  }
}
