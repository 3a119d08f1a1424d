/**
 * Works off everything that is owed: the one engine for deletions, confirmations and notices. A duty
 * leaves it only by being settled; what fails, or waits for a holder, is tried again later, and a
 * crash forgets nothing, because the rows are all there is.
 */
import assert from 'node:assert/strict'
import { isSluiceError, type SluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Transaction } from '../database/database.ts'
import { isWriteFailure, writeRetryMs } from '../database/write-failure.ts'
import type {
  JobObligationKind,
  ObligationKind,
  SubjectObligationKind,
} from '../database/schema.ts'
import { enqueueCommand, hasOpenCommand, isOpenCommand } from '../fleet/store.ts'
import type { Keys } from '../keys/keys.ts'
import type { ObjectStore, Replicas } from '../storage/object-store.ts'
import { issueCertificate } from './certificate.ts'
import type { Evidence } from './evidence.ts'
import { spoolCommand, wipeCommand } from './intent.ts'
import { destroyKey } from './job-key.ts'
import { deleteObjects } from './objects.ts'
import { settleOwn } from './receipts.ts'
import { deleteFromReplica } from './replicas.ts'
import { type Obligation, overdueAlerts, retryDelayMs } from './rules.ts'
import {
  bringForward,
  changeJob,
  clearResult,
  dueObligations,
  endUploads,
  jobById,
  type JobRow,
  leasesOfJob,
  markDone,
  nextDutyAtMs,
  recordTry,
  resultOfJob,
  setCommand,
  takeOverdue,
} from './store.ts'

export type DeletionParts = {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
  evidence: Evidence
  keys: Pick<Keys, 'roll' | 'levelSince'>
  store: Pick<ObjectStore, 'deleteAll' | 'remains'>
  replicas: Replicas
  /** One at a time for everything that changes a job's object, by job id. */
  turns: { take<T>(key: string, work: () => Promise<T>): Promise<T> }
  /** A failed job's time is over: begins its deletion. A job that moved on is no error. */
  expireJob: (jobId: JobId) => Promise<void>
  /** Tells the capture host that the only copy is about to expire. */
  noticeExpiry: (jobId: JobId) => Promise<void>
  /** Workers of the duties that are about something else than one job. */
  others: Readonly<Partial<Record<SubjectObligationKind, SubjectWorker>>>
  /** Is told of each try that failed. */
  report: (obligation: Obligation, problem: SluiceError) => void
  /** In [0, 1). */
  random?: () => number
}

export type ObligationEngine = AsyncDisposable & {
  /** Begins to work; what was due before is worked on at once. */
  start(): void
  /** Resolves when nothing is in work and nothing is due now. */
  idle(): Promise<void>
}

/** One try at a duty that is about no single job. */
export type SubjectWorker = (obligation: Obligation, signal: AbortSignal) => Promise<Outcome>

type Due = {
  parts: DeletionParts
  obligation: Obligation & { jobId: JobId }
  job: JobRow
  /** The engine ends: stop waiting for others. */
  signal: AbortSignal
}

/** `waitMs`: nothing failed, but it is not settled yet; look again then. */
export type Outcome = 'settled' | { waitMs: number }

/** Every kind of duty has its worker; a new kind does not compile without one. */
const jobWorkers: Readonly<Record<JobObligationKind, (due: Due) => Promise<Outcome>>> = {
  'lease.wipe': remindNode,
  'spool.delete': remindCaptureHost,
  'object.delete': deleteFromStore,
  'replica.delete': deleteCopies,
  'key.destroy': destroyByRoll,
  'result.deliver': endDelivery,
  'job.expire': expire,
  'job.expiry-notice': ({ parts, obligation, job }) =>
    settleBy(parts, obligation, () => parts.noticeExpiry(job.id)),
  'certificate.issue': async ({ parts, obligation, job }) => {
    await issueCertificate(
      { ...parts, level: await parts.keys.levelSince(job.announcedAtMs) },
      { job, obligation },
    )
    return 'settled'
  },
}

