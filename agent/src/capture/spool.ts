/** The spool: one folder per job with ciphertext and sealed keys only, and its removal that looks again. */
import { constants } from 'node:fs'
import {
  type FileHandle,
  lstat,
  mkdir,
  open,
  readFile,
  readdir,
  rmdir,
  stat,
  statfs,
  unlink,
} from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { type JobId, jobId } from '@sluice/protocol/ids'
import { diskEffects, isMissing } from '../durable-file.ts'

/** Files of one job, each 0600 in a folder of mode 0700. */
export const spoolFiles = {
  /** The job key, sealed to a one-time receive key of the control plane. */
  envelope: 'envelope',
  archive: 'archive.sealed',
  /** 32 bytes: the private seed results are sealed to. Overwritten in place before it is unlinked. */
  resultSeed: 'result-seed',
} as const

export function spoolFolder(spoolDir: string, id: JobId): string {
  return path.join(spoolDir, id)
}

/**
 * Makes the spool if it is not there, and refuses one that others can look into.
 *
 * @throws SluiceError `host.unsafe_file`.
 */
export async function prepareSpool(spoolDir: string): Promise<void> {
  await mkdir(spoolDir, { recursive: true, mode: 0o700 })
  const facts = await stat(spoolDir)
  if ((facts.mode & 0o077) !== 0)
    throw new SluiceError('host.unsafe_file', `${spoolDir} is open to group or others`, {
      hint: `chmod 700 ${spoolDir}`,
    })
}

/**
 * @param room.bytes What is about to be written.
 * @param room.reserveBytes What must stay free for everything else on that file system.
 * @throws SluiceError `spool.full` (later).
 */
export async function requireRoom(
  spoolDir: string,
  room: { bytes: number; reserveBytes: number },
): Promise<void> {
  const { bavail, bsize } = await statfs(spoolDir)
  const freeBytes = bavail * bsize
  if (freeBytes >= room.bytes + room.reserveBytes) return
  throw new SluiceError(
    'spool.full',
    `the spool has ${freeBytes} bytes left, too few for ${room.bytes}`,
    {
      retry: 'later',
      hint: `Free space or lower "spoolReserveBytes" (${room.reserveBytes}); sealing goes on by itself.`,
    },
  )
}

/** Makes a job's folder, durably. It must not be there: a job is sealed once. */
export async function createSpoolFolder(spoolDir: string, id: JobId): Promise<string> {
  const folder = spoolFolder(spoolDir, id)
  await mkdir(folder, { mode: 0o700 })
  await diskEffects.syncFolder(spoolDir)
  return folder
}

/** Opens the file a sealing writes into; it must not be there. The caller syncs and closes it. */
export function createSpoolFile(folder: string, name: string): Promise<FileHandle> {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
  return open(path.join(folder, name), flags, 0o600)
}

