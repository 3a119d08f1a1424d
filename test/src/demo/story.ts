/** The demo's story in its order: carry media to deletion, then prove what is left of them. */

import { generateKeyPairSync } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { JobDetail } from '@sluice/protocol/api-fleet'

import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import { startFleet } from '../tools/fleet.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'
import type { Evidence } from './evidence.ts'
import { gatherEvidence } from './evidence.ts'
import type { HostOffer } from './host.ts'
import { lookAtHost } from './host.ts'
import { makeMedia } from './make-media.ts'
import type { Ownership } from './ownership.ts'
import type { Progress } from './progress.ts'
import type { DemoJob } from './stages.ts'
import { analyseAndDelete, sealAndUpload } from './stages.ts'
import type { Summary } from './summary.ts'
import { printProof, printResult, readResult, summariseJob } from './summary.ts'
import type { EarlyThief, LateAttempts } from './thief.ts'
import { stealEarly, stealLate } from './thief.ts'
import type { Leftovers, TraceReport } from './traces.ts'
import { countLeftovers, lookForTraces } from './traces.ts'

export type Scene = {
  /** Files to carry; none for media made on the spot. */
  files: readonly string[]
  progress: Progress
  ownership: Ownership
  /** Told as soon as there is one, so that a failure can show its logs. */
  onFleet: (fleet: Fleet) => void
}

/** What came of the way there. */
export type Carried = {
  host: HostOffer
  fleet: Fleet
  capture: FleetAgent
  jobs: readonly DemoJob[]
  details: readonly JobDetail[]
  thief: EarlyThief
  /** Media that could not be made, in words. */
  missing: readonly string[]
}

/** What was found afterwards. */
export type Proof = {
  evidence: Evidence
  late: LateAttempts
  leftovers: Leftovers
  traces: TraceReport
}

/**
 * Runs the whole demo.
 *
 * @throws RefusedError when the gate refuses a file; Error when anything fails, or is left.
 */
export async function tellStory(scene: Scene): Promise<Summary> {
  const startedAtMs = Date.now()
  const carried = await carry(scene)
  const { progress } = scene
  progress.heading('Results, sealed by the node and opened on the capture host alone')
  for (const job of carried.jobs)
    printResult(progress, job, mediaOf(carried, job), await readResult(resultFileOf(carried, job)))
  progress.heading('What is left?')
  await using folder = await makeEvidenceFolder()
  const proof = await prove(carried, folder.path)
  printProof(progress, { thief: carried.thief, ...proof })
  requireNothingLeft(proof)
  const summary = await summarise(carried, proof, startedAtMs)
  folder.keep()
  return summary
}

async function carry(scene: Scene): Promise<Carried> {
  const { progress, ownership } = scene
  const host = await lookAtHost()
  const making = mediaFor(scene, host)
  // When the start fails first, its reason is the one to tell.
  making.catch(() => undefined)
  progress.line('Sluice: sealed on capture, opened only in memory, provably gone.')
  for (const remark of host.remarks) progress.line(`! ${remark}`)

  progress.heading('A control plane and a capture host start, and join with a single-use token')
  const { fleet, capture } = await startCaptureSide(scene, host)
  const { controlPlane } = fleet
  progress.line(`control plane   ${controlPlane.operatorUrl} (operators), ${controlPlane.agentUrl}`)
  progress.line(`capture host    ${capture.id}`)
  const { files, missing } = await making
  for (const line of missing) progress.line(`! ${line}`)

  progress.heading('Media are normalised, stripped, sealed in memory, and uploaded as ciphertext')
  const jobs = await sealAndUpload({ fleet, capture, files, progress })

  progress.heading('A thief copies all that the control plane and its store hold, just now')
  const ids = jobs.map((job) => job.jobId)
  const thief = await ownership.own(await stealEarly(controlPlane.dataDirectory, ids))
  progress.line(`He opens ${thief.jobs.length} of ${jobs.length} jobs: until deletion, keys exist.`)
  progress.line(`What he saw is what we look for later (${thief.needles.length} pieces).`)

  progress.heading('A GPU node starts, joins, takes the leases, and analyses in memory')
  const node = await fleet.addAgent({ name: 'node', role: 'gpu', config: guardsOf(host) })
  await node.start()
  progress.line(`GPU node        ${node.id}, isolation ${host.isolation}`)
  const details = await analyseAndDelete({ fleet, jobs, progress })
  return { host, fleet, capture, jobs, details, thief, missing }
}

