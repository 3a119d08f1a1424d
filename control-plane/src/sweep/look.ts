/** Looks at each place where something of a job can be, and tells every difference it finds. */
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId, JobId, SweepId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { RequestBody } from '@sluice/protocol/messages'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { enqueueCommand } from '../fleet/store.ts'
import type { EpochKeyStore } from '../keys/epoch-key-store.ts'
import { claimKey } from '../storage/claim.ts'
import {
  type Difference,
  isOurs,
  joinByKey,
  madeAtMs,
  spoolDifference,
  storeDifferences,
  type SweptEntry,
  type SweptJob,
} from './rules.ts'
import {
  epochsWithKey,
  jobByObjectKey,
  jobsByObjectKey,
  jobStatesOf,
  jobsWithoutKey,
  jobsWithSpoolOnly,
  keyRowsCount,
  leaseEnds,
  strangeKeyRows,
} from './store.ts'

/** What was looked at, by name; part of the report. */
export type Counts = Record<string, number>

export type Look = {
  counts: Counts
  /** Is told of each difference that stood up to a second look. */
  tell: (difference: Difference) => Promise<void>
}

export function add(counts: Counts, name: string, more = 1): void {
  counts[name] = (counts[name] ?? 0) + more
}

// ---------------------------------------------------------------- keys

/** Key rows against jobs, and the key store against the epochs. */
export async function lookAtKeys(
  deps: { database: Database; epochKeys: Pick<EpochKeyStore, 'list'> },
  { counts, tell }: Look,
): Promise<void> {
  const { database, epochKeys } = deps
  const found = await database.read(async (sql) => ({
    rows: await keyRowsCount(sql),
    strange: await strangeKeyRows(sql, limits.sweepPageEntries),
    without: await jobsWithoutKey(sql, limits.sweepPageEntries),
  }))
  add(counts, 'keyRows', found.rows)
  for (const jobId of found.strange)
    await tell({ kind: 'orphan.key', subject: `job ${jobId}`, jobId })
  for (const jobId of found.without) await tell({ kind: 'missing.key', subject: jobId, jobId })
  // The store first: an epoch that is made meanwhile has its row before its key.
  const kept = await epochKeys.list()
  const known = await database.read((sql) => epochsWithKey(sql))
  add(counts, 'epochKeys', kept.length)
  for (const id of kept)
    if (!known.includes(id)) await tell({ kind: 'orphan.key', subject: `epoch ${id}` })
}

// ---------------------------------------------------------------- store

export type Listing = (after?: string) => Promise<{ entries: SweptEntry[]; next?: string }>

/**
 * One store against the jobs, in both directions: two ordered streams, a page of each in memory. A
 * job's row is always older than what the store holds of it, so what no row knows after the
 * listing is an orphan; what a row misses is looked for again.
 */
export async function lookAtStore(
  deps: {
    database: Database
    list: Listing
    /** Looks at a single key again. */
    isThere: (job: SweptJob) => Promise<boolean>
    /** The replica's name; absent for the store itself. */
    place?: string
  },
  { counts, tell }: Look,
): Promise<void> {
  const { database } = deps
  const pairs = joinByKey(jobsInOrder(database), entriesInOrder(deps.list, counts))
  for await (const [job, entry] of pairs) {
    if (job && deps.place === undefined) add(counts, 'jobs')
    const first = storeDifferences(job, entry)
    if (first.length === 0) continue
    const key = entry?.key ?? job?.objectKey ?? ''
    const fresh = await database.read((sql) => jobByObjectKey(sql, key))
    const second = storeDifferences(fresh, entry)
    for (const difference of second) {
      const missing = difference.kind === 'missing.object'
      if (missing && fresh && (await deps.isThere(fresh))) continue
      const { place } = deps
      await tell(
        place === undefined
          ? difference
          : { ...difference, subject: `${place} ${difference.subject}` },
      )
    }
  }
}

async function* jobsInOrder(database: Database): AsyncGenerator<[string, SweptJob]> {
  let after = ''
  for (;;) {
    const page = await database.read((sql) =>
      jobsByObjectKey(sql, { after, itemsMax: limits.sweepPageEntries }),
    )
    for (const job of page) yield [job.objectKey, job]
    after = page.at(-1)?.objectKey ?? after
    if (page.length < limits.sweepPageEntries) return
  }
}

