/** Every way a lease can begin and end: what is asked, what is signed, and that nothing is left. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { openSync, readdirSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, before, beforeEach, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError } from '@sluice/protocol/errors'
import { jobId, leaseId, obligationId, purgeId, sweepId } from '@sluice/protocol/ids'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { Command, LeaseRef, Problem, RequestType } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { receiptStatement, type Receipt } from '@sluice/protocol/receipt'
import { decodeSignedResult, resultStatement } from '@sluice/protocol/result'
import { verifyStatement } from '@sluice/protocol/sealing/dsse'
import { orderSha256Of, verifyPurgeReceipt } from '@sluice/protocol/sealing/verify-purge-receipt'
import type { ControlLink, LeaseKeeping } from '../control-link.ts'
import { diskEffects } from '../durable-file.ts'
import { makeAuthority, type ThrowawayAuthority } from '../throwaway-authority.ts'
import type { Identity } from '../enrol.ts'
import { openJournal, type Journal, type LeaseRecord } from '../journal.ts'
import { createPurges } from '../purge.ts'
import { detectIsolation } from '../sandbox.ts'
import type { AnalyserConfig } from './analyser.ts'
import type { AnalysisEvents } from './analysis-parts.ts'
import {
  digestScript,
  makeJob,
  newObligationId,
  sealKey,
  sha256,
  shellAnalyser,
  type TestJob,
} from './lease.test-job.ts'
import { isMounted, mountMedia } from './media-mount.ts'
import { createAnalysis, type Analysis } from './pipeline.ts'
import { makeTraces, tracesOf } from './wipe.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none' as const)
const root = process.geteuid?.() === 0

type Asked = { type: RequestType; body: unknown; attachment?: Uint8Array; folders: string[] }

/** A control plane that keeps what it was asked, and answers as told. */
function fakeLink(runtimeDirectory: string) {
  const asked: Asked[] = []
  const answers: Partial<Record<RequestType, (body: never) => unknown>> = {}
  const carriers = new Map<string, (command: never, signal: AbortSignal) => Promise<void>>()
  let keeping: LeaseKeeping | undefined
  const link = {
    async request(type: RequestType, body: never, options: { attachment?: Uint8Array } = {}) {
      asked.push({ type, body, ...options, folders: readdirSync(runtimeDirectory) })
      const answer = answers[type]
      return await (answer === undefined ? { body: {} } : answer(body))
    },
    onCommand: (type: string, carryOut: never) => void carriers.set(type, carryOut),
    keepLeases: (given: LeaseKeeping) => void (keeping = given),
    heartbeatNow: () => undefined,
  }
  return {
    link: link as unknown as ControlLink,
    asked,
    answers,
    keeping: () => keeping!,
    give: async (command: Command) =>
      await carriers.get(command.type)!(command as never, new AbortController().signal),
    typesAsked: () => asked.map(({ type }) => type),
    problemOf: (type: RequestType) =>
      (asked.find((one) => one.type === type)?.body as { problem: Problem } | undefined)?.problem,
  }
}

