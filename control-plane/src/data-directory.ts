/** The data directory: made once, with modes that keep everyone else out, and checked at every start. */
import { constants } from 'node:fs'
import { chmod, lstat, mkdir, open, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'

/** Paths inside the data directory. Only `sluice.db` and `objects` may ever enter a backup. */
export type DataDirectory = {
  root: string
  database: string
  /** CA certificates and keys. */
  authority: string
  /** The evidence key and its public half. */
  evidence: string
  /** Epoch keys; belongs to `keys/`. */
  epoch: string
  /** Objects of the directory store. */
  objects: string
  /** Only takes room, to be freed for a purge when the disk is full. */
  reserve: string
  /** Locked by the one control plane that runs here. */
  lock: string
  /** The owner's own door to the control plane, a Unix socket. */
  adminSocket: string
  /** The addresses of the running control plane, for scripts. */
  listeners: string
}

const folders = ['authority', 'evidence', 'epoch', 'objects'] as const

/** Names inside a data directory, whether it exists or not. */
export function dataDirectoryAt(root: string): DataDirectory {
  return {
    root,
    database: join(root, 'sluice.db'),
    authority: join(root, 'authority'),
    evidence: join(root, 'evidence'),
    epoch: join(root, 'epoch'),
    objects: join(root, 'objects'),
    reserve: join(root, 'reserve'),
    lock: join(root, 'lock'),
    adminSocket: join(root, 'admin.sock'),
    listeners: join(root, 'listeners.json'),
  }
}

/**
 * Makes the directory and its folders, 0700 each, or checks the ones that are there.
 *
 * @returns `fresh` when no control plane has lived there yet.
 * @throws SluiceError `host.unsafe_file` when one of them is a link, belongs to someone else, or is
 * open to group or others: it is never repaired silently, since somebody may have read it.
 */
export async function openDataDirectory(
  root: string,
): Promise<{ directory: DataDirectory; fresh: boolean }> {
  const directory = dataDirectoryAt(root)
  await ownFolder(root)
  let fresh = false
  for (const name of folders) {
    const made = await ownFolder(join(root, name))
    if (name === 'authority') fresh = made
  }
  return { directory, fresh }
}

/** @returns Whether it was made now. */
async function ownFolder(path: string): Promise<boolean> {
  const made = (await mkdir(path, { recursive: true, mode: 0o700 })) !== undefined
  // The umask may have narrowed the mode so far that its owner is shut out.
  if (made) await chmod(path, 0o700)
  await refuseOpenFolder(path)
  return made
}

async function refuseOpenFolder(path: string): Promise<void> {
  const facts = await lstat(path)
  const refuse = (why: string) =>
    new SluiceError('host.unsafe_file', `${path}: ${why}`, {
      hint: `Find out who could read it, then run: chmod 0700 ${path}`,
    })
  if (!facts.isDirectory()) throw refuse('is not a directory')
  if (facts.uid !== process.getuid?.()) throw refuse('belongs to another user')
  if ((facts.mode & 0o077) !== 0) throw refuse('is open to group or others')
}

/**
 * Writes a file durably: either all of it is there afterwards, or nothing is.
 *
 * @param mode `0o600` for what nobody else may read.
 */
export async function writeDurably(
  path: string,
  content: string | Uint8Array,
  mode: number,
): Promise<void> {
  const unfinished = `${path}.unfinished`
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW
  const file = await open(unfinished, flags, mode)
  try {
    await file.chmod(mode)
    await file.writeFile(content)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(unfinished, path)
  await syncFolder(join(path, '..'))
}

/** Makes what was renamed or removed in a folder durable. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

/** The file's content, or undefined when there is none. */
export async function readIfThere(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