const jobKinds = Object.keys(jobWorkers) as JobObligationKind[]

/** Key destructions only wait for a roll that they share, so many may wait at once. */
function inFlightMax(kind: ObligationKind): number {
  return kind === 'key.destroy' ? limits.resealPageKeys : limits.obligationsInFlightMax
}

/** Makes the engine; it does nothing before `start`. */
export function createObligationEngine(parts: DeletionParts): ObligationEngine {
  const inWork = new Map<string, { kind: ObligationKind; done: Promise<void> }>()
  let timer: NodeJS.Timeout | undefined
  let looking: Promise<void> | undefined
  let lookAgain = false
  const ending = new AbortController()
  const kinds = [...jobKinds, ...(Object.keys(parts.others) as SubjectObligationKind[])]

  const wake = (): void => {
    lookAgain = true
    looking ??= look().finally(() => {
      looking = undefined
      if (lookAgain && !ending.signal.aborted) wake()
    })
  }

  async function look(): Promise<void> {
    while (lookAgain && !ending.signal.aborted) {
      lookAgain = false
      clearTimeout(timer)
      const waitMs = await lookOnce()
      timer = setTimeout(wake, Math.max(waitMs, 1)).unref()
    }
  }

  /** @returns When to look again although nobody signals. */
  async function lookOnce(): Promise<number> {
    try {
      // Work first: that nothing can be written down is no reason to leave what may make room.
      for (const kind of kinds) await begin(kind)
      await alarmOverdue(parts)
      const nowMs = parts.now()
      const nextMs = await parts.database.read((sql) => nextDutyAtMs(sql, nowMs))
      return Math.min((nextMs ?? Number.POSITIVE_INFINITY) - nowMs, lookMsMax)
    } catch (error) {
      if (!isWriteFailure(error)) throw error
      return writeRetryMs
    }
  }

  async function begin(kind: ObligationKind): Promise<void> {
    const busy = [...inWork.values()].filter((one) => one.kind === kind).length
    const free = inFlightMax(kind) - busy
    if (free <= 0) return
    const found = await parts.database.read((sql) =>
      dueObligations(sql, { kind, nowMs: parts.now(), itemsMax: free + busy }),
    )
    const fresh = found.filter(({ id }) => !inWork.has(id)).slice(0, free)
    for (const obligation of fresh) {
      const done = workOn(parts, obligation, ending.signal).finally(() => {
        inWork.delete(obligation.id)
        wake()
      })
      inWork.set(obligation.id, { kind, done })
    }
  }

  return {
    start() {
      parts.changes.on('obligation', wake)
      wake()
    },

    async idle() {
      const busy = (): boolean => looking !== undefined || inWork.size > 0
      while (busy()) {
        await looking
        await Promise.all([...inWork.values()].map((one) => one.done))
      }
    },

    async [Symbol.asyncDispose]() {
      ending.abort()
      parts.changes.off('obligation', wake)
      await looking
      clearTimeout(timer)
      await Promise.all([...inWork.values()].map((one) => one.done))
      clearTimeout(timer)
    },
  }
}

/** Rows are looked at this often even if no signal came: signals may be lost, clocks set. */
const lookMsMax = 30_000

async function alarmOverdue(parts: DeletionParts): Promise<void> {
  await parts.database.write(async (tx) => {
    const atMs = parts.now()
    const late = await takeOverdue(tx, atMs)
    for (const { id, jobId, site, kind, attempts, lastErrorCode } of late)
      await appendAudit(tx, {
        atMs,
        type: 'obligation.overdue',
        actor: { kind: 'system' },
        site,
        ...(jobId === null ? {} : { jobId }),
        detail: { obligation: kind, obligationId: id, attempts, code: lastErrorCode ?? 'none' },
      })
    for (const alert of overdueAlerts(late)) await raiseAlert(tx, { ...alert, atMs }, parts.changes)
  })
}

/**
 * One try. An expected failure is written down; a bug ends the process, and the row is still there.
 * When nothing can be written, the duty rests here before it is looked at again.
 */
