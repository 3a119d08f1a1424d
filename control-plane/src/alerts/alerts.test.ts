import assert from 'node:assert/strict'
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { openAuthority } from '../access/authority.ts'
import { listAudit } from '../audit/store.ts'
import { controlPlaneConfig } from '../config.ts'
import { startControlPlane } from '../control-plane.test-setup.ts'
import { obligations } from '../database/schema.ts'
import { type Obligation, overdueAlerts } from '../deletion/rules.ts'
import { testGround } from '../doubles.ts'
import { deliverAlert } from './deliver.ts'
import { alertById, pageOfAlerts, raiseAlert } from './store.ts'
import { openWebhook } from './webhook.ts'

type Received = { path: string | undefined; headers: IncomingHttpHeaders; body: string }

/** A receiver over TLS with an authority of its own; `answer` may be changed while it runs. */
async function receiver(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-alerts-'))
  await mkdir(join(folder, 'ca'))
  await mkdir(join(folder, 'stranger'))
  const authority = await openAuthority(join(folder, 'ca'), Date.now)
  const stranger = await openAuthority(join(folder, 'stranger'), Date.now)
  const { key, cert } = await authority.issueServer(['127.0.0.1'])
  const got: Received[] = []
  const state = { answer: (response: ServerResponse): void => void response.writeHead(204).end() }
  const server = createServer({ key, cert }, (request, response) => {
    let body = ''
    request.on('data', (piece: Buffer) => (body += piece.toString()))
    request.on('end', () => {
      got.push({ path: request.url, headers: request.headers, body })
      state.answer(response)
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const secret = randomBytes(32)
  const [secretFile, caFile, strangerFile] = ['secret', 'ca.pem', 'stranger.pem'].map((name) =>
    join(folder, name),
  ) as [string, string, string]
  await writeFile(secretFile, secret, { mode: 0o600 })
  await writeFile(caFile, authority.pem)
  await writeFile(strangerFile, stranger.pem)
  t.after(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
    await rm(folder, { recursive: true })
  })
  const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}/hook`
  return { url, secretFile, caFile, strangerFile, secret, got, state, folder }
}

/** What a receiver does, in its own few lines. */
function isSigned({ headers, body }: Received, secret: Buffer): boolean {
  const signed = `${String(headers['webhook-id'])}.${String(headers['webhook-timestamp'])}.${body}`
  const mac = createHmac('sha256', secret).update(signed).digest()
  const [version, text = ''] = String(headers['webhook-signature']).split(',')
  const given = Buffer.from(text, 'base64')
  return version === 'v1' && given.length === mac.length && timingSafeEqual(given, mac)
}

const undelivered = (error: unknown) => isSluiceError(error, 'alert.undelivered')

async function world(t: TestContext, more: { timeoutMs?: number; caFile?: string } = {}) {
  const hook = await receiver(t)
  const ground = await testGround()
  const channel = await openWebhook({ ...hook, now: ground.now, ...more })
  t.after(async () => {
    await channel[Symbol.asyncDispose]()
    await ground[Symbol.asyncDispose]()
  })
  const id = await ground.database.write((tx) =>
    raiseAlert(
      tx,
      {
        type: 'purge.begun',
        severity: 'critical',
        site: 'north',
        atMs: ground.now(),
        summary: 'a purge of 3 jobs began',
        detail: { jobs: 3 },
      },
      ground.changes,
    ),
  )
  const duty = async (): Promise<Obligation> =>
    (await ground.database.read((sql) => sql.select().from(obligations)))[0]!
  const deps = { database: ground.database, now: ground.now, channel }
  const deliver = async (changed: object = {}) =>
    deliverAlert({ ...deps, ...changed }, await duty(), new AbortController().signal)
  const alert = () => ground.database.read((sql) => alertById(sql, id))
  return { hook, ground, channel, id, duty, deliver, alert }
}

describe('alerts', () => {
  it('reach a webhook signed, and are settled by its answer', async (t) => {
    const { hook, id, duty, deliver, alert } = await world(t)
    assert.equal((await duty()).state, 'due')
    assert.equal(await deliver(), 'settled')
    const [message] = hook.got
    assert(message)
    assert.equal(message.headers['webhook-id'], id)
    assert.equal(isSigned(message, hook.secret), true)
    assert.equal(isSigned(message, randomBytes(32)), false, 'the control: another secret')
    assert.equal(isSigned({ ...message, body: `${message.body} ` }, hook.secret), false)
    const body = JSON.parse(message.body) as { type: string; data: { detail: unknown } }
    assert.equal(body.type, 'purge.begun')
    assert.deepEqual(body.data.detail, { jobs: 3 })
    assert.equal((await duty()).state, 'done')
    assert.notEqual((await alert())?.deliveredAtMs, null)
  })

  it('are checked by the lines that the documentation gives receivers', async (t) => {
    const { hook, deliver } = await world(t)
    await deliver()
    const page = new URL('../../../docs/operate/alerts.md', import.meta.url)
    const code = /```js\n([^]*?)```/.exec(await readFile(page, 'utf8'))?.[1]
    assert(code)
    const file = join(hook.folder, 'receiver.mjs')
    await writeFile(file, code)
    const { isFromSluice } = (await import(file)) as {
      isFromSluice: (headers: unknown, body: string, key: Buffer, nowMs: number) => boolean
    }
    const { headers, body } = hook.got[0]!
    const nowMs = Number(headers['webhook-timestamp']) * 1000
    assert.equal(isFromSluice(headers, body, hook.secret, nowMs), true)
    assert.equal(isFromSluice(headers, `${body} `, hook.secret, nowMs), false, 'another body')
    assert.equal(isFromSluice(headers, body, randomBytes(32), nowMs), false, 'another key')
    assert.equal(isFromSluice(headers, body, hook.secret, nowMs + 301_000), false, 'an old one')
  })

  it('are in the audit log, without what they say', async (t) => {
    const { ground, id } = await world(t)
    const events = await listAudit(ground.database, { afterSeq: 0, items: 9 })
    assert.deepEqual(
      events.map(({ type, site, detail }) => [type, site, detail]),
      [['alert.raised', 'north', { alert: 'purge.begun', alertId: id, severity: 'critical' }]],
    )
  })

  it('stay owed while the channel is down, and are delivered once it is up', async (t) => {
    const { hook, duty, deliver, alert } = await world(t)
    hook.state.answer = (response) => void response.writeHead(503).end()
    await assert.rejects(deliver(), undelivered)
    assert.equal((await duty()).state, 'due')
    assert.equal((await alert())?.deliveredAtMs, null)
    hook.state.answer = (response) => void response.writeHead(200).end('ok')
    assert.equal(await deliver(), 'settled')
  })

  it('keep their id when the row of a delivery was lost', async (t) => {
    const { hook, ground, duty, deliver } = await world(t)
    const cut = new SluiceError('host.disk_full', 'the process ends between answer and row')
    const database = { ...ground.database, write: () => Promise.reject(cut) }
    await assert.rejects(deliver({ database }))
    assert.equal((await duty()).state, 'due')
    assert.equal(await deliver(), 'settled')
    const ids = hook.got.map(({ headers }) => headers['webhook-id'])
    assert.equal(ids.length, 2)
    assert.equal(ids[0], ids[1])
    assert.equal(hook.got[0]?.body, hook.got[1]?.body)
  })

  it('follow no redirect', async (t) => {
    const { hook, duty, deliver } = await world(t)
    hook.state.answer = (response) => void response.writeHead(307, { location: '/other' }).end()
    await assert.rejects(deliver(), undelivered)
    assert.deepEqual(
      hook.got.map(({ path }) => path),
      ['/hook'],
    )
    assert.equal((await duty()).state, 'due')
  })

  it('do not wait for a receiver that never answers', async (t) => {
    const { hook, deliver } = await world(t, { timeoutMs: 300 })
    hook.state.answer = () => undefined
    await assert.rejects(deliver(), undelivered)
    assert.equal(hook.got.length, 1)
  })

  it('do not read an answer without end', async (t) => {
    const { hook, deliver } = await world(t)
    hook.state.answer = (response) => {
      response.writeHead(200)
      const pour = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536)));
        if (!response.destroyed) response.once('drain', pour)
      }
      pour()
    }
    await assert.rejects(deliver(), undelivered)
  })

  it('go to nobody whose certificate another authority made', async (t) => {
    const { hook, ground, deliver } = await world(t)
    const channel = await openWebhook({ ...hook, caFile: hook.strangerFile, now: ground.now })
    t.after(() => channel[Symbol.asyncDispose]())
    await assert.rejects(deliver({ channel }), undelivered)
    assert.equal(hook.got.length, 0)
    assert.equal(await deliver(), 'settled', 'the control')
  })

  it('wait a week for a channel where none is configured, and are sent once there is one', async (t) => {
    const { hook, ground, id, duty, deliver, alert } = await world(t)
    const none = { channel: undefined }
    assert.deepEqual(await deliver(none), { waitMs: limits.obligationRetryMsMax })
    const { state, deadlineAtMs } = await duty()
    assert.deepEqual([state, deadlineAtMs], ['due', ground.now() + limits.alertKeepMs])
    ground.clock.nowMs += limits.alertKeepMs - 1
    assert.deepEqual(await deliver(none), { waitMs: 1 })
    assert.equal(await deliver(), 'settled')
    assert.equal(hook.got[0]?.headers['webhook-id'], id)
    assert.equal((await alert())?.deliveredAtMs, ground.now())
  })

  it('are only listed when their week without a channel is over', async (t) => {
    const { ground, duty, deliver, alert } = await world(t)
    ground.clock.nowMs += limits.alertKeepMs
    assert.equal(await deliver({ channel: undefined }), 'settled')
    assert.equal((await duty()).state, 'done')
    assert.equal((await alert())?.deliveredAtMs, null)
    const listed = await ground.database.read((sql) =>
      pageOfAlerts(sql, { sites: ['north'], itemsMax: 9 }),
    )
    assert.equal(listed.length, 1)
    const elsewhere = await ground.database.read((sql) =>
      pageOfAlerts(sql, { sites: ['south'], itemsMax: 9 }),
    )
    assert.equal(elsewhere.length, 0)
  })

  it('are refused a secret that is short or open to others', async (t) => {
    const { hook, ground } = await world(t)
    await writeFile(hook.secretFile, randomBytes(23))
    await assert.rejects(openWebhook({ ...hook, now: ground.now }), (error) =>
      isSluiceError(error, 'config.invalid'),
    )
    const open = join(hook.folder, 'open')
    await writeFile(open, randomBytes(32), { mode: 0o644 })
    await assert.rejects(openWebhook({ ...hook, secretFile: open, now: ground.now }), (error) =>
      isSluiceError(error, 'host.unsafe_file'),
    )
  })

  it('are tested by hand, through the control plane', async (t) => {
    const hook = await receiver(t)
    const { url, secretFile, caFile } = hook
    await using system = await startControlPlane(undefined, {
      alerts: { webhook: { url, secretFile, caFile } },
    })
    const secret = await system.secretFor('operator')
    const answer = await system.call('POST', '/v1/alerts/test', { secret, body: {} })
    assert.equal(answer.status, 200)
    assert.equal(answer.json['status'], 204)
    assert.equal(isSigned(hook.got[0]!, hook.secret), true)
    const viewer = await system.secretFor('viewer')
    const refused = await system.call('POST', '/v1/alerts/test', { secret: viewer, body: {} })
    assert.equal(refused.status, 403)
  })

  it('are posted in the clear to this host only', () => {
    const parsed = (url: string) =>
      controlPlaneConfig.safeParse({ alerts: { webhook: { url, secretFile: '/x' } } }).success
    assert.equal(parsed('http://127.0.0.1:9/x'), true)
    assert.equal(parsed('http://[::1]:9/x'), true)
    assert.equal(parsed('http://alerts.example/x'), false)
    assert.equal(parsed('https://alerts.example/x'), true)
    assert.equal(parsed('ftp://127.0.0.1/x'), false)
  })

  it('sum up what is overdue by kind and site, and never speak of themselves', () => {
    const late = [
      { kind: 'spool.delete', site: 'north', lastErrorCode: null },
      { kind: 'spool.delete', site: 'north', lastErrorCode: null },
      { kind: 'spool.delete', site: 'south', lastErrorCode: null },
      { kind: 'alert.deliver', site: 'north', lastErrorCode: 'alert.undelivered' },
    ] as const
    assert.deepEqual(
      overdueAlerts(late).map(({ site, detail }) => [site, detail.obligation, detail.duties]),
      [
        ['north', 'spool.delete', 2],
        ['south', 'spool.delete', 1],
      ],
    )
  })
})
