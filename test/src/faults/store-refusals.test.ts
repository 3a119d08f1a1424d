/** What a real S3 keeps or refuses: a deletion stays owed, says why, and is certified only once it is true. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  CreateBucketCommand,
  CreateMultipartUploadCommand,
  DeleteBucketPolicyCommand,
  DeleteObjectCommand,
  PutBucketPolicyCommand,
  PutBucketVersioningCommand,
  PutObjectCommand,
  PutObjectLegalHoldCommand,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { alerts } from '@sluice/control-plane/database/schema'
import { beginDeletion, type DeletionIntent } from '@sluice/control-plane/deletion/intent'
import { certificateOfJob, jobById, obligationsOfJob } from '@sluice/control-plane/deletion/store'
import { makeWorld } from '@sluice/control-plane/purge/world.test-setup'
import { isAbsent } from '@sluice/control-plane/storage/object-store'
import { createS3Store } from '@sluice/control-plane/storage/s3-store'
import { needS3Server, type S3Server, startS3Server } from '../tools/s3-server.ts'

const skip = needS3Server()
const hourMs = 3_600_000
const dayMs = 24 * hourMs
/** Short, so that a store that hangs costs the test little. */
const requestTimeoutMs = 500

describe('a store that keeps or refuses', { skip }, () => {
  let s3: S3Server
  before(async () => {
    s3 = await startS3Server()
  })
  after(() => s3[Symbol.asyncDispose]())

  /** One stored job whose holders obey at once, so that only the store can be in the way. */
  async function deletingJob(bucket: string, plant: (key: string) => Promise<void>) {
    await using stack = new AsyncDisposableStack()
    const world = stack.use(await makeWorld())
    const { database, changes, clock, now } = world.ground
    const store = stack.use(
      createS3Store({
        endpoint: s3.endpoint,
        region: s3.region,
        bucket,
        forcePathStyle: true,
        authorities: await readFile(s3.caFile, 'utf8'),
        credentials: async () => s3.credentials,
        now: Date.now,
        requestTimeoutMs,
      }),
    )
    const capture = await world.enrol('capture')
    const id = await world.job({ by: capture })
    const row = await database.read((sql) => jobById(sql, id))
    assert(row)
    const key = row.objectKey
    await plant(key)
    assert.equal(isAbsent(await store.remains(key)), false, 'the control: something is there')
    const intent: DeletionIntent = {
      jobId: id,
      from: 'stored',
      reason: 'requested',
      actor: { kind: 'system' },
      atMs: now(),
    }
    await database.write((tx) => beginDeletion(tx, intent, changes))
    await world.work({ store })
    await world.obey(capture)
    // The last holder but the store has answered: a certificate that came early would come now.
    await world.work({ store })
    const kept = stack.move()
    return {
      store,
      key,
      /** Everything that is due an hour later is tried again. */
      async tryAgain(laterMs = hourMs) {
        clock.nowMs += laterMs
        await world.work({ store })
      },
      /** What became overdue, and with which code. */
      async alarms() {
        const all = await database.read((sql) => sql.select().from(alerts))
        const late = all.filter(({ type }) => type === 'obligation.overdue')
        return late.map(({ detail }) => `${detail['obligation']} ${detail['code']}`)
      },
      async duty() {
        const all = await database.read((sql) => obligationsOfJob(sql, id))
        const found = all.find((one) => one.kind === 'object.delete')
        assert(found)
        return found
      },
      async assertOpen(code: string) {
        const duty = await this.duty()
        assert.notEqual(duty.state, 'done')
        assert.equal(duty.lastErrorCode, code)
        assert.equal(await database.read((sql) => certificateOfJob(sql, id)), undefined)
        assert.equal((await database.read((sql) => jobById(sql, id)))?.state, 'deleting')
        return duty
      },
      async assertDeleted() {
        assert.equal((await this.duty()).state, 'done')
        assert.ok(isAbsent(await store.remains(key)))
        assert.ok(await database.read((sql) => certificateOfJob(sql, id)))
        assert.equal((await database.read((sql) => jobById(sql, id)))?.state, 'deleted')
      },
      [Symbol.asyncDispose]: () => kept.disposeAsync(),
    }
  }

  const put = (Bucket: string, Key: string) =>
    s3.client.send(new PutObjectCommand({ Bucket, Key, Body: randomBytes(100) }))

  async function forbidDeleting(Bucket: string): Promise<void> {
    const deny = {
      ...{ Effect: 'Deny', Principal: '*', Resource: `arn:aws:s3:::${Bucket}/*` },
      Action: ['s3:DeleteObject', 's3:DeleteObjectVersion'],
    }
    const Policy = JSON.stringify({ Version: '2012-10-17', Statement: [deny] })
    await s3.client.send(new PutBucketPolicyCommand({ Bucket, Policy }))
  }

  it('is empty of versions, markers and uploads nobody knew, before there is a certificate', async () => {
    const Bucket = 'versions'
    await s3.createBucket(Bucket)
    await s3.client.send(
      new PutBucketVersioningCommand({ Bucket, VersioningConfiguration: { Status: 'Enabled' } }),
    )
    await using job = await deletingJob(Bucket, async (Key) => {
      await put(Bucket, Key)
      await put(Bucket, Key)
      await s3.client.send(new DeleteObjectCommand({ Bucket, Key }))
      await put(Bucket, Key)
      const { UploadId } = await s3.client.send(new CreateMultipartUploadCommand({ Bucket, Key }))
      const part = { Bucket, Key, UploadId, PartNumber: 1, Body: randomBytes(100) }
      await s3.client.send(new UploadPartCommand(part))
    })
    await job.assertDeleted()
  })

  it('that locks an object is owed the deletion until the lock is over', async () => {
    const Bucket = 'retained'
    await s3.client.send(new CreateBucketCommand({ Bucket, ObjectLockEnabledForBucket: true }))
    const untilMs = Math.ceil(Date.now() / 1000) * 1000 + 8000
    await using job = await deletingJob(Bucket, async (Key) => {
      const Body = randomBytes(100)
      await s3.client.send(
        new PutObjectCommand({
          ...{ Bucket, Key, Body },
          ObjectLockMode: 'COMPLIANCE',
          ObjectLockRetainUntilDate: new Date(untilMs),
          ContentMD5: createHash('md5').update(Body).digest('base64'),
        }),
      )
    })
    const duty = await job.assertOpen('store.locked')
    assert.match(duty.lastError ?? '', new RegExp(new Date(untilMs).toISOString()))
    const deadlineMs = untilMs + 60_000
    while ((await job.duty()).state !== 'done' && Date.now() < deadlineMs) {
      await job.tryAgain()
      await sleep(250)
    }
    assert.ok(Date.now() > untilMs, 'the control: the lock did hold')
    await job.assertDeleted()
  })

  it('that holds an object for good raises the alarm, and lets go when it is told to', async () => {
    const Bucket = 'held'
    await s3.client.send(new CreateBucketCommand({ Bucket, ObjectLockEnabledForBucket: true }))
    let held: { Bucket: string; Key: string; VersionId: string | undefined } | undefined
    await using job = await deletingJob(Bucket, async (Key) => {
      const { VersionId } = await put(Bucket, Key)
      held = { Bucket, Key, VersionId }
      const LegalHold = { Status: 'ON' } as const
      await s3.client.send(new PutObjectLegalHoldCommand({ ...held, LegalHold }))
    })
    const duty = await job.assertOpen('store.locked')
    assert.match(duty.lastError ?? '', /legal hold/)
    assert.deepEqual(await job.alarms(), [], 'the control: it is not late yet')
    await job.tryAgain(dayMs)
    await job.assertOpen('store.locked')
    assert.deepEqual(await job.alarms(), ['object.delete store.locked'])
    assert.ok(held)
    await s3.client.send(new PutObjectLegalHoldCommand({ ...held, LegalHold: { Status: 'OFF' } }))
    await job.tryAgain()
    await job.assertDeleted()
  })

  it('that forbids deleting is owed the deletion until it allows it', async () => {
    const Bucket = 'forbidden'
    await s3.createBucket(Bucket)
    await using job = await deletingJob(Bucket, async (Key) => {
      await put(Bucket, Key)
      await forbidDeleting(Bucket)
    })
    await job.assertOpen('store.refused')
    await job.tryAgain()
    await job.assertOpen('store.refused')
    await s3.client.send(new DeleteBucketPolicyCommand({ Bucket }))
    await job.tryAgain()
    await job.assertDeleted()
  })

  it('that hangs, or is gone, is owed the deletion until it answers', async () => {
    const Bucket = 'away'
    await s3.createBucket(Bucket)
    await using job = await deletingJob(Bucket, async (Key) => {
      await put(Bucket, Key)
      // Keeps the first try from settling it, so that the next ones meet the outages.
      await forbidDeleting(Bucket)
    })
    await job.assertOpen('store.refused')
    await s3.client.send(new DeleteBucketPolicyCommand({ Bucket }))
    await s3.freeze()
    try {
      await job.tryAgain()
    } finally {
      await s3.thaw()
    }
    await job.assertOpen('store.unreachable')
    await s3.beginOutage()
    try {
      await job.tryAgain()
    } finally {
      await s3.endOutage()
    }
    await job.assertOpen('store.unreachable')
    await job.tryAgain()
    await job.assertDeleted()
  })
})
