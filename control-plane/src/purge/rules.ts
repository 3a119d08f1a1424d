/** Decides what a purge may do alone, how far it reaches, and what each agent is ordered. */
import type { Progress } from '@sluice/protocol/api-obligations'
import { SluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Command } from '@sluice/protocol/messages'
import type { PurgeScope } from '@sluice/protocol/purge'
import { progressOf } from '../deletion/rules.ts'

/** Whether a second person must agree before anything is destroyed. */
export function needsApproval(purge: {
  /** Jobs it would destroy whose deletion has not begun. */
  jobs: number
  /** Jobs that the same person destroyed alone within `limits.purgeAloneMs`. */
  before: number
  includingHeld: boolean
  breakGlass: boolean
  /** Jobs that one person may destroy within that time. */
  aloneJobsMax: number
}): boolean {
  if (purge.includingHeld) return true
  return purge.jobs > 0 && purge.before + purge.jobs > purge.aloneJobsMax && !purge.breakGlass
}

/**
 * The one site a purge stays within; `*` for all.
 *
 * @param sites Where its asker holds `security`.
 * @param subjectSite Site of the job or agent that the scope names.
 * @throws SluiceError `request.not_found` beyond the asker's sites; `request.invalid` when the scope
 * spans several of them, but not all.
 */
export function siteOfPurge(
  scope: PurgeScope,
  sites: 'all' | readonly string[],
  subjectSite: string | undefined,
): string {
  const named = scope.kind === 'site' ? scope.site : subjectSite
  if (named !== undefined) {
    if (sites === 'all' || sites.includes(named)) return named
    throw new SluiceError('request.not_found', 'nothing of that name is on your sites')
  }
  if (sites === 'all') return '*'
  const [only, ...others] = sites
  if (only !== undefined && others.length === 0) return only
  throw new SluiceError('request.invalid', 'this scope spans several sites', {
    hint: 'Purge one site after the other: sluice purge site SITE.',
  })
}

/** What a purge order tells an agent to destroy beside the jobs it names. */
export type Reach =
  /** All there is, drafts that nobody announced included. */
  | { kind: 'everything' }
  /** Drafts sealed in that time. */
  | { kind: 'sealed'; fromMs: number; untilMs: number }
  /** Nothing else. */
  | { kind: 'jobs' }

/**
 * How far a purge reaches at one agent that the scope itself covers.
 *
 * @param holdsJobs It has held jobs that this purge skips: they stay, and all else goes.
 */
export function reachOf(scope: PurgeScope, holdsJobs: boolean): Reach {
  if (scope.kind === 'time') return { kind: 'sealed', fromMs: scope.fromMs, untilMs: scope.untilMs }
  if (!holdsJobs) return { kind: 'everything' }
  return { kind: 'sealed', fromMs: 0, untilMs: Number.MAX_SAFE_INTEGER }
}

type PurgeOrder = Extract<Command, { type: 'purge' }>

/** The orders for one agent, without their obligations: more than one when it has too many jobs. */
export function ordersFor(share: {
  reach: Reach
  jobIds: readonly JobId[]
}): Pick<PurgeOrder, 'everything' | 'jobIds' | 'sealed'>[] {
  const { reach, jobIds } = share
  if (reach.kind === 'everything') return [{ everything: true, jobIds: [] }]
  const orders: Pick<PurgeOrder, 'everything' | 'jobIds' | 'sealed'>[] = []
  for (let at = 0; at < Math.max(1, jobIds.length); at += limits.purgeJobsPerCommandMax)
    orders.push({
      everything: false,
      jobIds: jobIds.slice(at, at + limits.purgeJobsPerCommandMax),
      ...(reach.kind === 'sealed' && at === 0
        ? { sealed: { fromMs: reach.fromMs, untilMs: reach.untilMs } }
        : {}),
    })
  return orders
}

/** Whether receive keys of covered agents die with a scope: only where drafts do. */
export function endsReceiveKeys(scope: PurgeScope): boolean {
  return scope.kind !== 'job' && scope.kind !== 'store'
}

/**
 * When to look at a running purge again: at once in its first seconds, seldom once it waits for
 * somebody who is away.
 */
export function lookAgainMs(runningMs: number): number {
  return Math.min(30_000, Math.max(500, Math.ceil(runningMs / 20)))
}

/** What tells how far a duty has come. */
type DutyFacts = {
  kind: string
  done: 0 | 1
  /** An order is a row, or a try was begun. */
  asked: 0 | 1
  /** The agent acknowledged its order durably. */
  acked: 0 | 1
  /** Its receipt is inside an issued certificate. */
  proven: 0 | 1
}

/** Counts by kind and progress, in the order of the kinds. */
export function dutyProgress(
  groups: readonly (DutyFacts & { n: number })[],
): ({ kind: string } & Record<Progress, number>)[] {
  const kinds = new Map<string, { kind: string } & Record<Progress, number>>()
  for (const { n, ...duty } of groups) {
    const none = { kind: duty.kind, owed: 0, requested: 0, delivered: 0, done: 0, proven: 0 }
    const counts = kinds.get(duty.kind) ?? none
    kinds.set(duty.kind, counts)
    const { done, asked, acked, proven } = duty
    const facts = { done: done === 1, asked: asked === 1, acked: acked === 1, proven: proven === 1 }
    counts[progressOf(facts)] += n
  }
  return [...kinds.values()].toSorted((left, right) => (left.kind < right.kind ? -1 : 1))
}
