/** Lays media and manifest out as one POSIX tar with an index at its end, and refuses any other layout. */
import assert from 'node:assert/strict'
import { SluiceError } from './errors.ts'
import { limits } from './limits.ts'

/** Tar counts in blocks of 512 bytes (POSIX.1-2001, pax interchange format). */
export const blockBytes = 512

/** Two blocks of zeros end a tar. */
export const endBytes = 2 * blockBytes

/** The index after the tar's end: the last 512 bytes of the plaintext. */
export const trailerBytes = blockBytes

/** The last entry of every archive. */
export const manifestName = 'manifest.json'

const trailerMagic = Buffer.from('sluice-index/1')

/** The size field of ustar has 11 octal digits; from here on a pax record carries the size. */
const ustarBytesMax = 8 * 1024 ** 3 - 1

/** Our names are short ASCII; ustar's name field has 100 bytes, and the pax header's name a prefix. */
const entryName = /^[0-9A-Za-z][0-9A-Za-z._-]{0,79}$/

/** What surrounds the bytes of one entry. */
export type EntryPlan = {
  /** One block, or three when the size needs a pax record. The caller owns it. */
  header: Buffer
  /** Zeros that follow the entry's bytes up to the next block, 0 to 511. */
  paddingBytes: number
}

/** Where the manifest lies; offsets count from the first byte of the opened archive. */
export type ArchiveIndex = {
  manifestOffset: number
  manifestBytes: number
  /** The whole plaintext, trailer included. */
  archiveBytes: number
}

/** One medium as far as the layout is concerned; `offset` is its first byte, behind its tar header. */
export type PlacedEntry = { name: string; offset: number; bytes: number }

/**
 * Plans one entry of known size. The same name and size always give the same header: no owner, no
 * time, mode 0444.
 *
 * @param name Short ASCII name without a folder.
 * @param bytes Size of the entry's content.
 */
export function planEntry(name: string, bytes: number): EntryPlan {
  assert.match(name, entryName)
  assert.ok(Number.isSafeInteger(bytes) && bytes >= 0)
  const paddingBytes = paddingAfter(bytes)
  if (bytes <= ustarBytesMax) {
    return { header: ustarHeader({ name, bytes, type: '0' }), paddingBytes }
  }
  const record = Buffer.from(paxRecord('size', String(bytes)))
  const header = Buffer.concat([
    ustarHeader({ name: `PaxHeaders/${name}`, bytes: record.length, type: 'x' }),
    record,
    Buffer.alloc(paddingAfter(record.length)),
    // A reader takes the size from the record; the field itself cannot hold it.
    ustarHeader({ name, bytes: 0, type: '0' }),
  ])
  return { header, paddingBytes }
}

/** Bytes of the header that {@link planEntry} puts before an entry of this size. */
export function entryHeaderBytes(bytes: number): number {
  return bytes <= ustarBytesMax ? blockBytes : 3 * blockBytes
}

/** What follows the last entry's padding: the tar's end and the trailer. */
export function archiveEnd(index: ArchiveIndex): Buffer {
  assert.equal(index.archiveBytes, expectedArchiveBytes(index))
  const end = Buffer.alloc(endBytes + trailerBytes)
  trailerMagic.copy(end, endBytes)
  end.writeBigUInt64LE(BigInt(index.manifestOffset), endBytes + 16)
  end.writeBigUInt64LE(BigInt(index.manifestBytes), endBytes + 24)
  end.writeBigUInt64LE(BigInt(index.archiveBytes), endBytes + 32)
  return end
}

/** The index of an archive whose manifest entry begins (with its header) at `manifestHeaderOffset`. */
export function planIndex(options: {
  manifestHeaderOffset: number
  manifestBytes: number
}): ArchiveIndex {
  const { manifestHeaderOffset, manifestBytes } = options
  const manifestOffset = manifestHeaderOffset + entryHeaderBytes(manifestBytes)
  return {
    manifestOffset,
    manifestBytes,
    archiveBytes: expectedArchiveBytes({ manifestOffset, manifestBytes }),
  }
}

/**
 * Reads the index out of an opened archive's last 512 bytes. The reader then checks the manifest's
 * own tar header with {@link checkEntryHeader}, under {@link manifestName}, as for any entry.
 *
 * @param trailer Exactly the last {@link trailerBytes} bytes of the plaintext.
 * @param plaintextBytes Size of the whole plaintext, as the sealed form tells it.
 * @throws SluiceError `archive.malformed` unless every field is what a writer would have written.
 */
