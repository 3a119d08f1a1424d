/** A job whose archive the operator's own replication has copied: gone from there too, or not deleted. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import {
  CopyObjectCommand,
  CreateBucketCommand,
  DeleteObjectCommand,
  ListObjectVersionsCommand,
  PutBucketVersioningCommand,
} from '@aws-sdk/client-s3'
import { claimKey } from '@sluice/control-plane/storage/claim'
import { requireSuccess, s3Settings, startFleet } from '../tools/fleet.ts'
import { proveDeleted, submit, waitMsMax, waitUntilSealed } from '../tools/journey.ts'
import { needS3Server, startS3Server } from '../tools/s3-server.ts'
import { makePhoto, needFfmpeg } from '../tools/small-media.ts'

const skip = (await needFfmpeg()) || needS3Server()

describe('a replicated bucket', { skip, timeout: 240_000 }, () => {
  it('is emptied of every version in the replica before there is a certificate, which names it', async (t) => {
    await using cleanup = new AsyncDisposableStack()
    const server = cleanup.use(await startS3Server())
    const { client, endpoint, region, caFile, credentialsFile } = server
    const [own, copy] = ['sealed', 'sealed-paris']
    await server.createBucket(own)
    const VersioningConfiguration = { Status: 'Enabled' } as const
    await client.send(new PutBucketVersioningCommand({ Bucket: own, VersioningConfiguration }))
    // It may lock, and so keeps versions too; nothing in it is locked.
    await client.send(new CreateBucketCommand({ Bucket: copy, ObjectLockEnabledForBucket: true }))
    const { controlPlane, agent } = s3Settings(server, own)
    const replica = { name: 'paris', endpoint, region, bucket: copy, caFile, credentialsFile }
    const storage = {
      ...(controlPlane['storage'] as object),
      ...{ replicas: [replica], replicaSettleMinutes: 0 },
    }
    const fleet = cleanup.use(
      await startFleet({ name: 'replicas', controlPlane: { allowSwap: true, storage } }),
    )
    const capture = await fleet.addAgent({
      ...{ name: 'capture', role: 'capture' },
      config: { allowSwap: true, spoolReserveBytes: 0, ...agent },
    })
    await capture.start()
    const folder = await mkdtemp(join(tmpdir(), 'sluice-media-'))
    t.after(() => rm(folder, { recursive: true }))
    const [submission] = await submit(capture, [await makePhoto(join(folder, 'photo.jpg'))])
    const id = await waitUntilSealed(capture, submission!)
    await fleet.waitForState(id, ['stored'], waitMsMax)

    // As replication does it: a copy, another one of the same, and the marker of a deletion.
    const there = await client.send(new ListObjectVersionsCommand({ Bucket: own }))
    const Key = there.Versions?.find((one) => one.Key !== claimKey)?.Key
    assert.ok(Key !== undefined)
    for (let copies = 0; copies < 2; copies += 1)
      await client.send(new CopyObjectCommand({ Bucket: copy, Key, CopySource: `${own}/${Key}` }))
    await client.send(new DeleteObjectCommand({ Bucket: copy, Key }))
    const copied = await client.send(new ListObjectVersionsCommand({ Bucket: copy }))
    assert.deepEqual([copied.Versions?.length, copied.DeleteMarkers?.length], [2, 1], 'the control')

    await fleet.ask(`/v1/jobs/${id}/delete`, { body: {} })
    const { certificate } = await proveDeleted(fleet, id)
    const held = certificate.holders.map(({ holder }) => `${holder.kind} ${holder.place ?? ''}`)
    assert.ok(held.includes('object-replica paris'))
    for (const [Bucket, keys] of [
      [own, [claimKey]],
      [copy, []],
    ] as const) {
      const left = await client.send(new ListObjectVersionsCommand({ Bucket }))
      assert.deepEqual(
        (left.Versions ?? []).map((one) => one.Key),
        keys,
      )
      assert.deepEqual(left.DeleteMarkers ?? [], [])
    }
    await fleet.controlPlane.waitForLine(/"store\.locks".*"paris"/)
    const token = await fleet.tokenFile('viewer')
    const { operatorUrl } = fleet.controlPlane
    requireSuccess('login', await fleet.command(['login', operatorUrl, '--token-file', token]))
    const { stdout } = await fleet.command(['doctor', '--json'])
    const items = JSON.parse(stdout) as { what: string; ok: boolean; found: string }[]
    const stores = items.filter(({ what }) => what === 'store' || what.startsWith('replica'))
    assert.deepEqual(
      stores.map(({ what, ok, found }) => `${what} ${ok}: ${found}`),
      ['store true: keeps versions', 'replica paris false: keeps versions and locked objects'],
    )
  })
})