async function workOn(
  parts: DeletionParts,
  obligation: Obligation,
  signal: AbortSignal,
): Promise<void> {
  let problem: SluiceError | undefined
  let waitMs = retryDelayMs(obligation.attempts + 1, (parts.random ?? Math.random)())
  try {
    const outcome = await tryOnce(parts, obligation, signal)
    if (outcome === 'settled') return
    waitMs = outcome.waitMs
  } catch (error) {
    if (!isSluiceError(error)) throw error
    problem = error
    // What the end of the engine cut short has not failed, and a full disk is said by the database.
    if (!signal.aborted && !isWriteFailure(error)) parts.report(obligation, error)
  }
  const nextTryAtMs = parts.now() + waitMs
  try {
    await parts.database.write((tx) => recordTry(tx, { id: obligation.id, nextTryAtMs, problem }))
  } catch (error) {
    if (!isWriteFailure(error)) throw error
    await rest(writeRetryMs, signal)
  }
}

async function tryOnce(
  parts: DeletionParts,
  obligation: Obligation,
  signal: AbortSignal,
): Promise<Outcome> {
  const { id, jobId, kind } = obligation
  if (jobId === null) {
    const worker = parts.others[kind as SubjectObligationKind]
    assert(worker, `obligation ${id} is of a kind that nobody works off`)
    return worker(obligation, signal)
  }
  const job = await parts.database.read((sql) => jobById(sql, jobId))
  assert(job, `obligation ${id} has no job`)
  const worker = jobWorkers[kind as JobObligationKind]
  return worker({ parts, obligation: { ...obligation, jobId }, job, signal })
}

/** Waits, or less when `signal` aborts. */
export function rest(waitMs: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  if (signal.aborted) return Promise.resolve()
  const timer = setTimeout(resolve, waitMs)
  const end = (): void => resolve()
  signal.addEventListener('abort', end, { once: true })
  return promise.finally(() => {
    clearTimeout(timer)
    signal.removeEventListener('abort', end)
  })
}

/** Settled once the job is no longer one that waits to expire. */
async function expire({ parts, obligation, job }: Due): Promise<Outcome> {
  const { database, now } = parts
  await parts.expireJob(job.id)
  return database.write(async (tx): Promise<Outcome> => {
    const after = await jobById(tx.sql, job.id)
    const waits = after?.state === 'failed' || after?.state === 'lost'
    if (waits && after.expiresAtMs !== null)
      return { waitMs: Math.max(limits.obligationRetryMsMin, after.expiresAtMs - now()) }
    await markDone(tx, obligation.id, now())
    return 'settled'
  })
}

/** For duties that no holder signs for. */
async function settleBy(
  parts: DeletionParts,
  obligation: Obligation,
  work: () => Promise<void>,
): Promise<Outcome> {
  await work()
  await parts.database.write((tx) => markDone(tx, obligation.id, parts.now()))
  return 'settled'
}

/** The node's receipt settles it; until then the order is there, once, and given again when lost. */
async function remindNode({ parts, obligation, job }: Due): Promise<Outcome> {
  const { database, changes, now, random = Math.random } = parts
  await database.write(async (tx) => {
    const lease = (await leasesOfJob(tx.sql, job.id)).find(({ id }) => id === obligation.leaseId)
    if (!lease) throw new Error(`obligation ${obligation.id} has no lease`)
    if (await stillAsked(tx, obligation)) return
    const open = await hasOpenCommand(
      tx.sql,
      lease.nodeId,
      (command) => command.type === 'lease.end' && command.leaseId === lease.id,
    )
    if (open) return
    const command = wipeCommand({ job, lease, wipe: obligation })
    const order = { agentId: lease.nodeId, lane: 'control', command, atMs: now() } as const
    await setCommand(tx, obligation.id, await enqueueCommand(tx, order, changes))
  })
  return { waitMs: reminderMs(obligation, random()) }
}

