import assert from 'node:assert/strict'
import { mkdtemp, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { type ErrorCode, isSluiceError } from '@sluice/protocol/errors'
import { startKeyProcess } from './key-process-link.ts'
import { announce, deleteKey, makeKeys, makeWorld, opens, seal } from './keys.test-setup.ts'
import { openLedger } from './open-ledger.ts'
import { makeToken, onToken, withoutSoftHsm } from './soft-hsm.test-setup.ts'
import { epochsIn } from './store.ts'

const skip = withoutSoftHsm()
const withCode = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)

const folder = await mkdtemp(join(tmpdir(), 'sluice-hsm-'))
after(() => rm(folder, { recursive: true }))
const token = skip === false ? await makeToken(folder, 'sluice') : ({} as never)

describe('keys over a token that goes away', () => {
  it(
    'go on with what they hold, owe the roll, tell it once, and roll when it is back',
    { skip },
    async (t) => {
      const kind = onToken(token)
      const told: string[] = []
      const world = await makeWorld(t, {
        ...kind,
        // Only a child sees the token after it was away.
        open: async (at) => ({ ...(await openLedger(kind.placeIn(at))), ...neverHere }),
      })
      await using keys = await makeKeys(world, {
        startProcess: () => startKeyProcess(kind.placeIn(world.folder)),
        outage: {
          began: (problem) => Promise.resolve(void told.push(problem.code)),
          ended: () => void told.push('back'),
        },
      })
      const [kept, gone] = [await seal(world, keys), await seal(world, keys)]
      await announce(world, keys, kept)
      await announce(world, keys, gone)
      await deleteKey(world, gone)
      const [current] = await world.database.read((sql) => epochsIn(sql, 'current'))
      await rename(join(folder, 'token'), join(folder, 'away'))
      try {
        for (let tries = 0; tries < 2; tries += 1)
          await assert.rejects(keys.roll(), withCode('keys.unavailable'))
        assert.deepEqual(told, ['keys.unavailable'])
        assert.ok(await opens(world, keys, kept), 'the key process still has its key')
        assert.deepEqual(await world.database.read((sql) => epochsIn(sql, 'destroyed')), [])
        assert.deepEqual(await world.database.read((sql) => epochsIn(sql, 'current')), [current])
      } finally {
        await rename(join(folder, 'away'), join(folder, 'token'))
      }
      await keys.roll()
      assert.deepEqual(told, ['keys.unavailable', 'back'])
      assert.ok(await opens(world, keys, kept))
      await assert.rejects(opens(world, keys, gone), withCode('keys.destroyed'))
      const [now] = await world.database.read((sql) => epochsIn(sql, 'current'))
      assert.deepEqual(await world.store.list(), [now?.id])
    },
  )
})

const neverHere = {
  create: () => Promise.reject(new Error('a key in the main process')),
  load: () => Promise.reject(new Error('a key in the main process')),
}
