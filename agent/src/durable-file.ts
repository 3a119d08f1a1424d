/** Writes files so that a crash at any moment leaves the old state or the new one, whole. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { open, readdir, rename, unlink } from 'node:fs/promises'
import path from 'node:path'

/** Every effect on the file system that durability rests on; an argument so that tests can fail each. */
export type DurableEffects = {
  create(file: string, bytes: Uint8Array, mode: number): Promise<void>
  rename(from: string, to: string): Promise<void>
  unlink(file: string): Promise<void>
  syncFolder(folder: string): Promise<void>
}

export const diskEffects: DurableEffects = {
  async create(file, bytes, mode) {
    await using handle = await open(
      file,
      constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
      mode,
    )
    await handle.writeFile(bytes)
    await handle.sync()
  },
  rename,
  unlink,
  async syncFolder(folder) {
    await using handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
    await handle.sync()
  },
}

const suffixBytes = 6
const unfinished = new RegExp(`\\.[0-9a-f]{${2 * suffixBytes}}\\.new$`)

/** Removes what writes that a crash cut short have left in a folder, whose only writer is the caller. */
export async function sweepUnfinished(folder: string): Promise<void> {
  for (const name of await readdir(folder))
    if (unfinished.test(name)) await unlink(path.join(folder, name))
}

/**
 * Replaces a file as one step: written beside it under a random name, synced, renamed, and the
 * folder synced. When it returns, the new content survives a power cut.
 *
 * @param options.mode Default 0600.
 */
export async function writeDurably(
  file: string,
  bytes: Uint8Array,
  options: { mode?: number; effects?: DurableEffects } = {},
): Promise<void> {
  const effects = options.effects ?? diskEffects
  const temporary = `${file}.${randomBytes(suffixBytes).toString('hex')}.new`
  try {
    await effects.create(temporary, bytes, options.mode ?? 0o600)
    await effects.rename(temporary, file)
  } catch (error) {
    await effects.unlink(temporary).catch(() => {
      // It may never have come to be; what a crash leaves is swept by `sweepUnfinished`.
    })
    throw error
  }
  await effects.syncFolder(path.dirname(file))
}

/** Whether an error of `node:fs` says that the file is not there. */
export function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}

/** Whether an error of `node:fs` says that the disk or the quota is full. */
export function isDiskFull(error: unknown): boolean {
  return (
    error instanceof Error &&
    'code' in error &&
    (error.code === 'ENOSPC' || error.code === 'EDQUOT')
  )
}