async function* entriesInOrder(
  list: Listing,
  counts: Counts,
): AsyncGenerator<[string, SweptEntry]> {
  let last = ''
  let after: string | undefined
  do {
    const page = await list(after)
    for (const entry of page.entries) {
      if (entry.key === claimKey) continue
      if (!isOurs(entry.key)) {
        add(counts, 'foreign')
        continue
      }
      if (entry.key <= last)
        throw new SluiceError('store.refused', 'the store does not list its keys in order', {
          hint: 'It cannot be swept; look at its documentation of ListObjectVersions.',
        })
      last = entry.key
      add(counts, 'objects', entry.objects)
      add(counts, 'versions', entry.versions)
      add(counts, 'uploads', entry.uploads.length)
      yield [entry.key, entry]
    }
    after = page.next
  } while (after !== undefined)
}

// ---------------------------------------------------------------- agents

export type Inventory = RequestBody<'inventory.report'>

/** What is expected of one agent, while its pages come in. */
export type AgentLook = {
  readonly agentId: AgentId
  /** Jobs that only its spool holds, and that no page has named yet. */
  readonly unseen: Set<JobId>
  /** Resolves when its last page was compared. */
  readonly done: Promise<void>
  take(body: Inventory): Promise<void>
}

/** Asks one agent what lies on its host. */
export async function askAgent(
  deps: { database: Database; changes: Changes; now: () => number; offlineMaxMs: number },
  ask: { agentId: AgentId; sweepId: SweepId },
  look: Look,
): Promise<AgentLook> {
  const { database, changes, now } = deps
  const { agentId, sweepId } = ask
  const askedAtMs = now()
  // Jobs announced from now on are not expected: their spool may come after the agent has looked.
  const unseen = new Set(await database.read((sql) => jobsWithSpoolOnly(sql, agentId)))
  const finished = Promise.withResolvers<void>()
  const command = { type: 'inventory', sweepId } as const
  await database.write(async (tx) => {
    await enqueueCommand(tx, { agentId, lane: 'control', command, atMs: askedAtMs }, changes)
  })
  return {
    agentId,
    unseen,
    done: finished.promise,
    async take(body) {
      for (const { jobId } of body.spools) unseen.delete(jobId)
      await compareSpools(deps, { agentId, body, askedAtMs }, look)
      await compareLeases(deps, { agentId, body, askedAtMs }, look)
      add(look.counts, 'unnamed', body.unnamed ?? 0)
      if (body.last) finished.resolve()
    },
  }
}

type Page = { agentId: AgentId; body: Inventory; askedAtMs: number }

async function compareSpools(
  deps: { database: Database; offlineMaxMs: number },
  { agentId, body, askedAtMs }: Page,
  { counts, tell }: Look,
): Promise<void> {
  add(counts, 'spools', body.spools.length)
  const ids = body.spools.map(({ jobId }) => jobId)
  const states = await deps.database.read((sql) => jobStatesOf(sql, agentId, ids))
  for (const jobId of ids) {
    const state = states.get(jobId)
    const difference = spoolDifference({ jobId, agentId }, state && { state }, {
      sealedAtMs: madeAtMs(jobId),
      announceUntilMs: askedAtMs - deps.offlineMaxMs,
    })
    if (difference) await tell(difference)
  }
}

async function compareLeases(
  deps: { database: Database },
  { agentId, body, askedAtMs }: Page,
  { counts, tell }: Look,
): Promise<void> {
  add(counts, 'leases', body.leases.length)
  const ids = body.leases.map(({ leaseId }) => leaseId)
  const ends = await deps.database.read((sql) => leaseEnds(sql, agentId, ids))
  for (const { jobId, leaseId } of body.leases) {
    const endedAtMs = ends.get(leaseId)
    // One that has just ended is still being wiped.
    const wiping = endedAtMs === null || (endedAtMs ?? 0) > askedAtMs - limits.leaseMs
    if (!wiping)
      await tell({ kind: 'orphan.lease', subject: `${agentId} ${leaseId}`, jobId, agentId })
  }
}
