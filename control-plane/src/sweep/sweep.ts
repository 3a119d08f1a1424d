/** Compares what there is with what there should be, every day and when asked, and answers for every difference. */
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { type AgentId, type SweepId, sweepId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { SweepFindingKind } from '@sluice/protocol/sweep'
import type { Actor } from '@sluice/protocol/audit-event'
import { newId } from '@sluice/protocol/process/new-id'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Transaction } from '../database/database.ts'
import { isWriteFailure } from '../database/write-failure.ts'
import { rest } from '../deletion/engine.ts'
import { addObligation } from '../deletion/store.ts'
import type { LinkAgent } from '../fleet/link.ts'
import {
  add,
  type AgentLook,
  askAgent,
  type Counts,
  type Inventory,
  type Listing,
  type Look,
  lookAtKeys,
  lookAtStore,
} from './look.ts'
import type { Difference, SweptJob } from './rules.ts'
import {
  addSweep,
  agentsToAsk,
  endSweep,
  endUnseen,
  failUnfinished,
  lastWhole,
  recordFinding,
  sweepById,
  type SweepRow,
} from './store.ts'

export type SweepDeps = {
  database: Database
  changes: Changes
  now: () => number
  epochKeys: Parameters<typeof lookAtKeys>[0]['epochKeys']
  /** The store first, then its replicas by name. */
  places: readonly {
    name?: string
    list: Listing
    isThere: (job: SweptJob) => Promise<boolean>
  }[]
  connected: () => readonly AgentId[]
  /** Makes the job `lost` if the finding is still true. @returns Whether it is lost now. */
  lose: (difference: Difference) => Promise<boolean>
  everyMs: number
  graceMs: number
  offlineMaxMs: number
  /** How long agents may take to answer. */
  answerMs?: number
  report: (problem: SluiceError) => void
}

export type Sweeps = AsyncDisposable & {
  /** Begins to look whether one is due. */
  start(): void
  /** @throws SluiceError `request.conflict` while one runs. */
  begin(order: { dryRun: boolean; trigger: SweepRow['trigger']; actor: Actor }): Promise<SweepRow>
  /** Takes a page of what an agent found; one that nobody asked for is dropped. */
  takeInventory(agent: LinkAgent, body: Inventory): Promise<void>
  /** Resolves when no sweep runs. */
  idle(): Promise<void>
}

/** What opens media waits for nobody; what is only ciphertext rests in quarantine. */
const quarantined: ReadonlySet<SweepFindingKind> = new Set([
  'orphan.object',
  'orphan.upload',
  'orphan.spool',
  'orphan.key',
])
const withoutGrace: ReadonlySet<SweepFindingKind> = new Set(['orphan.key'])

const storeKinds = ['orphan.object', 'orphan.upload', 'missing.object'] as const
const keyKinds = ['orphan.key', 'missing.key'] as const
const agentKinds = ['orphan.spool', 'orphan.lease', 'missing.spool'] as const

type Running = { id: SweepId; looks: Map<AgentId, AgentLook>; done: Promise<void> }

