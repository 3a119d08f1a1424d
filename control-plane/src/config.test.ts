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
