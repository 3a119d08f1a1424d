/** Proves that films and sounds leave the gate whole, upright and without a word about their origin. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { collectOutput, detectIsolation } from '../sandbox.ts'
import { cleanFilm } from './clean-film.ts'
import { findFfmpeg } from './find-ffmpeg.ts'
import { openSource } from './inspect.ts'
import { normaliseFilm, normaliseSound } from './normalise-av.ts'
import type { NormalisedMedium } from './normalised.ts'
import type { AvOptions } from './run-ffmpeg.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none')
const ffmpeg = await findFfmpeg({ isolation })
const skip = ffmpeg === undefined ? 'no usable ffmpeg on this host' : false
const folder = mkdtempSync(path.join(tmpdir(), 'av-'))
after(() => rmSync(folder, { recursive: true }))

/** Runs ffmpeg outside the sandbox to make a source; returns the path. */
function make(name: string, ...args: string[]): string {
  const file = path.join(folder, name)
  assert.ok(ffmpeg)
  execFileSync(ffmpeg.program, ['-v', 'error', '-y', '-nostdin', ...args, file])
  return file
}

/** All samples of a sound, or all pixels of a film, as raw bytes. */
function decode(content: Buffer, ...format: string[]): Buffer {
  const file = path.join(folder, 'decoded')
  writeFileSync(file, content)
  assert.ok(ffmpeg)
  const args = ['-v', 'error', '-nostdin', '-i', file, ...format, 'pipe:1']
  return execFileSync(ffmpeg.program, args, { maxBuffer: 256 * 1024 ** 2 })
}

type Normalised = Omit<NormalisedMedium, 'content'> & { bytes: Buffer }

async function normalise(
  file: string,
  more: Partial<Pick<AvOptions, 'ffmpeg' | 'profile' | 'salvage' | 'speech'>> = {},
): Promise<Normalised[]> {
  await using source = await openSource(file)
  const options = { isolation, scratchFolder: folder, ffmpeg, ...more }
  const media =
    source.kind === 'video'
      ? await normaliseFilm(source, options)
      : await normaliseSound(source, options)
  return Promise.all(
    media.map(async ({ content, ...facts }) => {
      await using held = content
      return { ...facts, bytes: await collectOutput(held.read()) }
    }),
  )
}

const picture = ['-f', 'lavfi', '-i', 'testsrc2=s=160x120:r=10:d=1']
const tone = ['-f', 'lavfi', '-i', 'sine=440:d=1:r=44100']
const named = ['-metadata', 'title=canary-title', '-metadata', 'location=+51.5-000.1/']
const h264 = ['-c:v', 'libx264', '-preset', 'ultrafast', '-pix_fmt', 'yuv420p', '-c:a', 'aac']

function filmFile(name: string, ...more: string[]): string {
  return make(name, ...picture, ...tone, ...h264, ...named, ...more)
}

