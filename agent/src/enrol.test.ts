/** Proves how a host joins, keeps its key and renews its certificate. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { type Server, createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { decodeToken, encodeToken } from '@sluice/protocol/api'
import { isSluiceError } from '@sluice/protocol/errors'
import { agentId, obligationId, revocationId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import type { CommandOf } from './control-link.ts'
import { adoptAuthorities } from './adopt-authorities.ts'
import { join, keepCertificateFresh, openIdentity } from './enrol.ts'
import { type ThrowawayAuthority, makeAuthority } from './throwaway-authority.ts'

let authority: ThrowawayAuthority
let server: Server
let folder: string
let url: string
let bodies: { path: string | undefined; body: { csr: string; token?: string } }[]
let lifeMs: number

beforeEach(async () => {
  authority = await makeAuthority()
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-enrol-'))
  bodies = []
  lifeMs = 3_600_000
  const id = newId(agentId, 1)
  const { key, cert } = await authority.server()
  async function answer(where: string | undefined, chunks: AsyncIterable<unknown>) {
    let text = ''
    for await (const chunk of chunks) text += String(chunk)
    const body = JSON.parse(text) as { csr: string; token?: string }
    bodies.push({ path: where, body })
    const chain = [await authority.answerRequest(body.csr, id, lifeMs), authority.der]
    const issued = { chain, authorities: [authority.der] }
    const facts = {
      agentId: id,
      name: 'here',
      role: 'capture',
      site: 'lab',
      labels: {},
      agentUrl: url,
    }
    return JSON.stringify(where === '/v1/join' ? { ...facts, ...issued } : issued)
  }
  server = createServer({ key, cert, minVersion: 'TLSv1.3' }, (request, response) => {
    void answer(request.url, request).then((text) => response.end(text))
  })
  await new Promise<void>((done) => void server.listen(0, '127.0.0.1', done))
  url = `https://127.0.0.1:${(server.address() as AddressInfo).port}`
})
afterEach(async () => {
  server.closeAllConnections()
  await new Promise((done) => void server.close(done))
  await rm(folder, { recursive: true })
})

function token(ca = authority.der): string {
  return encodeToken('join', { url, ca, secret: Buffer.alloc(32, 7).toString('base64url') })
}

describe('join', () => {
  it('makes the key here, keeps it private, and is there after a restart', async () => {
    const joined = await join({ stateDir: folder, token: decodeToken('join', token()) })
    const opened = await openIdentity(folder)
    assert.equal(opened.agentId, joined.agentId)
    assert.equal(opened.keyId, joined.keyId)
    assert.equal((await stat(path.join(folder, 'identity-key.pem'))).mode & 0o777, 0o600)
    const key = await readFile(path.join(folder, 'identity-key.pem'), 'utf8')
    const sent = JSON.stringify(bodies)
    assert.ok(!sent.includes(key.split('\n')[1]!), 'the key never leaves')
  })

  it('sends nothing to a server that is not under the authority of the token', async () => {
    const other = await makeAuthority()
    await assert.rejects(
      join({ stateDir: folder, token: decodeToken('join', token(other.der)) }),
      (error) => isSluiceError(error, 'join.wrong_authority'),
    )
    assert.equal(bodies.length, 0)
    await assert.rejects(openIdentity(folder), (error) => isSluiceError(error, 'identity.missing'))
  })

  it('refuses to join twice', async () => {
    await join({ stateDir: folder, token: decodeToken('join', token()) })
    await assert.rejects(join({ stateDir: folder, token: decodeToken('join', token()) }), (error) =>
      isSluiceError(error, 'request.conflict'),
    )
  })
})

describe('keepCertificateFresh', () => {
  it('renews with the same key over the link, and connects anew', async () => {
    lifeMs = 1000
    const identity = await join({ stateDir: folder, token: decodeToken('join', token()) })
    const [before, keyId] = [identity.notAfterMs(), identity.keyId]
    lifeMs = 3_600_000
    const ending = new AbortController()
    const request = async (_type: string, body: { csr: string }) => {
      const chain = [await authority.answerRequest(body.csr, identity.agentId), authority.der]
      return { body: { chain, authorities: [authority.der] } }
    }
    await keepCertificateFresh({
      identity,
      link: { request: request as never, reconnect: () => ending.abort() },
      signal: ending.signal,
      events: { certificateRenewed() {}, renewalFailed: (error) => assert.fail(error) },
      now: () => identity.renewAtMs(),
    })
    assert.ok(identity.notAfterMs() > before)
    assert.equal(identity.generation(), 2)
    const opened = await openIdentity(folder)
    assert.equal(opened.keyId, keyId)
    assert.equal(opened.notAfterMs(), identity.notAfterMs())
  })

  it('renews an expired certificate at the operator listener', async () => {
    const identity = await join({ stateDir: folder, token: decodeToken('join', token()) })
    const expiredAtMs = identity.notAfterMs()
    lifeMs = 7_200_000
    const ending = new AbortController()
    await keepCertificateFresh({
      identity,
      link: {
        request: () => assert.fail('an expired certificate opens no link'),
        reconnect: () => ending.abort(),
      },
      signal: ending.signal,
      events: { certificateRenewed() {}, renewalFailed: (error) => assert.fail(error) },
      now: () => expiredAtMs,
    })
    assert.deepEqual(
      bodies.map((each) => each.path),
      ['/v1/join', '/v1/renew'],
    )
    assert.ok(identity.notAfterMs() > expiredAtMs)
  })
})

describe('a change of authorities', () => {
  type Order = CommandOf<'authorities'>
  const orderOf = (authorities: string[]): Order => ({
    ...{ type: 'authorities', authorities },
    ...{ revocationId: newId(revocationId, 1), obligationId: newId(obligationId, 1) },
  })

  it('trusts the new set durably, and none without one that was trusted before', async () => {
    const identity = await join({ stateDir: folder, token: decodeToken('join', token()) })
    const second = await makeAuthority()
    const foreign = (error: unknown) => isSluiceError(error, 'join.wrong_authority')
    await assert.rejects(identity.trust([second.der]), foreign)
    const leaf = identity.certificate().toString('base64')
    await assert.rejects(identity.trust([authority.der, leaf]), foreign, 'a leaf is no authority')
    assert.equal(identity.authorities().length, 1)
    await identity.trust([authority.der, second.der])
    assert.equal((await openIdentity(folder)).authorities().length, 2)
    assert.equal((await stat(path.join(folder, 'identity.json'))).mode & 0o777, 0o600)
    await identity.trust([second.der])
    assert.deepEqual((await openIdentity(folder)).authorities().length, 1)
  })

  it('is done in the end wherever it was cut off, and said once all of it is done', async () => {
    const joined = await join({ stateDir: folder, token: decodeToken('join', token()) })
    const second = await makeAuthority()
    const both = [authority.der, second.der]
    const order = orderOf(both)
    const asked: { type: string; body: unknown }[] = []
    /** Requests that are answered before the agent is gone. */
    async function liveFor(answers: number): Promise<boolean> {
      const identity = await openIdentity(folder)
      let carry: ((order: Order, signal: AbortSignal) => Promise<void>) | undefined
      let left = answers
      const link = {
        onCommand: (_: string, run: never) => void (carry = run),
        reconnect() {},
        async request(type: string, body: { csr: string }) {
          if (left === 0) throw new Error('killed')
          left -= 1
          asked.push({ type, body })
          if (type !== 'certificate.renew') return { body: {} }
          const leaf = await second.answerRequest(body.csr, identity.agentId)
          return { body: { chain: [leaf, second.der], authorities: both } }
        },
      }
      adoptAuthorities({
        ...{ link: link as never, identity },
        events: { authoritiesAdopted() {} },
      })
      return await carry!(order, new AbortController().signal).then(
        () => true,
        () => false,
      )
    }
    assert.equal(await liveFor(0), false)
    assert.equal((await openIdentity(folder)).authorities().length, 2)
    assert.equal(await liveFor(1), false)
    const renewed = await openIdentity(folder)
    assert.notDeepEqual(renewed.certificate(), joined.certificate())
    assert.ok(!asked.some(({ type }) => type === 'authorities.adopted'), 'not said before')
    assert.equal(await liveFor(2), true)
    const hashes = both.map((der) =>
      createHash('sha256').update(Buffer.from(der, 'base64')).digest('hex'),
    )
    assert.deepEqual(asked.at(-1), {
      type: 'authorities.adopted',
      body: {
        ...{ revocationId: order.revocationId, obligationId: order.obligationId },
        authorities: hashes,
      },
    })
  })

  it('lets an expired certificate be renewed by a control plane under the new one', async () => {
    const identity = await join({ stateDir: folder, token: decodeToken('join', token()) })
    const second = await makeAuthority()
    const { key, cert } = await second.server()
    server.setSecureContext({ key, cert, minVersion: 'TLSv1.3' })
    lifeMs = 7_200_000
    const ending = new AbortController()
    const refusals: string[] = []
    const renew = () =>
      keepCertificateFresh({
        identity,
        link: { request: () => assert.fail('expired'), reconnect: () => ending.abort() },
        signal: ending.signal,
        events: {
          certificateRenewed() {},
          renewalFailed(error) {
            refusals.push(error.code)
            ending.abort()
          },
        },
        now: () => identity.notAfterMs(),
      })
    await renew()
    assert.deepEqual(refusals, ['join.wrong_authority'], 'the control: it was not trusted before')
    await identity.trust([authority.der, second.der])
    const again = new AbortController()
    await keepCertificateFresh({
      identity,
      link: { request: () => assert.fail('expired'), reconnect: () => again.abort() },
      signal: again.signal,
      events: { certificateRenewed() {}, renewalFailed: (error) => assert.fail(error) },
      now: () => identity.notAfterMs(),
    })
    assert.equal(bodies.at(-1)?.path, '/v1/renew')
  })
})
