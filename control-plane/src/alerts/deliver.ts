/** Brings an alert to its channel. It stays owed until the channel took it. */
import assert from 'node:assert/strict'
import { limits } from '@sluice/protocol/limits'
import type { Database } from '../database/database.ts'
import type { Outcome } from '../deletion/engine.ts'
import type { Obligation } from '../deletion/rules.ts'
import { extendDeadline, markDone } from '../deletion/store.ts'
import { alertById, markDelivered } from './store.ts'
import type { AlertChannel } from './webhook.ts'

export type AlertDeps = {
  database: Database
  now: () => number
  /** Absent when none is configured: alerts are then listed, and wait a while for one. */
  channel?: AlertChannel | undefined
}

/**
 * Works off one `alert.deliver`. After a crash between the answer and the row the same alert is sent
 * again, under the same id.
 *
 * @throws SluiceError `alert.undelivered`
 */
export async function deliverAlert(
  deps: AlertDeps,
  obligation: Obligation,
  signal: AbortSignal,
): Promise<Outcome> {
  const { database, now, channel } = deps
  const alert = await database.read((sql) => alertById(sql, obligation.subjectId ?? ''))
  assert(alert, `obligation ${obligation.id} has no alert`)
  if (!channel) return waitForChannel(deps, obligation, alert.atMs)
  await channel.send(alert, signal)
  await database.write(async (tx) => {
    await markDelivered(tx, alert.id, now())
    await markDone(tx, obligation.id, now())
  })
  return 'settled'
}

/** Kept for a channel that is configured later; that nobody is late with it until then is no matter. */
async function waitForChannel(
  { database, now }: AlertDeps,
  { id, deadlineAtMs }: Obligation,
  raisedAtMs: number,
): Promise<Outcome> {
  const untilMs = raisedAtMs + limits.alertKeepMs
  const leftMs = untilMs - now()
  await database.write(async (tx) => {
    if (leftMs <= 0) await markDone(tx, id, now())
    else if (deadlineAtMs < untilMs) await extendDeadline(tx, id, untilMs)
  })
  return leftMs <= 0 ? 'settled' : { waitMs: Math.min(leftMs, limits.obligationRetryMsMax) }
}
