/** Proves that a submission comes to its result and its receipt whatever is cut off on the way. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, before, beforeEach, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import sharp from 'sharp'
import { need } from '../../../test/src/tools/need.ts'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import {
  commandId,
  jobId,
  leaseId,
  obligationId,
  purgeId,
  receiveKeyId,
  sweepId,
} from '@sluice/protocol/ids'
import type { JobState, SourcePolicy } from '@sluice/protocol/job'
import type { Command, RequestBody } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { receiptStatement } from '@sluice/protocol/receipt'
import { encodeSignedResult } from '@sluice/protocol/result'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { ed25519Signer, signStatement, verifyStatement } from '@sluice/protocol/sealing/dsse'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { orderSha256Of, verifyPurgeReceipt } from '@sluice/protocol/sealing/verify-purge-receipt'
import { createUnsealer } from '@sluice/protocol/sealing/unseal'
import type { ControlLink } from '../control-link.ts'
import { type DurableEffects, diskEffects } from '../durable-file.ts'
import type { Identity } from '../enrol.ts'
import { type Journal, type JournalData, openJournal } from '../journal.ts'
import { createPurges } from '../purge.ts'
import { createReceiptOutbox } from '../receipts.ts'
import { type ThrowawayAuthority, makeAuthority } from '../throwaway-authority.ts'
import type { ObjectClient } from '../transfer/object-client.ts'
import type { CaptureEvents } from './capture-parts.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import { type GatePolicy, gatePolicy } from './gate-policy.ts'
import { type Capture, createCapture } from './pipeline.ts'
import { presentSubmission } from './present.ts'

let authority: ThrowawayAuthority
let identity: Identity
let node: Identity
let folder: string
let photo: string
let plane: ReturnType<typeof makeControlPlane>
let agent: Awaited<ReturnType<typeof startAgent>> | undefined

before(async () => {
  authority = await makeAuthority()
  identity = await authority.identity({ agentUrl: 'https://x' })
  node = await authority.identity({ agentUrl: 'https://x', role: 'gpu' })
})
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-pipeline-'))
  photo = path.join(folder, 'photo.png')
  await sharp({ create: { width: 20, height: 10, channels: 3, background: '#123456' } }).toFile(
    photo,
  )
  plane = makeControlPlane()
})
afterEach(async () => {
  await agent?.end()
  agent = undefined
  await rm(folder, { recursive: true })
})

/** A control plane in memory that plays its side truly, and can go away at any request. */
function makeControlPlane() {
  const seeds = new Map<string, Buffer>()
  const jobs = new Map<
    string,
    { state: JobState; body: RequestBody<'job.announce'>; key: Buffer }
  >()
  const parts = new Map<number, Buffer>()
  const lease = newId(leaseId, 1)
  const spoolObligation = newId(obligationId, 1)
  const self = {
    jobs,
    parts,
    receipts: [] as unknown[],
    delivered: 0,
    announced: 0,
    asked: [] as string[],
    keysPerAnswer: 4,
    /** After the effect of this request the agent hears nothing any more. */
    cutAfter: undefined as string | undefined,
    cut: Promise.withResolvers<void>(),
    refuse: new Map<string, SluiceError>(),
    offline: false,
    inventories: [] as RequestBody<'inventory.report'>[],
    abandoned: [] as string[],
    infections: [] as RequestBody<'medium.infected'>[],
    /** The store takes a part and says nothing, for ever. */
    storeHangs: false,

    async request(type: string, body: never, asked: { attachment?: Buffer; signal?: AbortSignal }) {
      const gone = () =>
        new Promise<never>((_, reject) => {
          asked.signal?.addEventListener('abort', () => reject(asked.signal?.reason as Error))
        })
      self.asked.push(type)
      asked.signal?.throwIfAborted()
      if (self.offline) return gone()
      const refusal = self.refuse.get(type)
      if (refusal) throw refusal
      const reply = self.answer(type, body, asked.attachment)
      if (self.cutAfter !== type) return reply
      self.cutAfter = undefined
      self.cut.resolve()
      return gone()
    },

    answer(type: string, body: never, attachment: Buffer | undefined): unknown {
      switch (type) {
        case 'receive-keys.request': {
          const { stock } = body as RequestBody<'receive-keys.request'>
          if (stock >= self.keysPerAnswer) return { body: { keys: [] } }
          const keys = Array.from({ length: self.keysPerAnswer }, () => {
            const { seed, publicKey } = makeReceiverKeyPair()
            const id = newId(receiveKeyId, 1)
            seeds.set(id, seed)
            const expiresAtMs = Date.now() + 1e6
            return { receiveKeyId: id, publicKey: publicKey.toString('base64url'), expiresAtMs }
          })
          return { body: { keys } }
        }
        case 'medium.infected':
          self.infections.push(body)
          return { body: {} }
        case 'job.announce':
          return self.announce(body, attachment)
        case 'upload.begin': {
          const job = self.jobOf(body)
          if (job.state === 'announced') job.state = 'uploading'
          return { body: { state: job.state, partBytes: 5 * 1024 ** 2, held: [] } }
        }
        case 'upload.grants': {
          const { parts: wanted } = body as RequestBody<'upload.grants'>
          const grants = wanted.map(({ part }) => ({
            part,
            grant: { url: `https://x/${part}`, headers: {}, expiresAtMs: 1e15 },
          }))
          return { body: { grants } }
        }
        case 'upload.complete':
          self.jobOf(body).state = 'stored'
          return { body: { state: 'stored' } }
        case 'job.states': {
          const { jobIds } = body as RequestBody<'job.states'>
          const known = jobIds.flatMap((id) => {
            const state = jobs.get(id)?.state
            return state ? [{ jobId: id, state }] : []
          })
          return { body: { jobs: known } }
        }
        case 'upload.verify':
          return { body: { grant: { url: 'https://x/read', headers: {}, expiresAtMs: 1e15 } } }
        case 'result.fetch':
          return self.result(body)
        case 'result.delivered':
          self.delivered += 1
          return { body: { state: self.jobOf(body).state } }
        case 'inventory.report':
          self.inventories.push(body)
          return { body: {} }
        case 'job.abandon': {
          const { jobId: id } = body as RequestBody<'job.abandon'>
          self.abandoned.push(id)
          if (!jobs.has(id)) throw new SluiceError('job.not_found', 'no such job')
          return { body: { state: 'deleting' } }
        }
        case 'receipt':
          self.receipts.push((body as RequestBody<'receipt'>).receipt)
          return { body: {} }
        default:
          return assert.fail(`no answer to ${type}`)
      }
    },

    jobOf(body: unknown) {
      const job = jobs.get((body as { jobId: string }).jobId)
      assert.ok(job, 'the job is known')
      return job
    },

    announce(body: RequestBody<'job.announce'>, attachment: Buffer | undefined) {
      assert.ok(attachment)
      const known = jobs.get(body.jobId)
      if (!known) {
        const seed = seeds.get(body.receiveKeyId)
        assert.ok(seed, 'sealed to a key that was not used before')
        seeds.delete(body.receiveKeyId)
        const header = Buffer.from(body.sealedHeader, 'base64url')
        const key = openEnvelope({
          ...{ purpose: 'job-key-escrow', jobId: body.jobId, senderId: identity.agentId },
          receiveKeyId: body.receiveKeyId,
          sealedHeaderHash: sealedHeaderHash(header),
          ...{ seed, envelope: attachment },
        })
        self.announced += 1
        jobs.set(body.jobId, { state: 'announced', body, key })
      }
      const state = jobs.get(body.jobId)?.state
      return { body: { state, spoolObligationId: spoolObligation } }
    },

    /** Opens what was stored, as the node would, to find the key for the result. */
    result(body: RequestBody<'result.fetch'>) {
      const job = self.jobOf(body)
      const sealed = Buffer.concat(
        [...parts.entries()].toSorted(([a], [b]) => a - b).map(([, p]) => p),
      )
      using unsealer = createUnsealer({ key: job.key, context: archiveContext(body.jobId) })
      const archive = Buffer.concat([unsealer.update(sealed), unsealer.final()]).toString('latin1')
      const recipient = /"resultPublicKey":"([^"]+)"/.exec(archive)?.[1] ?? ''
      const value = { schema: 'sluice-result/1', analyser: 'example', version: '1', media: [] }
      const result = Buffer.from(JSON.stringify(value))
      const header = Buffer.from(job.body.sealedHeader, 'base64url')
      const statement = signStatement(
        'application/vnd.sluice.result.v1+json',
        {
          _type: 'https://in-toto.io/Statement/v1',
          subject: [
            {
              name: `job:${body.jobId}`,
              digest: { sha256: sealedHeaderHash(header).toString('hex') },
            },
          ],
          predicateType: 'urn:sluice:result:1',
          predicate: {
            ...{ jobId: body.jobId, leaseId: lease, fence: 1, nodeId: node.agentId },
            resultSha256: createHash('sha256').update(result).digest('hex'),
            finishedAtMs: Date.now(),
          },
        },
        ed25519Signer(node.privateKey, node.publicKey),
      )
      const plaintext = encodeSignedResult({
        ...{
          statement: Buffer.from(JSON.stringify(statement)),
          certificate: node.certificate(),
          result,
        },
      })
      const attachment = sealEnvelope({
        ...{ purpose: 'result', jobId: body.jobId, nodeId: node.agentId, leaseId: lease },
        ...{ recipient: Buffer.from(recipient, 'base64url'), plaintext },
      })
      const ref = { jobId: body.jobId, leaseId: lease, fence: 1 }
      return { body: { lease: ref, nodeId: node.agentId }, attachment }
    },
    spoolObligation,
  }
  return self
}