describe('normaliseFilm', { skip }, () => {
  it('removes title, place, handlers and encoder names (control: they were there)', async () => {
    const file = filmFile('tagged.mp4')
    const before = readFileSync(file)
    const telltale = ['canary', 'loci', 'Handler', 'Lav', 'x264']
    for (const word of telltale) assert.ok(before.includes(word), word)
    const [film, sound] = await normalise(file)
    assert.ok(film && sound)
    for (const word of telltale) assert.ok(!film.bytes.includes(word), word)
    for (const word of [...telltale, 'ffmpeg']) assert.ok(!sound.bytes.includes(word), word)
    assert.deepEqual(film.removed, ['gps', 'user-data'])
    assert.equal(film.tools['ffmpeg'], ffmpeg?.version)
  })

  it('keeps every frame and its time, and gives the sound as a track of its own', async () => {
    const [film, sound] = await normalise(filmFile('whole.mp4'))
    assert.ok(film && sound)
    assert.deepEqual(
      [film.kind, film.extension, film.codec, film.frames, film.widthPixels, film.heightPixels],
      ['video', 'mp4', 'h264', 10, 160, 120],
    )
    assert.ok(Math.abs((film.durationMs ?? 0) - 1000) < 60)
    assert.deepEqual(
      [
        sound.kind,
        sound.extension,
        sound.codec,
        sound.soundOfFilm,
        sound.sampleRateHz,
        sound.channels,
      ],
      ['audio', 'flac', 'flac', true, 44_100, 1],
    )
    const samples = decode(sound.bytes, '-f', 's16le').length / 2
    assert.equal(Math.round((samples / 44_100) * 1000), sound.durationMs)
    const frames = decode(film.bytes, '-map', '0:v', '-f', 'rawvideo', '-pix_fmt', 'gray')
    assert.equal(frames.length, 10 * 160 * 120)
    const log = decode(film.bytes, '-map', '0:v', '-f', 'framecrc').toString()
    assert.match(log, /^0, +0, +0, /m)
  })

  it('moves no frame of a film whose frames come unevenly', async () => {
    const uneven = ['-vf', "select='not(mod(n,3))+not(mod(n,7))'", '-fps_mode', 'vfr']
    const file = filmFile('uneven.mp4', ...uneven)
    const times = (content: Buffer) => {
      const rows = decode(content, '-map', '0:v', '-fps_mode', 'passthrough', '-f', 'framecrc')
      const pattern = /^0, +\d+, +(\d+),/gm
      return [...rows.toString().matchAll(pattern)].map((row) => Number(row[1]))
    }
    const [film] = await normalise(file)
    assert.ok(film)
    const before = times(readFileSync(file))
    assert.ok(new Set(before.slice(1).map((at, i) => at - (before[i] ?? 0))).size > 1)
    assert.deepEqual(times(film.bytes), before)
  })

  it('takes MOV with its index at the end, and films without sound', async () => {
    const file = make('silent.mov', ...picture, '-c:v', 'mjpeg', ...named)
    assert.ok(readFileSync(file).indexOf('moov') > readFileSync(file).indexOf('mdat'))
    const media = await normalise(file)
    assert.equal(media.length, 1)
    assert.equal(media[0]?.frames, 10)
    assert.equal(media[0]?.source.format, 'mov')
  })

  it('turns the picture as the display matrix says and makes pixels square', async () => {
    const upright = make('upright.mp4', ...picture, ...h264)
    const turned = path.join(folder, 'turned.mp4')
    assert.ok(ffmpeg)
    // Rotation is one value in the track header: the matrix at 40 of version 0.
    const bytes = readFileSync(upright)
    const header = bytes.indexOf('tkhd') + 4
    const matrix = [0, 0x10000, 0, -0x10000, 0, 0, 120 * 0x10000, 0, 0x40000000]
    matrix.forEach((value, i) => bytes.writeInt32BE(value, header + 40 + i * 4))
    writeFileSync(turned, bytes)
    const [film] = await normalise(turned)
    assert.deepEqual([film?.widthPixels, film?.heightPixels], [120, 160])
    const wide = make('wide.mp4', ...picture, '-vf', 'setsar=2/1', ...h264)
    const [square] = await normalise(wide)
    assert.deepEqual([square?.widthPixels, square?.heightPixels], [320, 120])
  })

  it('makes odd sides even', async () => {
    const odd = ['-f', 'lavfi', '-i', 'testsrc2=s=161x121:r=10:d=0.3']
    const file = make('odd.mov', ...odd, '-c:v', 'mjpeg', '-pix_fmt', 'yuvj444p')
    const [film] = await normalise(file)
    assert.deepEqual([film?.widthPixels, film?.heightPixels], [160, 120])
  })

  it('leaves out timecode, chapters and further tracks, and names them', async () => {
    const file = filmFile(
      'timecode.mov',
      '-timecode',
      '01:00:00:00',
      '-map',
      '0',
      '-map',
      '1',
      '-map',
      '1',
    )
    assert.ok(readFileSync(file).includes('tmcd'))
    const [film] = await normalise(file)
    assert.ok(film && !film.bytes.includes('tmcd'))
    assert.ok(film.removed.includes('timecode') && film.removed.includes('further-tracks'))
  })

  it('refuses a film that is cut short, with its index at either end', async () => {
    for (const [name, flags] of [
      ['end.mp4', ''],
      ['start.mp4', '+faststart'],
    ] as const) {
      const file = filmFile(name, ...(flags === '' ? [] : ['-movflags', flags]))
      const whole = readFileSync(file)
      for (const part of [0.3, 0.6, 0.95]) {
        writeFileSync(file, whole.subarray(0, Math.floor(whole.length * part)))
        await assert.rejects(normalise(file), { code: 'media.corrupt' })
      }
    }
  })

  it('keeps what is left of a damaged film when that is asked for, and says so', async () => {
    const file = filmFile('left.mp4', '-g', '2', '-movflags', '+faststart')
    const whole = readFileSync(file)
    writeFileSync(file, whole.subarray(0, Math.floor(whole.length * 0.7)))
    await assert.rejects(normalise(file), { code: 'media.corrupt', message: /at byte \d+/ })
    const [film, sound] = await normalise(file, { salvage: true })
    assert.deepEqual([film?.partial, sound?.partial], [true, true])
    assert.ok((film?.frames ?? 0) >= 3 && (film?.frames ?? 0) < 10)
    // What is whole is never called partial.
    writeFileSync(file, whole)
    const [again] = await normalise(file, { salvage: true })
    assert.deepEqual([again?.partial, again?.frames], [undefined, 10])
  })

  it('refuses a film whose coded pictures are damaged', async () => {
    const file = filmFile('damaged.mp4')
    const bytes = readFileSync(file)
    const at = bytes.indexOf('mdat') + 600
    bytes.fill(0xa5, at, at + 2000)
    writeFileSync(file, bytes)
    await assert.rejects(normalise(file), { code: 'media.corrupt' })
  })

  it('refuses a reference to another file and an absurd frame size before decoding', async () => {
    const file = filmFile('hostile.mp4')
    const whole = readFileSync(file)
    const outside = Buffer.from(whole)
    const reference = outside.indexOf('url ')
    outside.writeUInt32BE(0, reference + 4)
    writeFileSync(file, outside)
    await assert.rejects(normalise(file), { code: 'media.unsupported' })
    const huge = Buffer.from(whole)
    const entry = huge.indexOf('avc1', huge.indexOf('stsd'))
    huge.writeUInt16BE(65_535, entry + 28)
    huge.writeUInt16BE(65_535, entry + 30)
    writeFileSync(file, huge)
    await assert.rejects(normalise(file), { code: 'media.too_large' })
  })

  const asRoot = process.geteuid?.() === 0 && isolation === 'bubblewrap'
  it(
    'says so when root may read the film and its decoders may not',
    { skip: !asRoot && 'needs root and bubblewrap' },
    async () => {
      const file = filmFile('private.mp4')
      chmodSync(file, 0o600)
      assert.equal((await normalise(file)).length, 2)
      chownSync(file, 12_345, 12_345)
      await assert.rejects(normalise(file), { code: 'media.not_a_file' })
    },
  )

  it('says that ffmpeg is missing when it is', async () => {
    const file = filmFile('alone.mp4')
    await assert.rejects(normalise(file, { ffmpeg: undefined }), { code: 'media.decoder_missing' })
    assert.ok(ffmpeg)
    await assert.rejects(normalise(file, { ffmpeg: { ...ffmpeg, films: false } }), {
      code: 'media.decoder_missing',
      message: /cannot write films/,
    })
  })
})

