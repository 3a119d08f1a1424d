/** A fleet whose daemons die by kill -9 in front of a chosen effect, while a job is deleted or a purge runs. */

import assert from 'node:assert/strict'
import { createPublicKey } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { pathToFileURL } from 'node:url'

import { publicName } from '@sluice/control-plane/deletion/evidence'
import { claimKey } from '@sluice/control-plane/storage/claim'
import type { JobId } from '@sluice/protocol/ids'
import { verifyPurgeCertificate } from '@sluice/protocol/sealing/verify-purge'

import { lookAtHost } from '../demo/host.ts'
import { SecondVerifier } from '../vectors/certificates.test-setup.ts'
import { copyDataDirectory, openStolen, type StolenCopy } from './early-copy.ts'
import type { Daemon } from './fleet-daemon.ts'
import { waitFor } from './fleet-daemon.ts'
import { startFleet } from './fleet.ts'
import { makeGatedAnalyser } from './gated-analyser.ts'
import {
  detailOf,
  namesBelow,
  proveDeleted,
  resultOf,
  spoolOf,
  submit,
  waitUntilReady,
  waitUntilSealed,
} from './journey.ts'
import { makePicture } from './pictures.ts'
import { makeTemporaryDirectory } from './temporary-directory.ts'

export const victims = ['control plane', 'capture', 'node'] as const
export type Victim = (typeof victims)[number]

export type DoomedFleet = AsyncDisposable & {
  /**
   * Runs one purge of everything, or the deletion of one analysed job, through the death of `victim` in
   * front of its `at`-th effect, and proves that nothing was forgotten.
   *
   * @returns Whether it died; false when it had fewer effects.
   */
  run(what: 'purge' | 'deletion', victim: Victim, at: number): Promise<boolean>
}

type PurgeLine = { id: string; state: string }

/** A node that dies with its lease makes the job wait until the lease is over. */
const waitMsMax = 100_000

/** Under it, daemons of a fleet can be armed; `fates` is a folder. */
export function fateEnvironment(fates: string): NodeJS.ProcessEnv {
  const child = pathToFileURL(join(import.meta.dirname, 'fate-child.ts')).href
  return { NODE_OPTIONS: `--import=${child}`, FATE_FOLDER: fates }
}

/**
 * A daemon dies in front of its `at`-th effect from now on; 0 lets it live.
 *
 * @returns Whether it lived to know.
 */
export async function arm(
  daemon: Pick<Daemon, 'name' | 'isRunning' | 'pid'>,
  { fates, at }: { fates: string; at: number },
): Promise<boolean> {
  const { name } = daemon
  await writeFile(join(fates, `${name}.arm`), String(at))
  if (daemon.isRunning) process.kill(daemon.pid, 'SIGUSR2')
  const end = await waitFor(`${name} to know its fate`, waitMsMax, async () => {
    if (!(await namesBelow(fates)).includes(`${name}.arm`)) return 'knows'
    return daemon.isRunning ? undefined : 'dead'
  })
  return end === 'knows'
}

