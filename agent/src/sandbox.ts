/** The only door to decoders and analysers: no environment, no network, no files but their input, and every resource bounded. */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { existsSync, lstatSync, readdirSync, readlinkSync, realpathSync } from 'node:fs'
import path from 'node:path'
import { Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { SluiceError } from '@sluice/protocol/errors'
import type { IsolationLevel, SystemCalls } from '@sluice/protocol/manifest'
import { inheritsFilter, systemCallFilter } from './system-calls.ts'
import { groupHasRunning, isRunning, killNow, startOf, treeUse } from './process-tree.ts'

/** Bounds of one sandboxed program and everything it starts. */
export type SandboxBounds = {
  /** Killed when it runs longer, by the monotonic clock. */
  wallMs: number
  /** Resident memory of the whole tree, looked at every 50 ms. */
  memoryBytes: number
  /** Standard output beyond this kills it. */
  outputBytesMax: number
  /** CPU seconds of each process; default: the wall time on four cores. */
  cpuSeconds?: number
  /** Processes and threads under bubblewrap; default 64. */
  processesMax?: number
  /** RLIMIT_AS of each process; leave it out for Node, whose reservations exceed any sane value. */
  addressSpaceBytes?: number
}

export type SandboxRequest = {
  isolation: IsolationLevel
  /** Absolute path of the program. */
  program: string
  /** `at(name)` is where the program finds the input of that name. */
  args: (at: (name: string) => string) => readonly string[]
  bounds: SandboxBounds
  /** Files or folders the program reads, by name; seen read-only, and under bubblewrap at `/input/NAME`. */
  inputs?: Readonly<Record<string, string>>
  /** Further host paths (runtime, application) seen read-only at their own place. */
  visible?: readonly string[]
  /** Device nodes that an analyser needs, such as `/dev/nvidia0`. */
  devices?: readonly string[]
  /** What the program reads from standard input; nothing when left out. */
  stdin?: Uint8Array | AsyncIterable<Uint8Array>
  /** Open descriptors the program gets as 3, 4, …; readable as `/proc/self/fd/N` too. */
  descriptors?: readonly number[]
  /** Adds a pipe as the next descriptor whose last 64 KiB are kept. */
  report?: boolean
  /** Kills the program when aborted. */
  signal?: AbortSignal
}

/** `abandoned`: killed because whoever consumed its output stopped reading. */
export type SandboxOutcome =
  | 'ok'
  | 'failed'
  | 'timeout'
  | 'memory'
  | 'processes'
  | 'output'
  | 'aborted'
  | 'abandoned'

/** How a sandboxed program ended. Standard error is counted and dropped: it can quote a medium. */
export type SandboxExit = {
  outcome: SandboxOutcome
  /** Exit code; 128 + N under bubblewrap when signal N ended the program. */
  code: number | null
  signal: NodeJS.Signals | null
  stdoutBytes: number
  stderrBytes: number
  /** Highest resident memory of the tree that was seen. */
  peakBytes: number
  elapsedMs: number
  /** The tail of the report pipe, empty without one. */
  report: Buffer
  /** Whether every process of the sandbox was seen to be gone. */
  dead: boolean
}

const reportBytesMax = 64 * 1024

const watchMs = 50
const processesMaxDefault = 64
/** bubblewrap's own processes, outside and inside, with room for what is ending as it is counted. */
const ownTasksMax = 8
/** A killed tree is gone within milliseconds; a process stuck in the kernel can take longer. */
const deathMs = 10_000

/**
 * Decides how children are isolated on this host.
 *
 * @param wanted `none` only because a configuration or a person named it.
 * @throws SluiceError `sandbox.missing` when bubblewrap is wanted and does not work here.
 */
export async function detectIsolation(
  wanted: IsolationLevel = 'bubblewrap',
): Promise<IsolationLevel> {
  requireProgram('prlimit')
  requireProgram('setpriv')
  if (wanted === 'none') return 'none'
  requireProgram('bwrap')
  const { exit } = await runInSandbox(
    {
      isolation: 'bubblewrap',
      program: requireProgram('true'),
      args: () => [],
      bounds: { wallMs: 10_000, memoryBytes: 256 * 1024 ** 2, outputBytesMax: 0 },
    },
    discardOutput,
  )
  if (exit.outcome === 'ok') return 'bubblewrap'
  throw new SluiceError('sandbox.missing', 'bubblewrap is installed but cannot build a sandbox', {
    hint: 'Allow unprivileged user namespaces, or set "isolation": "none" by name to run without.',
  })
}

/** Whether what runs at this level reaches only the system calls it needs; for status and manifest. */
export function systemCallsAt(isolation: IsolationLevel): SystemCalls {
  if (isolation === 'bubblewrap' && systemCallFilter() !== undefined) return 'filtered'
  return inheritsFilter() ? 'inherited' : 'any'
}

/**
 * Runs one program to its end and gives its standard output to `consume` as it comes. When a bound
 * is hit the output just ends, and `exit.outcome` says why: look at it before using the value.
 * Resolves after every process of the tree is gone (see `exit.dead`).
 *
 * @throws Whatever `consume` or the stdin source throws, after the tree was killed.
 * @throws SluiceError `sandbox.missing` when a needed program is not installed.
 */
export async function runInSandbox<T>(
  request: SandboxRequest,
  consume: (output: AsyncIterable<Buffer>) => Promise<T>,
): Promise<{ exit: SandboxExit; value: T }> {
  const run = startTree(request)
  const { child } = run
  const killers = [
    watchClock(run, request.bounds.wallMs),
    watchTree(run, request.bounds),
    watchSignal(run, request.signal),
  ]
  const startedAt = performance.now()
  try {
    const [value] = await endAllOnFailure(run, [
      consume(boundedOutput(run, request.bounds.outputBytesMax)),
      feed(child, request.stdin),
      countStderr(run),
      collectReport(run),
    ])
    const { code, signal } = await run.closed
    for (const stop of killers) stop()
    const dead = await waitUntilDead(run)
    const outcome = run.killedFor ?? (code === 0 ? 'ok' : 'failed')
    const { stdoutBytes, stderrBytes, peakBytes, report } = run
    const elapsedMs = Math.round(performance.now() - startedAt)
    const counts = { stdoutBytes, stderrBytes, peakBytes, elapsedMs }
    return { exit: { outcome, code, signal, ...counts, report, dead }, value }
  } finally {
    for (const stop of killers) stop()
  }
}

/** Reads all output into one buffer; its size is bounded by `outputBytesMax`. */
export async function collectOutput(output: AsyncIterable<Buffer>): Promise<Buffer> {
  const pieces: Buffer[] = []
  for await (const piece of output) pieces.push(piece)
  return Buffer.concat(pieces)
}

/** Reads the output to its end and keeps nothing. */
export async function discardOutput(output: AsyncIterable<Buffer>): Promise<void> {
  for await (const piece of output) assert.ok(piece.length > 0)
}

/**
 * How to run a script of this application inside the sandbox: the running Node, the script, and the
 * folders they are loaded from (sources and packages, nothing else of the installation). Compiled code of
 * our own sources is read where this process has it from: a picture decoder starts 0.1 s faster.
 */
export function ownScript(script: URL): { program: string; args: string[]; visible: string[] } {
  const file = realpathSync(fileURLToPath(script))
  const program = realpathSync(process.execPath)
  const visible = [program, path.dirname(file)]
  for (let folder = path.dirname(file); folder !== path.dirname(folder);) {
    const modules = path.join(folder, 'node_modules')
    if (existsSync(modules)) visible.push(modules, ...siblingPackages(modules))
    const manifest = path.join(folder, 'package.json')
    if (existsSync(manifest)) visible.push(manifest)
    folder = path.dirname(folder)
  }
  const args = ['--disable-warning=ExperimentalWarning', file]
  const compiled = process.env['NODE_COMPILE_CACHE']
  if (compiled === undefined || !existsSync(compiled)) return { program, args, visible }
  return {
    program,
    args: ['--import', readCompiled(compiled), ...args],
    visible: [...visible, compiled],
  }
}

/** A module that does what `NODE_COMPILE_CACHE` does: the sandbox has no environment. */
function readCompiled(folder: string): string {
  const source = `import { enableCompileCache } from 'node:module'; enableCompileCache(${JSON.stringify(folder)})`
  return `data:text/javascript,${encodeURIComponent(source)}`
}

/** Where the workspace's own packages really lie: in a checkout they are links to their sources. */
function siblingPackages(modules: string): string[] {
  const scope = path.join(modules, '@sluice')
  if (!existsSync(scope)) return []
  return readdirSync(scope).map((name) => realpathSync(path.join(scope, name)))
}

/** The URL of a script beside the caller's module, with the caller's own extension (`.ts` or `.js`). */
export function siblingScript(moduleUrl: string, name: string): URL {
  return new URL(`./${name}${path.extname(new URL(moduleUrl).pathname)}`, moduleUrl)
}

type Tree = {
  isolation: IsolationLevel
  child: ChildProcess
  closed: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  reportPipe: Readable | undefined
  /** The first process inside bubblewrap, as the host counts, and when it began. */
  inner: { pid: number; startedAt: string } | undefined
  killedFor: Exclude<SandboxOutcome, 'ok' | 'failed'> | undefined
  stdoutBytes: number
  stderrBytes: number
  peakBytes: number
  report: Buffer
}

function startTree(request: SandboxRequest): Tree {
  const { isolation, descriptors = [] } = request
  const extra: ('pipe' | number)[] = [...descriptors]
  if (request.report === true) extra.push('pipe')
  const reportAt = request.report === true ? 2 + extra.length : undefined
  if (isolation === 'bubblewrap') extra.push('pipe')
  const infoAt = isolation === 'bubblewrap' ? 2 + extra.length : undefined
  const filter = isolation === 'bubblewrap' ? systemCallFilter() : undefined
  if (filter !== undefined) extra.push('pipe')
  const filterAt = filter === undefined ? undefined : 2 + extra.length
  const [command, ...args] =
    infoAt === undefined ? plainCommand(request) : bubblewrapCommand(request, { infoAt, filterAt })
  assert.ok(command)
  const child = spawn(command, args, {
    env: {},
    cwd: '/',
    // A process group of its own, so that the whole tree can be killed.
    detached: true,
    stdio: [request.stdin === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe', ...extra],
  })
  const run: Tree = {
    isolation,
    child,
    closed: closing(child),
    reportPipe: reportAt === undefined ? undefined : pipeAt(child, reportAt),
    inner: undefined,
    killedFor: undefined,
    stdoutBytes: 0,
    stderrBytes: 0,
    peakBytes: 0,
    report: Buffer.alloc(0),
  }
  if (infoAt !== undefined) readInnerPid(run, pipeAt(child, infoAt))
  if (filterAt !== undefined) giveFilter(child, filterAt, filter)
  // Whoever outlives the program itself would keep its pipes open.
  child.once('exit', () => killTree(run))
  return run
}

function closing(child: ChildProcess): Tree['closed'] {
  const { promise, resolve, reject } = Promise.withResolvers<Awaited<Tree['closed']>>()
  child.once('error', reject)
  child.once('close', (code, signal) => resolve({ code, signal }))
  // Whoever awaits it later still sees the failure.
  promise.catch(() => undefined)
  return promise
}

function pipeAt(child: ChildProcess, at: number): Readable {
  const pipe = child.stdio[at]
  assert.ok(pipe instanceof Readable)
  return pipe
}

/** Without its filter whole, bubblewrap starts nothing. */
function giveFilter(child: ChildProcess, at: number, filter: Buffer | undefined): void {
  const pipe = child.stdio[at]
  assert.ok(pipe instanceof Writable)
  // A child that could not start tells why itself.
  pipe.on('error', () => undefined)
  pipe.end(filter)
}

function resourceLimits(request: SandboxRequest): string[] {
  const { bounds, isolation } = request
  const cpuSeconds = bounds.cpuSeconds ?? Math.ceil((bounds.wallMs / 1000) * 4)
  const args = [
    requireProgram('prlimit'),
    '--core=0',
    '--nofile=256',
    // No file is ever written; pipes are not files.
    '--fsize=0',
    `--cpu=${cpuSeconds}`,
    // A hard stop in the kernel beside the watch on resident memory. V8 reserves more than half a
    // gibibyte that it never touches, and libraries map what they use in part: hence the margin.
    `--data=${bounds.memoryBytes + 1.5 * 1024 ** 3}`,
  ]
  if (bounds.addressSpaceBytes !== undefined) args.push(`--as=${bounds.addressSpaceBytes}`)
  // Counted per user: outside a namespace of its own it would count the whole account.
  if (isolation === 'bubblewrap') args.push(`--nproc=${bounds.processesMax ?? processesMaxDefault}`)
  return args
}

function plainCommand(request: SandboxRequest): string[] {
  const inputs = new Map(Object.entries(request.inputs ?? {}))
  const at = (name: string) => {
    const file = inputs.get(name)
    assert.ok(file !== undefined)
    return path.resolve(file)
  }
  const prefix = [requireProgram('setpriv'), '--no-new-privs', '--pdeathsig', 'KILL']
  return [...prefix, ...resourceLimits(request), request.program, ...request.args(at)]
}

function bubblewrapCommand(
  request: SandboxRequest,
  descriptors: { infoAt: number; filterAt: number | undefined },
): string[] {
  const bubblewrap = requireProgram('bwrap')
  const args = [bubblewrap, ...bubblewrapFlags, ...forbidNesting(bubblewrap)]
  for (const folder of systemFolders) args.push(...bindSystemFolder(folder))
  for (const host of outermost((request.visible ?? []).map((file) => realpathSync(file)))) {
    args.push('--ro-bind', host, host)
  }
  for (const [name, file] of Object.entries(request.inputs ?? {})) {
    assert.match(name, /^[0-9A-Za-z][0-9A-Za-z._-]*$/)
    args.push('--ro-bind', path.resolve(file), `/input/${name}`)
  }
  args.push('--proc', '/proc', '--dev', '/dev')
  for (const device of request.devices ?? []) args.push('--dev-bind', device, device)
  args.push('--remount-ro', '/dev', '--remount-ro', '/', '--chdir', '/')
  const { infoAt, filterAt } = descriptors
  if (filterAt !== undefined) args.push('--seccomp', String(filterAt))
  args.push('--info-fd', String(infoAt), '--')
  return [
    ...args,
    ...resourceLimits(request),
    request.program,
    ...request.args((name) => `/input/${name}`),
  ]
}

const bubblewrapFlags = [
  '--unshare-all',
  // By name as well: `--unshare-all` only tries it.
  '--unshare-user',
  '--die-with-parent',
  '--new-session',
  '--cap-drop',
  'ALL',
  '--clearenv',
]

let nestingFlags: readonly string[] | undefined

/** Forbids namespaces inside the sandbox where bubblewrap can: since 0.8. */
function forbidNesting(bubblewrap: string): readonly string[] {
  nestingFlags ??= spawnSync(bubblewrap, ['--help'], { env: {} }).stdout.includes(
    '--disable-userns',
  )
    ? ['--disable-userns']
    : []
  return nestingFlags
}

/** What dynamic programs need; the last two are where Debian's loader and BLAS are found. */
const systemFolders = [
  '/usr',
  '/bin',
  '/sbin',
  '/lib',
  '/lib32',
  '/lib64',
  '/libx32',
  '/etc/ld.so.cache',
  '/etc/alternatives',
]

function bindSystemFolder(folder: string): string[] {
  if (!existsSync(folder)) return []
  if (lstatSync(folder).isSymbolicLink()) return ['--symlink', readlinkSync(folder), folder]
  return ['--ro-bind', folder, folder]
}

/** Leaves out what lies inside another one of the paths or inside what is always seen. */
function outermost(paths: readonly string[]): string[] {
  const inside = (file: string, folder: string) => file.startsWith(`${folder}/`)
  return [...new Set(paths)].filter(
    (file) => !inside(file, '/usr') && !paths.some((folder) => inside(file, folder)),
  )
}

/**
 * Where a program of the system lies: in the system's own folders, never in the caller's PATH.
 *
 * @throws SluiceError `sandbox.missing` when it is not installed.
 */
export function requireProgram(name: string): string {
  for (const folder of ['/usr/bin', '/bin', '/usr/sbin', '/sbin', '/usr/local/bin']) {
    const file = path.join(folder, name)
    if (existsSync(file)) return file
  }
  const packageName = name === 'bwrap' ? 'bubblewrap' : 'util-linux'
  const orElse =
    name === 'bwrap' ? ', or allow none by name: "isolation": "none", --isolation none' : ''
  throw new SluiceError('sandbox.missing', `${name} is not installed, so no decoder can be run`, {
    hint: `Install the package ${packageName}${orElse}.`,
  })
}

function readInnerPid(run: Tree, pipe: Readable): void {
  let text = ''
  pipe.setEncoding('utf8')
  // bubblewrap writes this before it starts the program, which never gets this descriptor's end.
  pipe.on('data', (piece: string) => {
    if (text.length > 4096) return
    text += piece
    const pid = /"child-pid": *(\d+)/.exec(text)?.[1]
    if (pid !== undefined) run.inner ??= { pid: Number(pid), startedAt: startOf(Number(pid)) }
  })
  pipe.on('error', () => killTree(run))
}

async function* boundedOutput(run: Tree, outputBytesMax: number): AsyncGenerator<Buffer> {
  const { stdout } = run.child
  assert.ok(stdout)
  let finished = false
  try {
    for await (const piece of stdout) {
      assert.ok(Buffer.isBuffer(piece))
      run.stdoutBytes += piece.length
      if (run.stdoutBytes > outputBytesMax) {
        kill(run, 'output')
        break
      }
      yield piece
    }
    finished = true
  } finally {
    // A consumer that stops early has no use for the rest.
    if (!finished) kill(run, 'abandoned')
  }
}

async function feed(child: ChildProcess, source: SandboxRequest['stdin']): Promise<void> {
  if (source === undefined) return
  const { stdin } = child
  assert.ok(stdin)
  const pieces = source instanceof Uint8Array ? [source] : source
  try {
    await pipeline(Readable.from(pieces, { objectMode: true }), stdin)
  } catch (error) {
    // A program may end before it has read everything; its exit code then tells.
    if (!isClosedPipe(error)) throw error
  }
}

function isClosedPipe(error: unknown): boolean {
  if (!(error instanceof Error) || !('code' in error)) return false
  return ['EPIPE', 'ECONNRESET', 'ECANCELED', 'ERR_STREAM_PREMATURE_CLOSE'].includes(
    String(error.code),
  )
}

async function countStderr(run: Tree): Promise<void> {
  const { stderr } = run.child
  assert.ok(stderr)
  for await (const piece of stderr) {
    assert.ok(Buffer.isBuffer(piece))
    run.stderrBytes += piece.length
  }
}

async function collectReport(run: Tree): Promise<void> {
  if (run.reportPipe === undefined) return
  for await (const piece of run.reportPipe) {
    assert.ok(Buffer.isBuffer(piece))
    run.report = Buffer.concat([run.report, piece]).subarray(-reportBytesMax)
  }
}

/** Waits for all; when one fails, kills the tree, waits for the others, and throws the first failure. */
async function endAllOnFailure<T>(
  run: Tree,
  duties: readonly [Promise<T>, ...Promise<void>[]],
): Promise<[T]> {
  try {
    const [value] = await Promise.all(duties)
    return [value]
  } catch (error) {
    killTree(run)
    await Promise.allSettled([...duties, run.closed])
    await waitUntilDead(run)
    throw error
  }
}

function watchClock(run: Tree, wallMs: number): () => void {
  const timer = setTimeout(() => kill(run, 'timeout'), wallMs)
  return () => clearTimeout(timer)
}

function watchSignal(run: Tree, signal: AbortSignal | undefined): () => void {
  if (signal === undefined) return () => undefined
  const abort = () => kill(run, 'aborted')
  if (signal.aborted) abort()
  signal.addEventListener('abort', abort, { once: true })
  return () => signal.removeEventListener('abort', abort)
}

function watchTree(run: Tree, bounds: SandboxBounds): () => void {
  const { memoryBytes, processesMax = processesMaxDefault } = bounds
  // The kernel stops an ordinary user first. It lets root have as many as it wants.
  const tasksMax = run.isolation === 'bubblewrap' ? processesMax + ownTasksMax : Infinity
  const timer = setInterval(() => {
    if (run.child.pid === undefined) return
    const { bytes, tasks } = treeUse(run.child.pid, tasksMax)
    run.peakBytes = Math.max(run.peakBytes, bytes)
    if (tasks > tasksMax) kill(run, 'processes')
    else if (bytes > memoryBytes) kill(run, 'memory')
  }, watchMs)
  return () => clearInterval(timer)
}

function kill(run: Tree, reason: NonNullable<Tree['killedFor']>): void {
  run.killedFor ??= reason
  killTree(run)
}

function killTree(run: Tree): void {
  const { pid } = run.child
  if (pid === undefined) return
  killNow(-pid)
  // bubblewrap's first process is init of its own process namespace: with it, all inside end.
  if (innerIsRunning(run) && run.inner !== undefined) killNow(run.inner.pid)
}

async function waitUntilDead(run: Tree): Promise<boolean> {
  const deadline = performance.now() + deathMs
  while (isAlive(run)) {
    if (performance.now() > deadline) return false
    killTree(run)
    await sleep(2)
  }
  return true
}

function isAlive(run: Tree): boolean {
  const { pid } = run.child
  if (pid === undefined) return false
  if (innerIsRunning(run)) return true
  // Without bubblewrap the group stands for the tree.
  return run.isolation === 'none' && groupHasRunning(pid)
}

/** Its start time tells the process from a later one that was given the same number. */
function innerIsRunning({ inner }: Tree): boolean {
  return inner !== undefined && startOf(inner.pid) === inner.startedAt && isRunning(inner.pid)
}
