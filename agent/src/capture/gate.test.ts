/** Proves the way from files to an archive: one gate for all, one entry after the other, no origin left. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import sharp from 'sharp'
import {
  checkEntryHeader,
  checkLayout,
  entryHeaderBytes,
  parseTrailer,
  trailerBytes,
} from '@sluice/protocol/archive'
import type { JobId } from '@sluice/protocol/ids'
import { manifest as manifestSchema } from '@sluice/protocol/manifest'
import { collectOutput, detectIsolation } from '../sandbox.ts'
import { writeArchive } from './describe.ts'
import type { ManifestHead } from './describe.ts'
import { openGate, passEach, passGate } from './gate.ts'
import type { Gate } from './gate.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'gate-'))
after(() => rmSync(folder, { recursive: true }))
const isolation = await detectIsolation().catch(() => 'none' as const)
const gate: Gate = await openGate({ scratchFolder: folder, isolation })

async function photo(name: string): Promise<string> {
  const file = path.join(folder, name)
  await sharp({ create: { width: 64, height: 48, channels: 3, background: 'teal' } })
    .withExif({
      IFD0: { Artist: 'canary' },
      IFD3: { GPSLatitudeRef: 'N', GPSLatitude: '51/1 30/1 0/1' },
    })
    .jpeg()
    .toFile(file)
  return file
}

function wav(name: string): string {
  const file = path.join(folder, name)
  const samples = Buffer.alloc(16_000, 5)
  const head = Buffer.from(
    'RIFF\xa4\x3e\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x80\x3e\0\0',
    'latin1',
  )
  writeFileSync(file, Buffer.concat([head, samples]))
  return file
}

const head: ManifestHead = {
  jobId: '01890a5d-ac96-774b-bcce-b302099a8057' as JobId,
  analyser: 'example',
  resultPublicKey: 'A'.repeat(1622),
  isolation,
  tools: { sluice: '0.1.0' },
}

async function archiveOf(files: readonly string[], through: Gate = gate) {
  const pieces: Buffer[] = []
  const manifest = await writeArchive({ media: passEach(files, through), head }, (bytes) => {
    pieces.push(Buffer.from(bytes))
  })
  return { manifest, archive: Buffer.concat(pieces) }
}

describe('writeArchive', () => {
  it('describes every entry so that a range reader finds it', async () => {
    const files = [await photo('a.jpg'), wav('b.wav'), await photo('c.jpg')]
    const { manifest, archive } = await archiveOf(files)
    const index = parseTrailer(archive.subarray(-trailerBytes), archive.length)
    const { manifestOffset, manifestBytes } = index
    const json = archive.toString('utf8', manifestOffset, manifestOffset + manifestBytes)
    assert.deepEqual(manifestSchema.parse(JSON.parse(json)), manifest)
    checkLayout(manifest.media, index)
    for (const entry of manifest.media) {
      const end = entry.offset + entry.bytes
      checkEntryHeader(
        entry,
        archive.subarray(entry.offset - entryHeaderBytes(entry.bytes), entry.offset),
      )
      const content = archive.subarray(entry.offset, end)
      assert.equal(createHash('sha256').update(content).digest('hex'), entry.sha256)
    }
    const sound = gate.ffmpeg === undefined ? '0002.wav' : '0002.flac'
    assert.deepEqual(
      manifest.media.map((entry) => entry.name),
      ['0001.jpg', sound, '0003.jpg'],
    )
    assert.deepEqual(manifest.media[0]?.removed, ['exif', 'gps'])
    assert.equal(manifest.tools['sluice'], '0.1.0')
    assert.ok(manifest.tools['libvips'])
  })

  it('holds neither metadata nor names of the sources (control: the sources do)', async () => {
    const file = await photo('holiday-canary.jpg')
    assert.ok(readFileSync(file).includes('canary'))
    const { archive } = await archiveOf([file])
    assert.ok(!archive.includes('canary') && !archive.includes('holiday'))
  })

  it('is a tar that the system tar extracts', async () => {
    const { manifest, archive } = await archiveOf([await photo('a.jpg')])
    const out = mkdtempSync(path.join(folder, 'out-'))
    execFileSync('tar', ['-xf', '-'], { cwd: out, input: archive })
    const bytes = readFileSync(path.join(out, '0001.jpg'))
    assert.equal(createHash('sha256').update(bytes).digest('hex'), manifest.media[0]?.sha256)
  })

  it('is the same whether media wait in memory or in scratch', async () => {
    const files = [await photo('a.jpg'), wav('b.wav')]
    const inMemory = await archiveOf(files)
    const inScratch = await archiveOf(files, { ...gate, inMemoryBytesMax: 10 })
    assert.deepEqual(inScratch.archive, inMemory.archive)
  })

  it(
    'puts the sound of a film right behind the film',
    { skip: gate.ffmpeg === undefined && 'no usable ffmpeg on this host' },
    async () => {
      const file = path.join(folder, 'film.mp4')
      const inputs = ['-f', 'lavfi', '-i', 'testsrc2=s=64x48:r=10:d=0.5', '-f', 'lavfi']
      const args = ['-v', 'error', '-y', ...inputs, '-i', 'sine=d=0.5', file]
      execFileSync(gate.ffmpeg?.program ?? '', args)
      const { manifest } = await archiveOf([file, await photo('a.jpg')])
      const [film, sound, picture] = manifest.media
      assert.deepEqual(
        [film?.name, sound?.name, picture?.name],
        ['0001.mp4', '0002.flac', '0003.jpg'],
      )
      assert.equal(sound?.soundOf, '0001.mp4')
      assert.equal(picture?.soundOf, undefined)
    },
  )
})

describe('passGate', () => {
  it('reports a name that disagrees with the content', async () => {
    await using passed = await passGate(await photo('photo.png'), gate)
    assert.equal(passed.nameDisagrees, true)
    assert.equal(passed.media[0]?.extension, 'jpg')
  })

  it('wipes the bytes when it is disposed of', async () => {
    const passed = await passGate(await photo('a.jpg'), gate)
    const [medium] = passed.media
    assert.ok(medium)
    assert.ok((await collectOutput(medium.content.read())).length > 0)
    await passed[Symbol.asyncDispose]()
    await assert.rejects(collectOutput(medium.content.read()))
  })

  it('refuses a source that was touched while it was decoded', async () => {
    const file = await photo('a.jpg')
    const touched = {
      ...gate,
      // The gate reads this when the picture is decoded and about to be held.
      get inMemoryBytesMax() {
        utimesSync(file, 1, 1)
        return 1e9
      },
    }
    await assert.rejects(passGate(file, touched), { code: 'media.changed', retry: 'later' })
  })

  it('refuses text called a picture and a playlist called a film', async () => {
    const lie = path.join(folder, 'lie.jpg')
    writeFileSync(lie, 'these are only words')
    const playlist = path.join(folder, 'playlist.mp4')
    writeFileSync(playlist, '#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n')
    for (const file of [lie, playlist]) {
      await assert.rejects(passGate(file, gate), { code: 'media.unsupported' })
    }
  })
})