/** Says nothing but what a test wants to hear. */
const quietBut = (events: Partial<CaptureEvents> = {}) =>
  new Proxy(events as CaptureEvents, {
    get: (heard, name: keyof CaptureEvents) => heard[name] ?? (() => {}),
  })

/** One process of the agent: begins with what the journal holds. */
async function startAgent(
  options: {
    reserveBytes?: number
    effects?: DurableEffects
    gate?: GatePolicy
    ffmpeg?: Ffmpeg
    events?: Partial<CaptureEvents>
  } = {},
) {
  const journal: Journal = await openJournal(folder, options.effects)
  const commands = new Map<string, (command: never, signal: AbortSignal) => Promise<void>>()
  const connected: (() => void)[] = []
  const ending = new AbortController()
  const link = {
    state: 'connected' as const,
    request: ((...asked: Parameters<typeof plane.request>) =>
      plane.request(...asked)) as unknown as ControlLink['request'],
    onCommand: ((type: string, run: never) => void commands.set(type, run)) as never,
    onConnected: (run: () => void) => void connected.push(run),
  }
  const receipts = createReceiptOutbox({
    ...{ journal, link, signal: ending.signal },
    refused: (_, error) => assert.fail(String(error)),
  })
  const client = {
    async send({
      grant,
      body,
      signal,
    }: {
      grant: { url: string }
      body: Buffer
      signal: AbortSignal
    }) {
      if (plane.storeHangs) {
        plane.asked.push('part')
        await new Promise((_, reject) =>
          signal.addEventListener('abort', () => reject(signal.reason as Error)),
        )
      }
      plane.parts.set(Number(grant.url.split('/').at(-1)), Buffer.from(body))
      const etag = createHash('md5').update(body).digest('hex')
      return { status: 200, headers: { etag }, body: Buffer.alloc(0) }
    },
  } as unknown as ObjectClient
  const capture: Capture = createCapture({
    ...{ link, journal, identity, receipts, client, ffmpeg: options.ffmpeg },
    events: quietBut(options.events),
    ...(options.gate ? { gate: options.gate } : {}),
    // The sandbox has tests of its own, and the picture is ours.
    isolation: 'none',
    openObject: ({ grant }) => ({
      async read(offset, length) {
        await grant()
        const stored = plane.parts.get(1) ?? Buffer.alloc(0)
        return stored.subarray(offset, offset + length)
      },
    }),
    spoolDir: path.join(folder, 'spool'),
    resultsDir: path.join(folder, 'results'),
    reserveBytes: options.reserveBytes ?? 0,
    partsInParallel: 2,
    progress: () => {},
    random: () => 0,
  })
  const purges = createPurges({
    ...{ link, journal, identity, receipts, work: capture.purging, signal: ending.signal },
    events: {
      purgeOrdered() {},
      purged() {},
      purgeIncomplete: (_purge, _attempt, problem) => assert.fail(problem.message),
    },
  })
  await purges.recover()
  await capture.start()
  for (const run of connected) run()
  return {
    journal,
    capture,
    async say(command: { type: string; jobId?: string }) {
      await commands.get(command.type)?.(command as never, ending.signal)
    },
    connect: () => connected.forEach((run) => run()),
    async end() {
      await capture[Symbol.asyncDispose]()
      ending.abort()
      await Promise.all([receipts.done, purges.settled()])
    },
  }
}

