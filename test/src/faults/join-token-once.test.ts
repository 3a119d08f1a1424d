/** A join token serves a single agent, however many use it in the same moment. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import { decodeToken } from '@sluice/protocol/api'
import { newIdentity, startControlPlane } from '@sluice/control-plane/control-plane.test-setup'

const tries = 100

describe('a join token', () => {
  it('used 100 times at once lets one agent in', async () => {
    await using system = await startControlPlane()
    const { token } = await system.joinToken({ role: 'gpu' })
    const { secret } = decodeToken('join', token)
    const identities = await Promise.all(Array.from({ length: tries }, () => newIdentity()))
    const answers = await Promise.all(
      identities.map(({ csr }) =>
        system.call('POST', '/v1/join', { body: { token: secret, csr } }),
      ),
    )
    assert.equal(answers.filter(({ status }) => status === 201).length, 1)
    const refused = answers.filter(({ json }) => json['code'] === 'join.refused')
    assert.equal(refused.length, tries - 1)
    const viewer = await system.secretFor('viewer')
    const { json } = await system.call('GET', '/v1/agents', { secret: viewer })
    assert.equal(json.items?.length, 1)
  })
})
