/** Proves what comes next for a job, for every state that matters. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { jobId, receiveKeyId, submissionId } from '@sluice/protocol/ids'
import { jobStates } from '@sluice/protocol/job'
import { newId } from '@sluice/protocol/process/new-id'
import type { CaptureJob } from '../journal.ts'
import { nextDuty } from './rules.ts'

const sealed: CaptureJob = {
  jobId: newId(jobId, 1),
  submissionId: newId(submissionId, 1),
  analyser: 'example',
  sources: [],
  source: { action: 'keep', when: 'result' },
  mediaCount: 1,
  sealedBytes: 72,
  sealedHeader: 'A'.repeat(75),
  sealedHeaderSha256: 'ab'.repeat(32),
  spoolSha256: 'ab'.repeat(32),
  receiveKeyId: newId(receiveKeyId, 1),
  sealedAtMs: 1,
  step: 'sealed',
  deliveryConfirmed: false,
  sourceDone: false,
  spoolDeleteWanted: false,
  spoolGone: false,
  seedGone: false,
  noResult: false,
  updatedAtMs: 1,
}
const stored: CaptureJob = { ...sealed, step: 'stored', remoteState: 'stored' }
const analysed: CaptureJob = { ...stored, remoteState: 'analysed' }
const delivered: CaptureJob = { ...analysed, step: 'delivered', resultPath: '/r' }
const wanted: CaptureJob = { ...analysed, remoteState: 'deleting', spoolDeleteWanted: true }

describe('nextDuty', () => {
  for (const [what, job, duty] of [
    ['a sealed job', sealed, 'announce'],
    ['an announced job', { ...sealed, step: 'announced', remoteState: 'announced' }, 'upload'],
    ['an upload cut short', { ...sealed, step: 'announced', remoteState: 'uploading' }, 'upload'],
    ['a stored job', stored, 'wait'],
    ['a leased job', { ...stored, remoteState: 'leased' }, 'wait'],
    ['a failed job', { ...stored, remoteState: 'failed' }, 'wait'],
    ['a frozen job', { ...stored, remoteState: 'frozen' }, 'wait'],
    [
      'a source that may go when stored',
      { ...stored, source: { action: 'delete', when: 'stored' } },
      'handle-source-stored',
    ],
    ['a job with a result', analysed, 'fetch-result'],
    ['a spool that must go, before anything else', wanted, 'delete-spool'],
    ['a sealed job whose spool must go', { ...sealed, spoolDeleteWanted: true }, 'delete-spool'],
    ['a result while the spool is gone', { ...wanted, spoolGone: true }, 'fetch-result'],
    ['a result that is here', delivered, 'handle-source'],
    ['a source that is done', { ...delivered, sourceDone: true }, 'confirm-delivery'],
    [
      'a confirmed delivery, until the spool may go',
      { ...delivered, sourceDone: true, deliveryConfirmed: true },
      'wait',
    ],
    [
      'an emptied spool',
      { ...delivered, sourceDone: true, deliveryConfirmed: true, spoolGone: true },
      'wipe-seed',
    ],
    ['a job that has no result', { ...wanted, spoolGone: true, noResult: true }, 'wipe-seed'],
    ['a wiped job', { ...wanted, spoolGone: true, noResult: true, seedGone: true }, 'finish'],
    ['a job that is over', { ...delivered, step: 'over', spoolGone: true }, 'wait'],
    [
      'a job that is over and asked to delete again',
      { ...delivered, step: 'over', spoolDeleteWanted: true, spoolGone: false },
      'delete-spool',
    ],
  ] as const)
    it(`says ${duty} for ${what}`, () => assert.equal(nextDuty(job as CaptureJob), duty))

  it('never handles a source without result, unless stored was named', () => {
    for (const remoteState of jobStates)
      for (const step of ['sealed', 'announced', 'stored', 'over'] as const)
        for (const spoolGone of [true, false]) {
          const source = { action: 'delete', when: 'result' } as const
          const duty = nextDuty({ ...sealed, source, step, remoteState, spoolGone })
          assert.ok(duty !== 'handle-source' && duty !== 'handle-source-stored', duty)
        }
  })
})
