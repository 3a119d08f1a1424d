/** The control plane dies by kill -9 while a job is in each of its states, and nothing of the job is lost. */

import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { claimKey } from '@sluice/control-plane/storage/claim'

import { makeJobStops, stoppedStates } from '../tools/job-stops.ts'
import type { JobStops } from '../tools/job-stops.ts'
import { detailOf, namesBelow, proveDeleted, resultOf, spoolOf } from '../tools/journey.ts'
import { makePhoto } from '../tools/small-media.ts'

describe('the control plane killed -9', { timeout: 240_000 }, () => {
  const cleanup = new AsyncDisposableStack()
  let at: JobStops
  let photo: string
  before(async () => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-media-'))
    cleanup.defer(() => rm(folder, { recursive: true }))
    photo = await makePhoto(join(folder, 'photo.jpg'))
    at = cleanup.use(await makeJobStops({ name: 'death' }))
  })
  after(() => cleanup.disposeAsync())

  async function killAndRestart(): Promise<void> {
    const { controlPlane } = at.fleet
    await controlPlane.kill9()
    await controlPlane.start()
  }

  it('finds a job again in each state, and brings it to its certificate', async () => {
    const job = await at.begin(photo)
    for (const state of stoppedStates) {
      if (state !== 'announced') await at.goOn(state)
      const known = await at.fleet.call(`/v1/jobs/${job}/certificate`)
      await killAndRestart()
      const { state: now } = await detailOf(at.fleet, job)
      assert.equal(now, state, 'the state is the one in which it died')
      const still = await at.fleet.call(`/v1/jobs/${job}/certificate`)
      assert.equal(still.status, state === 'deleted' ? 200 : 404)
      assert.equal(still.text, known.text)
    }
    const { detail } = await proveDeleted(at.fleet, job)
    const ends = detail.leases.map(({ fence, endReason }) => [fence, endReason])
    assert.deepEqual(ends, [
      [1, 'failed'],
      [2, 'finished'],
    ])
    const { media } = (await resultOf(at.capture, job)) as { media: unknown }
    assert.deepEqual(media, [{ name: '0001.jpg', output: { seen: true } }])
    assert.deepEqual(await namesBelow(spoolOf(at.capture)), [])
    const { dataDirectory } = at.fleet.controlPlane
    const objects = await namesBelow(join(dataDirectory, 'objects'))
    assert.deepEqual(objects.toSorted(), ['objects', claimKey, 'uploads'])
  })
})
