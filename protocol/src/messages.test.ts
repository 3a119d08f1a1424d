import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { agentId, jobId, leaseId, obligationId, receiveKeyId } from './ids.ts'
import { limits } from './limits.ts'
import { downMessage, grant, requests, upMessage } from './messages.ts'
import { newId } from './process/new-id.ts'

const now = Date.UTC(2026, 0, 1)
const lease = { jobId: newId(jobId, now), leaseId: newId(leaseId, now), fence: 1 }
const header = Buffer.alloc(56, 1).toString('base64url')
const kemKey = Buffer.alloc(1216, 1).toString('base64url')
const requestId = newId(jobId, now)

const announce = {
  type: 'request',
  requestId,
  request: 'job.announce',
  body: {
    jobId: lease.jobId,
    analyser: 'example',
    mediaCount: 1,
    sealedBytes: 1000,
    sealedHeader: header,
    spoolSha256: 'a'.repeat(64),
    receiveKeyId: newId(receiveKeyId, now),
    source: { action: 'keep', when: 'result' },
    sealedAtMs: now,
  },
}

const accepts = (message: unknown) => assert.ok(upMessage.safeParse(message).success)
const refuses = (message: unknown) => assert.ok(!upMessage.safeParse(message).success)

describe('messages from an agent', () => {
  it('are taken as they are specified', () => {
    accepts(announce)
    accepts({ type: 'heartbeat', atMs: now, leases: [lease] })
    accepts({
      type: 'request',
      requestId,
      request: 'key.request',
      body: { ...lease, publicKey: kemKey },
    })
  })

  it('are refused with a field that nobody knows', () => {
    refuses({ ...announce, extra: 1 })
    refuses({ ...announce, body: { ...announce.body, extra: 1 } })
  })

  it('are refused with a body that belongs to another request', () => {
    refuses({ ...announce, request: 'upload.begin' })
    refuses({ ...announce, request: 'no.such' })
  })

  it('are refused beyond their bounds', () => {
    const body = (change: object) => ({ ...announce, body: { ...announce.body, ...change } })
    refuses(body({ sealedBytes: limits.sealedBytesMax + 1 }))
    refuses(body({ sealedBytes: 1.5 }))
    refuses(body({ mediaCount: 0 }))
    refuses(body({ mediaCount: limits.mediaPerJobMax + 1 }))
    refuses(body({ sealedHeader: header.slice(1) }))
    refuses(body({ analyser: '../../etc' }))
    refuses({ type: 'heartbeat', atMs: now, leases: Array.from({ length: 65 }, () => lease) })
    const parts = Array.from({ length: limits.grantsPerRequestMax + 1 }, (_, index) => ({
      part: index + 1,
      bytes: 1,
      md5: Buffer.alloc(16).toString('base64'),
    }))
    refuses({
      type: 'request',
      requestId,
      request: 'upload.grants',
      body: { jobId: lease.jobId, parts },
    })
    accepts({
      type: 'request',
      requestId,
      request: 'upload.grants',
      body: { jobId: lease.jobId, parts: parts.slice(1) },
    })
  })
})

describe('messages to an agent', () => {
  it('are taken as they are specified', () => {
    const offer = {
      type: 'lease.offer',
      ...lease,
      durationMs: limits.leaseMs,
      analyser: 'example',
      sealedBytes: 1000,
      sealedHeader: header,
      wipeObligationId: newId(obligationId, now),
    }
    const command = {
      type: 'command',
      seq: 1,
      commandId: newId(agentId, now),
      lane: 'work',
      command: offer,
    }
    assert.ok(downMessage.safeParse(command).success)
    assert.ok(!downMessage.safeParse({ ...command, lane: 'fast' }).success)
    assert.ok(!downMessage.safeParse({ ...command, command: { ...offer, key: 'x' } }).success)
  })

  it('grant nothing but https', () => {
    const one = { url: 'https://store.example/a/b', headers: {}, expiresAtMs: now }
    assert.ok(grant.safeParse(one).success)
    for (const url of ['http://store.example/a', 'file:///etc/passwd', 'store.example/a'])
      assert.ok(!grant.safeParse({ ...one, url }).success, url)
  })
})

describe('requests', () => {
  it('each have a body and a reply that refuse unknown fields', () => {
    for (const [name, { body, reply }] of Object.entries(requests)) {
      assert.ok(!body.safeParse({ unknownField: 1 }).success, name)
      assert.ok(!reply.safeParse({ unknownField: 1 }).success, name)
    }
  })
})