describe('normaliseSound', { skip }, () => {
  const noise = ['-f', 'lavfi', '-i', 'anoisesrc=d=0.5:r=48000:c=pink:seed=7', '-ac', '2']

  for (const [codec, raw] of [
    ['pcm_u8', 'u8'],
    ['pcm_s16le', 's16le'],
    ['pcm_s24le', 's24le'],
  ] as const) {
    it(`turns a WAV of ${codec} into FLAC without losing a bit`, async () => {
      const file = make('sound.wav', ...noise, '-c:a', codec, ...named)
      assert.ok(readFileSync(file).includes('canary'))
      const [sound] = await normalise(file)
      assert.ok(sound)
      assert.deepEqual([sound.extension, sound.codec, sound.removed], ['flac', 'flac', ['text']])
      assert.deepEqual([sound.sampleRateHz, sound.channels, sound.durationMs], [48_000, 2, 500])
      const format = ['-f', raw, '-c:a', codec]
      assert.deepEqual(decode(sound.bytes, ...format), decode(readFileSync(file), ...format))
      // `fLaC`, then STREAMINFO as the last block, then a frame.
      assert.equal(sound.bytes.toString('hex', 0, 8), '664c614380000022')
      assert.equal(sound.bytes.readUInt16BE(42) & 0xfffe, 0xfff8)
    })
  }

  it('keeps every bit of floats in WavPack when it is to be faithful, and 24 of them else', async () => {
    const file = make('deep.wav', ...noise, '-c:a', 'pcm_f32le', ...named)
    const [sound] = await normalise(file, { profile: 'faithful' })
    assert.ok(sound)
    assert.deepEqual([sound.extension, sound.codec, sound.channels], ['wv', 'wavpack', 2])
    assert.ok(!sound.bytes.includes('canary'))
    const format = ['-f', 'f32le']
    assert.deepEqual(decode(sound.bytes, ...format), decode(readFileSync(file), ...format))
    const [cut] = await normalise(file)
    assert.ok(cut)
    assert.deepEqual([cut.extension, cut.codec], ['flac', 'flac'])
    const coarse = ['-f', 's24le', '-c:a', 'pcm_s24le']
    assert.deepEqual(decode(cut.bytes, ...coarse), decode(readFileSync(file), ...coarse))
  })

  it('keeps 24 bits of a FLAC and drops its tags and cover', async () => {
    const cover = make('cover.png', '-f', 'lavfi', '-i', 'color=red:s=16x16', '-frames:v', '1')
    const file = make(
      'tagged.flac',
      ...noise,
      '-i',
      cover,
      '-map',
      '0',
      '-map',
      '1',
      '-c:a',
      'flac',
      '-sample_fmt',
      's32',
      '-disposition:v',
      'attached_pic',
      ...named,
    )
    const before = readFileSync(file)
    assert.ok(before.includes('canary') && before.includes('IHDR'))
    const [sound] = await normalise(file)
    assert.ok(sound)
    assert.deepEqual(sound.removed, ['cover', 'text'])
    assert.ok(!sound.bytes.includes('canary') && !sound.bytes.includes('IHDR'))
    const format = ['-f', 's24le', '-c:a', 'pcm_s24le', '-map', '0:a']
    assert.deepEqual(decode(sound.bytes, ...format), decode(before, ...format))
  })

  it('makes a sound for speech models, also of a film, whose own sound stays', async () => {
    const [sound] = await normalise(make('speech.wav', ...noise), { speech: true })
    assert.deepEqual(
      [sound?.codec, sound?.sampleRateHz, sound?.channels, sound?.durationMs],
      ['flac', 16_000, 1, 500],
    )
    const [film, track] = await normalise(filmFile('speech.mp4'), { speech: true })
    assert.equal(film?.sampleRateHz, 44_100)
    assert.deepEqual([track?.sampleRateHz, track?.channels], [16_000, 1])
  })

  it('turns a tagged MP3 into FLAC', async () => {
    const file = make('tagged.mp3', ...noise, '-c:a', 'libmp3lame', '-write_id3v1', '1', ...named)
    const before = readFileSync(file)
    assert.ok(before.includes('ID3') && before.includes('canary'))
    const [sound] = await normalise(file)
    assert.ok(sound)
    assert.ok(!sound.bytes.includes('canary'))
    assert.deepEqual([sound.codec, sound.sampleRateHz, sound.channels], ['flac', 48_000, 2])
    assert.deepEqual(sound.removed, ['id3'])
    const format = ['-f', 's16le']
    assert.equal(decode(sound.bytes, ...format).length, decode(before, ...format).length)
  })

  it('refuses sounds that are cut short', async () => {
    const files = [
      make('cut.wav', ...noise),
      make('cut.flac', ...noise),
      make('cut.mp3', ...noise, '-c:a', 'libmp3lame'),
    ]
    for (const file of files) {
      const whole = readFileSync(file)
      for (const part of [0.3, 0.6]) {
        writeFileSync(file, whole.subarray(0, Math.floor(whole.length * part)))
        await assert.rejects(normalise(file), { code: 'media.corrupt' }, path.extname(file))
      }
    }
  })

  it('refuses a FLAC with a damaged frame, and a WAV of a rare codec', async () => {
    const file = make('damaged.flac', ...noise)
    const bytes = readFileSync(file)
    bytes.fill(0x5a, bytes.length - 9000, bytes.length - 8000)
    writeFileSync(file, bytes)
    await assert.rejects(normalise(file), { code: 'media.corrupt' })
    const rare = make('rare.wav', ...noise, '-c:a', 'wmav2')
    await assert.rejects(normalise(rare), { code: 'media.unsupported' })
  })
})

