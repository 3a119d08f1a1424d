/** Kill -9 in front of the first effect, the second, and so on, until one run comes to its end alive. */

import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'

import { type DoomedFleet, makeDoomedFleet, victims } from '../tools/doomed-fleet.ts'

describe('death in front of every effect', { timeout: 3_600_000 }, () => {
  let doomed: DoomedFleet
  before(async () => {
    doomed = await makeDoomedFleet('all-deaths')
  })
  after(() => doomed[Symbol.asyncDispose]())

  for (const what of ['purge', 'deletion'] as const)
    for (const victim of victims)
      it(`of ${victim} in a ${what}`, async (t) => {
        let at = 1
        while (await doomed.run(what, victim, at)) at += 1
        t.diagnostic(`${at - 1} deaths`)
        assert.ok(at > 2, `${at - 1} deaths`)
      })
})
