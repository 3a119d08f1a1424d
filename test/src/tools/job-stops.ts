/**
 * Stops a job in one state after the other, for as long as a test wants to look or to break something.
 *
 * At each stop a part of the system waits for another one, so no moment has to be caught: the answer to
 * an announcement is held back, an upload is slow, there is no node, an analyser waits, a capture host
 * stands still.
 */

import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'

import type { JobId } from '@sluice/protocol/ids'

import { lookAtHost } from '../demo/host.ts'
import { waitFor } from './fleet-daemon.ts'
import { startFleet } from './fleet.ts'
import type { Fleet, FleetAgent, FleetOptions } from './fleet.ts'
import { makeGatedAnalyser } from './gated-analyser.ts'
import { hiddenAddress, startHeldLink } from './held-link.ts'
import { detailOf, submit, waitUntilReady, waitMsMax, waitUntilSealed } from './journey.ts'
import { descendantsOf } from './process-family.ts'

/** In the order of a job that fails once, is tried again, and ends. */
export const stoppedStates = [
  'announced',
  'uploading',
  'stored',
  'leased',
  'failed',
  'deleting',
  'deleted',
] as const
export type StoppedState = (typeof stoppedStates)[number]

export type JobStops = AsyncDisposable & {
  readonly fleet: Fleet
  readonly capture: FleetAgent
  readonly node: FleetAgent
  /** Hands a file in, and gives back its job once that stands `announced`. One job at a time. */
  begin(file: string): Promise<JobId>
  /** Lets the job go on and waits until it stands in that state, which must come after its present one. */
  goOn(state: Exclude<StoppedState, 'announced'>): Promise<void>
  /** Breaks the links of the agents and lets new ones through, as after `begin`, which holds them. */
  cutLinks(): void
  /** Process id of the analyser, while the job stands `leased`. With `directory` it works in its media's folder. */
  analyserPid(): Promise<number>
}

/**
 * An archive takes some seconds at this rate: time enough to see it under way and to stop its host. The
 * first second's worth goes at once, so the archive must be larger than that.
 */
const uploadBytesPerSecond = 40_000

/** Starts a fleet of one capture host and one node; the node runs once it is needed. */
export async function makeJobStops(
  options: FleetOptions & {
    /** How the analyser gets its media. */
    input?: 'stdin' | 'directory'
    agent?: Record<string, unknown>
  },
): Promise<JobStops> {
  await using cleanup = new AsyncDisposableStack()
  const { input, agent = {}, controlPlane, ...rest } = options
  const fleet = cleanup.use(
    await startFleet({
      ...rest,
      controlPlane: { allowSwap: true, listenAddress: hiddenAddress, ...controlPlane },
    }),
  )
  const link = cleanup.use(await startHeldLink(fleet.controlPlane.agentUrl))
  cleanup.use(await startHeldLink(fleet.controlPlane.operatorUrl))
  const gate = await makeGatedAnalyser(join(fleet.root, 'gate'), input)
  const { isolation } = await lookAtHost()
  const config = { isolation, allowSwap: true, ...agent }
  const [capture, node] = await Promise.all([
    fleet.addAgent({
      ...{ name: 'capture', role: 'capture' },
      config: {
        ...{ ...config, spoolReserveBytes: 0 },
        ...{ bandwidthBytesPerSecond: uploadBytesPerSecond },
      },
    }),
    fleet.addAgent({
      ...{ name: 'node', role: 'gpu' },
      config: { ...config, analysers: [gate.config] },
    }),
  ])
  // A process that stands still does not end when it is told to.
  cleanup.defer(() => letRun(capture))
  await capture.start()
  const owned = cleanup.move()
  let job: JobId | undefined

  const requireJob = (): JobId => {
    if (job === undefined) throw new Error('there is no job yet')
    return job
  }
  async function reach(state: StoppedState): Promise<void> {
    await fleet.waitForState(requireJob(), [state], waitMsMax)
  }
  const waitForAnalyser = (): Promise<number> =>
    waitFor('the analyser to run', waitMsMax, () => analyserBelow(join(fleet.root, 'gate')))
  /** Leased, the key released, and the medium in front of the analyser. */
  async function reachAnalysis(): Promise<void> {
    await reach('leased')
    await waitForAnalyser()
    const { leases } = await detailOf(fleet, requireJob())
    if (leases.at(-1)?.keyReleasedAtMs === undefined) throw new Error('analysed without a key')
  }

  const steps: Record<Exclude<StoppedState, 'announced'>, () => Promise<void>> = {
    async uploading() {
      link.cut()
      await reach('uploading')
      process.kill(capture.pid, 'SIGSTOP')
    },
    async stored() {
      letRun(capture)
      await reach('stored')
    },
    async leased() {
      if (!node.isRunning) await node.start()
      await reachAnalysis()
    },
    async failed() {
      await gate.open('badly')
      await reach('failed')
      await gate.close()
    },
    async deleting() {
      const { state } = await detailOf(fleet, requireJob())
      if (state === 'failed') await fleet.ask(`/v1/jobs/${requireJob()}/retry`, { body: {} })
      await reachAnalysis()
      process.kill(capture.pid, 'SIGSTOP')
      await gate.open('well')
      await reach('deleting')
    },
    async deleted() {
      letRun(capture)
      await reach('deleted')
      await gate.close()
    },
  }

  return {
    fleet,
    capture,
    node,
    async begin(file) {
      // A job is stored for as long as there is no node.
      if (node.isRunning) await node.stop()
      await waitUntilReady(capture)
      link.hold()
      const [submission = ''] = await submit(capture, [file], { analyser: 'gated' })
      job = await waitUntilSealed(capture, submission)
      await reach('announced')
      return job
    },
    goOn: (state) => steps[state](),
    cutLinks: () => link.cut(),
    analyserPid: waitForAnalyser,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function letRun(agent: FleetAgent): void {
  if (agent.isRunning) process.kill(agent.pid, 'SIGCONT')
}

/**
 * The shell whose command names the folder, as the gated analyser's does, once it has read its medium whole and
 * sleeps in front of the gate: before that a dead control plane, which is the store here, costs a lease.
 */
async function analyserBelow(folder: string): Promise<number | undefined> {
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    if (!command.startsWith('/bin/sh') || !command.includes(folder)) continue
    if (descendantsOf(Number(pid)).some(({ name }) => name === 'sleep')) return Number(pid)
  }
  return undefined
}
