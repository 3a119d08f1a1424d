/**
 * Runs one task of a Sluice checkout on any Node >= 20: it installs what the task needs first, says so in
 * one line, and then gives the task the pinned runtime, the arguments and the terminal unchanged.
 *
 *   node installers/setup.mjs TASK [ARGUMENT ...]
 *
 * It depends on nothing but Node itself, because it runs before anything is installed. Everything it says
 * goes to standard error: standard output belongs to the task.
 */

import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join, relative, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const modules = join(root, 'node_modules')
const packages = ['protocol', 'agent', 'control-plane', 'test']

/** pnpm is not a dependency: npx fetches exactly this one, and the lockfile decides all the rest. */
const pnpmVersion = '12.21.0'

/** Everything starts the runtime by this one link; the lockfile pins what it leads to. */
const runtime = join(modules, '.bin', 'node')
const runtimePackage = `node-linux-${process.arch}`
const pinnedRuntime = join(modules, runtimePackage, 'bin', 'node')

/**
 * Stands in where the pinned runtime lacks a library that only root can install: it needs no more than Node 20
 * does. The digests are those of the npm registry for this very version.
 */
const spareVersion = '24.21.0'
const spareIntegrity = {
  x64: 'sha512-3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==',
  arm64:
    'sha512-FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==',
}
const spareFolder = join(modules, '.sluice-runtime')

/** Holds the digest of what was installed, so that a second run starts at once. */
const stampFile = join(modules, '.sluice-setup')

/** Remember what could not be had, so that not every run waits for it again. */
const aptFailedFile = join(modules, '.sluice-setup-apt-failed')
const downloadFailedFile = join(modules, '.sluice-setup-download-failed')
const retryMs = 24 * 60 * 60 * 1000
const downloadMsMax = 5 * 60 * 1000

/** The decoders use options that older versions lack. */
const ffmpegVersionMin = [5, 1]

/** A test that takes longer hangs; exhaustive ones have their own task and their own bound. */
const testTimeoutMs = 120_000
const longTestTimeoutMs = 3_600_000

/**
 * What each task is: `media` tasks want ffmpeg, `here: true` tasks take file names relative to where the
 * caller stands, the others always run in the root of the checkout.
 */
const tasks = {
  setup: { about: 'install what all tasks need, and nothing more', media: true },
  demo: { about: 'one job from capture to deletion, with real processes', media: true, here: true },
  // A test file that failed may never end by itself. Forcing it to end would drop results that are
  // still on their way (seen: 141 of 1153), so the whole run has a bound instead.
  test: { about: 'all tests but the exhaustive ones', media: true, msMax: 20 * 60_000 },
  'test:long': { about: 'the exhaustive tests', media: true, msMax: 4 * 3_600_000 },
  bench: {
    about: 'speed and memory beside openssl, age, rclone and restic',
    media: true,
    here: true,
  },
  check: { about: 'format, lint, types, dead code, boundaries' },
  format: { about: 'rewrite all sources in the one format' },
  sluice: { about: 'the control plane and its command line', here: true },
  'sluice-agent': { about: 'the agent and its command line', here: true },
}

const mains = {
  demo: 'test/src/demo/main.ts',
  bench: 'test/src/bench/main.ts',
  sluice: 'control-plane/src/cli/main.ts',
  'sluice-agent': 'agent/src/cli/main.ts',
}

function say(line) {
  process.stderr.write(`setup: ${line}\n`)
}

/** Ends with one line of what is wrong and one of what to do. */
function refuse(line, hint, code = 1) {
  say(line)
  say(`  ${hint}`)
  process.exit(code)
}

function usage() {
  const rows = Object.entries(tasks).map(([name, task]) => `  ${name.padEnd(14)}${task.about}`)
  return ['usage: node installers/setup.mjs TASK [ARGUMENT ...]', '', ...rows, ''].join('\n')
}

