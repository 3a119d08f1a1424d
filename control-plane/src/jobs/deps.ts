/** What the parts of a job's life work with; the composition root fills it in. */
import { isSluiceError } from '@sluice/protocol/errors'
import type { Actor } from '@sluice/protocol/audit-event'
import type { AgentId } from '@sluice/protocol/ids'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import type { Keys } from '../keys/keys.ts'
import type { ObjectStore, Replicas } from '../storage/object-store.ts'
import type { LeaseTimes } from './lease-times.ts'
import type { Turns } from './turns.ts'

export type JobDeps = {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
  /** How long the open leases of this process hold; `now` decides about none of them. */
  leaseTimes: LeaseTimes
  keys: Pick<Keys, 'openEscrow' | 'sealForLease' | 'supplyReceiveKeys'>
  store: Pick<
    ObjectStore,
    | 'createUpload'
    | 'listParts'
    | 'grantPart'
    | 'completeUpload'
    | 'abortUpload'
    | 'head'
    | 'grantRead'
    | 'deleteAll'
  >
  /** Each of them owes a deletion for every job from its announcement on. */
  replicas: Replicas
  /** How long a failed or lost job is kept; `limits.failedJobKeepMsDefault` unless configured. */
  failedJobKeepMs: number
  /** One at a time for everything that changes a job's object. */
  turns: Turns
}

export const system: Actor = { kind: 'system' }

export function byAgent(id: AgentId): Actor {
  return { kind: 'agent', id }
}

/** Runs `work`, which may lose a race of state changes; who lost has nothing left to do. */
export async function unlessDecided(work: Promise<unknown>): Promise<void> {
  try {
    await work
  } catch (error) {
    if (!isSluiceError(error, 'request.conflict')) throw error
  }
}
