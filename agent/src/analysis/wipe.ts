/** Ends everything a lease left on this host, and looks whether it is really gone. */
import type { ChildProcess } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError } from '@sluice/protocol/errors'
import { type LeaseId, leaseId as leaseIdSchema } from '@sluice/protocol/ids'
import { isMissing } from '../durable-file.ts'
import { isMounted, isMountedAnywhere, unmountMedia } from './media-mount.ts'

/** Where a lease leaves traces on this host. None of these ever holds a byte of plaintext on a disk. */
export type LeaseTraces = {
  /** The lease's own folder. */
  folder: string
  /** Empty file: whoever has it open belongs to the lease. */
  leash: string
  /** Mount point of the directory in memory. */
  media: string
}

/** A killed process is gone within milliseconds; one stuck in the kernel or a driver takes longer. */
const deathMs = 10_000
/** Looks in a row that must find no process. */
const quietLooks = 3

export function tracesOf(runtimeDirectory: string, leaseId: LeaseId): LeaseTraces {
  const folder = path.join(runtimeDirectory, leaseId)
  return { folder, leash: path.join(folder, 'leash'), media: path.join(folder, 'media') }
}

/** Leases that have a folder on this host, known or not. */
export async function leasesOnDisk(runtimeDirectory: string): Promise<LeaseId[]> {
  try {
    const names = await readdir(runtimeDirectory)
    return names.flatMap((name) => leaseIdSchema.safeParse(name).data ?? [])
  } catch (error) {
    if (isMissing(error)) return []
    throw error
  }
}

/** Makes the lease's folder and its leash; a folder that is there already is an error. */
export async function makeTraces(traces: LeaseTraces): Promise<void> {
  await mkdir(path.dirname(traces.folder), { recursive: true, mode: 0o700 })
  await mkdir(traces.folder, { mode: 0o700 })
  await mkdir(traces.media, { mode: 0o700 })
  await writeFile(traces.leash, '', { flag: 'wx', mode: 0o400 })
}

/**
 * Kills the child and every process of the lease, unmounts and removes its folder, then looks again.
 *
 * @param child The lease's child process, when this process started one; it is reaped here.
 * @returns What was looked at, in the words of a receipt.
 * @throws SluiceError `wipe.incomplete`, to be tried again, when anything is left.
 */
export async function wipeTraces(traces: LeaseTraces, child?: ChildProcess): Promise<string[]> {
  const checked: string[] = []
  if (child !== undefined) {
    await endChild(child)
    checked.push('child reaped')
  }
  await endHolders(traces.leash)
  if (isMounted(traces.media)) await unmountMedia(traces.media)
  if (isMountedAnywhere(traces.media))
    throw incomplete('its directory in memory is still mounted, in a namespace of some process')
  checked.push('mount gone')
  await rm(traces.folder, { recursive: true, force: true })
  if (existsSync(traces.folder)) throw incomplete('its folder is still there')
  checked.push('folder gone')
  if (processesHolding(traces.leash).length > 0) throw incomplete('a process of it appeared again')
  checked.push('no process left')
  return checked
}

async function endChild(child: ChildProcess): Promise<void> {
  const reaped = (): boolean =>
    child.pid === undefined || child.exitCode !== null || child.signalCode !== null
  if (reaped()) return
  const exit = Promise.withResolvers<void>()
  child.once('exit', () => exit.resolve())
  child.kill('SIGKILL')
  const timer = setTimeout(() => exit.resolve(), deathMs)
  await exit.promise
  clearTimeout(timer)
  if (!reaped()) throw incomplete('its process does not end')
}

/**
 * An analyser without bubblewrap may have left processes of its own: the leash finds them. One look
 * is not enough: a process that dies while it forks is gone before it is looked at, and its child
 * was not there when the list was made.
 */
async function endHolders(leash: string): Promise<void> {
  const deadline = performance.now() + deathMs
  for (let looksWithoutAny = 0; looksWithoutAny < quietLooks;) {
    const holders = processesHolding(leash)
    looksWithoutAny = holders.length === 0 ? looksWithoutAny + 1 : 0
    if (performance.now() > deadline && holders.length > 0)
      throw incomplete('a process of it does not end')
    for (const pid of holders) killIfThere(pid)
    await sleep(5)
  }
}

/** Living processes that have this file open, this one left out; the name counts also after it was removed. */
export function processesHolding(file: string): number[] {
  const names = new Set([file, `${file} (deleted)`])
  return readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => openFiles(pid).some((name) => names.has(name)) && !isZombie(pid))
    .map(Number)
}

function openFiles(pid: string): string[] {
  return unlessGone([], () => {
    const folder = `/proc/${pid}/fd`
    return readdirSync(folder).map((descriptor) =>
      unlessGone('', () => readlinkSync(`${folder}/${descriptor}`)),
    )
  })
}

/** A zombie has no memory any more; only its parent can clear the entry. */
function isZombie(pid: string): boolean {
  const stat = unlessGone('', () => readFileSync(`/proc/${pid}/stat`, 'utf8'))
  return /\) [ZX] /.test(stat)
}

function killIfThere(pid: number): void {
  unlessGone(false, () => process.kill(pid, 'SIGKILL'))
}

/** Processes end while one looks at them, and those of other users can't be looked into. */
function unlessGone<T>(otherwise: T, look: () => T): T {
  try {
    return look()
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (['ENOENT', 'ESRCH', 'EACCES', 'EPERM'].includes(code)) return otherwise
    throw error
  }
}

function incomplete(why: string): SluiceError {
  return new SluiceError('wipe.incomplete', `A lease is not wiped yet: ${why}.`, {
    retry: 'later',
    hint: 'The agent tries again by itself. A process stuck in a driver may need the node restarted.',
  })
}
