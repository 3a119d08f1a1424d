/** Proves how a task starts on a fresh machine, in a checkout and with a registry of the test's own. */

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, it } from 'node:test'

import { repositoryRoot } from '../repository/source-tree.ts'
import { startProgram } from '../tools/processes.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'

const node = process.execPath

const runtimePackage = `node-linux-${process.arch}`

/** Stands in for npx: notes that it was called, and links the runtime as the real packages do. */
const fakeNpx = `#!${node}
const { appendFileSync, mkdirSync, readFileSync, symlinkSync, rmSync, writeFileSync } = require('node:fs')
appendFileSync('npx-calls', process.argv.slice(2).join(' ') + '\\n')
if (process.env.FAKE_NPX_FAILS) { console.error('the registry said no'); process.exit(1) }
const program = 'node_modules/${runtimePackage}/bin/node'
mkdirSync('node_modules/${runtimePackage}/bin', { recursive: true })
mkdirSync('node_modules/.bin', { recursive: true })
for (const path of [program, 'node_modules/.bin/node']) rmSync(path, { force: true })
if (process.env.FAKE_RUNTIME) writeFileSync(program, process.env.FAKE_RUNTIME, { mode: 0o755 })
else symlinkSync(process.execPath, program)
symlinkSync('../${runtimePackage}/bin/node', 'node_modules/.bin/node')
`

/** Stands in for npm ci: keeps what it was to install, and installs a runtime that starts. */
const fakeNpm = `#!${node}
const { existsSync, mkdirSync, symlinkSync } = require('node:fs')
const { dirname, join } = require('node:path')
if (process.env.FAKE_NPM_FAILS) { console.error('EINTEGRITY'); process.exit(1) }
if (existsSync('node_modules/.bin/node')) { console.error('would start on a broken link'); process.exit(127) }
const program = join(process.argv[4], 'node_modules/${runtimePackage}/bin/node')
mkdirSync(dirname(program), { recursive: true })
symlinkSync(process.execPath, program)
`

/** Tells what the task was given; \`wait\` makes it run until a signal. */
const fakeMain = `
const args = process.argv.slice(2)
if (args[0] === 'wait') {
  process.on('SIGTERM', () => process.exit(7))
  setInterval(() => {}, 1000)
} else process.exitCode = Number(args[0] ?? 0)
console.log(JSON.stringify({ args, cwd: process.cwd(), node: process.env.PATH.split(':')[0] }))
`

type Checkout = AsyncDisposable & {
  path: string
  programs: string
  env: NodeJS.ProcessEnv
  run: (
    args: string[],
    options?: { cwd?: string; env?: NodeJS.ProcessEnv },
  ) => {
    status: number | null
    stdout: string
    stderr: string
  }
  npxCalls: () => string[]
}

function writeProgram(path: string, text: string): void {
  writeFileSync(path, text)
  chmodSync(path, 0o755)
}

async function makeCheckout(): Promise<Checkout> {
  const folder = await makeTemporaryDirectory('checkout')
  const path = join(folder.path, 'sluice')
  const programs = join(folder.path, 'bin')
  const write = (name: string, text: string): void => {
    mkdirSync(dirname(join(path, name)), { recursive: true })
    writeFileSync(join(path, name), text)
  }
  for (const name of ['', 'protocol/', 'agent/', 'control-plane/', 'test/']) {
    write(`${name}package.json`, '{ "type": "module" }')
  }
  write('pnpm-lock.yaml', 'lockfileVersion: 9')
  write('pnpm-workspace.yaml', 'packages: []')
  for (const name of ['control-plane/src/cli/main.ts', 'test/src/demo/main.ts']) {
    write(name, fakeMain)
  }
  write('installers/setup.mjs', '')
  copyFileSync(join(repositoryRoot, 'installers/setup.mjs'), join(path, 'installers/setup.mjs'))
  mkdirSync(programs)
  writeProgram(join(programs, 'npx'), fakeNpx)
  writeProgram(join(programs, 'npm'), fakeNpm)
  const env = { PATH: programs, SLUICE_SETUP_APT: '0' }
  const setup = join(path, 'installers/setup.mjs')
  return {
    path,
    programs,
    env,
    run: (args, options = {}) =>
      spawnSync(node, [setup, ...args], {
        encoding: 'utf8',
        cwd: options.cwd ?? path,
        env: { ...env, ...options.env },
      }),
    npxCalls: () => readFileSync(join(path, 'npx-calls'), 'utf8').trim().split('\n'),
    [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose](),
  }
}

/** A runtime that ends as one does whose library is not there, for as long as the file is not there. */
function runtimeLacking(library: string): string {
  return `#!${node}
if (!require('node:fs').existsSync('${library}')) {
  console.error('error while loading shared libraries: libatomic.so.1: cannot open'); process.exit(127)
}`
}

const mayUseApt =
  process.getuid?.() === 0 && existsSync('/etc/debian_version') && existsSync('/etc/os-release')

