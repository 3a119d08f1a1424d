/** Grants of a real S3 end with the access key that signed them, and the store proves it before it says so. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { PutObjectCommand } from '@aws-sdk/client-s3'
import { readS3Credentials } from '@sluice/control-plane/storage/s3-credentials'
import { createS3Store } from '@sluice/control-plane/storage/s3-store'
import type { Grant } from '@sluice/protocol/messages'
import { objectKeyFrom } from '@sluice/protocol/object-keys'
import { Agent, request } from 'undici'
import {
  needS3Server,
  type S3Credentials,
  type S3Server,
  startS3Server,
} from '../tools/s3-server.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'

const skip = needS3Server()
const hourMs = 3_600_000
const bucket = 'grants'

describe('grants of a real S3', { skip }, () => {
  let s3: S3Server
  let http: Agent
  before(async () => {
    s3 = await startS3Server()
    http = new Agent({ connect: { ca: await readFile(s3.caFile), minVersion: 'TLSv1.3' } })
    await s3.createBucket(bucket)
  })
  after(async () => {
    await http.close()
    await s3[Symbol.asyncDispose]()
  })

  const newKey = async (accessKeyId = randomBytes(8).toString('hex')): Promise<S3Credentials> => {
    const credentials = { accessKeyId, secretAccessKey: randomBytes(16).toString('hex') }
    await s3.createKey(credentials)
    return credentials
  }
  const status = async ({ url }: Grant) => {
    const answer = await request(url, { dispatcher: http })
    await answer.body.dump()
    return answer.statusCode
  }

  /** A store that has run for an hour, whose credentials file holds a key of its own. */
  async function runningStore(since = hourMs) {
    await using stack = new AsyncDisposableStack()
    const folder = stack.use(await makeTemporaryDirectory('credentials'))
    const file = join(folder.path, 'credentials')
    const write = ({ accessKeyId, secretAccessKey }: S3Credentials) =>
      writeFile(
        file,
        `[default]\naws_access_key_id = ${accessKeyId}\naws_secret_access_key = ${secretAccessKey}\n`,
        { mode: 0o600 },
      )
    const first = await newKey()
    await write(first)
    let aheadMs = -since
    const now = () => Date.now() + aheadMs
    const store = stack.use(
      createS3Store({
        ...{ endpoint: s3.endpoint, region: s3.region, bucket, forcePathStyle: true, now },
        authorities: await readFile(s3.caFile, 'utf8'),
        credentials: () => readS3Credentials(file),
        requestTimeoutMs: 2000,
      }),
    )
    aheadMs = 0
    const key = objectKeyFrom(randomBytes(16))
    await s3.client.send(new PutObjectCommand({ Bucket: bucket, Key: key, Body: 'sealed' }))
    const grant = await store.grantRead(key, 60_000)
    assert.equal(await status(grant), 200, 'the control: it opens')
    const kept = stack.move()
    return {
      store,
      first,
      write,
      key,
      grant,
      now,
      [Symbol.asyncDispose]: () => kept.disposeAsync(),
    }
  }

  it('are dead once their key was replaced and deleted, and those of the new key are not', async () => {
    await using world = await runningStore()
    const { store, first, write, key, grant, now } = world
    const atMs = now() + 1
    assert.equal(await store.revokeGrants(atMs), false)
    while (now() < atMs) await new Promise(setImmediate)
    await write(await newKey())
    const later = await store.grantRead(key, 60_000)
    assert.equal(await store.revokeGrants(atMs), false, 'the old key still opens')
    assert.equal(await status(grant), 200)
    await s3.removeKey(first.accessKeyId)
    assert.equal(await store.revokeGrants(atMs), true)
    assert.deepEqual([await status(grant), await status(later)], [403, 200])
    // What the new key signs counts for whoever revokes from now on.
    assert.equal(await store.revokeGrants(now() + 1), false)
  })

  it('are dead once the secret of their key was replaced', async () => {
    await using world = await runningStore()
    const { store, first, write, key, grant, now } = world
    const atMs = now() + 1
    assert.equal(await store.revokeGrants(atMs), false)
    while (now() < atMs) await new Promise(setImmediate)
    await s3.removeKey(first.accessKeyId)
    await write(await newKey(first.accessKeyId))
    assert.notEqual(await store.head(key), undefined, 'the new secret is used without a restart')
    assert.equal(await store.revokeGrants(atMs), true)
    assert.equal(await status(grant), 403)
  })

  it('may be out under a key that this process never saw, until they are over', async () => {
    await using world = await runningStore(0)
    const { store, first, write, now } = world
    await write(await newKey())
    await s3.removeKey(first.accessKeyId)
    assert.equal(await store.revokeGrants(now() + 1), false)
  })

  it('are not called dead by a store that does not answer', async () => {
    await using world = await runningStore()
    const { store, write, now } = world
    await write(await newKey())
    await s3.beginOutage()
    try {
      await assert.rejects(store.revokeGrants(now() + 1), { code: 'store.unreachable' })
    } finally {
      await s3.endOutage()
    }
  })
})
