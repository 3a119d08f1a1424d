/** Works every job off, one duty after the other; what fails is tried again for as long as the job lives. */
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import { backoffMs } from '@sluice/protocol/process/retry'
import type { CaptureJob } from '../journal.ts'
import { problemOf } from '../problem.ts'
import { type CaptureParts, retry } from './capture-parts.ts'
import { type CaptureDuty, nextDuty } from './rules.ts'

export type Duties = Record<
  Exclude<CaptureDuty, 'wait'>,
  (current: CaptureJob, signal: AbortSignal) => Promise<void>
>

export type JobWork = {
  /** Works a job off in the background, or wakes who does. */
  carry: (id: JobId) => void
  /** Stops the work on jobs, whatever it is at, and waits until nothing of it runs any more. */
  stop: (ids: readonly JobId[]) => Promise<void>
}

/** The work on one job in this process. */
type Carried = { wake: () => void; ending: AbortController; ended: Promise<void> }

export function createJobWork(parts: CaptureParts, duties: Duties): JobWork {
  const { signal, events, random } = parts
  const carried = new Map<JobId, Carried>()
  signal.addEventListener('abort', () => {
    for (const each of carried.values()) each.wake()
  })

  function carry(id: JobId): void {
    const running = carried.get(id)
    if (running?.ending.signal.aborted)
      return parts.inBackground(running.ended.then(() => carry(id)))
    if (running) return running.wake()
    const ending = new AbortController()
    const { promise: ended, resolve } = Promise.withResolvers<void>()
    const entry: Carried = { wake: () => {}, ending, ended }
    carried.set(id, entry)
    const done = () => {
      carried.delete(id)
      resolve()
    }
    parts.inBackground(work(id, entry).finally(done))
  }

  async function stop(ids: readonly JobId[]): Promise<void> {
    const running = ids.flatMap((id) => carried.get(id) ?? [])
    for (const { ending, wake } of running) {
      ending.abort(new SluiceError('channel.closed', 'its job was purged'))
      wake()
    }
    await Promise.all(running.map(({ ended }) => ended))
  }

  async function work(id: JobId, entry: Carried): Promise<void> {
    const jobSignal = AbortSignal.any([signal, entry.ending.signal])
    let failures = 0
    while (!jobSignal.aborted) {
      const current = parts.job(id)
      if (!current) return
      const woken = new Promise<void>((wake) => (entry.wake = wake))
      const duty = nextDuty(current)
      if (duty === 'wait') {
        if (current.step === 'over') return
        await woken
        continue
      }
      try {
        await duties[duty](current, jobSignal)
        failures = 0
      } catch (error) {
        if (jobSignal.aborted) return
        if (!isSluiceError(error)) throw error
        events.dutyFailed(id, duty, error)
        await noteProblem(id, error)
        const waitMs = backoffMs(failures, retry, random())
        failures += 1
        // What only a person can mend is tried again too, but waits for a sign first or a minute.
        const patienceMs = error.retry === 'later' ? waitMs : retry.maxMs
        await Promise.race([woken, sleep(patienceMs, undefined, { ref: false })])
      }
    }
  }

  /** For people who look; a disk too full for it is no reason to stop. */
  async function noteProblem(id: JobId, problem: SluiceError): Promise<void> {
    try {
      await parts.edit(id, (draft) => (draft.problem = problemOf(problem)))
    } catch (error) {
      if (!isSluiceError(error, 'host.disk_full')) throw error
    }
  }

  return { carry, stop }
}
