/** Brings audit events to their sink. A sink that fails leaves them owed, and nothing waits for it. */
import type { AuditSinkView } from '@sluice/protocol/api'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { raiseAlert } from '../alerts/store.ts'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { isWriteFailure } from '../database/write-failure.ts'
import type { Outcome } from '../deletion/engine.ts'
import type { Obligation } from '../deletion/rules.ts'
import { markDone, oweAgain } from '../deletion/store.ts'
import type { ChainHead } from './rules.ts'
import { presentFields } from '../present-fields.ts'
import { appendPage, type SinkDeps } from './sink.ts'
import { advanceSink, appendAudit, lastSeqOf, sinkFacts, sinkPosition } from './store.ts'

/** There is one sink; rows are by its name, so that another can come beside it. */
export const sinkName = 'file'
const pageEvents = 500

export type ExportDeps = {
  database: Database
  changes: Changes
  now: () => number
  sink: SinkDeps
  /** `limits.auditSinkMsMax` unless a test has less time. */
  timeoutMs?: number
}

/**
 * Works off `audit.export`: settled when the sink holds every event there is now.
 *
 * @throws SluiceError `audit_sink.failed`; the first of a row of failures is an event and an alert.
 */
export async function exportAudit(
  deps: ExportDeps,
  duty: Obligation,
  signal = new AbortController().signal,
): Promise<Outcome> {
  const { database, now } = deps
  for (;;) {
    const known = await database.read((sql) => sinkPosition(sql, sinkName))
    let head
    try {
      head = await appendInTime(deps, known, signal)
    } catch (error) {
      if (duty.lastErrorCode === null && isSluiceError(error) && !signal.aborted)
        await sayFailed(deps, error.message)
      throw error
    }
    const settled = await database.write(async (tx) => {
      const atMs = now()
      await advanceSink(tx, { sink: sinkName, head, atMs })
      if ((await lastSeqOf(tx.sql)) > head.seq) return false
      await markDone(tx, duty.id, atMs)
      if (duty.lastErrorCode !== null)
        await appendAudit(tx, { ...about(atMs), type: 'audit-sink.recovered' })
      return true
    })
    if (settled) return 'settled'
  }
}

/** Tries that hang, by the file: another one beside it would write the same lines twice. */
const hanging = new Set<string>()

/** A try that a file system holds up is left to itself; nobody waits for it any longer. */
async function appendInTime(
  { sink, timeoutMs = limits.auditSinkMsMax }: ExportDeps,
  known: ChainHead,
  signal: AbortSignal,
): Promise<ChainHead> {
  const late = new SluiceError('audit_sink.failed', 'the audit sink: its file system hangs', {
    retry: 'later',
    hint: 'Look at the disk, or the network, that auditSink.file is on.',
  })
  if (hanging.has(sink.path)) throw late
  hanging.add(sink.path)
  const over = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
  const work = appendPage(sink, known, pageEvents, over).finally(() => hanging.delete(sink.path))
  const given = Promise.withResolvers<never>()
  const giveUp = (): void => given.reject(late)
  over.addEventListener('abort', giveUp, { once: true })
  if (over.aborted) giveUp()
  try {
    return await Promise.race([work, given.promise])
  } finally {
    over.removeEventListener('abort', giveUp)
  }
}

const about = (atMs: number) => ({ atMs, actor: { kind: 'system' }, site: '*' }) as const

async function sayFailed({ database, changes, now }: ExportDeps, why: string): Promise<void> {
  await database.write(async (tx) => {
    const atMs = now()
    await appendAudit(tx, { ...about(atMs), type: 'audit-sink.failed', detail: { why } })
    await raiseAlert(
      tx,
      {
        ...{ type: 'audit-sink.failed', severity: 'warning', site: '*', atMs },
        summary: 'audit events do not reach their sink',
        detail: { code: 'audit_sink.failed' },
      },
      changes,
    )
  })
}

/** How far the sink at `file` has come. */
export function viewOfSink(database: Database, file: string | undefined): Promise<AuditSinkView> {
  return database.read(async (sql) => {
    const { seq } = await sinkPosition(sql, sinkName)
    const lagEvents = Math.max(0, (await lastSeqOf(sql)) - seq)
    const facts = presentFields(await sinkFacts(sql, sinkName))
    return { ...(file === undefined ? {} : { file }), lastSeq: seq, lagEvents, ...facts }
  })
}

/** How often it is seen that there are new events. */
const lookMs = 5_000

/** Keeps the duty: one row, owed again whenever there are events that the sink has not. */
export function keepExporting(
  deps: ExportDeps & { report: (error: unknown) => void },
): AsyncDisposable {
  const { database, changes, now } = deps
  let looking = Promise.resolve()
  const look = async (): Promise<void> => {
    try {
      const [known, lastSeq] = await database.read(
        async (sql) => [await sinkPosition(sql, sinkName), await lastSeqOf(sql)] as const,
      )
      if (lastSeq <= known.seq) return
      const duty = { kind: 'audit.export', subjectId: sinkName, site: '*', atMs: now() } as const
      await database.write((tx) => oweAgain(tx, duty, changes))
    } catch (error) {
      if (!isWriteFailure(error)) throw error
      deps.report(error)
    }
  }
  const step = (): void => {
    looking = looking.then(look)
  }
  step()
  const timer = setInterval(step, lookMs).unref()
  return {
    async [Symbol.asyncDispose]() {
      clearInterval(timer)
      await looking
    },
  }
}
