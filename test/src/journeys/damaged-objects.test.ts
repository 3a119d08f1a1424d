/**
 * An object store that lies: a changed byte, a lost tail, another job's object. The node refuses each,
 * its analyser gets no byte of what was not authentic, and the job says what is wrong with it.
 */

import assert from 'node:assert/strict'
import { open, readFile, readdir, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'

import { lookAtHost } from '../demo/host.ts'
import { copyDataDirectory, openStolen } from '../tools/early-copy.ts'
import type { OpenedJob, StolenCopy } from '../tools/early-copy.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent, JobView } from '../tools/fleet.ts'
import { requireSuccess, startFleet } from '../tools/fleet.ts'
import { takeNeedles } from '../tools/needles.ts'
import { makePicture, submissionsOf, submitEach } from '../tools/pictures.ts'
import { makeScanner, scanBytes } from '../tools/scan.ts'
import { makeWitnessAnalyser } from '../tools/witness-analyser.ts'
import type { WitnessAnalyser } from '../tools/witness-analyser.ts'

/** c2sp.org/chunked-encryption@v1: salt and commitment, then chunks with a tag of 16 bytes each. */
const headerBytes = 56
const sealedChunkBytes = limits.chunkBytes + 16
/** More than one piece that a node hands on at a time. */
const sidePixels = 800

type Damage = 'changed' | 'cut' | 'swapped' | 'whole'

describe('an object store that lies', { timeout: 110_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let witness: WitnessAnalyser
  let jobs: Record<Damage, JobId>
  let opened: OpenedJob[]
  const views = new Map<JobId, JobView>()
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    fleet = cleanup.use(await startFleet({ name: 'lies', controlPlane: { allowSwap: host.swap } }))
    const config = { isolation: host.isolation, allowSwap: host.swap }
    capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    await capture.start()
    jobs = await storeJobs(fleet, capture)
    const copy = cleanup.use(await copyDataDirectory(fleet.controlPlane.dataDirectory))
    opened = await openAll(copy)
    for (const job of opened) cleanup.use(job)
    await damage(fleet, copy, jobs, opened)

    witness = cleanup.use(await makeWitnessAnalyser(join(fleet.root, 'witness')))
    const node = await fleet.addAgent({
      ...{ name: 'node', role: 'gpu' },
      config: { ...config, analysers: [witness.config], exampleAnalyser: false },
    })
    await node.start()
    for (const jobId of Object.values(jobs)) {
      const over = ['failed', 'deleting', 'deleted']
      views.set(jobId, await fleet.waitForState(jobId, over, 60_000))
    }
  })
  after(() => cleanup.disposeAsync())

  const partsOf = (damaged: Damage): OpenedJob => {
    const job = opened.find(({ jobId }) => jobId === jobs[damaged])
    assert.ok(job)
    return job
  }
  const whatWasSeen = (secret: Buffer, source: string) =>
    scanBytes(makeScanner(takeNeedles(secret, { source, count: 500 })), 'witness', witness.seen())

  it('does not keep an honest object from its analysis, all of which the witness saw', async () => {
    assert.match(views.get(jobs.whole)?.state ?? '', /^delet/)
    const medium = partsOf('whole').media[0]
    assert.ok(medium)
    await waitFor('the witness to have read all', 10_000, async () =>
      witness.seen().includes(medium.bytes) ? true : undefined,
    )
    const { hits } = whatWasSeen(medium.bytes, 'whole')
    assert.ok(hits.length >= 500, `${hits.length}`)
  })

  const expected = { changed: 'seal.tampered', cut: 'download.mismatch', swapped: 'seal.wrong_key' }

  for (const [damaged, code] of Object.entries(expected) as [keyof typeof expected, string][])
    it(`says ${code} of an object that was ${damaged}`, async () => {
      const view = views.get(jobs[damaged])
      assert.equal(view?.state, 'failed', JSON.stringify(view))
      assert.equal(view['leaseAttempts'], 1, 'what cannot mend itself is not tried again')
      const tokenFile = await fleet.tokenFile('operator')
      const { operatorUrl } = fleet.controlPlane
      const login = await fleet.command(['login', operatorUrl, '--token-file', tokenFile])
      requireSuccess('sluice login', login)
      const shown = await fleet.command(['jobs', 'show', jobs[damaged], '--json'])
      requireSuccess('sluice jobs show', shown)
      const { problem } = JSON.parse(shown.stdout) as { problem?: { code: string } }
      assert.equal(problem?.code, code)
      const known = await waitFor('the capture host to hear of it', 10_000, async () =>
        (await submissionsOf(capture)).find(
          (one) => one.jobId === jobs[damaged] && one.stage === 'failed',
        ),
      )
      assert.equal(known.problem?.code, code)
      assert.equal(known.resultPath, undefined)
    })

  it('gets no byte of a chunk that is not authentic to an analyser, nor any behind it', () => {
    const { bytes, from } = badChunk(partsOf('changed'))
    const { hits } = whatWasSeen(bytes.subarray(from), 'the bad chunk and all behind it')
    assert.equal(hits.length, 0)
  })

  it('gets no byte at all of an object that is not the announced one to an analyser', () => {
    for (const damaged of ['cut', 'swapped'] as const) {
      const [medium] = partsOf(damaged).media
      assert.ok(medium)
      assert.equal(whatWasSeen(medium.bytes, damaged).hits.length, 0, damaged)
    }
  })

  it('costs no key and no copy: a failed job is kept, and runs once its object is as it was', async () => {
    await restore(jobs.changed)
    await fleet.ask(`/v1/jobs/${jobs.changed}/retry`, { body: {} })
    await fleet.waitForState(jobs.changed, ['deleted'], 60_000)
    const [medium] = partsOf('changed').media
    assert.ok(medium)
    await waitFor('the witness to have read all', 10_000, async () =>
      witness.seen().includes(medium.bytes) ? true : undefined,
    )
    const results = await readdir(capture.resultsDirectory)
    assert.deepEqual(
      results.toSorted(),
      [jobs.whole, jobs.changed].map((id) => `${id}.json`).toSorted(),
    )
  })
})

