/** Photo, film and sound travel from a capture host to a certificate, on each kind of store there is. */

import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import {
  GetObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectVersionsCommand,
} from '@aws-sdk/client-s3'
import { claimKey } from '@sluice/control-plane/storage/claim'
import type { CertificateSummary } from '@sluice/protocol/sealing/verify-certificate'
import type { JobId } from '@sluice/protocol/ids'

import { gatherEvidence } from '../demo/evidence.ts'
import type { Evidence } from '../demo/evidence.ts'
import { copyDataDirectory, needlesOf, openStolen } from '../tools/early-copy.ts'
import { s3Settings, startFleet } from '../tools/fleet.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import {
  namesBelow,
  proveDeleted,
  resultOf,
  spoolOf,
  submit,
  waitMsMax,
  waitUntilSealed,
} from '../tools/journey.ts'
import type { Needle } from '../tools/needles.ts'
import { describeHits, makeScanner, proveScanFinds, scanBytes, scanTree } from '../tools/scan.ts'
import { needS3Server, startS3Server } from '../tools/s3-server.ts'
import type { S3Server } from '../tools/s3-server.ts'
import {
  makeFilm,
  makePhoto,
  makeSound,
  needFfmpeg,
  photoHeightPixels,
  photoWidthPixels,
  soundMs,
} from '../tools/small-media.ts'

const bucket = 'sluice-journey'
const noFfmpeg = await needFfmpeg()

type Journey = {
  fleet: Fleet
  capture: FleetAgent
  node: FleetAgent
  jobs: Record<'photo' | 'film' | 'sound', JobId>
}

/** Everything that a journey starts ends with `cleanup`. */
async function beginJourney(
  cleanup: AsyncDisposableStack,
  store: { name: string; controlPlane?: Record<string, unknown>; agent?: Record<string, unknown> },
): Promise<Journey> {
  const { name, controlPlane = {}, agent = {} } = store
  const fleet = cleanup.use(
    await startFleet({ name, controlPlane: { allowSwap: true, ...controlPlane } }),
  )
  const config = { allowSwap: true, ...agent }
  const capture = await fleet.addAgent({
    ...{ name: 'capture', role: 'capture' },
    config: { ...config, spoolReserveBytes: 0 },
  })
  const [media, node] = await Promise.all([
    makeMedia(cleanup),
    fleet.addAgent({ name: 'node', role: 'gpu', config }),
    capture.start(),
  ])
  const submissions = await submit(capture, media)
  const [photo, film, sound] = await Promise.all(
    submissions.map((id) => waitUntilSealed(capture, id)),
  )
  assert.ok(photo !== undefined && film !== undefined && sound !== undefined)
  const jobs = { photo, film, sound }
  for (const id of Object.values(jobs)) await fleet.waitForState(id, ['stored'], waitMsMax)
  return { fleet, capture, node, jobs }
}

/** Outside of the fleet's folder: sources are the customer's, and no scan is about them. */
async function makeMedia(cleanup: AsyncDisposableStack): Promise<string[]> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-media-'))
  cleanup.defer(() => rm(folder, { recursive: true }))
  return await Promise.all([
    makePhoto(join(folder, 'photo.jpg')),
    makeFilm(join(folder, 'film.mp4')),
    makeSound(join(folder, 'sound.wav')),
  ])
}

/** A key that signed nothing, and certificates judged by the real `sluice verify`. */
async function judge(cleanup: AsyncDisposableStack, journey: Journey): Promise<Evidence> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-evidence-'))
  cleanup.defer(() => rm(folder, { recursive: true }))
  const otherKeyFile = join(folder, 'other.pem')
  const { publicKey } = generateKeyPairSync('ed25519')
  await writeFile(otherKeyFile, publicKey.export({ format: 'pem', type: 'spki' }))
  const jobIds = Object.values(journey.jobs)
  return await gatherEvidence({ fleet: journey.fleet, jobIds, folder, otherKeyFile })
}

/** What the example analyser says about each medium of a job. */
async function outputsOf(capture: FleetAgent, job: JobId): Promise<Record<string, unknown>[]> {
  const result = await resultOf(capture, job)
  return (result as { media: { output: Record<string, unknown> }[] }).media.map((one) => one.output)
}

async function assertResults({ capture, jobs }: Journey): Promise<void> {
  const [photo] = await outputsOf(capture, jobs.photo)
  assert.equal(photo?.['widthPixels'], photoWidthPixels)
  assert.equal(photo['heightPixels'], photoHeightPixels)
  const film = await outputsOf(capture, jobs.film)
  const kinds = film.map(({ kind }) => kind)
  assert.deepEqual(kinds, ['video', 'audio'], 'picture and sound of a film are media of their own')
  assert.equal(film[0]?.['frames'], 25)
  const [sound, ...others] = await outputsOf(capture, jobs.sound)
  assert.equal(sound?.['kind'], 'audio')
  assert.equal(sound['durationMs'], soundMs)
  assert.deepEqual(others, [])
}

/** All holders of a job that ran once, on one node. */
const holders = ['capture-spool', 'gpu-lease', 'job-key', 'object-store', 'result-blob']

