/** The two listeners: operators with tokens, agents with certificates; nobody passes unchecked. */
import { createHash, randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import http, { type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import https from 'node:https'
import { type AddressInfo, connect } from 'node:net'
import type { Duplex } from 'node:stream'
import type { TLSSocket, TlsOptions } from 'node:tls'
import { getRequestListener, type HttpBindings } from '@hono/node-server'
import { Hono } from 'hono'
import type { ProblemDocument, StatusReply } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId, TokenId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { admitAgent, type AdmittedAgent } from './access/agent-gate.ts'
import type { Authority } from './access/authority.ts'
import { type AccessEnv, ruleOf } from './access/rules.ts'
import {
  forgetAnswer,
  rememberAnswer,
  type RememberedAnswer,
  rememberedAnswer,
} from './access/store.ts'
import { authenticate } from './access/tokens.ts'
import { bodyTooLarge, problemOf, readBytes } from './api-request.ts'
import type { Changes } from './changes.ts'
import type { Database } from './database/database.ts'
import { unlessDiskFails } from './database/write-failure.ts'
import type { Events } from './events.ts'
import { expectedFailure } from './fleet/problem.ts'

/** TLS 1.3 only; the hybrid key exchange first, so that recorded traffic stays closed later. */
const tls = {
  minVersion: 'TLSv1.3',
  maxVersion: 'TLSv1.3',
  ecdhCurve: 'X25519MLKEM768:X25519:P-256',
  ALPNProtocols: ['http/1.1'],
  handshakeTimeout: 10_000,
} as const satisfies TlsOptions

const bounds = {
  maxHeaderSize: 16 * 1024,
  headersTimeout: 15_000,
  keepAliveTimeout: 65_000,
  connectionsCheckingInterval: 5_000,
} as const
const operatorConnectionsMax = 1024
const agentConnectionsMax = 20_000
/** Operators send small documents; agents send parts, as long as a grant lasts. */
const operatorRequestMs = 30_000
const agentRequestMs = limits.uploadGrantMs
/** A server certificate is replaced well before its end, without a restart. */
const certificateCheckMs = 60 * 60 * 1000
/** No HTTP status: the request is worked on, or was when a process died. */
const begun = 0
const idempotencyKeepMs = 24 * 60 * 60 * 1000

export type OperatorDeps = {
  database: Database
  changes: Changes
  events: Events
  now: () => number
  /** Mounted behind the guard; each answers only what a row of the access table lets through. */
  routes: readonly Hono<AccessEnv>[]
}

/** The operator's API: bounds, guard, repeated requests, then the routes of the features. */
export function operatorApi(deps: OperatorDeps): Hono<AccessEnv> {
  const { database, now } = deps
  const api = new Hono<AccessEnv>()
  const lasting = lastingAnswers(deps.changes)

  api.onError((error, c) => {
    const expected = expectedFailure(error)
    if (!expected) deps.events.requestFailed(c.req.method, error)
    return problemResponse(problemOf(expected ?? error))
  })
  api.notFound(() => problemResponse(problemOf(notFound())))

  api.use(async (c, next) => {
    const rule = ruleOf(c.req.method, c.req.path)
    if (!rule) throw notFound()
    const { may } = rule
    let token: TokenId | undefined
    if (may !== 'public') {
      const header = c.req.header('authorization')
      const check = () => authenticate(deps, header, { ...rule, may })
      const access = await check()
      c.set('access', access)
      c.set('stillAllowed', async () => void (await check()))
      token = access.tokenId
    }
    if (Number(c.req.header('content-length') ?? 0) > limits.requestBodyBytesMax)
      throw bodyTooLarge()
    // A body may come much later than its head, and whoever sent both may be revoked by then.
    if (c.req.method === 'POST' && token !== undefined && c.req.raw.body !== null) {
      await readBytes(c.req.raw.clone())
      await c.get('stillAllowed')()
    }
    await next()
    c.header('cache-control', 'no-store')
    c.header('x-content-type-options', 'nosniff')
    const isStream = c.res.headers.get('content-type')?.startsWith('text/event-stream')
    if (isStream !== true || token === undefined) return
    lasting.add(token, (c.env as Partial<HttpBindings> | undefined)?.incoming?.socket)
    // Between the look at the token and this line it may have been revoked, and nobody was told.
    await c.get('stillAllowed')()
  })

  const running = new Set<string>()
  api.use(async (c, next) => {
    const key = c.req.header('idempotency-key')
    const access = c.get('access') as AccessEnv['Variables']['access'] | undefined
    if (c.req.method !== 'POST' || key === undefined || access === undefined) return await next()
    if (!/^[\x21-\x7e]{1,128}$/.test(key))
      throw new SluiceError('request.invalid', 'Idempotency-Key: 1 to 128 visible characters')
    const { principalId } = access
    const body = await readBytes(c.req.raw.clone())
    const requestSha256 = createHash('sha256')
      .update(`${c.req.method} ${c.req.path}\n`)
      .update(body)
      .digest()
    const place = `${principalId} ${key}`
    if (running.has(place))
      throw new SluiceError('request.conflict', 'the same request is still running', {
        retry: 'later',
      })
    // Before the look at what was answered: one that ends between look and begin would run twice.
    running.add(place)
    try {
      const known = await database.read((sql) => rememberedAnswer(sql, principalId, key))
      if (known) return answerAgain(known, requestSha256)
      const remember = (status: number, text: string) => {
        const createdAtMs = now()
        const answer = { principalId, key, requestSha256, status, body: text, createdAtMs }
        return database.write((tx) => rememberAnswer(tx, answer, now() - idempotencyKeepMs))
      }
      const secret = ruleOf('POST', c.req.path)?.secretAnswer === true
      // What answers with a secret makes something new each time. Everything else asks for a state,
      // and may be worked off again after a crash between its effect and its answer.
      if (secret) await remember(begun, '')
      await next()
      // What waits for a second person (202) has no secret yet.
      const shownOnce = secret && c.res.status !== 202
      // What is done is done, also where there is no room to remember that it was said.
      if (c.res.ok)
        await unlessDiskFails(remember(c.res.status, shownOnce ? '' : await c.res.clone().text()))
      else if (secret) await database.write((tx) => forgetAnswer(tx, principalId, key))
    } finally {
      running.delete(place)
    }
    return undefined
  })

  for (const routes of deps.routes) api.route('/', routes)
  return api
}

/**
 * Answers that last, by the token that asked for them. They end with it at once, also those whose
 * client reads nothing: its connection is cut.
 */
function lastingAnswers(changes: Changes) {
  const open = new Map<TokenId, Set<Duplex>>()
  changes.on('token', (token) => {
    for (const socket of open.get(token) ?? []) socket.destroy()
  })
  return {
    add(token: TokenId, socket: Duplex | undefined) {
      if (socket === undefined) return
      const sockets = open.get(token) ?? new Set()
      open.set(token, sockets)
      if (sockets.has(socket)) return
      sockets.add(socket)
      socket.once('close', () => {
        sockets.delete(socket)
        if (sockets.size === 0) open.delete(token)
      })
      if (socket.destroyed) sockets.delete(socket)
    },
  }
}

/** The answer a request got the first time; never its secret. */
function answerAgain(known: RememberedAnswer, requestSha256: Buffer): Response {
  if (!known.requestSha256.equals(requestSha256))
    throw new SluiceError('request.conflict', 'Idempotency-Key was used for another request')
  if (known.status === begun)
    throw new SluiceError('request.conflict', 'begun already and cut short; it may be done', {
      hint: 'Look for what it would make in the list, revoke that, and ask anew with another key.',
    })
  if (known.body === '')
    throw new SluiceError('request.conflict', 'done already; its secret was shown only once', {
      hint: 'Look for what was made in the list, revoke it, and ask anew with another key.',
    })
  return new Response(known.body, {
    status: known.status,
    headers: { 'content-type': 'application/json', 'idempotency-replayed': 'true' },
  })
}

function notFound(): SluiceError {
  return new SluiceError('request.not_found', 'no such route', {
    hint: 'GET /v1/openapi.json lists every route.',
  })
}

function problemResponse(problem: ProblemDocument): Response {
  const headers: Record<string, string> = { 'content-type': 'application/problem+json' }
  if (problem.status === 401) headers['www-authenticate'] = 'Bearer'
  return new Response(JSON.stringify(problem), { status: problem.status, headers })
}

// ---------------------------------------------------------------- operator listener

export type Listener = AsyncDisposable & {
  origin: string
  port: number
  /** After a change of authorities: shows a certificate of the new one, and trusts what counts now. */
  recertify(): Promise<void>
}

/**
 * Opens the operator listener.
 *
 * @param plain Plain HTTP; the caller has checked that the address is loopback.
 */
export async function openOperatorListener(options: {
  authority: Authority
  api: Hono<AccessEnv>
  names: readonly string[]
  name: string
  address: string
  port: number
  plain: boolean
}): Promise<Listener> {
  const answer = listenerOf(options.api)
  const shape = { ...bounds, requestTimeout: operatorRequestMs }
  const server = options.plain
    ? http.createServer(shape, answer)
    : https.createServer({ ...shape, ...tls, ...(await credentials(options)) }, answer)
  server.maxConnections = operatorConnectionsMax
  const renewal = server instanceof https.Server ? keepCertified(server, options) : undefined
  return await listening(server, {
    ...options,
    scheme: options.plain ? 'http' : 'https',
    recertify: async () => renewal?.recertify(),
    close: () => renewal?.[Symbol.dispose](),
  })
}

// ---------------------------------------------------------------- agent listener

export type AgentListener = Listener & {
  /**
   * Closes every connection of these agents at once, and forgets how to resume any session: each
   * agent's next connection is a whole handshake, and these are refused by the gate.
   */
  cutOff(agents: readonly AgentId[]): void
}

/**
 * Opens the agent listener: a client certificate of our own authority is required by TLS itself,
 * and who it belongs to is looked up at every connection and again at every request.
 */
export async function openAgentListener(options: {
  database: Database
  authority: Authority
  events: Events
  now: () => number
  names: readonly string[]
  name: string
  address: string
  port: number
  /** Takes `/v1/channel`. */
  attach: (request: IncomingMessage, socket: Duplex, head: Buffer, agent: AdmittedAgent) => void
  /** Takes `/v1/objects/…`, when objects live in a directory here. */
  objects?: (request: IncomingMessage, response: ServerResponse) => Promise<void>
}): Promise<AgentListener> {
  const { events } = options
  const sockets = new Map<AgentId, Set<Duplex>>()
  const away = new Set<AgentId>()

  function remember(agent: AgentId, socket: Duplex) {
    const open = sockets.get(agent) ?? new Set()
    sockets.set(agent, open)
    if (open.has(socket)) return
    open.add(socket)
    socket.once('close', () => {
      open.delete(socket)
      if (open.size === 0) sockets.delete(agent)
    })
  }

  async function admit(socket: TLSSocket): Promise<AdmittedAgent> {
    const agent = await admitAgent(options, socket)
    // It may have been cut off between the look at its row and here: whoever is stays so.
    if (away.has(agent.id)) {
      socket.destroy()
      throw new SluiceError('identity.revoked', 'this agent was revoked')
    }
    remember(agent.id, socket)
    return agent
  }

  const server = https.createServer(
    {
      ...bounds,
      requestTimeout: agentRequestMs,
      ...tls,
      ...(await credentials(options)),
      ca: options.authority.pem,
      requestCert: true,
      rejectUnauthorized: true,
    },
    (request, response) => {
      answerAgent(request, response).catch((error: unknown) => {
        if (!(error instanceof SluiceError)) events.requestFailed(request.method ?? '', error)
        answerProblem(response, problemOf(error))
      })
    },
  )
  server.maxConnections = agentConnectionsMax

  async function answerAgent(request: IncomingMessage, response: ServerResponse): Promise<void> {
    await admit(request.socket as TLSSocket)
    if (!options.objects || !request.url?.startsWith('/v1/objects/')) throw notFound()
    await options.objects(request, response)
  }

  server.on('secureConnection', (socket) => {
    admit(socket).catch((error: unknown) => {
      events.agentRefused(error)
      // The request that follows gets the reason; a connection without one ends by itself.
      if (!(error instanceof SluiceError)) socket.destroy()
    })
  })
  server.on('tlsClientError', (error, socket) => {
    events.agentRefused(error)
    socket.destroy()
  })
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    // Until the channel takes over, an error of the socket is nobody's but its own.
    const drop = () => void socket.destroy()
    socket.on('error', drop)
    upgrade(request, socket, head, drop).catch((error: unknown) => {
      if (!(error instanceof SluiceError)) events.requestFailed('UPGRADE', error)
      refuseUpgrade(socket, problemOf(error))
    })
  })

  async function upgrade(
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    drop: () => void,
  ): Promise<void> {
    const agent = await admit(request.socket as TLSSocket)
    if (request.url !== '/v1/channel') throw notFound()
    socket.off('error', drop)
    options.attach(request, socket, head, agent)
  }

  const renewal = keepCertified(server, options)
  const listener = await listening(server, {
    ...options,
    scheme: 'https',
    recertify: () => renewal.recertify(),
    close: () => renewal[Symbol.dispose](),
  })
  return {
    ...listener,
    cutOff(agents) {
      // 48 bytes, as tls.Server.setTicketKeys takes them.
      server.setTicketKeys(randomBytes(48))
      for (const agent of agents) {
        away.add(agent)
        for (const socket of sockets.get(agent) ?? []) socket.destroy()
      }
    },
  }
}

