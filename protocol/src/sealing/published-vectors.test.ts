/** The published vectors of c2sp.org/chunked-encryption hold in both interfaces and on both engines. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { inflateSync } from 'node:zlib'
import { z } from 'zod'
import { SluiceError } from '../errors.ts'
import type { AeadEngine } from './aead.ts'
import { deriveChunkKeys } from './chunks.ts'
import { createSealer } from './seal.ts'
import { headerBytes, saltBytes } from './sealed-size.ts'
import { createUnsealer, openSealed } from './unseal.ts'

const folder =
  process.env['SLUICE_SHARED_VECTORS'] ??
  new URL('../../../../shared/vectors', import.meta.url).pathname
const file = `${folder}/chunked-encryption-aes-256-gcm.json`
const skip = existsSync(file)
  ? false
  : 'published vectors not found beside the checkout; SLUICE_SHARED_VECTORS may name their folder'

const hex = z.string().regex(/^(?:[0-9a-f]{2})*$/)
const vector = z.object({
  tcId: z.int(),
  comment: z.string(),
  key: hex,
  ctx: hex,
  /** Compressed (zlib). */
  ct: hex,
  aeadKey: hex.optional(),
  baseNonce: hex.optional(),
  msgLength: z.int().optional(),
  msgSha512: hex.optional(),
  result: z.enum(['valid', 'invalid']),
  flags: z.array(z.string()),
})
const vectorFile = z.object({
  numberOfTests: z.int(),
  testGroups: z.array(z.object({ tests: z.array(vector) })),
})

type Case = Omit<z.infer<typeof vector>, 'key' | 'ctx' | 'ct'> & {
  key: Buffer
  context: Buffer
  sealed: Buffer
}

function loadCases(): Case[] {
  const parsed = vectorFile.parse(JSON.parse(readFileSync(file, 'utf8')))
  const cases = parsed.testGroups.flatMap((group) =>
    group.tests.map(({ key, ctx, ct, ...rest }) => ({
      ...rest,
      key: Buffer.from(key, 'hex'),
      context: Buffer.from(ctx, 'hex'),
      sealed: inflateSync(Buffer.from(ct, 'hex')),
    })),
  )
  assert.equal(cases.length, parsed.numberOfTests)
  return cases
}

const sha512 = (bytes: Uint8Array): string => createHash('sha512').update(bytes).digest('hex')

/** Feeds the stream interface in pieces; gives all that came out, and the failure if there was one. */
function stream(test: Case, engine: AeadEngine, pieceBytes: number): [Buffer, unknown] {
  const released: Buffer[] = []
  try {
    using unsealer = createUnsealer({ key: test.key, context: test.context, engine })
    for (let offset = 0; offset < test.sealed.length; offset += pieceBytes) {
      released.push(unsealer.update(test.sealed.subarray(offset, offset + pieceBytes)))
    }
    released.push(unsealer.final())
    return [Buffer.concat(released), undefined]
  } catch (error) {
    return [Buffer.concat(released), error]
  }
}

async function byRange(test: Case, engine: AeadEngine, rangeBytes: number): Promise<Buffer> {
  using reader = await openSealed({
    key: test.key,
    context: test.context,
    engine,
    sealedBytes: test.sealed.length,
    read: async (offset, length) => test.sealed.subarray(offset, offset + length),
  })
  const ranges: Buffer[] = []
  for (let offset = 0; offset < reader.plaintextBytes; offset += rangeBytes) {
    const length = Math.min(rangeBytes, reader.plaintextBytes - offset)
    // oxlint-disable-next-line no-await-in-loop -- ranges are checked in order
    ranges.push(await reader.readRange(offset, length))
  }
  return Buffer.concat(ranges)
}

function expectValid(test: Case, plaintext: Buffer): void {
  assert.equal(plaintext.length, test.msgLength)
  assert.equal(sha512(plaintext), test.msgSha512)
}

describe('published Cobblestone-256 vectors', { skip }, () => {
  const cases = skip ? [] : loadCases()
  it('are all there', () => assert.equal(cases.length, 35))

  for (const test of cases) {
    for (const engine of ['openssl', 'node'] as const) {
      it(`${test.tcId}, ${engine}: ${test.comment}`, async () => {
        if (test.aeadKey) {
          const salt = test.sealed.subarray(0, saltBytes)
          using keys = deriveChunkKeys({ key: test.key, context: test.context, salt })
          assert.equal(keys.aeadKey.toString('hex'), test.aeadKey)
          assert.equal(keys.baseNonce.toString('hex'), test.baseNonce)
        }
        const pieces = [test.sealed.length + 1, 16_400, 1000, ...(test.msgLength ? [] : [1])]
        for (const pieceBytes of pieces) {
          const [released, failure] = stream(test, engine, pieceBytes)
          if (test.result === 'valid') {
            assert.equal(failure, undefined)
            expectValid(test, released)
            continue
          }
          assert(failure instanceof SluiceError, `stream accepted it: ${String(failure)}`)
          // Fed in one piece nothing needs to come out; what does is a part of the valid prefix.
          if (pieceBytes <= 16_400 && test.msgLength) expectValid(test, released)
          else assert(released.length <= (test.msgLength ?? 0))
        }

        if (test.result === 'valid') {
          expectValid(test, await byRange(test, engine, 50_001))
          const [plaintext] = stream(test, engine, test.sealed.length)
          const sealer = createSealer({
            key: test.key,
            context: test.context,
            engine,
            dangerousTestOnlySalt: test.sealed.subarray(0, saltBytes),
          })
          const again = Buffer.concat([sealer.header, sealer.update(plaintext), sealer.final()])
          assert.deepEqual(sealer.header, test.sealed.subarray(0, headerBytes))
          assert(again.equals(test.sealed), 'sealing again gives other bytes')
          return
        }
        const opening = openSealed({
          key: test.key,
          context: test.context,
          engine,
          sealedBytes: test.sealed.length,
          read: async (offset, length) => test.sealed.subarray(offset, offset + length),
        })
        if (test.flags.includes('ValidFinalChunk')) {
          // The length is authentic, so it opens; the chunk that is not refuses any range over it.
          using reader = await opening
          await assert.rejects(reader.readRange(0, reader.plaintextBytes), SluiceError)
        } else {
          await assert.rejects(opening, SluiceError)
        }
      })
    }
  }
})
