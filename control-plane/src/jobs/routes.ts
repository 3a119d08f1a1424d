/** Listens for operators who follow jobs, try them again, end them, and ask for what is proven. */
import { type Context, Hono } from 'hono'
import { z } from 'zod'
import { pageQuery } from '@sluice/protocol/api'
import { reasonRequest } from '@sluice/protocol/api-approvals'
import { type JobDetail, jobsQuery, type JobView } from '@sluice/protocol/api-fleet'
import { SluiceError } from '@sluice/protocol/errors'
import { type ApprovalId, jobId } from '@sluice/protocol/ids'
import { askedView } from '../access/approvals.ts'
import { type Access, type AccessEnv, reachesSite } from '../access/rules.ts'
import { readBody, readQuery } from '../api-request.ts'
import type { Queries } from '../database/database.ts'
import { progressOfDuty } from '../deletion/rules.ts'
import { dutiesOfJob, writeOffText } from '../deletion/store.ts'
import { askWriteOff } from '../deletion/write-off.ts'
import { presentFields } from '../present-fields.ts'
import { deleteJob } from './delete.ts'
import type { JobDeps } from './deps.ts'
import { releaseJob } from './hold.ts'
import { askLift, holdJob } from './legal-hold.ts'
import { retryJob } from './retry.ts'
import {
  certificateText,
  jobById,
  type JobRow,
  leasesOfJob,
  pageOfCertificates,
  pageOfJobs,
  resultOf,
  standingHold,
} from './store.ts'

const nothing = z.strictObject({})

export function jobRoutes(deps: JobDeps) {
  const { database } = deps
  const routes = new Hono<AccessEnv>()

  /** A job beyond the asker's sites is as unknown to it as one that never was. */
  async function reachable(access: Access, text: string): Promise<JobRow> {
    const id = jobId.safeParse(text)
    const job = id.success ? await database.read((sql) => jobById(sql, id.data)) : undefined
    if (!job || !reachesSite(access, job.site))
      throw new SluiceError('job.not_found', 'no such job')
    return job
  }

  /** What waits for a second person now. */
  async function asked(c: Context<AccessEnv>, id: ApprovalId) {
    return c.json({ approval: await database.read((sql) => askedView(sql, id)) }, 202)
  }

  routes.get('/v1/jobs', async (c) => {
    const query = readQuery(c.req.raw, jobsQuery)
    const rows = await database.read((sql) =>
      pageOfJobs(sql, {
        sites: sitesOf(c.get('access')),
        states: query.state === undefined ? undefined : [query.state],
        site: query.site,
        captureAgentId: query.agent,
        analyser: query.analyser,
        before: jobId.safeParse(query.after).data,
        itemsMax: query.limit + 1,
      }),
    )
    const shown = rows.slice(0, query.limit)
    const next = rows.length > query.limit ? shown.at(-1)?.id : undefined
    return c.json({ items: shown.map(viewOfJob), ...(next === undefined ? {} : { next }) })
  })

  routes.get('/v1/jobs/:id', async (c) => {
    const job = await reachable(c.get('access'), c.req.param('id'))
    return c.json(await database.read((sql) => detailOf(sql, job)))
  })

  routes.post('/v1/jobs/:id/retry', async (c) => {
    await readBody(c.req.raw, nothing)
    const job = await reachable(c.get('access'), c.req.param('id'))
    return c.json(viewOfJob(await retryJob(deps, { jobId: job.id, actor: actorOf(c) })))
  })

  routes.post('/v1/jobs/:id/release', async (c) => {
    await readBody(c.req.raw, nothing)
    const job = await reachable(c.get('access'), c.req.param('id'))
    return c.json(viewOfJob(await releaseJob(deps, { jobId: job.id, actor: actorOf(c) })))
  })

  routes.post('/v1/jobs/:id/hold', async (c) => {
    const { reason } = await readBody(c.req.raw, reasonRequest)
    const job = await reachable(c.get('access'), c.req.param('id'))
    const { principalId } = c.get('access')
    return c.json(viewOfJob(await holdJob(deps, { jobId: job.id, principalId, reason })))
  })

  routes.post('/v1/jobs/:id/lift', async (c) => {
    const { reason } = await readBody(c.req.raw, reasonRequest)
    const access = c.get('access')
    const job = await reachable(access, c.req.param('id'))
    return asked(c, await askLift(deps, { jobId: job.id, access, reason }))
  })

  routes.post('/v1/jobs/:id/delete', async (c) => {
    await readBody(c.req.raw, nothing)
    const job = await reachable(c.get('access'), c.req.param('id'))
    return c.json(viewOfJob(await deleteJob(deps, { jobId: job.id, actor: actorOf(c) })), 202)
  })

  routes.post('/v1/jobs/:id/write-off', async (c) => {
    const { reason } = await readBody(c.req.raw, reasonRequest)
    const access = c.get('access')
    const job = await reachable(access, c.req.param('id'))
    return asked(c, await askWriteOff(deps, { jobId: job.id, access, reason }))
  })

  routes.get('/v1/jobs/:id/write-off', async (c) => {
    const job = await reachable(c.get('access'), c.req.param('id'))
    const text = await database.read((sql) => writeOffText(sql, job.id))
    if (text === undefined)
      throw new SluiceError('request.not_found', `job ${job.id} was not written off`)
    return c.body(text, 200, { 'content-type': 'application/vnd.dsse.envelope.v1+json' })
  })

  routes.get('/v1/jobs/:id/result', async (c) => {
    const job = await reachable(c.get('access'), c.req.param('id'))
    const result = await database.read((sql) => resultOf(sql, job.id))
    if (!result?.sealed)
      throw new SluiceError('result.not_found', `no result of job ${job.id} waits here`, {
        hint: 'Delivered results are on the capture host.',
      })
    return c.body(new Uint8Array(result.sealed), 200, {
      'content-type': 'application/octet-stream',
      digest: `sha-256=${Buffer.from(result.sealedSha256, 'hex').toString('base64')}`,
    })
  })

  routes.get('/v1/jobs/:id/certificate', async (c) => {
    const job = await reachable(c.get('access'), c.req.param('id'))
    const text = await database.read((sql) => certificateText(sql, job.id))
    if (text === undefined && job.state === 'deleted-unconfirmed')
      throw new SluiceError('request.not_found', `job ${job.id} never gets a certificate`, {
        hint: `A holder never confirmed; GET /v1/jobs/${job.id}/write-off names the gap.`,
      })
    if (text === undefined)
      throw new SluiceError('request.not_found', `job ${job.id} has no deletion certificate yet`, {
        retry: 'later',
        hint: `It is ${job.state}; \`sluice jobs show ${job.id}\` says what is still owed.`,
      })
    // Byte for byte as it was signed.
    return c.body(text, 200, { 'content-type': 'application/vnd.dsse.envelope.v1+json' })
  })

  routes.get('/v1/certificates', async (c) => {
    const { after, limit } = readQuery(c.req.raw, pageQuery)
    const rows = await database.read((sql) =>
      pageOfCertificates(sql, {
        sites: sitesOf(c.get('access')),
        after: jobId.safeParse(after).data,
        itemsMax: limit + 1,
      }),
    )
    const items = rows.slice(0, limit)
    const next = rows.length > limit ? items.at(-1)?.jobId : undefined
    return c.json({ items, ...(next === undefined ? {} : { next }) })
  })

  return routes
}

