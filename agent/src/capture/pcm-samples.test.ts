import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { unusedBitsOf, usedBits } from './pcm-samples.ts'
import type { PcmFacts } from './wav-structure.ts'

const samples = Buffer.from('112233ff8055aaff00ff1234', 'hex')

async function cleared(form: Pick<PcmFacts, 'bitsPerSample' | 'unusedBits' | 'bigEndian'>) {
  const facts = { ...form, encoding: 'integer', signed: true, channels: 1, sampleRateHz: 8000 }
  const place = { dataOffset: 0, dataBytes: samples.length, partial: false, removed: [] }
  const found = new Set<string>()
  for (let piece = 1; piece <= samples.length; piece++) {
    const pieces = async function* () {
      for (let at = 0; at < samples.length; at += piece) yield samples.subarray(at, at + piece)
    }
    const all: Buffer[] = []
    const whole = { ...facts, ...place } as PcmFacts
    for await (const part of usedBits(pieces(), whole)) all.push(part)
    found.add(Buffer.concat(all).toString('hex'))
  }
  assert.equal(found.size, 1, 'it depends on how the pieces are cut')
  return [...found][0]
}

describe('the samples of a sound', () => {
  for (const [name, bitsPerSample, unusedBits, bigEndian, wanted] of [
    ['all of 16 bits', 16, 0, false, '112233ff8055aaff00ff1234'],
    ['12 of 16 bits', 16, 4, false, '102230ff8055a0ff00ff1034'],
    ['12 of 16 bits, the highest first', 16, 4, true, '112033f08050aaf000f01230'],
    ['20 of 24 bits', 24, 4, false, '102233f08055a0ff00f01234'],
    ['24 of 32 bits', 32, 8, false, '002233ff0055aaff00ff1234'],
    ['16 of 32 bits, the highest first', 32, 16, true, '112200008055000000ff0000'],
    ['20 of 32 bits', 32, 12, false, '002033ff0050aaff00f01234'],
  ] as const) {
    it(`lose what lies below them: ${name}, in pieces of any size`, async () => {
      assert.equal(await cleared({ bitsPerSample, unusedBits, bigEndian }), wanted)
    })
  }

  it('have all bits where a format says what makes no sense', () => {
    assert.deepEqual(
      [0, 7, 8, 20, 24, 25, 400].map((said) => unusedBitsOf(24, said)),
      [0, 0, 16, 4, 0, 0, 0],
    )
  })
})