async function submit(source: SourcePolicy = { action: 'keep', when: 'result' }) {
  assert.ok(agent)
  const files = [photo]
  return agent.capture.submit({ files, analyser: 'example', source, origin: 'command' })
}
async function until(what: () => boolean | undefined): Promise<void> {
  while (!what()) await sleep(5)
}
const onlyJob = () => Object.values(agent?.journal.data.jobs ?? {})[0]

/** The control plane's part after the upload: result durable, deletion begun. */
async function analyse(): Promise<void> {
  await until(() => [...plane.jobs.values()][0]?.state === 'stored')
  const [id, job] = [...plane.jobs][0] ?? []
  assert.ok(id && job && agent)
  job.state = 'deleting'
  const header = Buffer.from(job.body.sealedHeader, 'base64url')
  await agent.say({ type: 'result.ready', jobId: id })
  await agent.say({
    ...{ type: 'spool.delete', jobId: id, obligationId: plane.spoolObligation },
    ...{ sealedHeaderSha256: sealedHeaderHash(header).toString('hex') },
  })
}

/** What must be true at the end, however it came about. */
async function requireEnd(): Promise<void> {
  await until(() => onlyJob()?.step === 'over' && plane.receipts.length > 0)
  const job = onlyJob()
  assert.ok(job?.resultPath)
  assert.equal(JSON.parse(await readFile(job.resultPath, 'utf8')).jobId, job.jobId)
  assert.ok(plane.delivered > 0)
  assert.equal(plane.announced, 1)
  assert.deepEqual(await readdir(path.join(folder, 'spool')), [])
  for (const receipt of plane.receipts) {
    const payloadType = 'application/vnd.sluice.receipt.v1+json'
    const { publicKey } = identity
    const statement = receiptStatement.parse(verifyStatement(receipt, { payloadType, publicKey }))
    assert.equal(statement.predicate.obligationId, plane.spoolObligation)
    assert.equal(statement.predicate.method, 'unlink')
    assert.equal(statement.subject[0]?.digest.sha256, job.sealedHeaderSha256)
  }
}

