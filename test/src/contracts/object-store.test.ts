/** One suite for every object store: the embedded directory and a real S3 must answer alike. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import type { RequestListener } from 'node:http'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { after, before, describe, it } from 'node:test'
import {
  CreateBucketCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  ListObjectVersionsCommand,
  PutBucketVersioningCommand,
  PutObjectLockConfigurationCommand,
  PutObjectCommand,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { claimKey } from '@sluice/control-plane/storage/claim'
import { createS3Store } from '@sluice/control-plane/storage/s3-store'
import { openDirectoryStore } from '@sluice/control-plane/storage/directory-store'
import {
  isAbsent,
  type ObjectStore,
  type StoreEntry,
} from '@sluice/control-plane/storage/object-store'
import { isSluiceError } from '@sluice/protocol/errors'
import { controlPlaneId } from '@sluice/protocol/ids'
import type { Grant } from '@sluice/protocol/messages'
import { type ObjectKey, objectKeyFrom } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Agent, request } from 'undici'
import { needS3Server, type S3Server, startS3Server } from '../tools/s3-server.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'
import { makeServerCredentials } from '../tools/throw-away-authority.ts'

/** A store, and the authority that its grants' host is trusted by. */
type Subject = AsyncDisposable & {
  store: ObjectStore
  authority: string
  advance(ms: number): void
}

const lifeMs = 60_000
const partBytes = 5 * 1024 * 1024

