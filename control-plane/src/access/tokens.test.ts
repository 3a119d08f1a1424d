import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import { decodeToken } from '@sluice/protocol/api'
import { onDisk } from '../database/full-disk.test-setup.ts'
import { testGround, type TestGround } from '../doubles.ts'
import type { Authority } from './authority.ts'
import { authenticate, createToken } from './tokens.ts'

describe('a token on a full disk', () => {
  let ground: TestGround
  before(async () => {
    ground = await testGround()
  })
  after(() => ground[Symbol.asyncDispose]())

  it('lets its owner in, however long it was not used', async () => {
    const { disk, database } = onDisk(ground.database)
    const authority = { certificates: [Buffer.from('a certificate')] } as unknown as Authority
    const deps = { ...ground, database, authority, operatorUrl: () => 'https://localhost' }
    const { token } = await createToken(deps, 'owner', {
      principal: 'anna',
      rights: [{ role: 'security', site: '*' }],
    })
    const header = `Bearer ${decodeToken('token', token).secret}`
    const rule = { method: 'POST', path: '/v1/purges', may: ['security'], about: '' } as const
    disk.full = true
    const access = await authenticate(deps, header, rule)
    assert.equal(access.principal, 'anna')
    await assert.rejects(createToken(deps, 'owner', { principal: 'anna' }), {
      code: 'host.disk_full',
    })
  })
})
