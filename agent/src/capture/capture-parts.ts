/** What every step of the capture pipeline is handed: the outside world, the journal, and one end for all. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { JobId, SubmissionId } from '@sluice/protocol/ids'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { Grant } from '@sluice/protocol/messages'
import type { CommandOf, ControlLink } from '../control-link.ts'
import type { Identity } from '../enrol.ts'
import type { CaptureJob, Journal, JournalData, Submission } from '../journal.ts'
import type { ReceiptOutbox } from '../receipts.ts'
import type { ObjectReader } from '../transfer/download.ts'
import { type LinkSpeed, createLinkSpeed } from '../transfer/link-speed.ts'
import type { ObjectClient } from '../transfer/object-client.ts'
import type { Bandwidth } from '../transfer/upload.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import { type GatePolicy, gatePolicy } from './gate-policy.ts'
import type { Stage } from './present.ts'
import type { CaptureDuty } from './rules.ts'
import type { Infection } from './scan.ts'

/** How far a submission is, for people who watch; lives in memory only. */
export type Progress = {
  submissionId: SubmissionId
  jobId?: JobId
  stage: Stage
  done?: number
  total?: number
}

export type CaptureOptions = {
  link: Pick<ControlLink, 'request' | 'onCommand' | 'onConnected' | 'state'>
  journal: Journal
  identity: Identity
  receipts: Pick<ReceiptOutbox, 'wake'>
  client: ObjectClient
  openObject: (options: {
    grant: () => Promise<Grant>
    sealedBytes: number
    signal: AbortSignal
  }) => ObjectReader
  spoolDir: string
  resultsDir: string
  reserveBytes: number
  isolation: IsolationLevel
  /** Found once; without it films and most sounds are refused. */
  ffmpeg: Ffmpeg | undefined
  /** What the operator decided about media; default as in the configuration. */
  gate?: GatePolicy
  partsInParallel: number
  bandwidth?: Bandwidth
  events: CaptureEvents
  /** Told of every step, for people who watch. */
  progress: (progress: Progress) => void
  now?: () => number
  random?: () => number
}

/** What is worth a log line; ids, counts and codes only. */
export type CaptureEvents = {
  submitted(submission: Submission): void
  sealed(job: CaptureJob): void
  submissionRefused(submission: Submission, problem: SluiceError): void
  sealingPutOff(submission: Submission, problem: SluiceError): void
  /** Refused by a scanner; the submission's own refusal follows. */
  infected(found: Infection): void
  stored(job: CaptureJob): void
  resultDelivered(job: CaptureJob): void
  spoolDeleted(job: CaptureJob): void
  jobOver(job: CaptureJob): void
  jobNotice(command: CommandOf<'job.notice'>): void
  dutyFailed(id: JobId, duty: CaptureDuty, problem: SluiceError): void
}

/** Between attempts at what failed. */
export const retry = { minMs: 1000, maxMs: 60_000 }

export type CaptureParts = Required<Omit<CaptureOptions, 'bandwidth'>> &
  Pick<CaptureOptions, 'bandwidth'> & {
    /** Aborted when the agent ends. */
    signal: AbortSignal
    /** The end of the agent waits for it. */
    inBackground: (task: Promise<void>) => void
    /** A question in the background that the next connection asks again, should it fail. */
    ask: (question: Promise<void>) => void
    job: (id: JobId) => CaptureJob | undefined
    /** What uploads carried lately. */
    linkSpeed: LinkSpeed
    /** Changes the record of a job, if it still has one. */
    edit: (id: JobId, change: (draft: CaptureJob, all: JournalData) => void) => Promise<void>
    tell: (of: CaptureJob, stage: Stage, more?: Partial<Progress>) => void
  }

/** Disposed, it tells everything to end and waits for it. */
export function createParts(options: CaptureOptions): CaptureParts & AsyncDisposable {
  const { journal, now = Date.now, random = Math.random, gate = gatePolicy.parse({}) } = options
  const closing = new AbortController()
  const { signal } = closing
  const tasks = new Set<Promise<void>>()

  function inBackground(task: Promise<void>): void {
    tasks.add(task)
    // Only a bug rejects here, and then the process ends: what is owed stands in the journal.
    void task.finally(() => tasks.delete(task))
  }

  return {
    ...{ ...options, now, random, gate, signal, inBackground },
    linkSpeed: createLinkSpeed(options.bandwidth),
    ask(question) {
      const answered = question.catch((error: unknown) => {
        if (!isSluiceError(error) && !signal.aborted) throw error
      })
      inBackground(answered)
    },
    job: (id) => journal.data.jobs[id],
    async edit(id, change) {
      await journal.change((draft) => {
        const found = draft.jobs[id]
        if (!found) return
        change(found, draft)
        found.updatedAtMs = now()
      })
    },
    tell(of, stage, more = {}) {
      options.progress({ submissionId: of.submissionId, jobId: of.jobId, stage, ...more })
    },
    async [Symbol.asyncDispose]() {
      closing.abort(new SluiceError('channel.closed', 'the agent is ending', { retry: 'later' }))
      await Promise.allSettled(tasks)
    },
  }
}

/** What is asked while connected, one at a time, whoever wants it. */
export function createErrand(
  { link, ask }: Pick<CaptureParts, 'link' | 'ask'>,
  run: () => Promise<void>,
): () => void {
  let underWay = false
  return () => {
    if (underWay || link.state !== 'connected') return
    underWay = true
    ask(run().finally(() => (underWay = false)))
  }
}
