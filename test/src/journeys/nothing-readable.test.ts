/**
 * Invariant 1, on a disk whose every raw byte is read back: while a job stands in each of its states, and at
 * its end, no byte of its media and no key of it lies on any disk; and what opened it once opens nothing
 * after the roll.
 */

import assert from 'node:assert/strict'
import { mkdtemp, open, readFile, rm, unlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, before, describe, it } from 'node:test'

import type { JobId } from '@sluice/protocol/ids'
import { agentId } from '@sluice/protocol/ids'

import {
  copyDataDirectory,
  needlesOf,
  openEnvelopeStolen,
  openStolen,
} from '../tools/early-copy.ts'
import type { OpenedJob, StolenCopy } from '../tools/early-copy.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import { makeJobStops, stoppedStates } from '../tools/job-stops.ts'
import type { JobStops } from '../tools/job-stops.ts'
import { proveDeleted, spoolOf, waitUntilReady, waitMsMax } from '../tools/journey.ts'
import { makeRawDisk, needRawDisk } from '../tools/raw-disk.ts'
import type { RawDisk } from '../tools/raw-disk.ts'
import {
  describeHits,
  joinReports,
  makeScanner,
  scanBytes,
  scanFile,
  scanTree,
} from '../tools/scan.ts'
import type { Scanner, ScanReport } from '../tools/scan.ts'
import { makePhoto } from '../tools/small-media.ts'

const skip = needRawDisk()
const diskBytes = 96 * 1024 * 1024

/** What a thief took from a capture host's spool: all that it ever holds of a job for others. */
type StolenSpool = { jobId: JobId; envelope: Buffer; sealed: Buffer }