describe('a submission', () => {
  it('comes to its result, its receipt and an empty spool', async () => {
    agent = await startAgent()
    const id = await submit()
    await analyse()
    await requireEnd()
    assert.equal(presentSubmission(agent.journal.data, id)?.stage, 'over')
    assert.ok(existsSync(photo), 'the source is kept')
  })

  for (const cutAfter of [
    'job.announce',
    'upload.complete',
    'result.fetch',
    'result.delivered',
    'receipt',
  ])
    it(`goes on when the agent ends after ${cutAfter} had its effect but no answer`, async () => {
      agent = await startAgent()
      plane.cutAfter = cutAfter
      await submit()
      const analysing = cutAfter.startsWith('re') ? analyse() : undefined
      await plane.cut.promise
      await analysing
      await agent.end()
      agent = await startAgent()
      if (!analysing) await analyse()
      await requireEnd()
    })

  it('is sealed while the control plane is away, and carried on later', async () => {
    agent = await startAgent()
    await until(() => agent?.journal.data.receiveKeys.length === plane.keysPerAnswer)
    plane.offline = true
    await submit()
    await until(() => onlyJob()?.step === 'sealed')
    await agent.end()
    plane.offline = false
    agent = await startAgent()
    await analyse()
    await requireEnd()
  })

  it('waits, with a reason, while there is no receive key', async () => {
    plane.offline = true
    agent = await startAgent()
    await submit()
    await sleep(50)
    assert.equal(onlyJob(), undefined)
    assert.deepEqual(await readdir(path.join(folder, 'spool')), [])
    plane.offline = false
    await agent.end()
    agent = await startAgent()
    await analyse()
    await requireEnd()
  })

  it('waits for room in the spool without using up receive keys', async () => {
    const codes: string[] = []
    const events = {
      sealingPutOff: (_: unknown, problem: SluiceError) => void codes.push(problem.code),
    }
    agent = await startAgent({ reserveBytes: 2 ** 50, events })
    await until(() => agent?.journal.data.receiveKeys.length === plane.keysPerAnswer)
    const id = await submit()
    await until(() => (agent?.journal.data.submissions[id]?.attempts ?? 0) > 0)
    assert.equal(codes[0], 'spool.full')
    assert.equal(agent.journal.data.submissions[id]?.state, 'waiting')
    assert.equal(agent.journal.data.submissions[id]?.problem?.code, 'spool.full')
    assert.equal(agent.journal.data.receiveKeys.length, plane.keysPerAnswer)
    await agent.end()
    agent = await startAgent()
    await until(() => agent?.journal.data.submissions[id]?.state === 'sealed')
    assert.equal(agent.journal.data.submissions[id]?.problem, undefined, 'it is over')
    await analyse()
    await requireEnd()
  })

  it('is sealed anew, under another id, when the first sealing was cut short', async () => {
    agent = await startAgent()
    const id = await submit()
    await until(() => agent?.journal.data.submissions[id]?.state === 'sealing')
    const first = agent.journal.data.submissions[id]?.jobId
    await agent.end()
    agent = await startAgent()
    await analyse()
    await requireEnd()
    assert.notEqual(onlyJob()?.jobId, first)
  })

  it('is refused with the reason when its file is no medium', async () => {
    await writeFile(photo, 'text')
    agent = await startAgent()
    const id = await submit()
    await until(() => agent?.journal.data.submissions[id]?.state === 'refused')
    const view = presentSubmission(agent.journal.data, id)
    assert.equal(view?.problem?.code, 'media.unsupported')
    assert.equal(plane.announced, 0)
  })

  it('is refused when the control plane will not have it, and leaves nothing in the spool', async () => {
    plane.refuse.set('job.announce', new SluiceError('analyser.unknown', 'no such analyser'))
    agent = await startAgent()
    const id = await submit()
    await until(() => agent?.journal.data.submissions[id]?.state === 'refused')
    while ((await readdir(path.join(folder, 'spool'))).length > 0) await sleep(5)
  })
})

describe('a sealing that is of no use', () => {
  it('is redone from the source with another key, and forgotten in the same step', async () => {
    const used = new SluiceError('keys.destroyed', 'this receive key is used up or expired')
    plane.refuse.set('job.announce', used)
    const written: string[] = []
    agent = await startAgent({
      effects: {
        ...diskEffects,
        async create(file, bytes, mode) {
          const { jobs, submissions } = JSON.parse(Buffer.from(bytes).toString()) as JournalData
          const [submission] = Object.values(submissions)
          written.push(`${submission?.state} ${Object.keys(jobs).length}`)
          await diskEffects.create(file, bytes, mode)
        },
      },
    })
    const id = await submit()
    await until(() => (agent?.journal.data.submissions[id]?.attempts ?? 0) > 1)
    plane.refuse.clear()
    // A crash after any of these writes leaves a submission that waits, or is sealed with its job.
    const after = written.slice(written.indexOf('sealed 1'))
    assert.ok(after.includes('waiting 0'))
    assert.ok(!after.includes('sealed 0') && !after.includes('waiting 1'))
    await analyse()
    await requireEnd()
  })

  it('is redone when its spool was lost before it was announced', async () => {
    agent = await startAgent()
    await until(() => agent?.journal.data.receiveKeys.length === plane.keysPerAnswer)
    plane.offline = true
    await submit()
    await until(() => onlyJob()?.step === 'sealed')
    const lost = onlyJob()?.jobId
    await agent.end()
    await rm(path.join(folder, 'spool', lost ?? ''), { recursive: true })
    plane.offline = false
    agent = await startAgent()
    await analyse()
    await requireEnd()
    assert.notEqual(onlyJob()?.jobId, lost)
  })
})

