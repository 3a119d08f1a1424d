/** Listens for security staff who purge, and for everybody who follows how far a purge has come. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Hono } from 'hono'
import { streamSSE } from 'hono/streaming'
import { pageQuery } from '@sluice/protocol/api'
import {
  type PurgeDetail,
  type PurgePreview,
  purgeRequest,
  type PurgeView,
} from '@sluice/protocol/api-purge'
import { reasonRequest } from '@sluice/protocol/api-approvals'
import { SluiceError } from '@sluice/protocol/errors'
import { type AgentId, type PurgeId, purgeId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { askedView } from '../access/approvals.ts'
import { type Access, type AccessEnv, reachesSite } from '../access/rules.ts'
import { readBody, readQuery } from '../api-request.ts'
import type { Queries } from '../database/database.ts'
import { presentFields } from '../present-fields.ts'
import { type PurgeDeps, requestPurge, sizeFor, withinOf } from './begin.ts'
import { type BundleParts, purgeBundle } from './bundle.ts'
import { interimReport } from './conclude.ts'
import { dutyProgress, endsReceiveKeys, needsApproval } from './rules.ts'
import {
  countDeleted,
  countSilent,
  documentOf,
  dutiesOf,
  lookAhead,
  pageOfPurges,
  purgeById,
  type PurgeRow,
  silentAgents,
  type Within,
} from './store.ts'
import { askPurgeWriteOff } from './write-off.ts'

export type PurgeRoutesDeps = PurgeDeps & BundleParts & { isConnected: (agent: AgentId) => boolean }

/** How often a stream looks how far its purge has come, and shows that it lives. */
const streamLookMs = 500
const streamPulseMs = 5_000
const envelopeType = 'application/vnd.dsse.envelope.v1+json'

export function purgeRoutes(deps: PurgeRoutesDeps) {
  const { database, now } = deps
  const routes = new Hono<AccessEnv>()
  let streams = 0

  /** A purge beyond the asker's sites is as unknown to it as one that never was. */
  async function reachable(access: Access, text: string): Promise<PurgeRow> {
    const id = purgeId.safeParse(text)
    const row = id.success ? await database.read((sql) => purgeById(sql, id.data)) : undefined
    const reached =
      row && (row.site === '*' ? access.sites === 'all' : reachesSite(access, row.site))
    if (!row || !reached) throw new SluiceError('request.not_found', 'no such purge')
    return row
  }

  const detail = (id: PurgeId) => database.read((sql) => detailOf(deps, sql, id))

  routes.post('/v1/purges', async (c) => {
    const request = await readBody(c.req.raw, purgeRequest)
    const access = c.get('access')
    if (request.dryRun)
      return c.json(await database.read((sql) => preview(deps, sql, { ...request, access })))
    const id = await requestPurge(deps, { ...request, access })
    return c.json(await detail(id), 202)
  })

  routes.get('/v1/purges', async (c) => {
    const { after, limit } = readQuery(c.req.raw, pageQuery)
    const { sites } = c.get('access')
    const rows = await database.read((sql) =>
      pageOfPurges(sql, {
        sites: sites === 'all' ? null : sites,
        before: purgeId.safeParse(after).data,
        itemsMax: limit + 1,
      }),
    )
    const shown = rows.slice(0, limit)
    const next = rows.length > limit ? shown.at(-1)?.id : undefined
    return c.json({ items: shown.map(viewOf), ...(next === undefined ? {} : { next }) })
  })

  routes.get('/v1/purges/:id', async (c) => {
    const { id } = await reachable(c.get('access'), c.req.param('id'))
    return c.json(await detail(id))
  })

  routes.get('/v1/purges/:id/report', async (c) => {
    const { id, state } = await reachable(c.get('access'), c.req.param('id'))
    const text =
      state === 'running'
        ? await interimReport(deps, id)
        : await database.read(
            async (sql) =>
              (await documentOf(sql, id, 'purge-certificate')) ??
              (await documentOf(sql, id, 'purge-report')),
          )
    if (text === undefined)
      throw new SluiceError('request.not_found', `purge ${id} is ${state}: nothing was destroyed`)
    // Byte for byte as it was signed.
    return c.body(text, 200, { 'content-type': envelopeType })
  })

  routes.post('/v1/purges/:id/write-off', async (c) => {
    const { reason } = await readBody(c.req.raw, reasonRequest)
    const access = c.get('access')
    const purge = await reachable(access, c.req.param('id'))
    const asked = await askPurgeWriteOff(deps, { purgeId: purge.id, access, reason })
    return c.json({ approval: await database.read((sql) => askedView(sql, asked)) }, 202)
  })

  routes.get('/v1/purges/:id/bundle', async (c) => {
    const { id, state } = await reachable(c.get('access'), c.req.param('id'))
    if (state !== 'running' && state !== 'concluded')
      throw new SluiceError('request.not_found', `purge ${id} is ${state}: nothing was destroyed`)
    const headers = { 'content-type': 'application/x-tar' }
    if (c.req.method === 'HEAD') return c.body(null, 200, headers)
    return c.body(ReadableStream.from(purgeBundle(deps, id)), 200, headers)
  })

  routes.get('/v1/purges/:id/events', async (c) => {
    const { id } = await reachable(c.get('access'), c.req.param('id'))
    // The head of a stream has no reader who could ever end it.
    if (c.req.method === 'HEAD') return c.body(null, 200, { 'content-type': 'text/event-stream' })
    if (streams >= limits.eventStreamsMax)
      throw new SluiceError('request.rate_limited', 'too many open event streams', {
        retry: 'later',
      })
    const stillAllowed = c.get('stillAllowed')
    return streamSSE(c, async (stream) => {
      streams += 1
      try {
        let said = ''
        let pulseAtMs = now()
        while (!stream.aborted) {
          const view = await detail(id)
          const text = JSON.stringify(view)
          if (text !== said)
            await stream.writeSSE({ id: String(now()), event: 'purge', data: text })
          said = text
          if (view.state === 'concluded' || view.state === 'refused') return
          if (now() - pulseAtMs >= streamPulseMs) {
            await stillAllowed()
            await stream.write(': still here\n\n')
            pulseAtMs = now()
          }
          await sleep(streamLookMs)
        }
      } finally {
        streams -= 1
      }
    })
  })

  return routes
}

