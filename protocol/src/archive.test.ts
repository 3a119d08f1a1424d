/** Proves the archive's layout: any tar reads it, and no deviation is accepted. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
  closeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, it } from 'node:test'
import {
  archiveEnd,
  checkEntryHeader,
  checkLayout,
  entryHeaderBytes,
  manifestName,
  parseTrailer,
  planEntry,
  planIndex,
  trailerBytes,
} from './archive.ts'
import { limits } from './limits.ts'

function buildArchive(files: ReadonlyMap<string, Buffer>) {
  const pieces: Buffer[] = []
  const placed: { name: string; offset: number; bytes: number }[] = []
  let at = 0
  const add = (name: string, content: Buffer) => {
    const { header, paddingBytes } = planEntry(name, content.length)
    placed.push({ name, offset: at + header.length, bytes: content.length })
    pieces.push(header, content, Buffer.alloc(paddingBytes))
    at += header.length + content.length + paddingBytes
  }
  for (const [name, content] of files) add(name, content)
  const manifest = Buffer.from('{"a":1}')
  const index = planIndex({ manifestHeaderOffset: at, manifestBytes: manifest.length })
  add(manifestName, manifest)
  pieces.push(archiveEnd(index))
  return { bytes: Buffer.concat(pieces), media: placed.slice(0, -1), index }
}

/** A reader's first two steps; the manifest's own header is checked like any other. */
function parseAndCheck(trailer: Buffer, archive: Buffer) {
  const index = parseTrailer(trailer, archive.length)
  const { manifestOffset, manifestBytes } = index
  const header = archive.subarray(manifestOffset - entryHeaderBytes(manifestBytes), manifestOffset)
  checkEntryHeader({ name: manifestName, bytes: manifestBytes }, header)
}

const sizes = [0, 1, 511, 512, 513, 1024, 70_000]
const files = new Map(
  sizes.map((bytes, i): [string, Buffer] => [`000${i + 1}.png`, Buffer.alloc(bytes, i + 1)]),
)

describe('archive', () => {
  it('is a tar that the system tar lists and extracts', () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'archive-'))
    try {
      const { bytes } = buildArchive(files)
      writeFileSync(path.join(folder, 'a.tar'), bytes)
      execFileSync('tar', ['-xf', 'a.tar'], { cwd: folder })
      for (const [name, content] of files) {
        assert.deepEqual(readFileSync(path.join(folder, name)), content)
      }
      assert.equal(readFileSync(path.join(folder, manifestName), 'utf8'), '{"a":1}')
      assert.equal(statSync(path.join(folder, '0001.png')).mode & 0o777, 0o444)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it('carries sizes from 8 GiB on in a pax record', () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'archive-'))
    try {
      for (const bytes of [8 * 1024 ** 3 - 1, 8 * 1024 ** 3]) {
        const file = path.join(folder, 'large.tar')
        const { header, paddingBytes } = planEntry('0001.mp4', bytes)
        assert.equal(header.length, entryHeaderBytes(bytes))
        writeFileSync(file, header)
        // Sparse: only the header takes space.
        truncateSync(file, header.length + bytes + paddingBytes)
        const descriptor = openSync(file, 'a')
        writeSync(descriptor, planEntry('0002.png', 0).header)
        writeSync(descriptor, Buffer.alloc(1024))
        closeSync(descriptor)
        const listing = execFileSync('tar', ['-tvf', file], { encoding: 'utf8' })
        assert.match(listing, new RegExp(` ${bytes} .* 0001\\.mp4\n.* 0 .* 0002\\.png\n$`))
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it('is found again through its trailer', () => {
    const { bytes, media, index } = buildArchive(files)
    assert.deepEqual(parseTrailer(bytes.subarray(-trailerBytes), bytes.length), index)
    checkLayout(media, index)
    for (const entry of media) {
      const header = bytes.subarray(entry.offset - entryHeaderBytes(entry.bytes), entry.offset)
      checkEntryHeader(entry, header)
      const content = bytes.subarray(entry.offset, entry.offset + entry.bytes)
      assert.deepEqual(content, files.get(entry.name))
    }
  })

  it('refuses an entry whose tar header disagrees with the manifest', () => {
    const { bytes, media } = buildArchive(files)
    const entry = media[3]!
    const header = bytes.subarray(entry.offset - 512, entry.offset)
    for (const other of [
      { ...entry, name: '0009.png' },
      { ...entry, bytes: entry.bytes + 1 },
    ]) {
      assert.throws(() => checkEntryHeader(other, header), { code: 'archive.mismatch' })
    }
    for (let at = 0; at < header.length; at++) {
      const flipped = Buffer.from(header)
      flipped[at]! ^= 1
      assert.throws(() => checkEntryHeader(entry, flipped), { code: 'archive.mismatch' })
    }
  })

  it('refuses media that overlap, leave a gap or run into the manifest', () => {
    const { media, index } = buildArchive(files)
    const moved = media.with(2, { ...media[2]!, offset: media[2]!.offset + 512 })
    assert.throws(() => checkLayout(moved, index), { code: 'archive.mismatch' })
    assert.throws(() => checkLayout(media.toReversed(), index), { code: 'archive.mismatch' })
    assert.throws(() => checkLayout(media.slice(0, -1), index), { code: 'archive.mismatch' })
    assert.throws(() => checkLayout(media.slice(1), index), { code: 'archive.mismatch' })
  })

  it('refuses a trailer with any byte changed', () => {
    const { bytes } = buildArchive(files)
    const trailer = bytes.subarray(-trailerBytes)
    for (let at = 0; at < trailer.length; at++) {
      const flipped = Buffer.from(trailer)
      flipped[at]! ^= 1
      assert.throws(() => parseAndCheck(flipped, bytes), /archive/i)
    }
    parseAndCheck(trailer, bytes)
  })

  it('refuses a trailer of another length, a short one and an oversized manifest', () => {
    const { bytes } = buildArchive(files)
    const trailer = bytes.subarray(-trailerBytes)
    assert.throws(() => parseTrailer(trailer, bytes.length + 512), { code: 'archive.malformed' })
    assert.throws(() => parseTrailer(trailer.subarray(1), bytes.length), {
      code: 'archive.malformed',
    })
    const manifestBytes = limits.manifestBytesMax + 1
    const index = planIndex({ manifestHeaderOffset: 0, manifestBytes })
    const large = archiveEnd(index).subarray(-trailerBytes)
    assert.throws(() => parseTrailer(large, index.archiveBytes), { code: 'archive.malformed' })
    const absurd = Buffer.from(trailer)
    absurd.writeBigUInt64LE(2n ** 63n, 16)
    assert.throws(() => parseTrailer(absurd, bytes.length), { code: 'archive.malformed' })
  })
})