describe('normaliseSound without ffmpeg', () => {
  /** 8 bits, one channel, 8 kHz, three samples, with a text chunk before and junk behind. */
  const wav = Buffer.concat([
    Buffer.from(
      'RIFF\x32\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0',
      'latin1',
    ),
    Buffer.from('LIST\x02\0\0\0ab', 'latin1'),
    Buffer.from('data\x03\0\0\0\x01\x02\x03\0', 'latin1'),
  ])

  it('writes format and samples of a WAV anew, and nothing else', async () => {
    const file = path.join(folder, 'plain.wav')
    writeFileSync(file, Buffer.concat([wav, Buffer.from('canary behind')]))
    const [sound] = await normalise(file, { ffmpeg: undefined })
    assert.ok(sound)
    assert.deepEqual(
      [sound.extension, sound.codec, sound.removed],
      ['wav', 'pcm_u8', ['text', 'trailer']],
    )
    const expected = Buffer.from(
      'RIFF\x28\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\x03\0\0\0\x01\x02\x03\0',
      'latin1',
    )
    assert.deepEqual(sound.bytes, expected)
  })

  it('says how samples of a telephone are coded, and leaves what has a sign to ffmpeg', async () => {
    const file = path.join(folder, 'mulaw.wav')
    const mulaw = Buffer.from(wav)
    mulaw.writeUInt16LE(7, 20)
    writeFileSync(file, Buffer.concat([Buffer.from('ID3\x04\0\0\0\0\0\0', 'latin1'), mulaw]))
    const [sound] = await normalise(file, { ffmpeg: undefined })
    assert.deepEqual([sound?.bytes.readUInt16LE(20), sound?.removed], [7, ['id3', 'text']])
    assert.equal(sound?.bytes.subarray(44, 47).toString('hex'), '010203')
    const aiff = path.join(folder, 'signed.aifc')
    writeFileSync(
      aiff,
      'FORM\0\0\0\x3aAIFCCOMM\0\0\0\x18\0\x01\0\0\0\x04\0\x08\x40\x0b\xfa\0\0\0\0\0\0\0sowt\0\0SSND\0\0\0\x0c\0\0\0\0\0\0\0\0abcd',
      'latin1',
    )
    await assert.rejects(normalise(aiff, { ffmpeg: undefined }), { code: 'media.decoder_missing' })
  })

  it('refuses a WAV whose chunks do not fit, wherever it is cut', async () => {
    const file = path.join(folder, 'cut.wav')
    // Without the padding behind its samples it is whole.
    for (let bytes = 12; bytes < wav.length - 1; bytes++) {
      writeFileSync(file, wav.subarray(0, bytes))
      await assert.rejects(normalise(file, { ffmpeg: undefined }), { code: 'media.corrupt' })
    }
  })
})

