/** Who may speak in a signed document, and when: the rules that every kind of it shares. */
import { createPublicKey, type KeyObject } from 'node:crypto'
import type { EvidenceSigner } from '../evidence-signer.ts'
import { atOnce, type Pieces } from '../pieces.ts'
import { keyIdOf } from './dsse.ts'
import { invalid, untrusted } from './evidence-problem.ts'

/** A signer whose key was read. */
export type Signer = EvidenceSigner & { key: KeyObject }

/**
 * Reads the listed signers.
 *
 * @param trustedKey Signed the document; it speaks for the control plane alone, and has no end.
 * @returns The signers by the id of the holder they speak for.
 * @throws SluiceError `evidence.invalid` for a signer that is no key in its one form, is listed
 * twice, or has no time; `evidence.untrusted` when one uses the name of another.
 */
export function verifySigners(
  signers: readonly EvidenceSigner[],
  trustedKey: KeyObject,
): Map<string, Signer> {
  return atOnce(verifyingSigners(signers, trustedKey))
}

/** `verifySigners` in pieces of one signer. */
export function* verifyingSigners(
  signers: readonly EvidenceSigner[],
  trustedKey: KeyObject,
): Pieces<Map<string, Signer>> {
  const trustedId = keyIdOf(trustedKey)
  const known = new Map<string, Signer>()
  const keyIds = new Set<string>()
  for (const signer of signers) {
    const { keyId, holderId } = signer
    const key = ed25519KeyOf(signer.publicKey)
    if (keyIdOf(key) !== keyId) throw invalid('a signer is not the key it is called')
    if (known.has(holderId) || keyIds.has(keyId)) throw invalid('a signer is listed twice')
    if ((holderId === trustedId) !== (keyId === trustedId))
      throw untrusted('a signer uses the name of another')
    requireTime(signer, keyId === trustedId)
    known.set(holderId, { ...signer, key })
    keyIds.add(keyId)
    yield
  }
  return known
}

function requireTime({ notBeforeMs, notAfterMs, revokedAtMs }: EvidenceSigner, own: boolean): void {
  if (own) {
    if (notBeforeMs !== undefined || notAfterMs !== undefined || revokedAtMs !== undefined)
      throw invalid('the evidence key is given an end')
    return
  }
  if (notBeforeMs === undefined || notAfterMs === undefined || notAfterMs <= notBeforeMs)
    throw invalid('a signer has no time in which it was good')
}

/**
 * @param confirmedAtMs When the control plane took in what this signer had signed.
 * @throws SluiceError `evidence.untrusted` when the signer's word did not count then.
 */
export function requireGoodAt(signer: EvidenceSigner, confirmedAtMs: number): void {
  const { notBeforeMs = 0, notAfterMs = Infinity, revokedAtMs = Infinity } = signer
  if (confirmedAtMs < notBeforeMs) throw untrusted('a receipt is older than its signer')
  if (confirmedAtMs >= notAfterMs) throw untrusted('the identity of a signer had expired')
  if (confirmedAtMs >= revokedAtMs) throw untrusted('a signer was revoked before')
}

function ed25519KeyOf(spki: string): KeyObject {
  let key: KeyObject
  try {
    key = createPublicKey({ key: Buffer.from(spki, 'base64'), format: 'der', type: 'spki' })
  } catch (cause) {
    throw invalid('a signer has no public key', cause)
  }
  if (key.asymmetricKeyType !== 'ed25519') throw invalid('a signer has no Ed25519 key')
  // Only the exact bytes, so that one key has one spelling.
  if (key.export({ format: 'der', type: 'spki' }).toString('base64') !== spki)
    throw invalid("a signer's key is not in its one form")
  return key
}

/** @throws SluiceError `evidence.invalid` unless each instant is at or after the one before it. */
export function requireOrder(instants: readonly number[]): void {
  const ordered = instants.every((instant, index) => index === 0 || instants[index - 1]! <= instant)
  if (!ordered) throw invalid('its times are not in order')
}

/** @throws SluiceError `evidence.invalid` when a name is there twice. */
export function requireDistinct(names: readonly string[], why: string): void {
  if (new Set(names).size !== names.length) throw invalid(why)
}
