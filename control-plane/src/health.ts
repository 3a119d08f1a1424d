/** Says how the control plane is doing: to anyone whether it answers, to its readers how it stands. */
import type { StatusReply } from '@sluice/protocol/api'
import type { Database, Queries } from './database/database.ts'
import { countEverything } from './database/counts.ts'

export type HealthFacts = {
  build: string
  startedAtMs: number
  caSha256: string
  evidenceKeyId: string
  /** Kind of the object store. */
  store: string
  stores: () => StatusReply['stores']
  connected: () => number
  reserve: 'ready' | 'missing'
  keys: StatusReply['keys']
}

/** The state of everything, counted now. */
export async function statusOf(
  deps: {
    database: Database
    now: () => number
    countProgress: (sql: Queries) => Promise<StatusReply['obligations']['progress']>
  },
  facts: HealthFacts,
): Promise<StatusReply> {
  const nowAtMs = deps.now()
  const counted = await countEverything(deps.database, nowAtMs)
  return {
    build: facts.build,
    startedAtMs: facts.startedAtMs,
    nowAtMs,
    caSha256: facts.caSha256,
    evidenceKeyId: facts.evidenceKeyId,
    store: facts.store,
    stores: facts.stores(),
    reserve: facts.reserve,
    keys: facts.keys,
    agents: { known: counted.agents, connected: facts.connected() },
    jobs: counted.jobs,
    obligations: {
      ...counted.obligations,
      progress: await deps.database.read(deps.countProgress),
    },
  }
}
