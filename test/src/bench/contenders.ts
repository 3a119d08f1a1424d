/** Every command that is measured: ours, the limits of the machine, and the tools people use today. */

import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import type { Command } from './measure.ts'

const root = join(import.meta.dirname, '..', '..', '..')
export const agentMain = join(root, 'agent', 'src', 'cli', 'main.ts')
export const sealingChild = join(import.meta.dirname, 'sealing-child.ts')

const benchKey = Buffer.alloc(32, 0x5a)

/** What a contender works with: all paths lie in one folder in memory. */
export type Workplace = {
  folder: string
  /** The file to seal. */
  input: string
}

export type Contender = {
  name: string
  /** `limit`: what the machine allows; `peer`: what people use today. */
  kind: 'ours' | 'limit' | 'peer'
  /** Why it cannot be measured here, with what to do; nothing when it can. */
  missing: () => string | undefined
  /** Makes keys and repositories; not timed, called before each round. */
  prepare: (place: Workplace) => void
  seal: (place: Workplace) => Command
  open: (place: Workplace) => Command
  /** Where the opened file lies, to be compared with the input. */
  opened: (place: Workplace) => string
  /** Everything it made; removed after each round. */
  folder: (place: Workplace) => string
}

export function hasProgram(program: string): boolean {
  return (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, program)))
}

/** Packages of Debian that bring what is measured beside us. */
export const peerPackages = 'age rclone restic openssl'

function needProgram(program: string): () => string | undefined {
  return () =>
    hasProgram(program) ? undefined : `${program} is not installed: apt-get install ${peerPackages}`
}

function run(program: string, args: string[], input?: string): string {
  return execFileSync(program, args, {
    encoding: 'utf8',
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(input === undefined ? {} : { input }),
  })
}

/** An empty folder of the contender's own. */
function makePlace(place: Workplace, name: string): string {
  const folder = join(place.folder, name)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder)
  return folder
}

const inPlace =
  (name: string, file = '') =>
  (place: Workplace): string =>
    join(place.folder, name, file)

const sluiceAgent: Contender = {
  name: 'sluice-agent seal/open',
  kind: 'ours',
  missing: () =>
    existsSync(agentMain) ? undefined : 'the command line of the agent is not there yet',
  prepare: (place) => makePlace(place, 'sluice'),
  seal: (place) => ({
    program: process.execPath,
    args: [agentMain, 'seal', place.input, inPlace('sluice', 'sealed')(place), '--key-fd', '3'],
    onFd3: benchKey,
  }),
  open: (place) => ({
    program: process.execPath,
    args: [
      agentMain,
      'open',
      inPlace('sluice', 'sealed')(place),
      inPlace('sluice', 'opened')(place),
      '--key-fd',
      '3',
    ],
    onFd3: benchKey,
  }),
  opened: inPlace('sluice', 'opened'),
  folder: inPlace('sluice'),
}

const sluiceLibrary: Contender = {
  name: 'sluice, the library alone',
  kind: 'ours',
  missing: () => undefined,
  prepare: (place) => makePlace(place, 'library'),
  seal: (place) => ({
    program: process.execPath,
    args: [sealingChild, 'seal-file', place.input, inPlace('library', 'sealed')(place)],
  }),
  open: (place) => ({
    program: process.execPath,
    args: [
      sealingChild,
      'open-file',
      inPlace('library', 'sealed')(place),
      inPlace('library', 'opened')(place),
    ],
  }),
  opened: inPlace('library', 'opened'),
  folder: inPlace('library'),
}

const copy: Contender = {
  name: 'cp (no encryption)',
  kind: 'limit',
  missing: needProgram('cp'),
  prepare: (place) => makePlace(place, 'copy'),
  // Without --reflink=never a file system may only note that the two are the same.
  seal: (place) => ({
    program: 'cp',
    args: ['--reflink=never', place.input, inPlace('copy', 'a')(place)],
  }),
  open: (place) => ({
    program: 'cp',
    args: ['--reflink=never', inPlace('copy', 'a')(place), inPlace('copy', 'b')(place)],
  }),
  opened: inPlace('copy', 'b'),
  folder: inPlace('copy'),
}

/** `enc` knows no GCM: this is AES-256 without any authentication, so it does less than all others. */
const opensslCtr: Contender = {
  name: 'openssl enc, no integrity',
  kind: 'limit',
  missing: needProgram('openssl'),
  prepare: (place) => makePlace(place, 'openssl'),
  seal: (place) => opensslEnc(['-e'], place.input, inPlace('openssl', 'sealed')(place)),
  open: (place) =>
    opensslEnc(['-d'], inPlace('openssl', 'sealed')(place), inPlace('openssl', 'opened')(place)),
  opened: inPlace('openssl', 'opened'),
  folder: inPlace('openssl'),
}

