/** A whole Sluice on loopback: real processes with their real protocol, each of which can crash and come back. */

import { randomUUID } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'

import type { LocalRequest } from '@sluice/agent/local-socket'
import { askAgent } from '@sluice/agent/local-socket'
import { ownScript } from '@sluice/agent/sandbox'
import { decodeToken } from '@sluice/protocol/api'
import type { Role, TokenContent } from '@sluice/protocol/api'
import { Agent, request } from 'undici'

import { makeDaemon, waitFor } from './fleet-daemon.ts'
import type { Daemon } from './fleet-daemon.ts'
import { startProgram } from './processes.ts'
import type { ProgramEnd } from './processes.ts'
import type { S3Server } from './s3-server.ts'
import { makeTemporaryDirectory } from './temporary-directory.ts'

const root = dirname(dirname(dirname(import.meta.dirname)))
const sluice = join(root, 'control-plane/src/cli/main.ts')
const sluiceAgent = join(root, 'agent/src/cli/main.ts')
const exampleAnalyser = join(root, 'agent/src/analysers/example.ts')

/** Where every agent of a fleet is, unless it is said otherwise. */
export const fleetSite = 'demo'

export type FleetOptions = {
  /** Shown in the folder's name. */
  name: string
  /** Settings of the control plane beside the ones it needs to run here. */
  controlPlane?: Record<string, unknown>
  /** Environment of every process beside `PATH`, `HOME` and `TMPDIR`. */
  env?: NodeJS.ProcessEnv
  /** Where its folder is made, such as a disk of the test's own; the default is the system's place. */
  parent?: string
}

export type ProgramResult = ProgramEnd & { stdout: string; stderr: string }

export type ControlPlane = Daemon & {
  readonly dataDirectory: string
  /** Known after the first start, and kept over restarts. */
  readonly operatorUrl: string
  readonly agentUrl: string
}

export type FleetAgent = Daemon & {
  readonly role: 'capture' | 'gpu'
  /** Known once it has joined. */
  readonly id: string
  readonly stateDirectory: string
  readonly resultsDirectory: string
  readonly configFile: string
  /** Runs `sluice-agent` with this agent's configuration, to its end. */
  command(args: readonly string[]): Promise<ProgramResult>
  /** Asks the running agent over its own socket, as `sluice-agent` does. @returns Its answer's lines. */
  ask(asked: LocalRequest): Promise<unknown[]>
}

export type Fleet = AsyncDisposable & {
  /** Holds everything a process of the fleet ever writes, temporary files included. */
  readonly root: string
  readonly controlPlane: ControlPlane
  readonly agents: readonly FleetAgent[]
  /** Joins with a fresh token; the agent is not started. */
  addAgent(options: {
    name: string
    role: 'capture' | 'gpu'
    site?: string
    /** Settings beside the ones it needs to run here. */
    config?: Record<string, unknown>
  }): Promise<FleetAgent>
  /** Path of a file with an API token of a principal with that one role. */
  tokenFile(role: Role): Promise<string>
  /**
   * Calls the operator's API.
   *
   * @param path As `/v1/jobs`.
   * @param options.role Whose token is shown; default `operator`.
   * @param options.body Sent as a POST when given.
   */
  call(
    path: string,
    options?: { role?: Role; body?: unknown },
  ): Promise<{ status: number; body: unknown; text: string }>
  /** As `call`, for answers that must be good. @throws Error with the problem document otherwise. */
  ask(path: string, options?: { role?: Role; body?: unknown }): Promise<unknown>
  /** The job as the API shows it, once it is in one of these states. */
  waitForState(jobId: string, states: readonly string[], timeoutMs?: number): Promise<JobView>
  /**
   * Runs `sluice` to its end, with a context file of this fleet.
   *
   * @param person Whose context it is; each has one of their own.
   */
  command(args: readonly string[], person?: string): Promise<ProgramResult>
  /** The environment and the interpreter, for those who start programs of the checkout themselves. */
  readonly env: NodeJS.ProcessEnv
}

/** What the API says about a job; the fields that tests look at. */
export type JobView = { id: string; state: string } & Record<string, unknown>

/**
 * Makes the folders of a fleet and starts its control plane.
 *
 * Everything lies below one new folder, and is gone after disposal together with every process.
 */