async function remindCaptureHost({ parts, obligation, job }: Due): Promise<Outcome> {
  const { database, changes, now, random = Math.random } = parts
  await database.write(async (tx) => {
    if (await stillAsked(tx, obligation)) return
    const open = await hasOpenCommand(
      tx.sql,
      job.captureAgentId,
      (command) => command.type === 'spool.delete' && command.jobId === job.id,
    )
    if (open) return
    const command = spoolCommand(job, obligation)
    const order = { agentId: job.captureAgentId, lane: 'control', command, atMs: now() } as const
    await setCommand(tx, obligation.id, await enqueueCommand(tx, order, changes))
  })
  return { waitMs: reminderMs(obligation, random()) }
}

/** Whether the order written down with a duty still waits: an agent may have thousands of them. */
async function stillAsked(tx: Transaction, { commandId }: Obligation): Promise<boolean> {
  return commandId !== null && (await isOpenCommand(tx.sql, commandId))
}

/** Reminders begin at half a minute: a holder that is there answers much sooner by itself. */
const reminderAttempts = 5

function reminderMs({ attempts, writtenOffAtMs }: Obligation, random: number): number {
  if (writtenOffAtMs !== null) return limits.writtenOffReminderMs
  return retryDelayMs(attempts + reminderAttempts, random)
}

async function deleteFromStore({ parts, obligation, job }: Due): Promise<Outcome> {
  const { database, store, turns, now } = parts
  const work = await turns.take(job.id, () => deleteObjects(store, job, now))
  await database.write(async (tx) => {
    await changeJob(
      tx,
      { id: job.id, from: job.state },
      { objectsAbsentAtMs: Math.max(work.wipedAtMs, job.intentAtMs ?? 0) },
    )
    await endUploads(tx, job.id, work.wipedAtMs)
    const next = { jobId: job.id, kind: 'replica.delete', atMs: work.wipedAtMs } as const
    await bringForward(tx, next, parts.changes)
    await settleOwn(tx, parts, { job, obligation, work })
  })
  return 'settled'
}

async function deleteCopies({ parts, obligation, job }: Due): Promise<Outcome> {
  const { database, replicas, turns, now } = parts
  const { subjectId: place } = obligation
  assert(place !== null, `obligation ${obligation.id} names no replica`)
  const done = await turns.take(job.id, () => deleteFromReplica(replicas, { place, job }, now))
  if ('waitMs' in done) return done
  await database.write((tx) => settleOwn(tx, parts, { job, obligation, work: done }))
  return 'settled'
}

async function destroyByRoll({ parts, obligation, job, signal }: Due): Promise<Outcome> {
  const { database, keys, now } = parts
  const work = await destroyKey({ database, keys, now, signal }, job)
  await database.write(async (tx) => {
    await changeJob(
      tx,
      { id: job.id, from: job.state },
      { keysUnrecoverableAtMs: Math.max(work.wipedAtMs, job.keysUnusableAtMs ?? 0) },
    )
    await settleOwn(tx, parts, { job, obligation, work })
  })
  return 'settled'
}

/** A sealed result stays until it was delivered or its time is over; then it is taken away. */
async function endDelivery({ parts, obligation, job }: Due): Promise<Outcome> {
  const { database, now } = parts
  return database.write(async (tx): Promise<Outcome> => {
    const result = await resultOfJob(tx.sql, job.id)
    const startedAtMs = now()
    if (result && result.deliveredAtMs === null && result.expiresAtMs > startedAtMs)
      return { waitMs: result.expiresAtMs - startedAtMs }
    await clearResult(tx, job.id)
    const after = await resultOfJob(tx.sql, job.id)
    if (after?.held) throw new Error(`the result of job ${job.id} is still held`)
    const work = {
      method: 'object-delete',
      checked: [
        result?.deliveredAtMs == null ? 'never delivered, time over' : 'delivered',
        'row holds no sealed result',
      ],
      startedAtMs,
      wipedAtMs: Math.max(startedAtMs, now()),
    } as const
    await settleOwn(tx, parts, { job, obligation, work: { ...work, checked: [...work.checked] } })
    return 'settled'
  })
}
