/** Opens a job's sealed archive range by range; what comes out is authentic, complete and as declared. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import {
  blockBytes,
  checkEntryHeader,
  checkLayout,
  entryHeaderBytes,
  manifestName,
  parseTrailer,
  trailerBytes,
} from '@sluice/protocol/archive'
import { SluiceError } from '@sluice/protocol/errors'
import type { JobId } from '@sluice/protocol/ids'
import { manifest, type Manifest, type MediumEntry } from '@sluice/protocol/manifest'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { openSealed, type ReadSealed, type SealedReader } from '@sluice/protocol/sealing/unseal'

/** Plaintext held at a time, twice: one piece at the analyser, one being fetched. 64 whole chunks. */
const pieceBytes = 1024 ** 2

export type OpenArchive = Disposable & {
  readonly manifest: Manifest
  /**
   * The bytes of one medium in order. The last piece comes only after the SHA-256 of the whole
   * medium was found right, so nobody ever has a complete medium that is not the declared one.
   *
   * @throws SluiceError `archive.mismatch`, and as `SealedReader.readRange`.
   */
  readMedium(entry: MediumEntry): AsyncGenerator<Buffer, void, void>
}

/**
 * Opens header, last chunk, index and manifest, and checks that they belong together.
 *
 * @param options.key Stays the caller's, who may zero it when this returns.
 * @param options.sealedHeader The header that was announced; the object must begin with it.
 * @throws SluiceError `seal.*`, `archive.*`, `manifest.invalid`, and what `read` throws.
 */
export async function openArchive(options: {
  jobId: JobId
  analyser: string
  key: Uint8Array
  sealedHeader: Uint8Array
  sealedBytes: number
  read: ReadSealed
}): Promise<OpenArchive> {
  const { jobId, key, sealedBytes, read } = options
  const reader = await openSealed({ key, context: archiveContext(jobId), sealedBytes, read })
  try {
    if (!reader.header.equals(options.sealedHeader)) {
      throw new SluiceError('seal.wrong_key', 'the object is not the one that was announced')
    }
    const checked = await readManifest(reader)
    if (checked.jobId !== jobId || checked.analyser !== options.analyser) {
      throw new SluiceError('archive.mismatch', 'The manifest belongs to another job or analyser.')
    }
    return {
      manifest: checked,
      readMedium: (entry) => readMedium(reader, entry),
      [Symbol.dispose]: () => reader[Symbol.dispose](),
    }
  } catch (error) {
    reader[Symbol.dispose]()
    throw error
  }
}

async function readManifest(reader: SealedReader): Promise<Manifest> {
  const { plaintextBytes } = reader
  if (plaintextBytes < trailerBytes + blockBytes) {
    throw new SluiceError('archive.malformed', 'The archive is malformed: it is too short.')
  }
  const trailer = await reader.readRange(plaintextBytes - trailerBytes, trailerBytes)
  const index = parseTrailer(trailer, plaintextBytes)
  const bytes = await readEntry(reader, {
    name: manifestName,
    offset: index.manifestOffset,
    bytes: index.manifestBytes,
  })
  try {
    const parsed = manifest.safeParse(parseJson(bytes))
    // What is wrong stays unsaid: it could quote the manifest.
    if (!parsed.success) throw new SluiceError('manifest.invalid', 'The manifest is not valid.')
    checkLayout(parsed.data.media, index)
    const names = new Set(parsed.data.media.map((entry) => entry.name))
    if (names.size !== parsed.data.media.length) {
      throw new SluiceError('manifest.invalid', 'The manifest names a medium twice.')
    }
    return parsed.data
  } finally {
    bytes.fill(0)
  }
}

async function readEntry(
  reader: SealedReader,
  entry: { name: string; offset: number; bytes: number },
): Promise<Buffer> {
  await checkHeader(reader, entry)
  return await reader.readRange(entry.offset, entry.bytes)
}

async function checkHeader(
  reader: SealedReader,
  entry: { name: string; offset: number; bytes: number },
): Promise<void> {
  const length = entryHeaderBytes(entry.bytes)
  if (entry.offset < length) {
    throw new SluiceError('archive.mismatch', `The entry ${entry.name} has no header.`)
  }
  checkEntryHeader(entry, await reader.readRange(entry.offset - length, length))
}

async function* readMedium(
  reader: SealedReader,
  entry: MediumEntry,
): AsyncGenerator<Buffer, void, void> {
  await checkHeader(reader, entry)
  const digest = createHash('sha256')
  const end = entry.offset + entry.bytes
  const fetch = (offset: number): Promise<Buffer> => {
    // Pieces end on chunk borders, so that no chunk is fetched twice.
    const border = (Math.floor(offset / pieceBytes) + 1) * pieceBytes
    const piece = reader.readRange(offset, Math.min(border, end) - offset)
    // Whoever awaits it sees the failure; a consumer that stopped early has no use for it.
    piece.catch(() => undefined)
    return piece
  }
  let offset = entry.offset
  let next = fetch(offset)
  for (;;) {
    const piece = await next
    digest.update(piece)
    offset += piece.length
    assert.ok(offset <= end)
    if (offset === end) {
      if (digest.digest('hex') !== entry.sha256) {
        piece.fill(0)
        throw new SluiceError('archive.mismatch', `The medium ${entry.name} is not as declared.`)
      }
      if (piece.length > 0) yield piece
      return
    }
    next = fetch(offset)
    yield piece
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch {
    return undefined
  }
}
