/** Carries every submission of a capture host from its files to the receipt for its spool, across crashes and outages. */
import { createHash } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import {
  infectionId,
  type JobId,
  type ObligationId,
  type SubmissionId,
  jobId,
  submissionId,
} from '@sluice/protocol/ids'
import { type SourcePolicy, isOver } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { Grant } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { backoffMs } from '@sluice/protocol/process/retry'
import type { CommandOf, ControlLink } from '../control-link.ts'
import type { Identity } from '../enrol.ts'
import type { CaptureJob, Journal, JournalData, Submission } from '../journal.ts'
import { problemOf } from '../problem.ts'
import type { PurgeWork } from '../purge.ts'
import { type ReceiptOutbox, signReceipt } from '../receipts.ts'
import type { ObjectReader } from '../transfer/download.ts'
import type { ObjectClient } from '../transfer/object-client.ts'
import { type Bandwidth, uploadSpool } from '../transfer/upload.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import { contentKey, forgetContents, rememberContents } from './contents.ts'
import { type GatePolicy, gatePolicy, scanPolicyOf } from './gate-policy.ts'
import { openResult, removeUndelivered } from './open-result.ts'
import type { Stage } from './present.ts'
import { purgeSpools, takeFromJournal } from './purge.ts'
import { type CaptureDuty, nextDuty } from './rules.ts'
import { type Infection, createScanner } from './scan.ts'
import { type SealedFacts, sealInChild } from './seal.ts'
import { handleSource, identifySource } from './sources.ts'
import {
  deleteSealed,
  deleteSpool,
  hasResultSeed,
  listSpool,
  openSpooledArchive,
  prepareSpool,
  readSpooledEnvelope,
  requireRoom,
  spooledBytes,
  spooledJobs,
} from './spool.ts'
import { createTurns } from './turns.ts'

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

export type NewSubmission = {
  files: string[]
  analyser: string
  source: SourcePolicy
  moveTo?: string | undefined
  origin: 'command' | 'watch'
  /** SHA-256 of files of a watched folder, so that their content is known again. */
  contents?: readonly string[]
}

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

/** A source that keeps failing in ways that may pass is tried this often. */
const sealAttemptsMax = 5
/** What is wrong with one sealing, or with the receive key it used, and not with its source. */
const mendedBySealing: ReadonlySet<string> = new Set([
  'keys.destroyed',
  'keys.damaged',
  'keys.escrow_mismatch',
  'spool.damaged',
])
/** What passes without anybody's doing, or once somebody looks after the host. */
const patientWith: ReadonlySet<string> = new Set([
  'spool.full',
  'host.disk_full',
  'scan.unavailable',
  'scan.stale',
  'scan.unsafe',
])
/** Caused by one source of several, or by their sum, without a word about which. */
const ofSomeSource: ReadonlySet<string> = new Set(['internal', 'object.too_large'])
/** What a sealing told of its sources before it failed. */
type Found = { blamed?: number; infections: Infection[] }
/** Jobs uploaded, and results opened, at the same time. */
const atOnce = 2
/** Ended jobs, and refused submissions, that stay in the journal for `status`. */
const overKept = 500
const retry = { minMs: 1000, maxMs: 60_000 }

/** The work on one job in this process. */
type Carried = { wake: () => void; ending: AbortController; ended: Promise<void> }

