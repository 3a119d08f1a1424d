/**
 * A GPU node dies in the middle of an analysis, with keys and plaintext in its memory. Nothing readable
 * is left of it, and its jobs are analysed elsewhere under a higher fence.
 */

import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { certificateStatement } from '@sluice/protocol/certificate'
import type { JobId } from '@sluice/protocol/ids'
import { dsseEnvelope } from '@sluice/protocol/sealing/dsse'

import { lookAtHost } from '../demo/host.ts'
import { copyDataDirectory, openStolen } from '../tools/early-copy.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { makeGatedAnalyser } from '../tools/gated-analyser.ts'
import type { GatedAnalyser } from '../tools/gated-analyser.ts'
import { detailOf, proveDeleted } from '../tools/journey.ts'
import type { Needle } from '../tools/needles.ts'
import { takeNeedles } from '../tools/needles.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'
import { descendantsOf, isAlive } from '../tools/process-family.ts'
import type { KnownProcess } from '../tools/process-family.ts'
import {
  describeHits,
  emptyReport,
  joinReports,
  makeScanner,
  scanBytes,
  scanProcess,
  scanTree,
} from '../tools/scan.ts'
import type { ScanReport, Scanner } from '../tools/scan.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'

/** Mounting in memory takes root. */
const inputs = process.getuid?.() === 0 ? (['stdin', 'directory'] as const) : (['stdin'] as const)

describe('a GPU node killed in the middle of an analysis', { timeout: 110_000 }, () => {
  let fleet: Fleet
  let first: FleetAgent
  let second: FleetAgent
  let jobs: JobId[]
  let family: KnownProcess[]
  let scanner: Scanner
  const gates: GatedAnalyser[] = []
  const cleanup = new AsyncDisposableStack()

  before(async () => {
    const host = await lookAtHost()
    fleet = cleanup.use(await startFleet({ name: 'dies', controlPlane: { allowSwap: host.swap } }))
    const config = { isolation: host.isolation, allowSwap: host.swap }
    const capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    await capture.start()
    for (const input of inputs)
      gates.push(await makeGatedAnalyser(join(fleet.root, `gate-${input}`), input))
    const analysers = gates.map((gate, index) => ({ ...gate.config, name: inputs[index] }))
    const node = { ...config, analysers, exampleAnalyser: false, leasesMax: inputs.length }
    first = await fleet.addAgent({ name: 'first', role: 'gpu', config: node })
    second = await fleet.addAgent({ name: 'second', role: 'gpu', config: node })
    for (const { id } of [first, second])
      await fleet.ask(`/v1/agents/${id}`, { body: { leasesMax: inputs.length } })

    jobs = await storedJobs(fleet, capture)
    const needles = await stealNeedles(fleet)
    scanner = makeScanner(needles)
    await first.start()
    family = await waitFor('all media to be open on the node', 60_000, async () => {
      const now = descendantsOf(first.pid)
      const sleeping = now.filter(({ pid }) => commandOf(pid).startsWith('sleep'))
      return sleeping.length >= inputs.length ? now : undefined
    })
  })
  after(() => cleanup.disposeAsync())

  it('has media in its memory before: the control', async () => {
    const inProcesses = await scanFamily(scanner, family)
    const inMounts = await scanMounts(scanner, family, join(first.stateDirectory, 'run'))
    const { hits } = joinReports(inProcesses, inMounts)
    for (const jobId of jobs)
      assert.ok(
        hits.some(({ needle }) => needle.source === jobId),
        `${jobId} is not in memory`,
      )
    if (inputs.length > 1) assert.ok(inMounts.hits.length > 0, 'media in a directory in memory')
  })

  it('leaves no process, no mount, no file and no line of what it had, when killed', async () => {
    await first.kill9()
    await waitFor('its whole family to be dead', 15_000, async () =>
      family.some(isAlive) ? undefined : true,
    )
    assert.deepEqual(mountsBelow(fleet.root), [])
    const files = await scanTree(scanner, fleet.root)
    const logs = scanBytes(scanner, 'log', Buffer.from(first.output))
    const left = joinReports(files, logs)
    assert.equal(left.hits.length, 0, describeHits(left))
    assert.ok(left.bytes > 100_000)
  })

  it('gives its jobs up when it comes back, and another node gets them under a higher fence', async () => {
    for (const jobId of jobs) assert.equal((await detailOf(fleet, jobId)).state, 'leased')
    await second.start()
    await first.start()
    for (const jobId of jobs) {
      const detail = await waitFor(`a second lease of ${jobId}`, 30_000, async () => {
        const now = await detailOf(fleet, jobId)
        return now.leases.length > 1 ? now : undefined
      })
      const [dead, living] = detail.leases.toSorted((one, other) => one.fence - other.fence)
      assert.ok(dead && living)
      assert.equal(dead.nodeId, first.id)
      assert.equal(dead.endReason, 'failed')
      assert.equal(living.nodeId, second.id)
      assert.ok(living.fence > dead.fence)
      assert.equal(detail.fence, living.fence)
    }
  })

  it('is confirmed wiped by a receipt of its own in each certificate', async () => {
    for (const gate of gates) await gate.open('well')
    for (const jobId of jobs) {
      const { detail } = await proveDeleted(fleet, jobId)
      assert.ok(detail.leases.every((lease) => lease.wipedAtMs !== undefined))
      const { body } = await fleet.call(`/v1/jobs/${jobId}/certificate`)
      const { payload } = dsseEnvelope.parse(body)
      const statement: unknown = JSON.parse(Buffer.from(payload, 'base64').toString())
      const { holders } = certificateStatement.parse(statement).predicate
      const wiped = holders.filter(({ leaseId }) => leaseId !== undefined)
      assert.deepEqual(
        wiped.map(({ leaseId, holder }) => `${leaseId} ${holder.id}`).toSorted(),
        detail.leases.map(({ id, nodeId }) => `${id} ${nodeId}`).toSorted(),
      )
    }
    const left = await scanTree(scanner, fleet.root)
    assert.equal(left.hits.length, 0, describeHits(left))
  })
})

