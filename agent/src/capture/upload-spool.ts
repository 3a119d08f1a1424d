/** Uploads a spooled archive from where an earlier upload of it ended, or gives up what the spool has lost. */
import type { SluiceError } from '@sluice/protocol/errors'
import type { CaptureJob } from '../journal.ts'
import { problemOf } from '../problem.ts'
import { uploadSpool } from '../transfer/upload.ts'
import type { CaptureParts } from './capture-parts.ts'
import { openSpooledArchive } from './spool.ts'

/** @throws SluiceError `spool.damaged` when the archive is gone: then it is to be abandoned. */
export async function upload(
  parts: CaptureParts,
  current: CaptureJob,
  until: AbortSignal,
): Promise<void> {
  const { client, link, linkSpeed, partsInParallel, bandwidth, tell } = parts
  const { jobId, sealedBytes } = current
  await using archive = await openSpooledArchive(parts.spoolDir, jobId)
  tell(current, 'upload', { done: 0, total: sealedBytes })
  const state = await uploadSpool({
    ...{ jobId, archive, sealedBytes, client, link, linkSpeed, partsInParallel },
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

/** The archive is gone from the spool: the job can never be completed. */
export async function abandon(
  { link, edit }: CaptureParts,
  { jobId }: CaptureJob,
  { why, until }: { why: SluiceError; until: AbortSignal },
): Promise<void> {
  const reply = await link.request(
    'job.abandon',
    { jobId, problem: problemOf(why) },
    { signal: until },
  )
  await edit(jobId, (draft) => (draft.remoteState = reply.body.state))
}
