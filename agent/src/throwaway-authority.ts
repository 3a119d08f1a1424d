/** For tests only: an authority in memory, and loopback servers and identities under it. */
import { type KeyObject, createPublicKey, generateKeyPairSync } from 'node:crypto'
// The certificate library's dependency injection looks for this polyfill when it is loaded.
import 'reflect-metadata'
import {
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  SubjectAlternativeNameExtension,
  X509CertificateGenerator,
  Pkcs10CertificateRequest,
} from '@peculiar/x509'
import { agentId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { keyIdOf } from '@sluice/protocol/sealing/dsse'
import type { AgentRole, Identity } from './enrol.ts'

const ecdsa = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
const hourMs = 3_600_000

export type ThrowawayAuthority = Awaited<ReturnType<typeof makeAuthority>>

/** An authority that lives as long as the test. */
export async function makeAuthority() {
  const keys = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const authorityKeys = {
    privateKey: keys.privateKey.toCryptoKey(ecdsa, true, ['sign']),
    publicKey: keys.publicKey.toCryptoKey(ecdsa, true, ['verify']),
  }
  const certificate = await X509CertificateGenerator.createSelfSigned({
    // As the real ones, each has a name of its own: OpenSSL looks an issuer up by it.
    name: `CN=Throwaway ${newId(agentId, Date.now())}`,
    notBefore: new Date(Date.now() - hourMs),
    notAfter: new Date(Date.now() + 48 * hourMs),
    keys: authorityKeys,
    signingAlgorithm: ecdsa,
    extensions: [new BasicConstraintsExtension(true, undefined, true)],
  })

  async function issue(options: {
    publicKey: KeyObject
    name: string
    usage: ExtendedKeyUsage
    lifeMs?: number
    alternatives?: ConstructorParameters<typeof SubjectAlternativeNameExtension>[0]
  }) {
    const algorithm = options.publicKey.asymmetricKeyType === 'ed25519' ? 'Ed25519' : ecdsa
    return X509CertificateGenerator.create({
      subject: `CN=${options.name}`,
      issuer: certificate.subject,
      notBefore: new Date(Date.now() - 300_000),
      notAfter: new Date(Date.now() + (options.lifeMs ?? hourMs)),
      publicKey: options.publicKey.toCryptoKey(algorithm, true, ['verify']),
      signingKey: authorityKeys.privateKey,
      signingAlgorithm: ecdsa,
      extensions: [
        new ExtendedKeyUsageExtension([options.usage]),
        ...(options.alternatives
          ? [new SubjectAlternativeNameExtension(options.alternatives)]
          : []),
      ],
    })
  }

  return {
    pem: certificate.toString('pem'),
    der: Buffer.from(certificate.rawData).toString('base64'),
    /** Key and certificate of a server on 127.0.0.1. */
    async server() {
      const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' })
      const issued = await issue({
        publicKey: pair.publicKey,
        name: 'server',
        usage: ExtendedKeyUsage.serverAuth,
        alternatives: [
          { type: 'ip', value: '127.0.0.1' },
          { type: 'dns', value: 'localhost' },
        ],
      })
      const key = pair.privateKey.export({ format: 'pem', type: 'pkcs8' })
      return { key, cert: issued.toString('pem'), ca: certificate.toString('pem') }
    },
    /** Certificate for the key of a PKCS#10 request, DER in base64. */
    async answerRequest(csr: string, name: string, lifeMs?: number): Promise<string> {
      const asked = new Pkcs10CertificateRequest(Buffer.from(csr, 'base64'))
      const publicKey = createPublicKey({
        key: Buffer.from(asked.publicKey.rawData),
        format: 'der',
        type: 'spki',
      })
      const usage = ExtendedKeyUsage.clientAuth
      const issued = await issue({ publicKey, name, usage, ...(lifeMs ? { lifeMs } : {}) })
      return Buffer.from(issued.rawData).toString('base64')
    },
    /** An agent's identity as `openIdentity` gives it, without a state directory. */
    async identity(options: {
      agentUrl: string
      role?: AgentRole
      id?: string
      lifeMs?: number
    }): Promise<Identity> {
      const pair = generateKeyPairSync('ed25519')
      const id = options.id ? agentId.parse(options.id) : newId(agentId, Date.now())
      const issued = await issue({
        publicKey: pair.publicKey,
        name: id,
        usage: ExtendedKeyUsage.clientAuth,
        alternatives: [{ type: 'url', value: `sluice://agent/${options.role ?? 'capture'}/${id}` }],
        ...(options.lifeMs ? { lifeMs: options.lifeMs } : {}),
      })
      const key = Buffer.from(pair.privateKey.export({ format: 'pem', type: 'pkcs8' }))
      return {
        agentId: id,
        role: options.role ?? 'capture',
        site: 'test',
        labels: {},
        agentUrl: options.agentUrl,
        privateKey: pair.privateKey,
        publicKey: pair.publicKey,
        keyId: keyIdOf(pair.publicKey),
        certificate: () => Buffer.from(issued.rawData),
        notAfterMs: () => issued.notAfter.getTime(),
        authorities: () => [certificate.toString('pem')],
        tlsOptions: () => ({
          key,
          cert: issued.toString('pem'),
          ca: [certificate.toString('pem')],
        }),
        generation: () => 1,
      }
    },
  }
}