async function directorySubject(): Promise<Subject> {
  await using stack = new AsyncDisposableStack()
  const folder = stack.use(await makeTemporaryDirectory('objects'))
  const credentials = await makeServerCredentials()
  let aheadMs = 0
  const store = stack.use(
    await openDirectoryStore({
      folder: folder.path,
      origin: () => `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
      now: () => Date.now() + aheadMs,
    }),
  )
  const server = createServer(
    { cert: credentials.certificate, key: credentials.key, minVersion: 'TLSv1.3' },
    (incoming, response) => void store.handleObjectRequest(incoming, response),
  )
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  stack.defer(() => server.closeAllConnections())
  stack.defer(() => void server.close())
  const kept = stack.move()
  return {
    store,
    authority: credentials.authority,
    advance: (ms) => void (aheadMs += ms),
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  }
}

async function s3Subject(server: S3Server): Promise<Subject> {
  const bucket = `b${randomBytes(6).toString('hex')}`
  await server.createBucket(bucket)
  const authorities = await readFile(server.caFile, 'utf8')
  const store = createS3Store({
    endpoint: server.endpoint,
    region: server.region,
    bucket,
    forcePathStyle: true,
    authorities,
    credentials: async () => server.credentials,
    now: Date.now,
  })
  return {
    store,
    authority: authorities,
    advance: () => assert.fail('the clock of a real store cannot be moved'),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  }
}

function contract(name: string, skip: string | false, open: () => Promise<Subject>): void {
  describe(name, { skip }, () => {
    let subject: Subject
    let http: Agent

    before(async () => {
      subject = await open()
      http = new Agent({ connect: { ca: subject.authority, minVersion: 'TLSv1.3' } })
    })
    after(async () => {
      await http.close()
      await subject[Symbol.asyncDispose]()
    })

    const send = async (grant: Grant, body: Buffer, headers = grant.headers) => {
      const answer = await request(grant.url, { method: 'PUT', body, headers, dispatcher: http })
      await answer.body.dump()
      return {
        status: answer.statusCode,
        etag: String(answer.headers['etag'] ?? '').replaceAll('"', ''),
      }
    }
    const read = async (grant: Grant, range?: string) => {
      const answer = await request(grant.url, {
        headers: { ...grant.headers, ...(range === undefined ? {} : { range }) },
        dispatcher: http,
      })
      return { status: answer.statusCode, bytes: Buffer.from(await answer.body.arrayBuffer()) }
    }
    const md5 = (bytes: Buffer) => createHash('md5').update(bytes).digest()
    const grantFor = (
      upload: { key: ObjectKey; storeUploadId: string },
      part: number,
      body: Buffer,
    ) =>
      subject.store.grantPart(upload, {
        part,
        bytes: body.length,
        md5: md5(body).toString('base64'),
        lifeMs,
      })
    const openUpload = async () => {
      const key = objectKeyFrom(randomBytes(16))
      return { key, storeUploadId: await subject.store.createUpload(key) }
    }
    const put = async (bodies: Buffer[]) => {
      const upload = await openUpload()
      for (const [index, body] of bodies.entries()) {
        const sent = await send(await grantFor(upload, index + 1, body), body)
        assert.deepEqual(sent, { status: 200, etag: md5(body).toString('hex') })
      }
      const parts = await subject.store.listParts(upload)
      await subject.store.completeUpload(upload, parts)
      return { upload, parts, whole: Buffer.concat(bodies) }
    }

    it('belongs to the control plane that marked it first, and to no other', async () => {
      const { store } = subject
      const [one, other] = [newId(controlPlaneId, 1), newId(controlPlaneId, 2)]
      const claimed = { code: 'store.claimed' }
      await store.claim({ id: other, mark: false })
      await store.claim({ id: one, mark: true })
      for (const mark of [true, false]) {
        await store.claim({ id: one, mark })
        await assert.rejects(store.claim({ id: other, mark }), claimed)
      }
    })

    it('passes its own check', async () => {
      await subject.store.check()
    })

    it('lists all there is, in order, and can go on from anywhere', async () => {
      const { upload: whole } = await put([randomBytes(1000)])
      const begun = await openUpload()
      const both = await openUpload()
      const again = { key: both.key, storeUploadId: await subject.store.createUpload(both.key) }
      const listed = new Map<string, { objects: number; versions: number; uploads: string[] }>()
      const order: string[] = []
      for (let next: string | undefined; ;) {
        const page = await subject.store.list(next)
        for (const { key, ...rest } of page.entries) {
          order.push(key)
          listed.set(key, { ...rest, uploads: rest.uploads.toSorted() })
        }
        next = page.next
        if (next === undefined) break
      }
      assert.deepEqual(order, order.toSorted())
      assert.equal(new Set(order).size, order.length)
      assert.deepEqual(listed.get(whole.key), { objects: 1, versions: 0, uploads: [] })
      assert.deepEqual(listed.get(begun.key), {
        objects: 0,
        versions: 0,
        uploads: [begun.storeUploadId],
      })
      assert.deepEqual(
        listed.get(both.key)?.uploads,
        [both.storeUploadId, again.storeUploadId].toSorted(),
      )
      for (const { key } of [whole, begun, both]) await subject.store.deleteAll(key)
      const later = await subject.store.list(order.at(-1))
      assert.deepEqual(later.entries, [])
    })

    it('makes one object of parts and serves it by ranges', async () => {
      const { upload, parts, whole } = await put([randomBytes(partBytes), randomBytes(1000)])
      assert.deepEqual(
        parts.map(({ part, bytes }) => ({ part, bytes })),
        [
          { part: 1, bytes: partBytes },
          { part: 2, bytes: 1000 },
        ],
      )
      assert.deepEqual(await subject.store.head(upload.key), { bytes: whole.length })
      const grant = await subject.store.grantRead(upload.key, lifeMs)
      assert.deepEqual(await read(grant), { status: 200, bytes: whole })
      for (const [from, to] of [
        [0, 0],
        [0, 56],
        [partBytes - 1, partBytes],
        [partBytes, partBytes + 999],
        [whole.length - 1, whole.length - 1],
      ] as const)
        assert.deepEqual(await read(grant, `bytes=${from}-${to}`), {
          status: 206,
          bytes: whole.subarray(from, to + 1),
        })
      assert.equal((await read(grant, `bytes=${whole.length}-`)).status, 416)
    })

    it('keeps what was uploaded across a listing, so that an upload goes on', async () => {
      const upload = await openUpload()
      const body = randomBytes(partBytes)
      await send(await grantFor(upload, 2, body), body)
      assert.deepEqual(await subject.store.listParts(upload), [
        { part: 2, bytes: partBytes, etag: md5(body).toString('hex') },
      ])
      const other = randomBytes(partBytes)
      await send(await grantFor(upload, 2, other), other)
      assert.deepEqual(await subject.store.listParts(upload), [
        { part: 2, bytes: partBytes, etag: md5(other).toString('hex') },
      ])
      await subject.store.abortUpload(upload)
    })

    it('refuses other bytes, another length and another part than the grant names', async () => {
      const upload = await openUpload()
      const body = randomBytes(1000)
      const grant = await grantFor(upload, 1, body)
      const other = Buffer.from(body)
      other[500]! ^= 1
      assert.notEqual((await send(grant, other)).status, 200)
      const longer = Buffer.concat([body, body])
      const withLength = { ...grant.headers, 'content-length': String(longer.length) }
      assert.notEqual((await send(grant, longer, withLength)).status, 200)
      const matching = { ...withLength, 'content-md5': md5(longer).toString('base64') }
      assert.notEqual((await send(grant, longer, matching)).status, 200)
      const moved = { ...grant, url: grant.url.replace(/partNumber=1\b/, 'partNumber=2') }
      assert.notEqual(moved.url, grant.url)
      assert.equal((await send(moved, body)).status, 403)
      assert.deepEqual(await subject.store.listParts(upload), [])
      assert.equal((await send(grant, body)).status, 200, 'the control: the grant itself works')
      await subject.store.abortUpload(upload)
    })

    it('refuses a grant for reading when it is used for writing, or for another object', async () => {
      const { upload } = await put([randomBytes(1000)])
      const grant = await subject.store.grantRead(upload.key, lifeMs)
      assert.equal((await read(grant)).status, 200)
      const body = randomBytes(10)
      const headers = { 'content-length': '10', 'content-md5': md5(body).toString('base64') }
      assert.ok((await send(grant, body, headers)).status >= 400)
      const elsewhere = objectKeyFrom(randomBytes(16))
      const url = grant.url.replace(upload.key, elsewhere)
      assert.equal((await read({ ...grant, url })).status, 403)
    })

    it('lists nothing, completes nothing and takes nothing after an abort', async () => {
      const upload = await openUpload()
      const body = randomBytes(1000)
      const grant = await grantFor(upload, 1, body)
      const { etag } = await send(grant, body)
      await subject.store.abortUpload(upload)
      await subject.store.abortUpload(upload)
      await assert.rejects(
        async () => assert.deepEqual(await subject.store.listParts(upload), [{}]),
        (error) =>
          isSluiceError(error, 'store.not_found') || error instanceof assert.AssertionError,
      )
      await assert.rejects(subject.store.completeUpload(upload, [{ part: 1, etag }]))
      assert.notEqual((await send(grant, body)).status, 200)
      assert.ok(isAbsent(await subject.store.remains(upload.key)))
    })

    it('does not complete with a part that is missing or has other bytes', async () => {
      const upload = await openUpload()
      const body = randomBytes(1000)
      const { etag } = await send(await grantFor(upload, 1, body), body)
      const wrong = md5(randomBytes(1)).toString('hex')
      await assert.rejects(subject.store.completeUpload(upload, [{ part: 1, etag: wrong }]))
      await assert.rejects(
        subject.store.completeUpload(upload, [
          { part: 1, etag },
          { part: 2, etag: wrong },
        ]),
      )
      assert.equal(await subject.store.head(upload.key), undefined)
      await subject.store.completeUpload(upload, [{ part: 1, etag }])
      assert.deepEqual(await subject.store.head(upload.key), { bytes: 1000 })
    })

    it('deletes the object and every incomplete upload under its key, also unknown ones', async () => {
      const { upload } = await put([randomBytes(1000)])
      await subject.store.createUpload(upload.key)
      assert.deepEqual(
        { ...(await subject.store.remains(upload.key)), versions: 0 },
        { objects: 1, versions: 0, uploads: 1 },
        'the control: something is seen before',
      )
      await subject.store.deleteAll(upload.key)
      await subject.store.deleteAll(upload.key)
      assert.deepEqual(await subject.store.remains(upload.key), {
        objects: 0,
        versions: 0,
        uploads: 0,
      })
      assert.equal(await subject.store.head(upload.key), undefined)
      const grant = await subject.store.grantRead(upload.key, lifeMs)
      assert.equal((await read(grant)).status, 404)
    })
  })
}

contract('directory store', false, directorySubject)

const noS3 = needS3Server()
let s3: S3Server
before(async () => {
  if (noS3 === false) s3 = await startS3Server()
})
after(async () => {
  if (noS3 === false) await s3[Symbol.asyncDispose]()
})
contract('S3 store', noS3, () => s3Subject(s3))

describe('directory store alone', () => {
  it('refuses a grant after its time', async () => {
    await using subject = await directorySubject()
    const http = new Agent({ connect: { ca: subject.authority } })
    const key = objectKeyFrom(randomBytes(16))
    const grant = await subject.store.grantRead(key, lifeMs)
    const ask = async () => {
      const answer = await request(grant.url, { dispatcher: http })
      await answer.body.dump()
      return answer.statusCode
    }
    assert.equal(await ask(), 404)
    subject.advance(lifeMs + 1)
    assert.equal(await ask(), 403)
    await http.close()
  })

  it('ends an upload while parts arrive, as one object of the named parts or as nothing', async () => {
    await using subject = await directorySubject()
    const { store } = subject
    const http = new Agent({ connect: { ca: subject.authority } })
    const send = async (upload: { key: ObjectKey; storeUploadId: string }, part: number) => {
      const body = randomBytes(2000)
      const md5 = createHash('md5').update(body).digest()
      const asked = { part, bytes: body.length, md5: md5.toString('base64'), lifeMs }
      const { url, headers } = await store.grantPart(upload, asked)
      const answer = await request(url, { method: 'PUT', body, headers, dispatcher: http })
      await answer.body.dump()
      return { status: answer.statusCode, part, etag: md5.toString('hex') }
    }
    let late = 0
    for (let round = 0; round < 40; round += 1) {
      const key = objectKeyFrom(randomBytes(16))
      const upload = { key, storeUploadId: await store.createUpload(key) }
      const { part, etag } = await send(upload, 1)
      const arriving = [1, 2, 3, 4, 5, 6].map((number) => send(upload, (number % 3) + 1))
      await sleep(round % 8)
      if (round % 2 === 0)
        await store.completeUpload(upload, [{ part, etag }]).then(
          async () => assert.deepEqual(await store.head(key), { bytes: 2000 }),
          (error: unknown) => assert.ok(isSluiceError(error, 'store.refused'), String(error)),
        )
      await store.deleteAll(key)
      assert.ok(isAbsent(await store.remains(key)))
      for (const { status } of await Promise.all(arriving)) late += status === 200 ? 0 : 1
      assert.ok(isAbsent(await store.remains(key)))
    }
    assert.ok(late > 0, 'the control: some parts came too late')
    await http.close()
  })

  it('says that its disk fails, like any store that is away, and works again afterwards', async () => {
    await using folder = await makeTemporaryDirectory('objects')
    const options = { folder: folder.path, origin: () => 'https://x', now: Date.now }
    await using store = await openDirectoryStore(options)
    const key = objectKeyFrom(randomBytes(16))
    const uploads = join(folder.path, 'uploads')
    await rename(uploads, `${uploads}.away`)
    await writeFile(uploads, '')
    const calls = [
      () => store.createUpload(key),
      () => store.deleteAll(key),
      () => store.remains(key),
    ]
    for (const call of calls)
      await assert.rejects(
        call,
        (error) => isSluiceError(error, 'store.unreachable') && error.retry === 'later',
      )
    await rm(uploads)
    await rename(`${uploads}.away`, uploads)
    assert.ok(isAbsent(await store.remains(key)))
  })

  it('lists what is not its own too, in order and to an end', async () => {
    await using folder = await makeTemporaryDirectory('objects')
    const options = { folder: folder.path, origin: () => 'https://x', now: Date.now }
    await using store = await openDirectoryStore(options)
    const key = objectKeyFrom(randomBytes(16))
    const storeUploadId = await store.createUpload(key)
    const shard = key.slice('a/'.length, 'a/'.length + 2)
    await mkdir(join(folder.path, 'objects', shard))
    for (const path of ['objects/zz', 'uploads/zzzz', `objects/${shard}/zzz`])
      await writeFile(join(folder.path, path), '')
    const listed: StoreEntry[] = []
    for (let next: string | undefined, pages = 0; ; pages += 1) {
      assert.ok(pages < 10, 'the listing ends')
      const page = await store.list(next)
      listed.push(...page.entries)
      next = page.next
      if (next === undefined) break
    }
    const keys = listed.map((entry) => entry.key)
    assert.deepEqual(keys, ['./objects/zz', './uploads/zzzz', `a/${shard}/zzz`, key])
    assert.deepEqual(keys, keys.toSorted())
    assert.deepEqual(listed.at(-1)?.uploads, [storeUploadId])
  })

  it('goes on after a crash in the middle of completing or aborting', async () => {
    await using folder = await makeTemporaryDirectory('objects')
    const options = { folder: folder.path, origin: () => 'https://x', now: Date.now }
    const key = objectKeyFrom(randomBytes(16))
    await using store = await openDirectoryStore(options)
    const upload = { key, storeUploadId: await store.createUpload(key) }
    const other = { key, storeUploadId: await store.createUpload(key) }
    const folderOf = ({ storeUploadId }: typeof upload) =>
      join(folder.path, 'uploads', `${key.slice(2)}.${storeUploadId}`)
    await rename(folderOf(upload), `${folderOf(upload)}.completing`)
    await rename(folderOf(other), `${folderOf(other)}.ending`)
    assert.equal((await store.remains(key)).uploads, 2, 'what is half ended still counts')
    await using again = await openDirectoryStore(options)
    assert.deepEqual(await again.listParts(upload), [])
    assert.equal((await again.remains(key)).uploads, 1)
    await rename(folderOf(upload), `${folderOf(upload)}.completing`)
    await again.deleteAll(key)
    assert.ok(isAbsent(await again.remains(key)))
  })
})

describe('directory store that others put something into', () => {
  it('starts, and leaves it as it is', async () => {
    await using root = await makeTemporaryDirectory('objects')
    const options = { folder: root.path, origin: () => 'https://127.0.0.1', now: Date.now }
    {
      await using first = await openDirectoryStore(options)
      await first.check()
    }
    const strange = ['notes.txt', 'x.ending', `${'a'.repeat(32)}.${'b'.repeat(32)}`]
    for (const name of strange) await writeFile(join(root.path, 'uploads', name), 'not ours')
    await mkdir(join(root.path, 'uploads', 'folder'))
    await writeFile(join(root.path, 'uploads', 'folder', 'draft-1'), 'not ours')
    await using store = await openDirectoryStore(options)
    await store.check()
    for (const name of [...strange, 'folder/draft-1'])
      assert.equal(await readFile(join(root.path, 'uploads', name), 'utf8'), 'not ours')
    const { entries } = await store.list()
    assert.ok(
      entries.some(({ key }) => key === './uploads/notes.txt'),
      'the sweep sees it',
    )
  })
})

describe('grants of the directory store', () => {
  it('are useless once they are revoked, and new ones count', async (t) => {
    await using subject = await directorySubject()
    const { store } = subject
    const http = new Agent({ connect: { ca: subject.authority, minVersion: 'TLSv1.3' } })
    t.after(() => http.close())
    const key = objectKeyFrom(randomBytes(16))
    const upload = { key, storeUploadId: await store.createUpload(key) }
    const body = randomBytes(100)
    const grant = () =>
      store.grantPart(upload, {
        part: 1,
        bytes: body.length,
        md5: createHash('md5').update(body).digest('base64'),
        lifeMs,
      })
    const send = async ({ url, headers }: Grant) => {
      const answer = await request(url, { method: 'PUT', body, headers, dispatcher: http })
      await answer.body.dump()
      return answer.statusCode
    }
    const old = await grant()
    assert.equal(await send(old), 200, 'the control')
    assert.equal(await store.revokeGrants(Date.now()), true)
    assert.equal(await send(old), 403)
    assert.equal(await send(await grant()), 200)
  })
})

describe('S3 store whose bucket is replicated', () => {
  const rule = (status: string, bucket: string) =>
    `<Rule><ID>r</ID><Status>${status}</Status><Destination><Bucket>arn:aws:s3:::${bucket}</Bucket></Destination></Rule>`
  const cases: [string, string[], string[], boolean][] = [
    ['to none', [], [], true],
    ['to one that is a replica', [rule('Enabled', 'paris')], ['paris'], true],
    ['to one that nobody deletes from', [rule('Enabled', 'rome')], ['paris'], false],
    [
      'to two of which one is unknown',
      [rule('Enabled', 'paris'), rule('Enabled', 'rome')],
      ['paris'],
      false,
    ],
    ['no more', [rule('Disabled', 'rome')], [], true],
  ]
  for (const [name, rules, copiedTo, fits] of cases)
    it(`${fits ? 'is used' : 'is refused'}: ${name}`, async () => {
      await using stack = new AsyncDisposableStack()
      const { certificate: cert, key, authority } = await makeServerCredentials()
      let asked = 0
      const server = createServer({ cert, key, minVersion: 'TLSv1.3' }, (incoming, response) => {
        const { searchParams } = new URL(incoming.url ?? '', 'https://x')
        response.setHeader('content-type', 'application/xml')
        if (searchParams.has('replication')) {
          asked += 1
          const text = `<ReplicationConfiguration>${rules.join('')}</ReplicationConfiguration>`
          response.end(rules.length === 0 ? '<ReplicationConfiguration/>' : text)
        } else if (searchParams.has('versioning')) response.end('<VersioningConfiguration/>')
        else response.writeHead(searchParams.has('object-lock') ? 404 : 200).end()
      })
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
      stack.defer(() => void server.close())
      stack.defer(() => server.closeAllConnections())
      const store = stack.use(
        createS3Store({
          endpoint: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
          ...{ region: 'us-east-1', bucket: 'sealed', forcePathStyle: true, copiedTo },
          authorities: authority,
          credentials: async () => ({ accessKeyId: 'a', secretAccessKey: 'b' }),
          now: Date.now,
        }),
      )
      const refused = (error: unknown) =>
        isSluiceError(error, 'store.replicated') && error.retry === 'never'
      if (fits) assert.deepEqual(await store.check(), { versioned: false, locks: false })
      else await assert.rejects(store.check(), refused)
      assert.equal(asked, 1, 'the control: it was asked')
    })
})

describe('S3 store before a server that is in trouble', () => {
  const troubles: [string, RequestListener][] = [
    [
      'asks to slow down',
      (_, response) =>
        void response
          .writeHead(503, { 'content-type': 'application/xml' })
          .end('<Error><Code>SlowDown</Code></Error>'),
    ],
    ['resets connections', (incoming) => void incoming.socket.destroy()],
    ['never answers', () => undefined],
  ]
  for (const [name, listener] of troubles)
    it(`says that it is away when it ${name}`, async () => {
      await using stack = new AsyncDisposableStack()
      const { certificate: cert, key, authority } = await makeServerCredentials()
      let asked = 0
      const server = createServer({ cert, key, minVersion: 'TLSv1.3' }, (incoming, response) => {
        asked += 1
        listener(incoming, response)
      })
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
      stack.defer(() => void server.close())
      stack.defer(() => server.closeAllConnections())
      const store = stack.use(
        createS3Store({
          endpoint: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
          region: 'us-east-1',
          bucket: 'trouble',
          forcePathStyle: true,
          authorities: authority,
          credentials: async () => ({ accessKeyId: 'a', secretAccessKey: 'b' }),
          now: Date.now,
          requestTimeoutMs: 500,
        }),
      )
      const objectKey = objectKeyFrom(randomBytes(16))
      const away = (error: unknown) =>
        isSluiceError(error, 'store.unreachable') && error.retry === 'later'
      await assert.rejects(store.deleteAll(objectKey), away)
      await assert.rejects(store.remains(objectKey), away)
      assert.ok(asked > 0, 'the control: the server was reached')
    })
})

describe('S3 store alone', { skip: noS3 }, () => {
  const open = async (bucket: string) =>
    createS3Store({
      endpoint: s3.endpoint,
      region: s3.region,
      bucket,
      forcePathStyle: true,
      authorities: await readFile(s3.caFile, 'utf8'),
      credentials: async () => s3.credentials,
      now: Date.now,
    })

  const setVersioning = (Bucket: string, Status: 'Enabled' | 'Suspended') =>
    s3.client.send(new PutBucketVersioningCommand({ Bucket, VersioningConfiguration: { Status } }))
  const versionedBucket = async (bucket: string) => {
    await s3.createBucket(bucket)
    await setVersioning(bucket, 'Enabled')
  }

  it('says what the bucket keeps by itself', async () => {
    await s3.createBucket('plain')
    await versionedBucket('versioned')
    await s3.client.send(
      new CreateBucketCommand({ Bucket: 'locked', ObjectLockEnabledForBucket: true }),
    )
    const traits = async (bucket: string) => {
      await using store = await open(bucket)
      return store.check()
    }
    assert.deepEqual(await traits('plain'), { versioned: false, locks: false })
    assert.deepEqual(await traits('versioned'), { versioned: true, locks: false })
    assert.deepEqual(await traits('locked'), { versioned: true, locks: true })
  })

  it('belongs to one of those that claim it at the same moment', async () => {
    for (let round = 0; round < 5; round += 1) {
      const bucket = `claimed${round}`
      await s3.createBucket(bucket)
      const ids = [1, 2, 3, 4].map((n) => newId(controlPlaneId, n))
      const claims = await Promise.allSettled(
        ids.map(async (id) => {
          await using store = await open(bucket)
          await store.claim({ id, mark: true })
          return id
        }),
      )
      const won = claims.flatMap((claim) => (claim.status === 'fulfilled' ? [claim.value] : []))
      assert.equal(won.length, 1)
      for (const claim of claims)
        if (claim.status === 'rejected') assert(isSluiceError(claim.reason, 'store.claimed'))
      await using store = await open(bucket)
      for (const id of ids) {
        const again = store.claim({ id, mark: true })
        if (id === won[0]) await again
        else await assert.rejects(again, { code: 'store.claimed' })
      }
    }
  })

  it('takes a mark of its own also where versions are kept or locked, and refuses one it cannot read', async () => {
    await versionedBucket('marked')
    await s3.client.send(
      new CreateBucketCommand({ Bucket: 'kept', ObjectLockEnabledForBucket: true }),
    )
    await s3.client.send(
      new PutObjectLockConfigurationCommand({
        Bucket: 'kept',
        ObjectLockConfiguration: {
          ObjectLockEnabled: 'Enabled',
          Rule: { DefaultRetention: { Mode: 'GOVERNANCE', Days: 1 } },
        },
      }),
    )
    const [one, other] = [newId(controlPlaneId, 1), newId(controlPlaneId, 2)]
    for (const bucket of ['marked', 'kept']) {
      await using store = await open(bucket)
      await store.claim({ id: one, mark: true })
      await assert.rejects(store.claim({ id: other, mark: true }), { code: 'store.claimed' })
      // Who takes a store over removes the mark; what is left of it is a delete marker.
      await s3.client.send(new DeleteObjectCommand({ Bucket: bucket, Key: claimKey }))
      await store.claim({ id: other, mark: true })
      await assert.rejects(store.claim({ id: one, mark: true }), { code: 'store.claimed' })
    }
    for (const Body of ['null', '{}', 'x'.repeat(100_000)]) {
      await s3.client.send(new PutObjectCommand({ Bucket: 'marked', Key: claimKey, Body }))
      await using store = await open('marked')
      await assert.rejects(store.claim({ id: other, mark: true }), { code: 'store.claimed' })
    }
  })

  it('deletes every version, marker and upload, and nothing of a neighbour', async () => {
    await versionedBucket('history')
    await using store = await open('history')
    const key = objectKeyFrom(randomBytes(16))
    const neighbour = `${key}0`
    for (const Key of [key, key, neighbour])
      await s3.client.send(new PutObjectCommand({ Bucket: 'history', Key, Body: randomBytes(10) }))
    // A marker over two versions, and another version over the marker.
    await s3.client.send(new DeleteObjectCommand({ Bucket: 'history', Key: key }))
    await s3.client.send(
      new PutObjectCommand({ Bucket: 'history', Key: key, Body: randomBytes(10) }),
    )
    await store.createUpload(key)
    // An upload that no ledger of ours knows, with a part in it.
    const { UploadId } = await s3.client.send(
      new CreateMultipartUploadCommand({ Bucket: 'history', Key: key }),
    )
    await s3.client.send(
      new UploadPartCommand({
        Bucket: 'history',
        Key: key,
        UploadId,
        PartNumber: 1,
        Body: randomBytes(10),
      }),
    )
    assert.deepEqual(await store.remains(key), { objects: 1, versions: 4, uploads: 2 })
    await store.deleteAll(key)
    assert.ok(isAbsent(await store.remains(key)))
    const { Versions, DeleteMarkers } = await s3.client.send(
      new ListObjectVersionsCommand({ Bucket: 'history' }),
    )
    assert.deepEqual(
      (Versions ?? []).map((one) => one.Key),
      [neighbour],
    )
    assert.equal((DeleteMarkers ?? []).length, 0, 'a deletion leaves no marker behind')
  })

  it('deletes what was there before versions were kept', async () => {
    await s3.createBucket('late')
    await using store = await open('late')
    const key = objectKeyFrom(randomBytes(16))
    const put = () =>
      s3.client.send(new PutObjectCommand({ Bucket: 'late', Key: key, Body: randomBytes(10) }))
    await put()
    await setVersioning('late', 'Enabled')
    await put()
    await setVersioning('late', 'Suspended')
    await put()
    await store.deleteAll(key)
    assert.ok(isAbsent(await store.remains(key)))
  })

  it('deletes more versions than one page lists', async () => {
    await versionedBucket('many')
    await using store = await open('many')
    const key = objectKeyFrom(randomBytes(16))
    for (let begun = 0; begun < 1010; begun += 10)
      await Promise.all(
        Array.from({ length: 10 }, () =>
          s3.client.send(new PutObjectCommand({ Bucket: 'many', Key: key, Body: 'x' })),
        ),
      )
    assert.equal((await store.remains(key)).versions, 1010)
    await store.deleteAll(key)
    assert.ok(isAbsent(await store.remains(key)))
  })

  it('says that a lock keeps an object, and deletes it once the lock is over', async () => {
    await s3.client.send(
      new CreateBucketCommand({ Bucket: 'retained', ObjectLockEnabledForBucket: true }),
    )
    await using store = await open('retained')
    const key = objectKeyFrom(randomBytes(16))
    const untilMs = Date.now() + 4000
    await s3.client.send(
      new PutObjectCommand({
        Bucket: 'retained',
        Key: key,
        Body: 'x',
        ObjectLockMode: 'COMPLIANCE',
        ObjectLockRetainUntilDate: new Date(untilMs),
        ContentMD5: createHash('md5').update('x').digest('base64'),
      }),
    )
    await assert.rejects(
      store.deleteAll(key),
      (error) => isSluiceError(error, 'store.locked') && error.retry === 'later',
    )
    assert.equal((await store.remains(key)).objects, 1)
    await sleep(untilMs - Date.now() + 1500)
    await store.deleteAll(key)
    assert.ok(isAbsent(await store.remains(key)))
  })

  it('refuses an endpoint without TLS', () => {
    const options = { region: 'r', bucket: 'b', forcePathStyle: true, now: Date.now }
    const credentials = async () => ({ accessKeyId: 'a', secretAccessKey: 'b' })
    assert.throws(
      () => createS3Store({ ...options, credentials, endpoint: 'http://127.0.0.1:1' }),
      (error) => isSluiceError(error, 'store.insecure'),
    )
  })

  it('says that the store is away, and works again when it is back', async () => {
    await s3.createBucket('outage')
    await using store = await open('outage')
    const key = objectKeyFrom(randomBytes(16))
    await s3.beginOutage()
    await assert.rejects(store.head(key), (error) => isSluiceError(error, 'store.unreachable'))
    await s3.endOutage()
    assert.equal(await store.head(key), undefined)
  })
})