function checkHost() {
  const [major] = process.versions.node.split('.').map(Number)
  if (major < 20) {
    refuse(
      `Node ${process.versions.node} is too old`,
      'install Node 20 or newer and run the command again',
    )
  }
  if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch)) {
    refuse(
      `Sluice does not run on ${process.platform} ${process.arch}`,
      'use Linux on x64 or arm64: a virtual machine or a container will do',
    )
  }
}

/** The digest of everything that decides what gets installed. */
function installDigest() {
  const digest = createHash('sha256').update(`${process.platform} ${process.arch}\0`)
  const files = ['pnpm-lock.yaml', 'pnpm-workspace.yaml', 'package.json']
  for (const file of [...files, ...packages.map((name) => join(name, 'package.json'))]) {
    digest.update(`${file}\0`).update(readFileSync(join(root, file)))
  }
  return digest.digest('hex')
}

function readOrNothing(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : ''
}

function isProgram(file) {
  try {
    accessSync(file, constants.X_OK)
    return statSync(file).isFile()
  } catch {
    return false
  }
}

function findInPath(program) {
  const folders = (process.env.PATH ?? '').split(':').filter((folder) => folder !== '')
  return folders.map((folder) => join(folder, program)).find((file) => isProgram(file))
}

function tail(text, lines = 20) {
  return text.trimEnd().split('\n').slice(-lines).join('\n')
}

/**
 * Two first runs at once would install into one folder. The loser waits until the winner is done or dead.
 * The lock stands beside node_modules, which the installer may empty.
 */
function lockInstall() {
  const lock = join(root, '.sluice-setup.lock')
  const deadlineAtMs = Date.now() + 15 * 60 * 1000
  for (;;) {
    try {
      writeFileSync(lock, String(process.pid), { flag: 'wx' })
      const unlock = () => rmSync(lock, { force: true })
      // A refusal ends the process on the spot.
      process.once('exit', unlock)
      return unlock
    } catch (error) {
      if (error.code === 'EACCES' || error.code === 'EROFS') {
        refuse(`cannot write to ${root}`, 'run the command as the owner of the checkout')
      }
      if (error.code !== 'EEXIST') throw error
    }
    const holder = Number(readOrNothing(lock))
    if (holder > 0 && !existsSync(`/proc/${holder}`)) rmSync(lock, { force: true })
    if (Date.now() > deadlineAtMs)
      refuse('another setup does not end', `remove ${lock} if none is running`)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
  }
}

/**
 * Lets a program of npm's run on the host's own Node: `npm run` puts our runtime first in PATH, and that one
 * may be what is about to be replaced.
 */
function runNpm(program, args, more = {}) {
  const folders = (process.env.PATH ?? '').split(':')
  const PATH = folders.filter((folder) => folder !== dirname(runtime)).join(':')
  return spawnSync(program, args, {
    cwd: root,
    env: { ...process.env, PATH, ...more },
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: 64 * 1024 * 1024,
  })
}

function installPackages() {
  const digest = installDigest()
  const installed = () => readOrNothing(stampFile) === digest && isProgram(runtime)
  if (installed()) return
  const unlock = lockInstall()
  try {
    if (installed()) return
    say(`installing the locked packages with pnpm ${pnpmVersion} (once; a few seconds)`)
    rmSync(stampFile, { force: true })
    const pnpm = ['--yes', `pnpm@${pnpmVersion}`, 'install', '--frozen-lockfile']
    // pnpm asks before it replaces an older node_modules, and nobody may be there to answer.
    // The one part that is compiled, and may be absent, is compiled for the pinned runtime: its headers
    // come with it, while node-gyp would fetch them from a place that may be out of reach.
    const headers = { npm_config_nodedir: dirname(dirname(pinnedRuntime)) }
    const run = runNpm('npx', [...pnpm, '--config.confirmModulesPurge=false'], headers)
    if (run.error?.code === 'ENOENT') {
      refuse('npx is missing', 'install npm (it brings npx) and run the command again')
    }
    if (run.status !== 0) {
      process.stderr.write(`${tail(`${run.stdout}${run.stderr}`)}\n`)
      refuse(
        'the packages could not be installed',
        'check the network and the npm registry setting (npm config get registry)',
      )
    }
    if (!isProgram(pinnedRuntime)) {
      refuse(
        `the pinned runtime ${runtimePackage} was not installed`,
        'allow optional dependencies (npm config get omit) and run the command again',
      )
    }
    provideRuntime()
    writeFileSync(stampFile, digest)
  } finally {
    unlock()
  }
}

