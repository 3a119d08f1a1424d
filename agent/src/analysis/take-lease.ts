/** Takes what the control plane orders about leases: one offered, one to end. Both are durable before anything is done. */
import { isSluiceError } from '@sluice/protocol/errors'
import type { Problem } from '@sluice/protocol/messages'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import type { CommandOf } from '../control-link.ts'
import type { LeaseRecord } from '../journal.ts'
import { type AnalysisParts, endLease, type Live, refOf } from './analysis-parts.ts'
import type { Capacity, Fit } from './capacity.ts'
import { carryLease } from './carry-lease.ts'
import { asProblem, lostLease } from './problem.ts'
import { confirmOnceWritable, confirmWipe, wipe, wipeUntilDone } from './wipe-and-confirm.ts'

export async function takeOffer(
  parts: AnalysisParts,
  capacity: Capacity,
  offer: CommandOf<'lease.offer'>,
): Promise<void> {
  const { journal, live } = parts
  if (journal.data.leases[offer.leaseId] !== undefined) return
  const record: LeaseRecord = {
    ...refOf(offer),
    wipeObligationId: offer.wipeObligationId,
    sealedHeaderSha256: headerHashOf(offer).toString('hex'),
    acceptedAtMs: parts.now(),
    state: 'open',
  }
  let fit: Fit
  try {
    fit = capacity.requireFit(offer)
  } catch (error) {
    if (!isSluiceError(error)) throw error
    await parts.remember({ ...record, state: 'wiping' })
    parts.events.leaseDeclined(refOf(offer), asProblem(error))
    parts.inBackground(decline(parts, record, asProblem(error)))
    return
  }
  record.memoryLevel = fit.memory.level
  const lease: Live = {
    ...{ offer, record, ...fit, deadlineMs: undefined, timer: undefined },
    end: new AbortController(),
    wiped: Promise.withResolvers(),
  }
  live.set(offer.leaseId, lease)
  try {
    await parts.remember(record)
  } catch (error) {
    live.delete(offer.leaseId)
    lease.wiped.resolve()
    throw error
  }
  parts.inBackground(carryLease(parts, lease))
}

async function decline(parts: AnalysisParts, record: LeaseRecord, problem: Problem): Promise<void> {
  const { link, closing } = parts
  const wiped = await wipeUntilDone(parts, record, { held: false })
  try {
    await link.request('lease.decline', { ...refOf(record), problem }, { signal: closing.signal })
  } catch (error) {
    if (closing.signal.aborted) return
    if (!isSluiceError(error)) throw error
  }
  if (wiped !== undefined) await confirmOnceWritable(parts, { ...record, wipe: wiped })
}

export async function takeEnd(
  parts: AnalysisParts,
  command: CommandOf<'lease.end'>,
): Promise<void> {
  const { journal, live } = parts
  const known = journal.data.leases[command.leaseId]
  const running = live.get(command.leaseId)
  if (running !== undefined) {
    if (known?.state === 'open') await parts.remember({ ...known, state: 'wiping' })
    endLease(running, lostLease(`The control plane ended the lease: ${command.reason}.`))
    return
  }
  if (known !== undefined && known.state !== 'over') return // `recover` is at it, or the next start.
  if (known === undefined) {
    const { sealedHeaderSha256, wipeObligationId } = command
    const asked = { sealedHeaderSha256, wipeObligationId, acceptedAtMs: parts.now() }
    const record: LeaseRecord = { ...refOf(command), ...asked, state: 'wiping' }
    // A lost journal is no proof that there was no lease: what counts is what a look finds.
    const facts = await wipe(parts, record, 'process-exit')
    const checked = ['not in the journal', ...facts.checked]
    await confirmWipe(parts, { ...record, wipe: { ...facts, checked } })
  } else if (journal.data.receipts[known.wipeObligationId] === undefined) {
    await confirmWipe(parts, known)
  }
}

function headerHashOf(offer: CommandOf<'lease.offer'>): Buffer {
  return sealedHeaderHash(Buffer.from(offer.sealedHeader, 'base64url'))
}
