/** Announces a sealed job with its key, sealed to the control plane; what it will not have is sealed again or refused. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { CaptureJob } from '../journal.ts'
import type { CaptureParts } from './capture-parts.ts'
import { putBack, tellPutBack } from './put-back.ts'
import { deleteSpool, readSpooledEnvelope } from './spool.ts'

/** What is wrong with one sealing, or with the receive key it used, and not with its source. */
const mendedBySealing: ReadonlySet<string> = new Set([
  'keys.destroyed',
  'keys.damaged',
  'keys.escrow_mismatch',
  'spool.damaged',
])

/** @returns Whether the job was announced; if not, its submission waits again or is refused. */
export async function announce(
  parts: CaptureParts,
  current: CaptureJob,
  until: AbortSignal,
): Promise<boolean> {
  parts.tell(current, 'announce')
  let attachment: Buffer
  try {
    attachment = await readSpooledEnvelope(parts.spoolDir, current.jobId)
  } catch (error) {
    if (!isSluiceError(error, 'spool.damaged')) throw error
    await takeBack(parts, current, error)
    return false
  }
  const { jobId, analyser, mediaCount, sealedBytes, spoolSha256, receiveKeyId } = current
  const { sealedHeader, sealedAtMs, source } = current
  const body = { jobId, analyser, mediaCount, sealedBytes, spoolSha256, receiveKeyId }
  try {
    const reply = await parts.link.request(
      'job.announce',
      { ...body, sealedHeader, sealedAtMs, source },
      { attachment, signal: until },
    )
    await parts.edit(jobId, (draft) => {
      draft.step = 'announced'
      draft.remoteState = reply.body.state
      draft.spoolObligationId = reply.body.spoolObligationId
      delete draft.problem
    })
    return true
  } catch (error) {
    if (!isSluiceError(error) || error.retry === 'later') throw error
    await takeBack(parts, current, error)
    return false
  }
}

/** This sealing is of no use: it is thrown away and redone from the source. */
async function takeBack(parts: CaptureParts, current: CaptureJob, why: SluiceError): Promise<void> {
  // Only what another sealing with another key mends is tried again; what is refused stays refused.
  const problem = mendedBySealing.has(why.code)
    ? new SluiceError(why.code, why.message, { retry: 'later', cause: why })
    : why
  // In one step, and before the spool: a crash in between leaves a folder that nobody explains,
  // and the next start removes it.
  const after = await parts.journal.change((draft) => {
    delete draft.jobs[current.jobId]
    return putBack(draft, current.submissionId, { problem, atMs: parts.now() })
  })
  await deleteSpool(parts.spoolDir, current.jobId)
  tellPutBack(parts, after, problem)
}
