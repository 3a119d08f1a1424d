/** Listens for people who ask what is owed, by whom, and how far it has come. */
import { Hono } from 'hono'
import { type DutyView, obligationsQuery } from '@sluice/protocol/api-obligations'
import type { AccessEnv } from '../access/rules.ts'
import { readQuery } from '../api-request.ts'
import type { Database } from '../database/database.ts'
import { presentFields } from '../present-fields.ts'
import { type KnownDuty, progressOfDuty } from './rules.ts'
import { pageOfDuties } from './store.ts'

export function obligationRoutes(deps: { database: Database; now: () => number }) {
  const routes = new Hono<AccessEnv>()

  routes.get('/v1/obligations', async (c) => {
    const query = readQuery(c.req.raw, obligationsQuery)
    const { sites } = c.get('access')
    const nowMs = deps.now()
    const rows = await deps.database.read((sql) =>
      pageOfDuties(sql, {
        sites: sites === 'all' ? null : sites,
        nowMs,
        after: query.after,
        all: query.all === 'true',
        overdue: query.overdue === 'true',
        kind: query.kind,
        jobId: query.job,
        agentId: query.agent,
        purgeId: query.purge,
        itemsMax: query.limit + 1,
      }),
    )
    const shown = rows.slice(0, query.limit)
    const next = rows.length > query.limit ? shown.at(-1)?.duty.id : undefined
    const items = shown.map((row) => viewOf(row, nowMs))
    return c.json({ items, ...(next === undefined ? {} : { next }) })
  })

  return routes
}

function viewOf(known: KnownDuty, nowMs: number): DutyView {
  const { duty } = known
  const { id, kind, site, attempts, createdAtMs, nextTryAtMs, deadlineAtMs, state } = duty
  const { jobId, subjectId, agentId, leaseId, doneAtMs, writtenOffAtMs } = duty
  const { lastErrorCode, lastError } = duty
  const overdue = state === 'due' && deadlineAtMs <= nowMs && writtenOffAtMs === null
  return {
    ...{ id, kind, site, attempts, createdAtMs, nextTryAtMs, deadlineAtMs, overdue },
    progress: progressOfDuty(known),
    ...presentFields({ jobId, subjectId, agentId, leaseId, doneAtMs, writtenOffAtMs }),
    ...presentFields({ lastErrorCode, lastError }),
  }
}
