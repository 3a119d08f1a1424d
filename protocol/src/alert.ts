/** What an administrator is told without asking. */
import { z } from 'zod'

export const alertTypes = [
  'obligation.overdue',
  'purge.begun',
  'purge.break-glass',
  'purge.concluded',
  'revocation.made',
  'job.exposed',
  'job.written-off',
  'sweep.problems',
  'medium.infected',
  'audit-sink.failed',
  'approval.asked',
  'keys.unavailable',
  'alert.test',
] as const
export const alertType = z.enum(alertTypes)
export type AlertType = z.infer<typeof alertType>
