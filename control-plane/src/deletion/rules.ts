/** Decides when an owed deletion is tried again, when it is overdue, and when a job is proven gone. */
import type { JobState } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import type { Progress } from '@sluice/protocol/api-obligations'
import type { HolderKind } from '@sluice/protocol/receipt'
import type { obligations, ObligationKind } from '../database/schema.ts'

export type Obligation = typeof obligations.$inferSelect

/** Why a job is deleted. */
export type DeletionReason = 'analysed' | 'expired' | 'requested' | 'refused' | 'lost'

/** Which kind of holder each obligation speaks for; null for duties that no holder confirms. */
export const holderKindOf: Readonly<Record<ObligationKind, HolderKind | null>> = {
  'lease.wipe': 'gpu-lease',
  'spool.delete': 'capture-spool',
  'object.delete': 'object-store',
  'replica.delete': 'object-replica',
  'key.destroy': 'job-key',
  'result.deliver': 'result-blob',
  'job.expire': null,
  'job.expiry-notice': null,
  'certificate.issue': null,
  'purge.agent': null,
  'purge.conclude': null,
  'uploads.abort': null,
  'grants.revoke': null,
  'authority.adopt': null,
  'authority.retire': null,
  'approval.expire': null,
  'alert.deliver': null,
  'orphan.delete': null,
  'audit.export': null,
}

/**
 * How long until the next try: it doubles, with jitter in the upper half, so that a store that comes
 * back is not met by all tries at once and none comes right away.
 *
 * @param attempts Tries made so far, 1 or more.
 * @param random In [0, 1).
 */
export function retryDelayMs(attempts: number, random: number): number {
  const ceiling = Math.min(
    limits.obligationRetryMsMax,
    limits.obligationRetryMsMin * 2 ** Math.min(attempts, 30),
  )
  return Math.ceil(ceiling / 2 + (random * ceiling) / 2)
}

/** What stands between a job in `deleting` and its certificate. */
export type Missing = { kind: ObligationKind; obligationId: string | null; reason: string }

/**
 * What is still missing before a job's certificate may be issued: every holder's duty must be done
 * and have its receipt, the holders of every job must be among them, and so must every lease.
 *
 * @param receiptFor Ids of obligations that have a receipt.
 */
export function missingForCertificate(
  job: {
    obligations: readonly Obligation[]
    leaseIds: readonly string[]
  },
  receiptFor: ReadonlySet<string>,
): Missing[] {
  const missing: Missing[] = []
  const held = job.obligations.filter((one) => holderKindOf[one.kind] !== null)
  for (const { id, kind, state } of held) {
    if (state !== 'done') missing.push({ kind, obligationId: id, reason: 'not done' })
    else if (!receiptFor.has(id)) missing.push({ kind, obligationId: id, reason: 'no receipt' })
  }
  for (const kind of ['spool.delete', 'object.delete', 'key.destroy'] as const) {
    if (!held.some((one) => one.kind === kind))
      missing.push({ kind, obligationId: null, reason: 'never recorded' })
  }
  for (const leaseId of job.leaseIds) {
    if (!held.some((one) => one.kind === 'lease.wipe' && one.leaseId === leaseId))
      missing.push({ kind: 'lease.wipe', obligationId: null, reason: `never recorded: ${leaseId}` })
  }
  return missing
}

/**
 * Why a job cannot be written off, or undefined when it can: only what agents owe is open, and each
 * of them is beyond its deadline or may not confirm any more. What the control plane owes itself
 * (key, objects, result) is never written off.
 *
 * @param job.open Duties of holders that are not done.
 * @param job.gone Agents that are revoked or whose identity has expired.
 */
export function writeOffProblem(job: {
  state: JobState
  open: readonly Obligation[]
  gone: ReadonlySet<string>
  atMs: number
}): string | undefined {
  const { state, open, gone, atMs } = job
  if (state !== 'deleting') return `it is ${state}, not being deleted`
  if (open.length === 0) return 'every holder has confirmed'
  const own = open.find(({ kind }) => kind !== 'spool.delete' && kind !== 'lease.wipe')
  if (own) return `${own.kind} is still owed by the control plane itself`
  const hopeful = open.find(
    ({ holder, deadlineAtMs }) => deadlineAtMs > atMs && !(holder && gone.has(holder.id)),
  )
  return hopeful && `${hopeful.kind} still has time`
}

/** What tells how far a duty has come. */
type DutyFacts = {
  done: boolean
  /** An order is a row, or a try was made. */
  asked: boolean
  /** The agent acknowledged its order durably. */
  acked: boolean
  /** Its receipt is there, and inside an issued certificate. */
  proven: boolean
}

/**
 * `owed`: recorded, not asked for yet; `requested`: an order is a row, or a try was made;
 * `delivered`: the agent acknowledged the order durably; `done`: the holder signed, or was looked at
 * again; `proven`: its receipt is inside an issued certificate.
 */
export function progressOf(duty: DutyFacts): Progress {
  if (duty.done) return duty.proven ? 'proven' : 'done'
  if (duty.acked) return 'delivered'
  return duty.asked ? 'requested' : 'owed'
}

/** A duty as the rows tell of it. */
export type KnownDuty = {
  duty: Obligation
  /** The agent acknowledged its order durably. */
  acked: boolean
  /** Its receipt is there, and inside an issued certificate. */
  proven: boolean
}

export function progressOfDuty({ duty, acked, proven }: KnownDuty): Progress {
  const asked = duty.attempts > 0 || duty.commandId !== null
  return progressOf({ done: duty.state === 'done', asked, acked, proven })
}

/**
 * What to say of duties that became overdue: one alert for each kind and site, however many there
 * are. That an alert is late is not worth another one: the channel would never hear of it.
 */
export function overdueAlerts(
  late: readonly Pick<Obligation, 'kind' | 'site' | 'lastErrorCode'>[],
) {
  const groups = Map.groupBy(
    late.filter(({ kind }) => kind !== 'alert.deliver'),
    ({ kind, site }) => `${kind} ${site}`,
  )
  return [...groups.values()].map((duties) => {
    const [{ kind, site, lastErrorCode } = duties[0]!] = duties
    const duty = duties.length === 1 ? 'duty is' : 'duties are'
    return {
      type: 'obligation.overdue',
      severity: 'warning',
      site,
      summary: `${duties.length} ${kind} ${duty} overdue`,
      detail: { obligation: kind, duties: duties.length, code: lastErrorCode ?? 'none' },
    } as const
  })
}
