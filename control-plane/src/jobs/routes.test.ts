/** Proves what operators see of jobs and agents, and that nothing beyond their sites exists for them. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { eq } from '../database/drizzle.ts'
import { Hono } from 'hono'
import { approvalAsked } from '@sluice/protocol/api-approvals'
import { agentView, certificateEntry, jobDetail, jobView } from '@sluice/protocol/api-fleet'
import { pageOf } from '@sluice/protocol/api'
import { type JobId, jobId, principalId, receiveKeyId, tokenId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import type { Access, AccessEnv } from '../access/rules.ts'
import { revoke } from '../revocation/revoke.ts'
import { problemOf } from '../api-request.ts'
import { listAudit } from '../audit/store.ts'
import { evidenceDocuments, jobs } from '../database/schema.ts'
import {
  addReceiveKey,
  joined,
  type TestAgent,
  type TestGround,
  testGround,
  testJobDeps,
} from '../doubles.ts'
import { agentRoutes } from '../fleet/routes.ts'
import { announceJob } from './announce.ts'
import { abortUploadsOf, holdJobsOf } from './hold.ts'
import { jobRoutes } from './routes.ts'

let ground: TestGround
let deps: Awaited<ReturnType<typeof testJobDeps>>
let sites: Access['sites']
let disconnected: string[]
let app: Hono<AccessEnv>
let north: TestAgent
let south: TestAgent

beforeEach(async () => {
  ground = await testGround()
  deps = await testJobDeps(ground)
  sites = 'all'
  disconnected = []
  north = await joined(ground, 'capture', { site: 'north' })
  south = await joined(ground, 'capture', { site: 'south' })
  const principal = newId(principalId, ground.now())
  app = new Hono<AccessEnv>()
  app.onError((error) => Response.json(problemOf(error), { status: problemOf(error).status }))
  app.use(async (c, next) => {
    const rights = [{ role: 'security', site: '*' }] as const
    const who = { principalId: principal, principal: 'anna', tokenId: newId(tokenId, 1) }
    c.set('access', { ...who, sites, rights })
    await next()
  })
  app.route('/', jobRoutes(deps))
  app.route(
    '/',
    agentRoutes({
      database: ground.database,
      changes: ground.changes,
      now: ground.now,
      fleet: { isConnected: (id) => id === north.id, lastSeenAtMs: () => undefined },
      revokeAgent: async (order) => {
        const target = { kind: 'agent', agentId: order.agentId } as const
        await revoke(
          {
            ...deps,
            store: { kind: 'directory', revokeGrants: async () => true },
            holdJobs: (tx, held) => holdJobsOf(deps, tx, held),
            abortUploads: (agent) => abortUploadsOf(deps, agent),
            cutOff: (agents) => void disconnected.push(...agents),
          },
          { target, reason: 'a test', access: order.access },
        )
      },
    }),
  )
})
afterEach(() => ground[Symbol.asyncDispose]())

async function announced(agent: TestAgent): Promise<JobId> {
  ground.clock.nowMs += 1
  const id = newId(jobId, ground.now())
  const key = await addReceiveKey(ground, agent.id, newId(receiveKeyId, ground.now()))
  await announceJob(
    deps,
    agent,
    {
      jobId: id,
      analyser: 'faces',
      mediaCount: 2,
      sealedBytes: 100,
      sealedHeader: randomBytes(56).toString('base64url'),
      spoolSha256: randomBytes(32).toString('hex'),
      receiveKeyId: key,
      source: { action: 'keep', when: 'result' },
      sealedAtMs: ground.now(),
    },
    Buffer.from('an envelope'),
  )
  return id
}

async function get(path: string): Promise<{ status: number; body: unknown }> {
  const response = await app.request(path)
  return { status: response.status, body: await response.json() }
}

async function post(path: string, body: unknown = {}): Promise<{ status: number; body: Answered }> {
  const response = await app.request(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  return { status: response.status, body: (await response.json()) as Answered }
}
type Answered = Record<string, unknown>

describe('jobs', () => {
  it('are listed newest first, page by page, by state and site', async () => {
    const ids = [await announced(north), await announced(south), await announced(north)]
    const page = pageOf(jobView)
    const first = page.parse((await get('/v1/jobs?limit=2')).body)
    assert.deepEqual(
      first.items.map(({ id }) => id),
      [ids[2], ids[1]],
    )
    const second = page.parse((await get(`/v1/jobs?limit=2&after=${first.next}`)).body)
    assert.deepEqual(
      second.items.map(({ id }) => id),
      [ids[0]],
    )
    assert.equal(second.next, undefined)
    assert.equal(page.parse((await get('/v1/jobs?site=south')).body).items.length, 1)
    assert.equal(page.parse((await get('/v1/jobs?state=announced')).body).items.length, 3)
    assert.equal(page.parse((await get('/v1/jobs?state=stored')).body).items.length, 0)
    assert.equal((await get('/v1/jobs?states=stored')).status, 400)
  })

  it('show what is owed for them', async () => {
    const id = await announced(north)
    const job = jobDetail.parse((await get(`/v1/jobs/${id}`)).body)
    assert.deepEqual(job.obligations.map(({ kind }) => kind).toSorted(), [
      'key.destroy',
      'object.delete',
      'spool.delete',
    ])
  })

  it('are held at once, and lifted or written off only by asking for a second person', async () => {
    const id = await announced(north)
    assert.equal((await post(`/v1/jobs/${id}/hold`)).status, 400, 'without a reason')
    const held = await post(`/v1/jobs/${id}/hold`, { reason: 'a case' })
    assert.deepEqual([held.status, jobView.parse(held.body).state], [200, 'frozen'])
    const { legalHold } = jobDetail.parse((await get(`/v1/jobs/${id}`)).body)
    assert.equal(legalHold?.setAtMs, ground.now())
    const refused = await post(`/v1/jobs/${id}/delete`)
    assert.deepEqual([refused.status, refused.body['code']], [409, 'job.held'])
    const lift = await post(`/v1/jobs/${id}/lift`, { reason: 'closed' })
    assert.deepEqual(
      [lift.status, approvalAsked.parse(lift.body).approval.operation],
      [202, { kind: 'hold.lift', jobId: id }],
    )
    assert.equal((await post(`/v1/jobs/${id}/write-off`, { reason: 'x' })).status, 409)
    assert.equal((await get(`/v1/jobs/${id}/write-off`)).status, 404)
  })

  it('never promise a certificate for what was written off', async () => {
    const id = await announced(north)
    const hintNow = async () =>
      String(((await get(`/v1/jobs/${id}/certificate`)).body as Answered)['hint'])
    assert.match(await hintNow(), /still owed/)
    await ground.database.write(async ({ sql }) => {
      await sql.update(jobs).set({ state: 'deleted-unconfirmed' }).where(eq(jobs.id, id))
      await sql.insert(evidenceDocuments).values({
        ...{ id: 'x', kind: 'write-off', subjectId: id, site: 'north', issuedAtMs: 1 },
        envelope: '{"signed":"text"}',
      })
    })
    assert.match(await hintNow(), /write-off names the gap/)
    const report = await app.request(`/v1/jobs/${id}/write-off`)
    assert.equal(await report.text(), '{"signed":"text"}')
  })

  it('do not exist beyond the sites of who asks', async () => {
    const hidden = await announced(south)
    const seen = await announced(north)
    sites = ['north']
    const listed = pageOf(jobView).parse((await get('/v1/jobs')).body)
    assert.deepEqual(
      listed.items.map(({ id }) => id),
      [seen],
    )
    const unknown = newId(jobId, ground.now())
    for (const path of ['', '/result', '/certificate']) {
      const answers = await Promise.all([hidden, unknown].map((id) => get(`/v1/jobs/${id}${path}`)))
      assert.deepEqual(answers[0], answers[1])
      assert.equal(answers[0]?.status, 404)
    }
    for (const order of ['hold', 'lift', 'write-off'])
      assert.equal((await post(`/v1/jobs/${hidden}/${order}`, { reason: 'x' })).status, 404, order)
    for (const order of ['retry', 'delete', 'release'])
      assert.equal((await post(`/v1/jobs/${hidden}/${order}`)).status, 404, order)
    assert.equal((await get(`/v1/jobs/${seen}`)).status, 200)
    assert.equal((await get('/v1/jobs/nonsense')).status, 404)
  })

  it('are deleted once, by a named principal', async () => {
    const id = await announced(north)
    const deleted = await post(`/v1/jobs/${id}/delete`)
    assert.deepEqual([deleted.status, deleted.body['state']], [202, 'deleting'])
    assert.equal((await post(`/v1/jobs/${id}/delete`)).status, 409)
    assert.equal((await post(`/v1/jobs/${id}/retry`)).status, 409)
    const events = await listAudit(ground.database, { jobId: id, afterSeq: 0, items: 10 })
    assert.equal(events.at(-1)?.actor.kind, 'principal')
  })

  it('refuse fields nobody knows', async () => {
    const id = await announced(north)
    assert.equal((await post(`/v1/jobs/${id}/delete`, { force: true })).status, 400)
    assert.equal(pageOf(jobView).parse((await get('/v1/jobs')).body).items[0]?.state, 'announced')
  })

  it('have no certificate and no result before there is one', async () => {
    const id = await announced(north)
    assert.equal((await get(`/v1/jobs/${id}/certificate`)).status, 404)
    assert.equal((await get(`/v1/jobs/${id}/result`)).status, 404)
    assert.deepEqual(pageOf(certificateEntry).parse((await get('/v1/certificates')).body).items, [])
  })
})

describe('agents', () => {
  it('are listed page by page, with who is connected', async () => {
    const page = pageOf(agentView)
    const first = page.parse((await get('/v1/agents?limit=1')).body)
    const second = page.parse((await get(`/v1/agents?limit=1&after=${first.next}`)).body)
    const both = [...first.items, ...second.items]
    assert.deepEqual(
      new Set(both.map(({ id, connected }) => `${id} ${connected}`)),
      new Set([`${north.id} true`, `${south.id} false`]),
    )
    sites = ['south']
    assert.equal(page.parse((await get('/v1/agents')).body).items.length, 1)
    assert.equal((await get(`/v1/agents/${north.id}`)).status, 404)
    assert.equal((await post(`/v1/agents/${north.id}/revoke`)).status, 404)
    assert.deepEqual(disconnected, [])
  })

  it('are bounded by the operator; what is left out stays', async () => {
    const path = `/v1/agents/${north.id}`
    assert.equal((await post(path, { leasesMax: 3, allowedAnalysers: ['faces'] })).status, 200)
    const changed = agentView.parse((await post(path, { labels: { rack: '7' } })).body)
    assert.deepEqual(
      [changed.leasesMax, changed.allowedAnalysers, changed.labels],
      [3, ['faces'], { rack: '7' }],
    )
    const freed = agentView.parse((await post(path, { allowedAnalysers: null })).body)
    assert.equal(freed.allowedAnalysers, undefined)
    assert.equal((await post(path, { leasesMax: -1 })).status, 400)
    assert.equal((await post(path, { site: 'south' })).status, 400)
  })

  it('are revoked once: cut off, their jobs frozen, and written down', async () => {
    const id = await announced(north)
    const revoked = agentView.parse((await post(`/v1/agents/${north.id}/revoke`)).body)
    assert.equal(revoked.revokedAtMs, ground.now())
    assert.deepEqual(disconnected, [north.id])
    assert.equal(jobDetail.parse((await get(`/v1/jobs/${id}`)).body).state, 'frozen')
    await post(`/v1/agents/${north.id}/revoke`)
    const events = await listAudit(ground.database, {
      agentId: north.id,
      afterSeq: 0,
      items: 20,
    })
    assert.equal(events.filter(({ type }) => type === 'agent.revoked').length, 1)
  })
})
