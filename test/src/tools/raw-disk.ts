/** A small disk of a test's own, whose every raw byte can be read back: ext4 on a loop device. */

import { execFile } from 'node:child_process'
import { accessSync, constants, existsSync } from 'node:fs'
import { mkdir, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

import { need } from './need.ts'
import { makeTemporaryDirectory } from './temporary-directory.ts'

const run = promisify(execFile)

const programs = ['losetup', 'mkfs.ext4', 'mount', 'umount', 'sync']
const programFolders = [...(process.env['PATH'] ?? '').split(':'), '/sbin', '/usr/sbin']

function findProgram(name: string): string | undefined {
  return programFolders.map((folder) => join(folder, name)).find((path) => existsSync(path))
}

function isUsable(): boolean {
  if (process.getuid?.() !== 0) return false
  if (programs.some((name) => findProgram(name) === undefined)) return false
  try {
    accessSync('/dev/loop-control', constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** For `skip`: false where a raw disk can be made, else why not. */
export function needRawDisk(): string | false {
  return need(
    'a raw disk',
    isUsable(),
    'run as root on Linux with loop devices, and install mount and e2fsprogs',
  )
}

export type RawDisk = AsyncDisposable & {
  /** Where its file system is mounted. */
  readonly path: string
  /** The raw bytes under it. Call `sync` before reading them. */
  readonly image: string
  /** Writes everything that is still only in memory to the image. */
  sync(): Promise<void>
  /** Takes the file system away; the image stays readable. */
  unmount(): Promise<void>
  /** Mounts it again, as after a restart. */
  mount(): Promise<void>
}

async function runProgram(name: string, ...args: string[]): Promise<string> {
  const program = findProgram(name) ?? name
  const { stdout } = await run(program, args)
  return stdout.trim()
}

/**
 * Makes and mounts a disk.
 *
 * @param diskBytes Size of the image, a sparse file: unwritten parts take no space and read as zeros.
 * @param parent Where the image lies; the default is the system's folder for temporary files.
 */
export async function makeRawDisk(
  diskBytes: number = 64 * 1024 * 1024,
  parent: string = tmpdir(),
): Promise<RawDisk> {
  await using cleanup = new AsyncDisposableStack()
  const folder = cleanup.use(await makeTemporaryDirectory('disk', parent))
  const image = join(folder.path, 'image')
  const path = join(folder.path, 'mount')
  await mkdir(path)
  await using file = await open(image, 'wx', 0o600)
  await file.truncate(diskBytes)
  // Without lazy initialisation, so that nothing writes to it later on its own.
  await runProgram('mkfs.ext4', '-q', '-E', 'lazy_itable_init=0,lazy_journal_init=0', image)
  const device = await runProgram('losetup', '--find', '--show', image)
  cleanup.defer(async () => {
    await runProgram('losetup', '--detach', device)
  })
  let mounted = false
  const mount = async (): Promise<void> => {
    if (!mounted) await runProgram('mount', '-o', 'noatime', device, path)
    mounted = true
  }
  const unmount = async (): Promise<void> => {
    if (mounted) await runProgram('umount', path)
    mounted = false
  }
  cleanup.defer(unmount)
  await mount()
  const owned = cleanup.move()
  return {
    path,
    image,
    mount,
    unmount,
    async sync() {
      if (mounted) await runProgram('sync', '--file-system', path)
      // The loop device has a cache of its own above the image.
      await runProgram('sync', device)
    },
    async [Symbol.asyncDispose]() {
      await owned.disposeAsync()
      await rm(folder.path, { recursive: true, force: true })
    },
  }
}
