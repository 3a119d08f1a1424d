/** Jobs by the thousand whose keys a test knows: announced over the real channel, by a hand-driven agent. */

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'

import { jobId, type JobId, receiveKeyId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { sealEnvelope } from '@sluice/protocol/sealing/key-envelope'
import { createSealer, sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { sealedBytesOf } from '@sluice/protocol/sealing/sealed-size'

import type { HandDriven } from './fake-agent.ts'

/** One announced job, with everything that ever left its capture host. */
export type AnnouncedKey = {
  readonly jobId: JobId
  /** 32 bytes, the test's own. */
  readonly jobKey: Buffer
  readonly sealedHeader: Buffer
  readonly envelope: Buffer
}

type Supplied = { receiveKeyId: string; publicKey: string }

/** Announces `count` jobs, each with a key of its own; none of their archives is ever uploaded. */
export async function announceKeys(link: HandDriven, count: number): Promise<AnnouncedKey[]> {
  const announced: AnnouncedKey[] = []
  while (announced.length < count) {
    const { body, problem } = await link.request('receive-keys.request', { stock: 0 })
    assert.equal(problem, undefined)
    const { keys } = body as { keys: Supplied[] }
    assert.ok(keys.length > 0)
    const wanted = keys.slice(0, count - announced.length)
    announced.push(...(await Promise.all(wanted.map((key) => announceOne(link, key)))))
  }
  return announced
}

async function announceOne(link: HandDriven, supplied: Supplied): Promise<AnnouncedKey> {
  const id = newId(jobId, Date.now())
  const jobKey = randomBytes(32)
  using sealer = createSealer({ key: jobKey, context: archiveContext(id) })
  const sealedHeader = Buffer.from(sealer.header)
  const keyId = receiveKeyId.parse(supplied.receiveKeyId)
  const envelope = sealEnvelope({
    purpose: 'job-key-escrow',
    jobId: id,
    senderId: link.identity.agentId,
    receiveKeyId: keyId,
    sealedHeaderHash: sealedHeaderHash(sealedHeader),
    recipient: Buffer.from(supplied.publicKey, 'base64url'),
    plaintext: jobKey,
  })
  const { problem } = await link.request(
    'job.announce',
    {
      jobId: id,
      analyser: 'example',
      mediaCount: 1,
      sealedBytes: sealedBytesOf(64),
      sealedHeader: sealedHeader.toString('base64url'),
      spoolSha256: '0'.repeat(64),
      receiveKeyId: keyId,
      source: { action: 'keep', when: 'result' },
      sealedAtMs: Date.now(),
    },
    envelope,
  )
  assert.equal(problem, undefined, JSON.stringify(problem))
  return { jobId: id, jobKey, sealedHeader, envelope }
}
