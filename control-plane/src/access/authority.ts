/** The certificate authority: made at the first start, it vouches for this control plane and its agents. */
import {
  createHash,
  createPrivateKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
} from 'node:crypto'
import { constants } from 'node:fs'
import { open as openFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
// The library's dependency injection looks for this polyfill when it is loaded.
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import type { AgentRole } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { readIfThere, syncFolder, writeDurably } from '../data-directory.ts'

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
  /** DER of every authority that is trusted; the first one issues. Another list after a rotation. */
  readonly certificates: readonly Buffer[]
  /** The same in PEM, as TLS takes it. */
  readonly pem: string
  /** SHA-256 of the issuing certificate's DER, hex. */
  readonly sha256: string
  /** A server certificate for these DNS names and addresses, with a key that is never written. */
  issueServer(names: readonly string[]): Promise<{ key: string; cert: string; expiresAtMs: number }>
  /** @param publicKey SubjectPublicKeyInfo, DER, of an Ed25519 key. */
  issueAgent(agent: {
    agentId: AgentId
    role: AgentRole
    publicKey: Buffer
  }): Promise<IssuedAgentCertificate>
  /**
   * Makes another authority the one that issues. The old one stays trusted, and has signed the new
   * one, so that who knows only the old one still gets in; its key is destroyed.
   *
   * @throws SluiceError `request.conflict` while an older one is still trusted.
   */
  rotate(): Promise<void>
  /** Trusts nothing but the authority that issues. Doing it again changes nothing. */
  retire(): Promise<void>
}

/** What lies in the folder of an authority, opened. */
type Opened = {
  issuer: x509.X509Certificate
  /** The issuer as its predecessor signed it, while that one is trusted. */
  cross: x509.X509Certificate | undefined
  previous: x509.X509Certificate[]
  signingKey: CryptoKey
  keyIdentifier: x509.AuthorityKeyIdentifierExtension
}

/**
 * Opens the authority in `folder`, or makes it there: `current.key` (PKCS#8 PEM, 0600) and
 * `current.crt`. While it replaces another one, that one's certificate is `previous.crt`, and
 * `cross.crt` is the new one as the old one signed it. A rotation that a crash cut short is ended.
 *
 * @throws SluiceError `host.unsafe_file` when the key is open to others.
 */
export async function openAuthority(folder: string, now: () => number): Promise<Authority> {
  const files = authorityFiles(folder)
  await endRotation(files)
  // The certificate is written last: without it, whatever key lies there was never used.
  if ((await readIfThere(files.certificate)) === undefined)
    await writeAuthority(
      { key: files.key, certificate: files.certificate },
      await newAuthority(now()),
    )
  let opened = await open()

  async function open(): Promise<Opened> {
    using secret = await readSecretFile(files.key, 4096)
    const privateKey = createPrivateKey({ key: secret.bytes, format: 'pem' })
    const issuer = await readCertificate(files.certificate)
    const isRotating = (await readIfThere(files.previous)) !== undefined
    return {
      issuer,
      cross: isRotating ? await readCertificate(files.cross) : undefined,
      previous: isRotating ? [await readCertificate(files.previous)] : [],
      signingKey: await importSigningKey(privateKey),
      keyIdentifier: await x509.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
    }
  }

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
      issuer: opened.issuer.subject,
      notBefore: new Date(atMs - backdateMs),
      notAfter: new Date(atMs + options.lifeMs),
      publicKey: options.publicKey,
      signingKey: opened.signingKey,
      signingAlgorithm: ecdsa,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([options.usage], true),
        new x509.SubjectAlternativeNameExtension(options.names),
        opened.keyIdentifier,
      ],
    })
  }

  const trusted = () => [opened.issuer, ...opened.previous]
  return {
    get certificates() {
      return trusted().map(derOf)
    },
    get pem() {
      return trusted()
        .map((certificate) => certificate.toString('pem'))
        .join('\n')
    },
    get sha256() {
      return createHash('sha256').update(derOf(opened.issuer)).digest('hex')
    },

    async issueServer(names) {
      const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' })
      const certificate = await leaf({
        subject: [{ CN: [names[0] ?? 'localhost'] }],
        publicKey: new x509.PublicKey(pair.publicKey.export({ type: 'spki', format: 'der' })),
        lifeMs: limits.serverCertificateMs,
        usage: serverAuth,
        names: names.map((name) => ({ type: isAddress(name) ? 'ip' : 'dns', value: name })),
      })
      // Who trusts the new authority needs no link; who trusts only the old one finds it here.
      const link = opened.cross ?? opened.issuer
      return {
        key: pair.privateKey.export({ type: 'pkcs8', format: 'pem' }),
        cert: `${certificate.toString('pem')}\n${link.toString('pem')}`,
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
        chain: [derOf(certificate), derOf(opened.issuer)],
        serial: certificate.serialNumber,
        expiresAtMs: certificate.notAfter.getTime(),
      }
    },

    async rotate() {
      if (opened.previous.length > 0)
        throw new SluiceError('request.conflict', 'an older authority is still trusted', {
          hint: 'End that rotation first with `sluice authority retire`.',
        })
      const made = await newAuthority(now())
      const cross = await signAuthority({
        subject: made.certificate,
        issuer: opened.issuer,
        signingKey: opened.signingKey,
        atMs: now(),
      })
      // From the last of these on the rotation can only go forward, whatever crashes.
      await writeDurably(files.previous, pemLine(opened.issuer), 0o644)
      await writeDurably(files.cross, pemLine(cross), 0o644)
      await writeAuthority({ key: files.nextKey, certificate: files.nextCertificate }, made)
      await endRotation(files)
      opened = await open()
    },

    async retire() {
      await rm(files.previous, { force: true })
      await rm(files.cross, { force: true })
      await syncFolder(folder)
      opened = await open()
    },
  }
}

