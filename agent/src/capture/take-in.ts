/** Takes files in, durably; from here on nothing but a refusal or a purge ends their way. */
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { type SubmissionId, submissionId } from '@sluice/protocol/ids'
import type { SourcePolicy } from '@sluice/protocol/job'
import { newId } from '@sluice/protocol/process/new-id'
import type { Submission } from '../journal.ts'
import type { CaptureParts } from './capture-parts.ts'
import { contentKey, rememberContents } from './contents.ts'
import { identifySource } from './sources.ts'

export type NewSubmission = {
  files: string[]
  analyser: string
  source: SourcePolicy
  moveTo?: string | undefined
  origin: 'command' | 'watch'
  /** SHA-256 of files of a watched folder, so that their content is known again. */
  contents?: readonly string[]
}

/** @throws SluiceError `media.not_a_file`, `usage` for relative paths. */
export async function takeIn(
  { journal, events, now }: CaptureParts,
  { files, analyser, source, moveTo, origin, contents = [] }: NewSubmission,
): Promise<SubmissionId> {
  const relative = files.find((file) => !path.isAbsolute(file))
  if (relative !== undefined) throw new SluiceError('usage', `not an absolute path: ${relative}`)
  const sources = await Promise.all(files.map(identifySource))
  const submission: Submission = {
    ...{ submissionId: newId(submissionId, now()), createdAtMs: now(), origin, analyser },
    ...{ sources, source, moveTo, state: 'waiting', attempts: 0 },
  }
  await journal.change((draft) => {
    draft.submissions[submission.submissionId] = submission
    rememberContents(
      draft,
      contents.map((sha256) => contentKey(sha256, analyser)),
      { submissionId: submission.submissionId, atMs: submission.createdAtMs },
    )
  })
  events.submitted(submission)
  return submission.submissionId
}
