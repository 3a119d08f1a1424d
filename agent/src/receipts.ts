/** Receipts of this host: signed once its copy is gone, owed until the control plane has accepted them. */
import { sign } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isSluiceError } from '@sluice/protocol/errors'
import { backoffMs } from '@sluice/protocol/process/retry'
import { type Receipt, receiptOf } from '@sluice/protocol/receipt'
import { type DsseEnvelope, signStatement } from '@sluice/protocol/sealing/dsse'
import { purgeReceiptPayloadType } from '@sluice/protocol/sealing/verify-purge-receipt'
import type { ControlLink } from './control-link.ts'
import type { Identity } from './enrol.ts'
import type { Journal } from './journal.ts'

/**
 * Signs a receipt with this agent's identity key.
 *
 * @param predicate What was wiped and how; the caller has checked it just before.
 * @param sealedHeaderSha256 Lower-case hex SHA-256 of the 56-byte header of the sealed archive.
 */
export function signReceipt(
  identity: Identity,
  predicate: Receipt,
  sealedHeaderSha256: string,
): DsseEnvelope {
  const statement = receiptOf(predicate, sealedHeaderSha256)
  return signStatement('application/vnd.sluice.receipt.v1+json', statement, {
    keyId: identity.keyId,
    sign: (bytes) => sign(null, bytes, identity.privateKey),
  })
}

/** Receipts that are signed and not yet accepted. */
export type ReceiptOutbox = {
  /**
   * Wakes the outbox after a receipt was written to `draft.receipts` of the journal, in the same
   * change as the state it proves.
   */
  wake(): void
  /** Ends when the outbox was closed by its signal. */
  readonly done: Promise<void>
}

/** Between tries while the control plane, or the disk here, cannot take a receipt. */
const retry = { minMs: 1000, maxMs: 60_000 }

/** Sends what the journal owes, one at a time and purge receipts first, again after every reconnect, until accepted. */
export function createReceiptOutbox(options: {
  journal: Journal
  link: Pick<ControlLink, 'request'>
  signal: AbortSignal
  /** Told of a receipt the control plane refused for good: someone must look. */
  refused: (obligationId: string, error: unknown) => void
  random?: () => number
}): ReceiptOutbox {
  const { journal, link, signal } = options
  /** Refused in this process: kept in the journal, tried again by the next one, or signed anew. */
  const setAside = new Map<string, string>()
  // Receipts of an emergency wait for no other: they have a lane of their own.
  const lanes = [createLane(true), createLane(false)]

  function createLane(urgent: boolean) {
    let woken = Promise.withResolvers<void>()
    const wake = () => woken.resolve()
    signal.addEventListener('abort', wake, { once: true })

    /** @returns Whether something is left that may pass later. */
    async function sendAll(): Promise<boolean> {
      let left = false
      for (const [obligationId, receipt] of Object.entries(journal.data.receipts)) {
        if (signal.aborted) return false
        if ((receipt.payloadType === purgeReceiptPayloadType) !== urgent) continue
        if (setAside.get(obligationId) === receipt.payload) continue
        try {
          await link.request('receipt', { receipt }, { signal, urgent })
          await settle(obligationId, receipt)
        } catch (error) {
          if (signal.aborted) return false
          if (!isSluiceError(error)) throw error
          if (error.retry === 'later') left = true
          else {
            setAside.set(obligationId, receipt.payload)
            options.refused(obligationId, error)
          }
        }
      }
      return left
    }

    async function run(): Promise<void> {
      for (let failures = 0; !signal.aborted;) {
        const left = await sendAll()
        failures = left ? failures + 1 : 0
        const again = new AbortController()
        const pause = backoffMs(failures, retry, (options.random ?? Math.random)())
        const waits = [woken.promise]
        if (left)
          waits.push(sleep(pause, undefined, { signal: again.signal }).catch(() => undefined))
        await Promise.race(waits)
        again.abort()
        woken = Promise.withResolvers()
      }
    }

    return { wake, done: run() }
  }

  /** Forgets what was accepted; one that was signed anew meanwhile is still to be sent. */
  async function settle(obligationId: string, accepted: DsseEnvelope): Promise<void> {
    await journal.change((draft) => {
      const kept = Object.entries(draft.receipts).filter(
        ([id, { payload }]) => id !== obligationId || payload !== accepted.payload,
      )
      draft.receipts = Object.fromEntries(kept)
    })
  }

  return {
    wake() {
      for (const { wake } of lanes) wake()
    },
    done: Promise.all(lanes.map(({ done }) => done)).then(() => undefined),
  }
}
