/** What every step of a lease is handed: the outside world, the journal, the leases under way, and one end for all. */
import type { SluiceError } from '@sluice/protocol/errors'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { Grant, LeaseRef, Problem } from '@sluice/protocol/messages'
import type { CommandOf, ControlLink } from '../control-link.ts'
import type { Identity } from '../enrol.ts'
import type { Journal, LeaseRecord } from '../journal.ts'
import type { ObjectReader } from '../transfer/download.ts'
import type { AnalyserConfig } from './analyser.ts'
import type { WipeFacts } from './confirm.ts'
import type { MemoryPlan } from './memory-level.ts'

export type AnalysisOptions = {
  link: Pick<ControlLink, 'request' | 'onCommand' | 'keepLeases' | 'heartbeatNow'>
  journal: Journal
  identity: Identity
  /** Receipts are put into the journal; this sends them. */
  receipts: { wake(): void }
  /** Reads the sealed object of a lease by read grants. */
  openObject: (options: {
    grant: () => Promise<Grant>
    sealedBytes: number
    signal: AbortSignal
  }) => ObjectReader
  analysers: readonly AnalyserConfig[]
  leasesMax: number
  isolation: IsolationLevel
  /** Swap may be on: someone set it by name. */
  allowSwap: boolean
  /** For mount points and empty marker files; nothing in it is content. Made with mode 0700. */
  runtimeDirectory: string
  events: AnalysisEvents
  now?: () => number
  /** Monotonic milliseconds, the clock of deadlines. */
  monotonicMs?: () => number
}

/** What is worth a log line; ids and counts only. */
export type AnalysisEvents = {
  leaseAccepted(lease: LeaseRef): void
  leaseDeclined(lease: LeaseRef, problem: Problem): void
  mediumAnalysed(
    lease: LeaseRef,
    counts: { medium: number; bytes: number; outputBytes: number; elapsedMs: number },
  ): void
  /** `problem` is undefined when the result was accepted. */
  leaseEnded(lease: LeaseRef, problem: Problem | undefined): void
  leaseWiped(lease: LeaseRef, wipe: WipeFacts): void
  wipeIncomplete(lease: LeaseRef, attempt: number, problem: Problem): void
}

/** A lease under way in this process. */
export type Live = {
  offer: CommandOf<'lease.offer'>
  record: LeaseRecord
  analyser: AnalyserConfig
  memory: MemoryPlan
  /** Aborted with a `SluiceError` that says why the lease is over. */
  end: AbortController
  /** Monotonic; renewed by heartbeats. */
  deadlineMs: number | undefined
  timer: NodeJS.Timeout | undefined
  /** Settled once nothing of it is left, or the agent ended before that. */
  wiped: PromiseWithResolvers<void>
}

export type AnalysisParts = Required<AnalysisOptions> & {
  /** By lease. */
  live: Map<string, Live>
  /** `begun`: no lease is taken any more. `forGood`: nor is anything reported. */
  ending: { begun: boolean; forGood: boolean }
  /** Aborted when nothing may be waited for any more. */
  closing: AbortController
  inBackground: (task: Promise<void>) => void
  /** When nothing runs in the background any more. */
  settled: () => Promise<void>
  remember: (record: LeaseRecord) => Promise<void>
}

export function createParts(options: AnalysisOptions): AnalysisParts {
  const { now = Date.now, monotonicMs = () => performance.now() } = options
  const tasks = new Set<Promise<void>>()
  return {
    ...{ ...options, now, monotonicMs },
    live: new Map(),
    ending: { begun: false, forGood: false },
    closing: new AbortController(),
    inBackground(task) {
      tasks.add(task)
      // A failure is a bug: it is left to crash the process, and the journal knows what is owed.
      void task.finally(() => tasks.delete(task))
    },
    async settled() {
      while (tasks.size > 0) await Promise.all(tasks)
    },
    async remember(record) {
      await options.journal.change((draft) => void (draft.leases[record.leaseId] = record))
    },
  }
}

export function refOf({ jobId, leaseId, fence }: LeaseRef): LeaseRef {
  return { jobId, leaseId, fence }
}

/** Ends a lease from within: its work is aborted, and wiped as after any other end. */
export function endLease(lease: Live, why: SluiceError): void {
  clearTimeout(lease.timer)
  lease.end.abort(why)
}