/** Four jobs, stored; the one that is put in the place of another is the largest. */
async function storeJobs(fleet: Fleet, capture: FleetAgent): Promise<Record<Damage, JobId>> {
  const folder = join(fleet.root, 'tmp')
  const files = await Promise.all([
    makePicture(folder, 'changed', sidePixels),
    makePicture(folder, 'cut', 128),
    makePicture(folder, 'swapped', 64),
    makePicture(folder, 'whole', sidePixels + 8),
  ])
  const [changed, cut, swapped, whole] = await submitEach(capture, files, 'witness')
  assert.ok(changed && cut && swapped && whole)
  for (const jobId of [changed, cut, swapped, whole]) await fleet.waitForState(jobId, ['stored'])
  return { changed, cut, swapped, whole }
}

async function openAll(copy: StolenCopy): Promise<OpenedJob[]> {
  const all: OpenedJob[] = []
  for (const key of copy.keys) {
    const sealed = await copy.readSealed(key.objectKey)
    assert.ok(sealed)
    const job = await openStolen({ key, slotFile: copy.slotFile, sealed })
    assert.ok(job)
    all.push(job)
  }
  return all
}

/** Which chunk is changed, and where in the medium it begins. */
function badChunk(job: OpenedJob): { index: number; bytes: Buffer; from: number } {
  const [entry] = job.manifest.media
  const [medium] = job.media
  assert.ok(entry && medium)
  const index = Math.ceil((entry.offset + entry.bytes * 0.8) / limits.chunkBytes)
  return { index, bytes: medium.bytes, from: index * limits.chunkBytes - entry.offset }
}

/** The only part of a small object of the directory store. */
async function partFile(
  fleet: Fleet,
  objectKey: string,
): Promise<{ folder: string; name: string }> {
  const objects = join(fleet.controlPlane.dataDirectory, 'objects')
  const id = objectKey.split('/').at(-1) ?? ''
  const entries = await readdir(objects, { recursive: true, withFileTypes: true })
  const found = entries.filter(
    (entry) => entry.isFile() && entry.parentPath.split('/').at(-1) === id,
  )
  assert.equal(found.length, 1)
  return { folder: found[0]?.parentPath ?? '', name: found[0]?.name ?? '' }
}

const originals = new Map<JobId, { path: string; bytes: Buffer }>()

async function damage(
  fleet: Fleet,
  copy: StolenCopy,
  jobs: Record<Damage, JobId>,
  opened: readonly OpenedJob[],
): Promise<void> {
  const keyOf = (jobId: JobId) => copy.keys.find((one) => one.jobId === jobId)?.objectKey ?? ''
  const changedJob = opened.find(({ jobId }) => jobId === jobs.changed)
  assert.ok(changedJob)
  const changed = await partFile(fleet, keyOf(jobs.changed))
  const path = join(changed.folder, changed.name)
  originals.set(jobs.changed, { path, bytes: await readFile(path) })
  await flipByte(path, headerBytes + badChunk(changedJob).index * sealedChunkBytes + 7)

  const cut = await partFile(fleet, keyOf(jobs.cut))
  const rest = (await readFile(join(cut.folder, cut.name))).subarray(0, -sealedChunkBytes)
  await replacePart(cut, rest)

  const swapped = await partFile(fleet, keyOf(jobs.swapped))
  const { length } = await readFile(join(swapped.folder, swapped.name))
  const other = await copy.readSealed(keyOf(jobs.whole))
  assert.ok(other && other.length > length)
  await replacePart(swapped, other.subarray(0, length))
}

async function flipByte(path: string, position: number): Promise<void> {
  await using file = await open(path, 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, position)
  byte[0] = (byte[0] ?? 0) ^ 1
  await file.write(byte, 0, 1, position)
}

/** The store goes by a part's name: number, size, digest. It is made to fit the size. */
async function replacePart(part: { folder: string; name: string }, bytes: Buffer): Promise<void> {
  const [number, , digest] = part.name.split('-')
  const path = join(part.folder, part.name)
  await writeFile(path, bytes)
  await rename(path, join(part.folder, `${number}-${bytes.length}-${digest}`))
}

async function restore(jobId: JobId): Promise<void> {
  const original = originals.get(jobId)
  assert.ok(original)
  await writeFile(original.path, original.bytes)
}