function startPinnedRuntime() {
  return spawnSync(pinnedRuntime, ['--version'], { encoding: 'utf8', timeout: 20_000 })
}

/** Makes the runtime start: small systems lack the one library that it needs and Node 20 does not. */
function provideRuntime() {
  const lacksLibrary = (run) => run.status !== 0 && run.stderr.includes('libatomic.so.1')
  let run = startPinnedRuntime()
  // npm looks for its own Node there first: a link that does not start would end every later run.
  if (run.status !== 0) rmSync(runtime, { force: true })
  if (lacksLibrary(run) && aptMayHelp()) {
    say('installing libatomic1 with apt-get (SLUICE_SETUP_APT=0 forbids it)')
    aptInstall(['libatomic1'])
    run = startPinnedRuntime()
  }
  if (run.status === 0) linkRuntime(pinnedRuntime)
  else if (lacksLibrary(run)) linkRuntime(fetchSpareRuntime())
  else {
    process.stderr.write(`${tail(run.stderr, 5)}\n`)
    refuse('the pinned runtime does not start', 'remove node_modules and run the command again')
  }
}

function linkRuntime(program) {
  const link = `${runtime}.${process.pid}`
  mkdirSync(dirname(runtime), { recursive: true })
  rmSync(link, { force: true })
  symlinkSync(relative(dirname(runtime), program), link)
  renameSync(link, runtime)
}

/** Lets npm fetch the spare runtime and compare it with its digest; gives the path of the program. */
function fetchSpareRuntime() {
  say(`libatomic.so.1 is missing, so Node ${spareVersion} stands in for the pinned runtime`)
  say('  on Debian or Ubuntu: apt-get install libatomic1, and the next run takes the pinned one')
  const dependencies = { [runtimePackage]: spareVersion }
  const locked = { version: spareVersion, integrity: spareIntegrity[process.arch] }
  const lock = {
    lockfileVersion: 3,
    packages: { '': { dependencies }, [`node_modules/${runtimePackage}`]: locked },
  }
  mkdirSync(spareFolder, { recursive: true })
  writeFileSync(join(spareFolder, 'package.json'), JSON.stringify({ private: true, dependencies }))
  writeFileSync(join(spareFolder, 'package-lock.json'), JSON.stringify(lock))
  const args = ['ci', '--prefix', spareFolder, '--ignore-scripts', '--no-audit', '--no-fund']
  const run = runNpm('npm', args)
  const program = join(spareFolder, 'node_modules', runtimePackage, 'bin', 'node')
  if (run.status !== 0 || !isProgram(program)) {
    process.stderr.write(`${tail(`${run.stdout ?? ''}${run.stderr ?? ''}`, 5)}\n`)
    refuse(
      `Node ${spareVersion} could not be fetched`,
      'on Debian or Ubuntu: apt-get install libatomic1, and run the command again',
    )
  }
  return program
}

/** Goes back to the pinned runtime once somebody has installed its library. */
function leaveSpareRuntime() {
  if (!isProgram(pinnedRuntime) || realpathSync(runtime) === realpathSync(pinnedRuntime)) return
  if (startPinnedRuntime().status === 0) linkRuntime(pinnedRuntime)
}

/** Whether the agent will take it: a build without a version number has no age that could be told. */
function ffmpegIsNewEnough(program) {
  const run = spawnSync(program, ['-version'], { encoding: 'utf8', timeout: 20_000 })
  if (run.status !== 0) return false
  const version = /^ffmpeg version n?(\d+)\.(\d+)/.exec(run.stdout)
  if (version === null) return false
  const [major, minor] = [Number(version[1]), Number(version[2])]
  return (
    major > ffmpegVersionMin[0] || (major === ffmpegVersionMin[0] && minor >= ffmpegVersionMin[1])
  )
}

