/** Contexts are frozen bytes, and no two lists of fields share them. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { jobId } from '../ids.ts'
import { archiveContext, lengthPrefixed, scratchContext, u64Field } from './context.ts'

describe('context', () => {
  it('has these bytes for an archive and for scratch', () => {
    const job = jobId.parse('0198c0de-0000-7000-8000-000000000001')
    const expected =
      '00000010' +
      Buffer.from('sluice/archive/1').toString('hex') +
      '00000024' +
      Buffer.from('0198c0de-0000-7000-8000-000000000001').toString('hex')
    assert.equal(archiveContext(job).toString('hex'), expected)
    assert.equal(scratchContext().toString('latin1'), '\0\0\0\x10sluice/scratch/1')
  })

  it('writes whole numbers as eight bytes, big-endian', () => {
    assert.equal(u64Field(2 ** 53 - 1).toString('hex'), '001fffffffffffff')
    assert.equal(u64Field(0).toString('hex'), '0000000000000000')
  })

  it('keeps fields apart that would be alike when joined', () => {
    assert.notDeepEqual(lengthPrefixed(['ab', 'c']), lengthPrefixed(['a', 'bc']))
    assert.notDeepEqual(lengthPrefixed(['ab']), lengthPrefixed(['ab', '']))
    const fields = fc.array(fc.uint8Array({ maxLength: 8 }), { maxLength: 4 })
    fc.assert(
      fc.property(fields, fields, (left, right) => {
        const same = JSON.stringify(left.map(String)) === JSON.stringify(right.map(String))
        assert.equal(lengthPrefixed(left).equals(lengthPrefixed(right)), same)
      }),
    )
  })
})
