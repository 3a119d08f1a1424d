/** Envelopes open for their recipient and purpose alone, and are what other HPKE libraries make. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import * as hpke from 'hpke'
import { SluiceError } from '../errors.ts'
import { limits } from '../limits.ts'
import { agentId, jobId, leaseId, receiveKeyId } from '../ids.ts'
import { lengthPrefixed, u64Field } from './context.ts'
import {
  encapsulationBytes,
  envelopeOverheadBytes,
  makeReceiverKeyPair,
  openEnvelope,
  publicKeyOf,
  receiverPublicKeyBytes,
  receiverSeedBytes,
  sealEnvelope,
  type EnvelopeFields,
} from './key-envelope.ts'

const job = jobId.parse('0198c0de-0000-7000-8000-000000000001')
const otherJob = jobId.parse('0198c0de-0000-7000-8000-00000000000f')
const agent = agentId.parse('0198c0de-0000-7000-8000-000000000002')
const lease = leaseId.parse('0198c0de-0000-7000-8000-000000000003')
const receiveKey = receiveKeyId.parse('0198c0de-0000-7000-8000-000000000004')
const sealedHeaderHash = Buffer.alloc(32, 0xa5)

const escrow = {
  purpose: 'job-key-escrow',
  jobId: job,
  senderId: agent,
  receiveKeyId: receiveKey,
  sealedHeaderHash,
} as const satisfies EnvelopeFields
const leased = {
  purpose: 'job-key-lease',
  jobId: job,
  nodeId: agent,
  leaseId: lease,
  fence: 7,
  deadlineAtMs: 1_700_000_000_000,
  sealedHeaderHash,
} as const satisfies EnvelopeFields
const result = {
  purpose: 'result',
  jobId: job,
  nodeId: agent,
  leaseId: lease,
} as const satisfies EnvelopeFields

/** AAD of each, written out apart from the code that is tested. */
const aad = {
  'job-key-escrow': lengthPrefixed([job, agent, receiveKey, sealedHeaderHash]),
  'job-key-lease': lengthPrefixed([
    job,
    agent,
    lease,
    u64Field(7),
    u64Field(1_700_000_000_000),
    sealedHeaderHash,
  ]),
  result: lengthPrefixed([job, agent, lease]),
}

const code = (expected: string) => (error: unknown) =>
  error instanceof SluiceError && error.code === expected

