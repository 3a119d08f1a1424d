/** Carries one lease from its acceptance to its receipt, whatever ends it on the way; wiped before it is reported. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Grant } from '@sluice/protocol/messages'
import { type AnalysisParts, endLease, type Live, refOf } from './analysis-parts.ts'
import { signResult } from './confirm.ts'
import { setDeadline } from './deadlines.ts'
import { type LeaseOutcome, startLeaseChild } from './lease.ts'
import type { MediaMount } from './media-mount.ts'
import type { MemoryPlan } from './memory-level.ts'
import { asProblem, lostLease } from './problem.ts'
import { report } from './report.ts'
import { makeTraces, tracesOf } from './wipe.ts'
import { confirmOnceWritable, wipeUntilDone } from './wipe-and-confirm.ts'

export async function carryLease(parts: AnalysisParts, lease: Live): Promise<void> {
  const { events, live } = parts
  const ref = refOf(lease.offer)
  let outcome: LeaseOutcome
  let held = false
  let child: Awaited<ReturnType<typeof start>> | undefined
  const bound = setTimeout(
    () => endLease(lease, new SluiceError('analysis.timeout', 'The analysis took too long.')),
    limits.analysisMsMax,
  )
  try {
    await accept(parts, lease)
    held = true
    child = await start(parts, lease)
    outcome = await Promise.race([child.outcome, whenAborted(lease.end.signal)])
  } catch (error) {
    const { aborted, reason } = lease.end.signal
    outcome = { type: 'failed', problem: asProblem(aborted ? reason : error) }
  } finally {
    clearTimeout(bound)
  }
  const wiped = await wipeUntilDone(parts, lease.record, { held, child: child?.process })
  lease.wiped.resolve()
  if (wiped === undefined) return
  events.leaseWiped(ref, wiped)
  const problem = await report(parts, lease, outcome)
  clearTimeout(lease.timer)
  live.delete(lease.offer.leaseId)
  events.leaseEnded(ref, problem)
  // Unreported: the next start does it.
  if (parts.closing.signal.aborted && !parts.ending.forGood) return
  await confirmOnceWritable(parts, { ...lease.record, wipe: wiped })
}

async function accept(parts: AnalysisParts, lease: Live): Promise<void> {
  const ref = refOf(lease.offer)
  const askedAtMs = parts.monotonicMs()
  const { body } = await parts.link.request('lease.accept', ref, { signal: lease.end.signal })
  setDeadline(parts, lease, askedAtMs + body.remainingMs)
  lease.end.signal.throwIfAborted()
  parts.events.leaseAccepted(ref)
  parts.link.heartbeatNow()
}

async function start(parts: AnalysisParts, lease: Live) {
  const { identity, isolation, events } = parts
  const { offer, analyser, memory, end } = lease
  const ref = refOf(offer)
  const traces = tracesOf(parts.runtimeDirectory, offer.leaseId)
  await makeTraces(traces)
  end.signal.throwIfAborted()
  const object = parts.openObject({
    grant: () => askGrant(parts, lease),
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
      requestKey: (publicKey) => requestKey(parts, lease, publicKey),
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

async function requestKey({ link }: AnalysisParts, lease: Live, publicKey: Buffer) {
  const body = { ...refOf(lease.offer), publicKey: publicKey.toString('base64url') }
  const reply = await link.request('key.request', body, { signal: lease.end.signal })
  if (reply.attachment === undefined) {
    throw new SluiceError('channel.malformed', 'The control plane sent no key.')
  }
  return { envelope: reply.attachment, deadlineAtMs: reply.body.deadlineAtMs }
}

async function askGrant({ link }: AnalysisParts, { offer, end }: Live): Promise<Grant> {
  const { body } = await link.request('object.read', refOf(offer), { signal: end.signal })
  if (body.sealedBytes === offer.sealedBytes) return body.grant
  throw new SluiceError('download.mismatch', 'the stored object is not of the announced size')
}

function mountFor(sealedBytes: number, memory: MemoryPlan, folder: string): MediaMount {
  const kind = memory.directory
  if (kind === undefined) throw new SluiceError('node.swap_possible', 'No directory in memory.')
  // The sealed form is larger than the media in it; each file is rounded up to a page.
  const bytesMax = sealedBytes + (limits.mediaPerJobMax + 1) * 4096
  return { kind, folder, bytesMax, filesMax: limits.mediaPerJobMax }
}

function whenAborted(signal: AbortSignal): Promise<LeaseOutcome> {
  const { promise, resolve } = Promise.withResolvers<LeaseOutcome>()
  const ended = (): void => resolve({ type: 'failed', problem: asProblem(signal.reason) })
  if (signal.aborted) ended()
  else signal.addEventListener('abort', ended, { once: true })
  return promise
}