function opensslEnc(direction: string[], from: string, to: string): Command {
  const password = ['-pass', 'fd:3', '-pbkdf2', '-iter', '1']
  return {
    program: 'openssl',
    args: ['enc', '-aes-256-ctr', ...direction, ...password, '-in', from, '-out', to],
    onFd3: Buffer.from('bench\n'),
  }
}

const age: Contender = {
  name: 'age',
  kind: 'peer',
  missing: needProgram('age'),
  prepare: (place) => run('age-keygen', ['-o', join(makePlace(place, 'age'), 'key')]),
  seal: (place) => {
    const key = readFileSync(inPlace('age', 'key')(place), 'utf8')
    const [, recipient = ''] = /public key: (\S+)/.exec(key) ?? []
    return {
      program: 'age',
      args: ['-r', recipient, '-o', inPlace('age', 'sealed')(place), place.input],
    }
  },
  open: (place) => ({
    program: 'age',
    args: [
      '-d',
      '-i',
      inPlace('age', 'key')(place),
      '-o',
      inPlace('age', 'opened')(place),
      inPlace('age', 'sealed')(place),
    ],
  }),
  opened: inPlace('age', 'opened'),
  folder: inPlace('age'),
}

const rclone: Contender = {
  name: 'rclone crypt',
  kind: 'peer',
  missing: needProgram('rclone'),
  prepare: (place) => {
    const folder = makePlace(place, 'rclone')
    const password = run('rclone', ['obscure', '-'], 'bench').trim()
    const lines = ['[sealed]', 'type = crypt', `remote = ${folder}/store`, `password = ${password}`]
    writeFileSync(join(folder, 'config'), `${lines.join('\n')}\n`, { mode: 0o600 })
  },
  seal: (place) => rcloneCopy(place, place.input, 'sealed:medium'),
  open: (place) => rcloneCopy(place, 'sealed:medium', inPlace('rclone', 'opened')(place)),
  opened: inPlace('rclone', 'opened'),
  folder: inPlace('rclone'),
}

function rcloneCopy(place: Workplace, from: string, to: string): Command {
  const config = ['--config', inPlace('rclone', 'config')(place)]
  return { program: 'rclone', args: [...config, 'copyto', from, to] }
}

const restic: Contender = {
  name: 'restic',
  kind: 'peer',
  missing: needProgram('restic'),
  prepare: (place) => {
    const folder = makePlace(place, 'restic')
    writeFileSync(join(folder, 'password'), 'bench', { mode: 0o600 })
    run('restic', [...resticRepository(place), 'init'])
  },
  // Uncompressed, as all others: the input is random, and trying costs time.
  seal: (place) => ({
    program: 'restic',
    args: [...resticRepository(place), '--compression', 'off', 'backup', place.input],
  }),
  open: (place) => ({
    program: 'restic',
    args: [
      ...resticRepository(place),
      'restore',
      'latest',
      '--target',
      inPlace('restic', 'opened')(place),
    ],
  }),
  opened: (place) => join(inPlace('restic', 'opened')(place), place.input),
  folder: inPlace('restic'),
}

function resticRepository(place: Workplace): string[] {
  const folder = join(place.folder, 'restic')
  return [
    '--quiet',
    '--no-cache',
    `--password-file=${join(folder, 'password')}`,
    `--repo=${join(folder, 'repository')}`,
  ]
}

export const contenders: readonly Contender[] = [
  copy,
  opensslCtr,
  sluiceAgent,
  sluiceLibrary,
  age,
  rclone,
  restic,
]

/** Seals a file into another and opens that into nothing: with the agent, or without it the library. */
export function memoryCommands(plain: string, sealed: string): { seal: Command; open: Command } {
  const program = process.execPath
  if (sluiceAgent.missing() === undefined) {
    const keyOnFd3 = ['--key-fd', '3']
    return {
      seal: { program, args: [agentMain, 'seal', plain, sealed, ...keyOnFd3], onFd3: benchKey },
      open: {
        program,
        args: [agentMain, 'open', sealed, '-', ...keyOnFd3],
        onFd3: benchKey,
        stdoutFile: '/dev/null',
      },
    }
  }
  return {
    seal: { program, args: [sealingChild, 'seal-file', plain, sealed] },
    open: { program, args: [sealingChild, 'open-file', sealed, '/dev/null'] },
  }
}