function answerProblem(response: ServerResponse, problem: ProblemDocument): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  response.writeHead(problem.status, {
    'content-type': 'application/problem+json',
    connection: 'close',
  })
  response.end(JSON.stringify(problem))
}

function refuseUpgrade(socket: Duplex, problem: ProblemDocument): void {
  const body = JSON.stringify(problem)
  socket.end(
    [
      `HTTP/1.1 ${problem.status} ${problem.title}`,
      'content-type: application/problem+json',
      `content-length: ${Buffer.byteLength(body)}`,
      'connection: close',
      '',
      body,
    ].join('\r\n'),
  )
}

// ---------------------------------------------------------------- admin socket

/** sun_path of Linux holds 108 bytes, with the zero at its end (unix(7)). */
const socketPathBytesMax = 107

/**
 * Refuses a second control plane on the same data directory.
 *
 * @throws SluiceError `request.conflict` when one answers on its admin socket.
 */
export async function refuseSecondInstance(path: string): Promise<void> {
  if (Buffer.byteLength(path) > socketPathBytesMax)
    throw new SluiceError('config.invalid', `${path}: too long for a Unix socket`, {
      hint: `Choose a data directory whose path has less than ${socketPathBytesMax - 10} bytes.`,
    })
  const answered = await new Promise<boolean>((resolve) => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
  if (answered)
    throw new SluiceError('request.conflict', 'a control plane runs on this data directory', {
      hint: 'End it first, or choose another --data-dir.',
    })
}

/** Opens the owner's Unix socket: whoever may enter the data directory reaches it, and nobody else. */
export async function openAdminSocket(path: string, app: Hono): Promise<AsyncDisposable> {
  // A socket left by a killed process answers nobody, and would be in the way.
  await rm(path, { force: true })
  const server = http.createServer(
    { ...bounds, requestTimeout: operatorRequestMs },
    listenerOf(app),
  )
  const umask = process.umask(0o177)
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(path, resolve)
    })
  } finally {
    process.umask(umask)
  }
  return {
    async [Symbol.asyncDispose]() {
      await closeServer(server)
      await rm(path, { force: true })
    },
  }
}

