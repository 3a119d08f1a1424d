/** Destroys a job key for good: its row is gone, and so is every key that ever wrapped it. */
import { SluiceError } from '@sluice/protocol/errors'
import type { Database } from '../database/database.ts'
import type { Keys } from '../keys/keys.ts'
import { placesDestroyed } from '../keys/store.ts'
import type { OwnWork } from './receipts.ts'
import { hasJobKey, type JobRow, rollOfPurge } from './store.ts'

/** What was done to an epoch key, by where it lay. */
const destroyedIn = {
  file: 'old epoch key overwritten and read back',
  pkcs11: 'object that wrapped the old epoch key destroyed in the HSM and looked for there',
}

/**
 * Waits for a roll that begins after the row was gone. The intent of a purge deletes the row, so the roll
 * of that purge is one. After a crash it asks for another: a roll too many costs little, one too few would
 * leave the key recoverable.
 *
 * @throws SluiceError `request.conflict` while the job still has its key; what the roll throws.
 */
export async function destroyKey(
  parts: {
    database: Database
    keys: Pick<Keys, 'roll'>
    now: () => number
    signal?: AbortSignal
  },
  job: Pick<JobRow, 'id'>,
): Promise<OwnWork> {
  if (await parts.database.read((sql) => hasJobKey(sql, job.id)))
    throw new SluiceError('request.conflict', `job ${job.id} still has its key`)
  const purged = await parts.database.read(async (sql) => rollOfPurge(sql, job.id))
  const span = purged ?? { startedAtMs: parts.now(), ...(await parts.keys.roll(parts.signal)) }
  const { startedAtMs, destroyedAtMs } = span
  const places = await parts.database.read((sql) => placesDestroyed(sql, span))
  return {
    method: 'epoch-roll',
    checked: [
      'no row holds the key',
      'survivors re-sealed, read again and opened',
      ...places.map((place) => destroyedIn[place]),
      'old key process ended',
    ],
    startedAtMs,
    wipedAtMs: Math.max(startedAtMs, destroyedAtMs),
  }
}
