/** Pictures that no compression makes small and no two of which are alike, for jobs of a known size. */

import { join } from 'node:path'

import type { SubmissionView } from '@sluice/agent/capture/present'
import { submissionView } from '@sluice/agent/capture/present'
import { submissionId } from '@sluice/protocol/ids'
import type { JobId } from '@sluice/protocol/ids'
import sharp from 'sharp'

import { waitFor } from './fleet-daemon.ts'
import type { FleetAgent } from './fleet.ts'

/**
 * Writes a picture of noise.
 *
 * @param sidePixels About three bytes of file for each of its pixels.
 * @returns Its path.
 */
export async function makePicture(
  folder: string,
  name: string,
  sidePixels: number = 64,
): Promise<string> {
  const path = join(folder, `${name}.png`)
  const noise = { type: 'gaussian', mean: 128, sigma: 60 } as const
  const size = { width: sidePixels, height: sidePixels }
  await sharp({ create: { ...size, channels: 3, background: '#808080', noise } })
    .png({ compressionLevel: 1 })
    .toFile(path)
  return path
}

/** Hands files in, each as a job of its own, and waits until all are sealed. @returns In their order. */
export async function submitEach(
  capture: FleetAgent,
  files: readonly string[],
  analyser?: string,
): Promise<JobId[]> {
  const groups = files.map((file) => [file])
  const lines = await capture.ask({
    ...{ type: 'submit', groups },
    ...(analyser === undefined ? {} : { analyser }),
  })
  const ids = lines.map((line) =>
    submissionId.parse((line as Partial<SubmissionView>).submissionId),
  )
  return await waitFor(`${files.length} files to be sealed`, 60_000, async () => {
    const views = await submissionsOf(capture)
    const mine = ids.map((id) => views.find((view) => view.submissionId === id))
    const refused = mine.find((view) => view?.stage === 'refused')
    if (refused !== undefined) throw new Error(`refused: ${JSON.stringify(refused.problem)}`)
    const jobs = mine.flatMap((view) => view?.jobId ?? [])
    return jobs.length === files.length ? jobs : undefined
  })
}

/** What the capture agent says about everything that was handed in. */
export async function submissionsOf(capture: FleetAgent): Promise<SubmissionView[]> {
  const [status] = await capture.ask({ type: 'status' })
  const { submissions } = status as { submissions: unknown[] }
  return submissions.map((view) => submissionView.parse(view))
}