function authorityFiles(folder: string) {
  return {
    folder,
    key: join(folder, 'current.key'),
    certificate: join(folder, 'current.crt'),
    previous: join(folder, 'previous.crt'),
    cross: join(folder, 'cross.crt'),
    nextKey: join(folder, 'next.key'),
    nextCertificate: join(folder, 'next.crt'),
  }
}

/**
 * Puts a new authority in the place of the old one, whose key is overwritten first. The certificate
 * of the new one is written last and moved last: with it the rest is complete, without it nothing
 * has happened.
 */
async function endRotation(files: ReturnType<typeof authorityFiles>): Promise<void> {
  if ((await readIfThere(files.nextCertificate)) === undefined) {
    await rm(files.nextKey, { force: true })
    // A rotation that never came to its new authority leaves nothing to trust beside the old one.
    if (await isSame(files.previous, files.certificate)) {
      await rm(files.previous, { force: true })
      await rm(files.cross, { force: true })
    }
    return
  }
  if ((await readIfThere(files.nextKey)) !== undefined) {
    await overwriteFile(files.key)
    await rename(files.nextKey, files.key)
    await syncFolder(files.folder)
  }
  await rename(files.nextCertificate, files.certificate)
  await syncFolder(files.folder)
}

async function isSame(left: string, right: string): Promise<boolean> {
  const [one, other] = [await readIfThere(left), await readIfThere(right)]
  return one !== undefined && other !== undefined && one.equals(other)
}

/** In place and through to the disk: a rename alone would leave the old bytes there. */
async function overwriteFile(path: string): Promise<void> {
  const file = await openFile(path, constants.O_WRONLY | constants.O_SYNC)
  try {
    const { size } = await file.stat()
    await file.write(randomBytes(size), 0, size, 0)
    await file.datasync()
  } finally {
    await file.close()
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

type NewAuthority = { certificate: x509.X509Certificate; privateKey: KeyObject }

async function newAuthority(atMs: number): Promise<NewAuthority> {
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
    // One more authority may stand below it: the one that replaces it.
    extensions: await authorityExtensions(publicKey, 1),
  })
  return { certificate, privateKey: pair.privateKey }
}

/** A successor as its predecessor vouches for it. */
async function signAuthority(options: {
  subject: x509.X509Certificate
  issuer: x509.X509Certificate
  signingKey: CryptoKey
  atMs: number
}): Promise<x509.X509Certificate> {
  const { subject, issuer, signingKey, atMs } = options
  return x509.X509CertificateGenerator.create({
    serialNumber: newSerial(),
    subject: subject.subject,
    issuer: issuer.subject,
    notBefore: new Date(atMs - backdateMs),
    notAfter: issuer.notAfter,
    publicKey: subject.publicKey,
    signingKey,
    signingAlgorithm: ecdsa,
    extensions: [
      ...(await authorityExtensions(subject.publicKey, 0)),
      await x509.AuthorityKeyIdentifierExtension.create(issuer.publicKey),
    ],
  })
}

async function authorityExtensions(publicKey: x509.PublicKey, authoritiesBelow: number) {
  return [
    new x509.BasicConstraintsExtension(true, authoritiesBelow, true),
    new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
    await x509.SubjectKeyIdentifierExtension.create(publicKey),
  ]
}

async function writeAuthority(
  to: { key: string; certificate: string },
  { certificate, privateKey }: NewAuthority,
): Promise<void> {
  await writeDurably(to.key, privateKey.export({ type: 'pkcs8', format: 'pem' }), 0o600)
  await writeDurably(to.certificate, pemLine(certificate), 0o644)
}

function pemLine(certificate: x509.X509Certificate): string {
  return `${certificate.toString('pem')}\n`
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
