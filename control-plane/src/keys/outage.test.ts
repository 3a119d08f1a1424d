import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { SluiceError } from '@sluice/protocol/errors'
import { createOutage } from './outage.ts'

const away = new SluiceError('keys.unavailable', 'away', { retry: 'later' })
const damaged = new SluiceError('keys.damaged', 'damaged')

function told() {
  const words: string[] = []
  let deaf = false
  const outage = createOutage({
    began(problem) {
      words.push(problem.code)
      return deaf ? Promise.reject(new Error('the disk is full')) : Promise.resolve()
    },
    ended: () => void words.push('back'),
  })
  const fail = (error: Error) =>
    assert.rejects(
      outage.watch(async () => {
        throw error
      }),
      error,
    )
  return { words, outage, fail, setDeaf: (now: boolean) => (deaf = now) }
}

describe('an outage of the keys', () => {
  it('is told once, and its end too', async () => {
    const { words, outage, fail } = told()
    outage.end()
    await fail(away)
    await fail(away)
    outage.end()
    outage.end()
    assert.deepEqual(words, ['keys.unavailable', 'back'])
    await fail(away)
    assert.deepEqual(words, ['keys.unavailable', 'back', 'keys.unavailable'])
  })

  it('is told again when nobody could be told', async () => {
    const { words, fail, setDeaf } = told()
    setDeaf(true)
    await fail(away)
    setDeaf(false)
    await fail(away)
    await fail(away)
    assert.deepEqual(words, ['keys.unavailable', 'keys.unavailable'])
  })

  it('is nothing else that fails, and nothing that works', async () => {
    const { words, outage, fail } = told()
    await fail(damaged)
    assert.equal(await outage.watch(() => Promise.resolve(7)), 7)
    assert.deepEqual(words, [])
  })
})
