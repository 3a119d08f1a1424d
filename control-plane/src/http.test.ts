import assert from 'node:assert/strict'
import { createPublicKey, randomBytes, randomUUID, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { chmod, cp, mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import tls from 'node:tls'
import { after, before, describe, it } from 'node:test'
import { Hono } from 'hono'
import { Agent, request } from 'undici'
import { decodeToken, roles } from '@sluice/protocol/api'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { agentId, jobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { openAuthority } from './access/authority.ts'
import { type AccessEnv, routeRules } from './access/rules.ts'
import { createToken } from './access/tokens.ts'
import { appendAudit } from './audit/store.ts'
import { adminClient, apiClient } from './cli/client.ts'
import {
  type JoinedAgent,
  joinedAgent,
  newIdentity,
  startControlPlane,
  type TestControlPlane,
  tlsOf,
} from './control-plane.test-setup.ts'
import { openDatabase } from './database/database.ts'
import { testGround } from './doubles.ts'
import { createEvents } from './events.ts'
import { operatorApi } from './http.ts'

let system: TestControlPlane
before(async () => {
  system = await startControlPlane()
})
after(() => system[Symbol.asyncDispose]())

/** One GET on the agent listener, by hand: what came back, or how the connection ended. */
async function askAgentListener(
  options: tls.ConnectionOptions,
  path = '/v1/nothing',
  onSession: (session: Buffer) => void = () => undefined,
): Promise<string> {
  const { port } = new URL(system.controlPlane.agentUrl)
  const socket = tls.connect({ host: '127.0.0.1', port: Number(port), ca: system.ca, ...options })
  socket.on('session', onSession)
  let text = ''
  socket.on('data', (piece: Buffer) => (text += piece.toString()))
  socket.once('secureConnect', () =>
    socket.write(`GET ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`),
  )
  const ended = await new Promise<string>((resolve) => {
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'error'))
    socket.once('close', () => resolve('closed'))
  })
  socket.destroy()
  return text === '' ? ended : text
}

describe('operator listener', () => {
  it('answers without a token only where the table says so', async () => {
    for (const { method, path, may } of routeRules) {
      const asked = path.replace(':id', randomUUID())
      const without = await system.call(method, asked, method === 'POST' ? { body: {} } : {})
      const wrong = await system.call(method, asked, {
        secret: randomBytes(32).toString('base64url'),
        ...(method === 'POST' ? { body: {} } : {}),
      })
      for (const { status, json } of [without, wrong])
        if (may === 'public') assert.notEqual(status, 401, path)
        else assert.deepEqual([status, json['code']], [401, 'access.unauthenticated'], path)
    }
  })

  for (const role of roles)
    it(`lets ${role} do what the table says and nothing else`, async () => {
      const secret = await system.secretFor(role)
      for (const { method, path, may } of routeRules) {
        if (may === 'public') continue
        const asked = path.replace(':id', randomUUID())
        const body = method === 'POST' ? { body: { unknown: 1 } } : {}
        const { status } = await system.call(method, asked, { secret, ...body })
        const what = `${method} ${path} for ${role}: ${status}`
        if (may.includes(role)) assert(![401, 403, 500].includes(status), what)
        else assert.equal(status, 403, what)
      }
    })

  it('knows no route that the table does not', async () => {
    const secret = await system.secretFor('security')
    for (const path of ['/', '/v1', '/v1/jobs/', '/v1/jobs/x/y', '/v1/channel', '/admin'])
      assert.equal((await system.call('GET', path, { secret })).status, 404, path)
  })

  it('refuses unknown fields, wrong types, doubled names and other media types', async () => {
    const secret = await system.secretFor('operator')
    const ask = (body: unknown, headers?: Record<string, string>) =>
      system.call('POST', '/v1/join-tokens', { secret, body, ...(headers && { headers }) })
    const good = { role: 'capture', site: 'berlin' }
    assert.equal((await ask(good)).status, 201)
    for (const [body, headers] of [
      [{ ...good, admin: true }],
      [{ ...good, lifeMs: limits.joinTokenMsMax + 1 }],
      [{ ...good, site: 'Not A Site' }],
      ['{"role"'],
      [good, { 'content-type': 'text/plain' }],
    ] as const) {
      const answer = await ask(body, headers)
      assert.equal(answer.status, 400, JSON.stringify(body))
      assert.equal(answer.headers['content-type'], 'application/problem+json')
      assert.equal(answer.json['code'], 'request.invalid')
    }
    const doubled = await system.call('GET', '/v1/join-tokens?limit=1&limit=2', { secret })
    assert.equal(doubled.status, 400)
  })

  it('refuses a body that is too large, announced or not', async () => {
    const secret = await system.secretFor('operator')
    const body = JSON.stringify({ site: 'x'.repeat(limits.requestBodyBytesMax) })
    const answer = await system.call('POST', '/v1/join-tokens', { secret, body })
    assert.deepEqual([answer.status, answer.json['code']], [413, 'request.too_large'])
    const joining = await system.call('POST', '/v1/join', { body })
    assert.equal(joining.status, 413)
  })

  it('speaks TLS 1.3 with a hybrid key exchange, and nothing older', async () => {
    const { port } = new URL(system.controlPlane.operatorUrl)
    const connect = async (options: tls.ConnectionOptions) => {
      const socket = tls.connect({
        host: '127.0.0.1',
        port: Number(port),
        ca: system.ca,
        ...options,
      })
      try {
        await once(socket, 'secureConnect')
        return socket.getProtocol()
      } finally {
        socket.destroy()
      }
    }
    assert.equal(await connect({}), 'TLSv1.3')
    assert.equal(await connect({ ecdhCurve: 'X25519MLKEM768' }), 'TLSv1.3')
    await assert.rejects(connect({ maxVersion: 'TLSv1.2' }), /alert protocol version/)
  })

  it('presents a certificate that only its own authority vouches for', async () => {
    const { port } = new URL(system.controlPlane.operatorUrl)
    const socket = tls.connect({ host: '127.0.0.1', port: Number(port) })
    await assert.rejects(once(socket, 'secureConnect'), { code: /SELF_SIGNED|UNABLE_TO/ })
  })

  it('speaks plain HTTP only when asked to, and agents still need TLS', async () => {
    await using plain = await startControlPlane(undefined, { insecureLoopbackHttp: true })
    assert.match(plain.controlPlane.operatorUrl, /^http:\/\/127\.0\.0\.1:/)
    assert.match(plain.controlPlane.agentUrl, /^https:/)
    const secret = await plain.secretFor('viewer')
    assert.equal((await plain.call('GET', '/v1/status', { secret })).status, 200)
    assert.equal((await plain.call('GET', '/v1/status')).status, 401)
  })

  it('works off one Idempotency-Key once, however two requests with it overlap', async () => {
    await using ground = await testGround()
    const { token } = await createToken(
      {
        database: ground.database,
        changes: ground.changes,
        authority: { certificates: [randomBytes(9)] } as never,
        operatorUrl: () => 'https://x',
        now: ground.now,
      },
      'owner',
      { principal: 'anna', rights: [{ role: 'operator', site: '*' }] },
    )
    let reads = 0
    let done = 0
    const first = Promise.withResolvers<void>()
    const looked = Promise.withResolvers<void>()
    const routes = new Hono<AccessEnv>()
    routes.post('/v1/jobs/:id/retry', (c) => c.json({ done: (done += 1) }))
    const api = operatorApi({
      database: {
        ...ground.database,
        async read(query) {
          const found = await ground.database.read(query)
          reads += 1
          // Its token, then the answer it may have had: after that look this request is held up.
          if (reads !== 2) return found
          looked.resolve()
          await first.promise
          return found
        },
      },
      changes: ground.changes,
      events: createEvents(() => undefined),
      now: ground.now,
      routes: [routes],
    })
    const ask = () =>
      api.request('/v1/jobs/x/retry', {
        method: 'POST',
        headers: {
          authorization: `Bearer ${decodeToken('token', token).secret}`,
          'idempotency-key': 'once',
        },
      })
    const slow = ask()
    await looked.promise
    assert.equal((await ask()).status, 409)
    first.resolve()
    assert.equal((await slow).status, 200)
    assert.equal(done, 1)
    assert.equal((await ask()).headers.get('idempotency-replayed'), 'true')
  })

  it('makes no second token for an Idempotency-Key whose process died after the first', async () => {
    await using ground = await testGround()
    const authority = { certificates: [randomBytes(9)] } as never
    const { database, changes, now } = ground
    const { token } = await createToken(
      { database, changes, authority, operatorUrl: () => 'https://x', now },
      'owner',
      { principal: 'sam', rights: [{ role: 'security', site: '*' }] },
    )
    let made = 0
    let fails = false
    let dead = false
    const ask = () => {
      const routes = new Hono<AccessEnv>()
      routes.post('/v1/tokens', (c) => {
        if (fails) throw new SluiceError('request.invalid', 'no')
        dead = made === 0
        return c.json({ made: (made += 1) }, 201)
      })
      const write: typeof database.write = (change) =>
        dead ? Promise.reject(new Error('killed here')) : database.write(change)
      const events = createEvents(() => undefined)
      const api = operatorApi({
        database: { ...database, write },
        changes,
        events,
        now,
        routes: [routes],
      })
      const authorization = `Bearer ${decodeToken('token', token).secret}`
      const headers = { authorization, 'idempotency-key': 'once' }
      return api.request('/v1/tokens', { method: 'POST', headers })
    }
    fails = true
    assert.equal((await ask()).status, 400)
    fails = false
    assert.equal((await ask()).status, 500, 'what made nothing may be asked again')
    dead = false
    const again = await ask()
    assert.equal(again.status, 409)
    assert.match(await again.text(), /cut short/)
    assert.equal(made, 1)
  })

  it('gives the same answer to the same Idempotency-Key, and none to another request', async () => {
    const secret = await system.secretFor('security')
    const made = await system.call('POST', '/v1/tokens', {
      secret,
      body: { principal: 'temp', rights: [{ role: 'viewer', site: '*' }] },
      headers: { 'idempotency-key': 'once' },
    })
    assert.equal(made.status, 201)
    const path = `/v1/tokens/${String(made.json['id'])}/revoke`
    const headers = { 'idempotency-key': 'twice' }
    const first = await system.call('POST', path, { secret, body: {}, headers })
    system.advance(1000)
    const second = await system.call('POST', path, { secret, body: {}, headers })
    assert.equal(first.status, 200)
    assert.equal(second.headers['idempotency-replayed'], 'true')
    assert.equal(second.text, first.text)
    const other = await system.call('POST', path, { secret, body: { a: 1 }, headers })
    assert.deepEqual([other.status, other.json['code']], [409, 'request.conflict'])
  })

  it('never stores a secret, not even to repeat an answer', async () => {
    const secret = await system.secretFor('security')
    const ask = () =>
      system.call('POST', '/v1/tokens', {
        secret,
        body: { principal: 'kept', rights: [{ role: 'viewer', site: '*' }] },
        headers: { 'idempotency-key': 'secret' },
      })
    const made = await ask()
    const again = await ask()
    assert.deepEqual([again.status, again.json['code']], [409, 'request.conflict'])
    const { secret: text } = decodeToken('token', String(made.json['token']))
    const names = (await readdir(system.dataDir)).filter((name) => name.startsWith('sluice.db'))
    const pages = await Promise.all(names.map((name) => readFile(join(system.dataDir, name))))
    const holds = (needle: string) => pages.some((page) => page.includes(needle))
    assert.equal(holds('kept'), true, 'control: what is stored is found')
    assert.equal(holds(text), false)
    assert.equal(holds(String(made.json['token'])), false)
  })

  it('ends a token at once when it is revoked, and by itself when its time is over', async () => {
    const secret = await system.secretFor('security')
    const made = await system.call('POST', '/v1/tokens', {
      secret,
      body: { principal: 'short', rights: [{ role: 'viewer', site: '*' }], lifeMs: 60_000 },
    })
    const short = decodeToken('token', String(made.json['token'])).secret
    assert.equal((await system.call('GET', '/v1/status', { secret: short })).status, 200)
    await system.call('POST', `/v1/tokens/${String(made.json['id'])}/revoke`, { secret, body: {} })
    assert.equal((await system.call('GET', '/v1/status', { secret: short })).status, 401)

    const next = await system.call('POST', '/v1/tokens', {
      secret,
      body: { principal: 'short', lifeMs: 60_000 },
    })
    const timed = decodeToken('token', String(next.json['token'])).secret
    assert.equal((await system.call('GET', '/v1/status', { secret: timed })).status, 200)
    system.advance(60_001)
    assert.equal((await system.call('GET', '/v1/status', { secret: timed })).status, 401)
  })

  it('works off nothing of a token that was revoked before the request was whole', async () => {
    const chief = await system.secretFor('security')
    const { port } = new URL(system.controlPlane.operatorUrl)
    /** Sends all of a request but its last byte, which `finish` sends. */
    const begin = async (secret: string, body: string) => {
      const socket = tls.connect({ host: '127.0.0.1', port: Number(port), ca: system.ca })
      socket.on('error', () => undefined)
      let text = ''
      socket.on('data', (piece: Buffer) => (text += piece.toString()))
      await once(socket, 'secureConnect')
      socket.write(
        `POST /v1/join-tokens HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${secret}\r\n` +
          `content-type: application/json\r\ncontent-length: ${body.length}\r\n` +
          `connection: close\r\n\r\n${body.slice(0, -1)}`,
      )
      return async () => {
        socket.write(body.slice(-1))
        if (!socket.closed) await once(socket, 'close')
        return Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1])
      }
    }
    const body = JSON.stringify({ role: 'gpu', site: 'berlin', labels: {}, lifeMs: 60_000 })
    const statusOf = async (revoked: boolean) => {
      const principal = `slow-${revoked}`
      const rights = [{ role: 'operator', site: '*' }]
      const wanted = { secret: chief, body: { principal, rights } }
      const made = await system.call('POST', '/v1/tokens', wanted)
      const id = String(made.json['id'])
      const finish = await begin(decodeToken('token', String(made.json['token'])).secret, body)
      const untilMs = Date.now() + 20_000
      for (let seen = false; !seen;) {
        assert(Date.now() < untilMs, 'its head was never looked at')
        const all = await system.call('GET', '/v1/tokens?limit=100', { secret: chief })
        seen = all.json.items?.find((one) => one['id'] === id)?.['lastUsedAtMs'] !== undefined
      }
      if (revoked) await system.call('POST', `/v1/tokens/${id}/revoke`, { secret: chief, body: {} })
      return finish()
    }
    assert.equal(await statusOf(false), 201, 'control: as slow, and not revoked')
    assert.equal(await statusOf(true), 401)
  })

  it('keeps a principal within its sites', async () => {
    const berlin = await system.secretFor('security', 'berlin')
    const beyond = await system.call('POST', '/v1/tokens', {
      secret: berlin,
      body: { principal: 'mole', rights: [{ role: 'operator', site: '*' }] },
    })
    assert.deepEqual([beyond.status, beyond.json['code']], [403, 'access.forbidden'])
    const within = await system.call('POST', '/v1/tokens', {
      secret: berlin,
      body: { principal: 'bee', rights: [{ role: 'operator', site: 'berlin' }] },
    })
    assert.equal(within.status, 201)
    const operator = decodeToken('token', String(within.json['token'])).secret
    const paris = await system.call('POST', '/v1/join-tokens', {
      secret: operator,
      body: { role: 'capture', site: 'paris' },
    })
    assert.equal(paris.status, 403)
  })

  it('describes every route in its OpenAPI document', async () => {
    const { json } = await system.call('GET', '/v1/openapi.json')
    assert.equal(json['openapi'], '3.1.0')
    const paths = json['paths'] as Record<string, Record<string, unknown>>
    for (const { method, path } of routeRules)
      assert(paths[path.replace(':id', '{id}')]?.[method.toLowerCase()], `${method} ${path}`)
  })

  it('streams the events of one job, on from Last-Event-ID, and nothing of others', async () => {
    const [mine, other] = [newId(jobId, Date.now()), newId(jobId, Date.now())]
    const database = openDatabase(system.controlPlane.directory.database)
    const append = (job: typeof mine, to: string) =>
      database.write((tx) =>
        appendAudit(tx, {
          atMs: Date.now(),
          type: 'job.state-changed',
          actor: { kind: 'system' },
          site: 'berlin',
          jobId: job,
          detail: { to },
        }),
      )
    try {
      for (const to of ['announced', 'uploading']) {
        await append(other, to)
        await append(mine, to)
      }
      const login = {
        url: system.controlPlane.operatorUrl,
        ca: (
          await openAuthority(system.controlPlane.directory.authority, Date.now)
        ).certificates[0]!.toString('base64'),
        secret: await system.secretFor('viewer', 'berlin'),
      }
      await using client = apiClient(login)
      const over = new AbortController()
      const seen: string[] = []
      let lastId = '0'
      for await (const event of client.events(`/v1/jobs/${mine}/events`, {
        afterId: '0',
        signal: over.signal,
      })) {
        seen.push((JSON.parse(event.data) as { detail: { to: string } }).detail.to)
        lastId = event.id
        if (seen.length === 2) await append(mine, 'stored')
        if (seen.length === 3) break
      }
      assert.deepEqual(seen, ['announced', 'uploading', 'stored'])
      await append(mine, 'leased')
      for await (const event of client.events(`/v1/jobs/${mine}/events`, {
        afterId: lastId,
        signal: over.signal,
      })) {
        assert.match(event.data, /"leased"/)
        break
      }
      over.abort()
      const headers = { authorization: `Bearer ${login.secret}` }
      await using hasty = new AsyncDisposableStack()
      const dispatcher = hasty.adopt(new Agent({ connect: { ca: system.ca } }), (agent) =>
        agent.destroy(),
      )
      const events = `${system.controlPlane.operatorUrl}/v1/jobs/${mine}/events`
      for (let heads = 0; heads <= limits.eventStreamsMax; heads += 1) {
        const head = await request(events, { method: 'HEAD', dispatcher, headers })
        await head.body.dump()
        assert.equal(head.statusCode, 200, 'a HEAD holds no stream')
      }
      await using stranger = apiClient({
        ...login,
        secret: await system.secretFor('viewer', 'paris'),
      })
      const foreign = stranger.events(`/v1/jobs/${mine}/events`, {
        afterId: '0',
        signal: AbortSignal.timeout(10_000),
      })
      await assert.rejects(foreign.next(), { code: 'job.not_found' })
    } finally {
      await database[Symbol.asyncDispose]()
    }
  })

  it('finds the audit chain whole after all this', async () => {
    const secret = await system.secretFor('security')
    const { json } = await system.call('GET', '/v1/audit/verify', { secret })
    assert.equal(json['whole'], true)
    const page = await system.call('GET', '/v1/audit?limit=2', { secret })
    assert.equal(page.json.items?.length, 2)
    const next = await system.call('GET', `/v1/audit?limit=2&after=${String(page.json['next'])}`, {
      secret,
    })
    assert.equal(next.json.items?.[0]?.['seq'], 3)
  })
})

