/** Listens for people who read alerts, or try whether their channel works. */
import { Hono } from 'hono'
import { z } from 'zod'
import { alertsQuery, type AlertView } from '@sluice/protocol/api-alerts'
import { SluiceError } from '@sluice/protocol/errors'
import { alertId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import type { AccessEnv } from '../access/rules.ts'
import { readBody, readQuery } from '../api-request.ts'
import { presentFields } from '../present-fields.ts'
import type { AlertDeps } from './deliver.ts'
import { type AlertRow, pageOfAlerts } from './store.ts'

const nothing = z.strictObject({})

export function alertRoutes(deps: AlertDeps) {
  const routes = new Hono<AccessEnv>()

  routes.get('/v1/alerts', async (c) => {
    const { after, limit } = readQuery(c.req.raw, alertsQuery)
    const { sites } = c.get('access')
    const rows = await deps.database.read((sql) =>
      pageOfAlerts(sql, {
        sites: sites === 'all' ? null : sites,
        before: after,
        itemsMax: limit + 1,
      }),
    )
    const shown = rows.slice(0, limit)
    const next = rows.length > limit ? shown.at(-1)?.id : undefined
    return c.json({ items: shown.map(viewOf), ...(next === undefined ? {} : { next }) })
  })

  routes.post('/v1/alerts/test', async (c) => {
    await readBody(c.req.raw, nothing)
    if (!deps.channel)
      throw new SluiceError('request.conflict', 'no alert channel is configured', {
        hint: 'Set alerts.webhook.url and alerts.webhook.secretFile, and start again.',
      })
    const atMs = deps.now()
    const id = newId(alertId, atMs)
    const status = await deps.channel.send({
      ...{ id, atMs, type: 'alert.test', severity: 'info', site: '*' },
      summary: 'a test of the alert channel',
      detail: {},
    })
    return c.json({ id, status })
  })

  return routes
}

function viewOf(row: AlertRow): AlertView {
  const { id, type, severity, site, atMs, summary, detail, deliveredAtMs } = row
  return { id, type, severity, site, atMs, summary, detail, ...presentFields({ deliveredAtMs }) }
}
