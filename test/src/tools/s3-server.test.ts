/** Proves that the test store is a real one: TLS 1.3, wrong keys refused, outages survived. */

import assert from 'node:assert/strict'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { describe, it } from 'node:test'
import { connect } from 'node:tls'

import { GetObjectCommand, PutObjectCommand } from '@aws-sdk/client-s3'

import { needS3Server, startS3Server } from './s3-server.ts'

function tlsVersion(options: { port: number; ca: Buffer; maxVersion: 'TLSv1.2' | 'TLSv1.3' }) {
  return new Promise<string | null>((resolve, reject) => {
    const socket = connect({ ...options, host: '127.0.0.1', minVersion: 'TLSv1.2' }, () => {
      resolve(socket.getProtocol())
      socket.destroy()
    })
    socket.on('error', reject)
  })
}

describe('startS3Server', () => {
  const skip = needS3Server()
  it(
    'keeps an object over an outage, over TLS 1.3 only, for its own key only, and leaves nothing',
    { skip },
    async () => {
      let caFile = ''
      {
        await using server = await startS3Server()
        caFile = server.caFile
        assert.equal(statSync(server.credentialsFile).mode & 0o777, 0o600)
        await server.createBucket('media')
        const object = { Bucket: 'media', Key: 'a' }
        await server.client.send(new PutObjectCommand({ ...object, Body: 'sealed' }))

        await server.beginOutage()
        const get = () => server.client.send(new GetObjectCommand(object))
        await assert.rejects(get, /ECONNREFUSED/)
        await server.endOutage()
        assert.equal(await (await get()).Body?.transformToString(), 'sealed')

        const port = Number(new URL(server.endpoint).port)
        const ca = readFileSync(server.caFile)
        assert.equal(await tlsVersion({ port, ca, maxVersion: 'TLSv1.3' }), 'TLSv1.3')
        await assert.rejects(tlsVersion({ port, ca, maxVersion: 'TLSv1.2' }), /alert|version/i)

        const { accessKeyId } = server.credentials
        const stranger = server.connect({ accessKeyId, secretAccessKey: 'wrong' })
        await assert.rejects(
          stranger.send(new GetObjectCommand(object)),
          /SignatureDoesNotMatch|403/,
        )
        stranger.destroy()
      }
      assert.equal(existsSync(caFile), false)
    },
  )
})
