/** For tests: a whole control plane on loopback, with a clock that tests move, tokens and agents. */
import {
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  X509Certificate,
} from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import Sqlite from 'better-sqlite3'
import { Agent, request } from 'undici'
import {
  type CreatedJoinToken,
  createdJoinToken,
  createdToken,
  decodeToken,
  type JoinReply,
  joinReply,
  type Role,
} from '@sluice/protocol/api'
import { principalId, tokenId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { secretSha256 } from './access/tokens.ts'
import { adminClient } from './cli/client.ts'
import { controlPlaneConfig } from './config.ts'
import { type ControlPlane, createControlPlane } from './main.ts'

export type Answer = { status: number; headers: Record<string, unknown>; text: string; json: Json }
/** JSON of an answer; each test asserts on the members it expects. */
type Json = Record<string, unknown> & { items?: Record<string, unknown>[] }

export type TestControlPlane = AsyncDisposable & {
  controlPlane: ControlPlane
  dataDir: string
  /** PEM of the CA. */
  ca: string
  /** Moves the control plane's clock forward. */
  advance(ms: number): void
  /** A token's secret, of a new principal with one role. */
  secretFor(role: Role, site?: string): Promise<string>
  joinToken(wanted: { role: 'capture' | 'gpu'; [key: string]: unknown }): Promise<CreatedJoinToken>
  call(
    method: 'GET' | 'POST',
    path: string,
    options?: { secret?: string; body?: unknown; headers?: Record<string, string> },
  ): Promise<Answer>
}

export async function startControlPlane(
  dataDir?: string,
  config: Record<string, unknown> = {},
): Promise<TestControlPlane> {
  const folder = dataDir ?? (await mkdtemp(join(tmpdir(), 'sluice-cp-')))
  let aheadMs = 0
  let principals = 0
  const controlPlane = await createControlPlane({
    config: controlPlaneConfig.parse({ dataDir: folder, agentPort: 0, operatorPort: 0, ...config }),
    log: () => undefined,
    now: () => Date.now() + aheadMs,
    monotonicMs: () => performance.now() + aheadMs,
  })
  const ca = await readFile(join(folder, 'authority', 'current.crt'), 'utf8')
  const dispatcher = new Agent({ connect: { ca } })
  const owner = adminClient(controlPlane.directory.adminSocket)

  return {
    controlPlane,
    dataDir: folder,
    ca,
    advance(ms) {
      aheadMs += ms
    },
    async secretFor(role, site = '*') {
      principals += 1
      const principal = `${role}-${principals}`
      // The third person with this role takes two others; tests that are not about that get it all the same.
      if (role === 'security')
        return dangerousTestOnlySecurity(controlPlane.directory.database, { name: principal, site })
      const body = { principal, rights: [{ role, site }] }
      const { token } = await owner.post('/v1/tokens', body, createdToken)
      return decodeToken('token', token).secret
    },
    joinToken: (wanted) =>
      owner.post('/v1/join-tokens', { site: 'berlin', ...wanted }, createdJoinToken),
    async call(method, path, { secret, body, headers } = {}) {
      const text =
        typeof body === 'string' ? body : body === undefined ? undefined : JSON.stringify(body)
      const answer = await request(`${controlPlane.operatorUrl}${path}`, {
        method,
        dispatcher,
        headers: {
          ...(secret === undefined ? {} : { authorization: `Bearer ${secret}` }),
          ...(text === undefined ? {} : { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(text === undefined ? {} : { body: text }),
      })
      const received = await answer.body.text()
      return {
        status: answer.statusCode,
        headers: answer.headers,
        text: received,
        json: received.startsWith('{') ? (JSON.parse(received) as Json) : {},
      }
    },
    async [Symbol.asyncDispose]() {
      await owner[Symbol.asyncDispose]()
      await dispatcher.close()
      await controlPlane[Symbol.asyncDispose]()
      if (dataDir === undefined) await rm(folder, { recursive: true })
    },
  }
}

/** A person with the role `security` and a token, made by nobody: straight into the rows. */
async function dangerousTestOnlySecurity(
  path: string,
  person: { name: string; site: string },
): Promise<string> {
  const secret = randomBytes(32).toString('base64url')
  // In a turn of its own, so that no write of the control plane is half done: it is the same thread.
  await setImmediate()
  const rows = new Sqlite(path)
  const atMs = Date.now()
  const [principal, token] = [newId(principalId, atMs), newId(tokenId, atMs)]
  rows
    .prepare('INSERT INTO principals (id, name, created_at_ms) VALUES (?, ?, ?)')
    .run(principal, person.name, atMs)
  rows
    .prepare("INSERT INTO rights (principal_id, role, site) VALUES (?, 'security', ?)")
    .run(principal, person.site)
  rows
    .prepare(
      'INSERT INTO api_tokens (id, principal_id, token_sha256, created_at_ms, expires_at_ms) VALUES (?, ?, ?, ?, ?)',
    )
    .run(token, principal, secretSha256(secret), atMs, atMs + limits.apiTokenMsMax)
  rows.close()
  return secret
}

export type TestIdentity = { privateKey: KeyObject; csr: string }

/** A new Ed25519 key with its PKCS#10 request, base64. */
export async function newIdentity(
  privateKey: KeyObject = generateKeyPairSync('ed25519').privateKey,
): Promise<TestIdentity> {
  const publicKey = createPublicKey(privateKey)
  const subtle = crypto.subtle
  const keys = {
    privateKey: await subtle.importKey(
      'pkcs8',
      privateKey.export({ format: 'der', type: 'pkcs8' }),
      'Ed25519',
      false,
      ['sign'],
    ),
    publicKey: await subtle.importKey(
      'spki',
      publicKey.export({ format: 'der', type: 'spki' }),
      'Ed25519',
      true,
      ['verify'],
    ),
  }
  const csr = await x509.Pkcs10CertificateRequestGenerator.create({
    name: 'CN=whatever',
    keys,
    signingAlgorithm: { name: 'Ed25519' },
  })
  return { privateKey, csr: Buffer.from(csr.rawData).toString('base64') }
}

export type JoinedAgent = JoinReply & { key: string; cert: string }

/** Joins an agent, and gives what its TLS connections present. */
export async function joinedAgent(
  system: TestControlPlane,
  role: 'capture' | 'gpu',
): Promise<JoinedAgent> {
  const { token } = await system.joinToken({ role })
  const identity = await newIdentity()
  const { secret } = decodeToken('join', token)
  const answer = await system.call('POST', '/v1/join', {
    body: { token: secret, csr: identity.csr },
  })
  const reply = joinReply.parse(answer.json)
  return { ...reply, ...tlsOf(reply, identity) }
}

export function tlsOf(reply: JoinReply, identity: TestIdentity): { key: string; cert: string } {
  return {
    key: identity.privateKey.export({ format: 'pem', type: 'pkcs8' }),
    cert: reply.chain
      .map((der) => new X509Certificate(Buffer.from(der, 'base64')).toString())
      .join('\n'),
  }
}
