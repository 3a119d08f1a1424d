/** Proves sealing, its interruption, and the opening of results with real child processes. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import sharp from 'sharp'
import { parseTrailer, trailerBytes } from '@sluice/protocol/archive'
import { isSluiceError } from '@sluice/protocol/errors'
import { type JobId, agentId, jobId, leaseId, receiveKeyId } from '@sluice/protocol/ids'
import { type Manifest, manifest as manifestSchema } from '@sluice/protocol/manifest'
import { newId } from '@sluice/protocol/process/new-id'
import { encodeSignedResult } from '@sluice/protocol/result'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { ed25519Signer, signStatement } from '@sluice/protocol/sealing/dsse'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { createUnsealer } from '@sluice/protocol/sealing/unseal'
import type { Identity } from '../enrol.ts'
import { type ThrowawayAuthority, makeAuthority } from '../throwaway-authority.ts'
import { openResult } from './open-result.ts'
import { type SealOrder, type SealProgress, sealInChild } from './seal.ts'
import { identifySource } from './sources.ts'
import { spoolFiles, spoolFolder } from './spool.ts'

const isolation = existsSync('/usr/bin/bwrap') ? 'bubblewrap' : 'none'
let folder: string
let photo: string
const receiver = makeReceiverKeyPair()
const id: JobId = newId(jobId, 1)
const sender = newId(agentId, 1)
const keyId = newId(receiveKeyId, 1)
const never = new AbortController().signal

beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-capture-'))
  photo = path.join(folder, 'photo.png')
  await sharp({ create: { width: 40, height: 30, channels: 3, background: '#a03060' } })
    .png()
    .toFile(photo)
})
afterEach(() => rm(folder, { recursive: true }))

async function orderFor(...files: string[]): Promise<SealOrder> {
  return {
    jobId: id,
    analyser: 'example',
    sources: await Promise.all(files.map(identifySource)),
    agentId: sender,
    receiveKeyId: keyId,
    publicKey: receiver.publicKey.toString('base64url'),
    spoolDir: folder,
    reserveBytes: 0,
    isolation,
  }
}
const quiet = { signal: never, progress: () => {} }
const inSpool = (name: string) => path.join(spoolFolder(folder, id), name)

/** Opens a spool as control plane and node would together. */
async function openSpool(): Promise<{ archive: Buffer; manifest: Manifest }> {
  const sealed = await readFile(inSpool(spoolFiles.archive))
  const key = openEnvelope({
    ...{ purpose: 'job-key-escrow', jobId: id, senderId: sender, receiveKeyId: keyId },
    sealedHeaderHash: sealedHeaderHash(sealed.subarray(0, 56)),
    seed: receiver.seed,
    envelope: await readFile(inSpool(spoolFiles.envelope)),
  })
  using unsealer = createUnsealer({ key, context: archiveContext(id) })
  const archive = Buffer.concat([unsealer.update(sealed), unsealer.final()])
  const index = parseTrailer(archive.subarray(-trailerBytes), archive.length)
  const end = index.manifestOffset + index.manifestBytes
  const json = archive.subarray(index.manifestOffset, end).toString('utf8')
  return { archive, manifest: manifestSchema.parse(JSON.parse(json)) }
}