describe('on a disk whose every raw byte is read back', { timeout: 300_000 }, () => {
  const cleanup = new AsyncDisposableStack()
  let disk: RawDisk
  let at: JobStops
  let photo: string
  /** Taken while the receive key of the job was still unused: the best that a thief can have. */
  let early: StolenCopy
  /** Taken while the job was stored. */
  let stored: StolenCopy
  let spool: StolenSpool
  let opened: OpenedJob

  before(async () => {
    if (skip !== false) return
    const folder = await mkdtemp(join(tmpdir(), 'sluice-media-'))
    cleanup.defer(() => rm(folder, { recursive: true }))
    photo = await makePhoto(join(folder, 'photo.jpg'))
    disk = cleanup.use(await makeRawDisk(diskBytes))
    const options = { name: 'disk', parent: disk.path, input: 'directory' } as const
    at = cleanup.use(await makeJobStops(options))
    await waitUntilReady(at.capture)
    early = cleanup.use(await stealNow())
  })
  after(() => cleanup.disposeAsync())

  const stealNow = () => copyDataDirectory(at.fleet.controlPlane.dataDirectory)

  /** All files and names, the logs, and all blocks of the disk, those of deleted files included. */
  async function scanAll(scanner: Scanner): Promise<ScanReport> {
    await disk.sync()
    const logs = [at.fleet.controlPlane, at.capture, at.node].map((daemon) =>
      scanBytes(scanner, `log of ${daemon.name}`, Buffer.from(daemon.output)),
    )
    const files = await scanTree(scanner, at.fleet.root)
    return joinReports(files, ...logs, await scanFile(scanner, disk.image))
  }

  /** The envelope from the spool, with the receive keys of one copy and the epoch keys of another. */
  async function opensEnvelope(seeds: StolenCopy, epochs: StolenCopy): Promise<boolean> {
    using job = await openEnvelope(seeds, epochs)
    return job !== undefined
  }
  function openEnvelope(seeds: StolenCopy, epochs: StolenCopy): Promise<OpenedJob | undefined> {
    const senderId = agentId.parse(at.capture.id)
    const { slotFile } = epochs
    return openEnvelopeStolen({ ...spool, senderId, seeds: seeds.seeds, slotFile })
  }
  /** The job key as it was wrapped while the job was stored, with the epoch keys of another copy. */
  async function opensWrapped(epochs: StolenCopy): Promise<boolean> {
    const key = stored.keys.find((one) => one.jobId === spool.jobId)
    assert.ok(key !== undefined)
    using job = await openStolen({ key, slotFile: epochs.slotFile, sealed: spool.sealed })
    return job !== undefined
  }

  it('holds no medium and no job key while a job stands in any state', { skip }, async () => {
    const job = await at.begin(photo)
    spool = await stealSpool(at, job)
    const stolen = await openEnvelope(early, early)
    assert.ok(stolen !== undefined, 'control: the envelope and the copy from before open the job')
    opened = cleanup.use(stolen)
    const scanner = makeScanner(needlesOf(opened))
    for (const state of stoppedStates) {
      if (state !== 'announced') await at.goOn(state)
      if (state === 'stored') stored = cleanup.use(await stealNow())
      if (state === 'leased') await waitUntilOpenInMemory(scanner)
      const report = await scanAll(scanner)
      assert.equal(report.hits.length, 0, `${state}: ${describeHits(report)}`)
      assert.ok(report.bytes > diskBytes)
    }
    await proveDeleted(at.fleet, job)
  })

  /** The control of that state: it does lie open now, where only the analyser sees it. */
  async function waitUntilOpenInMemory(scanner: Scanner): Promise<void> {
    const pid = await at.analyserPid()
    await waitFor('the medium in the memory of the node', waitMsMax, async () => {
      const { hits } = await scanTree(scanner, `/proc/${pid}/cwd/`)
      return hits.length > 0 ? true : undefined
    })
  }

  it('opens nothing after the roll with what opened the job before', { skip }, async () => {
    assert.ok(await opensEnvelope(early, early), 'control: envelope, before the roll')
    assert.ok(await opensWrapped(stored), 'control: wrapped job key, before the roll')
    await using late = await stealNow()
    assert.deepEqual(
      late.keys.filter((key) => key.jobId === spool.jobId),
      [],
    )
    assert.ok(late.seeds.length > 0, 'control: unused receive keys are still there')
    assert.ok(!(await opensEnvelope(late, late)))
    assert.ok(!(await opensEnvelope(early, late)), 'with the receive keys from before')
    assert.ok(!(await opensEnvelope(late, early)), 'with the epoch keys from before')
    assert.ok(!(await opensWrapped(late)), 'with the wrapped job key from before')
  })

  it('holds no byte of the old epoch key after the roll', { skip }, async () => {
    await using late = await stealNow()
    const [old, present] = [await early.epochKeyNeedles(), await late.epochKeyNeedles()]
    const { hits } = await scanAll(makeScanner([...old, ...present]))
    const found = new Set(hits.map(({ needle }) => needle.source))
    assert.ok(
      present.some(({ source }) => found.has(source)),
      'control: the present key is found where it is',
    )
    assert.deepEqual(
      old.filter(({ source }) => found.has(source)),
      [],
    )
  })

  it('holds none of a job that is lost because its key is gone', { skip }, async () => {
    await at.node.stop()
    await using justBefore = await stealNow()
    spool = await stealSpool(at, await at.begin(photo))
    using lost = await openEnvelope(justBefore, justBefore)
    assert.ok(lost !== undefined, 'control: it could be opened')
    await at.goOn('uploading')
    await at.goOn('stored')
    const { controlPlane } = at.fleet
    await controlPlane.stop()
    // As after a restore: the row of the job came back, its key did not.
    const database = new DatabaseSync(join(controlPlane.dataDirectory, 'sluice.db'))
    database.prepare('DELETE FROM job_keys WHERE job_id = ?').run(spool.jobId)
    database.close()
    await controlPlane.start()
    // It is noticed when a node could take the job.
    await at.node.start()
    await at.fleet.waitForState(spool.jobId, ['lost'], waitMsMax)
    const report = await scanAll(makeScanner(needlesOf(lost)))
    assert.equal(report.hits.length, 0, describeHits(report))
  })

  it('holds none of a job that is frozen because its host was revoked', { skip }, async () => {
    await using justBefore = await stealNow()
    spool = await stealSpool(at, await at.begin(photo))
    using frozen = await openEnvelope(justBefore, justBefore)
    assert.ok(frozen !== undefined, 'control: it could be opened')
    await at.fleet.ask(`/v1/agents/${at.capture.id}/revoke`, { role: 'security', body: {} })
    await at.fleet.waitForState(spool.jobId, ['frozen'], waitMsMax)
    const report = await scanAll(makeScanner(needlesOf(frozen)))
    assert.equal(report.hits.length, 0, describeHits(report))
  })

  it('would find a normalised file that was spooled in clear and deleted', { skip }, async () => {
    const [medium] = opened.media
    assert.ok(medium !== undefined)
    const file = join(spoolOf(at.capture), medium.name)
    {
      await using handle = await open(file, 'wx', 0o600)
      await handle.writeFile(medium.bytes)
      await handle.sync()
    }
    await unlink(file)
    const scanner = makeScanner(needlesOf(opened))
    const files = await scanTree(scanner, at.fleet.root)
    assert.equal(files.hits.length, 0, 'no file holds it any more')
    const report = await scanAll(scanner)
    assert.ok(report.hits.length > 0, 'but the disk does')
  })
})

async function stealSpool({ capture }: JobStops, jobId: JobId): Promise<StolenSpool> {
  const folder = join(spoolOf(capture), jobId)
  const envelope = await readFile(join(folder, 'envelope'))
  const sealed = await readFile(join(folder, 'archive.sealed'))
  return { jobId, envelope, sealed }
}
