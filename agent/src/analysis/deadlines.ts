/** Ends a lease before its deadline unless a heartbeat renewed it: nobody has to tell this node to stop. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { LeaseRef } from '@sluice/protocol/messages'
import type { RenewedLease } from '../control-link.ts'
import { type AnalysisParts, endLease, type Live, refOf } from './analysis-parts.ts'
import { lostLease } from './problem.ts'

/** @param deadlineMs Monotonic. */
export function setDeadline(parts: AnalysisParts, lease: Live, deadlineMs: number): void {
  // A renewal that was overtaken by a later one moves nothing back.
  if (lease.deadlineMs !== undefined && deadlineMs < lease.deadlineMs) return
  lease.deadlineMs = deadlineMs
  clearTimeout(lease.timer)
  const remainingMs = deadlineMs - limits.leaseWipeMarginMs - parts.monotonicMs()
  const over = (): void => {
    const expired = 'The lease was not renewed in time; the node stopped by itself.'
    endLease(lease, new SluiceError('lease.expired', expired, { retry: 'later' }))
  }
  if (remainingMs <= 0) over()
  else lease.timer = setTimeout(over, remainingMs)
}

/** Has heartbeats name the leases of this node, and takes what they renew. */
export function keepDeadlines(parts: AnalysisParts): void {
  const { live, link } = parts
  link.keepLeases({
    // A lease is named from its acceptance on; before, the control plane does not renew it.
    named: () =>
      [...live.values()]
        .filter(({ deadlineMs, end }) => deadlineMs !== undefined && !end.signal.aborted)
        .map(({ offer }) => refOf(offer)),
    renewed(list: RenewedLease[], sentAtMs: number, named: LeaseRef[]) {
      for (const { leaseId, fence } of named) {
        const lease = live.get(leaseId)
        if (lease === undefined) continue
        const renewal = list.find((one) => one.leaseId === leaseId && one.fence === fence)
        if (renewal !== undefined) setDeadline(parts, lease, sentAtMs + renewal.remainingMs)
        else endLease(lease, lostLease('The control plane no longer knows this lease.'))
      }
    },
  })
}
