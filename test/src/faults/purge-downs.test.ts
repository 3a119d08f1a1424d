/** A purge while one thing is down, everything or nothing; all combinations are in the long run. */

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import { purgeById } from '@sluice/control-plane/purge/store'

import { combinations, downs, nameOf } from '../tools/downs.ts'
import { SecondVerifier } from '../vectors/certificates.test-setup.ts'
import { askForPurge, makePlace, purgeWith } from './purge-downs.test-setup.ts'

const fewDowns = combinations.filter(({ size }) => size <= 1 || size === downs.length)

// Most of their time they wait for the disk.
describe('a purge while this is down', { timeout: 120_000, concurrency: 8 }, () => {
  for (const down of fewDowns)
    it(nameOf(down), async () => {
      await using second = await SecondVerifier.start()
      await purgeWith(down, second)
    })
})

describe('a disk that is full only after the intent', () => {
  it('does not keep the epoch key: the reserve is freed then', async () => {
    await using place = await makePlace(new Set(['disk full']))
    const stolen = await place.steal()
    const id = await askForPurge(place)
    assert.equal(place.freed, 0, 'the control: the intent found room')
    place.fail()
    await place.turn()
    assert.equal(place.freed, 1)
    assert.equal(await place.opening(stolen.rows, place.slotFile), 0, 'epoch destroyed')
    await place.turn()
    const row = await place.database.read((sql) => purgeById(sql, id))
    assert.equal(row?.state, 'concluded')
  })
})
