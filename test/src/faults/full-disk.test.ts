/**
 * Disks that are full: the spool's, and the control plane's. What cannot be done is said and waits,
 * nothing is half-done, and everything goes on by itself when there is room again.
 */

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { chmod, cp, open, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { promisify } from 'node:util'

import type { SubmissionView } from '@sluice/agent/capture/present'

import { lookAtHost } from '../demo/host.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { proveDeleted, resultOf } from '../tools/journey.ts'
import { makePicture, submissionsOf } from '../tools/pictures.ts'
import { makeRawDisk, needRawDisk } from '../tools/raw-disk.ts'
import type { RawDisk } from '../tools/raw-disk.ts'

const run = promisify(execFile)

const diskBytes = 24 * 1024 * 1024
/** What sealing leaves free in the spool of this test. */
const spoolReserveBytes = 4 * 1024 * 1024

const skip = needRawDisk()

describe('a full disk', { timeout: 110_000 }, () => {
  let fleet: Fleet
  let capture: FleetAgent
  let spoolDisk: RawDisk
  let dataDisk: RawDisk
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    if (skip !== false) return
    const host = await lookAtHost()
    spoolDisk = cleanup.use(await makeRawDisk(diskBytes))
    dataDisk = cleanup.use(await makeRawDisk(diskBytes * 2))
    const controlPlane = { allowSwap: host.swap }
    fleet = cleanup.use(await startFleet({ name: 'full', controlPlane }))
    cleanup.use(await moveTo(dataDisk, fleet))
    const config = { isolation: host.isolation, allowSwap: host.swap }
    await chmod(spoolDisk.path, 0o700)
    capture = await fleet.addAgent({
      ...{ name: 'capture', role: 'capture' },
      config: { ...config, spoolDir: join(spoolDisk.path, 'spool'), spoolReserveBytes },
    })
    const node = await fleet.addAgent({ name: 'node', role: 'gpu', config })
    await Promise.all([capture.start(), node.start()])
  })
  after(() => cleanup.disposeAsync())

  async function handIn(name: string): Promise<string> {
    const file = await makePicture(join(fleet.root, 'tmp'), name, 300)
    const [said] = await capture.ask({ type: 'submit', groups: [[file]] })
    return (said as { submissionId: string }).submissionId
  }

  function waitForView(
    id: string,
    what: string,
    fits: (view: SubmissionView) => boolean,
  ): Promise<SubmissionView> {
    return waitFor(`the submission to ${what}`, 60_000, async () => {
      const view = (await submissionsOf(capture)).find((one) => one.submissionId === id)
      return view !== undefined && fits(view) ? view : undefined
    })
  }

  it(
    'of the spool puts sealing off with a clear word, and leaves nothing half-done',
    { skip },
    async () => {
      await fill(spoolDisk, spoolReserveBytes / 2)
      const id = await handIn('no-room')
      const put = await waitForView(id, 'be put off', (view) => view.problem !== undefined)
      assert.equal(put.problem?.code, 'spool.full')
      assert.equal(put.problem.retry, 'later')
      assert.match(put.problem.hint ?? '', /spoolReserveBytes/)
      assert.notEqual(put.stage, 'refused')
      assert.deepEqual(await readdir(join(spoolDisk.path, 'spool')), [])

      await makeRoom(spoolDisk)
      const { jobId } = await waitForView(id, 'go on', (view) => view.resultPath !== undefined)
      assert.ok(jobId)
      await proveDeleted(fleet, jobId)
    },
  )

  it('of the control plane loses no job, and stops none for good', { skip }, async () => {
    const { pid } = fleet.controlPlane
    await fill(dataDisk, 0)
    const id = await handIn('no-database')
    const held = await waitForView(id, 'be held up', (view) => view.problem !== undefined)
    assert.match(held.problem?.code ?? '', /^(host\.disk_full|upload\.refused|store\.unreachable)$/)
    assert.equal(held.problem?.retry, 'later')
    assert.equal(held.resultPath, undefined)
    assert.ok((await readdir(join(spoolDisk.path, 'spool'))).length > 0, 'the spool keeps it')
    assert.equal((await fleet.call('/v1/status')).status, 200)

    await makeRoom(dataDisk)
    const { jobId } = await waitForView(id, 'go on', (view) => view.resultPath !== undefined)
    assert.ok(jobId)
    await proveDeleted(fleet, jobId)
    assert.equal(((await resultOf(capture, jobId)) as { jobId: string }).jobId, jobId)
    assert.equal(fleet.controlPlane.pid, pid, 'it did not have to be started again')
    const verdict = await fleet.ask('/v1/audit/verify', { role: 'security' })
    assert.equal((verdict as { whole: boolean }).whole, true)
  })
})

/** The data directory of a control plane, from now on on this disk. Tokens are made while there is room. */
async function moveTo(disk: RawDisk, fleet: Fleet): Promise<AsyncDisposable> {
  for (const role of ['operator', 'security'] as const) await fleet.tokenFile(role)
  const { controlPlane } = fleet
  const { dataDirectory } = controlPlane
  const there = join(disk.path, 'data')
  await controlPlane.stop()
  await cp(dataDirectory, there, { recursive: true })
  await chmod(there, 0o700)
  await run('mount', ['--bind', there, dataDirectory])
  await controlPlane.start()
  return {
    async [Symbol.asyncDispose]() {
      if (controlPlane.isRunning) await controlPlane.stop()
      await run('umount', [dataDirectory])
    },
  }
}

const ballast = 'ballast'

/** Writes until no more than `freeBytes` are left for anybody. */
async function fill(disk: RawDisk, freeBytes: number): Promise<void> {
  await using file = await open(join(disk.path, ballast), 'w')
  const piece = Buffer.alloc(64 * 1024, 1)
  try {
    for (;;) await file.write(piece)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  }
  const { size } = await file.stat()
  await file.truncate(Math.max(0, size - freeBytes))
  await file.sync()
}

async function makeRoom(disk: RawDisk): Promise<void> {
  await rm(join(disk.path, ballast))
}