export async function startFleet(options: FleetOptions): Promise<Fleet> {
  await using cleanup = new AsyncDisposableStack()
  const folder = cleanup.use(await makeTemporaryDirectory(options.name, options.parent))
  const env = await makeEnvironment(folder.path, options.env)
  const controlPlane = await prepareControlPlane(folder.path, env, options.controlPlane)
  const connections = new Map<string, Agent>()
  cleanup.defer(async () => {
    for (const connection of connections.values()) await connection.destroy()
  })
  cleanup.use(controlPlane)
  await controlPlane.start()
  const owned = cleanup.move()
  const agents: FleetAgent[] = []
  const tokens = new Map<Role, Promise<string>>()

  const run = (args: readonly string[], more: NodeJS.ProcessEnv = {}): Promise<ProgramResult> =>
    runToEnd([sluice, ...args], { ...env, ...more })

  async function makeToken(role: Role): Promise<string> {
    const file = join(folder.path, 'tokens', `${role}.token`)
    const { dataDirectory } = controlPlane
    const right = ['--principal', `demo-${role}`, '--role', role, '--site', '*']
    await mustRun(run, ['tokens', 'create', ...right, '--data-dir', dataDirectory, '--out', file])
    return file
  }
  function tokenFile(role: Role): Promise<string> {
    const known = tokens.get(role)
    if (known !== undefined) return known
    const made = makeToken(role)
    tokens.set(role, made)
    return made
  }

  function connectionTo(token: TokenContent): Agent {
    const known = connections.get(token.ca)
    if (known !== undefined) return known
    const made = new Agent({ connect: { ca: pemOf(token.ca), minVersion: 'TLSv1.3' } })
    connections.set(token.ca, made)
    return made
  }

  const call: Fleet['call'] = async (path, { role = 'operator', body } = {}) => {
    const token = decodeToken('token', await readFile(await tokenFile(role), 'utf8'))
    const answer = await request(new URL(path, controlPlane.operatorUrl), {
      method: body === undefined ? 'GET' : 'POST',
      dispatcher: connectionTo(token),
      headers: {
        authorization: `Bearer ${token.secret}`,
        ...(body === undefined
          ? {}
          : { 'content-type': 'application/json', 'idempotency-key': randomUUID() }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    const text = await answer.body.text()
    return { status: answer.statusCode, text, body: text === '' ? undefined : JSON.parse(text) }
  }

  const ask: Fleet['ask'] = async (path, more) => {
    const { status, body, text } = await call(path, more)
    if (status < 300) return body
    throw new Error(`${path} answered ${status}: ${text}`)
  }

  const addAgent: Fleet['addAgent'] = async ({ name, role, site = fleetSite, config = {} }) => {
    const reply = await ask('/v1/join-tokens', { body: { role, site, name } })
    const joinFile = join(folder.path, 'tokens', `${name}.join`)
    await writeFile(joinFile, `${(reply as { token: string }).token}\n`, { mode: 0o600 })
    const agent = await prepareAgent({ name, role, folder: folder.path, env, config })
    const joined = await agent.command(['join', '--token-file', joinFile])
    requireSuccess(`sluice-agent join of ${name}`, joined)
    agents.push(owned.use(agent))
    return agent
  }

  const waitForState: Fleet['waitForState'] = async (jobId, states, timeoutMs = 30_000) => {
    let last = 'nothing yet'
    const ended = ['failed', 'refused', 'lost', 'deleted', 'deleted-unconfirmed']
    return await waitFor(`job ${jobId} to be ${states.join(' or ')}`, timeoutMs, async () => {
      const { status, body, text } = await call(`/v1/jobs/${jobId}`)
      last = text
      const view = body as JobView
      if (status === 200 && states.includes(view.state)) return view
      if (status === 200 && ended.includes(view.state))
        throw new Error(`job ${jobId} will not be ${states.join(' or ')}: ${last}`)
      return undefined
    })
  }

  async function command(args: readonly string[], person?: string): Promise<ProgramResult> {
    const name = person === undefined ? 'context.json' : `${person}.context.json`
    const context = join(folder.path, 'home', name)
    return await run(args, { SLUICE_CONTEXT: context })
  }

  return {
    root: folder.path,
    env,
    controlPlane,
    agents,
    addAgent,
    tokenFile,
    call,
    ask,
    waitForState,
    command,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** `HOME` and `TMPDIR` lie in the fleet's folder: whatever a process leaves there is found by a scan. */
async function makeEnvironment(folder: string, more: NodeJS.ProcessEnv = {}) {
  for (const name of ['home', 'tmp', 'tokens'])
    await mkdir(join(folder, name), { mode: 0o700, recursive: true })
  return {
    PATH: `${dirname(process.execPath)}:${process.env['PATH'] ?? '/usr/bin:/bin'}`,
    HOME: join(folder, 'home'),
    TMPDIR: join(folder, 'tmp'),
    LANG: 'C.UTF-8',
    // As `bin/sluice` does: a control plane starts in 0.5 s of processor time instead of 1.8.
    NODE_COMPILE_CACHE: join(root, 'node_modules/.cache/compiled'),
    ...more,
  }
}

async function prepareControlPlane(
  folder: string,
  env: NodeJS.ProcessEnv,
  settings: Record<string, unknown> = {},
): Promise<ControlPlane> {
  const dataDirectory = join(folder, 'control-plane')
  const configFile = join(folder, 'control-plane.json')
  await writeFile(configFile, JSON.stringify(settings), { mode: 0o600 })
  // Agents know the ports they joined at: after a restart they must be the same.
  let agentUrl: string | undefined
  let operatorUrl: string | undefined
  const portOf = (url: string | undefined) => (url === undefined ? '0' : new URL(url).port)
  const daemon = makeDaemon({
    name: 'control plane',
    options: () => ({
      command: process.execPath,
      args: [
        ...[sluice, 'serve', '--config', configFile],
        ...['--data-dir', dataDirectory, '--public-name', 'localhost'],
        ...['--agent-port', portOf(agentUrl), '--operator-port', portOf(operatorUrl)],
      ],
      env,
    }),
    async isReady(program) {
      const line = await program.waitForJson(({ event }) => event === 'control-plane.started')
      agentUrl = String(line['agentUrl'])
      operatorUrl = String(line['operatorUrl'])
    },
  })
  const known = (url: string | undefined): string => {
    if (url === undefined) throw new Error('the control plane was never started')
    return url
  }
  return Object.defineProperties(daemon as ControlPlane, {
    dataDirectory: { value: dataDirectory },
    agentUrl: { get: () => known(agentUrl) },
    operatorUrl: { get: () => known(operatorUrl) },
  })
}

async function prepareAgent(parts: {
  name: string
  role: 'capture' | 'gpu'
  folder: string
  env: NodeJS.ProcessEnv
  config: Record<string, unknown>
}): Promise<FleetAgent> {
  const { name, role, env } = parts
  const stateDirectory = join(parts.folder, name)
  const resultsDirectory = join(parts.folder, `${name}-results`)
  const configFile = join(parts.folder, `${name}.json`)
  await mkdir(stateDirectory, { mode: 0o700 })
  await mkdir(resultsDirectory, { mode: 0o700 })
  const config = {
    stateDir: stateDirectory,
    ...(role === 'capture' ? { resultsDir: resultsDirectory } : { analysers: [exampleConfig()] }),
    ...parts.config,
  }
  await writeFile(configFile, JSON.stringify(config, undefined, 2), { mode: 0o600 })
  let id: string | undefined
  const daemon = makeDaemon({
    name,
    options: () => ({
      command: process.execPath,
      args: [sluiceAgent, 'run', '--config', configFile],
      env,
    }),
    async isReady(program) {
      await program.waitForJson(({ event }) => event === 'link.connected')
    },
  })
  const extra = {
    role,
    stateDirectory,
    resultsDirectory,
    configFile,
    async command(args: readonly string[]): Promise<ProgramResult> {
      const [verb = '', ...rest] = args
      const result = await runToEnd([sluiceAgent, verb, '--config', configFile, ...rest], env)
      if (verb === 'join' && result.code === 0) id = idIn(result.stdout)
      return result
    },
    async ask(asked: LocalRequest): Promise<unknown[]> {
      const lines: unknown[] = []
      await askAgent(join(stateDirectory, 'agent.sock'), asked, (line) => void lines.push(line))
      return lines
    },
  }
  return Object.defineProperties(Object.assign(daemon, extra) as FleetAgent, {
    id: {
      get() {
        if (id === undefined) throw new Error(`${name} has not joined`)
        return id
      },
    },
  })
}

/**
 * Settings for a fleet whose objects lie in a bucket of a real S3.
 *
 * @param server Made by `startS3Server`; the bucket must exist.
 */
export function s3Settings(
  server: Pick<S3Server, 'endpoint' | 'region' | 'caFile' | 'credentialsFile'>,
  bucket: string,
): { controlPlane: Record<string, unknown>; agent: Record<string, unknown> } {
  const { endpoint, region, caFile, credentialsFile } = server
  const storage = { kind: 's3', endpoint, region, bucket, caFile, credentialsFile }
  return { controlPlane: { storage }, agent: { storageCaFile: caFile } }
}

/** The analyser that ships with the agent, as an operator would write it into the configuration. */
export function exampleConfig(): Record<string, unknown> {
  const { program, args, visible } = ownScript(pathToFileURL(exampleAnalyser))
  return { name: 'example', version: '1', command: [program, ...args], input: 'stdin', visible }
}

function idIn(text: string): string {
  const [id] = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/.exec(text) ?? []
  if (id === undefined) throw new Error(`no agent id in: ${text}`)
  return id
}

async function runToEnd(args: readonly string[], env: NodeJS.ProcessEnv): Promise<ProgramResult> {
  await using program = await startProgram({ command: process.execPath, args, env })
  const end = await program.ended
  return { ...end, stdout: program.stdout, stderr: program.stderr }
}

async function mustRun(
  run: (args: readonly string[]) => Promise<ProgramResult>,
  args: readonly string[],
): Promise<void> {
  requireSuccess(`sluice ${args.join(' ')}`, await run(args))
}

/** @throws Error with what the program said, unless it ended with 0. */
export function requireSuccess(what: string, result: ProgramResult): void {
  if (result.code === 0) return
  throw new Error(
    `${what} ended with ${result.signal ?? result.code}:\n${result.stderr}${result.stdout}`,
  )
}

function pemOf(base64: string): string {
  const lines = base64.match(/.{1,64}/g) ?? []
  return ['-----BEGIN CERTIFICATE-----', ...lines, '-----END CERTIFICATE-----', ''].join('\n')
}