describe('an archive that was lost before its upload', () => {
  it('is given up, also when the control plane cannot write that down at first', async () => {
    const failed: string[] = []
    agent = await startAgent({
      events: { dutyFailed: (_, duty, { code }) => void failed.push(`${duty} ${code}`) },
    })
    const full = new SluiceError('host.disk_full', 'its disk is full', { retry: 'later' })
    plane.refuse.set('upload.begin', full)
    plane.refuse.set('job.abandon', full)
    await submit()
    await until(() => failed.includes('upload host.disk_full'))
    const { jobId: lost = '' } = onlyJob() ?? {}
    await rm(path.join(folder, 'spool', lost, 'archive.sealed'))
    plane.asked.length = 0
    await until(() => plane.asked.filter((type) => type === 'job.abandon').length > 1)
    assert.deepEqual(plane.abandoned, [])
    plane.refuse.clear()
    await until(() => onlyJob()?.remoteState === 'deleting')
    assert.deepEqual(plane.abandoned, [lost])
    await until(() => onlyJob()?.problem?.code === 'spool.damaged')
  })
})

describe('a full disk', () => {
  it('under the journal puts sealing and uploading off, and ends nothing', async () => {
    type Written = Pick<Journal['data'], 'jobs' | 'submissions'>
    const isSealing = ({ submissions }: Written): boolean =>
      Object.values(submissions).some(({ state }) => state === 'sealing')
    const hasJob = ({ jobs }: Written): boolean => Object.keys(jobs).length > 0
    // Full at once after a write of that kind: from outside, the moment could be missed.
    const disk = { full: false, met: 0, fillsAt: isSealing }
    const effects = {
      ...diskEffects,
      async create(file: string, bytes: Uint8Array, mode: number) {
        if (disk.full) disk.met += 1
        if (disk.full) throw Object.assign(new Error('no room'), { code: 'ENOSPC' })
        await diskEffects.create(file, bytes, mode)
        disk.full = disk.fillsAt(JSON.parse(Buffer.from(bytes).toString()) as Written)
      },
    }
    agent = await startAgent({ effects })
    await submit()
    await until(() => disk.met > 3)
    assert.equal(onlyJob(), undefined)
    Object.assign(disk, { full: false, met: 0, fillsAt: hasJob })
    await until(() => disk.met > 6)
    Object.assign(disk, { full: false, fillsAt: () => false })
    await analyse()
    await requireEnd()
  })
})

describe('a source', () => {
  it('is deleted once the result is durable here, not before', async () => {
    agent = await startAgent()
    await submit({ action: 'delete', when: 'result' })
    await until(() => onlyJob()?.step === 'stored')
    assert.ok(existsSync(photo))
    await analyse()
    await requireEnd()
    assert.equal(existsSync(photo), false)
  })

  it('is deleted when stored only after the whole object was read back', async () => {
    agent = await startAgent()
    await submit({ action: 'delete', when: 'stored' })
    await until(() => !existsSync(photo))
    assert.ok(plane.asked.includes('upload.verify'))
    await analyse()
    await requireEnd()
  })

  it('is kept when the stored object is not the spool', async () => {
    agent = await startAgent()
    const send = plane.parts.set.bind(plane.parts)
    plane.parts.set = (part, bytes) => send(part, Buffer.from(bytes).fill(0, 100, 101))
    await submit({ action: 'delete', when: 'stored' })
    await until(() => onlyJob()?.problem?.code === 'store.digest_mismatch')
    assert.ok(existsSync(photo))
  })
})

describe('spool.delete', () => {
  it('is confirmed for a job this host never had', async () => {
    agent = await startAgent()
    const command = {
      type: 'spool.delete',
      jobId: newId(jobId, 5),
      sealedHeaderSha256: 'ab'.repeat(32),
    }
    const more = { obligationId: newId(obligationId, 5), commandId: newId(commandId, 5) }
    await agent.say({ ...command, ...more })
    await until(() => plane.receipts.length === 1)
    const payloadType = 'application/vnd.sluice.receipt.v1+json'
    const { publicKey } = identity
    const verified = verifyStatement(plane.receipts[0], { payloadType, publicKey })
    assert.equal(receiptStatement.parse(verified).predicate.method, 'never-held')
  })

  it('ends a job that never had a result', async () => {
    agent = await startAgent()
    await submit()
    await until(() => onlyJob()?.step === 'stored')
    plane.refuse.set('result.fetch', new SluiceError('result.not_found', 'none'))
    await analyse()
    await until(() => onlyJob()?.step === 'over' && plane.receipts.length === 1)
    assert.equal(onlyJob()?.noResult, true)
    assert.ok(existsSync(photo))
    assert.deepEqual(await readdir(path.join(folder, 'spool')), [])
  })
})

describe('submit', () => {
  it('takes regular files only', async () => {
    agent = await startAgent()
    photo = path.join(folder, 'missing.png')
    await assert.rejects(submit(), (error) => isSluiceError(error, 'media.not_a_file'))
  })
})

