/** Gives stored jobs to nodes and takes them back from silent ones; every look is a fresh one. */
import type { AgentId } from '@sluice/protocol/ids'
import type { Queries } from '../database/database.ts'
import { isWriteFailure, writeRetryMs } from '../database/write-failure.ts'
import { mayRun } from '../fleet/rules.ts'
import { type JobDeps, system, unlessDecided } from './deps.ts'
import { failJob } from './fail.ts'
import { expireLease, grantLease } from './leases.ts'
import { type Candidate, chooseNode, leasableAtMs, leaseDeadMs } from './rules.ts'
import {
  failuresByNode,
  gpuNodes,
  hasKey,
  jobById,
  type JobRow,
  leaseLoad,
  openLeases,
  waitingJobs,
  waitingKinds,
} from './store.ts'

export type DispatchDeps = JobDeps & {
  /** Nodes with a live link: only they are offered anything. */
  connected: () => readonly AgentId[]
}

type Node = Omit<Candidate, 'failedHere' | 'id'> & { id: AgentId }

/** Jobs of one kind looked at in one pass. */
const lookMax = 200

/**
 * One pass: ends leases that are over, then leases every stored job that some node may take.
 *
 * @returns When to look again although nothing was signalled; undefined when only a signal matters.
 */
export async function dispatchOnce(deps: DispatchDeps): Promise<number | undefined> {
  await expireLeases(deps)
  const kinds = await deps.database.read(waitingKinds)
  let nextAtMs: number | undefined
  const earliest = (atMs: number | undefined) => {
    if (atMs !== undefined) nextAtMs = Math.min(nextAtMs ?? atMs, atMs)
  }
  for (const kind of kinds) {
    const nodes = await deps.database.read((sql) => nodesNow(deps, sql))
    if (!nodes.some((node) => mayRun(node, kind))) continue
    const waiting = await deps.database.read((sql) => waitingJobs(sql, kind, lookMax))
    for (const job of waiting) {
      const fromMs = leasableAtMs(job, deps.now())
      if (fromMs > deps.now()) earliest(fromMs)
      else if (!(await leaseJob(deps, job))) break
    }
  }
  const { leaseTimes } = deps
  for (const { id } of await deps.database.read(openLeases))
    earliest(deps.now() + Math.ceil(leaseDeadMs(leaseTimes.of(id)) - leaseTimes.now()))
  return nextAtMs
}

async function expireLeases(deps: DispatchDeps): Promise<void> {
  const { leaseTimes } = deps
  const open = await deps.database.read(openLeases)
  // Leases are granted in these passes only, so none that is missing here is open.
  leaseTimes.keep(open.map(({ id }) => id))
  const over = open.filter(({ id }) => leaseTimes.now() >= leaseDeadMs(leaseTimes.of(id)))
  for (const lease of over) await unlessDecided(expireLease(deps, lease))
}

/** @returns False when no node may take it now. */
async function leaseJob(deps: DispatchDeps, looked: JobRow): Promise<boolean> {
  return deps.database.write(async (tx) => {
    const job = await jobById(tx.sql, looked.id)
    // Something else was decided since the look; the next job may still be for us.
    if (job?.state !== 'stored') return true
    if (!(await hasKey(tx.sql, job.id))) {
      await failJob(deps, tx, {
        job,
        from: 'stored',
        to: 'lost',
        problem: {
          code: 'job.lost',
          message: 'the key of this job no longer exists',
          hint: 'Submit the media again.',
          retry: 'never',
        },
        actor: system,
      })
      return true
    }
    const failures = await failuresByNode(tx.sql, job.id)
    const nodes = await nodesNow(deps, tx.sql)
    const node = chooseNode(
      nodes.map((one) => ({ ...one, failedHere: failures.get(one.id) ?? 0 })),
      job,
    )
    if (!node) return false
    await grantLease(deps, tx, { job, nodeId: node.id })
    return true
  })
}

async function nodesNow(deps: DispatchDeps, sql: Queries): Promise<Node[]> {
  const rows = await gpuNodes(sql, deps.connected())
  const load = await leaseLoad(sql)
  return rows.map((row) => ({
    id: row.id,
    role: row.role,
    site: row.site,
    revoked: row.revokedAtMs !== null,
    connected: true,
    offer: row.offer,
    allowedAnalysers: row.allowedAnalysers,
    leasesMax: row.leasesMax,
    openLeases: load.get(row.id) ?? 0,
  }))
}

/** Even a wrong clock or a lost signal holds no job up for longer. */
const lookAgainMs = 15_000

/** Runs passes one at a time: at once, on every change, and when the last pass asked for it. */
export function startDispatch(deps: DispatchDeps): AsyncDisposable {
  let stopped = false
  let again = false
  let running: Promise<void> | undefined
  let timer: NodeJS.Timeout | undefined

  function wake(): void {
    if (stopped) return
    again = true
    // What fails here is a bug; it ends the process, and a restart goes on.
    running ??= run().finally(() => {
      running = undefined
      if (again) wake()
    })
  }

  async function run(): Promise<void> {
    again = false
    clearTimeout(timer)
    const waitMs = await passAndWait()
    timer = setTimeout(wake, Math.max(1, Math.min(lookAgainMs, waitMs)))
    timer.unref()
  }

  async function passAndWait(): Promise<number> {
    try {
      const nextAtMs = await dispatchOnce(deps)
      return nextAtMs === undefined ? lookAgainMs : nextAtMs - deps.now()
    } catch (error) {
      // A full disk is said by the database; jobs and leases are rows, and wait in them.
      if (!isWriteFailure(error)) throw error
      return writeRetryMs
    }
  }

  const signals = ['job', 'agent', 'obligation'] as const
  for (const signal of signals) deps.changes.on(signal, wake)
  wake()
  return {
    async [Symbol.asyncDispose]() {
      stopped = true
      clearTimeout(timer)
      for (const signal of signals) deps.changes.off(signal, wake)
      await running
    },
  }
}
