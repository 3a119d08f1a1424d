/** Kill -9 of real processes at some steps of a purge and of a deletion; the exhaustive loop is beside it. */

import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'

import { type DoomedFleet, makeDoomedFleet } from '../tools/doomed-fleet.ts'

describe('death in front of an effect', { timeout: 600_000 }, () => {
  let doomed: DoomedFleet
  before(async () => {
    doomed = await makeDoomedFleet('deaths')
  })
  after(() => doomed[Symbol.asyncDispose]())

  for (const [what, victim, at] of [
    ['purge', 'control plane', 2],
    ['purge', 'capture', 2],
  ] as const)
    it(`number ${at} of ${victim} in a ${what}`, async () => {
      assert.ok(await doomed.run(what, victim, at), 'it died')
    })

  it('that never comes changes nothing: the control', async () => {
    assert.equal(await doomed.run('purge', 'control plane', 100_000), false)
  })
})