async function storedJobs(fleet: Fleet, capture: FleetAgent): Promise<JobId[]> {
  // Outside of all that is scanned.
  await using folder = await makeTemporaryDirectory('dies-media')
  const jobs: JobId[] = []
  for (const input of inputs)
    jobs.push(...(await submitEach(capture, [await makePicture(folder.path, input)], input)))
  for (const jobId of jobs) await fleet.waitForState(jobId, ['stored'])
  return jobs
}

/** Windows of the normalised media; their source is the job. */
async function stealNeedles(fleet: Fleet): Promise<Needle[]> {
  const needles: Needle[] = []
  await using copy = await copyDataDirectory(fleet.controlPlane.dataDirectory)
  for (const key of copy.keys) {
    const sealed = await copy.readSealed(key.objectKey)
    assert.ok(sealed)
    using job = await openStolen({ key, slotFile: copy.slotFile, sealed })
    for (const { bytes } of job?.media ?? [])
      needles.push(...takeNeedles(bytes, { source: key.jobId, count: 300 }))
  }
  return needles
}

async function scanFamily(scanner: Scanner, family: readonly KnownProcess[]): Promise<ScanReport> {
  let report = emptyReport()
  for (const one of family)
    if (isAlive(one)) report = joinReports(report, await scanProcess(scanner, one.pid))
  return report
}

/** A directory in memory is seen by the processes of its lease alone. */
async function scanMounts(
  scanner: Scanner,
  family: readonly KnownProcess[],
  folder: string,
): Promise<ScanReport> {
  let report = emptyReport()
  for (const { pid } of family) {
    const seen = join(`/proc/${pid}/root`, folder)
    if (existsSync(seen)) report = joinReports(report, await scanTree(scanner, seen))
  }
  return report
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ')
  } catch {
    return ''
  }
}

function mountsBelow(folder: string): string[] {
  const points = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
  return points.filter((point) => point.startsWith(`${folder}/`))
}
