/** Ends the leases that a process before this one left: wiped, reported as failed, confirmed. */
import { SluiceError } from '@sluice/protocol/errors'
import type { LeaseRecord } from '../journal.ts'
import { type AnalysisParts, refOf } from './analysis-parts.ts'
import { asProblem } from './problem.ts'
import { reportFailure } from './report.ts'
import { confirmOnceWritable, wipeUntilDone } from './wipe-and-confirm.ts'

/** Of the journal, those that are not over. */
export function openLeases({ journal }: AnalysisParts): LeaseRecord[] {
  return Object.values(journal.data.leases).filter(({ state }) => state !== 'over')
}

/** @returns undefined when the agent ended first. */
export function wipeLeft(parts: AnalysisParts, record: LeaseRecord) {
  // Only a lease that this node took has a memory level; one it declined never held anything.
  return wipeUntilDone(parts, record, { held: record.memoryLevel !== undefined })
}

export async function recoverLease(parts: AnalysisParts, record: LeaseRecord): Promise<void> {
  const wiped = await wipeLeft(parts, record)
  if (wiped === undefined) return
  parts.events.leaseWiped(refOf(record), wiped)
  const restarted = 'The node was restarted during the analysis.'
  const error = new SluiceError('analysis.failed', restarted, { retry: 'later' })
  await reportFailure(parts, refOf(record), asProblem(error))
  if (!parts.closing.signal.aborted || parts.ending.forGood)
    await confirmOnceWritable(parts, { ...record, wipe: wiped })
}
