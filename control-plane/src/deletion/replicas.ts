/** Deletes what the operator's own replication has copied elsewhere, and believes only a look that comes late enough. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { isAbsent, type Replicas } from '../storage/object-store.ts'
import { deleteObjects } from './objects.ts'
import type { OwnWork } from './receipts.ts'
import type { JobRow } from './store.ts'

/**
 * Looks for a job's objects in one replica. What is there is deleted at once; but a copy may still be
 * under way, so it is gone only when nothing is found `settleMs` or more after the store itself was
 * empty, and after anything was found here.
 *
 * @returns What was done and seen, or how long to wait before the next look.
 * @throws SluiceError `store.unreachable` (`later`) also for a replica that is not configured any
 * more: it stays owed. What the replica throws.
 */
export async function deleteFromReplica(
  replicas: Replicas,
  from: { place: string; job: Pick<JobRow, 'objectKey' | 'objectsAbsentAtMs'> },
  now: () => number,
): Promise<OwnWork | { waitMs: number }> {
  const { place, job } = from
  const store = replicas.stores.get(place)
  if (!store)
    throw new SluiceError('store.unreachable', `no replica ${place} is configured any more`, {
      retry: 'later',
      hint: 'Put it back into storage.replicas: what it holds of this job is still to be deleted.',
    })
  const startedAtMs = now()
  const waitMs = Math.max(replicas.settleMs, limits.obligationRetryMsMin)
  if (!isAbsent(await store.remains(job.objectKey))) {
    await deleteObjects(store, job, now)
    return { waitMs }
  }
  if (job.objectsAbsentAtMs === null) return { waitMs }
  const settledAtMs = job.objectsAbsentAtMs + replicas.settleMs
  if (startedAtMs < settledAtMs) return { waitMs: settledAtMs - startedAtMs }
  return {
    method: 'object-delete',
    checked: [
      'no object under the key',
      'no version or marker',
      'no incomplete upload',
      'looked at after the store was empty',
    ],
    startedAtMs,
    wipedAtMs: Math.max(startedAtMs, now()),
  }
}
