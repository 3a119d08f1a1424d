/**
 * Seals a small secret to one recipient in one of exactly three envelopes: HPKE (RFC 9180) base
 * mode with X-Wing, HKDF-SHA256 and AES-256-GCM, bound to what it is for.
 *
 * An envelope is the 1120-byte encapsulation, then ciphertext and tag. Base mode names no sender:
 * the channel's certificate does for job keys, the node's signature inside for results.
 *
 * Every buffer here is zeroed, but libsodium keeps copies of what passed through its WASM heap
 * (the seed and the shared secret), which nothing can reach. Only the end of the process wipes
 * those; so keys are opened in child processes that end with their job, lease or epoch.
 *
 * @see https://www.rfc-editor.org/rfc/rfc9180
 * @see https://datatracker.ietf.org/doc/draft-connolly-cfrg-xwing-kem/
 */
import assert from 'node:assert/strict'
import { createHmac, randomFillSync } from 'node:crypto'
import sodium, { ready } from 'libsodium-wrappers'
import { z } from 'zod'
import { SluiceError } from '../errors.ts'
import { agentId, jobId, leaseId, receiveKeyId } from '../ids.ts'
import { limits } from '../limits.ts'
import { aeadNonceBytes, aeadTagBytes, createDecryptor, createEncryptor } from './aead.ts'
import { lengthPrefixed, u64Field } from './context.ts'
import { hkdfExpand } from './hkdf.ts'

await ready

/** X-Wing: the seed is the whole private key. */
export const receiverSeedBytes = 32
export const receiverPublicKeyBytes = 1216
export const encapsulationBytes = 1120
/** What an envelope is larger than its plaintext. */
export const envelopeOverheadBytes = encapsulationBytes + aeadTagBytes

const kemId = 0x647a
const kdfId = 0x0001
const aeadId = 0x0002
const jobKeyBytes = 32

const sha256Digest = (z.instanceof(Uint8Array) as z.ZodType<Uint8Array>).refine(
  (hash) => hash.length === 32,
)
const wholeNumber = z.int().nonnegative()

/** What each envelope is bound to; fields in the order of their bytes in the AAD. Frozen. */
const envelopeFields = z.discriminatedUnion('purpose', [
  /** The job key, from the capture host to the control plane's one-time receive key. */
  z.strictObject({
    purpose: z.literal('job-key-escrow'),
    jobId,
    senderId: agentId,
    receiveKeyId,
    sealedHeaderHash: sha256Digest,
  }),
  /** The job key, from the control plane to one lease of one node. */
  z.strictObject({
    purpose: z.literal('job-key-lease'),
    jobId,
    nodeId: agentId,
    leaseId,
    fence: wholeNumber,
    deadlineAtMs: wholeNumber,
    sealedHeaderHash: sha256Digest,
  }),
  /** The result, from the node to the job's own key on the capture host. */
  z.strictObject({ purpose: z.literal('result'), jobId, nodeId: agentId, leaseId }),
])

/** Purpose and fields of an envelope. `sealedHeaderHash` is from `sealedHeaderHash` in `seal.ts`. */
export type EnvelopeFields = z.infer<typeof envelopeFields>
export type EnvelopePurpose = EnvelopeFields['purpose']

/** Joined to the fields: a purpose together with exactly the fields it has. */
export type SealEnvelopeOptions = EnvelopeFields & {
  /** The recipient's X-Wing public key, 1216 bytes. */
  recipient: Uint8Array
  /** A job key of 32 bytes, or a signed result. Stays the caller's, who zeroes it. */
  plaintext: Uint8Array
  /** For vectors only: 64 bytes in the place of fresh randomness. */
  dangerousTestOnlyRandomness?: Uint8Array
}

export type OpenEnvelopeOptions = EnvelopeFields & {
  /** The recipient's X-Wing seed, 32 bytes. Stays the caller's, who zeroes it. */
  seed: Uint8Array
  envelope: Uint8Array
}

