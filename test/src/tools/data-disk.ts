/** The data directory of a control plane on a disk of its own, which can be filled to its last byte. */

import { execFile } from 'node:child_process'
import { chmod, cp, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

import type { Fleet } from './fleet.ts'
import type { RawDisk } from './raw-disk.ts'

const run = promisify(execFile)
const ballast = 'ballast'

/** From now on it lies on this disk. Tokens are made while there is room. */
export async function moveDataTo(disk: RawDisk, fleet: Fleet): Promise<AsyncDisposable> {
  for (const role of ['operator', 'security'] as const) await fleet.tokenFile(role)
  const { controlPlane } = fleet
  const { dataDirectory } = controlPlane
  const there = join(disk.path, 'data')
  await controlPlane.stop()
  await cp(dataDirectory, there, {
    recursive: true,
    // As large as the whole disk may be; a control plane makes it again where there is room.
    filter: (from) => from !== join(dataDirectory, 'reserve'),
  })
  await chmod(there, 0o700)
  await run('mount', ['--bind', there, dataDirectory])
  await controlPlane.start()
  return {
    async [Symbol.asyncDispose]() {
      if (controlPlane.isRunning) await controlPlane.stop()
      await run('umount', [dataDirectory])
    },
  }
}

/** Writes until no more than `freeBytes` are left for anybody. */
export async function fillDisk(disk: RawDisk, freeBytes: number): Promise<void> {
  await using file = await open(join(disk.path, ballast), 'w')
  const piece = Buffer.alloc(64 * 1024, 1)
  try {
    for (;;) await file.write(piece)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  }
  const { size } = await file.stat()
  await file.truncate(Math.max(0, size - freeBytes))
  await file.sync()
}

/** Takes away what `fillDisk` wrote. */
export async function makeRoom(disk: RawDisk): Promise<void> {
  await rm(join(disk.path, ballast), { force: true })
}
