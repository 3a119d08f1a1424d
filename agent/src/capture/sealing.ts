/** Seals what waits, one submission at a time, those first that were tried least. */
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { type JobId, jobId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { backoffMs } from '@sluice/protocol/process/retry'
import type { JournalData, Submission } from '../journal.ts'
import { type CaptureParts, retry } from './capture-parts.ts'
import { createSealer, type SealingNews } from './seal-submission.ts'

export type Sealing = {
  /** Seals until the agent ends. */
  keepOn(): Promise<void>
  /** There may be something to seal, or something to seal it to. */
  wake(): void
  /** Whether this is the job that is being sealed. */
  isAt(id: JobId): boolean
  /** Ends the sealing under way if it makes one of these jobs, and waits until it has. */
  stop(ids: ReadonlySet<JobId>): Promise<void>
}

export function createSealing(parts: CaptureParts, news: SealingNews): Sealing {
  const { journal, signal, now, random } = parts
  const seal = createSealer(parts, news)
  let current: { jobId: JobId; ending: AbortController; ended: Promise<void> } | undefined
  let wake = () => {}
  signal.addEventListener('abort', () => wake())

  async function sealNext(submission: Submission): Promise<void> {
    const id = newId(jobId, now())
    const ending = new AbortController()
    const { promise: ended, resolve } = Promise.withResolvers<void>()
    current = { jobId: id, ending, ended }
    try {
      await seal(submission, id, ending.signal)
    } finally {
      current = undefined
      resolve()
    }
  }

  return {
    async keepOn() {
      let failures = 0
      while (!signal.aborted) {
        const next = nextToSeal(journal.data)
        const woken = new Promise<void>((resolve) => (wake = resolve))
        try {
          if (next) {
            await sealNext(next)
            failures = 0
            continue
          }
          await woken
        } catch (error) {
          if (signal.aborted) return
          if (!isSluiceError(error)) throw error
          const waitMs = backoffMs(failures, retry, random())
          failures += 1
          await Promise.race([woken, sleep(waitMs, undefined, { ref: false })])
        }
      }
    },
    wake: () => wake(),
    isAt: (id) => current?.jobId === id,
    async stop(ids) {
      if (!current || !ids.has(current.jobId)) return
      current.ending.abort(new SluiceError('channel.closed', 'its job was purged'))
      await current.ended
    },
  }
}

function nextToSeal(data: Readonly<JournalData>): Submission | undefined {
  return (
    Object.values(data.submissions)
      // One at a time: what is still called sealing here ended without a record, on a full disk.
      .filter((each) => each.state === 'waiting' || each.state === 'sealing')
      .toSorted(
        (left, right) => left.attempts - right.attempts || left.createdAtMs - right.createdAtMs,
      )[0]
  )
}
