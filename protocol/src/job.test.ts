import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { isOver, jobStates, jobTransitions, mayBecome } from './job.ts'

describe('job states', () => {
  it('only lead to states that exist', () => {
    for (const from of jobStates)
      for (const to of jobTransitions[from]) assert.ok(jobStates.includes(to), `${from} → ${to}`)
  })

  it('are all reached from `announced`, and all lead to an end', () => {
    const reach = (start: (typeof jobStates)[number]) => {
      const seen = new Set([start])
      for (const state of seen) for (const next of jobTransitions[state]) seen.add(next)
      return seen
    }
    assert.deepEqual([...reach('announced')].toSorted(), [...jobStates].toSorted())
    for (const state of jobStates) assert.ok([...reach(state)].some(isOver), state)
  })

  it('have no way back from `deleting`', () => {
    assert.deepEqual(jobTransitions.deleting, ['deleted', 'deleted-unconfirmed'])
    for (const state of jobStates) {
      assert.equal(mayBecome('deleted', state), false)
      assert.equal(mayBecome('deleted-unconfirmed', state), false)
    }
  })

  it('reach `analysed` only out of a lease', () => {
    const before = jobStates.filter((state) => mayBecome(state, 'analysed'))
    assert.deepEqual(before, ['leased'])
  })
})
