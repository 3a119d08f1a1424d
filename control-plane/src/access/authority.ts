/** The certificate authority: made at the first start, it vouches for this control plane and its agents. */
import { createHash, createPrivateKey, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
// The library's dependency injection looks for this polyfill when it is loaded.
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import type { AgentRole } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { readIfThere, writeDurably } from '../data-directory.ts'

const ecdsa = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
/** Certificates count from a little before now, for hosts whose clock is behind. */
const backdateMs = limits.clockSkewMsMax
/** OIDs of RFC 5280, section 4.2.1.12. */
const serverAuth = '1.3.6.1.5.5.7.3.1'
const clientAuth = '1.3.6.1.5.5.7.3.2'
/** id-Ed25519 of RFC 8410. */
const ed25519Prefix = Buffer.from('302a300506032b6570032100', 'hex')

x509.cryptoProvider.set(globalThis.crypto)

export type IssuedAgentCertificate = {
  /** Leaf, then issuer; DER. */
  chain: Buffer[]
  /** Hexadecimal. */
  serial: string
  expiresAtMs: number
}

export type Authority = {
  /** DER of every authority that is trusted; the first one issues. */
  certificates: readonly Buffer[]
  /** The same in PEM, as TLS takes it. */
  pem: string
  /** SHA-256 of the issuing certificate's DER, hex. */
  sha256: string
  /** A server certificate for these DNS names and addresses, with a key that is never written. */
  issueServer(names: readonly string[]): Promise<{ key: string; cert: string; expiresAtMs: number }>
  /** @param publicKey SubjectPublicKeyInfo, DER, of an Ed25519 key. */
  issueAgent(agent: {
    agentId: AgentId
    role: AgentRole
    publicKey: Buffer
  }): Promise<IssuedAgentCertificate>
}

/**
 * Opens the authority in `folder`, or makes it there: `current.key` (PKCS#8 PEM, 0600) and
 * `current.crt`. Every other `*.crt` beside them is trusted too, so that an authority can be
 * replaced while certificates of the old one are still about.
 *
 * @throws SluiceError `host.unsafe_file` when the key is open to others.
 */
export async function openAuthority(folder: string, now: () => number): Promise<Authority> {
  const keyPath = join(folder, 'current.key')
  const certificatePath = join(folder, 'current.crt')
  // The certificate is written last: without it, whatever key lies there was never used.
  if ((await readIfThere(certificatePath)) === undefined)
    await makeAuthority(keyPath, certificatePath, now())
  using secret = await readSecretFile(keyPath, 4096)
  const privateKey = createPrivateKey({ key: secret.bytes, format: 'pem' })
  const issuer = await readCertificate(certificatePath)
  const others = (await readdir(folder))
    .filter((name) => name.endsWith('.crt') && name !== 'current.crt')
    .toSorted()
  const trusted = [issuer]
  for (const name of others) trusted.push(await readCertificate(join(folder, name)))
  const signingKey = await importSigningKey(privateKey)
  const keyIdentifier = await x509.AuthorityKeyIdentifierExtension.create(issuer.publicKey)

  function leaf(options: {
    subject: x509.JsonName
    publicKey: x509.PublicKeyType
    lifeMs: number
    usage: string
    names: x509.JsonGeneralNames
  }) {
    const atMs = now()
    return x509.X509CertificateGenerator.create({
      serialNumber: newSerial(),
      subject: options.subject,
      issuer: issuer.subject,
      notBefore: new Date(atMs - backdateMs),
      notAfter: new Date(atMs + options.lifeMs),
      publicKey: options.publicKey,
      signingKey,
      signingAlgorithm: ecdsa,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([options.usage], true),
        new x509.SubjectAlternativeNameExtension(options.names),
        keyIdentifier,
      ],
    })
  }

  return {
    certificates: trusted.map(derOf),
    pem: trusted.map((certificate) => certificate.toString('pem')).join('\n'),
    sha256: createHash('sha256').update(derOf(issuer)).digest('hex'),

    async issueServer(names) {
      const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' })
      const certificate = await leaf({
        subject: [{ CN: [names[0] ?? 'localhost'] }],
        publicKey: new x509.PublicKey(pair.publicKey.export({ type: 'spki', format: 'der' })),
        lifeMs: limits.serverCertificateMs,
        usage: serverAuth,
        names: names.map((name) => ({ type: isAddress(name) ? 'ip' : 'dns', value: name })),
      })
      return {
        key: pair.privateKey.export({ type: 'pkcs8', format: 'pem' }),
        cert: `${certificate.toString('pem')}\n${issuer.toString('pem')}`,
        expiresAtMs: certificate.notAfter.getTime(),
      }
    },

    async issueAgent(agent) {
      const certificate = await leaf({
        subject: [{ CN: [agent.agentId] }],
        publicKey: new x509.PublicKey(agent.publicKey),
        // The whole span, the part before now included, stays within the bound.
        lifeMs: limits.certificateMs - backdateMs,
        usage: clientAuth,
        names: [{ type: 'url', value: agentUri(agent) }],
      })
      return {
        chain: [derOf(certificate), derOf(issuer)],
        serial: certificate.serialNumber,
        expiresAtMs: certificate.notAfter.getTime(),
      }
    },
  }
}

