/** Who this host is: joins once with a token, keeps its key for life and renews its certificate in time. */
import {
  type KeyObject,
  X509Certificate,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
} from 'node:crypto'
import { mkdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
// The certificate library's dependency injection looks for this polyfill when it is loaded.
import 'reflect-metadata'
import { Pkcs10CertificateRequestGenerator } from '@peculiar/x509'
import { type JoinRequest, type TokenContent, joinReply } from '@sluice/protocol/api'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { backoffMs } from '@sluice/protocol/process/retry'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { keyIdOf } from '@sluice/protocol/sealing/dsse'
import { Agent, request } from 'undici'
import { z } from 'zod'
import type { ControlLink } from './control-link.ts'
import { isMissing, writeDurably } from './durable-file.ts'
import type { Identity } from './identity.ts'
import { keyExchangeGroups } from './key-exchange.ts'

export type { AgentRole, Identity } from './identity.ts'

/** An identity that can be renewed; `main.ts` holds it, all others the plain `Identity`. */
export type RenewableIdentity = Identity & {
  /** When to ask for the next certificate: two thirds into the life of the present one. */
  renewAtMs(): number
  /** PKCS#10 request for the identity key, DER. */
  makeRequest(): Promise<Buffer>
  /**
   * Takes a new certificate into use, durably.
   *
   * @throws SluiceError `join.refused` when it is not for this key and agent.
   */
  replace(issued: IssuedCertificate): Promise<void>
  /**
   * Trusts exactly these authorities from now on, durably; the present certificate stays.
   *
   * @param authorities DER, base64.
   * @throws SluiceError `join.wrong_authority` when none of those trusted so far is among them: a
   * change of authority always has a time in which both count.
   */
  trust(authorities: readonly string[]): Promise<void>
  /** Address of the operator listener this host joined at. */
  readonly joinUrl: string
}

const issuedCertificate = joinReply.pick({ chain: true, authorities: true })
export type IssuedCertificate = z.infer<typeof issuedCertificate>

const identityFile = z.strictObject({
  schema: z.literal('sluice-identity/1'),
  joinUrl: z.url({ protocol: /^https$/ }),
  ...joinReply.shape,
})
type IdentityFile = z.infer<typeof identityFile>

const replyBytesMax = 64 * 1024
const keyName = 'identity-key.pem'
const identityName = 'identity.json'

/**
 * Joins this host to a control plane. The key is made here and stays here; the token is sent only
 * over a connection verified against the authority the token itself names.
 *
 * @param options.token From `decodeToken('join', …)`; its secret is good for one host.
 * @param options.stateDir Made with mode 0700 if it is not there.
 * @param options.name What operators will call this host; default: the host's own name there.
 * @throws SluiceError `request.conflict` when this host has joined before, `join.refused`,
 * `join.wrong_authority`, `control_plane.unreachable`.
 */
export async function join(options: {
  stateDir: string
  token: TokenContent
  name?: string
}): Promise<RenewableIdentity> {
  const { stateDir, token } = options
  if (!token.url.startsWith('https:'))
    throw new SluiceError('join.refused', 'the token names an address without TLS', {
      hint: 'Make it on a control plane whose operator listener speaks https.',
    })
  await mkdir(stateDir, { recursive: true, mode: 0o700 })
  if (await readIdentityFile(stateDir))
    throw new SluiceError('request.conflict', `${stateDir} belongs to an agent that has joined`, {
      hint: 'Use another state directory, or move this one away first: it holds what this agent still owes.',
    })
  // A key left by a try that was cut short is used again: the token may be spent for it.
  const privateKey = (await readKey(stateDir)) ?? (await makeKey(stateDir))
  const csr = await requestFor(privateKey, 'new agent')
  const body: JoinRequest = {
    token: token.secret,
    csr: csr.toString('base64'),
    ...nameOf(options.name),
  }
  const answer = await post({
    url: new URL('/v1/join', token.url),
    authorities: [pemOf(token.ca)],
    body,
  })
  const parsed = joinReply.safeParse(answer)
  if (!parsed.success)
    throw new SluiceError(
      'join.refused',
      'the control plane answers in a shape this agent does not know',
      {
        hint: 'Upgrade the older of the two.',
        cause: parsed.error,
      },
    )
  if (!parsed.data.authorities.includes(token.ca))
    throw new SluiceError(
      'join.wrong_authority',
      'the authority of the token is not among those in use',
    )
  checkIssued(parsed.data, privateKey)
  const file: IdentityFile = {
    schema: 'sluice-identity/1',
    joinUrl: token.url,
    ...parsed.data,
  }
  await writeDurably(path.join(stateDir, identityName), Buffer.from(JSON.stringify(file, null, 2)))
  return openIdentity(stateDir)
}

function nameOf(name: string | undefined): { name?: string } {
  return name === undefined ? {} : { name }
}

/**
 * Opens the identity of a host that has joined.
 *
 * @throws SluiceError `identity.missing`, or `host.unsafe_file` for a damaged or readable one.
 */
export async function openIdentity(stateDir: string): Promise<RenewableIdentity> {
  let file = await readIdentityFile(stateDir)
  const privateKey = await readKey(stateDir)
  if (!file || !privateKey)
    throw new SluiceError('identity.missing', 'this host has not joined a control plane', {
      hint: 'Run `sluice-agent join --token-file FILE` with a token from `sluice tokens join`.',
    })
  let present: IdentityFile = file
  let leaf = leafOf(present)
  let generation = 1
  let last: Promise<void> = Promise.resolve()
  const publicKey = createPublicKey(privateKey)
  const keyPem = Buffer.from(privateKey.export({ format: 'pem', type: 'pkcs8' }))
  file = undefined
  return {
    agentId: present.agentId,
    role: present.role,
    site: present.site,
    labels: present.labels,
    agentUrl: present.agentUrl,
    joinUrl: present.joinUrl,
    privateKey,
    publicKey,
    keyId: keyIdOf(publicKey),
    certificate: () => leaf.raw,
    notAfterMs: () => leaf.validToDate.getTime(),
    renewAtMs() {
      const [from, to] = [leaf.validFromDate.getTime(), leaf.validToDate.getTime()]
      return from + Math.floor(((to - from) * 2) / 3)
    },
    authorities: () => present.authorities.map(pemOf),
    tlsOptions: () => ({
      key: keyPem,
      cert: present.chain.map(pemOf).join(''),
      ca: present.authorities.map(pemOf),
    }),
    generation: () => generation,
    makeRequest: () => requestFor(privateKey, present.agentId),
    async replace(issued) {
      checkIssued(issued, privateKey)
      const { chain, authorities } = issued
      await write(() => ({ ...present, chain, authorities }))
    },
    async trust(authorities) {
      await write(() => {
        checkOverlap(authorities, present.authorities)
        return { ...present, authorities: [...authorities] }
      })
    },
  }

  /** One after the other: a renewal and a change of authorities may come at the same time. */
  function write(change: () => IdentityFile): Promise<void> {
    const mine = last.then(() => replaceFile(change))
    last = mine.catch(() => {})
    return mine
  }

  async function replaceFile(change: () => IdentityFile): Promise<void> {
    const changed = change()
    const text = JSON.stringify(changed, null, 2)
    await writeDurably(path.join(stateDir, identityName), Buffer.from(text))
    present = changed
    leaf = leafOf(changed)
    generation += 1
  }
}

function checkOverlap(next: readonly string[], present: readonly string[]): void {
  const refused = (why: string, cause?: unknown) =>
    new SluiceError('join.wrong_authority', `the new authorities are refused: ${why}`, { cause })
  for (const der of next) {
    let authority: X509Certificate
    try {
      authority = new X509Certificate(Buffer.from(der, 'base64'))
    } catch (cause) {
      throw refused('one cannot be read', cause)
    }
    if (!authority.ca) throw refused('one is no authority')
  }
  if (!next.some((der) => present.includes(der)))
    throw refused('none of those trusted so far is among them')
}

/**
 * Keeps the certificate of a running agent fresh until `signal` aborts: over the link, or, when it
 * has expired while the control plane was away, at the operator listener, where the request's own
 * signature proves the key.
 */
export async function keepCertificateFresh(options: {
  identity: RenewableIdentity
  link: Pick<ControlLink, 'request' | 'reconnect'>
  signal: AbortSignal
  events: { certificateRenewed(notAfterMs: number): void; renewalFailed(error: SluiceError): void }
  /** Told when the control plane gives no certificate because this agent is revoked. */
  revoked?: () => void
  now?: () => number
}): Promise<void> {
  const { identity, link, signal, events } = options
  const now = options.now ?? Date.now
  const waiting = { signal, ref: false }
  try {
    for (let attempt = 0; ;) {
      await sleep(Math.max(0, identity.renewAtMs() - now()), undefined, waiting)
      try {
        await renewOnce(identity, link, signal, now())
        attempt = 0
        events.certificateRenewed(identity.notAfterMs())
        link.reconnect()
      } catch (error) {
        if (signal.aborted) return
        if (!isSluiceError(error)) throw error
        events.renewalFailed(error)
        if (error.code === 'identity.revoked') options.revoked?.()
        const waitMs = backoffMs(attempt, { minMs: 5000, maxMs: 10 * 60_000 }, Math.random())
        attempt += 1
        await sleep(waitMs, undefined, waiting)
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error
  }
}

async function renewOnce(
  identity: RenewableIdentity,
  link: Pick<ControlLink, 'request'>,
  signal: AbortSignal,
  nowMs: number,
): Promise<void> {
  const csr = (await identity.makeRequest()).toString('base64')
  if (identity.notAfterMs() > nowMs) {
    const untilExpiry = AbortSignal.timeout(Math.min(identity.notAfterMs() - nowMs, 2 ** 31 - 1))
    try {
      const reply = await link.request(
        'certificate.renew',
        { csr },
        { signal: AbortSignal.any([signal, untilExpiry]) },
      )
      return await identity.replace(reply.body)
    } catch (error) {
      if (signal.aborted || !untilExpiry.aborted) throw error
    }
  }
  const answer = await post({
    url: new URL('/v1/renew', identity.joinUrl),
    authorities: identity.authorities(),
    body: { csr },
  })
  const issued = issuedCertificate.safeParse(answer)
  if (!issued.success) throw new SluiceError('join.refused', 'the answer holds no certificate')
  await identity.replace(issued.data)
}

async function readIdentityFile(stateDir: string): Promise<IdentityFile | undefined> {
  const file = path.join(stateDir, identityName)
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
  try {
    return identityFile.parse(JSON.parse(text))
  } catch (cause) {
    throw new SluiceError('host.unsafe_file', `${file} is damaged`, {
      hint: 'Restore it; or move the state directory away and join again as a new agent.',
      cause,
    })
  }
}

async function readKey(stateDir: string): Promise<KeyObject | undefined> {
  const file = path.join(stateDir, keyName)
  try {
    using secret = await readSecretFile(file, 4096)
    return createPrivateKey(secret.bytes)
  } catch (error) {
    if (isSluiceError(error) && isMissing(error.cause)) return undefined
    if (isSluiceError(error)) throw error
    throw new SluiceError('host.unsafe_file', `${file} holds no private key`, { cause: error })
  }
}

async function makeKey(stateDir: string): Promise<KeyObject> {
  const { privateKey } = generateKeyPairSync('ed25519')
  const pem = Buffer.from(privateKey.export({ format: 'pem', type: 'pkcs8' }))
  try {
    await writeDurably(path.join(stateDir, keyName), pem)
  } finally {
    pem.fill(0)
  }
  return privateKey
}

async function requestFor(privateKey: KeyObject, name: string): Promise<Buffer> {
  const keys = {
    privateKey: privateKey.toCryptoKey('Ed25519', false, ['sign']),
    publicKey: createPublicKey(privateKey).toCryptoKey('Ed25519', true, ['verify']),
  }
  const csr = await Pkcs10CertificateRequestGenerator.create({
    name: [{ CN: [name] }],
    keys,
    signingAlgorithm: { name: 'Ed25519' },
  })
  return Buffer.from(csr.rawData)
}

function leafOf(issued: IssuedCertificate): X509Certificate {
  return new X509Certificate(Buffer.from(issued.chain[0]!, 'base64'))
}

/** The new certificate is for our key, and one of the authorities it came with has signed it. */
function checkIssued(issued: IssuedCertificate, privateKey: KeyObject): void {
  const refused = (why: string, cause?: unknown) =>
    new SluiceError('join.refused', `the certificate from the control plane ${why}`, { cause })
  let certificates: X509Certificate[]
  try {
    const all = [...issued.chain, ...issued.authorities]
    certificates = all.map((der) => new X509Certificate(Buffer.from(der, 'base64')))
  } catch (cause) {
    throw refused('cannot be read', cause)
  }
  const leaf = certificates[0]!
  if (!leaf.checkPrivateKey(privateKey)) throw refused('is not for the key of this host')
  const issuers = certificates.slice(1)
  const fromAuthority = issuers.some(
    (issuer) => leaf.checkIssued(issuer) && leaf.verify(issuer.publicKey),
  )
  if (!fromAuthority) throw refused('is not from its authority')
}

/** DER in base64 as PEM. */
function pemOf(der: string): string {
  return new X509Certificate(Buffer.from(der, 'base64')).toString()
}

async function post(options: { url: URL; authorities: string[]; body: object }): Promise<unknown> {
  await using dispatcher = disposable(
    new Agent({
      connect: {
        ca: options.authorities,
        minVersion: 'TLSv1.3',
        ecdhCurve: keyExchangeGroups,
        timeout: limits.requestTimeoutMs,
      },
    }),
  )
  let status: number
  let text = ''
  try {
    const answer = await request(options.url, {
      dispatcher: dispatcher.agent,
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(options.body),
      headersTimeout: limits.requestTimeoutMs,
      bodyTimeout: limits.requestTimeoutMs,
    })
    status = answer.statusCode
    for await (const chunk of answer.body.setEncoding('utf8')) {
      text += String(chunk)
      if (text.length > replyBytesMax) break
    }
  } catch (cause) {
    throw connectFailure(options.url, cause)
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    // No JSON of ours: the status tells all there is to tell.
    value = undefined
  }
  if (status >= 200 && status < 300) return value
  const document = z
    .object({ code: z.string(), detail: z.string().max(500), hint: z.string().max(500) })
    .partial()
  const said = document.safeParse(value).data
  const code = said?.code === 'identity.revoked' ? said.code : 'join.refused'
  throw new SluiceError(code, said?.detail ?? `the control plane answers ${status}`, {
    retry: status >= 500 || status === 429 ? 'later' : 'never',
    hint: said?.hint ?? 'Ask for a new token: one is good for one host and a short time.',
  })
}

function disposable(agent: Agent): AsyncDisposable & { agent: Agent } {
  return { agent, [Symbol.asyncDispose]: () => agent.close() }
}

function connectFailure(url: URL, cause: unknown): SluiceError {
  const code = cause instanceof Error && 'code' in cause ? String(cause.code) : 'failed'
  if (/CERT|ISSUER|SIGNATURE|ALTNAME|CHAIN/.test(code))
    return new SluiceError(
      'join.wrong_authority',
      `${url.host} is not the control plane of this token`,
      {
        hint: `Its certificate is not from the authority in the token (${code}). Nothing was sent.`,
        cause,
      },
    )
  return new SluiceError('control_plane.unreachable', `${url.host} cannot be reached: ${code}`, {
    retry: 'later',
    hint: 'Check the address in the token, the network and whether the control plane runs.',
    cause,
  })
}