export async function createSweeps(deps: SweepDeps): Promise<Sweeps> {
  const { database, now } = deps
  const ending = new AbortController()
  let running: Running | undefined
  let timer: NodeJS.Timeout | undefined
  await database.write((tx) => failUnfinished(tx, now()))

  async function begin(order: Parameters<Sweeps['begin']>[0]): Promise<SweepRow> {
    if (running)
      throw new SluiceError('request.conflict', `sweep ${running.id} is under way`, {
        retry: 'later',
        hint: '`sluice sweeps list` shows it.',
      })
    const id = newId(sweepId, now())
    const looks = new Map<AgentId, AgentLook>()
    const started = Promise.withResolvers<void>()
    const mine: Running = { id, looks, done: started.promise }
    running = mine
    try {
      await database.write((tx) =>
        addSweep(tx, {
          id,
          trigger: order.trigger,
          dryRun: order.dryRun,
          state: 'running',
          startedAtMs: now(),
          counts: {},
        }),
      )
    } catch (error) {
      running = undefined
      started.resolve()
      throw error
    }
    const work = runSweep(deps, { ...order, id, looks, signal: ending.signal })
    void work
      .catch((error: unknown) => {
        if (!isSluiceError(error)) throw error
        deps.report(error)
      })
      .finally(() => {
        running = undefined
        started.resolve()
      })
    const row = await database.read((sql) => sweepById(sql, id))
    if (!row) throw new Error(`sweep ${id} was not written`)
    return row
  }

  async function beginIfDue(): Promise<void> {
    if (running) return
    const last = await database.read(lastWhole)
    if (last && now() - last.startedAtMs < deps.everyMs && last.startedAtMs <= now()) return
    await begin({ dryRun: false, trigger: 'daily', actor: { kind: 'system' } })
  }

  function look(): void {
    timer = setTimeout(() => {
      beginIfDue()
        .catch((error: unknown) => {
          if (!isSluiceError(error)) throw error
          if (!isWriteFailure(error)) deps.report(error)
        })
        .finally(() => {
          if (!ending.signal.aborted) look()
        })
    }, lookEveryMs).unref()
  }

  return {
    start: look,
    begin,
    async takeInventory(agent, body) {
      if (running?.id !== body.sweepId) return
      await running.looks.get(agent.id)?.take(body)
    },
    async idle() {
      await running?.done
    },
    async [Symbol.asyncDispose]() {
      ending.abort()
      clearTimeout(timer)
      await running?.done
      clearTimeout(timer)
    },
  }
}

/** How often it is looked whether a sweep is due; the first is not made in the rush of a start. */
const lookEveryMs = 60_000

type Run = {
  id: SweepId
  dryRun: boolean
  actor: Actor
  looks: Map<AgentId, AgentLook>
  signal: AbortSignal
}

async function runSweep(deps: SweepDeps, run: Run): Promise<void> {
  const { database, now } = deps
  const counts: Counts = {}
  const tell = (difference: Difference): Promise<void> => answerFor(deps, run, counts, difference)
  const look: Look = { counts, tell }
  await attempt(deps, counts, 'placesNotSeen', async () => {
    await lookAtKeys(deps, look)
    await endSeen(deps, run, keyKinds)
  })
  let wholeStore = true
  for (const place of deps.places) {
    const { name, list, isThere } = place
    const named = name === undefined ? {} : { place: name }
    const seen = await attempt(deps, counts, 'placesNotSeen', () =>
      lookAtStore({ database, list, isThere, ...named }, look),
    )
    wholeStore &&= seen
  }
  if (wholeStore) await endSeen(deps, run, storeKinds)
  await lookAtAgents(deps, run, look)
  const atMs = now()
  const problems = problemsOf(counts)
  await database.write(async (tx) => {
    await endSweep(tx, run.id, { state: 'ended', endedAtMs: atMs, counts })
    await appendAudit(tx, {
      atMs,
      type: 'sweep.ended',
      actor: run.actor,
      site: '*',
      detail: { sweepId: run.id, dryRun: run.dryRun, problems, ...counts },
    })
    if (problems > 0)
      await raiseAlert(
        tx,
        {
          type: 'sweep.problems',
          severity: 'warning',
          site: '*',
          atMs,
          summary: `a sweep found ${problems} differences, or places it could not look at`,
          detail: { sweepId: run.id, ...counts },
        },
        deps.changes,
      )
  })
}

/** Findings and blind spots of a run. */
export function problemsOf(counts: Counts): number {
  return Object.entries(counts)
    .filter(([name]) => /^(orphan|missing)\.|NotSeen$/.test(name))
    .reduce((sum, [, value]) => sum + value, 0)
}