describe('cleanFilm', { skip }, () => {
  async function clean(bytes: Buffer, size: number): Promise<Buffer> {
    async function* pieces(): AsyncGenerator<Buffer> {
      for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
    }
    return collectOutput(cleanFilm(pieces()))
  }

  it('gives the same whatever the pieces, and refuses what an ordinary encoder writes', async () => {
    const [film] = await normalise(filmFile('again.mp4'))
    assert.ok(film)
    const { bytes } = film
    // What is clean stays as it is; a blanked box of tags is the one thing it would not write itself.
    const free = bytes.indexOf('free')
    const plain = Buffer.from(bytes)
    plain.write('udta', free, 'latin1')
    for (const size of [1, 7, 4096, bytes.length]) assert.deepEqual(await clean(plain, size), bytes)
    const ordinary = readFileSync(
      filmFile('ordinary.mp4', '-movflags', '+frag_keyframe+empty_moov'),
    )
    await assert.rejects(clean(ordinary, 4096), { code: 'media.not_clean' })
    await assert.rejects(clean(plain.subarray(0, -1), 4096), { code: 'media.not_clean' })
    await assert.rejects(
      clean(Buffer.concat([plain, Buffer.from('\0\0\0\x10uuid12345678')]), 512),
      {
        code: 'media.not_clean',
      },
    )
    await assert.rejects(clean(Buffer.alloc(0), 1), { code: 'media.not_clean' })
  })
})
