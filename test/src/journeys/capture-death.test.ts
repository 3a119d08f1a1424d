/** The capture agent dies by kill -9 while it seals and while it uploads, and is left alone by its control plane. */

import assert from 'node:assert/strict'
import { mkdtemp, readFile, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { isSluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import { jobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { chunkKeysOf } from '@sluice/protocol/sealing/chunks'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { headerBytes, saltBytes } from '@sluice/protocol/sealing/sealed-size'

import { copyDataDirectory, needlesOf, openStolen } from '../tools/early-copy.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import { startFleet } from '../tools/fleet.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { makeGatedAnalyser } from '../tools/gated-analyser.ts'
import {
  detailOf,
  namesBelow,
  proveDeleted,
  resultOf,
  spoolOf,
  submit,
  waitForSubmission,
  waitMsMax,
  waitUntilSealed,
} from '../tools/journey.ts'
import { descendantsOf, isAlive } from '../tools/process-family.ts'
import { describeHits, makeScanner, proveScanFinds, scanBytes, scanTree } from '../tools/scan.ts'
import { makePhoto, makeSound, needFfmpeg } from '../tools/small-media.ts'

const skip = await needFfmpeg()

/** So that the parts of an upload come one after the other, slowly enough to see some of them. */
const uploadBytesPerSecond = 8 * 1024 * 1024
/** Several parts of the default size, as FLAC cannot make noise smaller. */
const longSoundMs = 300_000
const sealedSoundMs = 60_000

describe('the capture agent killed -9', { timeout: 300_000 }, () => {
  const cleanup = new AsyncDisposableStack()
  const sealed: JobId[] = []
  let media: string
  let fleet: Fleet
  let capture: FleetAgent
  let node: FleetAgent

  before(async () => {
    if (skip !== false) return
    media = await mkdtemp(join(tmpdir(), 'sluice-media-'))
    cleanup.defer(() => rm(media, { recursive: true }))
    fleet = cleanup.use(await startFleet({ name: 'capture', controlPlane: { allowSwap: true } }))
    const gate = await makeGatedAnalyser(join(fleet.root, 'gate'))
    await gate.open('well')
    capture = await fleet.addAgent({
      ...{ name: 'capture', role: 'capture' },
      config: {
        ...{ allowSwap: true, spoolReserveBytes: 0, analyser: 'gated' },
        ...{ bandwidthBytesPerSecond: uploadBytesPerSecond, partsInParallel: 1 },
      },
    })
    const config = { allowSwap: true, analysers: [gate.config] }
    node = await fleet.addAgent({ name: 'node', role: 'gpu', config })
    await capture.start()
  })
  after(() => cleanup.disposeAsync())

  it('mid-seal: nothing is readable, and the source is sealed anew', { skip }, async () => {
    const files = await Promise.all([
      makeSound(join(media, 'first.wav'), sealedSoundMs),
      makePhoto(join(media, 'second.jpg')),
    ])
    const [submission = ''] = await submit(capture, files, { together: true })
    const cut = await waitFor('a sealing under way', waitMsMax, () => sealingUnderWay(capture))
    const family = descendantsOf(capture.pid)
    await capture.kill9()
    await waitFor('its children to end', waitMsMax, async () => !family.some(isAlive) || undefined)
    const rest = await filesOf(join(spoolOf(capture), cut))
    const cutHeader = rest.get('archive.sealed')?.subarray(0, headerBytes)
    assert.ok(cutHeader !== undefined && rest.has('envelope') && rest.has('result-seed'))

    await capture.start()
    const job = await waitUntilSealed(capture, submission)
    assert.notEqual(job, cut)
    await fleet.waitForState(job, ['stored'], waitMsMax)
    sealed.push(job)
    assert.deepEqual(await readdir(spoolOf(capture)), [job], 'the attempt cut short is gone')
    assert.equal((await fleet.call(`/v1/jobs/${cut}`)).status, 404, 'and was never a job')

    await using copy = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    const key = copy.keys.find((one) => one.jobId === job)
    assert.ok(key !== undefined)
    const archive = await copy.readSealed(key.objectKey)
    assert.ok(archive !== undefined)
    using opened = await openStolen({ key, slotFile: copy.slotFile, sealed: archive })
    assert.ok(opened !== undefined)
    const header = archive.subarray(0, headerBytes)
    assert.notDeepEqual(header.subarray(0, saltBytes), cutHeader.subarray(0, saltBytes))
    const fits = (id: JobId, one: Buffer) => isKeyOf(opened.jobKey, id, one)
    assert.ok(fits(job, header), 'control: a key is known by the header of its own archive')
    assert.ok(!fits(cut, cutHeader), 'the new key is not the one of the attempt cut short')

    const needles = needlesOf(opened)
    const scanner = makeScanner(needles)
    const [needle] = needles
    assert.ok(needle !== undefined)
    await proveScanFinds(scanner, needle, join(fleet.root, 'tmp'))
    for (const [name, bytes] of rest) {
      const report = scanBytes(scanner, name, bytes)
      assert.equal(report.hits.length, 0, describeHits(report))
    }
    const report = await scanTree(scanner, fleet.root)
    assert.equal(report.hits.length, 0, describeHits(report))
  })

  it('mid-upload: the spool goes on, and no part is sent twice', { skip }, async () => {
    const file = await makeSound(join(media, 'long.wav'), longSoundMs)
    const [submission = ''] = await submit(capture, [file])
    const job = await waitUntilSealed(capture, submission)
    const uploads = join(fleet.controlPlane.dataDirectory, 'objects', 'uploads')
    await waitFor('two parts to be in the store', waitMsMax, async () =>
      (await partsIn(uploads)).size >= 2 ? true : undefined,
    )
    await capture.kill9()
    const held = await partsIn(uploads)
    const { sealedBytes } = await detailOf(fleet, job)
    const partCount = Math.ceil(sealedBytes / limits.partBytesDefault)
    assert.ok(held.size < partCount, `${held.size} of ${partCount} parts are there`)
    const spooled = await filesOf(join(spoolOf(capture), job))

    await capture.start()
    await fleet.waitForState(job, ['stored'], waitMsMax)
    sealed.push(job)
    const objects = join(fleet.controlPlane.dataDirectory, 'objects', 'objects')
    const [stored = new Map()] = (
      await Promise.all(
        (await readdir(objects)).map((shard) =>
          partsIn(join(objects, shard), spooled.get('archive.sealed')?.length),
        ),
      )
    ).filter(({ size }) => size > 0)
    assert.equal(stored.size, partCount)
    for (const [part, facts] of held)
      assert.deepEqual(stored.get(part), facts, `${part} is the file that was there before`)
    assert.deepEqual(await filesOf(join(spoolOf(capture), job)), spooled)
  })

  it('a control plane away: media are sealed, wait, and go on later', { skip }, async () => {
    const file = await makePhoto(join(media, 'third.jpg'))
    await fleet.controlPlane.kill9()
    const [submission = ''] = await submit(capture, [file])
    const job = await waitUntilSealed(capture, submission)
    const view = await waitForSubmission(capture, submission, 'waiting', () => true)
    assert.equal(view.stage, 'announce')
    const names = [...(await filesOf(join(spoolOf(capture), job))).keys()]
    assert.deepEqual(names.toSorted(), ['archive.sealed', 'envelope', 'result-seed'])
    await fleet.controlPlane.start()
    await fleet.waitForState(job, ['stored'], waitMsMax)
    sealed.push(job)
  })

  it('loses nothing: all of it is analysed, delivered and deleted', { skip }, async () => {
    await node.start()
    assert.equal(sealed.length, 3)
    for (const [index, job] of sealed.entries()) {
      await proveDeleted(fleet, job)
      const result = (await resultOf(capture, job)) as { media: unknown[] }
      assert.equal(result.media.length, index === 0 ? 2 : 1)
    }
    assert.deepEqual(await namesBelow(spoolOf(capture)), [])
  })
})

/** The job that is being sealed, once ciphertext is being written. */
async function sealingUnderWay(capture: FleetAgent): Promise<JobId | undefined> {
  const names = await namesBelow(spoolOf(capture))
  const archive = names.find((name) => name.endsWith('/archive.sealed'))
  return archive === undefined ? undefined : jobId.parse(archive.split('/')[0])
}

async function filesOf(folder: string): Promise<Map<string, Buffer>> {
  const files = new Map<string, Buffer>()
  for (const name of await readdir(folder)) files.set(name, await readFile(join(folder, name)))
  return files
}

/**
 * Parts of the one object below a folder of the directory store, each with what tells its file from
 * another with the same bytes.
 *
 * @param objectBytes Size of the object, where there are several.
 */
async function partsIn(
  folder: string,
  objectBytes?: number,
): Promise<Map<string, { inode: number; modifiedAtMs: number; bytes: number }>> {
  for (const name of await readdir(folder)) {
    const parts = new Map<string, { inode: number; modifiedAtMs: number; bytes: number }>()
    for (const part of await readdir(join(folder, name))) {
      if (part.startsWith('draft-')) continue
      const facts = await stat(join(folder, name, part))
      const { ino: inode, mtimeMs: modifiedAtMs, size: bytes } = facts
      parts.set(part, { inode, modifiedAtMs, bytes })
    }
    const total = [...parts.values()].reduce((sum, part) => sum + part.bytes, 0)
    if (objectBytes === undefined || total === objectBytes) return parts
  }
  return new Map()
}

function isKeyOf(key: Buffer, id: JobId, header: Buffer): boolean {
  try {
    chunkKeysOf({ key, context: archiveContext(id), header })[Symbol.dispose]()
    return true
  } catch (error) {
    if (!isSluiceError(error, 'seal.wrong_key')) throw error
    return false
  }
}