function hasFfmpeg() {
  const system = findInPath('ffmpeg')
  if (system !== undefined && ffmpegIsNewEnough(system)) return true
  return isProgram(join(modules, 'ffmpeg-static', 'ffmpeg'))
}

function aptMayHelp() {
  if (process.env.SLUICE_SETUP_APT === '0' || process.getuid() !== 0) return false
  const release = readOrNothing('/etc/os-release')
  if (!/^ID(_LIKE)?=.*\b(debian|ubuntu)\b/m.test(release)) return false
  return findInPath('apt-get') !== undefined
}

function aptInstall(names) {
  const apt = (...args) =>
    spawnSync('apt-get', ['-o', 'DPkg::Lock::Timeout=300', '-qq', ...args], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    })
  const install = () => apt('install', '--yes', '--no-install-recommends', ...names)
  let run = install()
  if (run.status !== 0) {
    // A fresh machine has no package lists yet.
    apt('update')
    run = install()
  }
  if (run.status === 0) return true
  process.stderr.write(`${tail(`${run.stdout ?? ''}${run.stderr ?? ''}`, 5)}\n`)
  return false
}

function failedLately(file) {
  return Date.now() - Number(readOrNothing(file)) < retryMs
}

function remember(file, succeeded) {
  if (succeeded) rmSync(file, { force: true })
  else writeFileSync(file, String(Date.now()))
}

/** Gets the decoders where that is possible, each from the first place that has it. */
function fetchDecoders(wanted) {
  if (aptMayHelp() && !failedLately(aptFailedFile)) {
    const names = wanted()
    say(`installing ${names.join(' and ')} with apt-get (SLUICE_SETUP_APT=0 forbids it)`)
    remember(aptFailedFile, aptInstall(names))
  }
  // The last resort: what the optional package fetches from the releases of its maintainers.
  const installer = join(modules, 'ffmpeg-static', 'install.js')
  if (hasFfmpeg() || failedLately(downloadFailedFile) || !existsSync(installer)) return
  say('downloading ffmpeg with the package ffmpeg-static (once; some 80 MB)')
  spawnSync(runtime, [installer], { stdio: 'ignore', timeout: downloadMsMax })
  remember(downloadFailedFile, hasFfmpeg())
}

/** Looks for the decoders. What is missing is said, and no failure. */
function provideDecoders() {
  const wanted = () => [
    ...(hasFfmpeg() ? [] : ['ffmpeg']),
    ...(findInPath('bwrap') === undefined ? ['bubblewrap'] : []),
  ]
  if (wanted().length === 0) return
  const unlock = lockInstall()
  try {
    if (wanted().length > 0) fetchDecoders(wanted)
  } finally {
    unlock()
  }
  const missing = wanted()
  const get = (name) => `on Debian or Ubuntu: apt-get install ${name}`
  if (missing.includes('ffmpeg')) {
    const minimum = ffmpegVersionMin.join('.')
    say(
      `no ffmpeg >= ${minimum}: images and uncompressed WAV work, films and other sound are refused`,
    )
    say(`  ${get('ffmpeg')}`)
  }
  if (missing.includes('bubblewrap')) {
    say(
      'no bubblewrap: decoders and analysers run without isolation, where that is allowed by name',
    )
    say(`  ${get('bubblewrap')}`)
  }
}

/** All test files; the exhaustive ones are named `*.long.test.ts`. */
function testFiles(long) {
  return packages
    .flatMap((name) =>
      readdirSync(join(root, name, 'src'), { recursive: true, withFileTypes: true }),
    )
    .filter((entry) => entry.isFile() && entry.name.endsWith('.test.ts'))
    .filter((entry) => entry.name.endsWith('.long.test.ts') === long)
    .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name)))
    .toSorted((a, b) => (a < b ? -1 : 1))
}

