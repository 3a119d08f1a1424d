/** Proves uploads and ranged reads against a loopback store that cuts, forgets, expires and lies. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { type FileHandle, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { type Server, createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { TLSSocket } from 'node:tls'
import { after, afterEach, before, beforeEach, describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { jobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Grant } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import type { ControlLink } from '../control-link.ts'
import { type ThrowawayAuthority, makeAuthority } from '../throwaway-authority.ts'
import { createObjectReader } from './download.ts'
import { type ObjectClient, createObjectClient } from './object-client.ts'
import type { LinkSpeed } from './link-speed.ts'
import { uploadSpool } from './upload.ts'

const partBytes = limits.partBytesMin
const content = randomBytes(2 * partBytes + 1000)
const md5 = (bytes: Uint8Array) => createHash('md5').update(bytes).digest('hex')

let authority: ThrowawayAuthority
let server: Server
let origin: string
let folder: string
let archive: FileHandle
let client: ObjectClient
let puts: number[]
let certificates: boolean[]
let stored: Map<number, Buffer>
/** What goes wrong next; taken one by one, then all is well. */
let faults: ((request: IncomingMessage, response: ServerResponse) => void)[]
let grantsAsked: number
let object: Buffer

before(async () => {
  authority = await makeAuthority()
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-transfer-'))
  await writeFile(path.join(folder, 'archive'), content)
  archive = await open(path.join(folder, 'archive'))
})
after(async () => {
  await archive.close()
  await rm(folder, { recursive: true })
})
beforeEach(async () => {
  puts = []
  certificates = []
  stored = new Map()
  faults = []
  grantsAsked = 0
  object = content
  server = createServer(
    { ...(await authority.server()), requestCert: true },
    (request, response) => {
      certificates.push((request.socket as TLSSocket).authorized)
      const chunks: Buffer[] = []
      request.on('data', (chunk: Buffer) => chunks.push(chunk))
      request.on('end', () => {
        const fault = faults.shift()
        if (fault) return fault(request, response)
        if (request.method === 'PUT') return keep(request, response, Buffer.concat(chunks))
        return serve(request, response)
      })
    },
  )
  await new Promise<void>((done) => void server.listen(0, '127.0.0.1', done))
  origin = `https://127.0.0.1:${(server.address() as AddressInfo).port}`
  client = createObjectClient({ identity: await authority.identity({ agentUrl: origin }) })
})
afterEach(async () => {
  await client[Symbol.asyncDispose]()
  server.closeAllConnections()
  await new Promise((done) => void server.close(done))
})

function keep(request: IncomingMessage, response: ServerResponse, body: Buffer): void {
  const part = Number(new URL(request.url ?? '', origin).searchParams.get('part'))
  puts.push(part)
  stored.set(part, body)
  response.setHeader('etag', `"${md5(body)}"`).end()
}
function serve(request: IncomingMessage, response: ServerResponse): void {
  const [, first, last] = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '') ?? []
  const body = object.subarray(Number(first), Number(last) + 1)
  response.writeHead(206, {
    'content-range': `bytes ${first}-${last}/${object.length}`,
    etag: `"${md5(object.subarray(0, 64))}"`,
  })
  response.end(body)
}
function grantFor(query: string, expiresAtMs = Date.now() + 300_000): Grant {
  return { url: `${origin}/object?${query}`, headers: {}, expiresAtMs }
}

function upload(
  held: { part: number; bytes: number; etag: string }[] = [],
  linkSpeed?: Pick<LinkSpeed, 'record'>,
) {
  const request = async (type: string, body: { parts?: { part: number }[] }) => {
    if (type === 'upload.begin') return { body: { state: 'uploading', partBytes, held } }
    if (type === 'upload.complete') return { body: { state: 'stored', parts: body.parts } }
    grantsAsked += 1
    const grants = body.parts?.map(({ part }) => ({ part, grant: grantFor(`part=${part}`) }))
    return { body: { grants } }
  }
  const link = { request } as unknown as Pick<ControlLink, 'request'>
  const signal = new AbortController().signal
  const id = newId(jobId, 1)
  return uploadSpool({
    ...{ jobId: id, archive, sealedBytes: content.length, client, link, signal },
    ...(linkSpeed === undefined ? {} : { linkSpeed }),
    random: () => 0,
  })
}
const uploaded = () => Buffer.concat([1, 2, 3].map((part) => stored.get(part) ?? Buffer.alloc(0)))

