/** Key envelopes stay what they were: the frozen vectors open, and their changed forms do not. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import {
  openEnvelope,
  publicKeyOf,
  sealEnvelope,
  type EnvelopeFields,
} from '@sluice/protocol/sealing/key-envelope'

type Fields = Record<string, string | number>
type Valid = {
  fields: Fields
  seed: string
  publicKeySha256: string
  randomness: string
  plaintext: string
  envelope: string
}
type Refused = {
  name: string
  from: string
  flipByte?: number
  keepBytes?: number
  seed?: string
  fields?: Fields
  code: string
}
const vectors: { valid: Valid[]; refused: Refused[] } = JSON.parse(
  readFileSync(new URL('key-envelope.json', import.meta.url), 'utf8'),
)

const hex = (text: string): Buffer => Buffer.from(text, 'hex')

/** Fields as the file has them, wrong ones too: whether they fit is what is tested. */
function fieldsOf(fields: Fields): EnvelopeFields {
  const hash = fields['sealedHeaderHash']
  const typed: unknown =
    hash === undefined ? fields : { ...fields, sealedHeaderHash: hex(String(hash)) }
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the parser under test decides
  return typed as EnvelopeFields
}

describe('frozen key envelopes', () => {
  it('are of all three purposes', () => {
    const purposes = vectors.valid.map(({ fields }) => fields['purpose'])
    assert.deepEqual(purposes, ['job-key-escrow', 'job-key-lease', 'result'])
  })

  for (const vector of vectors.valid) {
    it(`seal and open for ${vector.fields['purpose']}`, () => {
      const seed = hex(vector.seed)
      const fields = fieldsOf(vector.fields)
      const recipient = publicKeyOf(seed)
      assert.equal(createHash('sha256').update(recipient).digest('hex'), vector.publicKeySha256)
      const envelope = sealEnvelope({
        ...fields,
        recipient,
        plaintext: hex(vector.plaintext),
        dangerousTestOnlyRandomness: hex(vector.randomness),
      })
      assert.equal(envelope.toString('hex'), vector.envelope)
      assert.equal(openEnvelope({ ...fields, seed, envelope }).toString('hex'), vector.plaintext)
    })
  }

  for (const refused of vectors.refused) {
    it(`refuse ${refused.name} (${refused.from})`, () => {
      const vector = vectors.valid.find(({ fields }) => fields['purpose'] === refused.from)
      assert(vector)
      const envelope = hex(vector.envelope).subarray(0, refused.keepBytes)
      if (refused.flipByte !== undefined) {
        const at = (refused.flipByte + envelope.length) % envelope.length
        envelope.writeUInt8(envelope.readUInt8(at) ^ 1, at)
      }
      const opening = {
        ...fieldsOf(refused.fields ?? vector.fields),
        seed: hex(refused.seed ?? vector.seed),
        envelope,
      }
      assert.throws(
        () => openEnvelope(opening),
        (error) => isSluiceError(error) && error.code === refused.code,
      )
    })
  }
})