/** Arguments for the test runner. A file among `args` replaces the whole list. */
function testArguments(args, long) {
  const named = args.some((arg) => arg.endsWith('.ts'))
  const files = named ? [] : testFiles(long)
  // Without a file, the runner would look for tests by itself and find all of them.
  if (!named && files.length === 0)
    refuse('there is no such test yet', 'npm test runs all others', 0)
  const timeoutMs = long ? longTestTimeoutMs : testTimeoutMs
  // Two at a time: many tests start processes of their own.
  const bounds = ['--test-concurrency=4', `--test-timeout=${timeoutMs}`]
  return ['--test', ...bounds, ...args, ...files]
}

/** The commands of a task, in order; all run even if one fails, so that one run shows everything. */
function commandsOf(task, args) {
  const bin = (name) => join(modules, '.bin', name)
  switch (task) {
    case 'setup':
      return []
    case 'test':
      return [[runtime, ...testArguments(args, false)]]
    case 'test:long':
      return [[runtime, ...testArguments(args, true)]]
    case 'check':
      return [
        [bin('oxfmt'), '--check', '.'],
        [bin('oxlint')],
        [bin('tsc'), '--noEmit'],
        [bin('knip')],
        [
          runtime,
          '--test',
          ...testFiles(false).filter((file) => file.includes(`${sep}repository${sep}`)),
        ],
      ]
    case 'format':
      return [[bin('oxfmt'), ...(args.length > 0 ? args : ['.'])]]
    default:
      return [[runtime, join(root, mains[task]), ...args]]
  }
}

/** Where the caller stands: npm runs scripts in the root and keeps the real place in INIT_CWD. */
function callerFolder() {
  const given = process.env.INIT_CWD
  const byScript = process.env.npm_lifecycle_event !== undefined && process.cwd() === root
  return byScript && given !== undefined && existsSync(given) ? given : process.cwd()
}

/** Runs one command with our terminal; gives its exit code, or ends as it did when a signal ended it. */
function runCommand([program, ...args], cwd) {
  return new Promise((resolve) => {
    const env = {
      ...process.env,
      PATH: `${join(modules, '.bin')}:${process.env.PATH ?? ''}`,
      // As in `bin/`: whatever starts a process of ours starts it twice as fast.
      NODE_COMPILE_CACHE: join(modules, '.cache', 'compiled'),
    }
    const child = spawn(program, args, { cwd, env, stdio: 'inherit', timeout: tasks[task].msMax })
    // A terminal sends ^C to the child by itself: sent twice, it would read as "stop at once".
    const onTerminal = process.stdin.isTTY === true
    const forward = (signal) => {
      if (signal !== 'SIGINT' || !onTerminal) child.kill(signal)
    }
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP']
    for (const signal of signals) process.on(signal, forward)
    child.on('error', (error) =>
      refuse(`cannot start ${program}: ${error.message}`, 'remove node_modules and try again'),
    )
    child.on('exit', (code, signal) => {
      for (const name of signals) process.off(name, forward)
      if (signal !== null) process.kill(process.pid, signal)
      resolve(code ?? 1)
    })
  })
}

const [task, ...args] = process.argv.slice(2)
if (task === undefined || !Object.hasOwn(tasks, task)) {
  process.stderr.write(usage())
  process.exit(task === '--help' ? 0 : 2)
}

checkHost()
const cwd = tasks[task].here === true ? callerFolder() : root
installPackages()
leaveSpareRuntime()
if (tasks[task].media === true) provideDecoders()

const commands = commandsOf(task, args)
const failed = []
for (const command of commands) {
  const name = command[0] === runtime ? 'tests' : relative(join(modules, '.bin'), command[0])
  if (task === 'check') say(`checking: ${name}`)
  const code = await runCommand(command, cwd)
  if (code !== 0) failed.push({ name, code })
}
if (task === 'check')
  say(
    failed.length === 0
      ? 'all checks passed'
      : `failed: ${failed.map((one) => one.name).join(', ')}`,
  )
process.exitCode = failed[0]?.code ?? 0