// ---------------------------------------------------------------- servers

/** Hono answers every failure itself, so nothing is left to wait for. */
function listenerOf(app: { fetch: Hono['fetch'] }) {
  const listen = getRequestListener(app.fetch, { overrideGlobalObjects: false })
  return (request: IncomingMessage, response: ServerResponse) => void listen(request, response)
}

async function credentials(options: { authority: Authority; names: readonly string[] }) {
  const { key, cert } = await options.authority.issueServer(options.names)
  return { key, cert }
}

type Certified = Disposable & {
  /** Takes a new certificate, and the authorities that are trusted now, at once. */
  recertify(): Promise<void>
}

function keepCertified(
  server: https.Server,
  options: { authority: Authority; names: readonly string[] },
): Certified {
  const renewEveryMs = limits.serverCertificateMs / 3
  let age = 0
  async function recertify(): Promise<void> {
    age = 0
    const fresh = await credentials(options)
    server.setSecureContext({ ...tls, ...fresh, ca: options.authority.pem })
  }
  const timer = setInterval(() => {
    age += certificateCheckMs
    if (age >= renewEveryMs) void recertify()
  }, certificateCheckMs)
  timer.unref()
  return { recertify, [Symbol.dispose]: () => clearInterval(timer) }
}

async function listening(
  server: Server | https.Server,
  options: {
    address: string
    port: number
    name: string
    scheme: string
    recertify: () => Promise<void>
    close: () => void
  },
): Promise<Listener> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) =>
      reject(
        new SluiceError('config.invalid', `cannot listen on port ${options.port}: ${cause.code}`, {
          hint: 'Choose another address or port, or end the program that holds this one.',
          cause,
        }),
      ),
    )
    server.listen(options.port, options.address, resolve)
  })
  const { port } = server.address() as AddressInfo
  const host = options.name.includes(':') ? `[${options.name}]` : options.name
  return {
    port,
    recertify: () => options.recertify(),
    origin: `${options.scheme}://${host}:${port}`,
    async [Symbol.asyncDispose]() {
      options.close()
      await closeServer(server)
    },
  }
}

async function closeServer(server: Server | https.Server): Promise<void> {
  const closed = new Promise<void>((resolve) => void server.close(() => resolve()))
  server.closeAllConnections()
  await closed
}

/** The routes that belong to no feature. */
export function systemRoutes(deps: {
  status: () => Promise<StatusReply>
  openApi: Record<string, unknown>
}): Hono<AccessEnv> {
  const routes = new Hono<AccessEnv>()
  routes.get('/healthz', (c) => c.json({ ok: true }))
  routes.get('/v1/openapi.json', (c) => c.json(deps.openApi))
  routes.get('/v1/status', async (c) => c.json(await deps.status()))
  return routes
}
