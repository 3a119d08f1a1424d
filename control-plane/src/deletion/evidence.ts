/** The evidence key: signs deletion certificates and the control plane's own receipts, nothing else. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { ed25519Signer } from '@sluice/protocol/sealing/dsse'
import { writeDurably } from '../data-directory.ts'

export type Evidence = {
  /** SHA-256 of the public key's SubjectPublicKeyInfo, hex: the id of the control plane's holders. */
  readonly keyId: string
  readonly publicKey: KeyObject
  /** SubjectPublicKeyInfo as PEM: what `sluice verify --trust` is given. */
  readonly publicKeyPem: string
  sign(bytes: Buffer): Buffer
}

/** PKCS#8 in DER, raw bytes: a key that was text once stays in the heap. */
const privateName = 'evidence-key.der'
export const publicName = 'evidence-public.pem'
/** An Ed25519 key in PKCS#8 has 48 bytes. */
const privateBytesMax = 256

/**
 * Opens the evidence key in a folder, and makes it at first start. Its public half is written beside
 * it, to be taken to where certificates are verified.
 *
 * @throws SluiceError `host.unsafe_file` when the key is open to others or no key.
 */
export async function openEvidence(folder: string): Promise<Evidence> {
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const path = join(folder, privateName)
  const privateKey = (await existingKey(path)) ?? (await makeKey(path))
  const publicKey = createPublicKey(privateKey)
  const publicKeyPem = publicKey.export({ format: 'pem', type: 'spki' })
  await writeDurably(join(folder, publicName), publicKeyPem, 0o644)
  return { ...ed25519Signer(privateKey, publicKey), publicKey, publicKeyPem }
}

async function existingKey(path: string): Promise<KeyObject | undefined> {
  let secret
  try {
    secret = await readSecretFile(path, privateBytesMax)
  } catch (error) {
    const absent =
      isSluiceError(error) && (error.cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT'
    if (absent) return undefined
    throw error
  }
  using held = secret
  try {
    const key = createPrivateKey({ key: held.bytes, format: 'der', type: 'pkcs8' })
    if (key.asymmetricKeyType === 'ed25519') return key
  } catch (cause) {
    throw noKey(path, cause)
  }
  throw noKey(path)
}

function noKey(path: string, cause?: unknown): SluiceError {
  return new SluiceError('host.unsafe_file', `${path} is no Ed25519 key`, {
    hint: 'Put the evidence key back from where it was kept; a new one ends the trust in the old.',
    cause,
  })
}

async function makeKey(path: string): Promise<KeyObject> {
  const { privateKey } = generateKeyPairSync('ed25519')
  const bytes = privateKey.export({ format: 'der', type: 'pkcs8' })
  try {
    await writeDurably(path, bytes, 0o600)
  } finally {
    bytes.fill(0)
  }
  const written = await existingKey(path)
  if (!written) throw noKey(path)
  return written
}
