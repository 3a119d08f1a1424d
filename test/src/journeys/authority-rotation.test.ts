/**
 * The certificate authority is replaced under a working fleet: nobody is cut off that knows either of the
 * two, and once the old one is retired nobody gets in who knows only that.
 */

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { type AuthorityView, authorityView } from '@sluice/protocol/api-authority'
import type { RenewableIdentity } from '@sluice/agent/enrol'
import { decodeToken } from '@sluice/protocol/api'
import { Agent, request } from 'undici'

import { lookAtHost } from '../demo/host.ts'
import { connectByHand, joinByHand, offerOf } from '../tools/fake-agent.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { resultOf } from '../tools/journey.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'

const waitMsMax = 60_000

describe('an authority that is replaced', { timeout: 150_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let node: FleetAgent
  /** Away from before the rotation until after the old authority is retired. */
  let sleeper: RenewableIdentity
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    fleet = cleanup.use(
      await startFleet({ name: 'rotation', controlPlane: { allowSwap: host.swap } }),
    )
    const config = { isolation: host.isolation, allowSwap: host.swap }
    capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    node = await fleet.addAgent({ name: 'node', role: 'gpu', config })
    sleeper = await joinByHand(fleet, { name: 'sleeper', role: 'gpu' })
    for (const each of [capture, node]) await each.start()
  })
  after(() => cleanup.disposeAsync())

  const security = (path: string, body: unknown) => fleet.call(path, { role: 'security', body })
  const view = async (): Promise<AuthorityView> =>
    authorityView.parse(await fleet.ask('/v1/authority'))

  async function analyse(name: string): Promise<void> {
    const [job] = await submitEach(capture, [await makePicture(join(fleet.root, 'tmp'), name)])
    assert.ok(job)
    await fleet.waitForState(job, ['deleted'], waitMsMax)
    assert.ok(await resultOf(capture, job))
  }

  /** A login that trusts exactly one authority. */
  async function asks(ca: string): Promise<number> {
    const token = decodeToken('token', await readFile(await fleet.tokenFile('operator'), 'utf8'))
    const pem = `-----BEGIN CERTIFICATE-----\n${ca}\n-----END CERTIFICATE-----`
    const dispatcher = new Agent({ connect: { ca: pem, minVersion: 'TLSv1.3' } })
    try {
      const answer = await request(new URL('/v1/status', fleet.controlPlane.operatorUrl), {
        dispatcher,
        headers: { authorization: `Bearer ${token.secret}`, 'x-request-id': randomUUID() },
      })
      await answer.body.dump()
      return answer.statusCode
    } finally {
      await dispatcher.close()
    }
  }
  const trustedNow = async (): Promise<string[]> =>
    ((await fleet.ask('/v1/authorities')) as { authorities: string[] }).authorities

  let old = ''
  let fresh = ''

  it('is adopted by every agent that is here, and work goes on', async () => {
    await analyse('before')
    ;[old = ''] = await trustedNow()
    const earlier = await view()
    const { status } = await security('/v1/authority/rotate', { reason: 'a test' })
    assert.equal(status, 201)
    ;[fresh = ''] = await trustedNow()
    assert.notEqual(fresh, old)
    const now = await waitFor('both agents to adopt it', waitMsMax, async () => {
      const seen = await view()
      return seen.rotation?.waitingForCount === 1 ? seen : undefined
    })
    assert.notEqual(now.sha256, earlier.sha256)
    assert.deepEqual(
      now.rotation?.waitingFor.map(({ name }) => name),
      ['sleeper'],
    )
    await analyse('between')
  })

  it('lets everybody in who knows the old or the new one', async () => {
    assert.equal(await asks(old), 200)
    assert.equal(await asks(fresh), 200)
    const again = await security('/v1/authority/rotate', { reason: 'too soon' })
    assert.equal(again.status, 409)
    {
      await using link = await connectByHand(sleeper, { offer: offerOf() })
      await link.beat()
    }
    await fleet.controlPlane.kill9()
    await fleet.controlPlane.start()
    assert.equal(await asks(old), 200, 'a rotation outlives a crash')
    assert.equal((await view()).trusted.length, 2)
  })

  it('is not retired over an agent that has not adopted the new one, unless that is given up', async () => {
    const refused = await security('/v1/authority/retire', {})
    assert.equal(refused.status, 409)
    assert.match(refused.text, /sleeper/)
    assert.equal((await security('/v1/authority/retire', { abandon: true })).status, 200)
    assert.equal((await view()).trusted.length, 1)
    await assert.rejects(asks(old), 'who knows only the old one does not get in')
    assert.equal(await asks(fresh), 200)
    await assert.rejects(connectByHand(sleeper))
    await waitFor('both agents to forget the old one', waitMsMax, async () => {
      const { rotation } = await view()
      return rotation?.waitingForCount === 1 ? true : undefined
    })
    await analyse('after')
  })
})