export async function makeDoomedFleet(name: string): Promise<DoomedFleet> {
  await using cleanup = new AsyncDisposableStack()
  const host = await lookAtHost()
  const fates = cleanup.use(await makeTemporaryDirectory('fates'))
  const fleet = cleanup.use(
    await startFleet({
      name,
      // One purge a death: together they are far beyond what one person destroys in a day.
      controlPlane: { allowSwap: host.swap, purge: { aloneJobsMax: 100_000 } },
      env: fateEnvironment(fates.path),
    }),
  )
  const gate = await makeGatedAnalyser(join(fleet.root, 'gate'))
  const config = { isolation: host.isolation, allowSwap: host.swap }
  const capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
  const node = await fleet.addAgent({
    ...{ name: 'node', role: 'gpu' },
    config: { ...config, analysers: [gate.config] },
  })
  await Promise.all([capture.start(), node.start()])
  // Made now: a token is an effect of the control plane.
  await fleet.tokenFile('security')
  const second = cleanup.use(await SecondVerifier.start())
  const daemons: Record<Victim, Daemon> = { 'control plane': fleet.controlPlane, capture, node }
  const { dataDirectory } = fleet.controlPlane
  const trusted = createPublicKey(await readFile(join(dataDirectory, 'evidence', publicName)))
  const owned = cleanup.move()
  let pictures = 0

  async function handIn(analyser: string): Promise<JobId> {
    await waitUntilReady(capture)
    pictures += 1
    const picture = await makePicture(join(fleet.root, 'tmp'), `picture-${pictures}`)
    const [submission = ''] = await submit(capture, [picture], { analyser })
    return await waitUntilSealed(capture, submission)
  }

  async function store(): Promise<JobId> {
    const job = await handIn('offered-by-nobody')
    await fleet.waitForState(job, ['stored'], waitMsMax)
    return job
  }

  async function lease(): Promise<JobId> {
    const job = await handIn('gated')
    await fleet.waitForState(job, ['leased'], waitMsMax)
    await waitFor('the key to be handed out', waitMsMax, async () => {
      const { leases } = await detailOf(fleet, job)
      return leases.at(-1)?.keyReleasedAtMs
    })
    return job
  }

  /** Asks a control plane that may be dead, or about to die. */
  async function tryAsking(path: string, body?: unknown): Promise<unknown> {
    const role = body === undefined ? 'operator' : 'security'
    return await fleet
      .ask(path, { role, ...(body === undefined ? {} : { body }) })
      .catch(() => undefined)
  }

  async function lastPurge(): Promise<PurgeLine | undefined> {
    return ((await fleet.ask('/v1/purges?limit=1')) as { items: PurgeLine[] }).items[0]
  }

  /** How many of these jobs open with what was copied before and the epoch keys of a copy. */
  async function opening(early: StolenCopy, epochs: StolenCopy, ids: JobId[]): Promise<number> {
    let opened = 0
    for (const key of early.keys.filter((one) => ids.includes(one.jobId))) {
      const sealed = await early.readSealed(key.objectKey)
      assert.ok(sealed)
      using job = await openStolen({ key, slotFile: epochs.slotFile, sealed })
      if (job !== undefined) opened += 1
    }
    return opened
  }

  /** Waits until it is dead or `isOver`. @returns Whether it died. */
  async function diesBefore(victim: Victim, isOver: () => Promise<boolean>): Promise<boolean> {
    const end = await waitFor(`the fate of ${victim}`, waitMsMax, async () => {
      if (!daemons[victim].isRunning) return 'dead'
      return (await isOver()) ? 'over' : undefined
    })
    // What is over for us may have effects after it.
    if (end === 'over' && (await arm(daemons[victim], { fates: fates.path, at: 0 }))) return false
    await daemons[victim].start()
    return true
  }

  async function purge(victim: Victim, at: number): Promise<boolean> {
    const jobs = { stored: await store(), leased: await lease() }
    const ids = Object.values(jobs)
    await using early = await copyDataDirectory(dataDirectory)
    assert.equal(await opening(early, early, ids), 2, 'the control')
    const before = (await lastPurge())?.id
    const body = { scope: { kind: 'everything' }, reason: 'a test' }
    assert.ok(await arm(daemons[victim], { fates: fates.path, at }))
    await tryAsking('/v1/purges', body)
    const died = await diesBefore(victim, async () => {
      const page = await tryAsking('/v1/purges?limit=1')
      const last = (page as { items: PurgeLine[] } | undefined)?.items[0]
      return last !== undefined && last.id !== before && last.state === 'concluded'
    })
    const begun = await lastPurge()
    if (begun === undefined || begun.id === before) {
      await using copy = await copyDataDirectory(dataDirectory)
      assert.equal(await opening(early, copy, ids), 2, 'what was not begun destroyed nothing')
      await fleet.ask('/v1/purges', { role: 'security', body })
    }
    const { id = '' } = (await lastPurge()) ?? {}
    assert.notEqual(id, before)
    await using struck = await copyDataDirectory(dataDirectory)
    assert.deepEqual(struck.keys, [], 'a purge that is known has taken every key')
    assertDuties(id, jobs)
    await waitFor(`purge ${id} to be concluded`, waitMsMax, async () => {
      const last = await lastPurge()
      return last?.state === 'concluded' ? last : undefined
    })
    for (const job of ids) await proveDeleted(fleet, job)
    const { text } = await fleet.call(`/v1/purges/${id}/report`)
    assert.equal(verifyPurgeCertificate(Buffer.from(text), trusted).jobsCount, 2)
    assert.equal(await second.verdict(Buffer.from(text), trusted), 'verified')
    await using last = await copyDataDirectory(dataDirectory)
    assert.equal(await opening(early, last, ids), 0)
    return died
  }

  /** Every holder that this test made has its duty in the database, done or open. */
  function assertDuties(id: string, { stored, leased }: { stored: JobId; leased: JobId }): void {
    using database = new DatabaseSync(join(dataDirectory, 'sluice.db'), { readOnly: true })
    const rows = database
      .prepare(
        `SELECT kind || ' ' || coalesce(job_id, agent_id, subject_id) AS duty FROM obligations
         WHERE subject_id = ? OR job_id IN (?, ?)`,
      )
      .all(id, stored, leased)
    const known = new Set(rows.map((row) => row['duty']))
    const own = ['spool.delete', 'object.delete', 'key.destroy']
    for (const duty of [
      ...[stored, leased].flatMap((job) => own.map((kind) => `${kind} ${job}`)),
      ...[`lease.wipe ${leased}`, `purge.conclude ${id}`],
      ...[capture, node].map((agent) => `purge.agent ${agent.id}`),
    ])
      assert.ok(known.has(duty), `${duty} is owed or done`)
  }

  async function deletion(victim: Victim, at: number): Promise<boolean> {
    const job = await lease()
    await using early = await copyDataDirectory(dataDirectory)
    assert.equal(await opening(early, early, [job]), 1, 'the control')
    assert.ok(await arm(daemons[victim], { fates: fates.path, at }))
    await gate.open('well')
    const died = await diesBefore(victim, async () => {
      const view = (await tryAsking(`/v1/jobs/${job}`)) as { state: string } | undefined
      return view?.state === 'deleted'
    })
    await fleet.waitForState(job, ['deleted'], waitMsMax)
    await proveDeleted(fleet, job)
    const result = await waitFor('the result', waitMsMax, () =>
      resultOf(capture, job).catch(() => undefined),
    )
    assert.equal((result as { jobId: string }).jobId, job)
    await using last = await copyDataDirectory(dataDirectory)
    assert.equal(await opening(early, last, [job]), 0)
    await gate.close()
    return died
  }

  return {
    async run(what, victim, at) {
      const died = await (what === 'purge' ? purge(victim, at) : deletion(victim, at))
      assert.deepEqual(await namesBelow(spoolOf(capture)), [])
      assert.deepEqual(await namesBelow(join(node.stateDirectory, 'run')), [])
      const objects = await namesBelow(join(dataDirectory, 'objects'))
      assert.deepEqual(objects.toSorted(), ['objects', claimKey, 'uploads'])
      return died
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