async function preview(
  deps: PurgeRoutesDeps,
  sql: Queries,
  request: { scope: Within['scope']; includingHeld: boolean; breakGlass: boolean; access: Access },
): Promise<PurgePreview> {
  const within = await withinOf(deps, sql, request)
  const { scope, site } = within
  const ahead = lookAhead(sql, within, endsReceiveKeys(scope))
  const jobs = ahead.jobsByState.reduce((sum, row) => sum + row.n, 0)
  const shown = limits.pageItemsMax
  const { principalId } = request.access
  const size = await sizeFor(sql, { within, principalId, atMs: deps.now() })
  return {
    dryRun: true,
    scope,
    site,
    jobs,
    jobsByState: Object.fromEntries(ahead.jobsByState.map((row) => [row.state, row.n])),
    heldSkipped: ahead.held.slice(0, shown),
    heldSkippedCount: ahead.held.length,
    agents: ahead.agents.slice(0, shown).map(({ id, name, role }) => ({
      ...{ id, name, role },
      connected: deps.isConnected(id),
    })),
    agentsCount: ahead.agents.length,
    unasked: ahead.unasked.slice(0, shown),
    unaskedCount: ahead.unasked.length,
    leases: ahead.leases.map(({ jobId, nodeId, deadlineAtMs, keyReleased }) => ({
      ...{ jobId, nodeId },
      overAtMs: deadlineAtMs + limits.leaseGraceMs,
      keyReleased: keyReleased === 1,
    })),
    leasesCount: ahead.leasesCount,
    receiveKeys: ahead.receiveKeys,
    destroyedAlone: size.before,
    needsApproval: needsApproval({
      ...size,
      includingHeld: request.includingHeld,
      breakGlass: request.breakGlass,
      aloneJobsMax: deps.aloneJobsMax,
    }),
  }
}

async function detailOf(deps: PurgeRoutesDeps, sql: Queries, id: PurgeId): Promise<PurgeDetail> {
  const row = await purgeById(sql, id)
  if (!row) throw new SluiceError('request.not_found', 'no such purge')
  const silent = silentAgents(sql, id, limits.pageItemsMax)
  return {
    ...viewOf(row),
    jobsDeleted: countDeleted(sql, id),
    duties: dutyProgress(dutiesOf(sql, id)),
    silent: silent.map(({ lastSeenAtMs, leaseDeadlineAtMs, ...agent }) => ({
      ...agent,
      connected: deps.isConnected(agent.id),
      ...presentFields({
        lastSeenAtMs,
        leasesOverAtMs: leaseDeadlineAtMs === null ? null : leaseDeadlineAtMs + limits.leaseGraceMs,
      }),
    })),
    silentCount: countSilent(sql, id),
  }
}

/** A purge as the API shows it. */
function viewOf(row: PurgeRow): PurgeView {
  const { id, scope, site, reason, state, requestedBy, requestedAtMs, breakGlass } = row
  const { includingHeld, jobs, heldSkipped, agents, unasked, leases, receiveKeys } = row
  return {
    ...{ id, scope, site, reason, state, requestedBy, requestedAtMs, breakGlass, includingHeld },
    ...{ jobs, heldSkipped, agents, unasked, leases, receiveKeys },
    ...presentFields({
      approvalId: row.approvalId,
      approvedBy: row.approvedBy,
      intentAtMs: row.intentAtMs,
      keysUnusableAtMs: row.keysUnusableAtMs,
      ordersDurableAtMs: row.ordersDurableAtMs,
      keysUnrecoverableAtMs: row.keysUnrecoverableAtMs,
      objectsAbsentAtMs: row.objectsAbsentAtMs,
      concludedAtMs: row.concludedAtMs,
      leasesOverAtMs: row.leasesOverAtMs,
    }),
  }
}