function assertWholeStory(certificate: CertificateSummary, { capture, node }: Journey): void {
  const kinds = certificate.holders.map(({ holder }) => holder.kind)
  assert.deepEqual(kinds.toSorted(), holders)
  const idOf = (kind: string) =>
    certificate.holders.find(({ holder }) => holder.kind === kind)?.holder.id
  assert.equal(idOf('capture-spool'), capture.id)
  assert.equal(idOf('gpu-lease'), node.id)
}

async function assertHostsClean({ fleet, capture, node }: Journey): Promise<void> {
  assert.deepEqual(await namesBelow(spoolOf(capture)), [])
  assert.deepEqual(await namesBelow(join(node.stateDirectory, 'run')), [])
  assert.deepEqual(await namesBelow(join(fleet.root, 'tmp')), [])
}

describe('from capture to certificate on the directory store', { timeout: 240_000 }, () => {
  const cleanup = new AsyncDisposableStack()
  let journey: Journey
  before(async () => {
    if (noFfmpeg !== false) return
    journey = await beginJourney(cleanup, { name: 'journey' })
    await journey.node.start()
  })
  after(() => cleanup.disposeAsync())

  it('brings a right result for each medium, and a whole story', { skip: noFfmpeg }, async () => {
    for (const id of Object.values(journey.jobs)) {
      const { certificate } = await proveDeleted(journey.fleet, id)
      assertWholeStory(certificate, journey)
    }
    await assertResults(journey)
  })

  it('convinces the real `sluice verify`, with that key alone', { skip: noFfmpeg }, async () => {
    const { certificates, otherKeyRefused } = await judge(cleanup, journey)
    assert.equal(certificates.length, 3)
    assert.ok(otherKeyRefused)
  })

  it('leaves nothing in store, spool and temporary folders', { skip: noFfmpeg }, async () => {
    const objects = join(journey.fleet.controlPlane.dataDirectory, 'objects')
    assert.deepEqual((await namesBelow(objects)).toSorted(), ['objects', claimKey, 'uploads'])
    await assertHostsClean(journey)
  })
})

describe('from capture to certificate on a real S3', { timeout: 240_000 }, () => {
  const skip = noFfmpeg || needS3Server()
  const cleanup = new AsyncDisposableStack()
  let server: S3Server
  let journey: Journey
  before(async () => {
    if (skip !== false) return
    server = cleanup.use(await startS3Server())
    await server.createBucket(bucket)
    journey = await beginJourney(cleanup, { name: 'journey-s3', ...s3Settings(server, bucket) })
  })
  after(() => cleanup.disposeAsync())

  it('holds ciphertext and nothing else while jobs are stored', { skip }, async () => {
    const { fleet, jobs } = journey
    await using copy = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    const versions = await server.client.send(new ListObjectVersionsCommand({ Bucket: bucket }))
    assert.equal(versions.Versions?.filter(({ Key }) => Key !== claimKey).length, 3)
    const needles: Needle[] = []
    const objects: Buffer[] = []
    for (const id of Object.values(jobs)) {
      const key = copy.keys.find((one) => one.jobId === id)
      assert.ok(key !== undefined)
      const sealed = await objectBytes(server, key.objectKey)
      using opened = await openStolen({ key, slotFile: copy.slotFile, sealed })
      assert.ok(opened !== undefined, 'control: who has everything in time opens it')
      needles.push(...needlesOf(opened))
      objects.push(sealed)
    }
    const scanner = makeScanner(needles)
    await proveScanFinds(scanner, needles[0] as Needle, join(fleet.root, 'tmp'))
    const inStore = scanBytes(scanner, 'objects', Buffer.concat(objects))
    assert.equal(inStore.hits.length, 0, describeHits(inStore))
    const onHosts = await scanTree(scanner, fleet.root)
    assert.equal(onHosts.hits.length, 0, describeHits(onHosts))
  })

  it('brings a right result for each medium, and a whole story', { skip }, async () => {
    await journey.node.start()
    for (const id of Object.values(journey.jobs)) {
      const { certificate } = await proveDeleted(journey.fleet, id)
      assertWholeStory(certificate, journey)
    }
    await assertResults(journey)
  })

  it('convinces the real `sluice verify`, with that key alone', { skip }, async () => {
    const { certificates, otherKeyRefused } = await judge(cleanup, journey)
    assert.equal(certificates.length, 3)
    assert.ok(otherKeyRefused)
  })

  it('leaves no object, version, marker or upload in the bucket', { skip }, async () => {
    const versions = await server.client.send(new ListObjectVersionsCommand({ Bucket: bucket }))
    // Whose bucket it is stays written in it.
    assert.deepEqual(
      versions.Versions?.map(({ Key }) => Key),
      [claimKey],
    )
    assert.deepEqual(versions.DeleteMarkers ?? [], [])
    const uploads = await server.client.send(new ListMultipartUploadsCommand({ Bucket: bucket }))
    assert.deepEqual(uploads.Uploads ?? [], [])
    await assertHostsClean(journey)
  })
})

async function objectBytes(server: S3Server, key: string): Promise<Buffer> {
  const answer = await server.client.send(new GetObjectCommand({ Bucket: bucket, Key: key }))
  assert.ok(answer.Body !== undefined)
  return Buffer.from(await answer.Body.transformToByteArray())
}
