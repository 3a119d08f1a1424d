/** Proves the second parser: break what strips a film in any of its places, and the check that follows refuses it. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { collectOutput, detectIsolation } from '../sandbox.ts'
import { checkFilm } from './check-film.ts'
import { cleanFilm } from './clean-film.ts'
import { planFilm } from './film-recipe.ts'
import { findFfmpeg } from './find-ffmpeg.ts'
import { profiles } from './profiles.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none')
const ffmpeg = await findFfmpeg({ isolation })
const skip = ffmpeg === undefined || !ffmpeg.films ? 'no usable ffmpeg on this host' : false
const folder = mkdtempSync(path.join(tmpdir(), 'check-film-'))
after(() => rmSync(folder, { recursive: true }))

function run(...args: string[]): Buffer {
  assert.ok(ffmpeg)
  return execFileSync(ffmpeg.program, ['-v', 'error', '-y', '-nostdin', ...args], {
    maxBuffer: 64 * 1024 ** 2,
  })
}

/** A film with everything that must not leave: tags, dates, languages, chapters, subtitles, timecode. */
function richFilm(): string {
  const notes = path.join(folder, 'notes.txt')
  const words = path.join(folder, 'words.srt')
  const file = path.join(folder, 'rich.mov')
  writeFileSync(
    notes,
    ';FFMETADATA1\ntitle=canary\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=canary-chapter\n',
  )
  writeFileSync(words, '1\n00:00:00,000 --> 00:00:01,000\ncanary-words\n')
  const inputs = [
    ...['-f', 'lavfi', '-i', 'testsrc2=s=160x120:r=10:d=1'],
    ...['-f', 'lavfi', '-i', 'sine=440:d=1:r=44100', '-i', notes, '-i', words],
  ]
  const maps = ['-map', '0', '-map', '1', '-map', '1', '-map', '3', '-map_metadata', '2']
  const codecs = ['-c:v', 'libx264', '-preset', 'ultrafast', '-c:a', 'aac', '-c:s', 'mov_text']
  const tags = [
    ...['-metadata', 'creation_time=2020-01-02T03:04:05Z', '-timecode', '01:00:00:00'],
    ...['-metadata:s:a:0', 'language=ger', '-metadata:s:v:0', 'handler_name=canary-handler'],
  ]
  run(...inputs, ...maps, ...codecs, ...tags, file)
  return file
}

const source = skip === false ? richFilm() : ''

const args = planFilm({
  profile: profiles.analysis.film,
  facts: { durationMs: 1000, picture: undefined, sound: undefined, removed: [] },
  format: 'mov',
  first: undefined,
  toneMapping: false,
  joined: false,
  encoder: 'x264',
  threads: 1,
}).args

/** Encodes as the gate does, one thing in its command line changed. */
function encode(change: (args: string[]) => string[] = (same) => same): Buffer {
  return run('-i', source, ...change([...args]))
}

/** Takes these words, in this order, out of a command line, wherever they stand. */
function without(...words: string[]): (args: string[]) => string[] {
  return (all) => {
    const at = all.findIndex((_, i) => words.every((word, j) => all[i + j] === word))
    assert.ok(at >= 0, `${words.join(' ')} is not there`)
    return all.toSpliced(at, words.length)
  }
}

/** Adds words before the first output. */
function before(...words: string[]): (args: string[]) => string[] {
  return (all) => all.toSpliced(all.indexOf('-f'), 0, ...words)
}

async function* pieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 1000) yield bytes.subarray(at, at + 1000)
}

const refused = { code: 'media.not_clean' }
const check = (bytes: Buffer) => checkFilm(pieces(bytes))
const clean = (bytes: Buffer) => collectOutput(cleanFilm(pieces(bytes)))

/** What `cleanFilm` blanks in every film: the list of tags and the encoder's name; nothing else. */
function blanked(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes)
  const tags = copy.indexOf('udta')
  const name = copy.indexOf('avc1', copy.indexOf('stsd')) + 46
  copy.fill(0, name, name + 32)
  if (tags > 0 && tags < copy.indexOf('moof')) {
    copy.fill(0, tags + 4, tags - 4 + copy.readUInt32BE(tags - 4))
    copy.write('free', tags)
  }
  return copy
}

