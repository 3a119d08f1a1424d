/** Opens what was sealed, as a stream or by ranges; no byte leaves before its chunk is authenticated. */
import assert from 'node:assert/strict'
import { SluiceError } from '../errors.ts'
import { limits } from '../limits.ts'
import type { AeadEngine } from './aead.ts'
import { chunkKeysOf, createChunkOpener, type ChunkOpener } from './chunks.ts'
import {
  chunkBytes,
  chunkOffset,
  headerBytes,
  plaintextBytesOf,
  sealedChunkBytes,
  tagBytes,
} from './sealed-size.ts'

export type UnsealOptions = {
  /** 32 bytes. Stays the caller's, who keeps it until the header was read and then zeroes it. */
  key: Uint8Array
  /** What the object is expected to be bound to, see `context.ts`. */
  context: Uint8Array
  engine?: AeadEngine
}

/**
 * Checks that a key opens the object this header belongs to, before any of it was fetched.
 *
 * @param options.header The object's first 56 bytes.
 * @throws SluiceError `seal.wrong_key`, `seal.truncated` for another size, `seal.bad_input`.
 */
export function checkSealedHeader(options: UnsealOptions & { header: Uint8Array }): void {
  if (options.header.length !== headerBytes) throw truncated()
  chunkKeysOf(options)[Symbol.dispose]()
}

/**
 * One opening of a whole sealed object, fed in order in pieces of any size. Plaintext that came
 * out is authentic, and the first part of what was sealed; only a `final` that returns says that
 * it is all. After a failure every further call throws that same failure.
 */
export type Unsealer = Disposable & {
  /**
   * Opens more of the object. Long streams use `updateInto`, which makes no new buffer a call.
   *
   * @returns New buffer with the plaintext of all chunks now complete; the caller zeroes it.
   * @throws SluiceError `seal.wrong_key`, `seal.tampered`, `seal.finished`, `object.too_large`.
   */
  update(sealed: Uint8Array): Buffer
  /**
   * As `update`, into a buffer of the caller's with room for `updateBytes(sealed.length)`, which
   * must not overlap `sealed`.
   *
   * @returns How many bytes were written; on failure `into` holds zeros there.
   */
  updateInto(sealed: Uint8Array, into: Uint8Array): number
  /** The most plaintext `update` would give for so many sealed bytes. */
  updateBytes(sealedBytes: number): number
  /**
   * Says that the object ends here.
   *
   * @returns The plaintext of the last chunk.
   * @throws SluiceError `seal.truncated`, `seal.tampered`, `seal.finished`.
   */
  final(): Buffer
}

/**
 * Begins the opening of a sealed stream. The key is copied (the header comes later) and zeroed as
 * soon as the header was read.
 *
 * @throws SluiceError `seal.bad_input` unless the key has 32 bytes.
 */
export function createUnsealer(options: UnsealOptions): Unsealer {
  const key = Buffer.from(options.key)
  const context = Buffer.from(options.context)
  const pending = Buffer.allocUnsafeSlow(sealedChunkBytes)
  let chunks: ChunkOpener | undefined
  let pendingBytes = 0
  let index = 0
  let failure: unknown

  function end(reason: unknown): void {
    failure ??= reason
    key.fill(0)
    chunks?.[Symbol.dispose]()
  }

  /** Runs one step; whatever it throws ends the opening for good. */
  function step<T>(work: () => T): T {
    // oxlint-disable-next-line typescript/only-throw-error -- it was thrown before, as it is
    if (failure !== undefined) throw failure
    try {
      return work()
    } catch (error) {
      end(error)
      throw error
    }
  }

  function updateBytes(sealed: number): number {
    const body = pendingBytes + sealed - (chunks ? 0 : headerBytes)
    return Math.max(0, Math.floor(body / sealedChunkBytes)) * chunkBytes
  }

  /** Moves bytes into `pending` until it holds `wanted`; gives how many it took. */
  function collect(sealed: Uint8Array, wanted: number): number {
    const taken = Math.min(wanted - pendingBytes, sealed.length)
    pending.set(sealed.subarray(0, taken), pendingBytes)
    pendingBytes += taken
    return taken
  }

  function openFullChunks(sealed: Uint8Array, into: Uint8Array): number {
    let read = 0
    if (!chunks) {
      read = collect(sealed, headerBytes)
      if (pendingBytes < headerBytes) return 0
      using keys = chunkKeysOf({ key, context, header: pending.subarray(0, headerBytes) })
      chunks = createChunkOpener(keys, options.engine)
      key.fill(0)
      pendingBytes = 0
    }
    let written = 0
    const opener = chunks
    const openNext = (chunk: Uint8Array): void => {
      opener.openChunk(index, chunk, into.subarray(written, written + chunkBytes))
      index += 1
      written += chunkBytes
    }
    try {
      if (pendingBytes > 0) {
        read = collect(sealed, sealedChunkBytes)
        if (pendingBytes < sealedChunkBytes) return 0
        openNext(pending)
      }
      for (; read + sealedChunkBytes <= sealed.length; read += sealedChunkBytes) {
        openNext(sealed.subarray(read, read + sealedChunkBytes))
      }
    } catch (error) {
      into.fill(0, 0, written)
      throw error
    }
    pending.set(sealed.subarray(read))
    pendingBytes = sealed.length - read
    return written
  }

  function updateInto(sealed: Uint8Array, into: Uint8Array): number {
    return step(() => {
      assert(into.length >= updateBytes(sealed.length), 'no room for the opened chunks')
      return openFullChunks(sealed, into)
    })
  }

  return {
    updateBytes,
    updateInto,
    update(sealed) {
      const into = Buffer.allocUnsafeSlow(updateBytes(sealed.length))
      updateInto(sealed, into)
      return into
    },
    final() {
      return step(() => {
        if (!chunks || pendingBytes < tagBytes) throw truncated()
        const into = Buffer.allocUnsafeSlow(pendingBytes - tagBytes)
        chunks.openChunk(index, pending.subarray(0, pendingBytes), into)
        end(finished())
        return into
      })
    },
    [Symbol.dispose]: () => end(finished()),
  }
}