describe('setup', () => {
  it('installs once, says so in one line, and again only when the lockfile changed', async () => {
    await using checkout = await makeCheckout()
    const first = checkout.run(['sluice', '0', '--json', 'two words'])
    assert.match(first.stderr, /^setup: installing the locked packages with pnpm [\d.]+ .*\n$/)
    const { args, node: bin } = JSON.parse(first.stdout)
    assert.deepEqual(args, ['0', '--json', 'two words'])
    assert.equal(bin, join(checkout.path, 'node_modules/.bin'))

    const second = checkout.run(['sluice', '5'])
    assert.equal(second.status, 5)
    assert.equal(second.stderr, '')
    assert.equal(checkout.npxCalls().length, 1)
    assert.match(checkout.npxCalls()[0] ?? '', /pnpm@[\d.]+ install --frozen-lockfile/)

    appendFileSync(join(checkout.path, 'pnpm-lock.yaml'), '\n# changed')
    assert.equal(checkout.run(['sluice']).status, 0)
    rmSync(join(checkout.path, 'node_modules'), { recursive: true })
    assert.equal(checkout.run(['sluice']).status, 0)
    assert.equal(checkout.npxCalls().length, 3)
  })

  it('shows why an installation failed, and starts no task', async () => {
    await using checkout = await makeCheckout()
    const run = checkout.run(['sluice'], { env: { FAKE_NPX_FAILS: '1' } })
    assert.equal(run.status, 1)
    assert.equal(run.stdout, '')
    assert.match(
      run.stderr,
      /the registry said no\nsetup: the packages could not be installed\nsetup: {3}check/,
    )
    assert.equal(existsSync(join(checkout.path, '.sluice-setup.lock')), false)
    assert.equal(checkout.run(['sluice']).status, 0)
  })

  it('installs and nothing more when that is all that was asked for', async () => {
    await using checkout = await makeCheckout()
    const run = checkout.run(['setup'])
    assert.equal(run.status, 0)
    assert.equal(run.stdout, '')
    assert.equal(checkout.npxCalls().length, 1)
  })

  it('takes a spare runtime where the pinned one lacks a library, until that is there', async () => {
    await using checkout = await makeCheckout()
    const library = join(checkout.path, 'libatomic')
    const env = { FAKE_RUNTIME: runtimeLacking(library) }
    const link = join(checkout.path, 'node_modules/.bin/node')
    const spareFolder = join(checkout.path, 'node_modules/.sluice-runtime')

    const run = checkout.run(['sluice'], { env })
    assert.equal(run.status, 0, run.stderr)
    assert.match(run.stderr, /Node 24[\d.]+ stands in .*\nsetup: {3}.*apt-get install libatomic1/)
    assert.ok(readlinkSync(link).includes('.sluice-runtime'))
    const lock = JSON.parse(readFileSync(join(spareFolder, 'package-lock.json'), 'utf8'))
    const locked = lock.packages[`node_modules/${runtimePackage}`]
    assert.match(locked.integrity, /^sha512-[A-Za-z\d+/]{86}==$/)

    assert.equal(checkout.run(['sluice'], { env }).stderr, '')
    assert.ok(readlinkSync(link).includes('.sluice-runtime'))
    writeFileSync(library, '')
    assert.equal(checkout.run(['sluice'], { env }).status, 0)
    assert.ok(!readlinkSync(link).includes('.sluice-runtime'))
    assert.equal(checkout.npxCalls().length, 1)
  })

  it('leaves no runtime that cannot start in the way of the next run', async () => {
    await using checkout = await makeCheckout()
    const link = join(checkout.path, 'node_modules/.bin/node')
    const lacking = { FAKE_RUNTIME: runtimeLacking(join(checkout.path, 'libatomic')) }
    const noSpare = checkout.run(['setup'], { env: { ...lacking, FAKE_NPM_FAILS: '1' } })
    assert.equal(noSpare.status, 1)
    assert.match(
      noSpare.stderr,
      /EINTEGRITY\nsetup: Node 24.* could not be fetched\nsetup: {3}.*apt/,
    )
    assert.equal(existsSync(link), false)
    const broken = checkout.run(['setup'], { env: { FAKE_RUNTIME: `#!${node}\nprocess.exit(3)` } })
    assert.equal(broken.status, 1)
    assert.match(broken.stderr, /pinned runtime does not start/)
    assert.equal(existsSync(link), false)
    assert.equal(checkout.run(['setup']).status, 0)
  })

  it('starts npm on the Node of the host, not on the runtime it is about to replace', async () => {
    await using checkout = await makeCheckout()
    const seen = join(checkout.path, 'seen')
    writeProgram(
      join(checkout.programs, 'npx'),
      `${fakeNpx}\nwriteFileSync('${seen}', process.env.PATH)\n`,
    )
    const bin = join(checkout.path, 'node_modules/.bin')
    checkout.run(['setup'], { env: { PATH: `${bin}:${checkout.programs}` } })
    assert.equal(readFileSync(seen, 'utf8'), checkout.programs)
  })

  it('takes file names from where npm was called, and from the own folder otherwise', async () => {
    await using checkout = await makeCheckout()
    const elsewhere = join(checkout.path, 'media')
    mkdirSync(elsewhere)
    const cwdOf = (run: { stdout: string }): string => JSON.parse(run.stdout).cwd
    const byNpm = { INIT_CWD: elsewhere, npm_lifecycle_event: 'sluice' }
    assert.equal(cwdOf(checkout.run(['sluice'], { env: byNpm })), elsewhere)
    assert.equal(cwdOf(checkout.run(['sluice'], { cwd: elsewhere })), elsewhere)
  })

  it('hands a signal to the task and gives back how it ended', async () => {
    await using checkout = await makeCheckout()
    checkout.run(['sluice'])
    await using program = await startProgram({
      command: node,
      args: [join(checkout.path, 'installers/setup.mjs'), 'sluice', 'wait'],
      cwd: checkout.path,
      env: checkout.env,
    })
    await program.waitForLine(/wait/)
    program.signal('SIGTERM')
    assert.deepEqual(await program.ended, { code: 7, signal: null })
  })

  it('says what is missing without decoders, how to get it, and goes on', async () => {
    await using checkout = await makeCheckout()
    const run = checkout.run(['demo', '0'])
    assert.equal(run.status, 0)
    assert.match(
      run.stderr,
      /no ffmpeg >= 5\.1: images and uncompressed WAV work.*\n.*apt-get install ffmpeg/,
    )
    assert.match(run.stderr, /no bubblewrap: .*\n.*apt-get install bubblewrap/)
  })

  it('downloads ffmpeg as a last resort, and tries once a day at most', async () => {
    await using checkout = await makeCheckout()
    const folder = join(checkout.path, 'node_modules/ffmpeg-static')
    checkout.run(['setup'])
    mkdirSync(folder)
    const installer = join(folder, 'install.js')
    writeFileSync(installer, `require('node:fs').appendFileSync('${folder}/calls', '.')`)
    assert.match(checkout.run(['demo']).stderr, /downloading ffmpeg .*\nsetup: no ffmpeg/)
    assert.doesNotMatch(checkout.run(['demo']).stderr, /downloading/)
    assert.equal(readFileSync(join(folder, 'calls'), 'utf8'), '.')

    rmSync(join(checkout.path, 'node_modules/.sluice-setup-download-failed'))
    writeFileSync(
      installer,
      `require('node:fs').writeFileSync('${folder}/ffmpeg', '', { mode: 0o755 })`,
    )
    const run = checkout.run(['demo'])
    assert.match(run.stderr, /downloading ffmpeg/)
    assert.doesNotMatch(run.stderr, /no ffmpeg/)
    assert.doesNotMatch(checkout.run(['demo']).stderr, /ffmpeg/)
  })

  it('takes a new ffmpeg, and no old one or one of unknown age', async () => {
    await using checkout = await makeCheckout()
    const ffmpeg = (version: string): string => {
      const path = join(checkout.programs, 'ffmpeg')
      writeProgram(path, `#!${node}\nconsole.log('ffmpeg version ${version} Copyright')\n`)
      return checkout.run(['demo']).stderr
    }
    for (const version of ['5.1.9-0+deb12u1', 'n6.0', '10.2']) {
      assert.doesNotMatch(ffmpeg(version), /no ffmpeg/, version)
    }
    for (const version of ['4.4.2', '5.0.1', 'n4.4', 'N-112233-gabcdef']) {
      assert.match(ffmpeg(version), /no ffmpeg/, version)
    }
  })

  it(
    'installs the decoders with apt-get as root on Debian, and tries once a day at most',
    { skip: mayUseApt ? false : 'only root on Debian or Ubuntu gets this far' },
    async () => {
      await using checkout = await makeCheckout()
      const apt = { env: { SLUICE_SETUP_APT: '1' } }
      const calls = join(checkout.programs, 'apt-calls')
      const fakeApt = (code: number): string =>
        `#!${node}\nrequire('node:fs').appendFileSync('${calls}', process.argv.slice(2).join(' ') + '\\n')\nprocess.exit(${code})\n`
      writeProgram(join(checkout.programs, 'apt-get'), fakeApt(100))
      assert.match(
        checkout.run(['demo'], apt).stderr,
        /installing ffmpeg and bubblewrap with apt-get/,
      )
      const lines = readFileSync(calls, 'utf8').trim().split('\n')
      assert.deepEqual(
        lines.map((line) => /\b(update|install)\b/.exec(line)?.[0]),
        ['install', 'update', 'install'],
      )
      assert.doesNotMatch(checkout.run(['demo'], apt).stderr, /installing/)
    },
  )

  it('refuses a task it does not know, before it installs anything', async () => {
    await using checkout = await makeCheckout()
    const run = checkout.run(['dance'])
    assert.equal(run.status, 2)
    assert.match(run.stderr, /^usage: .*TASK/)
    assert.equal(checkout.run(['--help']).status, 0)
    assert.equal(existsSync(join(checkout.path, 'npx-calls')), false)
  })
})