describe('an emergency purge', () => {
  type Order = Extract<Command, { type: 'purge' }>
  const orderOf = (more: Partial<Order> = {}): Order => ({
    ...{ type: 'purge', purgeId: newId(purgeId, 1), obligationId: newId(obligationId, 1) },
    ...{ everything: false, jobIds: [], ...more },
  })
  const spool = () => path.join(folder, 'spool')
  const stageNow = (id: Parameters<typeof presentSubmission>[1]) =>
    agent && presentSubmission(agent.journal.data, id)?.stage

  /** The receipt that the control plane got for an order, after it was verified. */
  async function receiptOf(order: Order) {
    const { obligationId: owed } = order
    const about = (envelope: unknown) =>
      JSON.parse(
        Buffer.from((envelope as { payload: string }).payload, 'base64').toString('utf8'),
      ) as { predicate: { obligationId: string } }
    const found = () => plane.receipts.filter((one) => about(one).predicate.obligationId === owed)
    await until(() => found().length > 0)
    const { purgeId: id, obligationId: duty, everything } = order
    return verifyPurgeReceipt(found()[0], {
      ...{ publicKey: identity.publicKey, agentId: identity.agentId },
      ...{ purgeId: id, obligationId: duty, everything, orderSha256: orderSha256Of(order) },
    })
  }

  async function methodOfSpoolReceipt(id: string) {
    const count = plane.receipts.length
    await agent?.say({
      ...{ type: 'spool.delete', jobId: id, obligationId: newId(obligationId, 1) },
      ...{ sealedHeaderSha256: 'a'.repeat(64) },
    })
    await until(() => plane.receipts.length > count)
    return receiptStatement.parse(
      verifyStatement(plane.receipts.at(-1), {
        payloadType: 'application/vnd.sluice.receipt.v1+json',
        publicKey: identity.publicKey,
      }),
    ).predicate.method
  }

  it('of everything cuts uploads, takes drafts and what waits, and leaves the sources', async () => {
    plane.keysPerAnswer = 2
    agent = await startAgent()
    await until(() => agent?.journal.data.receiveKeys.length === plane.keysPerAnswer)
    // Two keys for two drafts: the third submission has to wait for one.
    plane.refuse.set('receive-keys.request', new SluiceError('internal', 'no', { retry: 'later' }))
    plane.storeHangs = true
    const uploading = await submit()
    await until(() => plane.asked.includes('part'))
    const [stored] = plane.jobs.keys()
    plane.refuse.set('job.announce', new SluiceError('internal', 'not now', { retry: 'later' }))
    const draft = await submit()
    await until(() => stageNow(draft) === 'announce')
    const draftJob = agent.journal.data.submissions[draft]?.jobId
    const waiting = await submit()
    await until(() => stageNow(waiting) === 'waiting')
    const order = orderOf({ everything: true })
    await agent.say(order)
    await agent.say(order)
    const receipt = await receiptOf(order)
    assert.deepEqual(
      { spools: receipt.spoolsWiped, drafts: receipt.draftsWiped, results: receipt.resultsWiped },
      { spools: 1, drafts: 1, results: 2 },
    )
    assert.deepEqual(await readdir(spool()), [])
    assert.deepEqual(Object.keys(agent.journal.data.jobs), [])
    for (const each of [uploading, draft, waiting]) assert.equal(stageNow(each), 'purged')
    assert.ok(existsSync(photo), 'the source is the customer’s')
    await until(() => plane.abandoned.length === 1)
    assert.deepEqual(plane.abandoned, [draftJob], 'what was never announced for sure is given up')

    assert.ok(stored)
    assert.equal(await methodOfSpoolReceipt(stored), 'unlink')
    assert.equal(await methodOfSpoolReceipt(newId(jobId, 1)), 'never-held', 'the control')

    plane.storeHangs = false
    plane.refuse.clear()
    agent.connect()
    const later = await submit()
    await until(() => stageNow(later) === 'stored')
  })

  it('of one job leaves the others alone', async () => {
    agent = await startAgent()
    const [one, other] = [await submit(), await submit()]
    await until(() => stageNow(one) === 'stored' && stageNow(other) === 'stored')
    const id = agent.journal.data.submissions[one]?.jobId
    const left = agent.journal.data.submissions[other]?.jobId
    assert.ok(id && left)
    const order = orderOf({ jobIds: [id] })
    await agent.say(order)
    assert.equal((await receiptOf(order)).spoolsWiped, 1)
    assert.deepEqual(await readdir(spool()), [left])
    assert.deepEqual([stageNow(one), stageNow(other)], ['purged', 'stored'])
  })

  it('of a time takes the drafts of that time and no others', async () => {
    plane.refuse.set('job.announce', new SluiceError('internal', 'not now', { retry: 'later' }))
    agent = await startAgent()
    const draft = await submit()
    await until(() => stageNow(draft) === 'announce')
    const sealedAtMs = onlyJob()?.sealedAtMs ?? 0
    const earlier = orderOf({ sealed: { fromMs: 0, untilMs: sealedAtMs } })
    await agent.say(earlier)
    assert.equal((await receiptOf(earlier)).draftsWiped, 0)
    assert.equal((await readdir(spool())).length, 1, 'the control')
    const then = orderOf({ sealed: { fromMs: sealedAtMs, untilMs: sealedAtMs + 1 } })
    await agent.say(then)
    assert.equal((await receiptOf(then)).draftsWiped, 1)
    assert.deepEqual(await readdir(spool()), [])
  })

  it('removes what no record explains', async () => {
    agent = await startAgent()
    const orphan = newId(jobId, Date.now())
    await mkdir(path.join(spool(), orphan), { mode: 0o700 })
    await writeFile(path.join(spool(), orphan, 'archive.sealed'), 'ciphertext')
    await writeFile(path.join(spool(), 'README'), 'not ours')
    const order = orderOf({ everything: true })
    await agent.say(order)
    const receipt = await receiptOf(order)
    assert.equal(receipt.draftsWiped, 1)
    assert.ok(receipt.checked.some((words) => words.includes('1 entries that name no job')))
    assert.deepEqual(await readdir(spool()), ['README'])
  })

  it('empties the spool although the journal cannot be written, and is confirmed later', async () => {
    let full = false
    agent = await startAgent({
      effects: {
        ...diskEffects,
        async create(...asked) {
          if (full) throw Object.assign(new Error('full'), { code: 'ENOSPC' })
          await diskEffects.create(...asked)
        },
      },
    })
    const one = await submit()
    await until(() => stageNow(one) === 'stored')
    full = true
    const order = orderOf({ everything: true })
    await assert.rejects(agent.say(order), (error) => isSluiceError(error, 'host.disk_full'))
    assert.deepEqual(await readdir(spool()), [])
    full = false
    await agent.say(order)
    assert.equal((await receiptOf(order)).spoolsWiped, 1)
  })

  it('ends a sealing under way', async () => {
    plane.refuse.set('job.announce', new SluiceError('internal', 'not now', { retry: 'later' }))
    agent = await startAgent()
    await until(() => agent!.journal.data.receiveKeys.length > 0)
    const one = await submit()
    await until(() => agent?.journal.data.submissions[one]?.state === 'sealing')
    const order = orderOf({ everything: true })
    await agent.say(order)
    assert.equal((await receiptOf(order)).draftsWiped, 1)
    assert.deepEqual(await readdir(spool()), [])
    assert.equal(stageNow(one), 'purged')
  })
})