describe('key envelope', () => {
  const pair = makeReceiverKeyPair()
  const key = randomBytes(32)

  it('has the sizes of X-Wing', () => {
    assert.equal(pair.seed.length, receiverSeedBytes)
    assert.equal(pair.publicKey.length, receiverPublicKeyBytes)
    assert.deepEqual(publicKeyOf(pair.seed), pair.publicKey)
  })

  for (const fields of [escrow, leased, result]) {
    describe(fields.purpose, () => {
      const envelope = sealEnvelope({ ...fields, recipient: pair.publicKey, plaintext: key })

      it('opens for its recipient', () => {
        assert.equal(envelope.length, envelopeOverheadBytes + key.length)
        assert.deepEqual(openEnvelope({ ...fields, seed: pair.seed, envelope }), key)
      })

      it('is never made twice alike', () => {
        const again = sealEnvelope({ ...fields, recipient: pair.publicKey, plaintext: key })
        assert.notDeepEqual(again, envelope)
      })

      it('refuses another seed', () => {
        const { seed } = makeReceiverKeyPair()
        assert.throws(() => openEnvelope({ ...fields, seed, envelope }), code('envelope.refused'))
      })

      it('refuses any flipped byte', () => {
        for (const at of [0, 1087, 1088, encapsulationBytes - 1, 1120, 1151, 1152, 1167]) {
          const changed = Buffer.from(envelope)
          changed.writeUInt8(changed.readUInt8(at) ^ 1, at)
          assert.throws(
            () => openEnvelope({ ...fields, seed: pair.seed, envelope: changed }),
            code('envelope.refused'),
            `byte ${at}`,
          )
        }
      })

      it('refuses when any one field is another', () => {
        const changes: Record<string, unknown>[] = [
          { jobId: otherJob },
          ...('senderId' in fields ? [{ senderId: otherJob }, { receiveKeyId: otherJob }] : []),
          ...('nodeId' in fields ? [{ nodeId: otherJob }, { leaseId: otherJob }] : []),
          ...('fence' in fields ? [{ fence: 8 }, { deadlineAtMs: 1_700_000_000_001 }] : []),
          ...('sealedHeaderHash' in fields ? [{ sealedHeaderHash: Buffer.alloc(32) }] : []),
        ]
        assert.equal(changes.length, Object.keys(fields).length - 1)
        for (const change of changes) {
          const changed = { ...fields, ...change }
          assert.throws(
            () => openEnvelope({ ...changed, seed: pair.seed, envelope }),
            code('envelope.refused'),
            Object.keys(change).join(''),
          )
        }
      })

      it('opens what npm hpke sealed, and npm hpke opens what it sealed', async (t) => {
        const suite = new hpke.CipherSuite(
          hpke.KEM_MLKEM768_X25519,
          hpke.KDF_HKDF_SHA256,
          hpke.AEAD_AES_256_GCM,
        )
        const options = {
          info: new TextEncoder().encode(`sluice/${fields.purpose}/1`),
          aad: new Uint8Array(aad[fields.purpose]),
        }
        const publicKey = await suite
          .DeserializePublicKey(new Uint8Array(pair.publicKey))
          .catch((error: unknown) => {
            if (error instanceof hpke.NotSupportedError) return undefined
            throw error
          })
        if (!publicKey) {
          t.skip('npm hpke needs a Node whose Web Crypto knows MLKEM768-X25519 (26 does)')
          return
        }
        const privateKey = await suite.DeserializePrivateKey(new Uint8Array(pair.seed), true)
        assert.deepEqual(Buffer.from(await suite.SerializePrivateKey(privateKey)), pair.seed)
        const opened = await suite.Open(
          privateKey,
          new Uint8Array(envelope.subarray(0, encapsulationBytes)),
          new Uint8Array(envelope.subarray(encapsulationBytes)),
          options,
        )
        assert.deepEqual(Buffer.from(opened), key)

        const theirs = await suite.Seal(publicKey, new Uint8Array(key), options)
        const joined = Buffer.concat([theirs.encapsulatedSecret, theirs.ciphertext])
        assert.deepEqual(openEnvelope({ ...fields, seed: pair.seed, envelope: joined }), key)
      })
    })
  }

  it('is fixed by its randomness, which only tests may give', () => {
    const sealing = { ...escrow, recipient: pair.publicKey, plaintext: key }
    const randomness = randomBytes(64)
    const first = sealEnvelope({ ...sealing, dangerousTestOnlyRandomness: randomness })
    assert.deepEqual(sealEnvelope({ ...sealing, dangerousTestOnlyRandomness: randomness }), first)
    assert.deepEqual(openEnvelope({ ...escrow, seed: pair.seed, envelope: first }), key)
    assert.throws(
      () => sealEnvelope({ ...sealing, dangerousTestOnlyRandomness: randomBytes(63) }),
      code('envelope.bad_input'),
    )
  })

  it('refuses every purpose but its own', () => {
    const envelope = sealEnvelope({ ...result, recipient: pair.publicKey, plaintext: key })
    for (const fields of [escrow, leased]) {
      assert.throws(
        () => openEnvelope({ ...fields, seed: pair.seed, envelope }),
        code('envelope.refused'),
      )
    }
  })

  it('refuses any other combination of purpose and fields', () => {
    const wrong: object[] = [
      { ...escrow, purpose: 'result' },
      { ...result, purpose: 'job-key-lease' },
      { ...result, purpose: 'backup-key' },
      { ...result, fence: 1 },
      { ...leased, fence: undefined },
      { ...leased, fence: -1 },
      { ...leased, fence: 1.5 },
      { ...leased, deadlineAtMs: 2 ** 53 },
      { ...leased, jobId: 'job-1' },
      { ...escrow, sealedHeaderHash: Buffer.alloc(31) },
    ]
    for (const fields of wrong) {
      const sealing = { ...result, recipient: pair.publicKey, plaintext: key }
      for (const name of Object.keys(result)) Reflect.deleteProperty(sealing, name)
      Object.assign(sealing, fields)
      assert.throws(() => sealEnvelope(sealing), code('envelope.refused'), JSON.stringify(fields))
    }
  })

  it('seals only job keys of 32 bytes and results within their limit', () => {
    const recipient = pair.publicKey
    const largest = limits.sealedResultBytesMax - envelopeOverheadBytes
    for (const [fields, bytes, fits] of [
      [escrow, 31, false],
      [escrow, 33, false],
      [leased, 0, false],
      [result, 0, false],
      [result, 1, true],
      [result, largest, true],
      [result, largest + 1, false],
    ] as const) {
      const seal = () => sealEnvelope({ ...fields, recipient, plaintext: Buffer.alloc(bytes, 1) })
      if (fits) {
        const opened = openEnvelope({ ...fields, seed: pair.seed, envelope: seal() })
        assert.equal(opened.length, bytes)
      } else {
        assert.throws(seal, code('envelope.bad_input'))
      }
    }
  })

  it('refuses keys and envelopes of another size', () => {
    const envelope = sealEnvelope({ ...escrow, recipient: pair.publicKey, plaintext: key })
    const { seed, publicKey } = pair
    const bad = code('envelope.bad_input')
    assert.throws(() => publicKeyOf(seed.subarray(1)), bad)
    assert.throws(
      () => sealEnvelope({ ...escrow, recipient: publicKey.subarray(1), plaintext: key }),
      bad,
    )
    assert.throws(() => openEnvelope({ ...escrow, seed: seed.subarray(1), envelope }), bad)
    for (const bytes of [0, encapsulationBytes, envelope.length - 1]) {
      assert.throws(
        () => openEnvelope({ ...escrow, seed, envelope: envelope.subarray(0, bytes) }),
        bad,
      )
    }
  })

  it('refuses a public key that is none', () => {
    const publicKey = Buffer.alloc(receiverPublicKeyBytes, 0xff)
    assert.throws(
      () => sealEnvelope({ ...escrow, recipient: publicKey, plaintext: key }),
      code('envelope.bad_input'),
    )
  })
})