/** The name an agent's certificate carries beside its id. */
export function agentUri(agent: { agentId: AgentId; role: AgentRole }): string {
  return `sluice://agent/${agent.role}/${agent.agentId}`
}

/**
 * Checks a PKCS#10 request. Nothing but its key is used: names and extensions in it are ours to
 * choose.
 *
 * @returns SubjectPublicKeyInfo of its Ed25519 key, DER.
 * @throws SluiceError `request.invalid` unless its own key, an Ed25519 key, signed it.
 */
export async function publicKeyOfRequest(csr: Buffer): Promise<Buffer> {
  let key: Buffer | undefined
  try {
    const request = new x509.Pkcs10CertificateRequest(csr)
    if (await request.verify()) key = Buffer.from(request.publicKey.rawData)
  } catch (cause) {
    throw new SluiceError('request.invalid', 'csr: not a PKCS#10 certificate request', { cause })
  }
  const isEd25519 = key?.length === 44 && key.subarray(0, 12).equals(ed25519Prefix)
  if (key === undefined || !isEd25519)
    throw new SluiceError('request.invalid', 'csr: not signed by its own Ed25519 key')
  return key
}

async function makeAuthority(keyPath: string, certificatePath: string, atMs: number) {
  const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const spki = pair.publicKey.export({ type: 'spki', format: 'der' })
  const keyId = createHash('sha256').update(spki).digest('hex').slice(0, 16)
  const name: x509.JsonName = [{ CN: [`Sluice CA ${keyId}`] }]
  const publicKey = new x509.PublicKey(spki)
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: newSerial(),
    subject: name,
    issuer: name,
    notBefore: new Date(atMs - backdateMs),
    notAfter: new Date(atMs + limits.authorityMs),
    publicKey,
    signingKey: await importSigningKey(pair.privateKey),
    signingAlgorithm: ecdsa,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(
        x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign,
        true,
      ),
      await x509.SubjectKeyIdentifierExtension.create(publicKey),
    ],
  })
  const pem = pair.privateKey.export({ type: 'pkcs8', format: 'pem' })
  await writeDurably(keyPath, pem, 0o600)
  await writeDurably(certificatePath, `${certificate.toString('pem')}\n`, 0o644)
}

async function readCertificate(path: string): Promise<x509.X509Certificate> {
  const pem = await readIfThere(path)
  try {
    return new x509.X509Certificate(pem?.toString('utf8') ?? '')
  } catch (cause) {
    throw new SluiceError('host.unsafe_file', `${path}: not a certificate`, {
      hint: 'Put the certificate back from the copy that was made of the authority.',
      cause,
    })
  }
}

function importSigningKey(privateKey: KeyObject): Promise<CryptoKey> {
  const pkcs8 = privateKey.export({ type: 'pkcs8', format: 'der' })
  try {
    return crypto.subtle.importKey('pkcs8', pkcs8, ecdsa, false, ['sign'])
  } finally {
    pkcs8.fill(0)
  }
}

/** 16 random bytes; the top bit stays clear so that the number is positive (RFC 5280, 4.1.2.2). */
function newSerial(): string {
  const bytes = crypto.getRandomValues(Buffer.alloc(16))
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40
  return bytes.toString('hex')
}

function derOf(certificate: x509.X509Certificate): Buffer {
  return Buffer.from(certificate.rawData)
}

function isAddress(name: string): boolean {
  return /^[0-9.]+$/.test(name) || name.includes(':')
}
