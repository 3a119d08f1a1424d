import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { type CanonicalValue, canonicalJson, parseCanonicalJson } from './canonical.ts'
import { isSluiceError } from './errors.ts'

const notCanonical = (error: unknown) => isSluiceError(error, 'evidence.not_canonical')

describe('canonical JSON', () => {
  it('sorts keys by code unit at every depth and leaves out white space', () => {
    assert.equal(
      canonicalJson({ b: [{ z: 1, a: null }], a: 'é"\n', B: true, gone: undefined }),
      '{"B":true,"a":"é\\"\\n","b":[{"a":null,"z":1}]}',
    )
  })

  it('has no form for numbers that writers spell differently', () => {
    for (const value of [0.1, 1e21, Number.NaN, Infinity, -0, 2 ** 53])
      assert.throws(() => canonicalJson(value), notCanonical, String(value))
  })

  it('parses back what it wrote', () => {
    const leaf = fc.oneof(
      fc.string(),
      fc.maxSafeInteger().map((n) => n + 0),
      fc.boolean(),
      fc.constant(null),
    )
    const value = fc.letrec<{ tree: CanonicalValue }>((tie) => ({
      tree: fc.oneof(
        { maxDepth: 4 },
        leaf,
        fc.array(tie('tree')),
        fc.dictionary(fc.string(), tie('tree')),
      ),
    })).tree
    fc.assert(
      fc.property(value, (tree) => {
        const text = canonicalJson(tree)
        assert.equal(canonicalJson(parseCanonicalJson(Buffer.from(text))), text)
      }),
    )
  })

  for (const [what, text] of [
    ['white space', '{"a": 1}'],
    ['another key order', '{"b":1,"a":2}'],
    ['a key twice', '{"a":1,"a":1}'],
    ['an escape that need not be', '{"a":"\\u0061"}'],
    ['a number in another spelling', '{"a":1.0}'],
    ['a byte order mark', '\ufeff{"a":1}'],
    ['a line end behind it', '{"a":1}\n'],
    ['no JSON', '{"a":'],
    ['what would end a reader by its stack', '['.repeat(1e6) + ']'.repeat(1e6)],
  ] as const)
    it(`refuses ${what}`, () => {
      assert.throws(() => parseCanonicalJson(Buffer.from(text)), notCanonical)
      assert.deepEqual(parseCanonicalJson(Buffer.from('{"a":1}')), { a: 1 }, 'the control')
    })

  it('refuses broken UTF-8', () => {
    assert.throws(() => parseCanonicalJson(Buffer.from([0x22, 0xff, 0x22])), notCanonical)
  })
})
