/** Deletes what a job has in the object store, and believes only a second look. */
import { SluiceError } from '@sluice/protocol/errors'
import { isAbsent, type ObjectStore } from '../storage/object-store.ts'
import type { OwnWork } from './receipts.ts'
import type { JobRow } from './store.ts'

/**
 * Aborts uploads, deletes every version, and looks again.
 *
 * @throws SluiceError `store.refused` (`later`) when something is still there; what the store throws.
 */
export async function deleteObjects(
  store: Pick<ObjectStore, 'deleteAll' | 'remains'>,
  job: Pick<JobRow, 'objectKey'>,
  now: () => number,
): Promise<OwnWork> {
  const startedAtMs = now()
  await store.deleteAll(job.objectKey)
  const remains = await store.remains(job.objectKey)
  if (!isAbsent(remains))
    throw new SluiceError(
      'store.refused',
      `still in the store: ${remains.objects} objects, ${remains.versions} versions, ${remains.uploads} uploads`,
      { retry: 'later', hint: 'Look whether the bucket has versions, locks or replication.' },
    )
  return {
    method: 'object-delete',
    checked: ['no object under the key', 'no version or marker', 'no incomplete upload'],
    startedAtMs,
    wipedAtMs: Math.max(startedAtMs, now()),
  }
}
