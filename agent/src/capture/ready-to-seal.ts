/** Looks whether a sealing would only wait, so that it uses up no receive key for that. */
import { type SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Submission } from '../journal.ts'
import { problemOf } from '../problem.ts'
import type { CaptureParts } from './capture-parts.ts'
import { scanPolicyOf } from './gate-policy.ts'
import { createScanner } from './scan.ts'
import { requireRoom } from './spool.ts'

/** @returns Throws what a submission has to wait for: `scan.*` or `spool.full`, all of which pass. */
export function createReadiness(parts: CaptureParts): (submission: Submission) => Promise<void> {
  const { journal, gate, isolation, events } = parts
  let scannerSeenAtMs = -Infinity

  async function requireScanner(): Promise<void> {
    if (scanPolicyOf(gate.scan) !== 'require') return
    if (performance.now() - scannerSeenAtMs < limits.scanCheckKeepMs) return
    await createScanner({ settings: gate.scan, isolation }).check()
    scannerSeenAtMs = performance.now()
  }

  /** Smaller ones go before it. */
  async function requireSpoolRoom({ sources }: Submission): Promise<void> {
    const bytes = sources.reduce((sum, source) => sum + source.bytes, 0)
    try {
      await requireRoom(parts.spoolDir, { bytes, reserveBytes: parts.reserveBytes })
    } catch (error) {
      // What else is wrong with the spool is said by the sealing.
      if (isSluiceError(error)) throw error
    }
  }

  /** It waits, behind those that were tried less often. */
  async function putOff(submission: Submission, problem: SluiceError): Promise<void> {
    events.sealingPutOff(submission, problem)
    await journal.change((draft) => {
      const current = draft.submissions[submission.submissionId]
      if (current?.state !== 'waiting' && current?.state !== 'sealing') return
      current.problem = problemOf(problem)
      if (problem.code === 'spool.full') current.attempts += 1
    })
  }

  return async (submission) => {
    try {
      await requireScanner()
      await requireSpoolRoom(submission)
    } catch (error) {
      if (isSluiceError(error)) await putOff(submission, error)
      throw error
    }
  }
}
