/** Grants signed with sessions of a role are taken back at once, on a real S3 with STS and IAM. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { Agent as HttpsAgent } from 'node:https'
import { after, before, describe, it } from 'node:test'
import { CreateRoleCommand, IAMClient, PutRolePolicyCommand } from '@aws-sdk/client-iam'
import { createS3Store } from '@sluice/control-plane/storage/s3-store'
import type { Grant } from '@sluice/protocol/messages'
import { objectKeyFrom } from '@sluice/protocol/object-keys'
import { Agent, request } from 'undici'
import { needS3Server, type S3Server, startS3Server } from '../tools/s3-server.ts'

const skip = needS3Server()
const bucket = 'role-grants'
const roleName = 'sluice-grants'

describe('grants that a role signs', { skip }, () => {
  let s3: S3Server
  let http: Agent
  let authorities: string
  before(async () => {
    s3 = await startS3Server({ sts: true })
    authorities = await readFile(s3.caFile, 'utf8')
    http = new Agent({ connect: { ca: authorities, minVersion: 'TLSv1.3' } })
    await s3.createBucket(bucket)
    await makeRole()
  })
  after(async () => {
    await http.close()
    await s3[Symbol.asyncDispose]()
  })

  /** As an administrator of the store makes it, once. */
  async function makeRole(): Promise<void> {
    const iam = new IAMClient({
      endpoint: s3.endpoint,
      region: s3.region,
      credentials: s3.credentials,
      requestHandler: { httpsAgent: new HttpsAgent({ ca: authorities }) },
    })
    const version = { Version: '2012-10-17' }
    const trust = {
      ...version,
      Statement: [
        {
          Effect: 'Allow',
          Principal: { AWS: ['arn:aws:iam:::user/test'] },
          Action: ['sts:AssumeRole'],
        },
      ],
    }
    const may = {
      ...version,
      Statement: [
        {
          Effect: 'Allow',
          Action: ['s3:PutObject', 's3:GetObject'],
          Resource: [`arn:aws:s3:::${bucket}/*`],
        },
      ],
    }
    await iam.send(
      new CreateRoleCommand({
        RoleName: roleName,
        Path: '/',
        AssumeRolePolicyDocument: JSON.stringify(trust),
      }),
    )
    await iam.send(
      new PutRolePolicyCommand({
        RoleName: roleName,
        PolicyName: 'grants',
        PolicyDocument: JSON.stringify(may),
      }),
    )
    iam.destroy()
  }

  async function send({ url, headers }: Grant, body: Buffer) {
    const answer = await request(url, { method: 'PUT', headers, body, dispatcher: http })
    await answer.body.dump()
    return { status: answer.statusCode, etag: String(answer.headers['etag'] ?? '') }
  }
  async function read({ url }: Grant): Promise<number> {
    const answer = await request(url, { dispatcher: http })
    await answer.body.dump()
    return answer.statusCode
  }

  it('carry an upload from beginning to end, and are refused once they are revoked', async () => {
    await using store = createS3Store({
      endpoint: s3.endpoint,
      region: s3.region,
      bucket,
      forcePathStyle: true,
      authorities,
      credentials: async () => s3.credentials,
      now: Date.now,
      grantRole: { roleArn: `arn:aws:iam:::role/${roleName}`, iamEndpoint: s3.endpoint },
    })
    const key = objectKeyFrom(randomBytes(16))
    const upload = { key, storeUploadId: await store.createUpload(key) }
    const body = randomBytes(1000)
    const md5 = createHash('md5').update(body).digest('base64')
    const grantPart = () =>
      store.grantPart(upload, { part: 1, bytes: body.length, md5, lifeMs: 60_000 })
    const old = await grantPart()
    assert.equal((await send(old, body)).status, 200, 'control: it works')
    const [part] = await store.listParts(upload)
    assert.ok(part)
    assert.equal(await store.revokeGrants(Date.now()), true)
    assert.equal((await send(old, body)).status, 403, 'taken back')
    assert.equal((await send(await grantPart(), body)).status, 200, 'a new one counts')
    await store.completeUpload(upload, await store.listParts(upload))
    const reading = await store.grantRead(key, 60_000)
    assert.equal(await read(reading), 200)
    assert.equal(await store.revokeGrants(Date.now()), true)
    assert.equal(await read(reading), 403)
    await store.deleteAll(key)
  })
})
