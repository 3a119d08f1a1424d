/** Fetches the result of a job, opens it durably on this host, and only then says that it is here. */
import { createHash } from 'node:crypto'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { CaptureJob } from '../journal.ts'
import type { CaptureParts } from './capture-parts.ts'
import { openResult } from './open-result.ts'
import { hasResultSeed } from './spool.ts'

/** @throws SluiceError `spool.damaged` when the key for it is gone; what `openResult` throws. */
export async function fetchResult(
  parts: CaptureParts,
  current: CaptureJob,
  until: AbortSignal,
): Promise<void> {
  const { link, edit, identity, spoolDir, resultsDir } = parts
  const { jobId, analyser, sealedHeaderSha256 } = current
  parts.tell(current, 'result')
  let reply
  try {
    reply = await link.request('result.fetch', { jobId }, { signal: until })
  } catch (error) {
    const none = isSluiceError(error, 'result.not_found') || isSluiceError(error, 'job.not_found')
    if (!none) throw error
    await edit(jobId, (draft) => (draft.noResult = true))
    return
  }
  const sealedResult = reply.attachment
  if (!sealedResult) throw new SluiceError('channel.malformed', 'a result without its bytes')
  if (!(await hasResultSeed(spoolDir, jobId)))
    throw new SluiceError('spool.damaged', `the key for the result of job ${jobId} is gone`)
  const resultPath = await openResult(
    {
      ...{ spoolDir, resultsDir, jobId, sealedResult, analyser, sealedHeaderSha256 },
      nodeId: reply.body.nodeId,
      lease: reply.body.lease,
      authorities: identity.authorities(),
      sources: current.sources.map((source) => source.path),
    },
    until,
  )
  const sealedResultSha256 = createHash('sha256').update(sealedResult).digest('hex')
  await edit(jobId, (draft) => {
    draft.step = 'delivered'
    draft.resultPath = resultPath
    draft.sealedResultSha256 = sealedResultSha256
    delete draft.problem
  })
  parts.events.resultDelivered(current)
}

export async function confirmDelivery(
  { link, edit }: CaptureParts,
  { jobId, sealedResultSha256 }: CaptureJob,
  until: AbortSignal,
): Promise<void> {
  if (!sealedResultSha256) throw new SluiceError('internal', 'a delivered result without digest')
  const reply = await link.request(
    'result.delivered',
    { jobId, sealedResultSha256 },
    { signal: until },
  )
  await edit(jobId, (draft) => {
    draft.deliveryConfirmed = true
    draft.remoteState = reply.body.state
  })
}
