/** Proves the channel end to end on a real control plane: one job from its announcement to its certificate. */
import assert from 'node:assert/strict'
import { createHash, createPrivateKey, createPublicKey, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Agent, request as httpRequest } from 'undici'
import { WebSocket } from 'ws'
import { z } from 'zod'
import { decodeFrame, encodeFrame } from '@sluice/protocol/frame'
import { jobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import {
  type Command,
  type DownMessage,
  downMessage,
  type Grant,
  type Problem,
  type RequestBody,
  type RequestReply,
  type RequestType,
} from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { type Receipt, receiptOf } from '@sluice/protocol/receipt'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { ed25519Signer, signStatement } from '@sluice/protocol/sealing/dsse'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { createSealer, sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { openSealed } from '@sluice/protocol/sealing/unseal'
import { verifyCertificate } from '@sluice/protocol/sealing/verify-certificate'
import {
  type JoinedAgent,
  joinedAgent,
  startControlPlane,
  type TestControlPlane,
} from './control-plane.test-setup.ts'

let system: TestControlPlane
before(async () => {
  system = await startControlPlane()
})
after(() => system[Symbol.asyncDispose]())

type Reply<T extends RequestType> = RequestReply<T> & { attachment?: Buffer }

/** An agent's end of the channel, as thin as it can be. */
async function connect(agent: JoinedAgent, role: 'capture' | 'gpu', at = system) {
  const tls = { ca: at.ca, cert: agent.cert, key: agent.key }
  const socket = new WebSocket(`${agent.agentUrl.replace('https:', 'wss:')}/v1/channel`, tls)
  const dispatcher = new Agent({ connect: tls })
  const replies = new Map<string, (message: DownMessage, attachment?: Buffer) => void>()
  const commands: Command[] = []
  const goodbyes: Problem[] = []
  let wake: (() => void) | undefined
  socket.on('error', () => undefined)
  socket.on('message', (data, isBinary) => {
    const frame = decodeFrame(data as Buffer, isBinary)
    const message = downMessage.parse(frame.message)
    if (message.type === 'reply') replies.get(message.requestId)?.(message, frame.attachment)
    if (message.type === 'goodbye') goodbyes.push(message.problem)
    if (message.type === 'command') {
      commands.push(message.command)
      const { seq, commandId } = message
      socket.send(encodeFrame({ type: 'ack', seq, commandId }))
    }
    wake?.()
  })
  await once(socket, 'open')
  const offer = {
    analysers: [{ name: 'faces', version: '1' }],
    leasesMax: 1,
    memoryLevel: 'no-swap',
    isolation: 'bubblewrap',
  }
  const hello = { versions: [1], build: 'test', role, atMs: Date.now(), lastSeq: 0 }
  const instanceId = newId(z.uuidv7(), Date.now())
  socket.send(
    encodeFrame({ type: 'hello', ...hello, instanceId, ...(role === 'gpu' ? { offer } : {}) }),
  )
  const privateKey = createPrivateKey(agent.key)
  const signer = ed25519Signer(privateKey, createPublicKey(privateKey))

  const end = {
    socket,
    goodbyes,
    async ask<T extends RequestType>(
      request: T,
      body: RequestBody<T>,
      attachment?: Buffer,
    ): Promise<Reply<T>> {
      const requestId = newId(z.uuidv7(), Date.now())
      const replied = Promise.withResolvers<Reply<T>>()
      replies.set(requestId, (message, back) => {
        assert.ok(message.type === 'reply')
        if (message.problem)
          replied.reject(Object.assign(new Error(message.problem.message), message.problem))
        else replied.resolve(Object.assign(message.body as Reply<T>, back && { attachment: back }))
      })
      socket.send(encodeFrame({ type: 'request', requestId, request, body }, attachment))
      return replied.promise
    },
    /** Waits for a command of this type, and takes it. */
    async command<T extends Command['type']>(type: T): Promise<Extract<Command, { type: T }>> {
      for (;;) {
        const index = commands.findIndex((one) => one.type === type)
        if (index >= 0) return commands.splice(index, 1)[0] as Extract<Command, { type: T }>
        await new Promise<void>((resolve) => (wake = resolve))
      }
    },
    /** Uses a grant as an agent does: nothing but its own headers. */
    async use(grant: Grant, method: 'PUT' | 'GET', body?: Buffer): Promise<Buffer> {
      const answer = await httpRequest(grant.url, {
        method,
        dispatcher,
        headers: grant.headers,
        ...(body === undefined ? {} : { body }),
      })
      assert.ok(answer.statusCode < 300, `${method}: ${answer.statusCode}`)
      return Buffer.from(await answer.body.arrayBuffer())
    },
    confirm(receipt: Omit<Receipt, 'checked' | 'startedAtMs' | 'wipedAtMs'>, header: string) {
      const atMs = Date.now()
      const facts = { checked: ['gone'], startedAtMs: atMs, wipedAtMs: atMs }
      const statement = receiptOf({ ...receipt, ...facts }, header)
      const type = 'application/vnd.sluice.receipt.v1+json'
      return end.ask('receipt', { receipt: signStatement(type, statement, signer) })
    },
    async [Symbol.asyncDispose]() {
      socket.terminate()
      await dispatcher.close()
    },
  }
  return end
}

type End = Awaited<ReturnType<typeof connect>>

/** Seals, announces and uploads a job. */
async function submit(capture: End, agent: JoinedAgent, plaintext: Buffer) {
  const { keys } = await capture.ask('receive-keys.request', { stock: 0 })
  const receiveKey = keys[0]
  assert.ok(receiveKey)
  const id = newId(jobId, Date.now())
  const key = randomBytes(32)
  using sealer = createSealer({ key, context: archiveContext(id) })
  const sealed = Buffer.concat([sealer.header, sealer.update(plaintext), sealer.final()])
  const header = sealed.subarray(0, 56)
  const envelope = sealEnvelope({
    purpose: 'job-key-escrow',
    jobId: id,
    senderId: agent.agentId,
    receiveKeyId: receiveKey.receiveKeyId,
    sealedHeaderHash: sealedHeaderHash(header),
    recipient: Buffer.from(receiveKey.publicKey, 'base64url'),
    plaintext: key,
  })
  const announcement = {
    jobId: id,
    analyser: 'faces',
    mediaCount: 1,
    sealedBytes: sealed.length,
    sealedHeader: header.toString('base64url'),
    spoolSha256: createHash('sha256').update(sealed).digest('hex'),
    receiveKeyId: receiveKey.receiveKeyId,
    source: { action: 'keep', when: 'result' },
    sealedAtMs: Date.now(),
  } as const
  const { spoolObligationId } = await capture.ask('job.announce', announcement, envelope)
  await capture.ask('upload.begin', { jobId: id })
  const md5 = createHash('md5').update(sealed).digest()
  const part = { part: 1, bytes: sealed.length, md5: md5.toString('base64') }
  const { grants } = await capture.ask('upload.grants', { jobId: id, parts: [part] })
  assert.ok(grants[0])
  await capture.use(grants[0].grant, 'PUT', sealed)
  const parts = [{ part: 1, etag: md5.toString('hex') }]
  const { state } = await capture.ask('upload.complete', { jobId: id, parts })
  assert.equal(state, 'stored')
  return { id, header, spoolObligationId }
}

describe('the channel of a real control plane', () => {
  it('carries one job from its announcement to a certificate that verifies', async () => {
    const captureAgent = await joinedAgent(system, 'capture')
    const nodeAgent = await joinedAgent(system, 'gpu')
    await using capture = await connect(captureAgent, 'capture')
    await using node = await connect(nodeAgent, 'gpu')
    const plaintext = randomBytes(40_000)
    const job = await submit(capture, captureAgent, plaintext)

    const offer = await node.command('lease.offer')
    const lease = { jobId: offer.jobId, leaseId: offer.leaseId, fence: offer.fence }
    await node.ask('lease.accept', lease)
    const { seed, publicKey } = makeReceiverKeyPair()
    const released = await node.ask('key.request', {
      ...lease,
      publicKey: publicKey.toString('base64url'),
    })
    assert.ok(released.attachment)
    const jobKey = openEnvelope({
      purpose: 'job-key-lease',
      ...lease,
      nodeId: nodeAgent.agentId,
      deadlineAtMs: released.deadlineAtMs,
      sealedHeaderHash: sealedHeaderHash(job.header),
      seed,
      envelope: released.attachment,
    })
    const { grant, sealedBytes } = await node.ask('object.read', lease)
    const object = await node.use(grant, 'GET')
    using archive = await openSealed({
      key: jobKey,
      context: archiveContext(job.id),
      sealedBytes,
      read: async (offset: number, length: number) => object.subarray(offset, offset + length),
    })
    assert.deepEqual(await archive.readRange(0, plaintext.length), plaintext)

    const sealedResult = randomBytes(500)
    const sealedResultSha256 = createHash('sha256').update(sealedResult).digest('hex')
    await node.ask('lease.result', { ...lease, sealedResultSha256 }, sealedResult)
    const header = createHash('sha256').update(job.header).digest('hex')
    const wiped = {
      ...lease,
      obligationId: offer.wipeObligationId,
      holder: { kind: 'gpu-lease', id: nodeAgent.agentId },
      method: 'process-exit',
      memoryLevel: 'no-swap',
      isolation: 'bubblewrap',
    } as const
    await node.confirm(wiped, header)

    assert.equal((await capture.command('result.ready')).jobId, job.id)
    const fetched = await capture.ask('result.fetch', { jobId: job.id })
    assert.deepEqual(fetched.attachment, sealedResult)
    await capture.ask('result.delivered', { jobId: job.id, sealedResultSha256 })
    const order = await capture.command('spool.delete')
    assert.equal(order.obligationId, job.spoolObligationId)
    const holder = { kind: 'capture-spool', id: captureAgent.agentId } as const
    await capture.confirm(
      { jobId: job.id, obligationId: order.obligationId, holder, method: 'unlink' },
      header,
    )

    const secret = await system.secretFor('operator')
    let certificate = await system.call('GET', `/v1/jobs/${job.id}/certificate`, { secret })
    // Issued as soon as the roll is through; there is no signal for it on this side of the API.
    const giveUpAtMs = Date.now() + 5 * limits.epochRollCoalesceMs
    while (certificate.status === 404 && Date.now() < giveUpAtMs) {
      await new Promise((resolve) => setTimeout(resolve, 50))
      certificate = await system.call('GET', `/v1/jobs/${job.id}/certificate`, { secret })
    }
    assert.equal(certificate.status, 200, certificate.text)
    const evidence = await readFile(join(system.dataDir, 'evidence', 'evidence-public.pem'))
    const summary = verifyCertificate(Buffer.from(certificate.text), createPublicKey(evidence))
    assert.equal(summary.jobId, job.id)
    const shown = await system.call('GET', `/v1/jobs/${job.id}`, { secret })
    assert.equal(shown.json['state'], 'deleted')
  })

  it('cuts a revoked agent off with a word, and freezes its jobs', async () => {
    const agent = await joinedAgent(system, 'capture')
    await using capture = await connect(agent, 'capture')
    const job = await submit(capture, agent, randomBytes(100))
    const security = await system.secretFor('security')
    const closed = once(capture.socket, 'close')
    const path = `/v1/agents/${agent.agentId}/revoke`
    assert.equal((await system.call('POST', path, { secret: security, body: {} })).status, 200)
    await closed
    assert.equal(capture.goodbyes[0]?.code, 'identity.revoked')
    const shown = await system.call('GET', `/v1/jobs/${job.id}`, { secret: security })
    assert.equal(shown.json['state'], 'frozen')
    await assert.rejects(connect(agent, 'capture'))
  })

  it('ends in time although agents are connected', async () => {
    const own = await startControlPlane()
    const agent = await joinedAgent(own, 'capture')
    await using capture = await connect(agent, 'capture', own)
    await capture.ask('receive-keys.request', { stock: limits.receiveKeysPerAgent })
    const closed = once(capture.socket, 'close')
    await own[Symbol.asyncDispose]()
    await closed
    assert.equal(capture.goodbyes[0]?.code, 'channel.closed')
  })
})
