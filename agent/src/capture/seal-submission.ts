/** Tries once to make a sealed job of a submission: another id, key and salt at every attempt. */
import { availableParallelism, loadavg } from 'node:os'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import type { CaptureJob, JournalData, Submission } from '../journal.ts'
import type { CaptureParts } from './capture-parts.ts'
import { chooseEffort } from './compression.ts'
import { putBack, tellPutBack } from './put-back.ts'
import { quarantine } from './quarantine.ts'
import { createReadiness } from './ready-to-seal.ts'
import type { Infection } from './scan.ts'
import { type SealedFacts, sealInChild } from './seal.ts'
import { deleteSpool } from './spool.ts'

type ReceiveKey = JournalData['receiveKeys'][number]
/** What a sealing told of its sources before it failed. */
type Found = { blamed?: number; infections: Infection[] }

export type SealingNews = {
  /** A receive key is used up, or none is there. */
  keyTaken(): void
  sealed(id: JobId): void
  /** Infected sources are in quarantine. */
  quarantined(): void
}

/** @returns Seals one submission as a job, or says why it waits by throwing. */
export function createSealer(
  parts: CaptureParts,
  news: SealingNews,
): (submission: Submission, id: JobId, purged: AbortSignal) => Promise<void> {
  const { journal, spoolDir, events, signal, now } = parts
  const requireReady = createReadiness(parts)

  return async (submission, id, purged) => {
    await requireReady(submission)
    const key = await begin(submission, id)
    news.keyTaken()
    if (!key) return requirePurged(submission)
    const found: Found = { infections: [] }
    try {
      const facts = await seal(submission, { id, key, found, purged })
      await recordSealed(submission, { id, key, facts })
    } catch (error) {
      if (!parts.job(id)) await deleteSpool(spoolDir, id)
      // What a purge has ended is not wanted any more, or it was none of its business and goes again.
      if (purged.aborted && !signal.aborted) return
      if (signal.aborted || !isSluiceError(error)) throw error
      await recordUnsealed(submission, error, found)
      if (error.retry === 'later') throw error
    }
  }

  /** Names the attempt and takes its key in one step. */
  function begin(submission: Submission, id: JobId): Promise<ReceiveKey | undefined> {
    return journal.change((draft) => {
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
  }

  /** @throws SluiceError `spool.no_receive_key` unless it was a purge that came first. */
  function requirePurged(submission: Submission): void {
    if (journal.data.submissions[submission.submissionId]?.state === 'purged') return
    const none = new SluiceError('spool.no_receive_key', 'no receive key is left to seal to', {
      retry: 'later',
      hint: 'Sealing goes on by itself once the control plane can be reached.',
    })
    events.sealingPutOff(submission, none)
    throw none
  }

  function seal(
    submission: Submission,
    attempt: { id: JobId; key: ReceiveKey; found: Found; purged: AbortSignal },
  ): Promise<SealedFacts> {
    const { id, key, found, purged } = attempt
    const { submissionId, analyser, sources } = submission
    const { reserveBytes, isolation, ffmpeg, gate } = parts
    return sealInChild(
      {
        ...{ jobId: id, analyser, sources, agentId: parts.identity.agentId },
        ...{ receiveKeyId: key.receiveKeyId, publicKey: key.publicKey },
        ...{ spoolDir, reserveBytes, isolation, ffmpeg, gate },
        effort: chooseEffort({
          linkBytesPerSecond: parts.linkSpeed.bytesPerSecond,
          freeCores: Math.max(0, availableParallelism() - (loadavg()[0] ?? 0)),
        }),
        quarantined: Object.keys(journal.data.quarantine),
      },
      {
        signal: AbortSignal.any([signal, purged]),
        progress: (progress) => parts.progress({ submissionId, jobId: id, ...progress }),
        blamed: (source) => (found.blamed = source),
        infected: (infection) => void found.infections.push(infection),
      },
    )
  }

  async function recordSealed(
    submission: Submission,
    { id, key, facts }: { id: JobId; key: ReceiveKey; facts: SealedFacts },
  ): Promise<void> {
    const { submissionId, analyser, sources, source, moveTo } = submission
    const sealedJob: CaptureJob = {
      ...{ jobId: id, submissionId, analyser, sources, source, moveTo },
      ...facts,
      receiveKeyId: key.receiveKeyId,
      sealedAtMs: now(),
      step: 'sealed',
      deliveryConfirmed: false,
      sourceDone: source.action === 'keep',
      spoolDeleteWanted: false,
      spoolGone: false,
      seedGone: false,
      noResult: false,
      updatedAtMs: now(),
    }
    const wanted = await journal.change((draft) => {
      const current = draft.submissions[submissionId]
      // A purge came in between: its scope holds this draft, and nothing else may know it.
      if (current?.state !== 'sealing' || current.jobId !== id) return false
      draft.jobs[id] = sealedJob
      current.state = 'sealed'
      // Whatever put it off until now is over, and explains nothing that comes.
      delete current.problem
      return true
    })
    if (!wanted) return await deleteSpool(spoolDir, id)
    events.sealed(sealedJob)
    news.sealed(id)
  }

  /** After a failure that may pass the submission waits again, a few times; else it is refused. */
  async function recordUnsealed(
    { submissionId }: Submission,
    problem: SluiceError,
    { infections, blamed }: Found,
  ): Promise<void> {
    const after = await journal.change((draft) => {
      for (const infection of infections) quarantine(draft, infection, now())
      return putBack(draft, submissionId, { problem, blamed, atMs: now() })
    })
    for (const infection of infections) events.infected(infection)
    tellPutBack(parts, after, problem)
    news.quarantined()
  }
}