function sitesOf(access: Access): readonly string[] | null {
  return access.sites === 'all' ? null : access.sites
}

function actorOf(c: { get(key: 'access'): Access }) {
  return { kind: 'principal', id: c.get('access').principalId } as const
}

/** A job as the API shows it. */
export function viewOfJob(row: JobRow): JobView {
  return {
    id: row.id,
    site: row.site,
    captureAgentId: row.captureAgentId,
    analyser: row.analyser,
    state: row.state,
    mediaCount: row.mediaCount,
    sealedBytes: row.sealedBytes,
    sealedHeaderSha256: row.sealedHeaderSha256,
    source: row.source,
    sealedAtMs: row.sealedAtMs,
    announcedAtMs: row.announcedAtMs,
    stateChangedAtMs: row.stateChangedAtMs,
    leaseAttempts: row.leaseAttempts,
    fence: row.fence,
    ...presentFields({
      frozenFrom: row.frozenFrom,
      heldAtMs: row.heldAtMs,
      exposedAtMs: row.exposedAtMs,
      storedAtMs: row.storedAtMs,
      analysedAtMs: row.analysedAtMs,
      intentAtMs: row.intentAtMs,
      keysUnusableAtMs: row.keysUnusableAtMs,
      keysUnrecoverableAtMs: row.keysUnrecoverableAtMs,
      objectsAbsentAtMs: row.objectsAbsentAtMs,
      deletedAtMs: row.deletedAtMs,
      expiresAtMs: row.expiresAtMs,
      problem: row.problemCode && { code: row.problemCode, message: row.problemMessage ?? '' },
    }),
  }
}

async function detailOf(sql: Queries, job: JobRow): Promise<JobDetail> {
  const leases = await leasesOfJob(sql, job.id)
  const owed = await dutiesOfJob(sql, job.id)
  const result = await resultOf(sql, job.id)
  const hold = await standingHold(sql, job.id)
  return {
    ...viewOfJob(job),
    ...(hold && { legalHold: { setBy: hold.setBy, setAtMs: hold.setAtMs } }),
    leases: leases.map((lease) => ({
      id: lease.id,
      nodeId: lease.nodeId,
      fence: lease.fence,
      grantedAtMs: lease.grantedAtMs,
      deadlineAtMs: lease.deadlineAtMs,
      ...presentFields({
        acceptedAtMs: lease.acceptedAtMs,
        keyReleasedAtMs: lease.keyReleasedAtMs,
        endedAtMs: lease.endedAtMs,
        endReason: lease.endReason,
        wipedAtMs: lease.wipedAtMs,
      }),
    })),
    obligations: owed.map((known) => {
      const { id, kind, state, attempts, nextTryAtMs, deadlineAtMs } = known.duty
      const { doneAtMs, lastError } = known.duty
      return {
        ...{ id, kind, state, progress: progressOfDuty(known) },
        ...{ attempts, nextTryAtMs, deadlineAtMs },
        ...presentFields({ doneAtMs, lastError }),
      }
    }),
    ...(result && {
      result: {
        sealedBytes: result.sealedBytes,
        sealedSha256: result.sealedSha256,
        receivedAtMs: result.receivedAtMs,
        expiresAtMs: result.expiresAtMs,
        held: result.sealed !== null,
        ...presentFields({ deliveredAtMs: result.deliveredAtMs }),
      },
    }),
  }
}
