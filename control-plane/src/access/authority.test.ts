import assert from 'node:assert/strict'
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  X509Certificate,
} from 'node:crypto'
import { copyFile, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import { agentId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { joinedAgent, newIdentity, startControlPlane } from '../control-plane.test-setup.ts'
import { openDatabase } from '../database/database.ts'
import { openAuthority, publicKeyOfRequest } from './authority.ts'
import { renewCertificate } from './join.ts'

async function folderFor(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-authority-'))
  t.after(() => rm(folder, { recursive: true }))
  return folder
}

const spkiOf = (privateKey: Parameters<typeof createPublicKey>[0]) =>
  createPublicKey(privateKey).export({ format: 'der', type: 'spki' })

/** A PKCS#10 request of an existing key, DER. */
async function requestOf(pem: string): Promise<Buffer> {
  const { csr } = await newIdentity(createPrivateKey(pem))
  return Buffer.from(csr, 'base64')
}

describe('certificate authority', () => {
  it('is made once and opened as the same ever after', async (t) => {
    const folder = await folderFor(t)
    const first = await openAuthority(folder, Date.now)
    const second = await openAuthority(folder, Date.now)
    assert.equal(second.sha256, first.sha256)
    const [der] = first.certificates
    const ca = new X509Certificate(der ?? '')
    assert.equal(ca.ca, true)
    assert(ca.verify(ca.publicKey))
  })

  it('vouches for server names, for servers only, with a key of its own each time', async (t) => {
    const authority = await openAuthority(await folderFor(t), Date.now)
    const names = ['sluice.example', '127.0.0.1', '::1']
    const [one, two] = [await authority.issueServer(names), await authority.issueServer(names)]
    const certificate = new X509Certificate(one.cert)
    assert(certificate.verify(new X509Certificate(authority.certificates[0] ?? '').publicKey))
    assert.equal(certificate.checkHost('sluice.example'), 'sluice.example')
    assert.equal(certificate.checkIP('127.0.0.1'), '127.0.0.1')
    assert.equal(certificate.checkHost('other.example'), undefined)
    assert.deepEqual(certificate.keyUsage, ['1.3.6.1.5.5.7.3.1'])
    assert.equal(certificate.ca, false)
    assert.notEqual(one.key, two.key)
  })

  it('vouches for an agent for at most a day, for clients only', async (t) => {
    const authority = await openAuthority(await folderFor(t), Date.now)
    const { privateKey } = await newIdentity()
    const id = newId(agentId, Date.now())
    const publicKey = spkiOf(privateKey)
    const issued = await authority.issueAgent({ agentId: id, role: 'gpu', publicKey })
    const certificate = new X509Certificate(issued.chain[0] ?? '')
    const span = certificate.validToDate.getTime() - certificate.validFromDate.getTime()
    assert(span <= limits.certificateMs)
    assert.deepEqual(certificate.keyUsage, ['1.3.6.1.5.5.7.3.2'])
    assert.equal(issued.expiresAtMs, certificate.validToDate.getTime())
    assert.equal(certificate.serialNumber.toLowerCase(), issued.serial)
  })

  it('is replaced by another one that it vouches for, and goes when it is retired', async (t) => {
    const folder = await folderFor(t)
    const authority = await openAuthority(folder, Date.now)
    const [old = Buffer.alloc(0)] = authority.certificates
    const oldKey = await readFile(join(folder, 'current.key'))
    await authority.rotate()
    const [fresh = Buffer.alloc(0), second] = authority.certificates
    assert.deepEqual(second, old)
    assert.notDeepEqual(fresh, old)
    assert.notDeepEqual(await readFile(join(folder, 'current.key')), oldKey)
    await assert.rejects(authority.rotate(), { code: 'request.conflict' })
    const { cert } = await authority.issueServer(['localhost'])
    const [leaf, link] = cert
      .split(/(?<=END CERTIFICATE-----)\s+/)
      .map((pem) => new X509Certificate(pem))
    assert(leaf?.verify(new X509Certificate(fresh).publicKey))
    assert(link?.verify(new X509Certificate(old).publicKey), 'the old one vouches for the new one')
    const again = await openAuthority(folder, Date.now)
    assert.deepEqual(again.certificates, authority.certificates)
    await again.retire()
    assert.deepEqual(again.certificates, [fresh])
    assert.deepEqual((await openAuthority(folder, Date.now)).certificates, [fresh])
  })

  it('is whole wherever a crash cuts its replacement short', async (t) => {
    const before = await folderFor(t)
    const [old] = (await openAuthority(before, Date.now)).certificates
    const rotated = await folderFor(t)
    for (const name of await readdir(before))
      await copyFile(join(before, name), join(rotated, name))
    const [fresh] = await (async () => {
      const authority = await openAuthority(rotated, Date.now)
      await authority.rotate()
      return authority.certificates
    })()
    const from = (folder: string, name: string) => join(folder, name)
    /** Files as they lie after each durable step, and who issues then. */
    const steps: { files: [string, string, string][]; issuer: Buffer | undefined }[] = [
      { files: [[before, 'current.crt', 'previous.crt']], issuer: old },
      {
        files: [
          [before, 'current.crt', 'previous.crt'],
          [rotated, 'cross.crt', 'cross.crt'],
          [rotated, 'current.key', 'next.key'],
        ],
        issuer: old,
      },
      {
        files: [
          [before, 'current.crt', 'previous.crt'],
          [rotated, 'cross.crt', 'cross.crt'],
          [rotated, 'current.key', 'next.key'],
          [rotated, 'current.crt', 'next.crt'],
        ],
        issuer: fresh,
      },
      {
        files: [
          [before, 'current.crt', 'previous.crt'],
          [rotated, 'cross.crt', 'cross.crt'],
          [rotated, 'current.key', 'current.key'],
          [rotated, 'current.crt', 'next.crt'],
        ],
        issuer: fresh,
      },
    ]
    for (const { files, issuer } of steps) {
      const folder = await folderFor(t)
      for (const name of ['current.key', 'current.crt'])
        await copyFile(from(before, name), from(folder, name))
      for (const [source, name, as] of files) await copyFile(from(source, name), from(folder, as))
      const authority = await openAuthority(folder, Date.now)
      assert.deepEqual(authority.certificates[0], issuer)
      assert.equal(authority.certificates.length, issuer === fresh ? 2 : 1)
      const { cert } = await authority.issueServer(['localhost'])
      assert(new X509Certificate(cert).verify(new X509Certificate(issuer ?? '').publicKey))
      assert.ok(!(await readdir(folder)).some((name) => name.startsWith('next')))
    }
  })

  it('takes requests for Ed25519 keys only', async () => {
    const good = await newIdentity()
    const csr = Buffer.from(good.csr, 'base64')
    assert.deepEqual(await publicKeyOfRequest(csr), spkiOf(good.privateKey))
    const ecdsa = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
    const keys = await crypto.subtle.generateKey(ecdsa, true, ['sign', 'verify'])
    const other = await x509.Pkcs10CertificateRequestGenerator.create({
      name: 'CN=x',
      keys,
      signingAlgorithm: ecdsa,
    })
    await assert.rejects(publicKeyOfRequest(Buffer.from(other.rawData)), {
      code: 'request.invalid',
    })
  })
})

describe('renewal', () => {
  it('is for the key the agent joined with, and ends with a revocation', async (t) => {
    const system = await startControlPlane()
    t.after(() => system[Symbol.asyncDispose]())
    const agent = await joinedAgent(system, 'capture')
    const { directory } = system.controlPlane
    const database = openDatabase(directory.database)
    t.after(() => database[Symbol.asyncDispose]())
    const authority = await openAuthority(directory.authority, Date.now)
    const deps = { database, authority, now: Date.now }

    const renewed = await renewCertificate(deps, agent.agentId, await requestOf(agent.key))
    const [leaf] = renewed.chain
    const certificate = new X509Certificate(Buffer.from(leaf ?? '', 'base64'))
    assert.deepEqual(
      spkiOf(agent.key),
      certificate.publicKey.export({ format: 'der', type: 'spki' }),
    )

    const stranger = generateKeyPairSync('ed25519').privateKey
    const pem = stranger.export({ format: 'pem', type: 'pkcs8' })
    await assert.rejects(renewCertificate(deps, agent.agentId, await requestOf(pem)), {
      code: 'request.invalid',
    })

    const secret = await system.secretFor('security')
    await system.call('POST', `/v1/agents/${agent.agentId}/revoke`, { secret, body: {} })
    await assert.rejects(renewCertificate(deps, agent.agentId, await requestOf(agent.key)), {
      code: 'identity.revoked',
    })
  })
})
