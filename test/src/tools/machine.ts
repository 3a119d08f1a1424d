/** Whole Debian systems with a systemd of their own, alone together on a network of nothing but loopback. */

import { existsSync, readFileSync } from 'node:fs'
import { mkdir, readFile, readlink, writeFile } from 'node:fs/promises'
import { isAbsolute, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import { waitFor } from './fleet-daemon.ts'
import { need } from './need.ts'
import { startProgram } from './processes.ts'
import type { ProgramEnd, ProgramOptions } from './processes.ts'
import { makeTemporaryDirectory } from './temporary-directory.ts'

const programs = ['debootstrap', 'systemd-nspawn', 'nsenter', 'unshare', 'ip', 'mount', 'apt-get']
const programFolders = [...(process.env['PATH'] ?? '').split(':'), '/sbin', '/usr/sbin']

/** A system without these does not boot, or not as one that is used for real. */
const basePackages = ['systemd', 'systemd-sysv', 'dbus']

const bootMsMax = 60_000
const buildMsMax = 20 * 60_000
const runMsMax = 120_000

/** For `skip`: false where machines can be made, else why not. */
export function needMachines(): string | false {
  const missing = programs.filter(
    (name) => !programFolders.some((folder) => existsSync(join(folder, name))),
  )
  return need(
    'machines with systemd',
    process.getuid?.() === 0 && missing.length === 0 && codename() !== undefined,
    'run as root on Debian, and apt-get install debootstrap systemd-container iproute2',
  )
}

export type Ran = ProgramEnd & { stdout: string; stderr: string }

export type Machine = {
  readonly name: string
  /**
   * Runs a shell script as root in its home, to the end.
   *
   * @throws Error with what it said, unless it ended with 0 or `mayFail` is set.
   */
  run(script: string, options?: { mayFail?: boolean }): Promise<Ran>
  /** Relative paths begin in root's home. */
  readFile(path: string): Promise<Buffer>
  /** Mode 0600, owned by root unless changed. */
  writeFile(path: string, content: string | Uint8Array, mode?: number): Promise<void>
}

export type Machines = AsyncDisposable & {
  /** Boots one more from the same tree; what it writes is its own, and gone in the end. */
  boot(name: string): Promise<Machine>
}

/**
 * Builds the tree that all of them start from. The Debian of this host is taken, from where this host
 * gets its packages.
 *
 * @param options.packages Beside a minimal system with systemd.
 * @param options.readOnly Host folders by their place in every machine.
 * @param options.names Host names that all of them know as loopback.
 */
export async function makeMachines(options: {
  packages: readonly string[]
  readOnly: Readonly<Record<string, string>>
  names: readonly string[]
}): Promise<Machines> {
  await using cleanup = new AsyncDisposableStack()
  const folder = cleanup.use(await makeTemporaryDirectory('machines'))
  const tree = join(folder.path, 'tree')
  await runHere(
    'debootstrap',
    [
      ...['--variant=minbase', `--include=${[...basePackages, ...options.packages].join(',')}`],
      ...[codename() ?? '', tree, await mirror()],
    ],
    buildMsMax,
  )
  // Holds the network that they share.
  const network = cleanup.use(
    await startProgram({
      command: 'unshare',
      args: ['--net', 'sh', '-c', 'ip link set lo up && exec sleep infinity'],
    }),
  )
  await waitFor('a network apart', bootMsMax, async () => {
    const [own, ours] = await Promise.all([networkOf(network.pid), networkOf('self')])
    return own === ours ? undefined : own
  })
  const owned = cleanup.move()

  async function boot(name: string): Promise<Machine> {
    const root = await mountCopy({ tree, folder: join(folder.path, name), owned })
    const hostName = `sluice-${name}-${process.pid}`
    await writeFile(join(root, 'etc/hostname'), `${hostName}\n`)
    const names = ['localhost', hostName, ...options.names].join(' ')
    await writeFile(join(root, 'etc/hosts'), `127.0.0.1 ${names}\n`)
    for (const place of Object.keys(options.readOnly))
      await mkdir(join(root, place), { recursive: true })
    const nspawn = owned.use(
      await startProgram({
        command: 'systemd-nspawn',
        args: [
          ...['--quiet', '--boot', '--console=pipe', '--register=no', '--keep-unit'],
          ...[`--directory=${root}`, `--machine=${hostName}`],
          ...['--resolv-conf=off', '--timezone=off'],
          `--network-namespace-path=/proc/${network.pid}/ns/net`,
          ...Object.entries(options.readOnly).map(([place, from]) => `--bind-ro=${from}:${place}`),
        ],
        // A machine of metal or a virtual one may write below /proc/sys, and so must these.
        env: { ...process.env, SYSTEMD_NSPAWN_API_VFS_WRITABLE: 'yes' },
      }),
    )
    const init = await waitFor(`${name} to begin`, bootMsMax, async () => initOf(nspawn.pid))
    const runInside = (script: string): Promise<Ran> =>
      runToEnd({
        command: 'nsenter',
        args: [
          ...['--target', init, '--all', 'env', '-i', `HOME=${homeInside}`, `PATH=${pathInside}`],
          // Whatever happens to the machine, none of this may ever run on the host.
          ...['sh', '-e', '-c', `test "$(cat /etc/hostname)" = ${hostName}; cd; ${script}`],
        ],
      })
    const run: Machine['run'] = async (script, { mayFail = false } = {}) => {
      const ran = await runInside(script)
      if (ran.code === 0 || mayFail) return ran
      const how = `on ${name}, this ended with ${ran.signal ?? ran.code}:\n${script}`
      const journal = await runInside('journalctl --no-pager --quiet --lines=40')
      throw new Error([how, ran.stderr, ran.stdout, journal.stdout].join('\n'))
    }
    await waitFor(`${name} to run`, bootMsMax, async () => {
      // Its systemd answers only after a moment.
      const { stdout, stderr } = await run('systemctl is-system-running --wait', { mayFail: true })
      if (stdout.trim() === 'running') return true
      if (!/degraded|maintenance/.test(stdout)) return undefined
      const failed = await run('systemctl --no-pager --failed')
      throw new Error(`${name} is ${stdout}${stderr}${failed.stdout}`)
    })
    // A container hides parts of /proc; then many a kernel lets nobody in it mount a whole one.
    await run(`for at in $(awk '$5 ~ "^/proc/" { print $5 }' /proc/self/mountinfo); do
      umount "$at"; done`)
    return {
      name,
      run,
      readFile: (path) => readFile(inTree(root, path)),
      async writeFile(path, content, mode = 0o600) {
        await writeFile(inTree(root, path), content, { mode })
      },
    }
  }
  return { boot, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

const homeInside = '/root'

function inTree(root: string, path: string): string {
  return join(root, isAbsolute(path) ? path : join(homeInside, path))
}

const pathInside = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** The tree as a layer below a folder of the machine's own. @returns The root directory. */
async function mountCopy(parts: {
  tree: string
  folder: string
  owned: AsyncDisposableStack
}): Promise<string> {
  const at = (name: string): string => join(parts.folder, name)
  const [upper, work, root] = [at('upper'), at('work'), at('root')] as const
  for (const path of [upper, work, root]) await mkdir(path, { recursive: true })
  const layers = `lowerdir=${parts.tree},upperdir=${upper},workdir=${work}`
  await runHere('mount', ['-t', 'overlay', 'overlay', '-o', layers, root])
  parts.owned.defer(async () => void (await runHere('umount', ['--lazy', root])))
  return root
}

/** Word of this Debian's release, as `bookworm`. */
function codename(): string | undefined {
  if (!existsSync('/etc/os-release')) return undefined
  const text = readFileSync('/etc/os-release', 'utf8')
  return /^ID=debian$/m.test(text) ? /^VERSION_CODENAME=(\w+)$/m.exec(text)?.[1] : undefined
}

async function mirror(): Promise<string> {
  const format = ['--format', '$(RELEASE) $(REPO_URI)', 'Created-By: Packages']
  const { stdout } = await runHere('apt-get', ['indextargets', ...format])
  const lines = stdout.split('\n').map((line) => line.split(' '))
  const [, address] = lines.find(([release]) => release === codename()) ?? []
  if (address === undefined) throw new Error('apt on this host knows no mirror of its release')
  return address
}

/** @param process Its number, or `self`. */
function networkOf(process: number | 'self'): Promise<string> {
  return readlink(`/proc/${process}/ns/net`)
}

/** The child that is the first process of a machine and already its systemd; an earlier one is here. */
async function initOf(nspawn: number): Promise<string | undefined> {
  const children = await readFile(`/proc/${nspawn}/task/${nspawn}/children`, 'utf8')
  for (const pid of children.split(' ').filter(Boolean)) {
    // Empty for a child that has ended meanwhile.
    const status = existsSync(`/proc/${pid}`) ? readFileSync(`/proc/${pid}/status`, 'utf8') : ''
    if (/^Name:\tsystemd$/m.test(status) && /^NSpid:\t\d+(\t\d+)*\t1$/m.test(status)) return pid
  }
  return undefined
}

async function runToEnd(options: ProgramOptions, timeoutMs = runMsMax): Promise<Ran> {
  await using program = await startProgram(options)
  const late = new AbortController()
  const end = await Promise.race([
    program.ended,
    sleep(timeoutMs, undefined, { signal: late.signal, ref: false }),
  ])
  late.abort()
  if (end === undefined)
    throw new Error(`${options.command} ${(options.args ?? []).join(' ')} does not end`)
  return { ...end, stdout: program.stdout, stderr: program.stderr }
}

async function runHere(command: string, args: readonly string[], timeoutMs?: number): Promise<Ran> {
  const ran = await runToEnd({ command, args }, timeoutMs)
  if (ran.code === 0) return ran
  const said = `${ran.stdout}${ran.stderr}`.slice(-4000)
  throw new Error(`${command} ${args.join(' ')} ended with ${ran.signal ?? ran.code}:\n${said}`)
}
