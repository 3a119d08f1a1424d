/** What the operator's HTTP API says of alerts. */
import { z } from 'zod'
import { alertType } from './alert.ts'
import { pageQuery } from './api.ts'
import { alertId } from './ids.ts'

export const alertSeverity = z.enum(['info', 'warning', 'critical'])

export const alertView = z.strictObject({
  id: alertId,
  type: alertType,
  severity: alertSeverity,
  site: z.string(),
  atMs: z.int().nonnegative(),
  summary: z.string(),
  detail: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])),
  /** When its channel took it; absent while it is owed, and for good where there is no channel. */
  deliveredAtMs: z.int().nonnegative().optional(),
})
export type AlertView = z.infer<typeof alertView>

/** `GET /v1/alerts`, newest first: `after` is the last id of the page before. */
export const alertsQuery = z.strictObject({ ...pageQuery.shape, after: alertId.optional() })

/** `POST /v1/alerts/test`: what the channel answered. */
export const alertTestReply = z.strictObject({ id: alertId, status: z.int() })