describe('uploadSpool', () => {
  it('brings every byte, in parts', async () => {
    assert.equal(await upload(), 'stored')
    assert.ok(uploaded().equals(content))
  })

  it('sends only what the store does not hold', async () => {
    const etag = md5(content.subarray(partBytes, 2 * partBytes))
    stored.set(2, content.subarray(partBytes, 2 * partBytes))
    const measured: { bytes: number; elapsedMs: number }[] = []
    const record = (sent: { bytes: number; elapsedMs: number }) => void measured.push(sent)
    await upload([{ part: 2, bytes: partBytes, etag: `"${etag}"` }], { record })
    assert.deepEqual(new Set(puts), new Set([1, 3]))
    assert.equal(measured.length, 1)
    assert.equal(measured[0]?.bytes, content.length - partBytes, 'what was there tells no speed')
    assert.ok((measured[0]?.elapsedMs ?? 0) > 0)
    assert.ok(uploaded().equals(content))
  })

  it('sends a part again that the store holds with other bytes', async () => {
    await upload([{ part: 2, bytes: partBytes, etag: '0'.repeat(32) }])
    assert.deepEqual(new Set(puts), new Set([1, 2, 3]))
  })

  it('asks a new grant after an expired one, a fault of the store, a cut, and a wrong ETag', async () => {
    const status = (code: number) => (_: IncomingMessage, response: ServerResponse) => {
      response.statusCode = code
      response.end()
    }
    faults = [
      status(403),
      status(503),
      (request) => void request.socket.destroy(),
      (_, response) => void response.setHeader('etag', '"00"').end(),
    ]
    await upload()
    assert.equal(grantsAsked, 7)
    assert.ok(uploaded().equals(content))
  })

  it('gives up when the upload is gone', async () => {
    faults = Array.from({ length: 3 }, () => (_: IncomingMessage, response: ServerResponse) => {
      response.statusCode = 404
      response.end()
    })
    await assert.rejects(upload(), (error) => isSluiceError(error, 'upload.refused'))
  })
})

describe('createObjectClient', () => {
  it('shows its certificate to the control plane only', async () => {
    await client.send({ grant: grantFor('part=1'), method: 'PUT', body: content, bodyBytesMax: 10 })
    const agentUrl = 'https://other.example:8443'
    await using foreign = createObjectClient({ identity: await authority.identity({ agentUrl }) })
    // The server demands a certificate: without one it ends the connection.
    await assert.rejects(
      foreign.send({ grant: grantFor('part=1'), method: 'PUT', body: content, bodyBytesMax: 10 }),
      (error) => isSluiceError(error, 'store.unreachable'),
    )
    assert.deepEqual(certificates, [true])
  })

  it('refuses a store of an authority it does not know, and quotes no URL', async () => {
    const other = await makeAuthority()
    const identity = await other.identity({ agentUrl: 'https://other.example:8443' })
    await using stranger = createObjectClient({ identity })
    const grant = grantFor('signature=secret')
    await assert.rejects(
      stranger.send({ grant, method: 'GET', bodyBytesMax: 10 }),
      (error) =>
        isSluiceError(error, 'store.unreachable') && !JSON.stringify(error).includes('secret'),
    )
  })
})

describe('createObjectReader', () => {
  const reader = (grant: () => Promise<Grant> = async () => grantFor('read')) =>
    createObjectReader({ grant, client, sealedBytes: content.length, random: () => 0 })

  it('reads exactly the range', async () => {
    const read = await reader().read(100, 5000)
    assert.ok(read.equals(content.subarray(100, 5100)))
  })

  it('asks a new grant when the last one has ended or is refused', async () => {
    let asked = 0
    const source = reader(async () => grantFor('read', asked++ === 0 ? 0 : Date.now() + 60_000))
    await source.read(0, 10)
    await source.read(0, 10)
    assert.equal(asked, 2)
    faults = [(_, response) => void response.writeHead(403).end()]
    await source.read(0, 10)
    assert.equal(asked, 3)
  })

  it('refuses another range, another size, and an object that changed between reads', async () => {
    const mismatch = (error: unknown) => isSluiceError(error, 'download.mismatch')
    const source = reader()
    await source.read(0, 10)
    object = Buffer.from(content).fill(1, 0, 10)
    await assert.rejects(source.read(0, 10), mismatch)
    object = content.subarray(0, 5000)
    await assert.rejects(reader().read(0, 10), mismatch)
    object = content
    faults = [(_, response) => void response.writeHead(200).end(content)]
    await assert.rejects(reader().read(0, 10), mismatch)
  })
})
