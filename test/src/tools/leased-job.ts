/** What a node moved by hand does with a lease: takes the key, reads the archive, seals a result of its own making. */

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'

import { signResult } from '@sluice/agent/analysis/confirm'
import type { NodeIdentity } from '@sluice/agent/analysis/confirm'
import type { AgentId } from '@sluice/protocol/ids'
import type { Manifest } from '@sluice/protocol/manifest'
import type { Grant, LeaseRef, RequestReply } from '@sluice/protocol/messages'
import { encodeSignedResult } from '@sluice/protocol/result'
import type { Result } from '@sluice/protocol/result'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { Agent, request } from 'undici'

import { openArchive } from './early-copy.ts'
import type { CommandOf, HandDriven, Reply } from './fake-agent.ts'

export type HeldLease = {
  ref: LeaseRef
  nodeId: AgentId
  offer: CommandOf<'lease.offer'>
  sealedHeaderSha256: string
  manifest: Manifest
}

/** @throws AssertionError with the problem, when the reply is one. */
export function good(reply: Reply): Reply {
  assert.equal(reply.problem, undefined, JSON.stringify(reply.problem))
  return reply
}

export function refOf({ jobId, leaseId, fence }: LeaseRef): LeaseRef {
  return { jobId, leaseId, fence }
}

/** Accepts the lease that is offered for a job, and opens the job's archive, as a good node does. */
export async function takeLease(node: HandDriven, jobId: string, fence = 1): Promise<HeldLease> {
  const fits = (one: LeaseRef) => one.jobId === jobId && one.fence === fence
  const offer = await node.command('lease.offer', fits)
  const ref = refOf(offer)
  good(await node.request('lease.accept', ref))
  node.leases.push(ref)
  const jobKey = await askKey(node, offer)
  const sealed = await readObject(node, ref)
  using opened = openArchive({ jobId: offer.jobId, jobKey, sealed })
  const sealedHeader = Buffer.from(offer.sealedHeader, 'base64url')
  return {
    ref,
    nodeId: node.identity.agentId,
    offer,
    sealedHeaderSha256: Buffer.from(sealedHeaderHash(sealedHeader)).toString('hex'),
    manifest: opened.manifest,
  }
}

/** The question a node asks for a job's key, with a public key of nobody. */
export function keyQuestion(ref: LeaseRef): LeaseRef & { publicKey: string } {
  const { seed, publicKey } = makeReceiverKeyPair()
  seed.fill(0)
  return { ...ref, publicKey: publicKey.toString('base64url') }
}

async function askKey(node: HandDriven, offer: CommandOf<'lease.offer'>): Promise<Buffer> {
  const ref = refOf(offer)
  const { seed, publicKey } = makeReceiverKeyPair()
  const asked = { ...ref, publicKey: publicKey.toString('base64url') }
  const { body, attachment } = good(await node.request('key.request', asked))
  assert.ok(attachment)
  const sealedHeader = Buffer.from(offer.sealedHeader, 'base64url')
  return openEnvelope({
    purpose: 'job-key-lease',
    ...ref,
    nodeId: node.identity.agentId,
    deadlineAtMs: (body as RequestReply<'key.request'>).deadlineAtMs,
    sealedHeaderHash: Uint8Array.from(sealedHeaderHash(sealedHeader)),
    seed,
    envelope: attachment,
  })
}

async function readObject(node: HandDriven, ref: LeaseRef): Promise<Buffer> {
  const { body } = good(await node.request('object.read', ref))
  const { grant, sealedBytes } = body as RequestReply<'object.read'>
  const answer = await readGrant(node, grant, sealedBytes)
  assert.equal(answer.status, 206)
  return answer.bytes
}

/** Uses a read grant of the directory store as this agent. */
export async function readGrant(
  node: Pick<HandDriven, 'identity'>,
  grant: Grant,
  sealedBytes: number,
): Promise<{ status: number; bytes: Buffer }> {
  const dispatcher = new Agent({
    connect: { ...node.identity.tlsOptions(), minVersion: 'TLSv1.3' },
  })
  try {
    const answer = await request(grant.url, {
      dispatcher,
      headers: { ...grant.headers, range: `bytes=0-${sealedBytes - 1}` },
    })
    const bytes = Buffer.from(await answer.body.arrayBuffer())
    return { status: answer.statusCode, bytes }
  } finally {
    await dispatcher.close()
  }
}

/** What can be wrong with a result; what is left out is as it must be. */
export type ResultParts = {
  /** Who signs, and whose certificate goes along. */
  signer: NodeIdentity
  certificate?: Buffer
  ref?: LeaseRef
  sealedHeaderSha256?: string
  /** Put in the place of the result after it was signed. */
  swapFor?: Buffer
}

/** Seals a result to the job's own result key: whoever has seen the manifest can do that. */
export function sealResult(held: HeldLease, parts: ResultParts): Buffer {
  const value: Result = {
    schema: 'sluice-result/1',
    analyser: held.manifest.analyser,
    version: '1',
    media: held.manifest.media.map(({ name }) => ({ name, output: { seen: true } })),
  }
  const result = Buffer.from(JSON.stringify(value))
  const { statement, certificate } = signResult(parts.signer, {
    lease: parts.ref ?? held.ref,
    sealedHeaderSha256: parts.sealedHeaderSha256 ?? held.sealedHeaderSha256,
    resultSha256: createHash('sha256').update(result).digest('hex'),
    finishedAtMs: Date.now(),
  })
  const plaintext = encodeSignedResult({
    statement,
    certificate: parts.certificate ?? certificate,
    result: parts.swapFor ?? result,
  })
  return sealEnvelope({
    purpose: 'result',
    jobId: held.ref.jobId,
    leaseId: held.ref.leaseId,
    nodeId: held.nodeId,
    recipient: Buffer.from(held.manifest.resultPublicKey, 'base64url'),
    plaintext,
  })
}

/** Hands a sealed result in for a lease. */
export async function sendResult(node: HandDriven, ref: LeaseRef, sealed: Buffer): Promise<Reply> {
  const sealedResultSha256 = createHash('sha256').update(sealed).digest('hex')
  return await node.request('lease.result', { ...ref, sealedResultSha256 }, sealed)
}