describe('joining', () => {
  const ask = (body: unknown) => system.call('POST', '/v1/join', { body })

  it('gives an agent a certificate of at most a day for its own key', async () => {
    const agent = await joinedAgent(system, 'capture')
    const [leaf] = agent.chain
    const certificate = new X509Certificate(Buffer.from(leaf ?? '', 'base64'))
    const lifeMs = certificate.validToDate.getTime() - certificate.validFromDate.getTime()
    assert(lifeMs <= limits.certificateMs)
    assert.equal(certificate.subject, `CN=${agent.agentId}`)
    assert.equal(certificate.subjectAltName, `URI:sluice://agent/capture/${agent.agentId}`)
    assert.equal(certificate.publicKey.asymmetricKeyType, 'ed25519')
    assert.match(await askAgentListener(agent), /^HTTP\/1\.1 404 /)
  })

  it('serves one agent: another key is refused, the same key gets its answer again', async () => {
    const { token } = await system.joinToken({ role: 'gpu' })
    const { secret } = decodeToken('join', token)
    const [first, second] = [await newIdentity(), await newIdentity()]
    const joined = await ask({ token: secret, csr: first.csr })
    assert.equal(joined.status, 201)
    const reused = await ask({ token: secret, csr: second.csr })
    assert.deepEqual([reused.status, reused.json['code']], [403, 'join.refused'])
    const again = await ask({ token: secret, csr: first.csr })
    assert.deepEqual([again.status, again.json['agentId']], [201, joined.json['agentId']])
  })

  it('renews by key alone what was joined, and nothing else', async () => {
    const renew = (csr: string) => system.call('POST', '/v1/renew', { body: { csr } })
    const { token } = await system.joinToken({ role: 'gpu' })
    const { secret } = decodeToken('join', token)
    const [joined, stranger] = [await newIdentity(), await newIdentity()]
    const { json } = await ask({ token: secret, csr: joined.csr })
    const renewed = await renew(joined.csr)
    assert.equal(renewed.status, 201)
    const [leaf] = renewed.json['chain'] as string[]
    const certificate = new X509Certificate(Buffer.from(leaf ?? '', 'base64'))
    assert.equal(certificate.subject, `CN=${String(json['agentId'])}`)
    const refused = await renew(stranger.csr)
    assert.deepEqual([refused.status, refused.json['code']], [403, 'join.refused'])
  })

  it('refuses an expired, revoked, unknown or other role’s token', async () => {
    const { csr } = await newIdentity()
    const refused = async (body: object) => {
      const { status, json } = await ask({ csr, ...body })
      assert.deepEqual([status, json['code']], [403, 'join.refused'])
    }
    await refused({ token: randomBytes(32).toString('base64url') })

    const gpu = await system.joinToken({ role: 'gpu' })
    const gpuSecret = decodeToken('join', gpu.token).secret
    await refused({ token: gpuSecret, role: 'capture' })
    assert.equal((await ask({ csr, token: gpuSecret, role: 'gpu' })).status, 201, 'control')

    const revoked = await system.joinToken({ role: 'gpu' })
    const secret = await system.secretFor('security')
    await system.call('POST', `/v1/join-tokens/${revoked.id}/revoke`, { secret, body: {} })
    await refused({ token: decodeToken('join', revoked.token).secret })

    const expired = await system.joinToken({ role: 'gpu', lifeMs: 1000 })
    system.advance(1000)
    await refused({ token: decodeToken('join', expired.token).secret })
  })

  it('refuses a request that its own Ed25519 key did not sign, and keeps the token', async () => {
    const { token } = await system.joinToken({ role: 'gpu' })
    const { secret } = decodeToken('join', token)
    const { csr } = await newIdentity()
    const forged = Buffer.from(csr, 'base64')
    forged[forged.length - 1] = (forged.at(-1) ?? 0) ^ 1
    for (const bad of [forged.toString('base64'), Buffer.from('junk').toString('base64')]) {
      const answer = await ask({ token: secret, csr: bad })
      assert.deepEqual([answer.status, answer.json['code']], [400, 'request.invalid'])
    }
    assert.equal((await ask({ token: secret, csr })).status, 201)
  })

  it('keeps the token good when the name is taken', async () => {
    const agent = await joinedAgent(system, 'capture')
    const { token } = await system.joinToken({ role: 'capture' })
    const { secret } = decodeToken('join', token)
    const { csr } = await newIdentity()
    const taken = await ask({ token: secret, csr, name: agent.name })
    assert.deepEqual([taken.status, taken.json['code']], [409, 'request.conflict'])
    assert.equal((await ask({ token: secret, csr, name: 'free-name' })).status, 201)
  })
})

