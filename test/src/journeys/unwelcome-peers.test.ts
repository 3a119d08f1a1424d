/**
 * Peers that should not be let in, or that misuse what lets them in: wrong tokens, wrong certificates,
 * wrong frames, wrong requests. Each is refused with its code, and in the end the same process that
 * was bothered all the time carries a job as if nothing had happened.
 */

import assert from 'node:assert/strict'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join as joinPath } from 'node:path'
import { after, before, describe, it } from 'node:test'
import type { ConnectionOptions } from 'node:tls'

import { join } from '@sluice/agent/enrol'
import type { RenewableIdentity } from '@sluice/agent/enrol'
import { makeAuthority } from '@sluice/agent/throwaway-authority'
import { openAuthority } from '@sluice/control-plane/access/authority'
import { decodeToken } from '@sluice/protocol/api'
import type { Role, TokenContent } from '@sluice/protocol/api'
import { isSluiceError } from '@sluice/protocol/errors'
import { agentId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { Agent, request } from 'undici'

import { lookAtHost } from '../demo/host.ts'
import { connectByHand, helloOf, joinByHand, offerOf } from '../tools/fake-agent.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { fleetSite, startFleet } from '../tools/fleet.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'
import { openTls, sayOverTls } from '../tools/raw-tls.ts'

/** Connections that begin a request and never go on. */
const slowConnections = 40
/** Frames sent at once; at the rate of a link they take more than a minute. */
const floodFrames = 20 * limits.messagesBurstMax

describe('peers that are not welcome', { timeout: 110_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let node: FleetAgent
  let good: RenewableIdentity
  let ca: string
  let pid: number
  let cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    await using making = new AsyncDisposableStack()
    fleet = making.use(await startFleet({ name: 'peers', controlPlane: { allowSwap: host.swap } }))
    pid = fleet.controlPlane.pid
    const config = { isolation: host.isolation, allowSwap: host.swap }
    capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    node = await fleet.addAgent({ name: 'node', role: 'gpu', config })
    good = await joinByHand(fleet, { name: 'good', role: 'gpu' })
    ca = good.authorities().join('\n')
    cleanup = making.move()
  })
  after(() => cleanup.disposeAsync())

  const toAgents = (more: ConnectionOptions = {}): ConnectionOptions => ({
    host: '127.0.0.1',
    port: Number(new URL(fleet.controlPlane.agentUrl).port),
    servername: 'localhost',
    ca,
    minVersion: 'TLSv1.3',
    ...more,
  })
  const asGood = (more: ConnectionOptions = {}) => toAgents({ ...good.tlsOptions(), ...more })
  const question = 'GET /v1/nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n'

  async function joinText(more: object = {}): Promise<string> {
    const body = { role: 'gpu', site: fleetSite, ...more }
    return ((await fleet.ask('/v1/join-tokens', { body })) as { token: string }).token
  }
  const joinToken = async (more?: object) => decodeToken('join', await joinText(more))
  const tryJoin = (token: TokenContent) =>
    join({ stateDir: joinPath(fleet.root, 'tmp', randomBytes(6).toString('hex')), token })

  describe('with a join token', () => {
    const refused = (code: string, about: RegExp) => (error: unknown) =>
      isSluiceError(error) && error.code === code && about.test(error.message)

    it('that was used, has expired, was revoked or guessed are refused', async () => {
      const used = await joinToken()
      await tryJoin(used)
      await assert.rejects(tryJoin(used), refused('join.refused', /used already/))
      const short = await joinToken({ lifeMs: 1 })
      await assert.rejects(tryJoin(short), refused('join.refused', /expired/))
      const guessed = { ...used, secret: randomBytes(32).toString('base64url') }
      await assert.rejects(tryJoin(guessed), refused('join.refused', /./))
    })

    it('of another authority never get to send it', async () => {
      const { der } = await makeAuthority()
      const token = { ...(await joinToken()), ca: der }
      await assert.rejects(tryJoin(token), refused('join.wrong_authority', /./))
      // The control: the same token with its own authority is still good.
      const again = { ...token, ca: (await joinToken()).ca }
      assert.equal((await tryJoin(again)).role, 'gpu')
    })

    it('are told by the command line in two lines and exit code 3', async () => {
      const text = await joinText()
      await tryJoin(decodeToken('join', text))
      const file = joinPath(fleet.root, 'tokens', 'used.join')
      await writeFile(file, text, { mode: 0o600 })
      const stateDirectory = joinPath(fleet.root, 'late-comer')
      const where = ['--state-dir', stateDirectory, '--token-file', file]
      const ended = await capture.command(['join', ...where])
      assert.equal(ended.code, 3)
      assert.match(ended.stderr, /^error: .*join\.refused\)\nhint: .*\n$/)
    })
  })

  describe('with a certificate', () => {
    it('that is ours get an answer: the control', async () => {
      assert.match(await sayOverTls(asGood(), question), /^HTTP\/1\.1 404 [^]*request\.not_found/)
    })

    it('that is missing, or of a foreign authority, do not get through the handshake', async () => {
      const foreign = await (
        await makeAuthority()
      ).identity({
        agentUrl: good.agentUrl,
        role: 'gpu',
        id: good.agentId,
      })
      const { key, cert } = foreign.tlsOptions()
      assert.match(await sayOverTls(toAgents(), question), /^(ERR_SSL|ECONNRESET|closed)/)
      assert.match(
        await sayOverTls(toAgents({ key, cert }), question),
        /^(ERR_SSL|ECONNRESET|closed)/,
      )
    })

    it('of ours for an agent that nobody knows are refused', async () => {
      const { privateKey, publicKey } = generateKeyPairSync('ed25519')
      const folder = joinPath(fleet.controlPlane.dataDirectory, 'authority')
      const authority = await openAuthority(folder, Date.now)
      const spki = publicKey.export({ format: 'der', type: 'spki' })
      const key = privateKey.export({ format: 'pem', type: 'pkcs8' })
      for (const id of [good.agentId, newId(agentId, Date.now())]) {
        const issued = await authority.issueAgent({ agentId: id, role: 'gpu', publicKey: spki })
        const cert = issued.chain.map(pemOf).join('\n')
        const said = await sayOverTls(toAgents({ key, cert }), question)
        assert.match(said, /^HTTP\/1\.1 403 [^]*identity\.unknown/)
      }
    })

    it('but an older TLS than 1.3 are refused', async () => {
      const old = asGood({ minVersion: 'TLSv1.2', maxVersion: 'TLSv1.2' })
      assert.match(await sayOverTls(old, question), /^ERR_SSL/)
    })

    it('that was revoked are out at once: live link, new connection, resumed session', async () => {
      const identity = await joinByHand(fleet, { name: 'revoked', role: 'gpu' })
      const asRevoked = (more: ConnectionOptions = {}) =>
        toAgents({ ...identity.tlsOptions(), ...more })
      let session: Buffer | undefined
      await sayOverTls(asRevoked(), question, (one) => (session = one))
      assert.ok(session)
      // The control: that session is resumed as long as its agent is welcome.
      const resumed = await openTls(asRevoked({ session }))
      assert.ok(resumed.isSessionReused())
      resumed.destroy()

      await using link = await connectByHand(identity, { offer: offerOf() })
      await fleet.ask(`/v1/agents/${identity.agentId}/revoke`, { role: 'security', body: {} })
      const { goodbye } = await link.ended
      assert.equal(goodbye?.code, 'identity.revoked')
      for (const how of [asRevoked(), asRevoked({ session })])
        assert.match(await sayOverTls(how, question), /^HTTP\/1\.1 403 [^]*identity\.revoked/)
      await assert.rejects(connectByHand(identity), /403/)
    })
  })

  describe('with frames', () => {
    const text = (message: unknown) => JSON.stringify(message)
    const requestId = '01900000-0000-7000-8000-000000000000'
    const ask = (type: string, body: unknown) =>
      text({ type: 'request', requestId, request: type, body })
    const tooDeep = `${'['.repeat(100_000)}${']'.repeat(100_000)}`

    const afterHello: Record<string, { frame: string | Buffer; code?: string; close: number }> = {
      'beyond the size of a frame': {
        frame: Buffer.alloc(limits.frameBytesMax + 1),
        close: 1009,
      },
      'beyond the size of a message': {
        frame: text({ type: 'heartbeat', filler: 'x'.repeat(limits.messageBytesMax) }),
        code: 'channel.too_large',
        close: 1009,
      },
      'that are no JSON': { frame: 'hello?', code: 'channel.malformed', close: 1008 },
      'that are random bytes': {
        frame: Buffer.concat([Buffer.from([255, 255, 255, 255]), randomBytes(500)]),
        code: 'channel.malformed',
        close: 1008,
      },
      'that nest without end': { frame: tooDeep, code: 'channel.malformed', close: 1008 },
      'of an unknown type': {
        frame: text({ type: 'shutdown' }),
        code: 'channel.malformed',
        close: 1008,
      },
      'with a field too many': {
        frame: text({ type: 'heartbeat', atMs: 1, leases: [], admin: true }),
        code: 'channel.malformed',
        close: 1008,
      },
      'that lack their attachment': {
        frame: ask('lease.result', {
          ...{ jobId: requestId, leaseId: requestId, fence: 1 },
          sealedResultSha256: 'ab'.repeat(32),
        }),
        code: 'channel.malformed',
        close: 1008,
      },
    }
    for (const [what, { frame, code, close }] of Object.entries(afterHello))
      it(`${what} lose their link`, async () => {
        await using link = await connectByHand(good, { offer: offerOf() })
        link.sendRaw(frame)
        const end = await link.ended
        assert.equal(end.goodbye?.code, code)
        assert.equal(end.code, close)
      })

    it('that say anything before hello, or hello twice, lose their link', async () => {
      await using early = await connectByHand(good, { hello: null })
      early.sendRaw(text({ type: 'heartbeat', atMs: 1, leases: [] }))
      assert.equal((await early.ended).goodbye?.code, 'channel.malformed')
      await using twice = await connectByHand(good, { offer: offerOf() })
      twice.sendRaw(text(helloOf(good, offerOf())))
      assert.equal((await twice.ended).goodbye?.code, 'channel.malformed')
    })

    it('that ask what they may not, or in another shape, get a refusal and keep their link', async () => {
      await using link = await connectByHand(good, { offer: offerOf() })
      const notMine = await link.request('receive-keys.request', { stock: 0 })
      assert.equal(notMine.problem?.code, 'access.forbidden')
      const misshaped = await link.request('lease.accept', { jobId: 'x' })
      assert.equal(misshaped.problem?.code, 'request.invalid')
      const unknown = { jobId: requestId, leaseId: requestId, fence: 1 }
      assert.equal((await link.request('lease.accept', unknown)).problem?.code, 'lease.stale')
    })

    it('without end are slowed down, and others are served meanwhile', async () => {
      const flooding = await joinByHand(fleet, { name: 'flooding', role: 'gpu' })
      await using flood = await connectByHand(flooding, { offer: offerOf() })
      const beat = text({ type: 'heartbeat', atMs: 1, leases: [] })
      for (let sent = 0; sent < floodFrames; sent += 1) flood.sendRaw(beat)
      await waitFor('the burst to be answered', 20_000, async () =>
        flood.beats.length >= limits.messagesBurstMax ? true : undefined,
      )
      await using link = await connectByHand(good, { offer: offerOf() })
      await link.beat()
      assert.equal((await fleet.call('/v1/status')).status, 200)
      assert.ok(flood.beats.length < floodFrames, 'the flood is held back')
    })
  })

  describe('with requests to the API', () => {
    let dispatcher: Agent
    before(() => {
      dispatcher = new Agent({ connect: { ca, servername: 'localhost' } })
    })
    after(() => dispatcher.close())

    async function post(
      path: string,
      body: string | Buffer,
      more: { role?: Role; authorization?: string; type?: string } = {},
    ): Promise<string> {
      const { role = 'operator', type = 'application/json' } = more
      const token = decodeToken('token', await readFile(await fleet.tokenFile(role), 'utf8'))
      const answer = await request(new URL(path, fleet.controlPlane.operatorUrl), {
        ...{ method: 'POST', dispatcher, body },
        headers: {
          authorization: more.authorization ?? `Bearer ${token.secret}`,
          'content-type': type,
        },
      })
      const { code } = (await answer.body.json()) as { code?: string }
      return `${answer.statusCode} ${code}`
    }
    const body = JSON.stringify({ role: 'gpu', site: fleetSite })

    it('are refused with the code that says why', async () => {
      const path = '/v1/join-tokens'
      const refusals: Record<string, [string, Promise<string>]> = {
        'no token': ['401 access.unauthenticated', post(path, body, { authorization: '' })],
        'a guess': [
          '401 access.unauthenticated',
          post(path, body, { authorization: `Bearer ${randomBytes(32).toString('base64url')}` }),
        ],
        'the wrong role': ['403 access.forbidden', post(path, body, { role: 'viewer' })],
        'no JSON': ['400 request.invalid', post(path, '{"role":')],
        'an unknown field': [
          '400 request.invalid',
          post(path, body.replace('}', ',"admin":true}')),
        ],
        'a wrong type': ['400 request.invalid', post(path, '{"role":["gpu"],"site":"demo"}')],
        'another media type': ['400 request.invalid', post(path, body, { type: 'text/plain' })],
        'too much': [
          '413 request.too_large',
          post(path, JSON.stringify({ filler: 'x'.repeat(limits.requestBodyBytesMax) })),
        ],
        'an unknown route': ['404 request.not_found', post('/v1/shutdown', '{}')],
      }
      for (const [what, [expected, answered]] of Object.entries(refusals))
        assert.equal(await answered, expected, what)
    })
  })

  it('do not keep a good job from its end', async () => {
    const opening = Array.from({ length: slowConnections }, async (_, index) => {
      const socket = await openTls(index % 2 === 0 ? asGood() : toOperators())
      socket.write('POST /v1/join HTTP/1.1\r\nhost: localhost\r\ncontent-le')
      return socket
    })
    // On a busy machine some may be dropped in the handshake already; that is no harm.
    const slow = (await Promise.allSettled(opening)).flatMap((one) =>
      one.status === 'fulfilled' ? [one.value] : [],
    )
    assert.ok(slow.length > 0)
    const raw = await sayOverTls(asGood(), randomBytes(2000))
    assert.match(raw, /^(HTTP\/1\.1 400|ECONNRESET|closed)/)
    await Promise.all([capture.start(), node.start()])
    const file = await makePicture(joinPath(fleet.root, 'tmp'), 'good')
    const [jobId] = await submitEach(capture, [file])
    assert.ok(jobId)
    await fleet.waitForState(jobId, ['deleted'], 60_000)
    for (const socket of slow) socket.destroy()
    assert.equal(fleet.controlPlane.pid, pid, 'it was never started again')
    const verdict = await fleet.ask('/v1/audit/verify', { role: 'security' })
    assert.equal((verdict as { whole: boolean }).whole, true)
  })

  function toOperators(): ConnectionOptions {
    return toAgents({ port: Number(new URL(fleet.controlPlane.operatorUrl).port) })
  }
})

function pemOf(der: Buffer): string {
  const lines = der.toString('base64').match(/.{1,64}/g) ?? []
  return ['-----BEGIN CERTIFICATE-----', ...lines, '-----END CERTIFICATE-----', ''].join('\n')
}
