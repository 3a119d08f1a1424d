/** Wipes what a lease left until nothing of it is there, and signs for that in one step with the lease being over. */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { backoffMs } from '@sluice/protocol/process/retry'
import { readSwapFacts } from '@sluice/protocol/process/swap'
import type { MemoryLevel } from '@sluice/protocol/receipt'
import type { LeaseRecord } from '../journal.ts'
import { signReceipt } from '../receipts.ts'
import { type AnalysisParts, refOf } from './analysis-parts.ts'
import { leaseReceipt, type WipeFacts } from './confirm.ts'
import { planMemory } from './memory-level.ts'
import { asProblem } from './problem.ts'
import { tracesOf, wipeTraces } from './wipe.ts'

/** Ended leases that are remembered, so that a late `lease.end` gets the same answer again. */
const overMax = 256
const retry = { minMs: limits.obligationRetryMsMin, maxMs: limits.leaseMs }

type Child = Parameters<typeof wipeTraces>[1]

/** @throws SluiceError `wipe.incomplete`. */
export async function wipe(
  { runtimeDirectory, now }: AnalysisParts,
  record: LeaseRecord,
  method: WipeFacts['method'],
  child?: Child,
): Promise<WipeFacts> {
  const traces = tracesOf(runtimeDirectory, record.leaseId)
  return { method, checked: await wipeTraces(traces, child), wipedAtMs: now() }
}

/**
 * Tries until nothing is left; undefined when the agent ended first, and the next start goes on.
 *
 * @param lease.held Whether anything of it was ever here.
 */
export async function wipeUntilDone(
  parts: AnalysisParts,
  record: LeaseRecord,
  { held, child }: { held: boolean; child?: Child },
): Promise<WipeFacts | undefined> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await wipe(parts, record, held ? 'process-exit' : 'never-held', child)
    } catch (error) {
      if (!isSluiceError(error, 'wipe.incomplete')) throw error
      parts.events.wipeIncomplete(refOf(record), attempt, asProblem(error))
    }
    if (await isOverAfter(parts, attempt)) return undefined
  }
}

/** On a full disk it waits for room; when the agent ends first, the next start confirms. */
export async function confirmOnceWritable(
  parts: AnalysisParts,
  record: LeaseRecord & { wipe: WipeFacts },
): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await confirmWipe(parts, record)
    } catch (error) {
      if (!isSluiceError(error, 'host.disk_full')) throw error
    }
    if (await isOverAfter(parts, attempt)) return
  }
}

/** Waits before the next attempt, if there is to be one. */
async function isOverAfter({ closing: { signal } }: AnalysisParts, attempt: number) {
  if (signal.aborted) return true
  const waitMs = backoffMs(attempt, retry, Math.random())
  await sleep(waitMs, undefined, { signal }).catch(() => undefined)
  return false
}

/** Signs the receipt into the journal, in one step with the lease being over. */
export async function confirmWipe(
  parts: AnalysisParts,
  record: LeaseRecord & { wipe?: WipeFacts | undefined },
): Promise<void> {
  const { identity, isolation } = parts
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
  await parts.journal.change((draft) => {
    draft.receipts[record.wipeObligationId] = receipt
    draft.leases[record.leaseId] = { ...record, state: 'over', wipe: facts }
    const over = Object.values(draft.leases).filter(({ state }) => state === 'over')
    over.sort((one, other) => one.acceptedAtMs - other.acceptedAtMs)
    for (const { leaseId } of over.slice(0, Math.max(0, over.length - overMax))) {
      delete draft.leases[leaseId]
    }
  })
  parts.receipts.wake()
}

/** Swap that was switched on during a lease leaves nothing to claim. */
function levelThatHeld(memoryLevel: MemoryLevel): MemoryLevel {
  const { level } = planMemory({ ...readSwapFacts(), mounts: [] }, { allowSwap: true })
  return level === 'swap-allowed' ? level : memoryLevel
}
