/** Proves what security staff see of purges on a whole control plane, and that a dry run changes nothing. */
import assert from 'node:assert/strict'
import { createPublicKey } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { after, before, describe, it } from 'node:test'
import { purgeDetail, purgePreview } from '@sluice/protocol/api-purge'
import { limits } from '@sluice/protocol/limits'
import { verifyBundle } from '@sluice/protocol/sealing/verify-bundle'
import { verifyPurgeCertificate } from '@sluice/protocol/sealing/verify-purge'
import {
  joinedAgent,
  startControlPlane,
  type TestControlPlane,
} from '../control-plane.test-setup.ts'

describe('purge routes', () => {
  let system: TestControlPlane
  let secret: string
  before(async () => {
    system = await startControlPlane()
    secret = await system.secretFor('security')
    await joinedAgent(system, 'capture')
  })
  after(() => system[Symbol.asyncDispose]())

  const post = (body: object, as = secret) =>
    system.call('POST', '/v1/purges', { secret: as, body })

  it('a dry run shows what it would hit, and changes nothing', async () => {
    const auditor = await system.secretFor('security')
    const seqOf = async () =>
      (await system.call('GET', '/v1/audit/verify', { secret: auditor })).json['seq']
    const earlier = await seqOf()
    const answer = await post({ scope: { kind: 'everything' }, reason: 'a test', dryRun: true })
    const preview = purgePreview.parse(answer.json)
    assert.deepEqual([answer.status, preview.jobs, preview.agentsCount], [200, 0, 1])
    assert.equal(preview.needsApproval, false)
    assert.deepEqual((await system.call('GET', '/v1/purges', { secret })).json.items, [])
    assert.equal(await seqOf(), earlier)
  })

  it('refuses what is no scope, and who is not security', async () => {
    assert.equal((await post({ scope: { kind: 'moon' }, reason: 'x' })).status, 400)
    assert.equal((await post({ scope: { kind: 'everything' } })).status, 400)
    const operator = await system.secretFor('operator')
    const asked = { scope: { kind: 'everything' }, reason: 'x' }
    assert.equal((await post(asked, operator)).status, 403)
    const berlin = await system.secretFor('security', 'berlin')
    assert.equal(
      (await post({ scope: { kind: 'site', site: 'paris' }, reason: 'x' }, berlin)).status,
      404,
    )
    const own = await post({ ...asked, dryRun: true }, berlin)
    assert.equal(own.json['site'], 'berlin')
  })

  it('follows one to its certificate, or tells what is open', async () => {
    const begun = purgeDetail.parse(
      (await post({ scope: { kind: 'site', site: 'rome' }, reason: 'a test' })).json,
    )
    const path = `/v1/purges/${begun.id}`
    // The stream ends by itself when the purge has.
    const stream = await system.call('GET', `${path}/events`, { secret })
    assert.match(stream.text, /"state":"concluded"/)
    const { text } = await system.call('GET', `${path}/report`, { secret })
    const pem = await readFile(join(system.dataDir, 'evidence', 'evidence-public.pem'))
    const certificate = verifyPurgeCertificate(Buffer.from(text), createPublicKey(pem))
    assert.equal(certificate.purgeId, begun.id)
    assert.notEqual(certificate.keysUnrecoverableAtMs, undefined)

    const bundle = await system.call('GET', `${path}/bundle`, { secret })
    const pieces = Readable.from([Buffer.from(bundle.text)])
    const verified = await verifyBundle(pieces, createPublicKey(pem))
    assert.equal(verified.document.kind, 'purge-certificate')
    assert.equal(verified.bundle.purgeId, begun.id)
    const viewer = await system.secretFor('viewer')
    assert.equal((await system.call('GET', `${path}/bundle`, { secret: viewer })).status, 403)

    const owed = await post({ scope: { kind: 'everything' }, reason: 'a test' })
    assert.equal(owed.status, 202)
    const open = purgeDetail.parse(owed.json)
    assert.deepEqual([open.state, open.silentCount, open.agents], ['running', 1, 1])
    assert.equal(open.silent[0]?.connected, false)
    const report = await system.call('GET', `/v1/purges/${open.id}/report`, { secret })
    assert.equal(report.status, 200)
    assert.throws(() => verifyPurgeCertificate(Buffer.from(report.text), createPublicKey(pem)))
    assert.equal((await system.call('GET', '/v1/purges', { secret })).json.items?.length, 2)
  })

  it('keeps a reserve on the disk, and says whether it does', async () => {
    const { size } = await stat(join(system.dataDir, 'reserve'))
    assert.equal(size, limits.purgeReserveBytes)
    assert.equal((await system.call('GET', '/v1/status', { secret })).json['reserve'], 'ready')
  })
})
