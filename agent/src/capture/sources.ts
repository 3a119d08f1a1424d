/** The customer's own files: told apart by identity, and moved or deleted only while they are the same file. */
import type { BigIntStats } from 'node:fs'
import { link, lstat, rename, unlink } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import type { SourcePolicy } from '@sluice/protocol/job'
import { diskEffects, isMissing } from '../durable-file.ts'
import type { SourceIdentity } from '../journal.ts'

/**
 * What a file is right now.
 *
 * @throws SluiceError `media.not_a_file` when it is missing, a link, a folder or a device.
 */
export async function identifySource(file: string): Promise<SourceIdentity> {
  let facts
  try {
    facts = await lstat(file, { bigint: true })
  } catch (cause) {
    throw new SluiceError('media.not_a_file', `${file} cannot be read`, {
      hint: isMissing(cause) ? 'There is no such file.' : 'Look at its permissions.',
      cause,
    })
  }
  if (!facts.isFile())
    throw new SluiceError('media.not_a_file', `${file} is not a regular file`, {
      hint: 'Links, folders and devices are not taken.',
    })
  return identityOf(file, facts)
}

function identityOf(file: string, facts: BigIntStats): SourceIdentity {
  return {
    path: file,
    device: String(facts.dev),
    inode: String(facts.ino),
    bytes: Number(facts.size),
    modifiedAtNs: String(facts.mtimeNs),
  }
}

/** Whether two looks saw the same unchanged file, whatever its name. */
export function isSameSource(left: SourceIdentity, right: SourceIdentity): boolean {
  return (
    left.device === right.device &&
    left.inode === right.inode &&
    left.bytes === right.bytes &&
    left.modifiedAtNs === right.modifiedAtNs
  )
}

/** While it is looked at for the last time a file has this name, so that nobody swaps it meanwhile. */
const takenSuffix = '.sluice-taken'

/**
 * Does with a source what its policy says. May be called again after a crash at any point.
 *
 * @param source What was sealed; a file that is another one by now is left alone.
 * @param options.moveTo Folder for `move`, on the same file system.
 * @throws SluiceError `media.changed` when another file stands in its place; `host.unsafe_file`
 * when it can't be moved where it should go.
 */
export async function handleSource(
  source: SourceIdentity,
  options: { action: SourcePolicy['action']; moveTo?: string | undefined },
): Promise<void> {
  if (options.action === 'keep') return
  const taken = `${source.path}${takenSuffix}`
  if (!(await identityIfThere(taken))) {
    // Nothing under either name: it was done before a crash, or the customer removed it.
    if (!(await identityIfThere(source.path))) return
    await rename(source.path, taken)
  }
  const found = await identityIfThere(taken)
  if (!found || !isSameSource(found, source)) {
    await putBack(taken, source.path)
    throw new SluiceError('media.changed', `${source.path} is another file than the one sealed`, {
      hint: 'It was left alone. Submit it again if it should be analysed too.',
    })
  }
  if (options.action === 'delete') await unlink(taken)
  else await moveTo(taken, source.path, options.moveTo)
  await diskEffects.syncFolder(path.dirname(source.path))
}

async function moveTo(taken: string, original: string, folder: string | undefined): Promise<void> {
  if (folder === undefined) {
    await putBack(taken, original)
    throw new SluiceError('config.invalid', 'a source is to be moved, but nowhere', {
      hint: 'Set "moveTo".',
    })
  }
  const target = path.join(folder, path.basename(original))
  try {
    // Unlike rename, this never replaces a file.
    await link(taken, target)
  } catch (cause) {
    const there = await identityIfThere(target)
    const ours = await identityIfThere(taken)
    // Linked before a crash: only the old name is left to remove.
    if (!there || !ours || !isSameSource(there, ours)) {
      await putBack(taken, original)
      throw new SluiceError('host.unsafe_file', `${original} cannot be moved to ${folder}`, {
        hint: '"moveTo" must be an existing folder on the same file system, without a file of that name.',
        cause,
      })
    }
  }
  await diskEffects.syncFolder(folder)
  await unlink(taken)
}

/** Gives a file its own name back, unless another file has it by now. */
async function putBack(taken: string, original: string): Promise<void> {
  try {
    await link(taken, original)
  } catch (cause) {
    throw new SluiceError('media.changed', `${original} was replaced while it was looked at`, {
      hint: `The file that had the name before is now called ${path.basename(taken)}.`,
      cause,
    })
  }
  await unlink(taken)
}

async function identityIfThere(file: string): Promise<SourceIdentity | undefined> {
  try {
    return identityOf(file, await lstat(file, { bigint: true }))
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
}