describe('two authorities at once', () => {
  it('both vouch for nodes, and a third one does not', async () => {
    const [ours, theirs] = [identity, node]
    const second = await makeAuthority()
    const trusted = [authority.pem]
    try {
      identity = { ...ours, authorities: () => trusted }
      node = await second.identity({ agentUrl: 'https://x', role: 'gpu' })
      agent = await startAgent()
      await submit()
      await analyse()
      await until(() => onlyJob()?.problem?.code === 'result.forged')
      trusted.push(second.pem)
      await agent.end()
      agent = await startAgent()
      await requireEnd()
    } finally {
      identity = ours
      node = theirs
    }
  })
})

describe('an inventory', () => {
  it('names what lies in the spool, known or not', async () => {
    agent = await startAgent()
    await agent.say({ type: 'inventory', sweepId: newId(sweepId, 1) } as never)
    assert.deepEqual(plane.inventories.at(-1)?.spools, [], 'an empty spool is told too')
    const one = await submit()
    await until(() => onlyJob()?.step === 'stored')
    const known = agent.journal.data.submissions[one]?.jobId
    const orphan = newId(jobId, Date.now())
    await mkdir(path.join(folder, 'spool', orphan), { mode: 0o700 })
    await writeFile(path.join(folder, 'spool', orphan, 'archive.sealed'), 'four')
    await agent.say({ type: 'inventory', sweepId: newId(sweepId, 1) } as never)
    const report = plane.inventories.at(-1)
    assert.ok(known && report?.last)
    assert.deepEqual(
      new Map(report.spools.map((each) => [each.jobId, each.sealedBytes])),
      new Map([
        [known, onlyJob()?.sealedBytes],
        [orphan, 4],
      ]),
    )
  })
})