describe('agent listener', () => {
  let agent: JoinedAgent
  before(async () => {
    agent = await joinedAgent(system, 'gpu')
  })

  it('lets a joined agent in, and nobody without a certificate', async () => {
    assert.match(await askAgentListener(agent), /^HTTP\/1\.1 404 [\s\S]*request\.not_found/)
    assert.match(await askAgentListener({}), /ERR_SSL|ECONNRESET|closed/)
  })

  it('refuses TLS 1.2 even with a good certificate', async () => {
    assert.match(await askAgentListener({ ...agent, maxVersion: 'TLSv1.2' }), /ERR_SSL/)
  })

  it('refuses a certificate of a foreign authority with the same names', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-foreign-'))
    try {
      const foreign = await openAuthority(folder, Date.now)
      const identity = await newIdentity()
      const publicKey = createPublicKey(identity.privateKey).export({ format: 'der', type: 'spki' })
      const issued = await foreign.issueAgent({ agentId: agent.agentId, role: 'gpu', publicKey })
      const chain = issued.chain.map((der) => der.toString('base64'))
      const answer = await askAgentListener(tlsOf({ ...agent, chain }, identity))
      assert.match(answer, /ERR_SSL|ECONNRESET|closed/)
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  it('refuses our own certificate for a key or an agent that never joined', async () => {
    const identity = await newIdentity()
    const publicKey = createPublicKey(identity.privateKey).export({ format: 'der', type: 'spki' })
    const authority = await openAuthority(system.controlPlane.directory.authority, Date.now)
    for (const id of [agent.agentId, newId(agentId, Date.now())]) {
      const issued = await authority.issueAgent({ agentId: id, role: 'gpu', publicKey })
      const chain = issued.chain.map((der) => der.toString('base64'))
      const answer = await askAgentListener(tlsOf({ ...agent, chain }, identity))
      assert.match(answer, /^HTTP\/1\.1 403 [\s\S]*identity\.unknown/)
    }
  })

  it('shuts a revoked agent out: its open connection at once, and every later one', async () => {
    const { port } = new URL(system.controlPlane.agentUrl)
    const open = tls.connect({ host: '127.0.0.1', port: Number(port), ca: system.ca, ...agent })
    open.on('error', () => undefined)
    await once(open, 'secureConnect')
    // A later connection that was answered: this one is admitted and remembered by then.
    const sessions: Buffer[] = []
    await askAgentListener(agent, '/v1/nothing', (session) => sessions.push(session))
    const closed = once(open, 'close')
    const secret = await system.secretFor('security')
    const answer = await system.call('POST', `/v1/agents/${agent.agentId}/revoke`, {
      secret,
      body: {},
    })
    assert.equal(answer.status, 200)
    await closed
    assert.match(await askAgentListener(agent), /^HTTP\/1\.1 403 [\s\S]*identity\.revoked/)
    assert(sessions.length > 0, 'control: there is a session to resume')
    for (const session of sessions)
      assert.match(await askAgentListener({ ...agent, session }), /403 [\s\S]*identity\.revoked/)
    assert.match(await askAgentListener(agent, '/v1/channel'), /403 [\s\S]*identity\.revoked/)
  })
})

describe('data directory', () => {
  it('is open to nobody else, and neither are keys and sockets in it', async () => {
    const { directory } = system.controlPlane
    const mode = async (path: string) => ((await stat(path)).mode & 0o777).toString(8)
    assert.equal(await mode(directory.root), '700')
    assert.equal(await mode(directory.authority), '700')
    assert.equal(await mode(join(directory.authority, 'current.key')), '600')
    assert.equal(await mode(directory.adminSocket), '600')
  })

  it('serves one control plane at a time', async () => {
    await assert.rejects(startControlPlane(system.dataDir), { code: 'request.conflict' })
    const { directory } = system.controlPlane
    await using owner = adminClient(directory.adminSocket)
    assert(owner, 'control: the first one still answers its owner')
    assert.equal((await system.call('GET', '/healthz')).status, 200)
  })

  it('serves one of two that start at the same moment', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-two-'))
    try {
      const both = await Promise.allSettled([startControlPlane(folder), startControlPlane(folder)])
      const [running, ...others] = both.filter((one) => one.status === 'fulfilled')
      const refused = both.find((one) => one.status === 'rejected')
      assert.equal(others.length, 0)
      assert(isSluiceError(refused?.reason, 'request.conflict'))
      await running?.value[Symbol.asyncDispose]()
      await using again = await startControlPlane(folder)
      assert(again, 'the lock ends with its process')
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  it('goes on as a copy of the same control plane, and not on the objects of another', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-claimed-'))
    const [first, second] = [join(folder, 'first'), join(folder, 'second')]
    try {
      {
        await using one = await startControlPlane(first)
        await using other = await startControlPlane(second)
        assert(one && other)
      }
      const copy = join(folder, 'copy')
      await cp(first, copy, { recursive: true, filter: (path) => !path.endsWith('.sock') })
      {
        await using restored = await startControlPlane(copy)
        assert(restored, 'control: it is the same one')
      }
      await rm(join(first, 'objects'), { recursive: true })
      await cp(join(second, 'objects'), join(first, 'objects'), { recursive: true })
      await assert.rejects(startControlPlane(first), (error) => {
        assert(isSluiceError(error, 'store.claimed'))
        return /objects.* is that of control plane/.test(error.message)
      })
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  it('starts again as the same control plane, and not with modes that let others in', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-again-'))
    try {
      let sha256: string
      let secret: string
      {
        await using first = await startControlPlane(folder)
        sha256 = first.controlPlane.caSha256
        assert.equal(first.controlPlane.unclaimed, true)
        secret = await first.secretFor('viewer')
      }
      {
        await using second = await startControlPlane(folder)
        assert.equal(second.controlPlane.caSha256, sha256)
        assert.equal(second.controlPlane.unclaimed, false)
        assert.equal((await second.call('GET', '/v1/status', { secret })).status, 200)
      }
      await chmod(join(folder, 'authority'), 0o755)
      await assert.rejects(startControlPlane(folder), { code: 'host.unsafe_file' })
      await chmod(join(folder, 'authority'), 0o700)
      await chmod(join(folder, 'authority', 'current.key'), 0o640)
      await assert.rejects(startControlPlane(folder), { code: 'host.unsafe_file' })
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})
