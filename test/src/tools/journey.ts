/** Steps that every journey takes: handing media in, finding its jobs again, and proving that a job is gone. */

import assert from 'node:assert/strict'
import { createPublicKey } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'

import { submissionView } from '@sluice/agent/capture/present'
import type { SubmissionView } from '@sluice/agent/capture/present'
import { publicName } from '@sluice/control-plane/deletion/evidence'
import { jobDetail } from '@sluice/protocol/api-fleet'
import type { JobDetail } from '@sluice/protocol/api-fleet'
import type { JobId } from '@sluice/protocol/ids'
import { verifyCertificate } from '@sluice/protocol/sealing/verify-certificate'
import type { CertificateSummary } from '@sluice/protocol/sealing/verify-certificate'

import { waitFor } from './fleet-daemon.ts'
import { requireSuccess } from './fleet.ts'
import type { Fleet, FleetAgent } from './fleet.ts'

/** Generous: a busy machine is no reason to fail. */
export const waitMsMax = 90_000

/**
 * Hands files in with the real `sluice-agent submit`.
 *
 * @param options.together One job of all files, instead of one each.
 * @returns Ids of the submissions, in the order of the files.
 */
export async function submit(
  capture: FleetAgent,
  files: readonly string[],
  options: { analyser?: string; together?: boolean } = {},
): Promise<string[]> {
  const { analyser, together } = options
  const more = [
    ...(analyser === undefined ? [] : ['--analyser', analyser]),
    ...(together ? ['--together'] : []),
  ]
  const ended = await capture.command(['submit', '--json', ...more, ...files])
  requireSuccess('sluice-agent submit', ended)
  const said = JSON.parse(ended.stdout) as { submissions: { submissionId: string }[] }
  return said.submissions.map((each) => each.submissionId)
}

/** What the capture agent says of a submission, once it says what the test waits for. */
export async function waitForSubmission(
  capture: FleetAgent,
  submissionId: string,
  what: string,
  matches: (view: SubmissionView) => boolean,
): Promise<SubmissionView> {
  return await waitFor(`submission ${submissionId} to be ${what}`, waitMsMax, async () => {
    const [status] = await capture.ask({ type: 'status' })
    const views = submissionView.array().parse((status as { submissions: unknown }).submissions)
    const view = views.find((one) => one.submissionId === submissionId)
    if (view?.stage === 'refused') throw new Error(`refused: ${JSON.stringify(view.problem)}`)
    return view !== undefined && matches(view) ? view : undefined
  })
}

/** The job of a submission, once its sealing is complete and durable. */
export async function waitUntilSealed(capture: FleetAgent, submissionId: string): Promise<JobId> {
  const before = ['waiting', 'normalise', 'seal']
  const isSealed = (view: SubmissionView) =>
    view.jobId !== undefined && !before.includes(view.stage)
  const { jobId } = await waitForSubmission(capture, submissionId, 'sealed', isSealed)
  assert.ok(jobId !== undefined)
  return jobId
}

/** Waits until a capture host has its link, and something to seal to. */
export async function waitUntilReady(capture: FleetAgent): Promise<void> {
  await waitFor('a link and receive keys', waitMsMax, async () => {
    const [status] = await capture.ask({ type: 'status' })
    const { link, receiveKeys } = status as { link: string; receiveKeys: number }
    return link === 'connected' && receiveKeys > 0 ? true : undefined
  })
}

/** Everything the API says about a job. */
export async function detailOf(fleet: Fleet, jobId: JobId): Promise<JobDetail> {
  return jobDetail.parse(await fleet.ask(`/v1/jobs/${jobId}`))
}

/**
 * Waits until a job is `deleted` and holds the system to it: nothing owed, every state on the way, and a
 * certificate that verifies against the evidence key.
 */
export async function proveDeleted(
  fleet: Fleet,
  jobId: JobId,
): Promise<{ detail: JobDetail; certificate: CertificateSummary }> {
  await fleet.waitForState(jobId, ['deleted'], waitMsMax)
  const detail = await detailOf(fleet, jobId)
  const owed = detail.obligations.filter((one) => one.state !== 'done')
  assert.deepEqual(owed, [])
  const { status, text } = await fleet.call(`/v1/jobs/${jobId}/certificate`)
  assert.equal(status, 200, text)
  const trusted = join(fleet.controlPlane.dataDirectory, 'evidence', publicName)
  const certificate = verifyCertificate(Buffer.from(text), createPublicKey(await readFile(trusted)))
  assert.equal(certificate.jobId, jobId)
  return { detail, certificate }
}

/** Names of everything in a folder and below, folders too; nothing when it is not there. */
export async function namesBelow(folder: string): Promise<string[]> {
  try {
    return await readdir(folder, { recursive: true })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}

/** Where the capture agent keeps what it has sealed. */
export function spoolOf(capture: FleetAgent): string {
  return join(capture.stateDirectory, 'spool')
}

/** The result that the capture agent opened. */
export async function resultOf(capture: FleetAgent, jobId: JobId): Promise<unknown> {
  return JSON.parse(await readFile(join(capture.resultsDirectory, `${jobId}.json`), 'utf8'))
}
