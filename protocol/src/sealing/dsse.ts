/** DSSE envelopes with Ed25519 over canonical JSON: how every signed statement of Sluice looks. */
import { createHash, type KeyObject, sign, verify } from 'node:crypto'
import { z } from 'zod'
import { type CanonicalValue, canonicalJson, parseCanonicalJson } from '../canonical.ts'
import { SluiceError } from '../errors.ts'
import { limits } from '../limits.ts'

/** One payload type per purpose, so that a signature for one never counts for another. */
export const payloadTypes = [
  'application/vnd.sluice.receipt.v1+json',
  'application/vnd.sluice.result.v1+json',
  'application/vnd.sluice.deletion-certificate.v1+json',
  'application/vnd.sluice.purge-receipt.v1+json',
  'application/vnd.sluice.purge-certificate.v1+json',
  'application/vnd.sluice.purge-report.v1+json',
  'application/vnd.sluice.write-off.v1+json',
  'application/vnd.sluice.purge-bundle.v1+json',
] as const
export type PayloadType = (typeof payloadTypes)[number]

/** Standard base64 with padding, in its one canonical spelling. */
const base64 = (charsMax: number) =>
  z
    .string()
    .max(charsMax)
    .refine((text) => Buffer.from(text, 'base64').toString('base64') === text, 'not base64')

/** The envelope as JSON (github.com/secure-systems-lab/dsse, envelope.md), one signature. */
export const dsseEnvelope = z.strictObject({
  payload: base64(Math.ceil((limits.purgeCertificateBytesMax * 4) / 3) + 4),
  payloadType: z.enum(payloadTypes),
  signatures: z
    .array(z.strictObject({ keyid: z.string().regex(/^[0-9a-f]{64}$/), sig: base64(88) }))
    .length(1),
})
export type DsseEnvelope = z.infer<typeof dsseEnvelope>

/** SHA-256 of the key's SubjectPublicKeyInfo (RFC 5280), lower-case hex. */
export function keyIdOf(publicKey: KeyObject): string {
  const known = keyIds.get(publicKey)
  if (known !== undefined) return known
  const spki = publicKey.export({ format: 'der', type: 'spki' })
  const keyId = createHash('sha256').update(spki).digest('hex')
  keyIds.set(publicKey, keyId)
  return keyId
}

/** Writing a key out costs as much as a fifth of verifying with it (measured), and one is asked for its id often. */
const keyIds = new WeakMap<KeyObject, string>()

/** The exact bytes under a DSSE signature: `DSSEv1 SP len SP type SP len SP payload`. */
export function preAuthEncoding(payloadType: PayloadType, payload: Uint8Array): Buffer {
  const head = `DSSEv1 ${Buffer.byteLength(payloadType)} ${payloadType} ${payload.byteLength} `
  return Buffer.concat([Buffer.from(head), payload])
}

/**
 * Signs a statement.
 *
 * @param signer Any Ed25519 key: `sign` gets the bytes to sign and returns 64 bytes, so that the
 * private key may live elsewhere.
 */
export function signStatement(
  payloadType: PayloadType,
  statement: CanonicalValue,
  signer: { keyId: string; sign: (bytes: Buffer) => Buffer },
): DsseEnvelope {
  const payload = Buffer.from(canonicalJson(statement))
  const signature = signer.sign(preAuthEncoding(payloadType, payload))
  return {
    payload: payload.toString('base64'),
    payloadType,
    signatures: [{ keyid: signer.keyId, sig: signature.toString('base64') }],
  }
}

/** A signer around an Ed25519 private key in this process. */
export function ed25519Signer(privateKey: KeyObject, publicKey: KeyObject) {
  return { keyId: keyIdOf(publicKey), sign: (bytes: Buffer) => sign(null, bytes, privateKey) }
}

/**
 * Verifies an envelope against one pinned key and returns its statement.
 *
 * @throws SluiceError `evidence.invalid` when it is no envelope of `payloadType`;
 * `evidence.untrusted` when another key signed or the signature is wrong;
 * `evidence.not_canonical` when the payload is not canonical JSON.
 */
export function verifyStatement(
  envelope: unknown,
  expected: { payloadType: PayloadType; publicKey: KeyObject },
): CanonicalValue {
  const parsed = dsseEnvelope.safeParse(envelope)
  if (!parsed.success || parsed.data.payloadType !== expected.payloadType)
    throw new SluiceError('evidence.invalid', `not a signed ${expected.payloadType}`)
  const { payload, signatures } = parsed.data
  const signature = signatures[0]!
  if (expected.publicKey.asymmetricKeyType !== 'ed25519')
    throw new SluiceError('evidence.untrusted', 'the trusted key is not an Ed25519 key')
  if (signature.keyid !== keyIdOf(expected.publicKey))
    throw new SluiceError('evidence.untrusted', 'signed by a key that is not the trusted one')
  const bytes = Buffer.from(payload, 'base64')
  const signed = preAuthEncoding(expected.payloadType, bytes)
  if (!verify(null, signed, expected.publicKey, Buffer.from(signature.sig, 'base64')))
    throw new SluiceError('evidence.untrusted', 'the signature does not match')
  return parseCanonicalJson(bytes)
}