/** Fetches exactly `length` sealed bytes from `offset`. */
export type ReadSealed = (offset: number, length: number) => Promise<Uint8Array>

/** A sealed object whose length is authenticated, open for reading anywhere. */
export type SealedReader = Disposable & {
  readonly plaintextBytes: number
  /** The object's first 56 bytes, checked. */
  readonly header: Buffer
  /**
   * Reads plaintext with one call of `read`. Calls may run at the same time.
   *
   * @param length At most `limits.rangeBytesMax`; a larger range is read in pieces.
   * @returns New buffer of exactly `length` bytes; the caller zeroes it.
   * @throws SluiceError `seal.bad_input` for a range outside the plaintext, `seal.tampered`,
   *   `seal.truncated` if `read` gave less, `seal.finished` after dispose; and what `read` throws.
   */
  readRange(offset: number, length: number): Promise<Buffer>
  /**
   * As `readRange`, filling a buffer of the caller's; on failure it holds zeros or what it held.
   * Let no two reads that run at the same time share one buffer.
   */
  readRangeInto(offset: number, into: Uint8Array): Promise<void>
}

/**
 * Opens a sealed object for random access: checks header and last chunk, and so the length, before
 * it serves any range.
 *
 * @param options.sealedBytes Size of the whole object, as its store gives it.
 * @throws SluiceError as `readRange`, and `seal.wrong_key`.
 */
export async function openSealed(
  options: UnsealOptions & { sealedBytes: number; read: ReadSealed },
): Promise<SealedReader> {
  const { sealedBytes, read } = options
  const total = plaintextBytesOf(sealedBytes)
  const lastIndex = Math.floor(total / chunkBytes)
  const header = Buffer.from(await readExactly(read, 0, headerBytes))
  using keys = chunkKeysOf({ key: options.key, context: options.context, header })
  const chunks = createChunkOpener(keys, options.engine)
  let disposed = false
  const dispose = (): void => {
    disposed = true
    chunks[Symbol.dispose]()
  }

  async function readRangeInto(offset: number, into: Uint8Array): Promise<void> {
    const { length } = into
    requireRange(offset, length, total)
    if (disposed) throw finished()
    if (length === 0) return
    const first = Math.floor(offset / chunkBytes)
    const last = Math.floor((offset + length - 1) / chunkBytes)
    const start = chunkOffset(first)
    const end = Math.min(chunkOffset(last + 1), sealedBytes)
    const sealed = await readExactly(read, start, end - start)
    if (disposed) throw finished()
    openRange({ chunks, sealed, first, skip: offset - first * chunkBytes, into })
  }

  async function readRange(offset: number, length: number): Promise<Buffer> {
    requireRange(offset, length, total)
    const output = Buffer.allocUnsafeSlow(length)
    await readRangeInto(offset, output)
    return output
  }

  try {
    const start = chunkOffset(lastIndex)
    const sealed = await readExactly(read, start, sealedBytes - start)
    const last = Buffer.allocUnsafeSlow(sealed.length - tagBytes)
    chunks.openChunk(lastIndex, sealed, last)
    last.fill(0)
  } catch (error) {
    dispose()
    throw error
  }
  return { plaintextBytes: total, header, readRange, readRangeInto, [Symbol.dispose]: dispose }
}

/** Opens the chunks in `sealed`, of which `first` is the first, and fills `into` from byte `skip`. */
function openRange(options: {
  chunks: ChunkOpener
  sealed: Uint8Array
  first: number
  skip: number
  into: Uint8Array
}): void {
  const { chunks, sealed, first, skip, into } = options
  const edge = Buffer.allocUnsafeSlow(chunkBytes)
  let written = 0
  try {
    for (let k = 0; k * sealedChunkBytes < sealed.length; k += 1) {
      const chunk = sealed.subarray(k * sealedChunkBytes, (k + 1) * sealedChunkBytes)
      const opened = chunk.length - tagBytes
      const from = k === 0 ? skip : 0
      const wanted = Math.min(opened - from, into.length - written)
      if (wanted === opened) {
        chunks.openChunk(first + k, chunk, into.subarray(written, written + opened))
      } else {
        // Only a part of this chunk is asked for, but all of it has to be authenticated.
        chunks.openChunk(first + k, chunk, edge)
        into.set(edge.subarray(from, from + wanted), written)
      }
      written += wanted
    }
  } catch (error) {
    into.fill(0)
    throw error
  } finally {
    edge.fill(0)
  }
}

function requireRange(offset: number, length: number, total: number): void {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length)
  if (whole && offset >= 0 && length >= 0 && offset + length <= total) {
    if (length <= limits.rangeBytesMax) return
    throw new SluiceError('seal.bad_input', `a range of ${length} bytes is read in pieces`)
  }
  throw new SluiceError('seal.bad_input', 'the range lies outside the object')
}

async function readExactly(read: ReadSealed, offset: number, length: number): Promise<Uint8Array> {
  const bytes = await read(offset, length)
  if (bytes.length !== length) throw truncated()
  return bytes
}

function truncated(): SluiceError {
  return new SluiceError('seal.truncated', 'the sealed object is cut short', {
    hint: 'fetch or send the object again from its beginning',
  })
}

function finished(): SluiceError {
  return new SluiceError('seal.finished', 'this opening has ended')
}
