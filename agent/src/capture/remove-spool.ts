/** Removes the spool of a job that the control plane wants gone, and signs for it. */
import { SluiceError } from '@sluice/protocol/errors'
import type { ObligationId } from '@sluice/protocol/ids'
import { isOver } from '@sluice/protocol/job'
import type { CommandOf } from '../control-link.ts'
import type { CaptureJob } from '../journal.ts'
import { signReceipt } from '../receipts.ts'
import type { CaptureParts } from './capture-parts.ts'
import type { JobWork } from './job-work.ts'
import { deleteSealed, deleteSpool } from './spool.ts'

/** The order to remove; the work on the job does it, with whatever else it owes. */
export async function orderRemoval(
  parts: CaptureParts,
  work: JobWork,
  command: CommandOf<'spool.delete'>,
): Promise<void> {
  if (!parts.job(command.jobId)) return removeUnknown(parts, work, command)
  await parts.edit(command.jobId, (draft) => {
    draft.spoolDeleteWanted = true
    draft.spoolObligationId = command.obligationId
    // The receipt is signed again, should the control plane have lost the first one.
    draft.spoolGone = false
    if (draft.remoteState === undefined || !isOver(draft.remoteState))
      draft.remoteState = 'deleting'
    if (draft.step === 'over') draft.step = 'delivered'
  })
  work.carry(command.jobId)
}

/** A purge may have taken the job from the journal and not yet from everywhere else. */
async function removeUnknown(
  parts: CaptureParts,
  work: JobWork,
  command: CommandOf<'spool.delete'>,
): Promise<void> {
  const { journal, spoolDir } = parts
  const { jobId, obligationId } = command
  await work.stop([jobId])
  const startedAtMs = parts.now()
  const checked = await deleteSealed(spoolDir, jobId)
  await deleteSpool(spoolDir, jobId)
  const purged = journal.data.purgedJobs[jobId]
  const receipt = receiptFor(parts, command, obligationId, {
    startedAtMs,
    checked: purged ? ['removed by a purge before', ...checked] : checked,
    method: purged ? 'unlink' : 'never-held',
  })
  await journal.change((draft) => {
    draft.receipts[obligationId] = receipt
  })
  parts.receipts.wake()
}

/** The receipt is in the journal in one step with the spool being gone. */
export async function removeSpool(parts: CaptureParts, current: CaptureJob): Promise<void> {
  const { jobId, spoolObligationId } = current
  parts.tell(current, 'delete')
  const startedAtMs = parts.now()
  const checked = await deleteSealed(parts.spoolDir, jobId)
  if (!spoolObligationId) throw new SluiceError('internal', 'a deletion without its obligation')
  const facts = { startedAtMs, checked, method: 'unlink' } as const
  const receipt = receiptFor(parts, current, spoolObligationId, facts)
  await parts.edit(jobId, (draft, all) => {
    draft.spoolGone = true
    all.receipts[spoolObligationId] = receipt
  })
  parts.receipts.wake()
  parts.events.spoolDeleted(current)
}

/** What is left in a spool without its archive: the key for a result that is here, or never comes. */
export async function wipeSeed(
  { spoolDir, edit }: CaptureParts,
  { jobId }: CaptureJob,
): Promise<void> {
  await deleteSpool(spoolDir, jobId)
  await edit(jobId, (draft) => (draft.seedGone = true))
}

function receiptFor(
  { identity, now }: CaptureParts,
  of: Pick<CaptureJob, 'jobId' | 'sealedHeaderSha256'>,
  obligationId: ObligationId,
  facts: { startedAtMs: number; checked: string[]; method: 'unlink' | 'never-held' },
) {
  const holder = { kind: 'capture-spool' as const, id: identity.agentId }
  const predicate = { jobId: of.jobId, obligationId, holder, ...facts, wipedAtMs: now() }
  return signReceipt(identity, predicate, of.sealedHeaderSha256)
}
