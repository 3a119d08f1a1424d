/** Writes opened media into a mounted directory in memory, and into nothing else. */
import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { open, statfs } from 'node:fs/promises'
import { SluiceError } from '@sluice/protocol/errors'
import type { MediumEntry } from '@sluice/protocol/manifest'

/** `f_type` of the only file systems that hold nothing but memory. @see statfs(2) */
const memoryFileSystems = new Set([0x01021994, 0x858458f6])

/**
 * Writes each medium as a read-only file of its own name.
 *
 * The folder is opened once and everything is reached through that descriptor: should the mount
 * vanish meanwhile, no byte can end in the folder on disk that lies under it.
 *
 * @param options.bytesMax Bound of all files together; ramfs has none of its own.
 * @throws SluiceError `node.swap_possible` unless the folder is a file system in memory,
 * `object.too_large` beyond the bound, and what `read` throws.
 */
export async function exposeMedia(options: {
  directory: string
  media: readonly MediumEntry[]
  read: (entry: MediumEntry) => AsyncIterable<Buffer>
  bytesMax: number
}): Promise<void> {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
  await using folder = await open(options.directory, flags)
  const inside = `/proc/self/fd/${folder.fd}`
  const { type } = await statfs(inside)
  if (!memoryFileSystems.has(type)) {
    throw new SluiceError('node.swap_possible', 'The directory for media is not in memory.', {
      hint: 'Nothing was written. Look at the mounts below the runtime directory of the agent.',
    })
  }
  let written = 0
  for (const entry of options.media) {
    if (written + entry.bytes > options.bytesMax) {
      throw new SluiceError('object.too_large', 'The media do not fit into memory of this node.', {
        hint: 'Raise "mediaBytesMax" of the analyser, or send fewer media per job.',
      })
    }
    const create = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
    await using file = await open(`${inside}/${entry.name}`, create, 0o400)
    for await (const piece of options.read(entry)) {
      try {
        for (let done = 0; done < piece.length;) {
          const { bytesWritten } = await file.write(piece, done)
          done += bytesWritten
        }
        written += piece.length
      } finally {
        piece.fill(0)
      }
    }
    assert.equal((await file.stat()).size, entry.bytes)
  }
}