describe('leases of a node', () => {
  let folder = ''
  let runtimeDirectory = ''
  let journal: Journal
  let fake: ReturnType<typeof fakeLink>
  let analysis: Analysis | undefined
  let ended: PromiseWithResolvers<Problem | undefined>
  let job: TestJob
  let identity: Identity
  let authority: ThrowawayAuthority

  before(async () => {
    authority = await makeAuthority()
  })
  beforeEach(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'analysis-'))
    runtimeDirectory = path.join(folder, 'leases')
    await mkdir(runtimeDirectory, { mode: 0o700 })
    journal = await openJournal(folder)
    fake = fakeLink(runtimeDirectory)
    ended = Promise.withResolvers()
    job = makeJob([{ name: '0001.jpg', kind: 'image', bytes: randomBytes(50_000) }])
    identity = await authority.identity({
      ...{ agentUrl: 'https://localhost:1', role: 'gpu', id: job.nodeId },
    })
    fake.answers['lease.accept'] = () => ({ body: { remainingMs: 60_000 } })
    fake.answers['key.request'] = ({ publicKey, fence }: { publicKey: string; fence: number }) => ({
      body: { deadlineAtMs: 1_800_000_000_000 },
      attachment: sealKey(job, {
        publicKey: Buffer.from(publicKey, 'base64url'),
        fence,
        deadlineAtMs: 1_800_000_000_000,
      }),
    })
  })
  afterEach(async () => {
    await analysis?.stop()
    await rm(folder, { recursive: true })
  })

  async function begin(more: { analysers?: AnalyserConfig[]; leasesMax?: number } = {}) {
    const nothing = (): void => undefined
    const events: AnalysisEvents = {
      leaseAccepted: nothing,
      leaseDeclined: nothing,
      mediumAnalysed: nothing,
      leaseEnded: (_, problem) => ended.resolve(problem),
      leaseWiped: nothing,
      wipeIncomplete: (_, attempt, problem) => assert.fail(`${attempt}: ${problem.message}`),
    }
    analysis = await createAnalysis({
      link: fake.link,
      journal,
      identity,
      receipts: { wake: nothing },
      openObject: () => ({
        read: async (offset, length) => Buffer.from(job.sealed.subarray(offset, offset + length)),
      }),
      analysers: more.analysers ?? [shellAnalyser(digestScript)],
      leasesMax: more.leasesMax ?? 1,
      isolation,
      allowSwap: true,
      runtimeDirectory,
      events,
    })
    return analysis
  }

  function offerOf(of: TestJob = job): Extract<Command, { type: 'lease.offer' }> {
    return {
      type: 'lease.offer',
      jobId: of.jobId,
      leaseId: of.leaseId,
      fence: 1,
      durationMs: 60_000,
      analyser: 'test',
      sealedBytes: of.sealed.length,
      sealedHeader: of.sealedHeader.toString('base64url'),
      wipeObligationId: newObligationId(),
    }
  }

  function endOf(offer: ReturnType<typeof offerOf>): Extract<Command, { type: 'lease.end' }> {
    const { wipeObligationId } = offer
    const sealedHeaderSha256 = sha256(job.sealedHeader)
    return {
      type: 'lease.end',
      ...refOf(offer),
      sealedHeaderSha256,
      wipeObligationId,
      reason: 'expired',
    }
  }

  const refOf = (of: LeaseRef): LeaseRef => ({
    jobId: of.jobId,
    leaseId: of.leaseId,
    fence: of.fence,
  })

  /** The receipt that is owed for an offer, after its signature was verified. */
  async function receiptFor(offer: ReturnType<typeof offerOf>): Promise<Receipt> {
    while (journal.data.leases[offer.leaseId]?.state !== 'over') await sleep(10)
    const statement = verifyStatement(journal.data.receipts[offer.wipeObligationId], {
      payloadType: 'application/vnd.sluice.receipt.v1+json',
      publicKey: identity.publicKey,
    })
    const { subject, predicate } = receiptStatement.parse(statement)
    assert.equal(subject[0]?.digest.sha256, sha256(job.sealedHeader))
    assert.deepEqual(readdirSync(runtimeDirectory), [], 'nothing is left of the lease')
    return predicate
  }

  it('end with a signed result and a signed receipt, wiped before the result is reported', async () => {
    await begin()
    const offer = offerOf()
    await fake.give(offer)
    await fake.give(offer)
    assert.equal(await ended.promise, undefined)
    const receipt = await receiptFor(offer)
    assert.equal(receipt.method, 'process-exit')
    assert.equal(receipt.isolation, isolation)
    assert.ok(receipt.memoryLevel)
    assert.deepEqual(receipt.holder, { kind: 'gpu-lease', id: job.nodeId })
    assert.deepEqual(receipt.checked, [
      'child reaped',
      'mount gone',
      'folder gone',
      'no process left',
    ])
    assert.deepEqual(fake.typesAsked(), ['lease.accept', 'key.request', 'lease.result'])
    const sent = fake.asked.find(({ type }) => type === 'lease.result')!
    assert.deepEqual(sent.folders, [], 'nothing was left when the result was reported')
    const signed = decodeSignedResult(job.openResult(Buffer.from(sent.attachment!)))
    const statement = resultStatement.parse(
      verifyStatement(JSON.parse(Buffer.from(signed.statement).toString()), {
        payloadType: 'application/vnd.sluice.result.v1+json',
        publicKey: identity.publicKey,
      }),
    )
    assert.equal(statement.predicate.resultSha256, sha256(signed.result))
    assert.equal(statement.predicate.leaseId, job.leaseId)
    assert.equal(statement.subject[0]?.digest.sha256, sha256(job.sealedHeader))
  })

  it('are confirmed once a full disk has room again, and end nothing until then', async () => {
    let full = 0
    journal = await openJournal(folder, {
      ...diskEffects,
      async create(file, bytes, mode) {
        if (full > 0) throw Object.assign(new Error('no room'), { code: 'ENOSPC', left: full-- })
        await diskEffects.create(file, bytes, mode)
      },
    })
    fake.answers['lease.result'] = () => {
      full = 2
      return { body: {} }
    }
    await begin()
    const offer = offerOf()
    await fake.give(offer)
    assert.equal((await receiptFor(offer)).method, 'process-exit')
    assert.equal(full, 0)
  })

  it('can be tried elsewhere when this host, and not the job, is what fails', async () => {
    await begin()
    const offer = offerOf()
    await makeTraces(tracesOf(runtimeDirectory, offer.leaseId))
    await fake.give(offer)
    const problem = await ended.promise
    assert.equal(problem?.retry, 'later')
    assert.match(problem.message, /EEXIST/)
    await receiptFor(offer)
  })

  it('are declined for an analyser that is not here, with a receipt of nothing held', async () => {
    await begin()
    const offer = { ...offerOf(), analyser: 'other' }
    await fake.give(offer)
    const receipt = await receiptFor(offer)
    assert.equal(receipt.method, 'never-held')
    assert.equal(receipt.memoryLevel, undefined)
    assert.deepEqual(fake.typesAsked(), ['lease.decline'])
    assert.equal(fake.problemOf('lease.decline')?.code, 'analyser.unknown')
  })

  it('are declined beyond the capacity of the node', async () => {
    await begin({ analysers: [shellAnalyser('sleep 1000')] })
    await fake.give(offerOf())
    const second = { ...offerOf(), leaseId: newId(leaseId, Date.now()) }
    await fake.give(second)
    await receiptForSecond(second)
    assert.equal(fake.problemOf('lease.decline')?.code, 'lease.declined')
  })

  async function receiptForSecond(offer: ReturnType<typeof offerOf>): Promise<void> {
    while (journal.data.leases[offer.leaseId]?.state !== 'over') await sleep(10)
    assert.ok(journal.data.receipts[offer.wipeObligationId])
  }

  it('that the control plane refuses to start were never held', async () => {
    await begin()
    fake.answers['lease.accept'] = () => {
      throw new SluiceError('lease.stale', 'too late')
    }
    const offer = offerOf()
    await fake.give(offer)
    assert.equal((await ended.promise)?.code, 'lease.stale')
    assert.equal((await receiptFor(offer)).method, 'never-held')
  })

  it('stop at once when the control plane ends them', async () => {
    await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const offer = offerOf()
    await fake.give(offer)
    while (!fake.typesAsked().includes('key.request')) await sleep(10)
    await fake.give(endOf(offer))
    assert.equal((await ended.promise)?.code, 'lease.stale')
    assert.equal((await receiptFor(offer)).method, 'process-exit')
    assert.ok(!fake.typesAsked().includes('lease.result'))
  })

  it('that are unknown are confirmed by looking, and an offer that comes later is void', async () => {
    await begin()
    const offer = offerOf()
    await fake.give(endOf(offer))
    const { method, checked, memoryLevel } = await receiptFor(offer)
    assert.deepEqual([method, memoryLevel], ['process-exit', undefined])
    assert.deepEqual(checked, [
      'not in the journal',
      'mount gone',
      'folder gone',
      'no process left',
    ])
    await fake.give(offer)
    assert.deepEqual(fake.typesAsked(), [])
  })

  it('that are over get the same receipt again', async () => {
    await begin()
    const offer = offerOf()
    await fake.give(offer)
    const first = await receiptFor(offer)
    await journal.change((draft) => void (draft.receipts = {}))
    await fake.give(endOf(offer))
    assert.deepEqual(await receiptFor(offer), first)
  })

  it('stop by themselves before their deadline when nothing renews them', async () => {
    fake.answers['lease.accept'] = () => ({ body: { remainingMs: 10_300 } })
    await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const offer = offerOf()
    await fake.give(offer)
    assert.equal((await ended.promise)?.code, 'lease.expired')
    await receiptFor(offer)
  })

  it('go on when they are renewed, and end when a renewal leaves them out', async () => {
    fake.answers['lease.accept'] = () => ({ body: { remainingMs: 10_300 } })
    fake.link.heartbeatNow = () => {
      const named = fake.keeping().named()
      const longer = named.map((ref) => ({ ...ref, remainingMs: 60_000 }))
      fake.keeping().renewed(longer, performance.now(), named)
    }
    await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const offer = offerOf()
    await fake.give(offer)
    await sleep(600)
    assert.deepEqual(fake.keeping().named(), [refOf(offer)])
    const named = [refOf(offer)]
    fake.keeping().renewed([{ ...refOf(offer), fence: 2, remainingMs: 60_000 }], 0, named)
    assert.equal((await ended.promise)?.code, 'lease.stale')
    assert.deepEqual(fake.keeping().named(), [])
    await receiptFor(offer)
  })

  it('fail for good when the object is not the announced one', async () => {
    await begin()
    job.sealed = Buffer.from(job.sealed)
    job.sealed[100]! ^= 1
    const offer = offerOf()
    await fake.give(offer)
    assert.equal((await ended.promise)?.code, 'seal.tampered')
    assert.equal(fake.problemOf('lease.fail')?.retry, 'never')
    await receiptFor(offer)
  })

  it('of a process before this one are wiped, reported and confirmed', async () => {
    const offer = offerOf()
    const traces = tracesOf(runtimeDirectory, offer.leaseId)
    await makeTraces(traces)
    if (root) {
      const at = { folder: traces.media, bytesMax: 4096, filesMax: 1 }
      await mountMedia({ kind: 'ramfs', ...at })
    }
    const survivor = spawn('sleep', ['1000'], {
      stdio: ['ignore', 'ignore', 'ignore', openSync(traces.leash, 'r')],
      detached: true,
    })
    const gone = new Promise((resolve) => survivor.once('exit', (_, signal) => resolve(signal)))
    const record: LeaseRecord = {
      ...refOf(offer),
      wipeObligationId: offer.wipeObligationId,
      sealedHeaderSha256: sha256(job.sealedHeader),
      acceptedAtMs: 1,
      memoryLevel: 'no-swap',
      state: 'open',
    }
    await journal.change((draft) => void (draft.leases[offer.leaseId] = record))
    const restarted = await begin()
    restarted.recover()
    assert.equal(await gone, 'SIGKILL')
    const receipt = await receiptFor(offer)
    assert.ok(!isMounted(traces.media))
    assert.equal(fake.problemOf('lease.fail')?.retry, 'later')
    assert.equal(receipt.method, 'process-exit')
    assert.ok(!receipt.checked.includes('child reaped'), 'it was not ours to reap')
  })

  it('are ended, wiped and reported when the agent stops', async () => {
    const running = await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const offer = offerOf()
    await fake.give(offer)
    while (!fake.typesAsked().includes('key.request')) await sleep(10)
    await running.stop()
    assert.equal(fake.problemOf('lease.fail')?.code, 'analysis.failed')
    assert.deepEqual(running.leases(), [])
    await receiptFor(offer)
    const late = { ...offerOf(), jobId: newId(jobId, 1), leaseId: newId(leaseId, 1) }
    await fake.give(late)
    await receiptForSecond(late).catch(() => undefined)
  })

  type Order = Extract<Command, { type: 'purge' }>

  function orderOf(more: Partial<Order>): Order {
    return {
      ...{ type: 'purge', purgeId: newId(purgeId, 1), obligationId: newId(obligationId, 1) },
      ...{ everything: false, jobIds: [], ...more },
    }
  }

  /** Gives a purge, and waits for its receipt. */
  async function purge(running: Analysis, order: Order) {
    const ending = new AbortController()
    const purges = createPurges({
      ...{ link: fake.link, journal, identity, receipts: { wake() {} }, work: running.purging },
      signal: ending.signal,
      events: {
        purgeOrdered() {},
        purged() {},
        purgeIncomplete: (_purge, _attempt, problem) => assert.fail(problem.message),
      },
    })
    await fake.give(order)
    while (journal.data.receipts[order.obligationId] === undefined) await sleep(5)
    ending.abort()
    await purges.settled()
    return verifyPurgeReceipt(journal.data.receipts[order.obligationId], {
      ...{ publicKey: identity.publicKey, agentId: identity.agentId },
      ...{ purgeId: order.purgeId, obligationId: order.obligationId },
      ...{ everything: order.everything, orderSha256: orderSha256Of(order) },
    })
  }

  it('of a purged job end at once, with a receipt of their own and one of the purge', async () => {
    const running = await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const offer = offerOf()
    await fake.give(offer)
    while (!fake.typesAsked().includes('key.request')) await sleep(10)
    const other = await purge(running, orderOf({ jobIds: [newId(jobId, 1)] }))
    assert.equal(other.leasesEnded, 0)
    assert.equal(running.leases().length, 1, 'the control: the purge of another job ends nothing')
    const receipt = await purge(running, orderOf({ jobIds: [job.jobId] }))
    assert.equal(receipt.leasesEnded, 1)
    assert.deepEqual(readdirSync(runtimeDirectory), [])
    assert.equal((await ended.promise)?.code, 'lease.stale')
    assert.equal((await receiptFor(offer)).method, 'process-exit')
    assert.ok(!fake.typesAsked().includes('lease.result'))
  })

  it('end with a purge of everything, and so does what no record explains', async () => {
    const running = await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const stray = tracesOf(runtimeDirectory, newId(leaseId, 1))
    await makeTraces(stray)
    const survivor = spawn('sleep', ['1000'], {
      stdio: ['ignore', 'ignore', 'ignore', openSync(stray.leash, 'r')],
      detached: true,
    })
    const gone = new Promise((resolve) => survivor.once('exit', (_, signal) => resolve(signal)))
    const offer = offerOf()
    await fake.give(offer)
    while (!fake.typesAsked().includes('key.request')) await sleep(10)
    const receipt = await purge(running, orderOf({ everything: true }))
    assert.equal(receipt.leasesEnded, 1)
    assert.equal(await gone, 'SIGKILL')
    await receiptFor(offer)
  })

  it('end and are wiped when the node is revoked, without asking anybody', async () => {
    const running = await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const offer = offerOf()
    await fake.give(offer)
    while (!fake.typesAsked().includes('key.request')) await sleep(10)
    fake.answers['lease.fail'] = () => new Promise(() => {})
    const requests = fake.link.request.bind(fake.link)
    fake.link.request = (async (type: RequestType, body: never, asked: { signal: AbortSignal }) =>
      await Promise.race([
        requests(type, body, asked),
        new Promise((_, reject) =>
          asked.signal.addEventListener('abort', () => reject(asked.signal.reason as Error)),
        ),
      ])) as never
    await running.endForGood()
    const receipt = await receiptFor(offer)
    assert.equal(receipt.method, 'process-exit')
    const late = { ...offerOf(), jobId: newId(jobId, 1), leaseId: newId(leaseId, 1) }
    await fake.give(late)
    assert.deepEqual(running.leases(), [], 'it takes no other')
  })

  it('are named in an inventory until they are wiped', async () => {
    await begin({ analysers: [shellAnalyser('sleep 1000')] })
    const offer = offerOf()
    await fake.give(offer)
    while (!fake.typesAsked().includes('key.request')) await sleep(10)
    const inventory = { type: 'inventory' as const, sweepId: newId(sweepId, 1) }
    await fake.give(inventory)
    const reported = () => fake.asked.findLast(({ type }) => type === 'inventory.report')?.body
    const { sweepId: sweep } = inventory
    assert.deepEqual(reported(), {
      ...{ sweepId: sweep, spools: [], leases: [refOf(offer)], last: true, unnamed: 0 },
    })
    await fake.give(endOf(offer))
    await receiptFor(offer)
    await fake.give(inventory)
    assert.deepEqual(reported(), {
      ...{ sweepId: sweep, spools: [], leases: [], last: true, unnamed: 0 },
    })
  })

  it('that the node offers name its analysers and how it keeps plaintext', async () => {
    const offer = (await begin({ leasesMax: 3 })).offer()
    assert.deepEqual(offer.analysers, [{ name: 'test', version: '1' }])
    assert.equal(offer.leasesMax, 3)
    assert.equal(offer.isolation, isolation)
  })
})
