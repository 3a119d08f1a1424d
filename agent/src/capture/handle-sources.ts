/** Does with the sources of a job what was asked, once their only other copy is proven to be there. */
import { createHash } from 'node:crypto'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { CaptureJob } from '../journal.ts'
import { problemOf } from '../problem.ts'
import type { CaptureParts } from './capture-parts.ts'
import { handleSource } from './sources.ts'

const readBackBytes = 8 * 1024 * 1024

/**
 * Reads the whole stored object back before the only other copy may go.
 *
 * @throws SluiceError `store.digest_mismatch`; the sources are kept then.
 */
export async function handleWhenStored(
  parts: CaptureParts,
  current: CaptureJob,
  until: AbortSignal,
): Promise<void> {
  const { jobId, sealedBytes } = current
  const grant = async () =>
    (await parts.link.request('upload.verify', { jobId }, { signal: until })).body.grant
  const reader = parts.openObject({ grant, sealedBytes, signal: until })
  const digest = createHash('sha256')
  for (let offset = 0; offset < sealedBytes; offset += readBackBytes)
    digest.update(await reader.read(offset, Math.min(readBackBytes, sealedBytes - offset)))
  if (digest.digest('hex') !== current.spoolSha256)
    throw new SluiceError(
      'store.digest_mismatch',
      `the stored object of job ${jobId} is not the spool`,
      { hint: 'The source was kept. Look at the object store; retry or delete the job.' },
    )
  await handleSources(parts, current)
}

/** May be called again after a crash at any point. */
export async function handleSources(parts: CaptureParts, current: CaptureJob): Promise<void> {
  let problem: SluiceError | undefined
  for (const source of current.sources) {
    try {
      await handleSource(source, { action: current.source.action, moveTo: current.moveTo })
    } catch (error) {
      if (!isSluiceError(error)) throw error
      problem = error
    }
  }
  // A file that is another one by now, or can't be moved, stays where it is; that is said, not retried.
  if (problem) parts.events.dutyFailed(current.jobId, 'handle-source', problem)
  await parts.edit(current.jobId, (draft) => {
    draft.sourceDone = true
    if (problem) draft.sourceProblem = problemOf(problem)
  })
}
