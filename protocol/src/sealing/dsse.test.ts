import assert from 'node:assert/strict'
import { generateKeyPairSync, verify } from 'node:crypto'
import { describe, it } from 'node:test'
import { isSluiceError } from '../errors.ts'
import {
  type DsseEnvelope,
  ed25519Signer,
  preAuthEncoding,
  signStatement,
  verifyStatement,
} from './dsse.ts'

const receiptType = 'application/vnd.sluice.receipt.v1+json'
const resultType = 'application/vnd.sluice.result.v1+json'
const { privateKey, publicKey } = generateKeyPairSync('ed25519')
const statement = { b: 'two', a: 1 }
const signed = signStatement(receiptType, statement, ed25519Signer(privateKey, publicKey))

const refused = (envelope: unknown, code: Parameters<typeof isSluiceError>[1]) =>
  assert.throws(
    () => verifyStatement(envelope, { payloadType: receiptType, publicKey }),
    (error) => isSluiceError(error, code),
  )

describe('a signed statement', () => {
  it('verifies with the key that signed it, over canonical bytes', () => {
    assert.deepEqual(verifyStatement(signed, { payloadType: receiptType, publicKey }), statement)
    assert.equal(Buffer.from(signed.payload, 'base64').toString(), '{"a":1,"b":"two"}')
  })

  it('is signed exactly over the pre-authentication encoding of the DSSE protocol', () => {
    // The example of github.com/secure-systems-lab/dsse, protocol.md, with a type of ours.
    const bytes = Buffer.from('hello world')
    assert.equal(
      preAuthEncoding(receiptType, bytes).toString(),
      `DSSEv1 ${receiptType.length} ${receiptType} 11 hello world`,
    )
    const payload = Buffer.from(signed.payload, 'base64')
    const signature = Buffer.from(signed.signatures[0]?.sig ?? '', 'base64')
    assert.ok(verify(null, preAuthEncoding(receiptType, payload), publicKey, signature))
  })

  it('is refused from any other key', () => {
    const other = generateKeyPairSync('ed25519')
    refused(
      signStatement(receiptType, statement, ed25519Signer(other.privateKey, other.publicKey)),
      'evidence.untrusted',
    )
    const impostor = {
      ...ed25519Signer(other.privateKey, other.publicKey),
      keyId: signed.signatures[0]?.keyid ?? '',
    }
    refused(signStatement(receiptType, statement, impostor), 'evidence.untrusted')
  })

  it('is refused for another purpose', () => {
    refused(
      signStatement(resultType, statement, ed25519Signer(privateKey, publicKey)),
      'evidence.invalid',
    )
    refused({ ...signed, payloadType: resultType }, 'evidence.invalid')
  })

  it('is refused with any payload but the signed one', () => {
    const payload = Buffer.from('{"a":2,"b":"two"}').toString('base64')
    refused({ ...signed, payload }, 'evidence.untrusted')
  })

  it('is refused when what was signed is not canonical', () => {
    const bytes = Buffer.from('{"b":1, "a":2}')
    const signer = ed25519Signer(privateKey, publicKey)
    const envelope: DsseEnvelope = {
      payload: bytes.toString('base64'),
      payloadType: receiptType,
      signatures: [
        {
          keyid: signer.keyId,
          sig: signer.sign(preAuthEncoding(receiptType, bytes)).toString('base64'),
        },
      ],
    }
    refused(envelope, 'evidence.not_canonical')
  })

  it('is refused with base64 in another spelling, more members or more signatures', () => {
    refused({ ...signed, payload: signed.payload.replace(/=*$/, '') + '\n' }, 'evidence.invalid')
    refused({ ...signed, extra: 1 }, 'evidence.invalid')
    refused(
      { ...signed, signatures: [...signed.signatures, ...signed.signatures] },
      'evidence.invalid',
    )
    refused({ ...signed, signatures: [] }, 'evidence.invalid')
    refused('not an envelope', 'evidence.invalid')
  })

  it('trusts no key of another kind', () => {
    const other = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    assert.throws(
      () => verifyStatement(signed, { payloadType: receiptType, publicKey: other.publicKey }),
      (error) => isSluiceError(error, 'evidence.untrusted'),
    )
  })
})
