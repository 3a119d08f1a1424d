/** Sealed archives stay what they were: the frozen vectors hold in both interfaces. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { createSealer } from '@sluice/protocol/sealing/seal'
import { createUnsealer, openSealed } from '@sluice/protocol/sealing/unseal'

type Valid = {
  name: string
  key: string
  context: string
  plaintextSeed: string
  plaintextBytes: number
  plaintextSha512: string
  header: string
  sealedBytes: number
  sealedSha256: string
  sealed?: string
}
type Refused = {
  name: string
  from: string
  pieces?: [number, number][]
  flipByte?: number
  append?: string
  key?: string
  context?: string
  stream: { code: string; releasedBytes: number }
  range: { code: string; opens: boolean }
}
const vectors: { valid: Valid[]; refused: Refused[] } = JSON.parse(
  readFileSync(new URL('cobblestone-256.json', import.meta.url), 'utf8'),
)

const engines = ['openssl', 'node'] as const
const hex = (text: string): Buffer => Buffer.from(text, 'hex')

/** The notes in the file say how plaintext comes from its seed. */
function plaintextOf(vector: Valid): Buffer {
  const blocks = Array.from({ length: Math.ceil(vector.plaintextBytes / 64) }, (_, index) => {
    const counter = Buffer.alloc(4)
    counter.writeUInt32BE(index)
    return createHash('sha512').update(vector.plaintextSeed).update(counter).digest()
  })
  return Buffer.concat(blocks).subarray(0, vector.plaintextBytes)
}

function seal(vector: Valid, engine: (typeof engines)[number]): Buffer {
  using sealer = createSealer({
    key: hex(vector.key),
    context: hex(vector.context),
    engine,
    dangerousTestOnlySalt: hex(vector.header).subarray(0, 24),
  })
  return Buffer.concat([sealer.header, sealer.update(plaintextOf(vector)), sealer.final()])
}

function edit(sealed: Buffer, refused: Refused): Buffer {
  const pieces = (refused.pieces ?? [[0, sealed.length]]).map(([from, to]) =>
    sealed.subarray(from, to),
  )
  const edited = Buffer.concat([...pieces, hex(refused.append ?? '')])
  if (refused.flipByte !== undefined) {
    edited.writeUInt8(edited.readUInt8(refused.flipByte) ^ 1, refused.flipByte)
  }
  return edited
}

/** All that came out before the end, and the code it ended with. */
function stream(
  sealed: Buffer,
  options: { key: Buffer; context: Buffer; engine: (typeof engines)[number] },
): [Buffer, string] {
  const released: Buffer[] = []
  using unsealer = createUnsealer(options)
  try {
    for (let offset = 0; offset < sealed.length; offset += 4096) {
      released.push(unsealer.update(sealed.subarray(offset, offset + 4096)))
    }
    released.push(unsealer.final())
    return [Buffer.concat(released), 'opened']
  } catch (error) {
    assert(isSluiceError(error))
    return [Buffer.concat(released), error.code]
  }
}

function openByRange(
  sealed: Buffer,
  options: { key: Buffer; context: Buffer; engine: (typeof engines)[number] },
) {
  return openSealed({
    ...options,
    sealedBytes: sealed.length,
    read: async (offset, length) => sealed.subarray(offset, offset + length),
  })
}

for (const engine of engines) {
  describe(`frozen Cobblestone-256 vectors, ${engine}`, () => {
    for (const vector of vectors.valid) {
      it(`seals and opens ${vector.name}`, async () => {
        const sealed = seal(vector, engine)
        const options = { key: hex(vector.key), context: hex(vector.context), engine }
        assert.equal(sealed.length, vector.sealedBytes)
        assert.equal(sealed.subarray(0, 56).toString('hex'), vector.header)
        assert.equal(createHash('sha256').update(sealed).digest('hex'), vector.sealedSha256)
        if (vector.sealed !== undefined) assert.equal(sealed.toString('hex'), vector.sealed)

        const [plaintext, end] = stream(sealed, options)
        assert.equal(end, 'opened')
        assert.equal(createHash('sha512').update(plaintext).digest('hex'), vector.plaintextSha512)
        using reader = await openByRange(sealed, options)
        assert((await reader.readRange(0, reader.plaintextBytes)).equals(plaintext))
      })
    }

    for (const refused of vectors.refused) {
      it(`refuses ${refused.name} (${refused.from})`, async () => {
        const vector = vectors.valid.find(({ name }) => name === refused.from)
        assert(vector)
        const sealed = edit(seal(vector, engine), refused)
        const options = {
          key: hex(refused.key ?? vector.key),
          context: hex(refused.context ?? vector.context),
          engine,
        }
        const [released, code] = stream(sealed, options)
        assert.equal(code, refused.stream.code)
        const prefix = plaintextOf(vector).subarray(0, refused.stream.releasedBytes)
        assert.deepEqual(released, prefix)

        const rightCode = (error: unknown) =>
          isSluiceError(error) && error.code === refused.range.code
        if (!refused.range.opens) {
          await assert.rejects(openByRange(sealed, options), rightCode)
          return
        }
        using reader = await openByRange(sealed, options)
        await assert.rejects(reader.readRange(0, reader.plaintextBytes), rightCode)
      })
    }
  })
}
