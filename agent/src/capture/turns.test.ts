/** Proves the bound and that nobody is left waiting. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { createTurns } from './turns.ts'

describe('turns', () => {
  it('never lets more run at once than allowed, and everyone in the end', async () => {
    const turns = createTurns(2)
    const { signal } = new AbortController()
    let running = 0
    let most = 0
    const work = async () => {
      running += 1
      most = Math.max(most, running)
      await new Promise((done) => setImmediate(done))
      running -= 1
      if (most < 0) return
      throw new Error('a failure gives its turn back too')
    }
    const all = await Promise.allSettled(Array.from({ length: 9 }, () => turns.take(work, signal)))
    assert.equal(all.length, 9)
    assert.equal(most, 2)
  })

  it('begins nothing more once it is over', async () => {
    const turns = createTurns(1)
    const ending = new AbortController()
    const first = Promise.withResolvers<void>()
    const running = turns.take(() => first.promise, ending.signal)
    const waiting = turns.take(() => assert.fail('began'), ending.signal)
    ending.abort(new Error('over'))
    first.resolve()
    await running
    await assert.rejects(waiting, /over/)
  })
})