/**
 * Seals a job key or a result to one recipient.
 *
 * @returns The envelope: 1136 bytes more than the plaintext.
 * @throws SluiceError `envelope.refused` if purpose and fields don't belong together,
 *   `envelope.bad_input` if a key or the plaintext has a wrong size or the public key is none.
 */
export function sealEnvelope(options: SealEnvelopeOptions): Buffer {
  const { recipient, plaintext, dangerousTestOnlyRandomness, ...rest } = options
  const fields = parseFields(rest)
  requireBytes('the public key', recipient, receiverPublicKeyBytes)
  requirePlaintext(fields.purpose, plaintext.length)
  const { ciphertext: encapsulation, sharedSecret } = translateKemErrors(
    'envelope.bad_input',
    'this is not a public key that a secret can be sealed to',
    () =>
      dangerousTestOnlyRandomness
        ? sodium.crypto_kem_xwing_enc_deterministic(recipient, dangerousTestOnlyRandomness)
        : sodium.crypto_kem_xwing_enc(recipient),
  )
  try {
    using schedule = scheduleKeys(sharedSecret, infoOf(fields))
    using cipher = createEncryptor(schedule.key)
    const envelope = Buffer.alloc(envelopeOverheadBytes + plaintext.length)
    envelope.set(encapsulation)
    const sealed = envelope.subarray(encapsulationBytes)
    cipher.encrypt(schedule.nonce, plaintext, sealed, aadOf(fields))
    return envelope
  } finally {
    sharedSecret.fill(0)
  }
}

/**
 * Opens an envelope that was sealed to this seed for exactly these fields.
 *
 * @returns New buffer outside the pool; the caller zeroes it.
 * @throws SluiceError `envelope.refused` if it was sealed to another key, for another purpose or
 *   other fields, or was changed; `envelope.bad_input` if seed or envelope has a wrong size.
 */
export function openEnvelope(options: OpenEnvelopeOptions): Buffer {
  const { seed, envelope, ...rest } = options
  const fields = parseFields(rest)
  requireBytes('the seed', seed, receiverSeedBytes)
  requirePlaintext(fields.purpose, envelope.length - envelopeOverheadBytes)
  const sharedSecret = translateKemErrors('envelope.refused', 'the envelope does not open', () =>
    sodium.crypto_kem_xwing_dec(envelope.subarray(0, encapsulationBytes), seed),
  )
  try {
    using schedule = scheduleKeys(sharedSecret, infoOf(fields))
    using cipher = createDecryptor(schedule.key)
    const plaintext = Buffer.alloc(envelope.length - envelopeOverheadBytes)
    const sealed = envelope.subarray(encapsulationBytes)
    if (cipher.decrypt(schedule.nonce, sealed, plaintext, aadOf(fields))) return plaintext
    throw new SluiceError('envelope.refused', 'the envelope does not open', {
      hint: 'it was sealed to another key or for another job, lease or purpose, or was changed',
    })
  } finally {
    sharedSecret.fill(0)
  }
}

/**
 * Makes an X-Wing key pair from fresh randomness.
 *
 * @returns `seed` (32 bytes) is the private key, as npm `hpke` and RFC 9180 serialize it; the
 *   caller zeroes it. `publicKey` has 1216 bytes.
 */
export function makeReceiverKeyPair(): { seed: Buffer; publicKey: Buffer } {
  const seed = randomFillSync(Buffer.allocUnsafeSlow(receiverSeedBytes))
  return { seed, publicKey: publicKeyOf(seed) }
}

/**
 * The public key (1216 bytes) of an X-Wing seed.
 *
 * @throws SluiceError `envelope.bad_input` unless the seed has 32 bytes.
 */
export function publicKeyOf(seed: Uint8Array): Buffer {
  requireBytes('the seed', seed, receiverSeedBytes)
  const pair = sodium.crypto_kem_xwing_seed_keypair(seed)
  pair.privateKey.fill(0)
  return Buffer.from(pair.publicKey.buffer, pair.publicKey.byteOffset, pair.publicKey.length)
}

