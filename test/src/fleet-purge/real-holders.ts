/**
 * Agents that really hold something when a purge comes: capture hosts with spools under a slow upload or
 * with drafts that nobody was told of, and nodes with a key, a medium and an analyser that stands still.
 */

import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { mkdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { JobId } from '@sluice/protocol/ids'
import { headerBytes } from '@sluice/protocol/sealing/sealed-size'

import { lookAtHost } from '../demo/host.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { makeGatedAnalyser } from '../tools/gated-analyser.ts'
import { detailOf, namesBelow, spoolOf, waitMsMax, waitUntilReady } from '../tools/journey.ts'
import type { Needle } from '../tools/needles.ts'
import { takeNeedles } from '../tools/needles.ts'
import { arm } from '../tools/doomed-fleet.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'
import { descendantsOf, isAlive } from '../tools/process-family.ts'
import type { KnownProcess } from '../tools/process-family.ts'
import { describeHits, makeScanner, scanTree } from '../tools/scan.ts'
import { startDoor } from './door.ts'
import type { Door } from './door.ts'

/** Slow enough that no upload ends before the purge. */
const slowBytesPerSecond = 2_000
/** About 200 KB of noise, which no codec makes much smaller. */
const pictureSidePixels = 256

export type Holders = AsyncDisposable & {
  readonly agents: readonly FleetAgent[]
  /** How many of them are cut off. */
  readonly away: number
  /** How many of them die in front of an effect once `arm` was called. */
  readonly doomed: number
  /** Jobs that the control plane knows of. */
  readonly jobs: number
  /** Looks that each of them holds what it shall: the control of `proveEmpty`. */
  proveHeld(): Promise<void>
  /** The first of the doomed dies in front of its next effect, the second in front of the one after, and so on. */
  arm(): Promise<void>
  /** Waits until each of the doomed has died, and starts it again. */
  revive(): Promise<void>
  /** Lets those through that were away. */
  letBack(): void
  /** Nothing of it is anywhere: no spool, no draft, no process, no mount, no byte in any file of the fleet. */
  proveEmpty(): Promise<void>
}

/**
 * Starts capture hosts and nodes, and waits until all of them hold something.
 *
 * @param many.captures One of them feeds the nodes; of the others, every second one is cut off while it
 * has a draft.
 * @param many.fates Where the doomed read when they die: every second node, and every second of the capture
 * hosts that are not cut off. The fleet must run under `fate-child.ts`. Without it nobody is doomed.
 */
export async function startHolders(
  fleet: Fleet,
  many: { captures: number; nodes: number; fates?: string },
): Promise<Holders> {
  await using making = new AsyncDisposableStack()
  const { isolation } = await lookAtHost()
  const base = { isolation, allowSwap: true, spoolReserveBytes: 0 }
  const input = process.getuid?.() === 0 ? 'directory' : 'stdin'
  const gate = await makeGatedAnalyser(join(fleet.root, 'gate'), input)
  const media = join(fleet.root, 'media')
  await mkdir(media)
  const door = making.use(await startDoor(fleet.controlPlane.agentUrl))

  const addCapture = async (name: string, config: object, through?: Door): Promise<FleetAgent> => {
    const agent = await fleet.addAgent({ name, role: 'capture', config: { ...base, ...config } })
    if (through) await goThrough(agent, through)
    await agent.start()
    await waitUntilReady(agent)
    return agent
  }
  const picture = (name: string) => makePicture(media, name, pictureSidePixels)

  const nodes: FleetAgent[] = []
  for (let number = 0; number < many.nodes; number += 1) {
    const config = { ...base, analysers: [gate.config] }
    const node = await fleet.addAgent({ name: `node-${number}`, role: 'gpu', config })
    await node.start()
    nodes.push(node)
  }
  const feeder = await addCapture('feeder', {})
  const fed = await Promise.all(nodes.map((node) => picture(`for-${node.name}`)))
  const leased = await submitEach(feeder, fed, 'gated')
  for (const jobId of leased) await untilKeyReleased(fleet, jobId)

  const slow: FleetAgent[] = []
  const away: FleetAgent[] = []
  for (let number = 1; number < many.captures; number += 1) {
    const isAway = number % 2 === 0
    const name = isAway ? `away-${number}` : `slow-${number}`
    const config = { bandwidthBytesPerSecond: slowBytesPerSecond }
    const capture = await addCapture(name, config, isAway ? door : undefined)
    const [jobId] = await submitEach(capture, [await picture(name)], 'gated')
    assert.ok(jobId)
    await fleet.waitForState(jobId, ['uploading'], waitMsMax)
    ;(isAway ? away : slow).push(capture)
  }
  door.shut()
  const unannounced: JobId[] = []
  for (const capture of away) {
    const drafts = await submitEach(capture, [await picture(`draft-of-${capture.name}`)], 'gated')
    unannounced.push(...drafts)
  }

  const captures = [feeder, ...slow, ...away]
  const doomed = many.fates === undefined ? [] : [...everySecond(slow), ...everySecond(nodes)]
  const needles = await spoolNeedles(captures)
  const family = nodes.map((node) => descendantsOf(node.pid))
  const owned = making.move()
  return {
    agents: [...captures, ...nodes],
    away: away.length,
    doomed: doomed.length,
    jobs: leased.length + slow.length + away.length,
    async proveHeld() {
      for (const jobId of unannounced)
        assert.equal((await fleet.call(`/v1/jobs/${jobId}`)).status, 404, 'nobody was told of it')
      for (const members of family) assert.ok(members.some(isAlive), 'a lease is a process')
      if (input === 'directory')
        await waitFor('every node to have mounted its media', waitMsMax, async () =>
          mountsBelow(fleet.root).length >= nodes.length ? true : undefined,
        )
      const scanner = makeScanner(needles)
      for (const capture of captures) {
        const report = await scanTree(scanner, capture.stateDirectory)
        assert.ok(report.hits.length > 0, `what ${capture.name} holds is found`)
      }
    },
    async arm() {
      for (const [index, agent] of doomed.entries())
        assert.ok(await arm(agent, { fates: many.fates ?? '', at: index + 1 }))
    },
    async revive() {
      for (const agent of doomed) {
        await waitFor(`the death of ${agent.name}`, waitMsMax, async () =>
          agent.isRunning ? undefined : true,
        )
        await agent.start()
      }
    },
    letBack: () => door.open(),
    async proveEmpty() {
      for (const capture of captures) assert.deepEqual(await namesBelow(spoolOf(capture)), [])
      assert.deepEqual(aliveOf(family), [], 'no lease process is left')
      assert.deepEqual(mountsBelow(fleet.root), [])
      const report = await scanTree(makeScanner(needles), fleet.root)
      assert.equal(report.hits.length, 0, describeHits(report))
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function everySecond<T>(all: readonly T[]): T[] {
  return all.filter((_one, index) => index % 2 === 1)
}

function aliveOf(families: readonly KnownProcess[][]): KnownProcess[] {
  return families.flat().filter(isAlive)
}

/** Its control plane has, as far as it knows, the address of the door. */
async function goThrough(agent: FleetAgent, door: Door): Promise<void> {
  const file = join(agent.stateDirectory, 'identity.json')
  const identity = JSON.parse(await readFile(file, 'utf8')) as object
  await writeFile(file, JSON.stringify({ ...identity, agentUrl: door.url }))
}

async function untilKeyReleased(fleet: Fleet, jobId: JobId): Promise<void> {
  await fleet.waitForState(jobId, ['leased'], waitMsMax)
  await waitFor(`a node to have the key of ${jobId}`, waitMsMax, async () => {
    const { leases } = await detailOf(fleet, jobId)
    return leases.at(-1)?.keyReleasedAtMs === undefined ? undefined : true
  })
}

/**
 * Pieces of every sealed archive: ciphertext is as good as any other bytes to find a file again. Its header
 * is not: the control plane keeps that with the job.
 */
async function spoolNeedles(captures: readonly FleetAgent[]): Promise<Needle[]> {
  const needles: Needle[] = []
  for (const capture of captures)
    for (const name of await namesBelow(spoolOf(capture))) {
      const path = join(spoolOf(capture), name)
      const facts = await stat(path)
      if (!facts.isFile() || facts.size < 1024) continue
      const sealed = (await readFile(path)).subarray(headerBytes)
      needles.push(...takeNeedles(sealed, { source: `${capture.name} ${name}` }))
    }
  return needles
}

/** Mount points in any namespace: a lease has one of its own. */
function mountsBelow(folder: string): string[] {
  const points = new Set<string>()
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name)))
    for (const line of mountsOf(pid)) points.add(line.split(' ')[4] ?? '')
  return [...points].filter((point) => point.startsWith(`${folder}/`))
}

function mountsOf(pid: string): string[] {
  try {
    return readFileSync(`/proc/${pid}/mountinfo`, 'utf8').split('\n')
  } catch (error) {
    // It ended meanwhile.
    const { code = '' } = error as NodeJS.ErrnoException
    if (!['ENOENT', 'ESRCH', 'EINVAL'].includes(code)) throw error
    return []
  }
}
