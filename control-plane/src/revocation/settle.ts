/** Works off what a revocation still owes to the store: incomplete uploads, and grants that are out. */
import assert from 'node:assert/strict'
import { SluiceError } from '@sluice/protocol/errors'
import type { Outcome } from '../deletion/engine.ts'
import type { Obligation } from '../deletion/rules.ts'
import { markDone } from '../deletion/store.ts'
import type { RevocationDeps } from './revoke.ts'
import { grantsOverAtMs } from './rules.ts'

/**
 * Aborts what a revoked agent had begun to upload.
 *
 * @throws SluiceError `store.unreachable`, `store.refused`: it stays owed.
 */
export async function abortRevoked(deps: RevocationDeps, duty: Obligation): Promise<Outcome> {
  assert(duty.agentId, `obligation ${duty.id} names no agent`)
  await deps.abortUploads(duty.agentId)
  await deps.database.write((tx) => markDone(tx, duty.id, deps.now()))
  return 'settled'
}

/**
 * Has the store refuse every grant given out before. Where it can't, the duty is settled by what is
 * true without its help: when the last of those grants is over.
 *
 * @throws SluiceError `store.refused` (`later`) until then, with what a person can do sooner.
 */
export async function revokeGrants(deps: RevocationDeps, duty: Obligation): Promise<Outcome> {
  const overAtMs = grantsOverAtMs(duty.createdAtMs)
  const refused = await deps.store.revokeGrants(duty.createdAtMs)
  if (!refused && deps.now() <= overAtMs)
    throw new SluiceError('store.refused', 'this store cannot take back grants that are out', {
      retry: 'later',
      hint: `They are over by ${new Date(overAtMs).toISOString()}; sooner, if a new access key is put into the credentials file and the old one deleted at the store.`,
    })
  await deps.database.write((tx) => markDone(tx, duty.id, deps.now()))
  return 'settled'
}
