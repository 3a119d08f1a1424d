/** Carries every lease of a GPU node from its offer to its receipt, whatever ends it on the way. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { Grant, LeaseRef, NodeOffer, Problem } from '@sluice/protocol/messages'
import { backoffMs } from '@sluice/protocol/process/retry'
import { readSwapFacts } from '@sluice/protocol/process/swap'
import type { MemoryLevel } from '@sluice/protocol/receipt'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import type { CommandOf, ControlLink, RenewedLease } from '../control-link.ts'
import type { Identity } from '../enrol.ts'
import type { Journal, LeaseRecord } from '../journal.ts'
import type { PurgeWork } from '../purge.ts'
import { signReceipt } from '../receipts.ts'
import type { ObjectReader } from '../transfer/download.ts'
import type { AnalyserConfig } from './analyser.ts'
import { leaseReceipt, signResult, type WipeFacts } from './confirm.ts'
import { startLeaseChild, type LeaseOutcome } from './lease.ts'
import type { MediaMount } from './media-mount.ts'
import { planMemory, probeMounts, type MemoryPlan } from './memory-level.ts'
import { asProblem } from './problem.ts'
import { leasesOnDisk, makeTraces, tracesOf, wipeTraces } from './wipe.ts'

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

export type Analysis = AsyncDisposable & {
  /** What this node can do now; for the link's hello. */
  offer(): NodeOffer
  /** Leases that are not over, for status. */
  leases(): LeaseRef[]
  /** Begins to wipe, report and confirm what a process before this one left. */
  recover(): void
  /**
   * This node may do nothing any more: ends every lease and wipes, however long that takes. Nothing
   * is reported; the receipts stay in the journal.
   */
  endForGood(): Promise<void>
  /** What an emergency purge takes from this node. */
  readonly purging: PurgeWork
  /** Ends every lease, wipes, and gives reports a short time to get out. Also `asyncDispose`. */
  stop(): Promise<void>
}

/** Ended leases that are remembered, so that a late `lease.end` gets the same answer again. */
const overMax = 256
/** How long reports may take when the agent stops; the next start sends what did not get out. */
const lastReportMs = 3_000

