/**
 * Disks that are full: the spool's, and the control plane's. What cannot be done is said and waits,
 * nothing is half-done, and everything goes on by itself when there is room again.
 */

import assert from 'node:assert/strict'
import { chmod, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import type { SubmissionView } from '@sluice/agent/capture/present'

import { lookAtHost } from '../demo/host.ts'
import { fillDisk, makeRoom, moveDataTo } from '../tools/data-disk.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { proveDeleted, resultOf } from '../tools/journey.ts'
import { makePicture, submissionsOf } from '../tools/pictures.ts'
import { makeRawDisk, needRawDisk } from '../tools/raw-disk.ts'
import type { RawDisk } from '../tools/raw-disk.ts'

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
    cleanup.use(await moveDataTo(dataDisk, fleet))
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
      await fillDisk(spoolDisk, spoolReserveBytes / 2)
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
    await fillDisk(dataDisk, 0)
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
