import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { watchUnits } from './copied-units.ts'

/** As x264 and x265 write them: parameter sets, and how slices begin. */
const honest = {
  h264: {
    sets: ['6764000dacd94141fb011000000300100000030320f1429960', '68ebe3cb22c0'],
    slices: ['65888403ffd1b76d6278ad40177754ae', '419a246c7fd7bd5277204d15a8fa0b01'],
  },
  hevc: {
    sets: [
      '40010c01ffff02200000030090000003000003003c959809',
      '42010102200000030090000003000003003ca00a080f1365959a4932bc05a84880482000000300200000030321',
      '4401c172b46240',
    ],
    slices: ['2801af1d20bcf2c4a0c4627fffffffff', '0201d0115784318e105650525990beac'],
  },
}

type Change = { sets?: readonly Buffer[]; slices?: readonly (readonly Buffer[])[] }

const unitsOf = (texts: readonly string[]) => texts.map((text) => Buffer.from(text, 'hex'))

function hides(codec: 'h264' | 'hevc', change: Change = {}): boolean {
  const watch = watchUnits(codec)
  const { sets = unitsOf(honest[codec].sets) } = change
  const { slices = unitsOf(honest[codec].slices).map((slice) => [slice]) } = change
  for (const set of sets) watch.parameterSet(set)
  for (const sample of slices) {
    for (const [i, slice] of sample.entries()) watch.slice(slice, { isFirst: i === 0 })
  }
  return watch.hidesMore()
}

for (const codec of ['h264', 'hevc'] as const) {
  const sets = unitsOf(honest[codec].sets)
  const slices = unitsOf(honest[codec].slices)

  describe(`units of ${codec} that are to pass as they are`, () => {
    it('hold nothing more where an encoder wrote them (control), sets again and again too', () => {
      assert.equal(hides(codec), false)
      assert.equal(hides(codec, { sets: [...sets, ...sets] }), false)
    })

    it('hold more where a sample has a second picture', () => {
      assert.equal(hides(codec, { slices: [slices, slices] }), true)
    })

    it('hold more where a parameter set is cut, longer or another one under its number', () => {
      for (const [i, set] of sets.entries()) {
        for (let end = 1; end < set.length; end++) {
          assert.equal(hides(codec, { sets: sets.with(i, set.subarray(0, end)) }), true)
        }
        const longer = Buffer.concat([set, Buffer.from([0x41, 0x80])])
        assert.equal(hides(codec, { sets: sets.with(i, longer) }), true)
        const other = Buffer.from(set)
        other[other.length - 1] = (other.at(-1) ?? 0) ^ 0xff
        assert.equal(hides(codec, { sets: [...sets, other] }), true)
      }
    })

    it('hold more where no slice asks for a picture set', () => {
      assert.equal(hides(codec, { slices: [] }), true)
    })

    it('are never too odd to be judged', () => {
      fc.assert(
        fc.property(
          fc.array(fc.uint8Array({ minLength: 2, maxLength: 80 }), { maxLength: 4 }),
          fc.nat({ max: sets.length - 1 }),
          fc.nat({ max: 400 }),
          (units, which, bit) => {
            const flipped = Buffer.from(sets[which] ?? [])
            const at = (bit >> 3) % flipped.length
            flipped[at] = (flipped[at] ?? 0) ^ (1 << (bit & 7))
            const all = units.map((unit) => Buffer.from(unit))
            const judged = hides(codec, { sets: sets.with(which, flipped), slices: [all] })
            assert.equal(typeof judged, 'boolean')
          },
        ),
        { numRuns: 500 },
      )
    })
  })
}
