/** Decides what an alert looks like on its way, and how it is signed (Standard Webhooks, v1). */
import { createHmac } from 'node:crypto'
import type { AlertType } from '@sluice/protocol/alert'
import { SluiceError } from '@sluice/protocol/errors'

/** The specification asks for 24 to 64 bytes. */
export const secretBytesMin = 24
export const secretBytesMax = 64

export type Message = {
  /** The same at every try, so that a receiver can drop what it has. */
  id: string
  type: AlertType
  severity: 'info' | 'warning' | 'critical'
  site: string
  /** When it happened, epoch milliseconds. */
  atMs: number
  summary: string
  detail: Record<string, string | number | boolean>
}

/** The JSON text that is posted; equal for every try. */
export function bodyOf(message: Message): string {
  const { id, type, severity, site, atMs, summary, detail } = message
  const timestamp = new Date(atMs).toISOString()
  return JSON.stringify({ type, timestamp, data: { id, severity, site, summary, detail } })
}

/**
 * The headers a receiver checks the body with.
 *
 * @param secret Stays the caller's.
 * @param atMs When this try is made: receivers refuse old ones.
 * @see https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
 */
export function signedHeaders(
  message: { id: string; body: string; atMs: number },
  secret: Buffer,
): Record<string, string> {
  const { id, body, atMs } = message
  const timestamp = Math.floor(atMs / 1000)
  const mac = createHmac('sha256', secret).update(`${id}.${timestamp}.${body}`).digest('base64')
  return {
    'content-type': 'application/json',
    'webhook-id': id,
    'webhook-timestamp': String(timestamp),
    'webhook-signature': `v1,${mac}`,
  }
}

/**
 * Holds the answer of a receiver to what the specification calls delivered.
 *
 * @throws SluiceError `alert.undelivered` for anything but 2xx; a redirect is never followed.
 */
export function checkAnswer(status: number): void {
  if (status >= 200 && status < 300) return
  const redirect = status >= 300 && status < 400
  throw new SluiceError('alert.undelivered', `the alert channel answered ${status}`, {
    retry: 'later',
    hint: redirect
      ? 'Redirects are not followed: set alerts.webhook.url to where it really is.'
      : 'Look at the receiver; `sluice alerts test` tries again.',
  })
}