/** Opens a complete archive for upload. @throws SluiceError `spool.damaged` when it is gone. */
export async function openSpooledArchive(spoolDir: string, id: JobId): Promise<FileHandle> {
  try {
    const file = path.join(spoolFolder(spoolDir, id), spoolFiles.archive)
    return await open(file, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (cause) {
    throw damaged(id, cause)
  }
}

/** The envelope of a job. @throws SluiceError `spool.damaged` when it is gone. */
export async function readSpooledEnvelope(spoolDir: string, id: JobId): Promise<Buffer> {
  try {
    return await readFile(path.join(spoolFolder(spoolDir, id), spoolFiles.envelope))
  } catch (cause) {
    throw damaged(id, cause)
  }
}

function damaged(id: JobId, cause: unknown): SluiceError {
  if (!isMissing(cause)) throw cause
  return new SluiceError('spool.damaged', `the spool of job ${id} is incomplete`, {
    hint: 'Something else removed its files. Submit the source again.',
    cause,
  })
}

export async function hasResultSeed(spoolDir: string, id: JobId): Promise<boolean> {
  return exists(path.join(spoolFolder(spoolDir, id), spoolFiles.resultSeed))
}

/**
 * Removes ciphertext and envelope of a job, syncs, and looks again. May be called any number of
 * times, also for a job this host never had.
 *
 * @returns What was found gone, in the words of a receipt.
 */
export async function deleteSealed(spoolDir: string, id: JobId): Promise<string[]> {
  const folder = spoolFolder(spoolDir, id)
  const names = [spoolFiles.archive, spoolFiles.envelope]
  for (const name of names) await unlinkIfThere(path.join(folder, name))
  // Somebody else may take the folder itself away at the same time.
  await diskEffects.syncFolder(folder).catch(unlessMissing)
  for (const name of names)
    if (await exists(path.join(folder, name)))
      throw new SluiceError('wipe.incomplete', `${name} of job ${id} came back after its removal`, {
        retry: 'later',
      })
  return ['archive unlinked and gone', 'envelope unlinked and gone']
}

/**
 * Overwrites the seed in place, syncs and removes it, then removes the folder. On a copy-on-write
 * file system the old bytes may stay; without the sealed result, which is deleted elsewhere, they
 * open nothing.
 */
export async function deleteResultSeed(spoolDir: string, id: JobId): Promise<void> {
  const folder = spoolFolder(spoolDir, id)
  const file = path.join(folder, spoolFiles.resultSeed)
  if (await exists(file)) {
    await using handle = await open(file, constants.O_RDWR | constants.O_NOFOLLOW)
    const { size } = await handle.stat()
    await handle.write(Buffer.alloc(size), 0, size, 0)
    await handle.sync()
  }
  await unlinkIfThere(file)
}

/**
 * Removes everything of a job: for a sealing cut short, and when a job is over. An order and a purge
 * may remove the same one at the same time: whoever finds something taken away under it looks again.
 */
export async function deleteSpool(spoolDir: string, id: JobId): Promise<void> {
  const folder = spoolFolder(spoolDir, id)
  if (!(await exists(folder))) return
  while (await exists(folder)) {
    try {
      await deleteResultSeed(spoolDir, id)
      await deleteSealed(spoolDir, id)
      // What a crash in the middle of a write left behind.
      for (const name of await readdir(folder)) await unlinkIfThere(path.join(folder, name))
      await rmdir(folder)
    } catch (error) {
      if (!isMissing(error)) throw error
    }
  }
  await diskEffects.syncFolder(spoolDir)
}

function unlessMissing(error: unknown): void {
  if (!isMissing(error)) throw error
}

/** Jobs that have a folder in the spool. */
export async function spooledJobs(spoolDir: string): Promise<JobId[]> {
  return (await listSpool(spoolDir)).jobIds
}

/** What lies in the spool; a spool that was never made is empty. */
export async function listSpool(
  spoolDir: string,
): Promise<{ jobIds: JobId[]; /** Entries whose names tell no job. */ unnamed: number }> {
  let names: string[]
  try {
    names = await readdir(spoolDir)
  } catch (error) {
    if (!isMissing(error)) throw error
    names = []
  }
  const jobIds = names.flatMap((name) => jobId.safeParse(name).data ?? [])
  return { jobIds, unnamed: names.length - jobIds.length }
}

/** Size of a job's sealed archive as it lies here; 0 when there is none. */
export async function spooledBytes(spoolDir: string, id: JobId): Promise<number> {
  try {
    return (await lstat(path.join(spoolFolder(spoolDir, id), spoolFiles.archive))).size
  } catch (error) {
    if (isMissing(error)) return 0
    throw error
  }
}

async function exists(file: string): Promise<boolean> {
  try {
    await lstat(file)
    return true
  } catch (error) {
    if (isMissing(error)) return false
    throw error
  }
}

async function unlinkIfThere(file: string): Promise<void> {
  try {
    await unlink(file)
  } catch (error) {
    if (!isMissing(error)) throw error
  }
}
