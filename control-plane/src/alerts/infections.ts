/** Tells an administrator of infected media on capture hosts: each one once, and never without end. */
import type { AgentId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { RequestBody } from '@sluice/protocol/messages'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { alertsSince, raiseAlert } from './store.ts'

const hourMs = 3_600_000
/** An agent whose answer got lost tells the same again when it is back. */
const rememberMs = 7 * 24 * hourMs

/**
 * Raises an alert, unless this one was raised before. Beyond `limits.infectedAlertsPerHourMax` of
 * one agent within an hour no more are: that host has the whole list, and the last alert says so.
 */
export async function takeInfection(
  deps: { database: Database; changes: Changes; now: () => number },
  agent: { id: AgentId; site: string },
  body: RequestBody<'medium.infected'>,
): Promise<void> {
  const { database, changes } = deps
  const { site, id: agentId } = agent
  const { infectionId, engine, finding, foundAtMs } = body
  await database.write(async (tx) => {
    const atMs = deps.now()
    const since = await alertsSince(tx.sql, {
      ...{ type: 'medium.infected', site, atMs: atMs - rememberMs },
    })
    const own = since.filter(({ detail }) => detail['agentId'] === agentId)
    if (own.some(({ detail }) => detail['infectionId'] === infectionId)) return
    const within = own.filter((each) => each.atMs > atMs - hourMs).length
    if (within >= limits.infectedAlertsPerHourMax) return
    const last = within === limits.infectedAlertsPerHourMax - 1
    await raiseAlert(
      tx,
      {
        ...{ type: 'medium.infected', severity: 'warning', site, atMs },
        summary: last
          ? 'an infected medium was refused, one of many: `sluice-agent status` there has them all'
          : 'an infected medium was refused on a capture host',
        detail: { agentId, infectionId, engine, finding, foundAtMs },
      },
      changes,
    )
  })
}
