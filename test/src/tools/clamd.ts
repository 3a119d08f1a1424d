/** A real clamd with two signatures of its own, in a folder in memory, for as long as a test needs it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, utimes, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { need } from './need.ts'

const program = '/usr/sbin/clamd'
/** A tmpfs on every Linux with glibc. */
const memory = '/dev/shm'

/** Why tests with a real clamd cannot run here; false where they can. */
export const needClamd = need(
  'clamd',
  existsSync(program) && existsSync(memory),
  'apt-get install clamav-daemon',
)

/** Found by the second signature wherever it stands; made at run time, as EICAR is. */
export const marker = () => Buffer.from(['sluice', 'marker', 'of', 'evil'].join('-'))

/** @see EICAR, "Anti-malware testfile". */
export const eicarFile = () =>
  Buffer.from(
    ['X5O!P%@AP[4\\PZX54(P^)7CC)7}$', 'EICAR-STANDARD-', 'ANTIVIRUS-TEST-FILE!$H+H*'].join(''),
    'latin1',
  )

export type Clamd = AsyncDisposable & {
  /** Where everything of it lies. */
  folder: string
  configFile: string
  socket: string
  pid: () => number
  start(): Promise<void>
  /** Ends it at once, as a crash would. */
  kill(): Promise<void>
  /** Halts it in the middle of whatever it does. */
  halt(): void
  /** Dates the signatures. */
  ageSignatures(hours: number): Promise<void>
}

/**
 * @param settings Lines of clamd.conf instead of the usual ones, by name; undefined leaves one out.
 */
export async function startClamd(
  settings: Readonly<Record<string, string | undefined>> = {},
): Promise<Clamd> {
  const folder = await mkdtemp(path.join(memory, 'sluice-clamd-'))
  const socket = path.join(folder, 'clamd.sock')
  const database = path.join(folder, 'own.ndb')
  const configFile = path.join(folder, 'clamd.conf')
  const signatures = Object.entries({ Eicar: eicarFile(), Marker: marker() })
  await writeFile(
    database,
    signatures.map(([name, bytes]) => `Own.${name}:0:*:${bytes.toString('hex')}\n`).join(''),
  )
  const lines = {
    LocalSocket: socket,
    TemporaryDirectory: folder,
    DatabaseDirectory: folder,
    Foreground: 'yes',
    AlertExceedsMax: 'yes',
    StreamMaxLength: '4M',
    MaxFileSize: '4M',
    MaxScanSize: '4M',
    ...settings,
  }
  await writeFile(
    configFile,
    Object.entries(lines)
      .flatMap(([name, value]) => (value === undefined ? [] : [`${name} ${value}\n`]))
      .join(''),
  )
  let child: ChildProcess | undefined
  const clamd: Clamd = {
    folder,
    configFile,
    socket,
    pid: () => child?.pid ?? 0,
    async start() {
      child = spawn(program, ['-c', configFile], { stdio: 'ignore', env: {} })
      for (let tries = 0; !(await answers(socket)); tries += 1) {
        if (tries > 1500 || child.exitCode !== null) throw new Error('clamd does not start')
        await sleep(20)
      }
    },
    async kill() {
      if (!child || child.exitCode !== null || child.signalCode !== null) return
      const gone = new Promise((done) => child?.once('exit', done))
      child.kill('SIGKILL')
      await gone
    },
    halt: () => void child?.kill('SIGSTOP'),
    async ageSignatures(hours) {
      const at = new Date(Date.now() - hours * 3_600_000)
      await utimes(database, at, at)
    },
    async [Symbol.asyncDispose]() {
      await clamd.kill()
      await rm(folder, { recursive: true, force: true })
    },
  }
  try {
    await clamd.start()
    return clamd
  } catch (error) {
    await clamd[Symbol.asyncDispose]()
    throw error
  }
}

function answers(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const asking = connect(socket, () => asking.write('zPING\0'))
    asking.on('data', () => {
      asking.destroy()
      resolve(true)
    })
    asking.on('error', () => resolve(false))
    asking.on('end', () => resolve(false))
  })
}
