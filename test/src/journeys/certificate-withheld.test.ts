/**
 * A certificate is a claim about every holder, so one that has not confirmed keeps it away. Once it is
 * there, only the key that an auditor trusts beforehand vouches for it.
 */

import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { publicName } from '@sluice/control-plane/deletion/evidence'
import type { JobId } from '@sluice/protocol/ids'

import { lookAtHost } from '../demo/host.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { detailOf, namesBelow, proveDeleted, resultOf, spoolOf } from '../tools/journey.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'

/** What only a capture host can confirm, and what waits for everything else. */
const owedWithoutCapture = ['certificate.issue', 'result.deliver', 'spool.delete']

describe('a certificate', { timeout: 110_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let jobId: JobId
  let file: string
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    const controlPlane = { allowSwap: host.swap }
    fleet = cleanup.use(await startFleet({ name: 'withheld', controlPlane }))
    const config = { isolation: host.isolation, allowSwap: host.swap }
    capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    const node = await fleet.addAgent({ name: 'node', role: 'gpu', config })
    await capture.start()
    const picture = await makePicture(join(fleet.root, 'tmp'), 'held')
    const [job] = await submitEach(capture, [picture])
    assert.ok(job)
    jobId = job
    await fleet.waitForState(jobId, ['stored'])
    await capture.stop()
    await node.start()
    file = join(fleet.root, 'tmp', 'certificate.json')
  })
  after(() => cleanup.disposeAsync())

  it('is not issued while one holder has not confirmed, whoever else has', async () => {
    await fleet.waitForState(jobId, ['deleting'], 60_000)
    const detail = await waitFor('all others to confirm', 60_000, async () => {
      const now = await detailOf(fleet, jobId)
      const owed = now.obligations.filter((one) => one.state !== 'done')
      return owed.length <= owedWithoutCapture.length ? now : undefined
    })
    const owed = detail.obligations.filter((one) => one.state !== 'done')
    assert.deepEqual(owed.map(({ kind }) => kind).toSorted(), owedWithoutCapture)
    assert.equal(detail.state, 'deleting')
    // Keys and objects did not wait for anybody.
    assert.ok(detail.keysUnrecoverableAtMs !== undefined)
    assert.ok(detail.objectsAbsentAtMs !== undefined)
    const { status, body } = await fleet.call(`/v1/jobs/${jobId}/certificate`)
    assert.equal(status, 404, JSON.stringify(body))
    assert.deepEqual(((await fleet.ask('/v1/certificates')) as { items: unknown[] }).items, [])
    assert.ok((await namesBelow(spoolOf(capture))).length > 0, 'its spool is really there')
  })

  it('survives a crash of the control plane as something still owed', async () => {
    await fleet.controlPlane.kill9()
    await fleet.controlPlane.start()
    assert.equal((await detailOf(fleet, jobId)).state, 'deleting')
    assert.equal((await fleet.call(`/v1/jobs/${jobId}/certificate`)).status, 404)
  })

  it('is issued once the last holder is back and has confirmed; the result was waiting too', async () => {
    await capture.start()
    await proveDeleted(fleet, jobId)
    assert.equal(((await resultOf(capture, jobId)) as { jobId: string }).jobId, jobId)
    assert.equal((await namesBelow(spoolOf(capture))).filter((name) => name !== '').length, 0)
  })

  it('verifies with the key that was pinned: the control', async () => {
    const { text } = await fleet.call(`/v1/jobs/${jobId}/certificate`)
    await writeFile(file, text)
    const trusted = join(fleet.controlPlane.dataDirectory, 'evidence', publicName)
    const verified = await fleet.command(['verify', file, '--trust', trusted])
    assert.equal(verified.code, 0, verified.stderr)
  })

  it('verifies with nothing else: no key, another key, a changed byte', async () => {
    const trusted = join(fleet.controlPlane.dataDirectory, 'evidence', publicName)
    const other = join(fleet.root, 'tmp', 'other.pem')
    const { publicKey } = generateKeyPairSync('ed25519')
    await writeFile(other, publicKey.export({ format: 'pem', type: 'spki' }))
    const { text } = await fleet.call(`/v1/jobs/${jobId}/certificate`)
    const changed = join(fleet.root, 'tmp', 'changed.json')
    const { payload } = JSON.parse(text) as { payload: string }
    const statement = Buffer.from(payload, 'base64').toString()
    const lie = statement.replace('"level":"', '"level":"Purge","was":"')
    await writeFile(changed, text.replace(payload, Buffer.from(lie).toString('base64')))
    const spaced = join(fleet.root, 'tmp', 'spaced.json')
    await writeFile(spaced, `${text} `)

    const ended = await Promise.all([
      fleet.command(['verify', file]),
      fleet.command(['verify', file, '--trust', other]),
      fleet.command(['verify', changed, '--trust', trusted]),
      fleet.command(['verify', spaced, '--trust', trusted]),
    ])
    assert.deepEqual(
      ended.map(({ code }) => code),
      [2, 3, 3, 3],
      ended.map(({ stderr }) => stderr).join('\n'),
    )
    for (const { stderr, stdout } of ended) {
      assert.equal(stdout, '')
      assert.match(stderr, /^error: .+\nhint: .+\n$/)
    }
  })
})
