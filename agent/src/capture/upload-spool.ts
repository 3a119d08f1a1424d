/** Uploads a spooled archive from where an earlier upload of it ended, or gives up what the spool has lost. */
import { type SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { CaptureJob } from '../journal.ts'
import { problemOf } from '../problem.ts'
import { uploadSpool } from '../transfer/upload.ts'
import type { CaptureParts } from './capture-parts.ts'
import { openSpooledArchive } from './spool.ts'

/**
 * @throws SluiceError `spool.damaged` when the archive is gone or cut short: the job is given up by
 * then; what `uploadSpool` throws.
 */
export async function upload(
  parts: CaptureParts,
  current: CaptureJob,
  until: AbortSignal,
): Promise<void> {
  try {
    await send(parts, current, until)
  } catch (error) {
    if (isSluiceError(error, 'spool.damaged')) await abandon(parts, current, error, until)
    throw error
  }
}

async function send(parts: CaptureParts, current: CaptureJob, until: AbortSignal): Promise<void> {
  const { client, link, partsInParallel, bandwidth, tell } = parts
  const { jobId, sealedBytes } = current
  await using archive = await openSpooledArchive(parts.spoolDir, jobId)
  tell(current, 'upload', { done: 0, total: sealedBytes })
  const state = await uploadSpool({
    ...{ jobId, archive, sealedBytes, client, link, partsInParallel },
    ...(bandwidth ? { bandwidth } : {}),
    progress: (heldBytes) => tell(current, 'upload', { done: heldBytes, total: sealedBytes }),
    signal: until,
  })
  await parts.edit(jobId, (draft) => {
    draft.remoteState = state
    if (state === 'stored') draft.step = 'stored'
    delete draft.problem
  })
  if (state !== 'stored') return
  parts.events.stored(current)
  tell(current, 'stored')
}

/** Without its archive a job can never be completed. */
async function abandon(
  { link, edit }: CaptureParts,
  { jobId }: CaptureJob,
  why: SluiceError,
  until: AbortSignal,
): Promise<void> {
  const body = { jobId, problem: problemOf(why) }
  const reply = await link.request('job.abandon', body, { signal: until })
  await edit(jobId, (draft) => (draft.remoteState = reply.body.state))
}
