/** Remembers what an administrator must hear; delivering it is owed from the moment it happened. */
import { and, desc, eq, gt, inArray, lt } from '../database/drizzle.ts'
import type { AlertType } from '@sluice/protocol/alert'
import { type AlertId, alertId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Queries, Transaction } from '../database/database.ts'
import { alerts } from '../database/schema.ts'
import { addObligation } from '../deletion/store.ts'

export type AlertRow = typeof alerts.$inferSelect

export type NewAlert = {
  type: AlertType
  severity: AlertRow['severity']
  /** Who may see it; `*` for what concerns all sites. */
  site: string
  atMs: number
  /** One line for a person; no names of people, files or secrets. */
  summary: string
  /** Flat facts: ids, counts and codes. */
  detail: Record<string, string | number | boolean>
}

/** Writes an alert down in the caller's transaction, together with the duty to deliver it. */
export async function raiseAlert(
  tx: Transaction,
  alert: NewAlert,
  changes: Changes,
): Promise<AlertId> {
  const id = newId(alertId, alert.atMs)
  const { site, atMs } = alert
  await tx.sql.insert(alerts).values({ id, ...alert })
  await appendAudit(tx, {
    ...{ atMs, type: 'alert.raised', actor: { kind: 'system' }, site },
    detail: { alert: alert.type, alertId: id, severity: alert.severity },
  })
  await addObligation(
    tx,
    { kind: 'alert.deliver', subjectId: id, site, state: 'due', atMs },
    changes,
  )
  return id
}

export async function alertById(sql: Queries, id: string): Promise<AlertRow | undefined> {
  return sql.query.alerts.findFirst({ where: eq(alerts.id, id as AlertId) })
}

export async function markDelivered(tx: Transaction, id: AlertId, atMs: number): Promise<void> {
  await tx.sql.update(alerts).set({ deliveredAtMs: atMs }).where(eq(alerts.id, id))
}

/** What was raised of one type on a site since then. */
export async function alertsSince(
  sql: Queries,
  which: { type: AlertType; site: string; atMs: number },
): Promise<AlertRow[]> {
  const { type, site, atMs } = which
  return sql
    .select()
    .from(alerts)
    .where(and(gt(alerts.atMs, atMs), eq(alerts.type, type), eq(alerts.site, site)))
}

/**
 * Alerts, newest first.
 *
 * @param which.sites Sites the asker may see; null for all.
 */
export async function pageOfAlerts(
  sql: Queries,
  which: { sites: readonly string[] | null; before?: AlertId | undefined; itemsMax: number },
): Promise<AlertRow[]> {
  return sql
    .select()
    .from(alerts)
    .where(
      and(
        which.sites === null ? undefined : inArray(alerts.site, [...which.sites]),
        which.before === undefined ? undefined : lt(alerts.id, which.before),
      ),
    )
    .orderBy(desc(alerts.id))
    .limit(which.itemsMax)
}
