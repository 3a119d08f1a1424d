/** Listens for people who want to know whether there is something that should not be, or lacks what should. */
import { Hono } from 'hono'
import { z } from 'zod'
import { pageQuery } from '@sluice/protocol/api'
import {
  findingsQuery,
  type FindingView,
  sweepRequest,
  type SweepView,
} from '@sluice/protocol/api-sweeps'
import { SluiceError } from '@sluice/protocol/errors'
import { findingId, sweepId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { type Access, type AccessEnv } from '../access/rules.ts'
import { readBody, readQuery } from '../api-request.ts'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { addObligation, bringSubjectForward } from '../deletion/store.ts'
import { presentFields } from '../present-fields.ts'
import {
  changeFinding,
  findingById,
  type FindingRow,
  pageOfFindings,
  pageOfSweeps,
  sweepById,
  type SweepRow,
} from './store.ts'
import type { Sweeps } from './sweep.ts'

const nothing = z.strictObject({})

export function sweepRoutes(deps: {
  database: Database
  changes: Changes
  now: () => number
  sweeps: Pick<Sweeps, 'begin'>
}) {
  const { database, changes, now, sweeps } = deps
  const routes = new Hono<AccessEnv>()

  /** A sweep looks at everything, so only those hear of it who may see all sites. */
  routes.use('/v1/sweeps/*', async (c, next) => (seesAll(c.get('access')), next()))
  routes.use('/v1/sweep-findings/*', async (c, next) => (seesAll(c.get('access')), next()))

  routes.post('/v1/sweeps', async (c) => {
    const { dryRun } = await readBody(c.req.raw, sweepRequest)
    const { principalId } = c.get('access')
    const actor = { kind: 'principal', id: principalId } as const
    return c.json(viewOfSweep(await sweeps.begin({ dryRun, trigger: 'asked', actor })), 202)
  })

  routes.get('/v1/sweeps', async (c) => {
    const { after, limit } = readQuery(c.req.raw, pageQuery)
    const rows = await database.read((sql) =>
      pageOfSweeps(sql, { before: sweepId.safeParse(after).data, itemsMax: limit + 1 }),
    )
    return c.json(pageOf(rows, limit, viewOfSweep))
  })

  routes.get('/v1/sweeps/:id', async (c) => {
    const id = sweepId.safeParse(c.req.param('id'))
    const row = id.success ? await database.read((sql) => sweepById(sql, id.data)) : undefined
    if (!row) throw new SluiceError('request.not_found', 'no such sweep')
    return c.json(viewOfSweep(row))
  })

  routes.get('/v1/sweep-findings', async (c) => {
    const { after, limit, sweep, open } = readQuery(c.req.raw, findingsQuery)
    const rows = await database.read((sql) =>
      pageOfFindings(sql, {
        sweepId: sweep,
        open: open === 'true',
        after: findingId.safeParse(after).data,
        itemsMax: limit + 1,
      }),
    )
    return c.json(pageOf(rows, limit, viewOfFinding))
  })

  async function decide(idText: string, state: 'quarantined' | 'kept'): Promise<FindingView> {
    return database.write(async (tx) => {
      const finding = await findingById(tx.sql, idText)
      if (!finding) throw new SluiceError('request.not_found', 'no such finding')
      const rests = finding.state === 'quarantined' || finding.state === 'kept'
      if (!rests)
        throw new SluiceError('request.conflict', `this finding is ${finding.state}`, {
          hint: 'Only what is in quarantine can be deleted or kept.',
        })
      const atMs = now()
      const graceUntilMs = state === 'kept' ? null : atMs
      await changeFinding(tx, finding.id, { state, graceUntilMs })
      await bringSubjectForward(tx, { subjectId: finding.id, atMs }, changes)
      // The duty of one that was kept is over.
      if (finding.state === 'kept' && state === 'quarantined')
        await addObligation(
          tx,
          {
            ...{ kind: 'orphan.delete', subjectId: finding.id, site: '*', state: 'due', atMs },
            nextTryAtMs: atMs,
            deadlineAtMs: atMs + limits.obligationOverdueMs,
          },
          changes,
        )
      return viewOfFinding({ ...finding, state, graceUntilMs })
    })
  }

  routes.post('/v1/sweep-findings/:id/delete', async (c) => {
    await readBody(c.req.raw, nothing)
    return c.json(await decide(c.req.param('id'), 'quarantined'), 202)
  })

  routes.post('/v1/sweep-findings/:id/keep', async (c) => {
    await readBody(c.req.raw, nothing)
    return c.json(await decide(c.req.param('id'), 'kept'))
  })

  return routes
}

function seesAll(access: Access): void {
  if (access.sites === 'all') return
  throw new SluiceError('access.forbidden', 'a sweep looks at every site', {
    hint: 'It takes a role on all sites (`*`).',
  })
}

function pageOf<Row extends { id: string }, View>(
  rows: readonly Row[],
  limit: number,
  view: (row: Row) => View,
) {
  const shown = rows.slice(0, limit)
  const next = rows.length > limit ? shown.at(-1)?.id : undefined
  return { items: shown.map(view), ...(next === undefined ? {} : { next }) }
}

function viewOfSweep(row: SweepRow): SweepView {
  const { id, trigger, dryRun, state, startedAtMs, counts, endedAtMs } = row
  return { id, trigger, dryRun, state, startedAtMs, counts, ...presentFields({ endedAtMs }) }
}

function viewOfFinding(row: FindingRow): FindingView {
  const { id, sweepId: seenBy, kind, subject, state, firstSeenAtMs, lastSeenAtMs } = row
  const { agentId, jobId, graceUntilMs, endedAtMs } = row
  return {
    id,
    sweepId: seenBy,
    kind,
    subject,
    state,
    firstSeenAtMs,
    lastSeenAtMs,
    ...presentFields({ agentId, jobId, graceUntilMs, endedAtMs }),
  }
}
