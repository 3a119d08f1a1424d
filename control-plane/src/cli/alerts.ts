/** Alerts: what was said to an administrator, and whether the channel works. */
import type { Command } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import { alertTestReply, alertView } from '@sluice/protocol/api-alerts'
import { instant, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

export function addAlertCommands(program: Command): void {
  const alerts = program.command('alerts').description('read alerts, and test their channel')

  addCommand(alerts, 'list', {
    does: 'list alerts, newest first',
    example: 'sluice alerts list',
  }).action(async (options: View) =>
    withClient(async (client) => {
      const page = await client.get('/v1/alerts?limit=100', pageOf(alertView))
      sayList(page.items, options, {
        AT: (item) => instant(item.atMs, options),
        SEVERITY: (item) => item.severity,
        TYPE: (item) => item.type,
        SITE: (item) => item.site,
        DELIVERED: (item) => instant(item.deliveredAtMs, options),
        SUMMARY: (item) => item.summary,
      })
    }),
  )

  addCommand(alerts, 'test', {
    does: 'send a test alert to the channel now, and show its answer',
    example: 'sluice alerts test',
  }).action(async (options: View) =>
    withClient(async (client) =>
      sayFacts(await client.post('/v1/alerts/test', {}, alertTestReply), options),
    ),
  )
}
