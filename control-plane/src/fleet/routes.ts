/** Listens for operators who look at agents, bound them, or lock them out. */
import { Hono } from 'hono'
import { z } from 'zod'
import { agentsQuery, type AgentView, changeAgentRequest } from '@sluice/protocol/api-fleet'
import { type AgentId, agentId } from '@sluice/protocol/ids'
import { type Access, type AccessEnv, reachesSite } from '../access/rules.ts'
import { readBody, readQuery } from '../api-request.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { presentFields } from '../present-fields.ts'
import type { Fleet } from './fleet.ts'
import { noSuchAgent } from './revoke.ts'
import { type AgentRow, agentById, changeAgent, pageOfAgents } from './store.ts'

export type AgentRoutesDeps = {
  database: Database
  changes: Changes
  now: () => number
  fleet: Pick<Fleet, 'isConnected' | 'lastSeenAtMs'>
  /** Locks an agent out, for the older of the two routes that do so. */
  revokeAgent: (order: { agentId: AgentId; access: Access }) => Promise<void>
}

const nothing = z.strictObject({})

export function agentRoutes(deps: AgentRoutesDeps) {
  const { database, fleet, now } = deps
  const routes = new Hono<AccessEnv>()

  /** An agent beyond the asker's sites is as unknown to it as one that never was. */
  async function reachable(access: AccessEnv['Variables']['access'], text: string) {
    const id = agentId.safeParse(text)
    const row = id.success ? await database.read((sql) => agentById(sql, id.data)) : undefined
    if (!row || !reachesSite(access, row.site)) throw noSuchAgent()
    return row
  }

  function view(row: AgentRow): AgentView {
    return viewOfAgent(row, {
      connected: fleet.isConnected(row.id),
      lastSeenAtMs: fleet.lastSeenAtMs(row.id) ?? row.lastSeenAtMs,
    })
  }

  routes.get('/v1/agents', async (c) => {
    const { after, limit, role } = readQuery(c.req.raw, agentsQuery)
    const { sites } = c.get('access')
    const cursor = agentId.safeParse(after)
    const rows = await database.read((sql) =>
      pageOfAgents(sql, {
        sites: sites === 'all' ? null : sites,
        role,
        after: cursor.data,
        itemsMax: limit + 1,
      }),
    )
    const shown = rows.slice(0, limit)
    const next = rows.length > limit ? shown.at(-1)?.id : undefined
    return c.json({ items: shown.map(view), ...(next === undefined ? {} : { next }) })
  })

  routes.get('/v1/agents/:id', async (c) =>
    c.json(view(await reachable(c.get('access'), c.req.param('id')))),
  )

  routes.post('/v1/agents/:id', async (c) => {
    const change = await readBody(c.req.raw, changeAgentRequest)
    const access = c.get('access')
    const agent = await reachable(access, c.req.param('id'))
    const row = await database.write(async (tx) => {
      await changeAgent(tx, agent.id, change)
      await appendAudit(tx, {
        atMs: now(),
        type: 'agent.changed',
        actor: { kind: 'principal', id: access.principalId },
        site: agent.site,
        agentId: agent.id,
        detail: { changed: Object.keys(change).join(' '), leasesMax: change.leasesMax },
      })
      tx.afterCommit(() => deps.changes.emit('agent', agent.id))
      return (await agentById(tx.sql, agent.id)) ?? agent
    })
    return c.json(view(row))
  })

  routes.post('/v1/agents/:id/revoke', async (c) => {
    await readBody(c.req.raw, nothing)
    const access = c.get('access')
    const agent = await reachable(access, c.req.param('id'))
    await deps.revokeAgent({ agentId: agent.id, access })
    return c.json(view(await reachable(access, agent.id)))
  })

  return routes
}

/** An agent as the API shows it. */
export function viewOfAgent(
  row: AgentRow,
  live: { connected: boolean; lastSeenAtMs: number | null },
): AgentView {
  return {
    id: row.id,
    name: row.name,
    role: row.role,
    site: row.site,
    labels: row.labels,
    connected: live.connected,
    joinedAtMs: row.joinedAtMs,
    leasesMax: row.leasesMax,
    ...presentFields({
      revokedAtMs: row.revokedAtMs,
      connectedAtMs: live.connected ? row.connectedAtMs : null,
      lastSeenAtMs: live.lastSeenAtMs,
      build: row.build,
      clockSkewMs: row.clockSkewMs,
      certificateExpiresAtMs: row.certificateExpiresAtMs,
      allowedAnalysers: row.allowedAnalysers,
      offer: row.offer,
    }),
  }
}
