/** Decides, without any effect, what happens to jobs and leases. */
import type { JobState, SourcePolicy } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import { freeLeases, mayRun, type NodeFacts } from '../fleet/rules.ts'

// ---------------------------------------------------------------- uploads

const MiB = 1024 * 1024

/**
 * The part size of an upload: the default, or more where the store's number of parts would not do.
 *
 * @returns Bytes, a multiple of 1 MiB; every part but the last holds exactly these.
 */
export function partBytesFor(sealedBytes: number): number {
  const needed = Math.ceil(sealedBytes / limits.partsMax / MiB) * MiB
  return Math.max(limits.partBytesDefault, needed)
}

/** How many parts an object has; even an empty one has one. */
export function partCount(sealedBytes: number, partBytes: number): number {
  return Math.max(1, Math.ceil(sealedBytes / partBytes))
}

/** The exact size of one part, or undefined when the object has no such part. */
export function bytesOfPart(
  part: number,
  object: { sealedBytes: number; partBytes: number },
): number | undefined {
  const count = partCount(object.sealedBytes, object.partBytes)
  if (part < 1 || part > count) return undefined
  return part < count ? object.partBytes : object.sealedBytes - object.partBytes * (count - 1)
}

/**
 * Compares what the store holds with what the object must consist of and what the agent has sent.
 *
 * @returns The first part that is missing or differs, or undefined when all is as it must be.
 */
export function firstWrongPart(
  held: readonly { part: number; bytes: number; etag: string }[],
  claimed: readonly { part: number; etag: string }[],
  object: { sealedBytes: number; partBytes: number },
): number | undefined {
  const heldByPart = new Map(held.map((one) => [one.part, one]))
  const claimedByPart = new Map(claimed.map((one) => [one.part, one.etag]))
  const count = partCount(object.sealedBytes, object.partBytes)
  for (let part = 1; part <= count; part += 1) {
    const inStore = heldByPart.get(part)
    if (inStore?.bytes !== bytesOfPart(part, object)) return part
    if (inStore?.etag !== claimedByPart.get(part)) return part
  }
  const beyond = [...claimedByPart.keys(), ...heldByPart.keys()].find((part) => part > count)
  return beyond
}

// ---------------------------------------------------------------- leases

/** What decides about a lease. */
export type LeaseFacts = {
  fence: number
  endedAtMs: number | null
  /** When its node signed that nothing of it is left. */
  wipedAtMs: number | null
}

/**
 * Whether a lease still counts: it is its job's newest, nobody has ended it, its node has not signed
 * it away, and its job is leased. After a wipe receipt no key may follow, or the receipt would lie.
 * Renewals, keys and reads also need `beforeDeadline`; a result counts until the lease is ended.
 */
export function isCurrent(
  lease: LeaseFacts,
  job: { state: JobState; fence: number },
  fence: number,
): boolean {
  return (
    lease.endedAtMs === null &&
    lease.wipedAtMs === null &&
    job.state === 'leased' &&
    lease.fence === fence &&
    job.fence === fence
  )
}

/** How long a lease holds, on the monotonic clock of one process: a clock that is set moves neither. */
export type LeaseTime = { sinceMs: number; deadlineMs: number }

/** The time of a lease that begins to count now. */
export function deadlineOfNew(nowMs: number): LeaseTime {
  return { sinceMs: nowMs, deadlineMs: nowMs + limits.leaseMs }
}

export function beforeDeadline(time: LeaseTime, nowMs: number): boolean {
  return nowMs < time.deadlineMs
}

/** The deadline of a lease that is renewed now. None lasts for good: its job waits for others. */
export function renewedDeadlineMs(time: LeaseTime, nowMs: number): number {
  return Math.min(nowMs + limits.leaseMs, time.sinceMs + limits.leaseTotalMsMax)
}

/** From when on a lease that was not renewed is over, and its job may be leased again. */
export function leaseDeadMs(time: LeaseTime): number {
  return time.deadlineMs + limits.leaseGraceMs
}

/**
 * When a stored job may be leased again. After the clock was set back behind
 * that time it waits no longer.
 *
 * @param job.leaseAttempts Leases since it was stored or retried that came to nothing.
 * @param job.stateChangedAtMs When the last of them gave it back.
 */
export function leasableAtMs(
  job: { leaseAttempts: number; stateChangedAtMs: number },
  nowMs: number,
): number {
  const { leaseAttempts, stateChangedAtMs } = job
  if (leaseAttempts === 0 || stateChangedAtMs > nowMs) return Math.min(stateChangedAtMs, nowMs)
  const waitMs = limits.leaseRetryMsMin * 4 ** Math.min(leaseAttempts - 1, 10)
  return stateChangedAtMs + Math.min(limits.leaseRetryMsMax, waitMs)
}

/** What becomes of a job whose lease came to nothing. */
export function afterLease(job: {
  hasKey: boolean
  leaseAttempts: number
  /** Whether another try can help. */
  retry: 'never' | 'later'
}): 'stored' | 'failed' | 'lost' {
  if (!job.hasKey) return 'lost'
  if (job.retry === 'never' || job.leaseAttempts >= limits.leaseAttemptsMax) return 'failed'
  return 'stored'
}

// ---------------------------------------------------------------- dispatch

/** A node as dispatch sees it for one job. */
export type Candidate = NodeFacts & {
  id: string
  /** Leases of this very job that came to nothing there. */
  failedHere: number
}

/**
 * The node that gets a job: one that may run it, rather one where it has not failed yet, rather the
 * one with most room. Equal ones are taken by id, so that the choice is the same every time.
 */
export function chooseNode<T extends Candidate>(
  nodes: readonly T[],
  job: { site: string; analyser: string },
): T | undefined {
  return nodes
    .filter((node) => mayRun(node, job))
    .toSorted(
      (left, right) =>
        left.failedHere - right.failedHere ||
        freeLeases(right) - freeLeases(left) ||
        (left.id < right.id ? -1 : 1),
    )[0]
}

// ---------------------------------------------------------------- keeping

/** Whether the sealed archive is the only copy left: the source went once the object was stored. */
export function isOnlyCopy(job: { source: SourcePolicy; storedAtMs: number | null }): boolean {
  return job.source.action !== 'keep' && job.source.when === 'stored' && job.storedAtMs !== null
}

/**
 * How long a failed job is kept.
 *
 * @returns When its archive goes, and when its capture host is told so again; no notice for a job
 * whose source is still there.
 */
export function keepUntil(
  job: { source: SourcePolicy; storedAtMs: number | null },
  nowMs: number,
  failedJobKeepMs: number,
): { expiresAtMs: number; noticeAtMs?: number } {
  if (!isOnlyCopy(job)) return { expiresAtMs: nowMs + failedJobKeepMs }
  const expiresAtMs = nowMs + Math.max(failedJobKeepMs, limits.onlyCopyKeepMs)
  return { expiresAtMs, noticeAtMs: expiresAtMs - limits.onlyCopyNoticeMs }
}

/** States in which a job can be put on hold: nothing of it is decided yet. */
export const freezableStates = ['announced', 'uploading', 'stored', 'leased', 'failed'] as const

/** Whether a legal hold still keeps something: the deletion of the job has not begun. */
export function mayBeHeld(state: JobState): boolean {
  return state === 'frozen' || state === 'lost' || freezableStates.some((one) => one === state)
}

/** The state a frozen job goes back to: a lease does not survive a hold. */
export function thawedState(frozenFrom: JobState): JobState {
  return frozenFrom === 'leased' ? 'stored' : frozenFrom
}