describe('sealInChild', () => {
  it('leaves a spool that opens, for the holder of the receive key, to what the manifest says', async () => {
    const stages: SealProgress[] = []
    const facts = await sealInChild(await orderFor(photo, photo), {
      signal: never,
      progress: (progress) => void stages.push(progress),
    })
    const sealed = await readFile(inSpool(spoolFiles.archive))
    assert.equal(facts.sealedBytes, sealed.length)
    assert.equal(facts.spoolSha256, createHash('sha256').update(sealed).digest('hex'))
    assert.equal(facts.sealedHeader, sealed.subarray(0, 56).toString('base64url'))
    const { archive, manifest } = await openSpool()
    assert.equal(facts.mediaCount, 2)
    assert.equal(manifest.jobId, id)
    assert.equal(manifest.media.length, 2)
    for (const { offset, bytes, sha256 } of manifest.media) {
      const medium = archive.subarray(offset, offset + bytes)
      assert.equal(createHash('sha256').update(medium).digest('hex'), sha256)
      assert.deepEqual((await sharp(medium).metadata()).width, 40)
    }
    assert.ok(stages.some(({ stage, done }) => stage === 'normalise' && done === 2))
    const names = Object.values(spoolFiles).toSorted()
    assert.deepEqual((await readdir(spoolFolder(folder, id))).toSorted(), names)
  })

  it('seals each attempt with another key and salt', async () => {
    const first = await sealInChild(await orderFor(photo), quiet)
    await rm(spoolFolder(folder, id), { recursive: true })
    const second = await sealInChild(await orderFor(photo), quiet)
    assert.notEqual(first.sealedHeader, second.sealedHeader)
  })

  it('leaves nothing of a source it refuses, and says why', async () => {
    const text = path.join(folder, 'notes.jpg')
    await writeFile(text, 'just text, under a false name')
    await assert.rejects(
      sealInChild(await orderFor(photo, text), quiet),
      (error) => isSluiceError(error) && error.code.startsWith('media.'),
    )
    assert.equal(existsSync(spoolFolder(folder, id)), false)
  })

  it('refuses a source that is another file than the one submitted', async () => {
    const order = await orderFor(photo)
    await writeFile(photo, readFileSync(photo))
    await rm(photo)
    await sharp({ create: { width: 9, height: 9, channels: 3, background: '#000' } }).toFile(photo)
    await assert.rejects(sealInChild(order, quiet), (error) =>
      isSluiceError(error, 'media.changed'),
    )
  })

  it('says that the spool is full before it seals anything', async () => {
    const order = { ...(await orderFor(photo)), reserveBytes: 2 ** 50 }
    await assert.rejects(sealInChild(order, quiet), (error) => isSluiceError(error, 'spool.full'))
  })

  it('leaves nothing when the child is killed, and works again', async () => {
    const order = await orderFor(...Array.from({ length: 30 }, () => photo))
    const killed = sealInChild(order, {
      signal: never,
      progress: ({ done }) => {
        if (done === 1) process.kill(childOf(), 'SIGKILL')
      },
    })
    await assert.rejects(
      killed,
      (error) => isSluiceError(error, 'internal') && error.retry === 'later',
    )
    assert.equal(existsSync(spoolFolder(folder, id)), false)
    await sealInChild(await orderFor(photo), quiet)
  })

  it('ends its child when it is aborted', async () => {
    const ending = new AbortController()
    const order = await orderFor(...Array.from({ length: 30 }, () => photo))
    let child = 0
    const aborted = sealInChild(order, {
      signal: ending.signal,
      progress: ({ done }) => {
        if (done !== 1) return
        child = childOf()
        ending.abort(new Error('enough'))
      },
    })
    await assert.rejects(aborted, /enough/)
    assert.equal(existsSync(`/proc/${child}`), false)
    assert.equal(existsSync(spoolFolder(folder, id)), false)
  })
})

/** The one child of this process that runs the sealing. */
function childOf(): number {
  const children = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').trim().split(' ')
  const found = children.find((pid) =>
    readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('seal-child'),
  )
  assert.ok(found, 'the sealing child runs')
  return Number(found)
}