describe('checkFilm', { skip }, () => {
  it('takes what the gate makes of a film that has everything (control)', async () => {
    const raw = encode()
    const facts = await check(await clean(raw))
    assert.deepEqual(await check(blanked(raw)), facts)
    assert.deepEqual(
      [facts.widthPixels, facts.heightPixels, facts.frames, facts.sampleRateHz, facts.channels],
      [160, 120, 10, 44_100, 1],
    )
    assert.equal(facts.durationMs, 1000)
  })

  const broken: [string, (args: string[]) => string[]][] = [
    ['keeps SEI', (all) => all.filter((_, i) => all[i] !== '-bsf:v' && all[i - 1] !== '-bsf:v')],
    ['keeps the names of tracks', without('-empty_hdlr_name', '1')],
    ['keeps tags', without('-map_metadata', '-1')],
    ['keeps a timecode', (all) => without('-write_tmcd', '0')(without('-map_metadata', '-1')(all))],
    ['keeps chapters', without('-map_chapters', '-1')],
    ['signs its sound', without('-flags:a', '+bitexact')],
    ['takes a second sound along', before('-map', '0:a:1')],
    [
      'takes subtitles along',
      (all) => before('-map', '0:s:0', '-c:s', 'mov_text')(without('-sn')(all)),
    ],
    ['keeps a date', before('-metadata', 'creation_time=2020-01-02T03:04:05Z')],
    ['keeps a language', before('-metadata:s:a:0', 'language=ger')],
    ['writes an ordinary film', (all) => all.map((word) => (word === 'mp4' ? 'mov' : word))],
    [
      'writes no fragments',
      (all) => all.map((word, i) => (all[i - 1] === '-movflags' ? '+empty_moov' : word)),
    ],
    [
      'uses another codec',
      (all) =>
        all
          .filter((_, i) => all[i] !== '-bsf:v' && all[i - 1] !== '-bsf:v')
          .map((word) => (word === 'libx264' ? 'mpeg4' : word)),
    ],
  ]

  for (const [name, change] of broken) {
    it(`refuses the film of an encoder that ${name}`, async () => {
      let raw: Buffer
      try {
        raw = encode(change)
      } catch (error) {
        assert.fail(`${name}: ${String(error)}`)
      }
      await assert.rejects(check(blanked(raw)), refused)
    })
  }

  it('refuses a film that nothing was blanked in', async () => {
    await assert.rejects(check(encode()), refused)
  })

  /** Where a box's content begins, by the names on the way to it. */
  const inside = (bytes: Buffer, ...names: string[]) =>
    names.reduce((at, name) => {
      const next = bytes.indexOf(name, at)
      assert.ok(next >= 0, name)
      return next + 4
    }, 0)

  /** Puts a box at the end of the index, whose sizes are made to fit. */
  function inserted(bytes: Buffer, addition: Buffer): Buffer {
    const at = bytes.indexOf('moov') - 4
    const size = bytes.readUInt32BE(at)
    const copy = Buffer.concat([bytes.subarray(0, at + size), addition, bytes.subarray(at + size)])
    copy.writeUInt32BE(size + addition.length, at)
    return copy
  }

  const box = (type: string, content: string) => {
    const bytes = Buffer.alloc(8 + content.length)
    bytes.writeUInt32BE(bytes.length)
    bytes.write(type + content, 4, 'latin1')
    return bytes
  }

  const mutations: [string, (film: Buffer) => Buffer | void][] = [
    ["an encoder's name", (film) => void film.write('Lavc', inside(film, 'stsd', 'avc1') + 43)],
    ['a date in mvhd', (film) => void film.writeUInt8(1, inside(film, 'mvhd') + 7)],
    ['a date in tkhd', (film) => void film.writeUInt8(1, inside(film, 'tkhd') + 7)],
    ['a date in mdhd', (film) => void film.writeUInt8(1, inside(film, 'mdhd') + 7)],
    ['a language', (film) => void film.writeUInt16BE(0x1234, inside(film, 'mdhd') + 20)],
    ['a turned picture', (film) => void film.writeInt32BE(-0x10000, inside(film, 'tkhd') + 40)],
    ['a name of a track', (film) => void film.writeUInt8(65, inside(film, 'hdlr') + 24)],
    ['a maker in a track', (film) => void film.write('appl', inside(film, 'hdlr') + 12)],
    ['a reference to a file', (film) => void film.writeUInt8(0, inside(film, 'url ') + 3)],
    ['something reserved', (film) => void film.writeUInt8(1, inside(film, 'mvhd') + 30)],
    ['an unknown brand', (film) => void film.write('cana', inside(film, 'ftyp') + 8)],
    [
      'a version of a brand',
      (film) => void film.writeUInt32BE(20_200_102, inside(film, 'ftyp') + 4),
    ],
    ['words in free space', (film) => void film.write('canary', inside(film, 'free'))],
    ['a box of tags', (film) => inserted(film, box('udta', 'canary'))],
    ['a box of somebody', (film) => inserted(film, box('uuid', '0123456789abcdefcanary'))],
    ['a box of metadata', (film) => inserted(film, box('meta', '\0\0\0\0'))],
    ['something behind the end', (film) => Buffer.concat([film, box('free', 'canary')])],
    ['a few bytes behind the end', (film) => Buffer.concat([film, Buffer.from('canary')])],
    ['an end before the end', (film) => film.subarray(0, -1)],
    ['a unit of SEI', (film) => void film.writeUInt8(6, inside(film, 'mdat') + 4)],
    ['a unit of filler', (film) => void film.writeUInt8(12, inside(film, 'mdat') + 4)],
    [
      'a unit longer than its sample',
      (film) => void film.writeUInt32BE(1 << 30, inside(film, 'mdat')),
    ],
    [
      'a foreign unit in the configuration',
      (film) => void film.writeUInt8(6, inside(film, 'avcC') + 8),
    ],
    ['fragments out of order', (film) => void film.writeUInt32BE(7, inside(film, 'mfhd') + 4)],
    ['data of no sample', (film) => void film.writeUInt32BE(1, inside(film, 'trun') + 8)],
    ['samples of no track', (film) => void film.writeUInt32BE(9, inside(film, 'tfhd') + 4)],
    ['a second description', (film) => void film.writeUInt32BE(2, inside(film, 'stsd') + 4)],
    ['a table that is not empty', (film) => void film.writeUInt32BE(1, inside(film, 'stts') + 4)],
    ['speed', (film) => void film.writeUInt8(2, inside(film, 'elst') + 17)],
    ['a long sound configuration', (film) => void film.writeUInt8(32, inside(film, 'esds') + 34)],
    ['another codec of sound', (film) => void film.writeUInt8(0x6b, inside(film, 'esds') + 17)],
  ]

  it('refuses a clean film with any one thing added or changed', async () => {
    const film = await clean(encode())
    await check(film)
    for (const [name, mutate] of mutations) {
      const copy = Buffer.from(film)
      const mutated = mutate(copy) ?? copy
      await assert.rejects(check(mutated), refused, name)
    }
  })

  it('refuses what signs the configuration of HEVC, which is taken out before', async () => {
    const raw = run(
      ...['-f', 'lavfi', '-i', 'testsrc2=s=160x120:r=10:d=1', '-c:v', 'libx265'],
      ...['-x265-params', 'log-level=error:keyint=5', '-pix_fmt', 'yuv420p', '-tag:v', 'hvc1'],
      ...['-bsf:v', 'filter_units=pass_types=0-9|16-21|32-34', '-map_metadata', '-1'],
      ...['-fflags', '+bitexact', '-empty_hdlr_name', '1'],
      ...['-movflags', '+frag_keyframe+delay_moov+default_base_moof', '-f', 'mp4', 'pipe:1'],
    )
    assert.ok(raw.includes('x265'), 'the control is signed')
    const film = await clean(raw)
    assert.ok(!film.includes('x265'))
    assert.equal((await check(film)).frames, 10)
    // The same film, the signature left in: only its name and tags blanked.
    const signed = Buffer.from(raw)
    const name = signed.indexOf('hvc1', signed.indexOf('stsd')) + 46
    signed.fill(0, name, name + 32)
    const tags = signed.indexOf('udta')
    signed.fill(0, tags + 4, tags - 4 + signed.readUInt32BE(tags - 4))
    signed.write('free', tags)
    await assert.rejects(check(signed), refused)
  })

  it('answers or refuses, whatever byte is changed', async () => {
    const film = await clean(encode())
    const head = film.indexOf('mdat') + 200
    for (let at = 0; at < head; at += 3) {
      const copy = Buffer.from(film)
      copy.writeUInt8(copy.readUInt8(at) ^ 0x81, at)
      try {
        await check(copy)
      } catch (error) {
        assert.ok(error instanceof Error && 'code' in error && error.code === 'media.not_clean')
      }
    }
  })
})
