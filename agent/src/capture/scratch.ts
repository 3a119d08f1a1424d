/** Holds a normalised medium until it is archived: in memory when small, else encrypted in a file without a name. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { open, unlink } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { scratchContext } from '@sluice/protocol/sealing/context'
import { createSealer } from '@sluice/protocol/sealing/seal'
import type { Sealer } from '@sluice/protocol/sealing/seal'
import { openSealed } from '@sluice/protocol/sealing/unseal'

/** Bytes that can be read any number of times until they are disposed of, and then are gone. */
export type HeldBytes = AsyncDisposable & {
  readonly bytes: number
  /** Where they are; for tests and status. */
  readonly place: 'memory' | 'scratch'
  /** From the first byte to the last; the pieces are the reader's and may be zeroed by it. */
  read(): AsyncGenerator<Buffer>
}

export type HoldOptions = {
  /** Folder for scratch; needs no protection of its own, as only ciphertext gets there. */
  scratchFolder: string
  /** More than this goes to scratch; default `limits.mediumInMemoryBytesMax`. */
  inMemoryBytesMax?: number
}

/** One piece when reading back. */
const readBytes = 1024 ** 2

/**
 * Reads `source` to its end and holds what it gave.
 *
 * @throws SluiceError `host.disk_full` when scratch finds no room; what `source` throws.
 */
export async function hold(
  source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: HoldOptions,
): Promise<HeldBytes> {
  const inMemoryBytesMax = options.inMemoryBytesMax ?? limits.mediumInMemoryBytesMax
  const pieces: Buffer[] = []
  let bytes = 0
  let scratch: ScratchWriter | undefined
  try {
    for await (const piece of source) {
      bytes += piece.length
      if (scratch === undefined && bytes > inMemoryBytesMax) {
        scratch = await createScratch(options.scratchFolder)
        for (const earlier of pieces) {
          await scratch.write(earlier)
          earlier.fill(0)
        }
        pieces.length = 0
      }
      if (scratch === undefined) pieces.push(Buffer.from(piece))
      else await scratch.write(piece)
    }
    return scratch === undefined ? inMemory(pieces, bytes) : await scratch.finish()
  } catch (error) {
    for (const piece of pieces) piece.fill(0)
    await scratch?.discard()
    throw error
  }
}

/** Puts `head` before what `rest` holds; disposing of it disposes of both. */
export function withHead(head: Buffer, rest: HeldBytes): HeldBytes {
  return {
    bytes: head.length + rest.bytes,
    place: rest.place,
    async *read() {
      yield Buffer.from(head)
      yield* rest.read()
    },
    async [Symbol.asyncDispose]() {
      head.fill(0)
      await rest[Symbol.asyncDispose]()
    },
  }
}

function inMemory(pieces: readonly Buffer[], bytes: number): HeldBytes {
  let disposed = false
  return {
    bytes,
    place: 'memory',
    async *read() {
      for (const piece of pieces) {
        if (disposed) throw new SluiceError('internal', 'these bytes were disposed of')
        yield Buffer.from(piece)
      }
    },
    async [Symbol.asyncDispose]() {
      disposed = true
      for (const piece of pieces) piece.fill(0)
    },
  }
}

type ScratchWriter = {
  write(piece: Uint8Array): Promise<void>
  finish(): Promise<HeldBytes>
  discard(): Promise<void>
}

/**
 * Scratch: Cobblestone-256 under a key that exists only in this process, in a file that has no name
 * from the start, so that neither a crash nor a power cut leaves anything that could be read.
 */
async function createScratch(folder: string): Promise<ScratchWriter> {
  const key = randomBytes(32)
  let sealer: Sealer
  let file: FileHandle
  try {
    file = await openNameless(folder)
  } catch (cause) {
    key.fill(0)
    throw scratchFailure(cause)
  }
  try {
    sealer = createSealer({ key, context: scratchContext() })
    await append(file, sealer.header)
  } catch (error) {
    key.fill(0)
    await file.close()
    throw error
  }
  let plaintextBytes = 0
  const discard = async () => {
    sealer[Symbol.dispose]()
    key.fill(0)
    await file.close()
  }
  return {
    async write(piece) {
      plaintextBytes += piece.length
      await append(file, sealer.update(piece))
    },
    async finish() {
      await append(file, sealer.final())
      return scratchReader({ file, key, bytes: plaintextBytes })
    },
    discard,
  }
}

function scratchReader(options: { file: FileHandle; key: Buffer; bytes: number }): HeldBytes {
  const { file, key, bytes } = options
  return {
    bytes,
    place: 'scratch',
    async *read() {
      const { size } = await file.stat()
      const read = async (offset: number, length: number) => {
        const into = Buffer.alloc(length)
        const { bytesRead } = await file.read(into, 0, length, offset)
        return into.subarray(0, bytesRead)
      }
      using reader = await openSealed({ key, context: scratchContext(), sealedBytes: size, read })
      for (let at = 0; at < bytes; at += readBytes) {
        yield await reader.readRange(at, Math.min(readBytes, bytes - at))
      }
    },
    async [Symbol.asyncDispose]() {
      key.fill(0)
      await file.close()
    },
  }
}

async function append(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    try {
      at += (await file.write(bytes, at)).bytesWritten
    } catch (cause) {
      throw scratchFailure(cause)
    }
  }
}

/** `__O_TMPFILE` of Linux; the flag counts only together with O_DIRECTORY. */
const nameless = 0o20000000 | constants.O_DIRECTORY

async function openNameless(folder: string): Promise<FileHandle> {
  try {
    return await open(folder, nameless | constants.O_RDWR, 0o600)
  } catch (error) {
    if (!isCode(error, ['EOPNOTSUPP', 'EISDIR', 'EINVAL'])) throw error
  }
  const name = path.join(folder, `.scratch-${randomBytes(8).toString('hex')}`)
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
  const file = await open(name, flags, 0o600)
  try {
    await unlink(name)
  } catch (error) {
    await file.close()
    throw error
  }
  return file
}

function scratchFailure(cause: unknown): SluiceError {
  if (isCode(cause, ['ENOSPC', 'EDQUOT'])) {
    return new SluiceError('host.disk_full', 'the disk has no room for scratch', {
      retry: 'later',
      hint: 'Free some space in the folder for scratch, or name another one.',
      cause,
    })
  }
  return new SluiceError('spool.damaged', 'scratch cannot be written', {
    hint: 'Check that the folder for scratch exists and belongs to the agent.',
    cause,
  })
}

function isCode(error: unknown, codes: readonly string[]): boolean {
  return error instanceof Error && 'code' in error && codes.includes(String(error.code))
}
