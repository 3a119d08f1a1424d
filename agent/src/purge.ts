/** Carries an emergency purge from its order to its receipt: durable before the answer, finished first after a crash. */
import { sign } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { JobId, LeaseId, ObligationId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { backoffMs } from '@sluice/protocol/process/retry'
import { type PurgeReceipt, purgeReceiptOf } from '@sluice/protocol/purge-receipt'
import { type DsseEnvelope, signStatement } from '@sluice/protocol/sealing/dsse'
import {
  orderSha256Of,
  purgeReceiptPayloadType,
} from '@sluice/protocol/sealing/verify-purge-receipt'
import type { CommandOf, ControlLink } from './control-link.ts'
import type { Identity } from './identity.ts'
import type { Journal, JournalData, PurgeRecord } from './journal.ts'
import { asWipeProblem } from './problem.ts'

export type PurgeOrder = CommandOf<'purge'>

/** What a role found of an order's scope on this host. */
export type PurgeFound = {
  counts: PurgeRecord['found']
  jobIds: JobId[]
  leaseIds: LeaseId[]
}

/** What a role does for a purge. */
export type PurgeWork = {
  /**
   * Looks for what only the disk knows, and returns the change that takes the scope out of the
   * journal: it runs in the one durable step that also notes the purge, and says what there was.
   */
  prepare(order: PurgeOrder): Promise<(draft: JournalData, atMs: number) => PurgeFound>
  /**
   * Ends everything of the scope that runs, removes it from this host and looks again. Any number
   * of times; what came after the order stays.
   *
   * @returns What was looked at, in the words of a receipt.
   * @throws SluiceError `wipe.incomplete`, or an error of the file system: to be tried again.
   */
  wipe(
    scope: Pick<PurgeRecord, 'everything' | 'jobIds' | 'leaseIds' | 'startedAtMs'>,
  ): Promise<string[]>
}

/** What is worth a log line. */
export type PurgeEvents = {
  purgeOrdered(purge: PurgeRecord): void
  purgeIncomplete(purge: Pick<PurgeRecord, 'purgeId'>, attempt: number, problem: SluiceError): void
  purged(purge: PurgeRecord): void
}

export type Purges = {
  /**
   * Goes on with what a process before this one began. When it returns, all of it was tried once;
   * what did not go is tried again in the background.
   */
  recover(): Promise<void>
  /** Ends when the signal was given and nothing runs any more. */
  settled(): Promise<void>
}

/** Purges that are over and remembered, so that a late repetition gets the same receipt. */
const overMax = 256

/** Registers with the link; nothing runs before it starts, or before `recover`. */
export function createPurges(options: {
  link: Pick<ControlLink, 'onCommand'>
  journal: Journal
  identity: Pick<Identity, 'agentId' | 'keyId' | 'privateKey'>
  receipts: { wake(): void }
  work: PurgeWork
  signal: AbortSignal
  events: PurgeEvents
  now?: () => number
}): Purges {
  const { journal, identity, work, signal, events } = options
  const now = options.now ?? Date.now
  const tasks = new Set<Promise<void>>()

  function inBackground(task: Promise<void>): void {
    tasks.add(task)
    // Only a bug rejects here, and then the process ends: the journal knows what is owed.
    void task.finally(() => tasks.delete(task))
  }

  async function take(order: PurgeOrder): Promise<void> {
    const known = journal.data.purges[order.obligationId]
    if (known) return known.state === 'over' ? confirm(known) : undefined
    const mark = await work.prepare(order).catch((error: unknown) => {
      throw asWipeProblem(error)
    })
    let begun: PurgeRecord
    try {
      begun = await journal.change((draft) => note(draft, order, mark), { urgent: true })
    } catch (error) {
      // Not even the order fits on the disk. What it names goes all the same, which makes room.
      if (isSluiceError(error, 'host.disk_full')) {
        const found = note(structuredClone(journal.data), order, mark)
        await work.wipe(found).catch(asWipeProblem)
      }
      throw error
    }
    events.purgeOrdered(begun)
    inBackground(finish(begun, 0))
  }

  function note(
    draft: JournalData,
    order: PurgeOrder,
    mark: (draft: JournalData, atMs: number) => PurgeFound,
  ): PurgeRecord {
    const startedAtMs = now()
    const { counts, jobIds, leaseIds } = mark(draft, startedAtMs)
    const { purgeId, obligationId, everything } = order
    const record: PurgeRecord = {
      ...{ purgeId, obligationId, everything, startedAtMs, leaseIds, found: counts },
      orderSha256: orderSha256Of(order),
      jobIds: [...new Set([...order.jobIds, ...jobIds])],
      state: 'wiping',
    }
    draft.purges[obligationId] = record
    return structuredClone(record)
  }

  /** Wipes until nothing is left, then signs. */
  async function finish(purge: PurgeRecord, firstAttempt: number): Promise<void> {
    const bounds = { minMs: limits.obligationRetryMsMin, maxMs: limits.leaseMs }
    for (let attempt = firstAttempt; !signal.aborted; attempt += 1) {
      if (attempt > 0) {
        const waitMs = backoffMs(attempt - 1, bounds, Math.random())
        await sleep(waitMs, undefined, { signal }).catch(() => undefined)
        if (signal.aborted) return
      }
      if (await tryOnce(purge, attempt)) return
    }
  }

  /** @returns Whether it is over. */
  async function tryOnce(purge: PurgeRecord, attempt: number): Promise<boolean> {
    try {
      const checked = await work.wipe(purge)
      await confirm({ ...purge, wipe: { checked, wipedAtMs: now() } })
      return true
    } catch (error) {
      if (signal.aborted) return false
      events.purgeIncomplete(purge, attempt, asWipeProblem(error))
      return false
    }
  }

  /** Signs the receipt into the journal, in one step with the purge being over. */
  async function confirm(purge: PurgeRecord): Promise<void> {
    const over: PurgeRecord = { ...purge, jobIds: [], leaseIds: [], state: 'over' }
    const receipt = receiptFor(over)
    await journal.change(
      (draft) => {
        draft.purges[over.obligationId] = over
        draft.receipts[over.obligationId] ??= receipt
        forgetOldest(draft)
      },
      { urgent: true },
    )
    options.receipts.wake()
    if (purge.state === 'wiping') events.purged(over)
  }

  function receiptFor(purge: PurgeRecord): DsseEnvelope {
    const { purgeId, obligationId, everything, found, startedAtMs, wipe } = purge
    if (!wipe) throw new SluiceError('internal', 'a purge is over only after it was wiped')
    const predicate: PurgeReceipt = {
      ...{ purgeId, obligationId, agentId: identity.agentId, everything },
      ...{ spoolsWiped: found.spools, draftsWiped: found.drafts },
      ...{ leasesEnded: found.leases, resultsWiped: found.results },
      // The clock may have been set back meanwhile; a receipt never ends before it begins.
      ...{ checked: wipe.checked, startedAtMs, wipedAtMs: Math.max(startedAtMs, wipe.wipedAtMs) },
    }
    const statement = purgeReceiptOf(predicate, purge.orderSha256)
    return signStatement(purgeReceiptPayloadType, statement, {
      keyId: identity.keyId,
      sign: (bytes) => sign(null, bytes, identity.privateKey),
    })
  }

  options.link.onCommand('purge', take)

  return {
    async recover() {
      const left = Object.values(journal.data.purges).filter(({ state }) => state === 'wiping')
      for (const purge of left) if (!(await tryOnce(purge, 0))) inBackground(finish(purge, 1))
    },
    async settled() {
      while (tasks.size > 0) await Promise.all(tasks)
    },
  }
}

function forgetOldest(draft: JournalData): void {
  const over = Object.values(draft.purges)
    .filter(({ state }) => state === 'over')
    .toSorted((one, other) => other.startedAtMs - one.startedAtMs)
  for (const { obligationId } of over.slice(overMax))
    delete draft.purges[obligationId satisfies ObligationId]
}
