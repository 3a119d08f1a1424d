/** A purge with every combination of store, audit sink, alerting, half the fleet and disk down, in process. */

import { describe, it } from 'node:test'

import { combinations, nameOf } from '../tools/downs.ts'
import { SecondVerifier } from '../vectors/certificates.test-setup.ts'
import { purgeWith } from './purge-downs.test-setup.ts'

// Most of their time they wait for the disk.
describe('a purge while this is down', { timeout: 600_000, concurrency: 8 }, () => {
  for (const down of combinations)
    it(nameOf(down), async () => {
      await using second = await SecondVerifier.start()
      await purgeWith(down, second)
    })
})