function parseFields(fields: unknown): EnvelopeFields {
  const parsed = envelopeFields.safeParse(fields)
  if (parsed.success) return parsed.data
  throw new SluiceError('envelope.refused', 'no envelope has this purpose with these fields', {
    cause: parsed.error,
  })
}

function requireBytes(name: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new SluiceError('envelope.bad_input', `${name} has ${expected} bytes, not ${bytes.length}`)
}

function requirePlaintext(purpose: EnvelopePurpose, plaintextBytes: number): void {
  const fits =
    purpose === 'result'
      ? plaintextBytes > 0 && plaintextBytes <= limits.sealedResultBytesMax - envelopeOverheadBytes
      : plaintextBytes === jobKeyBytes
  if (fits) return
  throw new SluiceError('envelope.bad_input', `a ${purpose} envelope cannot have this size`)
}

/** libsodium throws plain errors for points and encapsulations it refuses. */
function translateKemErrors<Result>(
  code: 'envelope.bad_input' | 'envelope.refused',
  message: string,
  run: () => Result,
): Result {
  try {
    return run()
  } catch (cause) {
    throw new SluiceError(code, message, { cause })
  }
}

function infoOf(fields: EnvelopeFields): Buffer {
  return Buffer.from(`sluice/${fields.purpose}/1`)
}

function aadOf(fields: EnvelopeFields): Buffer {
  if (fields.purpose === 'result') {
    return lengthPrefixed([fields.jobId, fields.nodeId, fields.leaseId])
  }
  if (fields.purpose === 'job-key-lease') {
    return lengthPrefixed([
      fields.jobId,
      fields.nodeId,
      fields.leaseId,
      u64Field(fields.fence),
      u64Field(fields.deadlineAtMs),
      fields.sealedHeaderHash,
    ])
  }
  return lengthPrefixed([
    fields.jobId,
    fields.senderId,
    fields.receiveKeyId,
    fields.sealedHeaderHash,
  ])
}

const version = Buffer.from('HPKE-v1')
const suiteId = Buffer.concat([
  Buffer.from('HPKE'),
  Uint8Array.of(kemId >> 8, kemId & 0xff, kdfId >> 8, kdfId & 0xff, aeadId >> 8, aeadId & 0xff),
])

/** RFC 9180, section 4: LabeledExtract. */
function labeledExtract(salt: Uint8Array, label: string, input: Uint8Array): Buffer {
  return createHmac('sha256', salt)
    .update(version)
    .update(suiteId)
    .update(label)
    .update(input)
    .digest()
}

/** RFC 9180, section 4: LabeledExpand. */
function labeledExpand(prk: Uint8Array, label: string, context: Uint8Array, bytes: number): Buffer {
  const info = [Uint8Array.of(0, bytes), version, suiteId, Buffer.from(label), context]
  return hkdfExpand({ hash: 'sha256', prk, info: Buffer.concat(info), bytes })
}

/** RFC 9180, section 5.1: the key schedule in base mode; nonce 0 is the only one used. */
function scheduleKeys(
  sharedSecret: Uint8Array,
  info: Uint8Array,
): Disposable & { key: Buffer; nonce: Buffer } {
  assert.equal(sharedSecret.length, sodium.crypto_kem_xwing_SHAREDSECRETBYTES)
  const none = Buffer.alloc(0)
  const modeBase = Uint8Array.of(0)
  const context = Buffer.concat([
    modeBase,
    labeledExtract(none, 'psk_id_hash', none),
    labeledExtract(none, 'info_hash', info),
  ])
  const secret = labeledExtract(sharedSecret, 'secret', none)
  const key = labeledExpand(secret, 'key', context, 32)
  const nonce = labeledExpand(secret, 'base_nonce', context, aeadNonceBytes)
  secret.fill(0)
  return {
    key,
    nonce,
    [Symbol.dispose]() {
      key.fill(0)
      nonce.fill(0)
    },
  }
}