export function parseTrailer(trailer: Uint8Array, plaintextBytes: number): ArchiveIndex {
  const bytes = Buffer.from(trailer.buffer, trailer.byteOffset, trailer.byteLength)
  if (bytes.length !== trailerBytes) throw malformed('its index is cut short')
  const magic = bytes.subarray(0, 16)
  if (!magic.equals(Buffer.concat([trailerMagic, Buffer.alloc(2)]))) {
    throw malformed('it ends without an index')
  }
  if (bytes.subarray(40).some((byte) => byte !== 0)) throw malformed('its index holds unknown data')
  const index = {
    manifestOffset: safeInteger(bytes.readBigUInt64LE(16)),
    manifestBytes: safeInteger(bytes.readBigUInt64LE(24)),
    archiveBytes: safeInteger(bytes.readBigUInt64LE(32)),
  }
  if (index.manifestBytes > limits.manifestBytesMax) throw malformed('its manifest is too large')
  if (index.archiveBytes !== plaintextBytes) throw malformed('its length is not the recorded one')
  const aligned = index.manifestOffset % blockBytes === 0 && index.manifestOffset >= blockBytes
  if (!aligned || index.archiveBytes !== expectedArchiveBytes(index)) {
    throw malformed('its manifest does not lie where the index says')
  }
  return index
}

/**
 * Checks that the media follow each other without gap or overlap, from the first byte to the
 * manifest. After this, and {@link checkEntryHeader} for an entry, its offset and size can be trusted.
 *
 * @throws SluiceError `archive.mismatch`.
 */
export function checkLayout(media: readonly PlacedEntry[], index: ArchiveIndex): void {
  let end = 0
  for (const entry of media) {
    if (entry.offset !== end + entryHeaderBytes(entry.bytes)) throw mismatch(entry.name)
    end = entry.offset + entry.bytes + paddingAfter(entry.bytes)
  }
  if (index.manifestOffset !== end + entryHeaderBytes(index.manifestBytes)) {
    throw mismatch(manifestName)
  }
}

/**
 * Compares the tar header that stands before an entry with what the manifest says about it.
 *
 * @param header The {@link entryHeaderBytes} bytes that end where the entry begins.
 * @throws SluiceError `archive.mismatch` if it isn't byte for byte the header of that name and size.
 */
export function checkEntryHeader(
  entry: Pick<PlacedEntry, 'name' | 'bytes'>,
  header: Uint8Array,
): void {
  if (!planEntry(entry.name, entry.bytes).header.equals(header)) throw mismatch(entry.name)
}

function expectedArchiveBytes(
  index: Pick<ArchiveIndex, 'manifestOffset' | 'manifestBytes'>,
): number {
  const { manifestOffset, manifestBytes } = index
  return manifestOffset + manifestBytes + paddingAfter(manifestBytes) + endBytes + trailerBytes
}

function paddingAfter(bytes: number): number {
  return (blockBytes - (bytes % blockBytes)) % blockBytes
}

/** @see POSIX.1-2017, pax, "ustar Interchange Format": field offsets and the header checksum. */
function ustarHeader(options: { name: string; bytes: number; type: '0' | 'x' }): Buffer {
  const header = Buffer.alloc(blockBytes)
  header.write(options.name, 0, 100, 'ascii')
  header.write('0000444\0', 100, 'ascii')
  header.write('0000000\0', 108, 'ascii')
  header.write('0000000\0', 116, 'ascii')
  header.write(`${options.bytes.toString(8).padStart(11, '0')}\0`, 124, 'ascii')
  header.write('00000000000\0', 136, 'ascii')
  header.write('        ', 148, 'ascii')
  header.write(options.type, 156, 'ascii')
  header.write('ustar\u{0}00', 257, 'ascii')
  const sum = header.reduce((total, byte) => total + byte, 0)
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'ascii')
  return header
}

/** `LENGTH KEY=VALUE\n`, where the length counts itself. */
function paxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`
  let length = rest.length + 1
  while (String(length).length + rest.length !== length) length++
  return `${length}${rest}`
}

function safeInteger(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed('its index holds an absurd number')
  return Number(value)
}

function malformed(what: string): SluiceError {
  return new SluiceError('archive.malformed', `the archive is malformed: ${what}`)
}

function mismatch(name: string): SluiceError {
  return new SluiceError(
    'archive.mismatch',
    `the archive's entry ${name} is not what the manifest declares`,
  )
}