describe('openResult', () => {
  const lease = { jobId: id, leaseId: newId(leaseId, 1), fence: 4 }
  const sealedHeaderSha256 = 'ab'.repeat(32)
  let authority: ThrowawayAuthority
  let node: Identity
  let resultKey: ReturnType<typeof makeReceiverKeyPair>

  beforeEach(async () => {
    authority = await makeAuthority()
    node = await authority.identity({ agentUrl: 'https://x', role: 'gpu' })
    resultKey = makeReceiverKeyPair()
    const { mkdir } = await import('node:fs/promises')
    await mkdir(spoolFolder(folder, id), { mode: 0o700 })
    await writeFile(inSpool(spoolFiles.resultSeed), resultKey.seed, { mode: 0o600 })
  })

  type Forgery = {
    signer?: Identity
    fence?: number
    header?: string
    finishedAtMs?: number
    tamper?: boolean
    analyser?: string
  }
  function sealedResult(forgery: Forgery = {}): Buffer {
    const signer = forgery.signer ?? node
    const value = {
      schema: 'sluice-result/1',
      analyser: forgery.analyser ?? 'example',
      version: '1',
    }
    const media = [{ name: '0001.png', output: { width: 40 } }]
    const result = Buffer.from(JSON.stringify({ ...value, media }))
    const statement = signStatement(
      'application/vnd.sluice.result.v1+json',
      {
        _type: 'https://in-toto.io/Statement/v1',
        subject: [{ name: `job:${id}`, digest: { sha256: forgery.header ?? sealedHeaderSha256 } }],
        predicateType: 'urn:sluice:result:1',
        predicate: {
          ...{ jobId: id, leaseId: lease.leaseId, fence: forgery.fence ?? lease.fence },
          nodeId: node.agentId,
          resultSha256: createHash('sha256').update(result).digest('hex'),
          finishedAtMs: forgery.finishedAtMs ?? Date.now(),
        },
      },
      ed25519Signer(signer.privateKey, signer.publicKey),
    )
    if (forgery.tamper) result.write('99', result.indexOf('40'))
    const plaintext = encodeSignedResult({
      statement: Buffer.from(JSON.stringify(statement)),
      certificate: signer.certificate(),
      result,
    })
    return sealEnvelope({
      ...{ purpose: 'result', jobId: id, nodeId: node.agentId, leaseId: lease.leaseId },
      ...{ recipient: resultKey.publicKey, plaintext },
    })
  }
  function open(sealed: Buffer) {
    return openResult(
      {
        ...{ spoolDir: folder, resultsDir: folder, jobId: id, nodeId: node.agentId, lease },
        ...{ analyser: 'example', sealedHeaderSha256, authorities: [authority.pem] },
        ...{ sources: ['/in/photo.png'], sealedResult: sealed },
      },
      never,
    )
  }

  it('keeps what the lease holder signed', async () => {
    const file = await open(sealedResult())
    const kept = JSON.parse(await readFile(file, 'utf8'))
    assert.deepEqual(kept.media, [{ name: '0001.png', output: { width: 40 } }])
    assert.deepEqual(kept.sources, ['/in/photo.png'])
  })

  it('refuses every forgery, and keeps nothing of it', async () => {
    const other = await makeAuthority()
    const sameName = { agentUrl: 'https://x', id: node.agentId }
    const forgeries: Record<string, Forgery> = {
      'another authority': { signer: await other.identity({ ...sameName, role: 'gpu' }) },
      'another node': { signer: await authority.identity({ agentUrl: 'https://x', role: 'gpu' }) },
      'a capture host': { signer: await authority.identity({ ...sameName, role: 'capture' }) },
      'another fence': { fence: 3 },
      'another archive': { header: 'cd'.repeat(32) },
      'another time': { finishedAtMs: Date.now() + 48 * 3_600_000 },
      'another result': { tamper: true },
      'another analyser': { analyser: 'other' },
    }
    for (const [name, forgery] of Object.entries(forgeries)) {
      await assert.rejects(
        open(sealedResult(forgery)),
        (error) => isSluiceError(error, 'result.forged'),
        name,
      )
      assert.equal(existsSync(path.join(folder, `${id}.json`)), false, name)
    }
    await open(sealedResult())
  })

  it('refuses what is not sealed to this job', async () => {
    const damaged = sealedResult()
    damaged[damaged.length - 1]! ^= 1
    await assert.rejects(open(damaged), (error) => isSluiceError(error, 'envelope.refused'))
  })
})
