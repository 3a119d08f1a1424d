/** Listens for readers of the audit log, and of one job's part of it as a stream. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Hono } from 'hono'
import { streamSSE } from 'hono/streaming'
import { z } from 'zod'
import { type AuditSinkView, pageQuery } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import { agentId, jobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Access, AccessEnv } from '../access/rules.ts'
import { readQuery } from '../api-request.ts'
import type { Changes } from '../changes.ts'
import type { Database } from '../database/database.ts'
import { listAudit, verifyAudit } from './store.ts'

const seqText = z.string().regex(/^\d{1,15}$/)
const auditQuery = z.strictObject({
  ...pageQuery.shape,
  after: seqText.optional(),
  jobId: jobId.optional(),
  agentId: agentId.optional(),
})
const verifyQuery = z
  .strictObject({
    seq: seqText.optional(),
    sha256: z
      .string()
      .regex(/^[0-9a-f]{64}$/)
      .optional(),
  })
  .refine(
    ({ seq, sha256 }) => (seq === undefined) === (sha256 === undefined),
    'seq and sha256 go together',
  )

/** How often a stream looks whether its reader may still read, and shows that it lives. */
const streamPulseMs = 5_000
/** A lost signal costs at most this; it never costs an event. */
const streamLookMs = 1_000
const streamPageEvents = 200

export function auditRoutes(deps: {
  database: Database
  changes: Changes
  now: () => number
  sink: () => Promise<AuditSinkView>
}) {
  const { database, changes, now } = deps
  const routes = new Hono<AccessEnv>()
  let streams = 0

  routes.get('/v1/audit', async (c) => {
    const query = readQuery(c.req.raw, auditQuery)
    const found = await listAudit(database, {
      afterSeq: Number(query.after ?? 0),
      items: query.limit + 1,
      jobId: query.jobId,
      agentId: query.agentId,
      sites: sitesOf(c.get('access')),
    })
    const items = found.slice(0, query.limit)
    const next = found.length > query.limit ? String(items.at(-1)?.seq) : undefined
    return c.json({ items, ...(next === undefined ? {} : { next }) })
  })

  routes.get('/v1/audit/verify', async (c) => {
    const { seq, sha256 } = readQuery(c.req.raw, verifyQuery)
    const noted =
      seq === undefined || sha256 === undefined ? undefined : { seq: Number(seq), sha256 }
    const verdict = await verifyAudit(database, noted)
    return c.json(verdict.whole ? { whole: true, ...verdict.head } : verdict)
  })

  routes.get('/v1/audit/sink', async (c) => c.json(await deps.sink()))

  routes.get('/v1/jobs/:id/events', async (c) => {
    const job = jobId.safeParse(c.req.param('id'))
    const sites = sitesOf(c.get('access'))
    const from = seqText.safeParse(c.req.header('last-event-id') ?? '0')
    if (!from.success) throw new SluiceError('request.invalid', 'Last-Event-ID: not a number')
    const read = (afterSeq: number, items: number) =>
      job.success ? listAudit(database, { jobId: job.data, sites, afterSeq, items }) : []
    if ((await read(0, 1)).length === 0) throw new SluiceError('job.not_found', 'no such job')
    // The head of a stream has no reader who could ever end it.
    if (c.req.method === 'HEAD') return c.body(null, 200, { 'content-type': 'text/event-stream' })
    if (streams >= limits.eventStreamsMax)
      throw new SluiceError('request.rate_limited', 'too many open event streams', {
        retry: 'later',
      })
    const stillAllowed = c.get('stillAllowed')

    return streamSSE(c, async (stream) => {
      streams += 1
      const over = new AbortController()
      stream.onAbort(() => over.abort())
      const wakeable = wakeUps(changes, over.signal)
      try {
        let afterSeq = Number(from.data)
        let pulseAtMs = now()
        while (!stream.aborted) {
          const events = await read(afterSeq, streamPageEvents)
          for (const event of events) {
            await stream.writeSSE({
              id: String(event.seq),
              event: event.type,
              data: JSON.stringify(event),
            })
            afterSeq = event.seq
          }
          if (events.length === streamPageEvents) continue
          if (now() - pulseAtMs >= streamPulseMs) {
            await stillAllowed()
            await stream.write(': still here\n\n')
            pulseAtMs = now()
          }
          await wakeable.next()
        }
      } finally {
        over.abort()
        streams -= 1
      }
    })
  })

  return routes
}

function sitesOf(access: Access): readonly string[] | undefined {
  return access.sites === 'all' ? undefined : access.sites
}

/** Resolves when some job changed, or a moment passed. */
function wakeUps(changes: Changes, over: AbortSignal) {
  let wake: (() => void) | undefined
  const onJob = () => wake?.()
  changes.on('job', onJob)
  over.addEventListener('abort', () => {
    changes.off('job', onJob)
    wake?.()
  })
  return {
    async next(): Promise<void> {
      const timer = new AbortController()
      const signalled = new Promise<void>((resolve) => {
        wake = resolve
      })
      try {
        await Promise.race([
          signalled,
          sleep(streamLookMs, undefined, { signal: timer.signal }).catch(() => undefined),
        ])
      } finally {
        timer.abort()
        wake = undefined
      }
    },
  }
}
