/** Every process dies by kill -9 in every state of a job, alone and together with all others, on both stores. */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import assert from 'node:assert/strict'

import { ListMultipartUploadsCommand, ListObjectVersionsCommand } from '@aws-sdk/client-s3'
import { claimKey } from '@sluice/control-plane/storage/claim'

import type { Daemon } from '../tools/fleet-daemon.ts'
import { s3Settings } from '../tools/fleet.ts'
import { makeJobStops, stoppedStates } from '../tools/job-stops.ts'
import type { JobStops, StoppedState } from '../tools/job-stops.ts'
import { namesBelow, proveDeleted, resultOf, spoolOf } from '../tools/journey.ts'
import { needS3Server, startS3Server } from '../tools/s3-server.ts'
import { makePhoto } from '../tools/small-media.ts'

const bucket = 'sluice-deaths'

type Victim = 'control plane' | 'capture agent' | 'node' | 'everyone'
const victims: readonly Victim[] = ['control plane', 'capture agent', 'node', 'everyone']

/** Those of the victims that run now; a node is started only once a job needs it. */
function daemonsOf({ fleet, capture, node }: JobStops, victim: Victim): Daemon[] {
  const all: Record<Exclude<Victim, 'everyone'>, Daemon> = {
    'control plane': fleet.controlPlane,
    'capture agent': capture,
    node,
  }
  const named = victim === 'everyone' ? Object.values(all) : [all[victim]]
  return named.filter((daemon) => daemon.isRunning)
}

async function killAndRestart(at: JobStops, victim: Victim): Promise<void> {
  const daemons = daemonsOf(at, victim)
  await Promise.all(daemons.map((daemon) => daemon.kill9()))
  // An agent that comes back has to reach its control plane, also while the others are held.
  if (daemons.some((daemon) => daemon !== at.fleet.controlPlane)) at.cutLinks()
  for (const daemon of daemons) await daemon.start()
}

/** Carries one job through all states, and lets the victim die in those that are named. */
async function carry(
  at: JobStops,
  photo: string,
  deaths: { victim: Victim; in: readonly StoppedState[] },
): Promise<void> {
  const job = await at.begin(photo)
  for (const state of stoppedStates) {
    if (state !== 'announced') await at.goOn(state)
    if (deaths.in.includes(state)) await killAndRestart(at, deaths.victim)
  }
  await proveDeleted(at.fleet, job)
  const { media } = (await resultOf(at.capture, job)) as { media: unknown }
  assert.deepEqual(media, [{ name: '0001.jpg', output: { seen: true } }])
  assert.deepEqual(await namesBelow(spoolOf(at.capture)), [])
}

describe('every death on the directory store', { timeout: 1_800_000 }, () => {
  const cleanup = new AsyncDisposableStack()
  let at: JobStops
  let photo: string
  before(async () => {
    photo = await photoFor(cleanup)
    at = cleanup.use(await makeJobStops({ name: 'deaths' }))
  })
  after(() => cleanup.disposeAsync())

  for (const victim of victims) {
    it(`of ${victim} in all states of one job`, async () => {
      await carry(at, photo, { victim, in: stoppedStates })
    })
    for (const state of stoppedStates)
      it(`of ${victim} while a job is ${state}`, async () => {
        await carry(at, photo, { victim, in: [state] })
      })
  }

  it('leaves nothing in the store', async () => {
    const { dataDirectory } = at.fleet.controlPlane
    const names = await namesBelow(join(dataDirectory, 'objects'))
    assert.deepEqual(names.toSorted(), ['objects', claimKey, 'uploads'])
  })
})

describe('every death on a real S3', { timeout: 1_800_000 }, () => {
  const skip = needS3Server()
  const cleanup = new AsyncDisposableStack()
  let at: JobStops
  let photo: string
  let listed: () => Promise<number>
  before(async () => {
    if (skip !== false) return
    photo = await photoFor(cleanup)
    const server = cleanup.use(await startS3Server())
    await server.createBucket(bucket)
    at = cleanup.use(await makeJobStops({ name: 'deaths-s3', ...s3Settings(server, bucket) }))
    listed = async () => {
      const which = { Bucket: bucket }
      const objects = await server.client.send(new ListObjectVersionsCommand(which))
      const uploads = await server.client.send(new ListMultipartUploadsCommand(which))
      const kept = objects.Versions?.filter(({ Key }) => Key !== claimKey)
      const found = [kept, objects.DeleteMarkers, uploads.Uploads]
      return found.reduce((sum, list) => sum + (list?.length ?? 0), 0)
    }
  })
  after(() => cleanup.disposeAsync())

  for (const victim of victims)
    it(`of ${victim} in all states of one job`, { skip }, async () => {
      await carry(at, photo, { victim, in: stoppedStates })
      assert.equal(await listed(), 0)
    })
})

async function photoFor(cleanup: AsyncDisposableStack): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-media-'))
  cleanup.defer(() => rm(folder, { recursive: true }))
  return await makePhoto(join(folder, 'photo.jpg'))
}
