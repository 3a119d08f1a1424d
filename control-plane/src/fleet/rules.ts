/** Decides, without any effect, how agents are spoken to and which of them may run a job. */
import type { Command, Lane, NodeOffer } from '@sluice/protocol/messages'
import { lanes } from '@sluice/protocol/messages'

/**
 * The protocol version a link speaks.
 *
 * @returns The highest version both sides know, or the side that has to be upgraded.
 */
export function chooseVersion(
  ours: readonly number[],
  theirs: readonly number[],
): { version: number } | { upgrade: 'agent' | 'control plane' } {
  const shared = theirs.filter((version) => ours.includes(version))
  if (shared.length > 0) return { version: Math.max(...shared) }
  return { upgrade: Math.max(...theirs) < Math.min(...ours) ? 'agent' : 'control plane' }
}

/** Where a command stands in its agent's queue. */
export type CommandPlace = { lane: Lane; seq: number }

/** Orders commands as they are sent: by lane, then in the order they were given. */
export function compareCommands(left: CommandPlace, right: CommandPlace): number {
  return lanes.indexOf(left.lane) - lanes.indexOf(right.lane) || left.seq - right.seq
}

/**
 * Which of an agent's open commands to send now.
 *
 * @param open All commands without acknowledgement, in any order.
 * @param sent Sequence numbers that were sent over this very link.
 * @param inFlightMax Commands that may wait for an acknowledgement at once. The emergency lane
 * ignores it: a full window must not hold up a purge.
 */
export function commandsToSend<T extends CommandPlace>(
  open: readonly T[],
  sent: ReadonlySet<number>,
  inFlightMax: number,
): T[] {
  const unsent = open
    .filter((command) => !sent.has(command.seq))
    .toSorted((left, right) => compareCommands(left, right))
  const urgent = unsent.filter((command) => command.lane === 'emergency')
  const others = unsent.filter((command) => command.lane !== 'emergency')
  const inFlight = open.length - unsent.length
  return [...urgent, ...others.slice(0, Math.max(0, inFlightMax - inFlight - urgent.length))]
}

/** What dispatch knows of a GPU node. */
export type NodeFacts = {
  role: 'capture' | 'gpu'
  site: string
  revoked: boolean
  connected: boolean
  offer: NodeOffer | null
  /** The operator's setting; null allows every analyser. */
  allowedAnalysers: readonly string[] | null
  /** The operator's setting; the offer can only narrow it. */
  leasesMax: number
  /** Leases it holds, and those that ended without its wipe receipt. */
  openLeases: number
}

/** Leases a node may take in addition to those it has. */
export function freeLeases(node: NodeFacts): number {
  return Math.max(0, Math.min(node.leasesMax, node.offer?.leasesMax ?? 0) - node.openLeases)
}

/** Whether a node may take a lease on a job of this site for this analyser now. */
export function mayRun(node: NodeFacts, job: { site: string; analyser: string }): boolean {
  if (node.role !== 'gpu' || node.revoked || !node.connected || node.site !== job.site) return false
  if (node.allowedAnalysers !== null && !node.allowedAnalysers.includes(job.analyser)) return false
  if (!node.offer?.analysers.some((offered) => offered.name === job.analyser)) return false
  return freeLeases(node) > 0
}

/** Whether a newer command leaves an older one without a point, so that it need not be sent. */
export function supersedes(newer: Command, older: Command): boolean {
  if (newer.type === 'inventory') return older.type === newer.type
  // What is owed under another duty is confirmed under that one only.
  if (newer.type === 'purge' || newer.type === 'authorities')
    return older.type === newer.type && older.obligationId === newer.obligationId
  if (!('jobId' in older) || newer.jobId !== older.jobId) return false
  if (newer.type === 'lease.end')
    return (
      (older.type === 'lease.end' || older.type === 'lease.offer') &&
      older.leaseId === newer.leaseId
    )
  if (newer.type === 'lease.offer')
    return older.type === 'lease.offer' && older.leaseId === newer.leaseId
  return newer.type === older.type
}

/** A token bucket; it may owe tokens for messages that had been read before it was empty. */
export type MessageBucket = { tokens: number; atMs: number }

type BucketBounds = { perSecond: number; burst: number }

/** The bucket as time has filled it, evenly; what it owes is paid by time alone. */
export function refillBucket(
  bucket: MessageBucket,
  nowMs: number,
  bounds: BucketBounds,
): MessageBucket {
  const refilled = bucket.tokens + (Math.max(0, nowMs - bucket.atMs) / 1000) * bounds.perSecond
  return { tokens: Math.min(bounds.burst, refilled), atMs: nowMs }
}

/** Takes a token for one message. */
export function spendMessage(
  bucket: MessageBucket,
  nowMs: number,
  bounds: BucketBounds,
): MessageBucket {
  const { tokens, atMs } = refillBucket(bucket, nowMs, bounds)
  return { tokens: tokens - 1, atMs }
}

/** How long to read nothing until the bucket owes nothing. */
export function bucketPauseMs(bucket: MessageBucket, perSecond: number): number {
  return bucket.tokens >= 0 ? 0 : Math.ceil((-bucket.tokens / perSecond) * 1000)
}