/** A place that does not answer is counted, never taken for clean. @returns Whether it was seen. */
async function attempt(
  deps: SweepDeps,
  counts: Counts,
  notSeen: string,
  work: () => Promise<void>,
): Promise<boolean> {
  try {
    await work()
    return true
  } catch (error) {
    if (!isSluiceError(error)) throw error
    deps.report(error)
    add(counts, notSeen)
    return false
  }
}

async function lookAtAgents(deps: SweepDeps, run: Run, look: Look): Promise<void> {
  const here = new Set(deps.connected())
  const all = await deps.database.read(agentsToAsk)
  for (const { id } of all) {
    if (!here.has(id)) {
      add(look.counts, 'agentsNotSeen')
      continue
    }
    run.looks.set(id, await askAgent(deps, { agentId: id, sweepId: run.id }, look))
  }
  const waitMs = deps.answerMs ?? limits.inventoryAnswerMs
  const silent = new Set(run.looks.keys())
  const answers = [...run.looks.values()].map(async (asked) => {
    await asked.done
    silent.delete(asked.agentId)
    for (const jobId of asked.unseen)
      await look.tell({ kind: 'missing.spool', subject: jobId, jobId, agentId: asked.agentId })
    await endSeen(deps, run, agentKinds, asked.agentId)
  })
  await Promise.race([Promise.all(answers), rest(waitMs, run.signal)])
  // An answer that comes from now on is dropped.
  run.looks.clear()
  add(look.counts, 'agentsNotSeen', silent.size)
}

/** What was found before and a whole look saw no more is over. */
async function endSeen(
  deps: SweepDeps,
  run: Run,
  kinds: readonly SweepFindingKind[],
  agentId?: AgentId,
): Promise<void> {
  if (run.dryRun) return
  const which = { sweepId: run.id, kinds, ...(agentId === undefined ? {} : { agentId }) }
  await deps.database.write((tx) => endUnseen(tx, { ...which, atMs: deps.now() }))
}

/** Writes a finding down, and begins what follows from it. */
async function answerFor(
  deps: SweepDeps,
  run: Run,
  counts: Counts,
  difference: Difference,
): Promise<void> {
  add(counts, difference.kind)
  const atMs = deps.now()
  const rests = quarantined.has(difference.kind) && !run.dryRun
  const graceUntilMs = atMs + (withoutGrace.has(difference.kind) ? 0 : deps.graceMs)
  await deps.database.write(async (tx) => {
    const { finding, fresh } = await recordFinding(tx, {
      ...difference,
      sweepId: run.id,
      state: rests ? 'quarantined' : 'reported',
      atMs,
      graceUntilMs: rests ? graceUntilMs : null,
    })
    if (!rests || !fresh) return
    const host = difference.kind === 'orphan.spool' ? difference.agentId : undefined
    await quarantine(tx, deps, { ...finding, graceUntilMs, host }, run.actor)
  })
  if (!run.dryRun && difference.kind.startsWith('missing.')) await deps.lose(difference)
}

async function quarantine(
  tx: Transaction,
  deps: SweepDeps,
  finding: {
    id: string
    kind: SweepFindingKind
    subject: string
    graceUntilMs: number
    /** Who alone can delete it. */
    host: AgentId | undefined
  },
  actor: Actor,
): Promise<void> {
  const atMs = deps.now()
  const { id, kind, subject, graceUntilMs, host } = finding
  await addObligation(
    tx,
    {
      kind: 'orphan.delete',
      subjectId: id,
      ...(host === undefined ? {} : { agentId: host }),
      site: '*',
      state: 'due',
      atMs,
      nextTryAtMs: graceUntilMs,
      deadlineAtMs: graceUntilMs + limits.obligationOverdueMs,
    },
    deps.changes,
  )
  await appendAudit(tx, {
    atMs,
    type: 'orphan.quarantined',
    actor,
    site: '*',
    detail: { findingId: id, finding: kind, subject, graceUntilMs },
  })
}
