/** Proves over the real API that what takes two people takes two tokens of two people. */
import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { createdToken, decodeToken } from '@sluice/protocol/api'
import { approvalAsked, approvalView } from '@sluice/protocol/api-approvals'
import { adminClient } from '../cli/client.ts'
import { startControlPlane, type TestControlPlane } from '../control-plane.test-setup.ts'

let system: TestControlPlane
before(async () => {
  system = await startControlPlane()
})
after(() => system[Symbol.asyncDispose]())

const rights = [{ role: 'security', site: '*' }]
const raise = (secret: string, principal: string, headers?: Record<string, string>) =>
  system.call('POST', '/v1/tokens', {
    secret,
    body: { principal, rights, reason: 'joins the team' },
    ...(headers && { headers }),
  })
const decide = (secret: string, id: string, word: 'give' | 'refuse') =>
  system.call('POST', `/v1/approvals/${id}/${word}`, { secret, body: {} })

describe('approvals over the API', () => {
  it('hand out a token only after another person agreed, and only once', async () => {
    const [anna, berta] = [await system.secretFor('security'), await system.secretFor('security')]
    const first = await raise(anna, 'carla')
    assert.equal(first.status, 202)
    assert(!first.text.includes('sluice-token'))
    const { approval } = approvalAsked.parse(first.json)
    assert.equal(approval.reason, 'joins the team')
    assert.equal(approvalAsked.parse((await raise(anna, 'carla')).json).approval.id, approval.id)

    const listed = await system.call('GET', '/v1/approvals?state=open', { secret: berta })
    assert.deepEqual(
      listed.json.items?.map((item) => item['id']),
      [approval.id],
    )
    const own = await decide(anna, approval.id, 'give')
    assert.deepEqual([own.status, own.json['code']], [409, 'approval.refused'])
    const given = await decide(berta, approval.id, 'give')
    assert.deepEqual([given.status, given.json['state']], [200, 'given'])
    assert.equal((await decide(berta, approval.id, 'give')).status, 409)

    assert.equal((await raise(berta, 'carla')).status, 202, 'it was given to who asked')
    const made = await raise(anna, 'carla')
    assert.equal(made.status, 201)
    const { secret } = decodeToken('token', String(made.json['token']))
    const shown = await system.call('GET', `/v1/approvals/${approval.id}`, { secret })
    assert(approvalView.parse(shown.json).usedAtMs)
    assert.equal((await raise(anna, 'carla')).status, 202, 'once')
  })

  it('are asked again by the same request, which is answered with what waits', async () => {
    const [anna, berta] = [await system.secretFor('security'), await system.secretFor('security')]
    const key = { 'idempotency-key': 'once' }
    const first = await raise(anna, 'frida', key)
    const again = await raise(anna, 'frida', key)
    assert.deepEqual([again.status, again.json], [202, first.json])
    const { approval } = approvalAsked.parse(first.json)
    assert.equal((await decide(berta, approval.id, 'give')).status, 200)
    const made = await raise(anna, 'frida', { 'idempotency-key': 'twice' })
    assert.equal(made.status, 201)
    const repeated = await raise(anna, 'frida', { 'idempotency-key': 'twice' })
    assert.equal(repeated.status, 409, 'control: a secret is shown once')
  })

  it('end with the token that asked: a purge that waited is refused', async () => {
    const berta = await system.secretFor('security')
    const made = await system.call('POST', '/v1/tokens', {
      secret: berta,
      body: {
        principal: (await system.call('GET', '/v1/whoami', { secret: berta })).json['principal'],
      },
    })
    const { secret } = decodeToken('token', String(made.json['token']))
    const asked = await system.call('POST', '/v1/purges', {
      secret,
      body: { scope: { kind: 'everything' }, reason: 'a test', includingHeld: true },
    })
    assert.deepEqual([asked.status, asked.json['state']], [202, 'waiting'])
    const target = { kind: 'token', tokenId: String(made.json['id']) }
    const body = { target, reason: 'stolen' }
    assert.equal(
      (await system.call('POST', '/v1/revocations', { secret: berta, body })).status,
      201,
    )
    const id = String(asked.json['id'])
    const shown = await system.call('GET', `/v1/purges/${id}`, { secret: berta })
    assert.equal(shown.json['state'], 'refused')
  })

  it('agree once, however many tokens of two people give at the same moment', async () => {
    const people = await Promise.all([1, 2, 3, 4].map(() => system.secretFor('security')))
    const [asker = '', ...others] = people
    const { approval } = approvalAsked.parse((await raise(asker, 'dora')).json)
    const answers = await Promise.all(
      [...others, ...others, ...others].map((secret) => decide(secret, approval.id, 'give')),
    )
    const counted = (wanted: number) => answers.filter(({ status }) => status === wanted).length
    assert.deepEqual([counted(200), counted(409)], [1, 8])
  })

  it('cannot be stepped round by the owner of the data directory', async () => {
    await using owner = adminClient(system.controlPlane.directory.adminSocket)
    await assert.rejects(
      owner.post('/v1/tokens', { principal: 'root-friend', rights }, createdToken),
      { code: 'approval.needed' },
    )
    const viewer = { principal: 'reader', rights: [{ role: 'viewer', site: '*' }] }
    await owner.post('/v1/tokens', viewer, createdToken)
  })
})
