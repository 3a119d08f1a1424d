/** A certificate authority of a test's own, for servers on loopback. */
import { webcrypto } from 'node:crypto'
// @peculiar/x509 finds its parts by decorators, which need this loaded first.
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'

export type ServerCredentials = { authority: string; certificate: string; key: string }

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const dayMs = 24 * 60 * 60 * 1000

/** An authority nobody else trusts, and one certificate of it for 127.0.0.1 and localhost; PEM. */
export async function makeServerCredentials(): Promise<ServerCredentials> {
  const authorityKeys = await makeKeys()
  const serverKeys = await makeKeys()
  const life = { notBefore: new Date(Date.now() - dayMs), notAfter: new Date(Date.now() + dayMs) }
  const authority = await x509.X509CertificateGenerator.createSelfSigned({
    name: 'CN=Throw-away authority',
    keys: authorityKeys,
    signingAlgorithm: algorithm,
    ...life,
    extensions: [new x509.BasicConstraintsExtension(true, 0, true)],
  })
  const certificate = await x509.X509CertificateGenerator.create({
    subject: 'CN=localhost',
    issuer: authority.subject,
    publicKey: serverKeys.publicKey,
    signingKey: authorityKeys.privateKey,
    signingAlgorithm: algorithm,
    ...life,
    extensions: [
      new x509.SubjectAlternativeNameExtension([
        { type: 'dns', value: 'localhost' },
        { type: 'ip', value: '127.0.0.1' },
      ]),
    ],
  })
  const der = await webcrypto.subtle.exportKey('pkcs8', serverKeys.privateKey)
  return {
    authority: authority.toString('pem'),
    certificate: certificate.toString('pem'),
    key: x509.PemConverter.encode(der, 'PRIVATE KEY'),
  }
}

async function makeKeys(): Promise<webcrypto.CryptoKeyPair> {
  return await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
}
