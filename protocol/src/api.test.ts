import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { decodeToken, encodeToken } from './api.ts'

const content = { url: 'https://sluice.example:8444', ca: 'AAAA', secret: 's'.repeat(43) }

describe('token texts', () => {
  it('carry address, authority and secret, with white space around them', () => {
    for (const kind of ['join', 'token'] as const)
      assert.deepEqual(decodeToken(kind, ` ${encodeToken(kind, content)}\n`), content)
  })

  it('are not taken for one another', () => {
    const text = encodeToken('token', content)
    assert.throws(() => decodeToken('join', text), { code: 'token.invalid' })
  })

  it('are refused when damaged, and never repeated in the message', () => {
    const good = encodeToken('join', content)
    const odd = (value: unknown) =>
      `sluice-join-1.${Buffer.from(JSON.stringify(value)).toString('base64url')}`
    for (const text of [
      '',
      'sluice-join-1.',
      good.slice(0, -9),
      `${good}${'A'.repeat(9000)}`,
      odd({ ...content, more: 1 }),
      odd({ ...content, url: 'ftp://x' }),
      odd({ ...content, secret: 'short' }),
    ])
      assert.throws(
        () => decodeToken('join', text),
        (error: Error & { code?: string }) => {
          assert.equal(error.code, 'token.invalid')
          assert.doesNotMatch(error.message, /sssss/)
          return true
        },
        text.slice(0, 40),
      )
  })
})
