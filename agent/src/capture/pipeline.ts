/** Carries every submission of a capture host from its files to the receipt for its spool, across crashes and outages. */
import type { JobId, SubmissionId } from '@sluice/protocol/ids'
import type { PurgeWork } from '../purge.ts'
import { announce } from './announce.ts'
import { type CaptureOptions, type CaptureParts, createParts } from './capture-parts.ts'
import { confirmDelivery, fetchResult } from './fetch-result.ts'
import { handleSources, handleWhenStored } from './handle-sources.ts'
import { tellInventory } from './inventory.ts'
import { createJobWork, type Duties, type JobWork } from './job-work.ts'
import { finish } from './over.ts'
import { createAbandonment, createPurgeWork } from './purge-work.ts'
import { createWarning } from './quarantine.ts'
import { createKeyStock } from './receive-keys.ts'
import { recover } from './recover.ts'
import { createRemoteStates } from './remote-states.ts'
import { orderRemoval, removeSpool, wipeSeed } from './remove-spool.ts'
import { createSealing, type Sealing } from './sealing.ts'
import { type NewSubmission, takeIn } from './take-in.ts'
import { createTurns } from './turns.ts'
import { upload } from './upload-spool.ts'

export type Capture = AsyncDisposable & {
  /**
   * Takes files in, durably; sealing follows by itself.
   *
   * @throws SluiceError `media.not_a_file`, `usage` for relative paths.
   */
  submit(submission: NewSubmission): Promise<SubmissionId>
  /** Asks in the background how these jobs are doing; progress tells when something changed. */
  refresh(jobIds: readonly JobId[]): void
  /** Cleans up after a process before this one and begins to work. */
  start(): Promise<void>
  /** What an emergency purge takes from this host. */
  readonly purging: PurgeWork
}

/** Jobs uploaded, and results opened, at the same time. */
const atOnce = 2

/** Registers with the link; nothing runs before it starts, or before `start`. */
export function createCapture(options: CaptureOptions): Capture {
  const parts = createParts(options)
  const { link, journal } = parts
  const wantKeys = createKeyStock(parts, () => sealing.wake())
  const warn = createWarning(parts)
  const tellAbandoned = createAbandonment(parts)
  const sealing: Sealing = createSealing(parts, {
    keyTaken: wantKeys,
    sealed: (id) => work.carry(id),
    quarantined: warn,
  })
  const work: JobWork = createJobWork(parts, dutiesOf(parts, sealing))
  const states = createRemoteStates(parts, work)
  const purging = createPurgeWork(parts, {
    ...{ sealing, work },
    wiped() {
      sealing.wake()
      wantKeys()
      tellAbandoned()
    },
  })

  link.onCommand('spool.delete', (command) => orderRemoval(parts, work, command))
  link.onCommand('inventory', (command) => tellInventory(parts, command))
  link.onConnected(() => {
    wantKeys()
    sealing.wake()
    tellAbandoned()
    warn()
    states.askAll()
  })

  return {
    purging,
    async submit(submission) {
      const id = await takeIn(parts, submission)
      sealing.wake()
      return id
    },
    refresh: (jobIds) => states.ask(jobIds),
    async start() {
      await recover(parts)
      for (const each of Object.values(journal.data.jobs))
        if (each.step !== 'over') work.carry(each.jobId)
      parts.inBackground(sealing.keepOn())
    },
    [Symbol.asyncDispose]: () => parts[Symbol.asyncDispose](),
  }
}

/** Which step does what `rules.ts` decides to do next. */
function dutiesOf(parts: CaptureParts, sealing: Sealing): Duties {
  const uploads = createTurns(atOnce)
  const openings = createTurns(atOnce)
  return {
    async announce(current, until) {
      if (!(await announce(parts, current, until))) sealing.wake()
    },
    upload: (current, until) => uploads.take(() => upload(parts, current, until), until),
    'handle-source-stored': (current, until) =>
      uploads.take(() => handleWhenStored(parts, current, until), until),
    'fetch-result': (current, until) =>
      openings.take(() => fetchResult(parts, current, until), until),
    'handle-source': (current) => handleSources(parts, current),
    'confirm-delivery': (current, until) => confirmDelivery(parts, current, until),
    'delete-spool': (current) => removeSpool(parts, current),
    'wipe-seed': (current) => wipeSeed(parts, current),
    finish: (current) => finish(parts, current),
  }
}
