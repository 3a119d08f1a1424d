/**
 * What security staff live through: a purge tried dry, done alone, done by two, by break-glass, with a node
 * away and with held jobs; each ends in evidence that both verifiers take, and the system works on.
 */

import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { publicName } from '@sluice/control-plane/deletion/evidence'
import { approvalView } from '@sluice/protocol/api-approvals'
import { type PurgeDetail, purgeDetail, purgePreview } from '@sluice/protocol/api-purge'
import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'

import { lookAtHost } from '../demo/host.ts'
import { copyDataDirectory, openStolen, type StolenCopy } from '../tools/early-copy.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import { type Fleet, type FleetAgent, fleetSite, startFleet } from '../tools/fleet.ts'
import { type GatedAnalyser, makeGatedAnalyser } from '../tools/gated-analyser.ts'
import {
  detailOf,
  namesBelow,
  proveDeleted,
  resultOf,
  spoolOf,
  submit,
  waitMsMax,
  waitUntilReady,
  waitUntilSealed,
} from '../tools/journey.ts'
import { makeSecurityPerson, type Person } from '../tools/people.ts'
import { makePicture } from '../tools/pictures.ts'
import { SecondVerifier } from '../vectors/certificates.test-setup.ts'

describe('security staff who purge', { timeout: 300_000 }, () => {
  const cleanup = new AsyncDisposableStack()
  let fleet: Fleet
  let capture: FleetAgent
  let annex: FleetAgent
  let node: FleetAgent
  let gate: GatedAnalyser
  let anna: Person
  let berta: Person
  let early: StolenCopy
  let trusted: string
  let second: SecondVerifier
  const jobs = {} as Record<'annex' | 'leased' | 'stored' | 'held', JobId>
  let purgeId: string

  before(async () => {
    const host = await lookAtHost()
    const controlPlane = { allowSwap: host.swap, purge: { aloneJobsMax: 1 } }
    fleet = cleanup.use(await startFleet({ name: 'purge', controlPlane }))
    trusted = join(fleet.controlPlane.dataDirectory, 'evidence', publicName)
    second = cleanup.use(await SecondVerifier.start())
    anna = await makeSecurityPerson(fleet, 'anna')
    berta = await makeSecurityPerson(fleet, 'berta')
    const config = { isolation: host.isolation, allowSwap: host.swap }
    gate = await makeGatedAnalyser(join(fleet.root, 'gate'))
    capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    annex = await fleet.addAgent({ name: 'annex', role: 'capture', site: 'annex', config })
    const analysers = [gate.config]
    node = await fleet.addAgent({ name: 'node', role: 'gpu', config: { ...config, analysers } })
    await Promise.all([capture.start(), annex.start(), node.start()])
    jobs.annex = await store(annex, 'in-the-annex')
    jobs.stored = await store(capture, 'stays-stored')
    jobs.held = await store(capture, 'under-hold')
    jobs.leased = await handIn(capture, 'on-the-node', 'gated')
    await fleet.waitForState(jobs.leased, ['leased'], waitMsMax)
    await waitFor('the key to be handed out', waitMsMax, async () => {
      const { leases } = await detailOf(fleet, jobs.leased)
      return leases.at(-1)?.keyReleasedAtMs
    })
    early = cleanup.use(await copyDataDirectory(fleet.controlPlane.dataDirectory))
  })
  after(() => cleanup.disposeAsync())

  async function handIn(agent: FleetAgent, name: string, analyser: string): Promise<JobId> {
    await waitUntilReady(agent)
    const picture = await makePicture(join(fleet.root, 'tmp'), name)
    const [submission = ''] = await submit(agent, [picture], { analyser })
    return await waitUntilSealed(agent, submission)
  }

  /** For an analyser that no node offers: the job stays where it is. */
  async function store(agent: FleetAgent, name: string): Promise<JobId> {
    const job = await handIn(agent, name, 'offered-by-nobody')
    await fleet.waitForState(job, ['stored'], waitMsMax)
    return job
  }

  /** Which jobs of the early copy open with the epoch keys of a copy. */
  async function openable(epochs: StolenCopy): Promise<JobId[]> {
    const opened: JobId[] = []
    for (const key of [...early.keys, ...(epochs === early ? [] : epochs.keys)]) {
      const sealed = await early.readSealed(key.objectKey)
      assert.ok(sealed, `${key.jobId} was in the store`)
      using job = await openStolen({ key, slotFile: epochs.slotFile, sealed })
      if (job !== undefined) opened.push(job.jobId)
    }
    return opened.toSorted()
  }

  async function show(id: string): Promise<PurgeDetail> {
    return purgeDetail.parse(await anna.ask('purges', 'show', id))
  }

  async function stateOf(job: JobId): Promise<string> {
    return (await detailOf(fleet, job)).state
  }

  async function waitUntilConcluded(id: string): Promise<PurgeDetail> {
    return await waitFor(`purge ${id} to be concluded`, waitMsMax, async () => {
      const now = purgeDetail.parse(await fleet.ask(`/v1/purges/${id}`))
      return now.state === 'concluded' ? now : undefined
    })
  }

  /** Fetches the document of a purge and holds it to both verifiers. @returns What ours said. */
  async function fetchVerified(id: string): Promise<string> {
    const file = join(fleet.root, 'tmp', `${id}.certificate.json`)
    await anna.say('purges', 'report', id, '--out', file)
    const said = await anna.say('verify', file, '--trust', trusted)
    const other = await second.run([file, '--trust', trusted])
    assert.equal(other.code, 0, other.err)
    return said
  }

  it('opened every job with a copy of the data directory: the control', async () => {
    assert.deepEqual(await openable(early), Object.values(jobs).toSorted())
  })

  it('are shown what a purge would hit, and nothing changes', async () => {
    const why = ['--reason', 'annex closes', '--dry-run']
    const preview = purgePreview.parse(await anna.ask('purge', 'site', 'annex', ...why))
    assert.deepEqual([preview.jobs, preview.jobsByState], [1, { stored: 1 }])
    assert.deepEqual(
      preview.agents.map(({ name, connected }) => [name, connected]),
      [['annex', true]],
    )
    assert.equal(preview.needsApproval, false)
    assert.ok(preview.receiveKeys > 0)
    const text = await anna.say('purge', 'site', 'annex', ...why)
    assert.match(text, /^Nothing was changed/)
    assert.equal(await stateOf(jobs.annex), 'stored')
    assert.deepEqual(await anna.ask('purges', 'list'), [])
  })

  it('purge a small site alone, and follow it to its certificate', async () => {
    const text = await anna.say('purge', 'site', 'annex', '--reason', 'annex closes')
    assert.match(text, /keys unusable/)
    assert.match(text, /state +concluded/)
    assert.match(text, /jobs deleted 1\/1/)
    const [, id = ''] = /^purge (\S+)$/m.exec(text) ?? []
    await proveDeleted(fleet, jobs.annex)
    assert.match(await fetchVerified(id), /^verified: this purge is complete/)
    assert.deepEqual(await namesBelow(spoolOf(annex)), [])
    assert.ok((await namesBelow(spoolOf(capture))).length > 0, 'the control: another site is whole')
    assert.equal(await stateOf(jobs.stored), 'stored')
  })

  it('need somebody else for more: until then its scope is locked and nothing destroyed', async () => {
    await anna.say('jobs', 'hold', jobs.held, '--reason', 'case 4711')
    await node.kill9()
    await waitFor('the node to be seen as away', waitMsMax, async () => {
      const preview = purgePreview.parse(
        await anna.ask('purge', 'site', fleetSite, '--reason', 'theft', '--dry-run'),
      )
      assert.deepEqual(preview.heldSkipped, [jobs.held])
      assert.deepEqual([preview.jobs, preview.needsApproval], [2, true])
      const away = preview.agents.find(({ name }) => name === 'node')
      assert.equal(preview.leases[0]?.jobId, jobs.leased)
      return away?.connected === false ? away : undefined
    })
    const asked = await anna.run('purge', 'site', fleetSite, '--reason', 'theft')
    assert.equal(asked.code, 0, asked.stderr)
    assert.match(asked.stdout, /state +waiting/)
    assert.match(asked.stderr, /Nothing is destroyed before another person agrees/)
    const [, id = ''] = /^id +(\S+)$/m.exec(asked.stdout) ?? []
    purgeId = id
    for (const job of [jobs.leased, jobs.stored, jobs.held])
      assert.equal(await stateOf(job), 'frozen')
    await using copy = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    const here = [jobs.leased, jobs.stored, jobs.held].toSorted()
    assert.deepEqual(copy.keys.map((key) => key.jobId).toSorted(), here)
  })

  it('can not be that somebody else themselves', async () => {
    const { approvalId = '' } = await show(purgeId)
    await anna.refused('approval.refused', 'approvals', 'give', approvalId)
    assert.equal((await show(purgeId)).state, 'waiting')
    assert.equal(await stateOf(jobs.stored), 'frozen')
  })

  it('begin it together: keys are dead at once, and a node that is away is named with its deadline', async () => {
    const { approvalId = '' } = await show(purgeId)
    const open = approvalView.array().parse(await berta.ask('approvals', 'list'))
    assert.deepEqual(
      open.map(({ id, asker }) => [id, asker]),
      [[approvalId, 'anna']],
    )
    await berta.say('approvals', 'give', approvalId)
    const begun = await waitFor('all but the node to be done', waitMsMax, async () => {
      const now = purgeDetail.parse(await fleet.ask(`/v1/purges/${purgeId}`))
      const others = now.silent.filter(({ name }) => name !== 'node')
      const rolled = now.keysUnrecoverableAtMs !== undefined && now.objectsAbsentAtMs !== undefined
      return others.length === 0 && rolled ? now : undefined
    })
    assert.equal(begun.state, 'running')
    assert.equal(begun.keysUnusableAtMs, begun.intentAtMs)
    const [away] = begun.silent
    assert.equal(away?.id, node.id)
    const { leases } = await detailOf(fleet, jobs.leased)
    const last = leases.at(-1)
    assert.equal(away?.leasesOverAtMs, (last?.deadlineAtMs ?? 0) + limits.leaseGraceMs)
    const text = await anna.say('purges', 'show', purgeId)
    const overAt = new Date(away?.leasesOverAtMs ?? 0).toISOString().slice(0, 19)
    assert.match(text, /1 agents have not confirmed/)
    assert.match(text, new RegExp(`${node.id} +node +NO .*${overAt}Z`))

    await using copy = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    assert.deepEqual(await openable(copy), [jobs.held], 'only what was skipped has a key')
    assert.equal(await stateOf(jobs.leased), 'deleting', 'its node has confirmed nothing')
  })

  it('get a report meanwhile that no verifier takes for a certificate', async () => {
    const file = join(fleet.root, 'tmp', 'interim.json')
    await anna.say('purges', 'report', purgeId, '--out', file)
    const judged = await anna.run('verify', file, '--trust', trusted)
    assert.equal(judged.code, 3)
    assert.match(judged.stdout, /not a certificate/)
    assert.match(judged.stderr, /evidence\.incomplete/)
    assert.match(judged.stdout, new RegExp(node.id))
    assert.equal((await second.run([file, '--trust', trusted])).code, 3)
    assert.equal((await fleet.call(`/v1/jobs/${jobs.leased}/certificate`)).status, 404)
  })

  it('get the certificate once the node is back, wiped and signed', async () => {
    await node.start()
    const ended = await waitUntilConcluded(purgeId)
    assert.deepEqual([ended.jobsDeleted, ended.silentCount], [2, 0])
    for (const job of [jobs.leased, jobs.stored]) await proveDeleted(fleet, job)
    assert.match(await fetchVerified(purgeId), /heldSkipped +1/)
    assert.deepEqual(await namesBelow(join(node.stateDirectory, 'run')), [])
    const duties = await anna.ask('obligations', '--purge', purgeId)
    assert.deepEqual(duties, [])
    assert.equal(await stateOf(jobs.held), 'frozen')
  })

  it('hand an auditor everything in one bundle, in which no byte can be changed', async () => {
    const file = join(fleet.root, 'tmp', 'purge.tar')
    await anna.say('purges', 'bundle', purgeId, '--out', file)
    assert.match(await anna.say('verify', file, '--trust', trusted), /^the bundle is whole/)
    const bytes = await readFile(file)
    const changed = join(fleet.root, 'tmp', 'changed.tar')
    const at = bytes.indexOf(jobs.stored)
    assert.ok(at > 0)
    bytes[at] = (bytes[at] ?? 0) ^ 1
    await writeFile(changed, bytes)
    assert.equal((await anna.run('verify', changed, '--trust', trusted)).code, 3)
  })

  it('destroy a held job only by two, however urgent it is', async () => {
    const scope = ['purge', 'job', jobs.held, '--reason', 'the court agrees']
    await anna.refused('request.invalid', ...scope, '--including-held', '--break-glass')
    const asked = await anna.run(...scope, '--including-held')
    const [, id = ''] = /^id +(\S+)$/m.exec(asked.stdout) ?? []
    assert.equal(await stateOf(jobs.held), 'frozen')
    const { approvalId = '' } = await show(id)
    await anna.refused('approval.refused', 'approvals', 'give', approvalId)
    await berta.say('approvals', 'give', approvalId)
    await waitUntilConcluded(id)
    await proveDeleted(fleet, jobs.held)
    await fetchVerified(id)
  })

  it('begin alone with break-glass, and everybody hears of it', async () => {
    const both = [await store(capture, 'urgent-1'), await store(capture, 'urgent-2')]
    const scope = ['purge', 'agent', capture.id, '--reason', 'stolen just now']
    const text = await anna.say(...scope, '--break-glass')
    assert.match(text, /state +concluded/)
    const [, id = ''] = /^purge (\S+)$/m.exec(text) ?? []
    for (const job of both) await proveDeleted(fleet, job)
    await fetchVerified(id)
    const alerts = (await berta.ask('alerts', 'list')) as { type: string; severity: string }[]
    const loud = alerts.filter(({ type }) => type === 'purge.break-glass')
    assert.deepEqual(
      loud.map(({ severity }) => severity),
      ['critical'],
    )
    assert.deepEqual(await namesBelow(spoolOf(capture)), [])
  })

  it('go on with the same agents: a new job comes to its result and its certificate', async () => {
    await gate.open('well')
    const job = await handIn(capture, 'afterwards', 'gated')
    await proveDeleted(fleet, job)
    assert.equal(((await resultOf(capture, job)) as { jobId: string }).jobId, job)
    await using copy = await copyDataDirectory(fleet.controlPlane.dataDirectory)
    assert.deepEqual(copy.keys, [])
    const verdict = await anna.ask('audit', 'verify')
    assert.equal((verdict as { whole: boolean }).whole, true)
  })
})