type Live = {
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

/**
 * Registers with the link; nothing runs before it starts.
 *
 * @throws SluiceError `node.swap_possible`; `config.invalid` when an analyser wants its media as a
 * directory and this host cannot mount one in memory.
 */
export async function createAnalysis(options: AnalysisOptions): Promise<Analysis> {
  const { link, journal, identity, events, allowSwap, isolation } = options
  const now = options.now ?? Date.now
  const monotonicMs = options.monotonicMs ?? (() => performance.now())
  const mounts = await probeMounts(options.runtimeDirectory)
  const planNow = (): MemoryPlan => planMemory({ ...readSwapFacts(), mounts }, { allowSwap })
  let lastPlan = planNow()
  requireDirectories(options.analysers, lastPlan)
  const live = new Map<string, Live>()
  const tasks = new Set<Promise<void>>()
  /** Aborted when nothing may be waited for any more. */
  const closing = new AbortController()
  let stopping = false
  let outForGood = false

  function inBackground(task: Promise<void>): void {
    tasks.add(task)
    // A failure is a bug: it is left to crash the process, and the journal knows what is owed.
    void task.finally(() => tasks.delete(task))
  }

  // ------------------------------------------------------------ commands

  async function takeOffer(offer: CommandOf<'lease.offer'>): Promise<void> {
    if (journal.data.leases[offer.leaseId] !== undefined) return
    const record: LeaseRecord = {
      ...refOf(offer),
      wipeObligationId: offer.wipeObligationId,
      sealedHeaderSha256: headerHashOf(offer).toString('hex'),
      acceptedAtMs: now(),
      state: 'open',
    }
    let fit: { analyser: AnalyserConfig; memory: MemoryPlan }
    try {
      fit = requireFit(offer)
    } catch (error) {
      if (!isSluiceError(error)) throw error
      await remember({ ...record, state: 'wiping' })
      events.leaseDeclined(refOf(offer), asProblem(error))
      inBackground(decline(offer, record, asProblem(error)))
      return
    }
    record.memoryLevel = fit.memory.level
    const lease: Live = {
      offer,
      record,
      ...fit,
      end: new AbortController(),
      deadlineMs: undefined,
      timer: undefined,
      wiped: Promise.withResolvers(),
    }
    live.set(offer.leaseId, lease)
    try {
      await remember(record)
    } catch (error) {
      live.delete(offer.leaseId)
      lease.wiped.resolve()
      throw error
    }
    inBackground(carry(lease))
  }

  function requireFit(offer: CommandOf<'lease.offer'>) {
    const analyser = options.analysers.find(({ name }) => name === offer.analyser)
    if (analyser === undefined) {
      throw new SluiceError('analyser.unknown', `This node has no analyser ${offer.analyser}.`)
    }
    if (stopping || live.size >= options.leasesMax) {
      throw declined('This node has no room for another lease.', 'later')
    }
    if (analyser.input === 'directory' && offer.sealedBytes > analyser.mediaBytesMax) {
      throw declined('The media of this job do not fit into memory of this node.', 'never')
    }
    const memory = planNow()
    lastPlan = memory
    requireDirectories([analyser], memory)
    return { analyser, memory }
  }

  async function takeEnd(command: CommandOf<'lease.end'>): Promise<void> {
    const known = journal.data.leases[command.leaseId]
    const running = live.get(command.leaseId)
    if (running !== undefined) {
      if (known?.state === 'open') await remember({ ...known, state: 'wiping' })
      endLease(running, lostLease(`The control plane ended the lease: ${command.reason}.`))
      return
    }
    if (known !== undefined && known.state !== 'over') return // `recover` is at it, or the next start.
    if (known === undefined) {
      const { sealedHeaderSha256, wipeObligationId } = command
      const asked = { sealedHeaderSha256, wipeObligationId, acceptedAtMs: now() }
      const record: LeaseRecord = { ...refOf(command), ...asked, state: 'wiping' }
      // A lost journal is no proof that there was no lease: what counts is what a look finds.
      const facts = await wipe(record, 'process-exit')
      const checked = ['not in the journal', ...facts.checked]
      await confirmWipe({ ...record, wipe: { ...facts, checked } })
    } else if (journal.data.receipts[known.wipeObligationId] === undefined) {
      await confirmWipe(known)
    }
  }

  // ------------------------------------------------------------ one lease

  async function carry(lease: Live): Promise<void> {
    const ref = refOf(lease.offer)
    let outcome: LeaseOutcome
    let held = false
    let child: Awaited<ReturnType<typeof start>> | undefined
    const bound = setTimeout(
      () => endLease(lease, new SluiceError('analysis.timeout', 'The analysis took too long.')),
      limits.analysisMsMax,
    )
    try {
      await accept(lease)
      held = true
      child = await start(lease)
      outcome = await Promise.race([child.outcome, whenAborted(lease.end.signal)])
    } catch (error) {
      const { aborted, reason } = lease.end.signal
      outcome = { type: 'failed', problem: asProblem(aborted ? reason : error) }
    } finally {
      clearTimeout(bound)
    }
    const wiped = await wipeUntilDone(lease.record, held, child?.process)
    lease.wiped.resolve()
    if (wiped === undefined) return
    events.leaseWiped(ref, wiped)
    const problem = await report(lease, outcome)
    clearTimeout(lease.timer)
    live.delete(lease.offer.leaseId)
    events.leaseEnded(ref, problem)
    if (closing.signal.aborted && !outForGood) return // Unreported: the next start does it.
    await confirmOnceWritable({ ...lease.record, wipe: wiped })
  }

  async function accept(lease: Live): Promise<void> {
    const ref = refOf(lease.offer)
    const askedAtMs = monotonicMs()
    const { body } = await link.request('lease.accept', ref, { signal: lease.end.signal })
    setDeadline(lease, askedAtMs + body.remainingMs)
    lease.end.signal.throwIfAborted()
    events.leaseAccepted(ref)
    link.heartbeatNow()
  }

  async function start(lease: Live) {
    const { offer, analyser, memory, end } = lease
    const ref = refOf(offer)
    const traces = tracesOf(options.runtimeDirectory, offer.leaseId)
    await makeTraces(traces)
    end.signal.throwIfAborted()
    const object = options.openObject({
      grant: () => askGrant(lease),
      sealedBytes: offer.sealedBytes,
      signal: end.signal,
    })
    let signed = false
    return startLeaseChild(
      {
        ...ref,
        nodeId: identity.agentId,
        sealedBytes: offer.sealedBytes,
        sealedHeader: Buffer.from(offer.sealedHeader, 'base64url'),
        analyser,
        isolation,
        leash: traces.leash,
        ...(analyser.input === 'directory'
          ? { mediaMount: mountFor(offer.sealedBytes, memory, traces.media) }
          : {}),
      },
      {
        requestKey: (publicKey) => requestKey(lease, publicKey),
        readSealed: (offset, length) => object.read(offset, length),
        signResult: (facts) => {
          if (signed || end.signal.aborted) throw lostLease('A lease signs one result.')
          signed = true
          const { sealedHeaderSha256 } = lease.record
          return signResult(identity, { lease: ref, sealedHeaderSha256, ...facts })
        },
        analysed: (counts) => events.mediumAnalysed(ref, counts),
      },
    )
  }

  async function requestKey(lease: Live, publicKey: Buffer) {
    const body = { ...refOf(lease.offer), publicKey: publicKey.toString('base64url') }
    const reply = await link.request('key.request', body, { signal: lease.end.signal })
    if (reply.attachment === undefined) {
      throw new SluiceError('channel.malformed', 'The control plane sent no key.')
    }
    return { envelope: reply.attachment, deadlineAtMs: reply.body.deadlineAtMs }
  }

  async function askGrant(lease: Live): Promise<Grant> {
    const { offer, end } = lease
    const { body } = await link.request('object.read', refOf(offer), { signal: end.signal })
    if (body.sealedBytes === offer.sealedBytes) return body.grant
    throw new SluiceError('download.mismatch', 'the stored object is not of the announced size')
  }

  /** @returns Why there is no result, if there is none. */
  async function report(lease: Live, outcome: LeaseOutcome): Promise<Problem | undefined> {
    const ref = refOf(lease.offer)
    let problem: Problem | undefined
    if (outcome.type === 'result') {
      const sealedResultSha256 = createHash('sha256').update(outcome.sealed).digest('hex')
      const signal = AbortSignal.any([lease.end.signal, closing.signal])
      const body = { ...ref, sealedResultSha256 }
      try {
        await link.request('lease.result', body, { attachment: outcome.sealed, signal })
        return undefined
      } catch (error) {
        problem = asProblem(lease.end.signal.aborted ? lease.end.signal.reason : error)
      }
    } else problem = outcome.problem
    await reportFailure(ref, problem)
    return problem
  }

  /** A failure the control plane does not want to hear of any more is no news: the lease was over. */
  async function reportFailure(ref: LeaseRef, problem: Problem): Promise<void> {
    try {
      await link.request('lease.fail', { ...ref, problem }, { signal: closing.signal })
    } catch (error) {
      if (!closing.signal.aborted && !isSluiceError(error)) throw error
    }
  }

  async function decline(
    offer: CommandOf<'lease.offer'>,
    record: LeaseRecord,
    problem: Problem,
  ): Promise<void> {
    const wiped = await wipeUntilDone(record, false)
    try {
      await link.request('lease.decline', { ...refOf(offer), problem }, { signal: closing.signal })
    } catch (error) {
      if (closing.signal.aborted) return
      if (!isSluiceError(error)) throw error
    }
    if (wiped !== undefined) await confirmOnceWritable({ ...record, wipe: wiped })
  }

  // ------------------------------------------------------------ deadlines

  function setDeadline(lease: Live, deadlineMs: number): void {
    // A renewal that was overtaken by a later one moves nothing back.
    if (lease.deadlineMs !== undefined && deadlineMs < lease.deadlineMs) return
    lease.deadlineMs = deadlineMs
    clearTimeout(lease.timer)
    const remainingMs = deadlineMs - limits.leaseWipeMarginMs - monotonicMs()
    const over = (): void => {
      const expired = 'The lease was not renewed in time; the node stopped by itself.'
      endLease(lease, new SluiceError('lease.expired', expired, { retry: 'later' }))
    }
    if (remainingMs <= 0) over()
    else lease.timer = setTimeout(over, remainingMs)
  }

  function renewed(list: RenewedLease[], sentAtMs: number, named: LeaseRef[]): void {
    for (const { leaseId, fence } of named) {
      const lease = live.get(leaseId)
      if (lease === undefined) continue
      const renewal = list.find((one) => one.leaseId === leaseId && one.fence === fence)
      if (renewal !== undefined) setDeadline(lease, sentAtMs + renewal.remainingMs)
      else endLease(lease, lostLease('The control plane no longer knows this lease.'))
    }
  }

  function endLease(lease: Live, why: SluiceError): void {
    clearTimeout(lease.timer)
    lease.end.abort(why)
  }

  // ------------------------------------------------------------ wiping and confirming

  async function wipe(
    record: LeaseRecord,
    method: WipeFacts['method'],
    child?: Parameters<typeof wipeTraces>[1],
  ): Promise<WipeFacts> {
    const traces = tracesOf(options.runtimeDirectory, record.leaseId)
    return { method, checked: await wipeTraces(traces, child), wipedAtMs: now() }
  }

  /** Tries until nothing is left; undefined when the agent ended first, and the next start goes on. */
  async function wipeUntilDone(
    record: LeaseRecord,
    held: boolean,
    child?: Parameters<typeof wipeTraces>[1],
  ): Promise<WipeFacts | undefined> {
    const bounds = { minMs: limits.obligationRetryMsMin, maxMs: limits.leaseMs }
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await wipe(record, held ? 'process-exit' : 'never-held', child)
      } catch (error) {
        if (!isSluiceError(error, 'wipe.incomplete')) throw error
        events.wipeIncomplete(refOf(record), attempt, asProblem(error))
      }
      if (closing.signal.aborted) return undefined
      const waitMs = backoffMs(attempt, bounds, Math.random())
      await sleep(waitMs, undefined, { signal: closing.signal }).catch(() => undefined)
    }
  }

  /** Signs the receipt into the journal, in one step with the lease being over. */
  async function confirmWipe(
    record: LeaseRecord & { wipe?: WipeFacts | undefined },
  ): Promise<void> {
    const { wipe: facts } = record
    assert.ok(facts, 'a lease is over only after it was wiped')
    const predicate = leaseReceipt({
      record,
      wipe: facts,
      nodeId: identity.agentId,
      // Of a lease that is not known any more, nobody knows where its plaintext was.
      memoryLevel: record.memoryLevel && levelThatHeld(record.memoryLevel),
      isolation,
    })
    const receipt = signReceipt(identity, predicate, record.sealedHeaderSha256)
    await journal.change((draft) => {
      draft.receipts[record.wipeObligationId] = receipt
      draft.leases[record.leaseId] = { ...record, state: 'over', wipe: facts }
      const over = Object.values(draft.leases).filter(({ state }) => state === 'over')
      over.sort((one, other) => one.acceptedAtMs - other.acceptedAtMs)
      for (const { leaseId } of over.slice(0, Math.max(0, over.length - overMax))) {
        delete draft.leases[leaseId]
      }
    })
    options.receipts.wake()
  }

  /** On a full disk it waits for room; when the agent ends first, the next start confirms. */
  async function confirmOnceWritable(record: LeaseRecord & { wipe: WipeFacts }): Promise<void> {
    const bounds = { minMs: limits.obligationRetryMsMin, maxMs: limits.leaseMs }
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await confirmWipe(record)
      } catch (error) {
        if (!isSluiceError(error, 'host.disk_full')) throw error
      }
      if (closing.signal.aborted) return
      const waitMs = backoffMs(attempt, bounds, Math.random())
      await sleep(waitMs, undefined, { signal: closing.signal }).catch(() => undefined)
    }
  }

  /** Swap that was switched on during a lease leaves nothing to claim. */
  function levelThatHeld(memoryLevel: MemoryLevel): MemoryLevel {
    const { level } = planMemory({ ...readSwapFacts(), mounts: [] }, { allowSwap: true })
    return level === 'swap-allowed' ? level : memoryLevel
  }

  async function remember(record: LeaseRecord): Promise<void> {
    await journal.change((draft) => void (draft.leases[record.leaseId] = record))
  }

  async function recoverLease(record: LeaseRecord): Promise<void> {
    // Only a lease that this node took has a memory level; one it declined never held anything.
    const wiped = await wipeUntilDone(record, record.memoryLevel !== undefined)
    if (wiped === undefined) return
    events.leaseWiped(refOf(record), wiped)
    const restarted = 'The node was restarted during the analysis.'
    const error = new SluiceError('analysis.failed', restarted, { retry: 'later' })
    await reportFailure(refOf(record), asProblem(error))
    if (!closing.signal.aborted || outForGood) await confirmOnceWritable({ ...record, wipe: wiped })
  }

  async function endForGood(): Promise<void> {
    stopping = true
    outForGood = true
    const why = new SluiceError('identity.revoked', 'This node was revoked.')
    for (const lease of live.values()) endLease(lease, why)
    await Promise.all([...live.values()].map(({ wiped }) => wiped.promise))
    const left = Object.values(journal.data.leases).filter(({ state }) => state !== 'over')
    for (const record of left) await wipeUntilDone(record, record.memoryLevel !== undefined)
    // Nobody is there to report to: what waits for an answer ends here.
    closing.abort()
    while (tasks.size > 0) await Promise.all(tasks)
  }

  /** The answer to a sweep: leases that are not wiped yet. */
  async function tellInventory({ sweepId }: CommandOf<'inventory'>): Promise<void> {
    const held = Object.values(journal.data.leases).filter(({ state }) => state !== 'over')
    const size = limits.inventoryEntriesMax
    for (let first = 0; first === 0 || first < held.length; first += size) {
      const leases = held.slice(first, first + size).map(refOf)
      const last = first + size >= held.length
      const strays = last ? await strayLeases() : 0
      const body = { sweepId, spools: [], leases, last, ...(last ? { unnamed: strays } : {}) }
      await link.request('inventory.report', body, { signal: closing.signal })
    }
  }

  /** Folders of leases that the journal does not know. */
  async function strayLeases(): Promise<number> {
    const onDisk = await leasesOnDisk(options.runtimeDirectory)
    return onDisk.filter((id) => journal.data.leases[id] === undefined).length
  }

  // ------------------------------------------------------------ purge

  const purging: PurgeWork = {
    async prepare(order) {
      const named = new Set(order.jobIds)
      return (draft) => {
        const inScope = Object.values(draft.leases).filter(
          ({ jobId, state }) => state !== 'over' && (order.everything || named.has(jobId)),
        )
        for (const record of inScope) record.state = 'wiping'
        const counts = { spools: 0, drafts: 0, leases: inScope.length, results: 0 }
        return { counts, jobIds: [], leaseIds: inScope.map(({ leaseId }) => leaseId) }
      }
    },
    async wipe(scope) {
      const { everything, startedAtMs } = scope
      const leases = new Set(scope.leaseIds)
      const jobs = new Set(scope.jobIds)
      // Also an offer that was just being written down when the order came.
      const running = [...live.values()].filter(
        ({ record }) =>
          leases.has(record.leaseId) ||
          jobs.has(record.jobId) ||
          (everything && record.acceptedAtMs < startedAtMs),
      )
      for (const lease of running) endLease(lease, lostLease('The job of this lease was purged.'))
      await Promise.all(running.map(({ wiped }) => wiped.promise))
      const strays = everything
        ? (await leasesOnDisk(options.runtimeDirectory)).filter((id) => !live.has(id))
        : []
      const ended = new Set([...leases, ...running.map(({ record }) => record.leaseId), ...strays])
      for (const id of ended) await wipeTraces(tracesOf(options.runtimeDirectory, id))
      return ['analysers and lease processes ended', 'mounts gone', 'no folder of a lease left']
    },
  }

  async function stop(): Promise<void> {
    stopping = true
    const why = new SluiceError('analysis.failed', 'The node is shutting down.', { retry: 'later' })
    for (const lease of live.values()) endLease(lease, why)
    const timer = setTimeout(() => closing.abort(), lastReportMs)
    while (tasks.size > 0) await Promise.all(tasks)
    clearTimeout(timer)
    closing.abort()
  }

  link.onCommand('lease.offer', takeOffer)
  link.onCommand('lease.end', takeEnd)
  link.onCommand('inventory', tellInventory)
  link.keepLeases({ named: () => namedLeases(), renewed })

  /** A lease is named from its acceptance on; before, the control plane does not renew it. */
  function namedLeases(): LeaseRef[] {
    return [...live.values()]
      .filter(({ deadlineMs, end }) => deadlineMs !== undefined && !end.signal.aborted)
      .map(({ offer }) => refOf(offer))
  }

  return {
    offer() {
      let leasesMax = options.leasesMax
      try {
        lastPlan = planNow()
      } catch (error) {
        if (!isSluiceError(error, 'node.swap_possible')) throw error
        leasesMax = 0
      }
      const analysers = options.analysers.map(({ name, version }) => ({ name, version }))
      return { analysers, leasesMax, memoryLevel: lastPlan.level, isolation }
    },
    leases: () => [...live.values()].map(({ offer }) => refOf(offer)),
    recover() {
      const left = Object.values(journal.data.leases).filter(
        ({ leaseId, state }) => state !== 'over' && !live.has(leaseId),
      )
      for (const record of left) inBackground(recoverLease(record))
    },
    endForGood,
    purging,
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

function mountFor(sealedBytes: number, memory: MemoryPlan, folder: string): MediaMount {
  const kind = memory.directory
  if (kind === undefined) throw new SluiceError('node.swap_possible', 'No directory in memory.')
  // The sealed form is larger than the media in it; each file is rounded up to a page.
  const bytesMax = sealedBytes + (limits.mediaPerJobMax + 1) * 4096
  return { kind, folder, bytesMax, filesMax: limits.mediaPerJobMax }
}

function requireDirectories(analysers: readonly AnalyserConfig[], plan: MemoryPlan): void {
  const wants = analysers.find(({ input }) => input === 'directory')
  if (wants === undefined || plan.directory !== undefined) return
  throw new SluiceError(
    'config.invalid',
    `The analyser ${wants.name} wants its media as a directory, and none can be had in memory.`,
    { hint: 'Run the agent as root, or set "input": "stdin" for that analyser.' },
  )
}

function refOf({ jobId, leaseId, fence }: LeaseRef): LeaseRef {
  return { jobId, leaseId, fence }
}

function headerHashOf(offer: CommandOf<'lease.offer'>): Buffer {
  return sealedHeaderHash(Buffer.from(offer.sealedHeader, 'base64url'))
}

function whenAborted(signal: AbortSignal): Promise<LeaseOutcome> {
  const { promise, resolve } = Promise.withResolvers<LeaseOutcome>()
  const ended = (): void => resolve({ type: 'failed', problem: asProblem(signal.reason) })
  if (signal.aborted) ended()
  else signal.addEventListener('abort', ended, { once: true })
  return promise
}

function lostLease(message: string): SluiceError {
  return new SluiceError('lease.stale', message, { retry: 'later' })
}

function declined(message: string, retry: 'never' | 'later'): SluiceError {
  return new SluiceError('lease.declined', message, { retry })
}
