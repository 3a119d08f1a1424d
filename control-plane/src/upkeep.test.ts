import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { SluiceError } from '@sluice/protocol/errors'
import { startUpkeep } from './upkeep.ts'

describe('upkeep', () => {
  it('goes on when a chore fails, runs again, and ends with its owner', async () => {
    const enough = Promise.withResolvers<void>()
    const reported: string[] = []
    let [first, second] = [0, 0]
    const upkeep = startUpkeep({
      firstMs: 1,
      everyMs: 1,
      chores: {
        first: async () => {
          first += 1
          throw new SluiceError('host.disk_full', 'no room')
        },
        second: async () => {
          second += 1
          if (second === 3) enough.resolve()
        },
      },
      report: (chore) => reported.push(chore),
    })
    await enough.promise
    await upkeep[Symbol.asyncDispose]()
    assert.equal(first, second)
    assert.deepEqual(new Set(reported), new Set(['first']))
    assert.equal(reported.length, first)
  })

  it('waits for the chore that its end cuts short, and begins no other', async () => {
    const begun = Promise.withResolvers<void>()
    let [told, ended, other] = [false, false, false]
    const upkeep = startUpkeep({
      firstMs: 1,
      chores: {
        long: async (signal) => {
          const over = Promise.withResolvers<void>()
          signal.addEventListener('abort', () => over.resolve())
          begun.resolve()
          await over.promise
          told = signal.aborted
          ended = true
        },
        other: async () => {
          other = true
        },
      },
      report: () => assert.fail('nothing failed'),
    })
    await begun.promise
    await upkeep[Symbol.asyncDispose]()
    assert.deepEqual([told, ended, other], [true, true, false])
  })
})