/** Guards that this host makes it necessary to switch off, by name. */
function guardsOf({ isolation, swap }: HostOffer): Record<string, unknown> {
  return { isolation, allowSwap: swap }
}

/** Media made on the spot lie outside of everything that is scanned: sources are the customer's. */
async function mediaFor({ files, ownership }: Scene, host: HostOffer) {
  if (files.length > 0) return { files, missing: [] }
  const folder = await ownership.own(await makeTemporaryDirectory('demo-media'))
  return await makeMedia(folder.path, host.ffmpeg?.films ? host.ffmpeg.program : undefined)
}

async function startCaptureSide({ ownership, onFleet }: Scene, host: HostOffer) {
  const settings = { allowSwap: host.swap }
  const fleet = await ownership.own(await startFleet({ name: 'demo', controlPlane: settings }))
  onFleet(fleet)
  const config = guardsOf(host)
  const capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
  await capture.start()
  return { fleet, capture }
}

async function prove({ fleet, jobs, thief }: Carried, folder: string): Promise<Proof> {
  const evidence = await gatherEvidence({
    fleet,
    jobIds: jobs.map((job) => job.jobId),
    folder,
    otherKeyFile: await makeOtherKey(fleet.root),
  })
  const late = await stealLate(fleet.controlPlane.dataDirectory, thief)
  const leftovers = await countLeftovers(fleet)
  return { evidence, late, leftovers, traces: await lookForTraces(fleet, thief.needles) }
}

function requireNothingLeft({ late, leftovers, traces }: Proof): void {
  if (late.opened + late.objectsFound + late.jobKeysFound > 0)
    throw new Error('the late thief still finds something')
  if (Object.values(leftovers).some((count) => count > 0)) throw new Error('something is left over')
  if (traces.found !== '') throw new Error(traces.found)
}

async function summarise(carried: Carried, proof: Proof, startedAtMs: number): Promise<Summary> {
  const { host, fleet, thief } = carried
  const { evidence, ...found } = proof
  const { certificates, ...kept } = evidence
  const jobs = await Promise.all(
    carried.jobs.map(async (job, index) => {
      const detail = carried.details.find((one) => one.id === job.jobId)
      const certificate = certificates[index]
      if (detail === undefined || certificate === undefined) throw new Error(`no ${job.jobId}`)
      const resultFile = resultFileOf(carried, job)
      const media = mediaOf(carried, job)
      return await summariseJob({ fleet, job, detail, media, certificate, resultFile })
    }),
  )
  const { operatorUrl, agentUrl } = fleet.controlPlane
  const early = { takenAtMs: thief.takenAtMs, files: thief.files, jobsOpened: thief.jobs.length }
  return {
    schema: 'sluice-demo/1',
    startedAtMs,
    elapsedMs: Date.now() - startedAtMs,
    remarks: [...host.remarks, ...carried.missing],
    isolation: host.isolation,
    ffmpeg: host.ffmpeg ? { version: host.ffmpeg.version, origin: host.ffmpeg.origin } : null,
    controlPlane: { operatorUrl, agentUrl },
    agents: fleet.agents.map(({ id, name, role }) => ({ id, name, role })),
    jobs,
    thief: { early, late: found.late },
    leftovers: found.leftovers,
    traces: found.traces,
    evidence: kept,
  }
}

function resultFileOf({ capture }: Carried, job: DemoJob): string {
  return join(capture.resultsDirectory, `${job.jobId}.json`)
}

function mediaOf({ thief }: Carried, job: DemoJob) {
  return thief.jobs.find((one) => one.jobId === job.jobId)?.media ?? []
}

/** The only folder that outlives a run, once the run has succeeded. */
async function makeEvidenceFolder(): Promise<AsyncDisposable & { path: string; keep(): void }> {
  const path = await mkdtemp(join(tmpdir(), 'sluice-demo-evidence-'))
  let kept = false
  return {
    path,
    keep() {
      kept = true
    },
    async [Symbol.asyncDispose]() {
      if (!kept) await rm(path, { recursive: true })
    },
  }
}

/** A key that signed nothing, for `sluice verify` to refuse. */
async function makeOtherKey(folder: string): Promise<string> {
  const path = join(folder, 'tmp', 'other-key.pem')
  const { publicKey } = generateKeyPairSync('ed25519')
  await writeFile(path, publicKey.export({ format: 'pem', type: 'spki' }))
  return path
}