describe('the gate of a submission', () => {
  const needYara = need('yara', existsSync('/usr/bin/yara'), 'apt-get install yara')
  const marker = 'what-no-scanner-lets-pass'
  const at = (name: string) => path.join(folder, name)

  async function scanning(more: object = {}): Promise<GatePolicy> {
    const yaraRulesFile = at('rules.yar')
    await writeFile(yaraRulesFile, `rule own { strings: $a = "${marker}" condition: $a }\n`)
    return gatePolicy.parse({ scan: { yaraRulesFile, ...more } })
  }
  async function infectedPhoto(name: string): Promise<string> {
    await writeFile(at(name), Buffer.concat([await readFile(photo), Buffer.from(marker)]))
    return at(name)
  }
  const watched = (files: string[]) => {
    assert.ok(agent)
    const source = { action: 'keep', when: 'result' } as const
    return agent.capture.submit({ files, analyser: 'example', source, origin: 'watch' })
  }
  const inState = (state: string) =>
    Object.values(agent?.journal.data.submissions ?? {}).filter((each) => each.state === state)

  it(
    'sends nothing of an infected source, keeps its hash, and tells, also when the line is cut',
    {
      skip: needYara,
    },
    async () => {
      const gate = await scanning()
      const file = await infectedPhoto('bad.png')
      agent = await startAgent({ gate })
      plane.cutAfter = 'medium.infected'
      await watched([file])
      await plane.cut.promise
      await agent.end()
      agent = await startAgent({ gate })
      await until(() => plane.infections.length === 2)
      const sha256 = createHash('sha256')
        .update(await readFile(file))
        .digest('hex')
      await until(() => agent?.journal.data.quarantine[sha256 as never]?.told)
      assert.equal(plane.infections[0]?.infectionId, plane.infections[1]?.infectionId)
      assert.equal(plane.infections[0]?.finding, 'own')
      assert.ok(!JSON.stringify(plane.infections).includes(sha256))
      assert.equal(inState('refused')[0]?.problem?.code, 'media.infected')
      assert.equal(plane.announced, 0)
      assert.deepEqual(await readdir(path.join(folder, 'spool')), [])
    },
  )

  it(
    'knows an infected source again without a scanner, and tells of it no second time',
    {
      skip: needYara,
    },
    async () => {
      const file = await infectedPhoto('bad.png')
      agent = await startAgent({ gate: await scanning() })
      await watched([file])
      await until(() => plane.infections.length === 1)
      await agent.end()
      agent = await startAgent()
      await watched([file])
      await until(() => inState('refused').length === 2)
      await watched([photo])
      await until(() => plane.announced === 1)
      assert.equal(plane.infections.length, 1)
    },
  )

  it(
    'lets a batch of a watched folder go on without its bad ones',
    { skip: needYara },
    async () => {
      await writeFile(at('words.png'), 'only words')
      agent = await startAgent({ gate: await scanning() })
      await watched([at('words.png'), photo, await infectedPhoto('bad.png'), at('photo.png')])
      await until(() => plane.announced === 1)
      assert.equal([...plane.jobs.values()][0]?.body.mediaCount, 2)
      assert.deepEqual(
        inState('refused').map(({ sources, problem }) => [
          path.basename(sources[0]?.path ?? ''),
          problem?.code,
        ]),
        [
          ['words.png', 'media.unsupported'],
          ['bad.png', 'media.infected'],
        ],
      )
    },
  )

  it('is cut in half for as long as nobody knows what is wrong with a batch', async () => {
    await writeFile(at('b.png'), await readFile(photo))
    plane.refuse.set('job.announce', new SluiceError('object.too_large', 'too much at once'))
    agent = await startAgent()
    await watched([photo, at('b.png')])
    await until(() => inState('refused').length === 2)
    assert.deepEqual(
      inState('refused').map(({ sources }) => sources.length),
      [1, 1],
    )
  })

  it('waits for its scanner without using up receive keys', { skip: needYara }, async () => {
    const gate = await scanning()
    await rm(at('rules.yar'))
    const codes: string[] = []
    const events = {
      sealingPutOff: (_: unknown, problem: SluiceError) => void codes.push(problem.code),
    }
    agent = await startAgent({ gate, events })
    const id = await submit()
    await until(() => codes.length > 0)
    assert.match(codes[0] ?? '', /^scan\./)
    const waiting = agent.journal.data.submissions[id]
    assert.equal(waiting?.state, 'waiting')
    assert.equal(waiting?.attempts, 0)
    await until(() => agent?.journal.data.submissions[id]?.problem !== undefined)
    await scanning()
    // Woken by the next connection; otherwise it would look again within a second.
    agent.connect()
    await until(() => plane.announced === 1)
    assert.equal(plane.asked.filter((type) => type === 'job.announce').length, 1)
  })

  it('outlives a decoder that crashes: its medium is refused, the next one goes on', async () => {
    const program = at('crashing-ffmpeg')
    await writeFile(program, '#!/bin/sh\nkill -SEGV $$\n', { mode: 0o700 })
    const ffmpeg: Ffmpeg = {
      ...{ program, version: '7.0', origin: 'configured', films: true, toneMapping: true },
    }
    const rate = 8000
    const sound = Buffer.alloc(44 + 2 * rate)
    sound.write('RIFF', 0, 'latin1')
    sound.writeUInt32LE(sound.length - 8, 4)
    sound.write('WAVEfmt ', 8, 'latin1')
    sound.writeUInt32LE(16, 16)
    sound.writeUInt16LE(1, 20)
    sound.writeUInt16LE(1, 22)
    sound.writeUInt32LE(rate, 24)
    sound.writeUInt32LE(2 * rate, 28)
    sound.writeUInt16LE(2, 32)
    sound.writeUInt16LE(16, 34)
    sound.write('data', 36, 'latin1')
    sound.writeUInt32LE(2 * rate, 40)
    await writeFile(at('sound.wav'), sound)
    agent = await startAgent({ ffmpeg })
    await watched([at('sound.wav'), photo])
    await until(() => plane.announced === 1)
    assert.equal([...plane.jobs.values()][0]?.body.mediaCount, 1)
    assert.equal(inState('refused')[0]?.problem?.code, 'media.decoder_failed')
    assert.equal(path.basename(inState('refused')[0]?.sources[0]?.path ?? ''), 'sound.wav')
  })
})
