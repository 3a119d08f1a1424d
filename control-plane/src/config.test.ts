import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { loadConfig } from '@sluice/protocol/process/config'
import { controlPlaneConfig, isLoopback, listenAddressOf, publicNamesOf } from './config.ts'

const load = (env: Record<string, string>) => loadConfig(controlPlaneConfig, { env })

describe('configuration of the control plane', () => {
  it('listens on loopback only until a public name is given', async () => {
    assert.equal(listenAddressOf(await load({})), '127.0.0.1')
    assert.equal(listenAddressOf(await load({ SLUICE_PUBLIC_NAME: 'sluice.example' })), '::')
    assert.equal(listenAddressOf(await load({ SLUICE_PUBLIC_NAME: 'localhost' })), '127.0.0.1')
  })

  it('refuses to be reached from outside without a name to be reached by', async () => {
    await assert.rejects(load({ SLUICE_LISTEN_ADDRESS: '192.0.2.1' }), /publicName: must be set/)
  })

  it('refuses plain HTTP anywhere but on loopback', async () => {
    const plain = { SLUICE_INSECURE_LOOPBACK_HTTP: 'true' }
    assert.equal((await load(plain)).insecureLoopbackHttp, true)
    await assert.rejects(load({ ...plain, SLUICE_PUBLIC_NAME: 'sluice.example' }), {
      code: 'config.invalid',
    })
  })

  it('asks for everything an S3 store needs, and for https', async () => {
    const s3 = { SLUICE_STORAGE_KIND: 's3' }
    await assert.rejects(load(s3), /storage\.endpoint[\s\S]*storage\.bucket[\s\S]*credentialsFile/)
    const whole = {
      ...s3,
      SLUICE_STORAGE_BUCKET: 'sealed',
      SLUICE_STORAGE_CREDENTIALS_FILE: '/run/credentials',
    }
    assert.equal(
      (await load({ ...whole, SLUICE_STORAGE_ENDPOINT: 'https://s3.example' })).storage.kind,
      's3',
    )
    await assert.rejects(load({ ...whole, SLUICE_STORAGE_ENDPOINT: 'http://s3.example' }))
  })

  it('takes replicas of a bucket, each once, under a name of its own', async () => {
    const storage = {
      SLUICE_STORAGE_KIND: 's3',
      SLUICE_STORAGE_ENDPOINT: 'https://s3.example',
      SLUICE_STORAGE_BUCKET: 'sealed',
      SLUICE_STORAGE_CREDENTIALS_FILE: '/run/credentials',
    }
    const paris = {
      ...{ name: 'paris', endpoint: 'https://s3.example', bucket: 'sealed-paris' },
      credentialsFile: '/run/paris',
    }
    const replicas = (...all: object[]) =>
      load({ ...storage, SLUICE_STORAGE_REPLICAS: JSON.stringify(all) })
    const { storage: read } = await replicas(paris, { ...paris, name: 'rome', bucket: 'rome' })
    assert.deepEqual(
      read.replicas.map(({ name, region }) => `${name} ${region}`),
      ['paris us-east-1', 'rome us-east-1'],
    )
    await assert.rejects(
      replicas(paris, { ...paris, bucket: 'other' }),
      /two replicas have one name/,
    )
    await assert.rejects(replicas(paris, { ...paris, name: 'rome' }), /named twice/)
    await assert.rejects(replicas({ ...paris, bucket: 'sealed' }), /named twice/)
    await assert.rejects(replicas({ ...paris, name: 'a b' }), { code: 'config.invalid' })
    await assert.rejects(replicas({ ...paris, endpoint: 'http://s3.example' }))
    await assert.rejects(
      load({ SLUICE_STORAGE_REPLICAS: JSON.stringify([paris]) }),
      /only an S3 bucket is replicated/,
    )
  })

  it('makes loopback certificates for every name of loopback', () => {
    assert.deepEqual(publicNamesOf({}).names, ['127.0.0.1', 'localhost', '::1'])
    assert.deepEqual(publicNamesOf({ publicName: 'sluice.example' }), {
      name: 'sluice.example',
      names: ['sluice.example'],
    })
  })

  it('takes no name for loopback that is not', () => {
    for (const name of ['127.0.0.1.example', '128.0.0.1', 'localhost.example', '192.0.2.1', '::'])
      assert.equal(isLoopback(name), false, name)
  })
})