export function createCapture(options: CaptureOptions): Capture {
  const { link, journal, identity, spoolDir, resultsDir, events } = options
  const now = options.now ?? Date.now
  const random = options.random ?? Math.random
  const closing = new AbortController()
  const { signal } = closing
  const uploads = createTurns(atOnce)
  const openings = createTurns(atOnce)
  const gate = options.gate ?? gatePolicy.parse({})
  const carried = new Map<JobId, Carried>()
  const tasks = new Set<Promise<void>>()
  let sealing: Promise<void> | undefined
  /** The sealing under way, and how it is ended for a purge. */
  let sealingNow: { jobId: JobId; ending: AbortController; ended: Promise<void> } | undefined
  let wakeSealing = () => {}
  let supplying: Promise<void> | undefined
  let abandoning: Promise<void> | undefined
  let warning: Promise<void> | undefined
  let scannerSeenAtMs = -Infinity

  signal.addEventListener('abort', () => {
    wakeSealing()
    for (const each of carried.values()) each.wake()
  })

  function inBackground(task: Promise<void>): void {
    tasks.add(task)
    // Only a bug rejects here, and then the process ends: what is owed stands in the journal.
    void task.finally(() => tasks.delete(task))
  }

  function job(id: JobId): CaptureJob | undefined {
    return journal.data.jobs[id]
  }

  async function edit(id: JobId, change: (draft: CaptureJob, all: JournalData) => void) {
    await journal.change((draft) => {
      const found = draft.jobs[id]
      if (!found) return
      change(found, draft)
      found.updatedAtMs = now()
    })
  }

  function tell(of: CaptureJob, stage: Progress['stage'], more: Partial<Progress> = {}): void {
    options.progress({ submissionId: of.submissionId, jobId: of.jobId, stage, ...more })
  }

  // ---------------------------------------------------------------- receive keys

  /** Tops the stock up. Each key is good for one sealing attempt. */
  async function supplyKeys(): Promise<void> {
    for (;;) {
      await journal.change((draft) => {
        draft.receiveKeys = draft.receiveKeys.filter((key) => key.expiresAtMs > now())
      })
      const stock = journal.data.receiveKeys.length
      if (stock >= limits.receiveKeysPerAgent || signal.aborted) return
      const reply = await link.request('receive-keys.request', { stock }, { signal })
      if (reply.body.keys.length === 0) return
      await journal.change((draft) => {
        const known = new Set(draft.receiveKeys.map((key) => key.receiveKeyId))
        draft.receiveKeys.push(...reply.body.keys.filter((key) => !known.has(key.receiveKeyId)))
      })
      wakeSealing()
    }
  }

  function wantKeys(): void {
    if (supplying || link.state !== 'connected') return
    supplying = supplyKeys()
      .catch((error: unknown) => {
        // Asked again with the next sealing or connection; a lack of keys is said by the sealing.
        if (!isSluiceError(error) && !signal.aborted) throw error
      })
      .finally(() => (supplying = undefined))
    inBackground(supplying)
  }

  // ---------------------------------------------------------------- sealing

  async function keepSealing(): Promise<void> {
    let failures = 0
    while (!signal.aborted) {
      const next = nextToSeal()
      const woken = new Promise<void>((wake) => (wakeSealing = wake))
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
  }

  function nextToSeal(): Submission | undefined {
    return (
      Object.values(journal.data.submissions)
        // One at a time: what is still called sealing here ended without a record, on a full disk.
        .filter((each) => each.state === 'waiting' || each.state === 'sealing')
        .toSorted(
          (left, right) => left.attempts - right.attempts || left.createdAtMs - right.createdAtMs,
        )[0]
    )
  }

  /** Seals one submission, or says why it waits by throwing. */
  async function sealNext(submission: Submission): Promise<void> {
    const id = newId(jobId, now())
    const ending = new AbortController()
    const { promise: ended, resolve } = Promise.withResolvers<void>()
    sealingNow = { jobId: id, ending, ended }
    try {
      await sealAs(submission, id, ending.signal)
    } finally {
      sealingNow = undefined
      resolve()
    }
  }

  /**
   * A sealing that would only wait for the scanner uses up no receive key.
   *
   * @throws SluiceError `scan.*`, all of which pass.
   */
  async function requireScanner(submission: Submission): Promise<void> {
    if (scanPolicyOf(gate.scan) !== 'require') return
    if (performance.now() - scannerSeenAtMs < limits.scanCheckKeepMs) return
    try {
      await createScanner({ settings: gate.scan, isolation: options.isolation }).check()
      scannerSeenAtMs = performance.now()
    } catch (error) {
      if (!isSluiceError(error)) throw error
      await putOff(submission, error)
      throw error
    }
  }

  /**
   * Neither does one for which the spool has no room; smaller ones go before it.
   *
   * @throws SluiceError `spool.full`, which passes.
   */
  async function requireSpoolRoom(submission: Submission): Promise<void> {
    const bytes = submission.sources.reduce((sum, source) => sum + source.bytes, 0)
    try {
      await requireRoom(spoolDir, { bytes, reserveBytes: options.reserveBytes })
    } catch (error) {
      // What else is wrong with the spool is said by the sealing.
      if (!isSluiceError(error)) return
      await putOff(submission, error)
      throw error
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

  async function sealAs(submission: Submission, id: JobId, purged: AbortSignal): Promise<void> {
    await requireScanner(submission)
    await requireSpoolRoom(submission)
    const key = await journal.change((draft) => {
      const usable = draft.receiveKeys.findIndex((each) => each.expiresAtMs > now())
      const current = draft.submissions[submission.submissionId]
      // A purge may have come first.
      if (usable < 0 || (current?.state !== 'waiting' && current?.state !== 'sealing'))
        return undefined
      current.state = 'sealing'
      current.jobId = id
      current.attempts += 1
      return draft.receiveKeys.splice(usable, 1)[0]
    })
    wantKeys()
    if (!key) {
      if (journal.data.submissions[submission.submissionId]?.state === 'purged') return
      const none = new SluiceError('spool.no_receive_key', 'no receive key is left to seal to', {
        retry: 'later',
        hint: 'Sealing goes on by itself once the control plane can be reached.',
      })
      events.sealingPutOff(submission, none)
      throw none
    }
    const found: Found = { infections: [] }
    try {
      const facts = await sealInChild(
        {
          jobId: id,
          analyser: submission.analyser,
          sources: submission.sources,
          agentId: identity.agentId,
          receiveKeyId: key.receiveKeyId,
          publicKey: key.publicKey,
          spoolDir,
          reserveBytes: options.reserveBytes,
          isolation: options.isolation,
          ffmpeg: options.ffmpeg,
          gate,
          quarantined: Object.keys(journal.data.quarantine),
        },
        {
          signal: AbortSignal.any([signal, purged]),
          progress: (progress) =>
            options.progress({ submissionId: submission.submissionId, jobId: id, ...progress }),
          blamed: (source) => (found.blamed = source),
          infected: (infection) => void found.infections.push(infection),
        },
      )
      await recordSealed(submission, id, key.receiveKeyId, facts)
    } catch (error) {
      if (!job(id)) await deleteSpool(spoolDir, id)
      // What a purge has ended is not wanted any more, or it was none of its business and goes again.
      if (purged.aborted && !signal.aborted) return
      if (signal.aborted || !isSluiceError(error)) throw error
      await recordUnsealed(submission.submissionId, error, found)
      if (error.retry === 'later') throw error
    }
  }

  async function recordSealed(
    submission: Submission,
    id: JobId,
    receiveKeyId: CaptureJob['receiveKeyId'],
    facts: SealedFacts,
  ): Promise<void> {
    const sealedJob: CaptureJob = {
      jobId: id,
      submissionId: submission.submissionId,
      analyser: submission.analyser,
      sources: submission.sources,
      source: submission.source,
      moveTo: submission.moveTo,
      ...facts,
      receiveKeyId,
      sealedAtMs: now(),
      step: 'sealed',
      deliveryConfirmed: false,
      sourceDone: submission.source.action === 'keep',
      spoolDeleteWanted: false,
      spoolGone: false,
      seedGone: false,
      noResult: false,
      updatedAtMs: now(),
    }
    const wanted = await journal.change((draft) => {
      const current = draft.submissions[submission.submissionId]
      // A purge came in between: its scope holds this draft, and nothing else may know it.
      if (current?.state !== 'sealing' || current.jobId !== id) return false
      draft.jobs[id] = sealedJob
      current.state = 'sealed'
      return true
    })
    if (!wanted) return await deleteSpool(spoolDir, id)
    events.sealed(sealedJob)
    carry(id)
  }

  /** After a failure that may pass the submission waits again, a few times; else it is refused. */
  async function recordUnsealed(
    which: SubmissionId,
    problem: SluiceError,
    found: Found,
  ): Promise<void> {
    const after = await journal.change((draft) => {
      for (const infection of found.infections) quarantine(draft, infection)
      return putBack(draft, which, problem, found.blamed)
    })
    for (const infection of found.infections) events.infected(infection)
    for (const each of after) tellUnsealed(each, problem)
    wantWarned()
  }

  /** Hash and reason stay; an administrator is still to be told. */
  function quarantine(draft: JournalData, { sha256, ...reason }: Infection): void {
    if (draft.quarantine[sha256] !== undefined) return
    const id = newId(infectionId, now())
    draft.quarantine[sha256] = { ...reason, infectionId: id, foundAtMs: now(), told: false }
    const newestFirst = Object.entries(draft.quarantine).toSorted(
      ([, one], [, other]) => other.foundAtMs - one.foundAtMs,
    )
    draft.quarantine = Object.fromEntries(newestFirst.slice(0, limits.quarantineEntriesMax))
  }

  /** @returns The submission as it is now, and the one that its bad source became. */
  function putBack(
    draft: JournalData,
    which: SubmissionId,
    problem: SluiceError,
    blamed?: number,
  ): Submission[] {
    const current = draft.submissions[which]
    if (!current || current.state === 'purged') return []
    // No room and no scanner are no fault of the source, and no reason to ever give up.
    const patient = patientWith.has(problem.code)
    const again = problem.retry === 'later' && (patient || current.attempts < sealAttemptsMax)
    const aside = again ? undefined : setAside(draft, current, { blamed, problem })
    current.state = again || aside ? 'waiting' : 'refused'
    if (current.state === 'refused') forgetContents(draft, which)
    if (aside) aside.problem = problemOf(problem)
    else current.problem = problemOf(problem)
    delete current.jobId
    forgetOldest(draft)
    return structuredClone(aside ? [current, aside] : [current])
  }

  /**
   * A watched folder's batch was put together by nobody: one bad source is refused by itself, and
   * the others go on without it; where none can be blamed, half of them go on as a batch of their
   * own. Who names files together gets them together, or not at all.
   */
  function setAside(
    draft: JournalData,
    batch: Submission,
    why: { blamed: number | undefined; problem: SluiceError },
  ): Submission | undefined {
    const { length } = batch.sources
    if (batch.origin !== 'watch' || length < 2) return undefined
    const { blamed } = why
    if (blamed === undefined && !ofSomeSource.has(why.problem.code)) return undefined
    const sources =
      blamed === undefined
        ? batch.sources.splice(Math.ceil(length / 2))
        : batch.sources.splice(blamed, 1)
    const aside: Submission = {
      ...structuredClone(batch),
      ...{ submissionId: newId(submissionId, now()), sources, attempts: 0 },
      state: blamed === undefined ? 'waiting' : 'refused',
    }
    delete aside.jobId
    delete batch.problem
    batch.attempts = 0
    draft.submissions[aside.submissionId] = aside
    return aside
  }

  function tellUnsealed(after: Submission, problem: SluiceError): void {
    if (after.state === 'refused') {
      events.submissionRefused(after, problem)
      options.progress({ submissionId: after.submissionId, stage: 'refused' })
    } else events.sealingPutOff(after, problem)
  }

  // ---------------------------------------------------------------- jobs

  /** Works a job off in the background, or wakes who does. */
  function carry(id: JobId): void {
    const running = carried.get(id)
    if (running?.ending.signal.aborted) return inBackground(running.ended.then(() => carry(id)))
    if (running) return running.wake()
    const ending = new AbortController()
    const { promise: ended, resolve } = Promise.withResolvers<void>()
    const entry: Carried = { wake: () => {}, ending, ended }
    carried.set(id, entry)
    const done = () => {
      carried.delete(id)
      resolve()
    }
    inBackground(work(id, entry).finally(done))
  }

  /** Stops the work on jobs, whatever it is at, and waits until nothing of it runs any more. */
  async function stopCarrying(ids: readonly JobId[]): Promise<void> {
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
      const current = job(id)
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
        if (error.code === 'spool.damaged' && duty === 'upload')
          await abandon(current, error, jobSignal)
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
      await edit(id, (draft) => (draft.problem = problemOf(problem)))
    } catch (error) {
      if (!isSluiceError(error, 'host.disk_full')) throw error
    }
  }

  const duties: Record<
    Exclude<CaptureDuty, 'wait'>,
    (current: CaptureJob, signal: AbortSignal) => Promise<void>
  > = {
    announce,
    upload: (current, until) => uploads.take(() => upload(current, until), until),
    'handle-source-stored': (current, until) =>
      uploads.take(() => handleWhenStored(current, until), until),
    'fetch-result': (current, until) => openings.take(() => fetchResult(current, until), until),
    'handle-source': handleSources,
    'confirm-delivery': confirmDelivery,
    'delete-spool': deleteSpooled,
    async 'wipe-seed'(current) {
      await deleteSpool(spoolDir, current.jobId)
      await edit(current.jobId, (draft) => (draft.seedGone = true))
    },
    finish,
  }

  async function announce(current: CaptureJob, until: AbortSignal): Promise<void> {
    tell(current, 'announce')
    let attachment: Buffer
    try {
      attachment = await readSpooledEnvelope(spoolDir, current.jobId)
    } catch (error) {
      if (!isSluiceError(error, 'spool.damaged')) throw error
      return sealAgain(current, error)
    }
    const { jobId: id, analyser, mediaCount, sealedBytes, spoolSha256, receiveKeyId } = current
    const body = { jobId: id, analyser, mediaCount, sealedBytes, spoolSha256, receiveKeyId }
    const { sealedHeader, sealedAtMs, source } = current
    try {
      const reply = await link.request(
        'job.announce',
        { ...body, sealedHeader, sealedAtMs, source },
        { attachment, signal: until },
      )
      await edit(id, (draft) => {
        draft.step = 'announced'
        draft.remoteState = reply.body.state
        draft.spoolObligationId = reply.body.spoolObligationId
        delete draft.problem
      })
    } catch (error) {
      if (!isSluiceError(error) || error.retry === 'later') throw error
      await sealAgain(current, error)
    }
  }

  /** This sealing is of no use: it is thrown away and redone from the source. */
  async function sealAgain(current: CaptureJob, why: SluiceError): Promise<void> {
    // Only what another sealing with another key mends is tried again; what is refused stays refused.
    const problem = mendedBySealing.has(why.code)
      ? new SluiceError(why.code, why.message, { retry: 'later', cause: why })
      : why
    // In one step, and before the spool: a crash in between leaves a folder that nobody explains,
    // and the next start removes it.
    const after = await journal.change((draft) => {
      delete draft.jobs[current.jobId]
      return putBack(draft, current.submissionId, problem)
    })
    await deleteSpool(spoolDir, current.jobId)
    for (const each of after) tellUnsealed(each, problem)
    wakeSealing()
  }

  async function upload(current: CaptureJob, until: AbortSignal): Promise<void> {
    await using archive = await openSpooledArchive(spoolDir, current.jobId)
    const { sealedBytes } = current
    tell(current, 'upload', { done: 0, total: sealedBytes })
    const state = await uploadSpool({
      jobId: current.jobId,
      archive,
      sealedBytes,
      client: options.client,
      link,
      partsInParallel: options.partsInParallel,
      ...(options.bandwidth ? { bandwidth: options.bandwidth } : {}),
      progress: (heldBytes) => tell(current, 'upload', { done: heldBytes, total: sealedBytes }),
      signal: until,
    })
    await edit(current.jobId, (draft) => {
      draft.remoteState = state
      if (state === 'stored') draft.step = 'stored'
      delete draft.problem
    })
    if (state !== 'stored') return
    events.stored(current)
    tell(current, 'stored')
  }

  /** The archive is gone from the spool: the job can never be completed. */
  async function abandon(current: CaptureJob, why: SluiceError, until: AbortSignal): Promise<void> {
    const body = { jobId: current.jobId, problem: problemOf(why) }
    const reply = await link.request('job.abandon', body, { signal: until })
    await edit(current.jobId, (draft) => (draft.remoteState = reply.body.state))
  }

  /** Reads the whole stored object back before the only other copy may go. */
  async function handleWhenStored(current: CaptureJob, until: AbortSignal): Promise<void> {
    const { jobId: id, sealedBytes } = current
    const grant = async () =>
      (await link.request('upload.verify', { jobId: id }, { signal: until })).body.grant
    const reader = options.openObject({ grant, sealedBytes, signal: until })
    const digest = createHash('sha256')
    const stepBytes = 8 * 1024 * 1024
    for (let offset = 0; offset < sealedBytes; offset += stepBytes)
      digest.update(await reader.read(offset, Math.min(stepBytes, sealedBytes - offset)))
    if (digest.digest('hex') !== current.spoolSha256)
      throw new SluiceError(
        'store.digest_mismatch',
        `the stored object of job ${id} is not the spool`,
        {
          hint: 'The source was kept. Look at the object store; retry or delete the job.',
        },
      )
    await handleSources(current)
  }

  async function handleSources(current: CaptureJob): Promise<void> {
    let problem: SluiceError | undefined
    for (const source of current.sources) {
      try {
        await handleSource(source, { action: current.source.action, moveTo: current.moveTo })
      } catch (error) {
        if (!isSluiceError(error)) throw error
        problem = error
      }
    }
    // A file that is another one by now, or can't be moved, stays where it is; that is said, not retried.
    if (problem) events.dutyFailed(current.jobId, 'handle-source', problem)
    await edit(current.jobId, (draft) => {
      draft.sourceDone = true
      if (problem) draft.sourceProblem = problemOf(problem)
    })
  }

  async function fetchResult(current: CaptureJob, until: AbortSignal): Promise<void> {
    const { jobId: id } = current
    tell(current, 'result')
    let reply
    try {
      reply = await link.request('result.fetch', { jobId: id }, { signal: until })
    } catch (error) {
      const none = isSluiceError(error, 'result.not_found') || isSluiceError(error, 'job.not_found')
      if (!none) throw error
      await edit(id, (draft) => (draft.noResult = true))
      return
    }
    const sealedResult = reply.attachment
    if (!sealedResult) throw new SluiceError('channel.malformed', 'a result without its bytes')
    if (!(await hasResultSeed(spoolDir, id)))
      throw new SluiceError('spool.damaged', `the key for the result of job ${id} is gone`)
    const resultPath = await openResult(
      {
        ...{ spoolDir, resultsDir, jobId: id, sealedResult },
        nodeId: reply.body.nodeId,
        lease: reply.body.lease,
        analyser: current.analyser,
        sealedHeaderSha256: current.sealedHeaderSha256,
        authorities: identity.authorities(),
        sources: current.sources.map((source) => source.path),
      },
      until,
    )
    const sealedResultSha256 = createHash('sha256').update(sealedResult).digest('hex')
    await edit(id, (draft) => {
      draft.step = 'delivered'
      draft.resultPath = resultPath
      draft.sealedResultSha256 = sealedResultSha256
      delete draft.problem
    })
    events.resultDelivered(current)
  }

  async function confirmDelivery(current: CaptureJob, until: AbortSignal): Promise<void> {
    const { jobId: id, sealedResultSha256 } = current
    if (!sealedResultSha256) throw new SluiceError('internal', 'a delivered result without digest')
    const reply = await link.request(
      'result.delivered',
      { jobId: id, sealedResultSha256 },
      { signal: until },
    )
    await edit(id, (draft) => {
      draft.deliveryConfirmed = true
      draft.remoteState = reply.body.state
    })
  }

  async function deleteSpooled(current: CaptureJob): Promise<void> {
    const { jobId: id, spoolObligationId } = current
    tell(current, 'delete')
    const startedAtMs = now()
    const checked = await deleteSealed(spoolDir, id)
    if (!spoolObligationId) throw new SluiceError('internal', 'a deletion without its obligation')
    const receipt = receiptFor(current, spoolObligationId, {
      startedAtMs,
      checked,
      method: 'unlink',
    })
    await edit(id, (draft, all) => {
      draft.spoolGone = true
      all.receipts[spoolObligationId] = receipt
    })
    options.receipts.wake()
    events.spoolDeleted(current)
  }

  function receiptFor(
    of: Pick<CaptureJob, 'jobId' | 'sealedHeaderSha256'>,
    obligationId: ObligationId,
    facts: { startedAtMs: number; checked: string[]; method: 'unlink' | 'never-held' },
  ) {
    const holder = { kind: 'capture-spool' as const, id: identity.agentId }
    const predicate = { jobId: of.jobId, obligationId, holder, ...facts, wipedAtMs: now() }
    return signReceipt(identity, predicate, of.sealedHeaderSha256)
  }

  async function finish(current: CaptureJob): Promise<void> {
    await journal.change((draft) => {
      const found = draft.jobs[current.jobId]
      if (found) found.step = 'over'
      forgetOldest(draft)
    })
    events.jobOver(current)
    tell(current, 'over')
  }

  // ---------------------------------------------------------------- what the control plane says

  link.onCommand('spool.delete', async (command) => {
    const known = job(command.jobId)
    if (!known) {
      // A purge may have taken the job from the journal and not yet from everywhere else.
      await stopCarrying([command.jobId])
      const startedAtMs = now()
      const checked = await deleteSealed(spoolDir, command.jobId)
      await deleteSpool(spoolDir, command.jobId)
      const purged = journal.data.purgedJobs[command.jobId]
      const receipt = receiptFor(command, command.obligationId, {
        startedAtMs,
        checked: purged ? ['removed by a purge before', ...checked] : checked,
        method: purged ? 'unlink' : 'never-held',
      })
      await journal.change((draft) => {
        draft.receipts[command.obligationId] = receipt
      })
      return options.receipts.wake()
    }
    await edit(command.jobId, (draft) => {
      draft.spoolDeleteWanted = true
      draft.spoolObligationId = command.obligationId
      // The receipt is signed again, should the control plane have lost the first one.
      draft.spoolGone = false
      if (draft.remoteState === undefined || !isOver(draft.remoteState))
        draft.remoteState = 'deleting'
      if (draft.step === 'over') draft.step = 'delivered'
    })
    carry(command.jobId)
  })

  link.onCommand('result.ready', async (command) => {
    await edit(command.jobId, (draft) => {
      if (draft.remoteState !== 'deleting') draft.remoteState = 'analysed'
    })
    if (job(command.jobId)) carry(command.jobId)
  })

  link.onCommand('job.notice', async (command) => {
    events.jobNotice(command)
    await edit(command.jobId, (draft) => learn(draft, command))
    if (job(command.jobId)) carry(command.jobId)
  })

  function learn(
    draft: CaptureJob,
    heard: {
      state: CaptureJob['remoteState']
      problem?: CaptureJob['problem']
      expiresAtMs?: number | undefined
    },
  ): void {
    const changed = draft.remoteState !== heard.state
    draft.remoteState = heard.state
    if (heard.problem) draft.problem = heard.problem
    if (heard.expiresAtMs !== undefined) draft.expiresAtMs = heard.expiresAtMs
    if (changed && heard.state === 'leased') tell(draft, 'analyse')
  }

  /** After an outage: what became of the jobs meanwhile. */
  async function askStates(): Promise<void> {
    const open = Object.values(journal.data.jobs).filter(
      (each) => each.step !== 'over' && each.step !== 'sealed',
    )
    await learnStates(open.map((each) => each.jobId))
  }

  async function learnStates(ids: readonly JobId[]): Promise<void> {
    for (let first = 0; first < ids.length; first += 100) {
      const jobIds = ids.slice(first, first + 100)
      const reply = await link.request('job.states', { jobIds }, { signal })
      for (const heard of reply.body.jobs) {
        await edit(heard.jobId, (draft) => learn(draft, heard))
        carry(heard.jobId)
      }
    }
  }

  /** The control plane need not wait for the upload of what a purge has taken. */
  async function abandonPurged(): Promise<void> {
    const left = Object.entries(journal.data.purgedJobs).filter(([, { abandon: owed }]) => owed)
    for (const [key] of left) {
      const id = jobId.parse(key)
      const gone = new SluiceError('spool.damaged', 'its spool was removed by a purge')
      try {
        await link.request('job.abandon', { jobId: id, problem: problemOf(gone) }, { signal })
      } catch (error) {
        // A job that it never heard of needs no word.
        if (!isSluiceError(error) || error.retry === 'later') throw error
      }
      await journal.change((draft) => {
        const found = draft.purgedJobs[id]
        if (found) found.abandon = false
      })
    }
  }

  /** Tells of infected sources until the control plane knows. */
  async function warn(): Promise<void> {
    for (;;) {
      const untold = Object.entries(journal.data.quarantine).find(([, { told }]) => !told)
      if (!untold) return
      const [sha256, { infectionId: id, engine, finding, foundAtMs }] = untold
      const body = { infectionId: id, engine, finding, foundAtMs }
      await link.request('medium.infected', body, { signal })
      await journal.change((draft) => {
        const entry = draft.quarantine[sha256]
        if (entry) entry.told = true
      })
    }
  }

  function wantWarned(): void {
    if (warning || link.state !== 'connected') return
    warning = warn()
      .catch(ignoreMissedNews)
      .finally(() => (warning = undefined))
    inBackground(warning)
  }

  function wantAbandoned(): void {
    if (abandoning || link.state !== 'connected') return
    abandoning = abandonPurged()
      .catch(ignoreMissedNews)
      .finally(() => (abandoning = undefined))
    inBackground(abandoning)
  }

  link.onConnected(() => {
    wantKeys()
    wakeSealing()
    wantAbandoned()
    wantWarned()
    inBackground(askStates().catch(ignoreMissedNews))
  })

  /** Asked again with the next connection; commands bring the news as well. */
  function ignoreMissedNews(error: unknown): void {
    if (!isSluiceError(error) && !signal.aborted) throw error
  }

  // ---------------------------------------------------------------- inventory

  /** The answer to a sweep: what really lies in the spool, page by page. */
  link.onCommand('inventory', async ({ sweepId }) => {
    const { jobIds, unnamed } = await listSpool(spoolDir)
    const pages = pagesOf(jobIds)
    for (const [index, page] of pages.entries()) {
      const spools: { jobId: JobId; sealedBytes: number }[] = []
      for (const id of page)
        spools.push({ jobId: id, sealedBytes: await spooledBytes(spoolDir, id) })
      const last = index === pages.length - 1
      const body = { sweepId, spools, leases: [], last, ...(last ? { unnamed } : {}) }
      await link.request('inventory.report', body, { signal })
    }
  })

  // ---------------------------------------------------------------- purge

  const purging: PurgeWork = {
    async prepare(order) {
      const folders = await spooledJobs(spoolDir)
      return (draft, atMs) => {
        const found = takeFromJournal(draft, order, { folders, atMs })
        forgetOldest(draft)
        return found
      }
    },
    async wipe(scope) {
      const named = new Set(scope.jobIds)
      const current = sealingNow
      if (current && named.has(current.jobId)) {
        current.ending.abort(new SluiceError('channel.closed', 'its job was purged'))
        await current.ended
      }
      // What the journal knows by now came after the order, or was delivered and is named in it.
      const isLater = (id: JobId) =>
        !named.has(id) && (job(id) !== undefined || sealingNow?.jobId === id)
      const folders = scope.everything ? await spooledJobs(spoolDir) : []
      const ids = [...named, ...folders.filter((id) => !named.has(id) && !isLater(id))]
      await stopCarrying(ids)
      for (const id of ids) if (!job(id)?.resultPath) await removeUndelivered(resultsDir, id)
      const { everything } = scope
      const checked = await purgeSpools(spoolDir, ids, { everything, isLater })
      wakeSealing()
      wantKeys()
      wantAbandoned()
      return ['sealing and uploads ended', 'undelivered results removed', ...checked]
    },
  }

  // ---------------------------------------------------------------- start and end

  /** A sealing cut short is thrown away; so is a folder that no job of the journal explains. */
  async function recover(): Promise<void> {
    await prepareSpool(spoolDir)
    await mkdir(resultsDir, { recursive: true, mode: 0o700 })
    await journal.change((draft) => {
      for (const each of Object.values(draft.submissions)) {
        if (each.state !== 'sealing') continue
        each.state = 'waiting'
        delete each.jobId
      }
    })
    for (const id of await spooledJobs(spoolDir)) {
      const known = job(id)
      if (!known || known.step === 'over') await deleteSpool(spoolDir, id)
    }
  }

  return {
    purging,
    async submit({ files, analyser, source, moveTo, origin, contents = [] }) {
      const relative = files.find((file) => !path.isAbsolute(file))
      if (relative !== undefined)
        throw new SluiceError('usage', `not an absolute path: ${relative}`)
      const sources = await Promise.all(files.map(identifySource))
      const submission: Submission = {
        ...{ submissionId: newId(submissionId, now()), createdAtMs: now(), origin, analyser },
        ...{ sources, source, moveTo, state: 'waiting', attempts: 0 },
      }
      await journal.change((draft) => {
        draft.submissions[submission.submissionId] = submission
        rememberContents(
          draft,
          contents.map((sha256) => contentKey(sha256, analyser)),
          { submissionId: submission.submissionId, atMs: submission.createdAtMs },
        )
      })
      events.submitted(submission)
      wakeSealing()
      return submission.submissionId
    },
    refresh(jobIds) {
      const away = jobIds.filter((id) => {
        const found = job(id)
        return found?.remoteState !== undefined && found.step === 'stored' && !found.resultPath
      })
      if (away.length > 0 && link.state === 'connected')
        inBackground(learnStates(away).catch(ignoreMissedNews))
    },
    async start() {
      await recover()
      for (const each of Object.values(journal.data.jobs))
        if (each.step !== 'over') carry(each.jobId)
      sealing = keepSealing()
      inBackground(sealing)
    },
    async [Symbol.asyncDispose]() {
      closing.abort(new SluiceError('channel.closed', 'the agent is ending', { retry: 'later' }))
      await Promise.allSettled(tasks)
    },
  }
}

/** At least one page, so that an empty spool is told too. */
function pagesOf(ids: readonly JobId[]): JobId[][] {
  const size = limits.inventoryEntriesMax
  const pages: JobId[][] = [ids.slice(0, size)]
  for (let first = size; first < ids.length; first += size)
    pages.push(ids.slice(first, first + size))
  return pages
}

/** Keeps the newest of what has ended, and everything that has not. */
function forgetOldest(draft: JournalData): void {
  const over = Object.values(draft.jobs)
    .filter((each) => each.step === 'over')
    .toSorted((left, right) => right.updatedAtMs - left.updatedAtMs)
  for (const each of over.slice(overKept)) {
    delete draft.jobs[each.jobId]
    delete draft.submissions[each.submissionId]
  }
  const refused = Object.values(draft.submissions)
    .filter((each) => each.state === 'refused' || each.state === 'purged')
    .toSorted((left, right) => right.createdAtMs - left.createdAtMs)
  for (const each of refused.slice(overKept)) delete draft.submissions[each.submissionId]
}
