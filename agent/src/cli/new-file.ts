/** Writes the result of an offline tool: whole under its name, or not at all. */
import { randomBytes } from 'node:crypto'
import { access, constants, link, lstat, mkdir, open, rename, unlink } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { diskEffects, isDiskFull, isMissing } from '../durable-file.ts'

/** A file that has no name yet. Disposed without `finish`, nothing is left of it. */
export type NewFile = AsyncDisposable & {
  write(bytes: Uint8Array): Promise<void>
  /**
   * Makes it durable and gives it its name.
   *
   * @throws SluiceError `usage` when the name was taken meanwhile, `host.disk_full`.
   */
  finish(): Promise<void>
}

/**
 * Begins a file of mode 0600 beside its place.
 *
 * @throws SluiceError `usage` as `requireFree`, and when the folder cannot be written to.
 */
export async function openNewFile(target: string, options: { force: boolean }): Promise<NewFile> {
  await requireFree(target, options)
  // Short, so that the longest name a result may have is no longer than one that it can begin with.
  const temporary = path.join(path.dirname(target), `.${randomBytes(6).toString('hex')}.new`)
  const file = await open(temporary, 'wx', 0o600).catch((cause: unknown) =>
    throwUnwritable(path.dirname(target), cause),
  )
  return {
    write: (bytes) => file.writeFile(bytes).catch(rethrow),
    async finish() {
      await file.sync().catch(rethrow)
      if (options.force || !(await linked(temporary, target))) await rename(temporary, target)
      await diskEffects.syncFolder(path.dirname(path.resolve(target)))
    },
    async [Symbol.asyncDispose]() {
      await file.close()
      await unlink(temporary).catch((error: unknown) => {
        if (!isMissing(error)) throw error
      })
    },
  }
}

/**
 * Looks at the folder that results go to, before any work is done for one that takes none.
 *
 * @param options.make Whether it is made when it is not there.
 * @throws SluiceError `usage` when it cannot be made or written to, `host.disk_full`.
 */
export async function requireFolder(folder: string, options: { make: boolean }): Promise<void> {
  try {
    if (options.make) await mkdir(folder, { recursive: true, mode: 0o700 })
    await access(folder, constants.W_OK | constants.X_OK)
  } catch (error) {
    throwUnwritable(folder, error)
  }
}

function throwUnwritable(folder: string, cause: unknown): never {
  if (isDiskFull(cause)) rethrow(cause)
  throw new SluiceError('usage', `${folder} cannot be written to`, {
    hint: 'Name a file in a folder that exists and that you may write to.',
    cause,
  })
}

/** A link, unlike a rename, fails when the name is taken; false where a file system has no links. */
async function linked(temporary: string, target: string): Promise<boolean> {
  try {
    await link(temporary, target)
    return true
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EPERM' || code === 'ENOTSUP') return false
    if (code === 'EEXIST') throw taken(target, error)
    throw error
  }
}

/**
 * Looks whether a name may be written to, before any work is done.
 *
 * @throws SluiceError `usage` when it is taken and `force` was not said, or by anything but a
 * regular file: a device or a folder is never replaced.
 */
export async function requireFree(target: string, options: { force: boolean }): Promise<void> {
  let facts
  try {
    facts = await lstat(target)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENAMETOOLONG')
      throw new SluiceError('usage', `${target} is longer than a name may be`, {
        hint: 'Give the source a shorter name, or name the result yourself.',
        cause,
      })
    // Whatever else keeps it from being seen shows again when it is made.
    return
  }
  if (!facts.isFile())
    throw new SluiceError('usage', `${target} is not a regular file`, {
      hint: 'Name a file. Only seal and open write to standard output, named -.',
    })
  if (!options.force) throw taken(target)
}

function taken(target: string, cause?: unknown): SluiceError {
  return new SluiceError('usage', `${target} exists`, {
    hint: 'Name another file, or say --force to overwrite it.',
    cause,
  })
}

function rethrow(error: unknown): never {
  if (isDiskFull(error))
    throw new SluiceError('host.disk_full', 'the disk has no room for the result', {
      retry: 'later',
      hint: 'Free some space, or write it elsewhere.',
      cause: error,
    })
  throw error
}
