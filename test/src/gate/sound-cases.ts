/** Sounds of the gate's corpus. */

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { GateCase, Outcome } from './cases.ts'
import {
  be32,
  box,
  bytesNamed,
  changed,
  chunk,
  decoded,
  film,
  h264,
  intoIndex,
  makeCover,
  noise,
  patched,
  run,
  tags,
  tone,
} from './make-films.ts'
import { oggOf, oggPages, withEmptyPacket } from './ogg-pages.ts'

const needs = ['ffmpeg'] as const
const flac = ['flac'] as const

/** Every sample as it was, in a given form. */
function exact(form: string, ...take: string[]): NonNullable<GateCase['equal']> {
  return (outcomes: readonly Outcome[], source: Buffer) => {
    const folder = mkdtempSync(join(tmpdir(), 'gate-sound-'))
    try {
      const [sound] = outcomes
      assert.ok(sound)
      const raw = ['-map', '0:a', '-f', form, '-c:a', `pcm_${form}`]
      const before = decoded(source, folder, ...take, ...raw)
      assert.ok(before.length > 0 && decoded(sound.bytes, folder, ...raw).equals(before))
      for (const word of ['Lav', 'ffmpeg', 'reference'])
        assert.ok(!sound.bytes.includes(word), word)
    } finally {
      rmSync(folder, { recursive: true })
    }
  }
}

/** About as long as it was, where a coder adds or loses some frames. */
const lasting =
  (durationMs: number, slackMs = 60) =>
  (outcomes: readonly Outcome[]) => {
    const found = outcomes[0]?.durationMs ?? 0
    assert.ok(Math.abs(found - durationMs) <= slackMs, String(found))
  }

function pcm(name: string, codec: string, form: string, ...more: string[]): GateCase {
  return {
    name: `${name} of ${codec}`,
    needs,
    make: film(...noise, '-c:a', codec, ...more, name),
    leaves: flac,
    equal: exact(form),
  }
}

const plain: GateCase[] = [
  { ...pcm('a.wav', 'pcm_s16le', 's16le'), quick: true },
  pcm('b.wav', 'pcm_u8', 'u8'),
  pcm('c.wav', 'pcm_s24le', 's24le'),
  pcm('d.wav', 'pcm_mulaw', 's16le'),
  pcm('e.wav', 'pcm_alaw', 's16le'),
  pcm('f.wav', 'pcm_s16le', 's16le', '-rf64', 'always'),
  pcm('g.wav', 'adpcm_ms', 's16le'),
  pcm('h.wav', 'adpcm_ima_wav', 's16le'),
  pcm('i.wav', 'pcm_s16le', 's16le', '-ar', '96000', '-ac', '6'),
  pcm('a.aiff', 'pcm_s16be', 's16le'),
  pcm('b.aiff', 'pcm_s24be', 's24le'),
  pcm('c.aiff', 'pcm_s8', 's16le'),
  pcm('d.aifc', 'pcm_s16le', 's16le', '-f', 'aiff'),
  pcm('a.flac', 'flac', 's16le', '-sample_fmt', 's16'),
  pcm('b.flac', 'flac', 's24le', '-sample_fmt', 's32'),
  pcm('a.m4a', 'alac', 's16le'),
  pcm('a.oga', 'flac', 's16le', '-f', 'ogg', '-sample_fmt', 's16'),
  {
    name: 'a WAV that went through a pipe and does not know how long it is',
    needs,
    make: changed(film(...noise, 'a.wav'), (bytes) => {
      bytes.writeUInt32LE(0xffffffff, 4)
      bytes.writeUInt32LE(0xffffffff, bytes.indexOf('data') + 4)
      return bytes
    }),
    leaves: flac,
    equal: exact('s16le'),
  },
  {
    name: 'a WAV of a telephone system',
    needs,
    make: film(...tone, '-ar', '8000', '-ac', '1', '-c:a', 'libgsm_ms', 'a.wav'),
    leaves: flac,
    equal: lasting(2000),
  },
  {
    name: 'an MP3 within a WAV',
    needs,
    make: film(...tone, '-c:a', 'libmp3lame', 'a.wav'),
    leaves: flac,
    equal: lasting(2000, 100),
  },
  {
    name: 'a WAV of floats, faithfully',
    needs,
    profile: 'faithful',
    make: film(...noise, '-af', 'volume=3', '-c:a', 'pcm_f32le', ...tags, 'a.wav'),
    leaves: ['wv'],
    gone: ['canary-title'],
    equal: exact('f32le'),
  },
  {
    name: 'a WAV of 32 bits, faithfully',
    needs,
    profile: 'faithful',
    make: film(...noise, '-c:a', 'pcm_s32le', 'a.wav'),
    leaves: ['wv'],
    equal: exact('s32le'),
  },
  {
    name: 'a WAV of floats for analysis',
    needs,
    make: film(...noise, '-c:a', 'pcm_f32le', 'a.wav'),
    leaves: flac,
    equal: exact('s24le'),
  },
  {
    name: 'a WAV for thin links',
    needs,
    profile: 'compact',
    make: film(...noise, '-c:a', 'pcm_s16le', ...tags, 'a.wav'),
    leaves: ['m4a'],
    gone: ['canary-title'],
    equal: ([sound], source) => {
      assert.equal(sound?.codec, 'aac')
      assert.ok((sound?.bytes.length ?? 0) < source.length / 4)
    },
  },
]

/** A picture of a film that lasts one picture. */
const stillPicture = ['-f', 'lavfi', '-i', 'color=red:s=64x64:r=25:d=0.04']

const coded: GateCase[] = [
  ...(['M4A ', 'M4V '] as const).map((brand): GateCase => ({
    name: `a sound whose cover is a film of one picture, ${brand.trim()}`,
    needs,
    make: changed(film(...stillPicture, ...noise, ...h264, '-c:a', 'aac', 'a.m4a'), (bytes) => {
      bytes.write(brand, 8)
      // How long that picture is shown: in no M4V for any time.
      return brand === 'M4A ' ? bytes : patched(bytes, 'stts', 12, be32(0))
    }),
    leaves: flac,
    gone: ['avc1'],
    removed: ['cover'],
    equal: lasting(1000, 30),
  })),
  {
    name: 'an MP3 whose encoder tells its padding',
    quick: true,
    needs,
    make: film(...noise, '-c:a', 'libmp3lame', ...tags, 'a.mp3'),
    leaves: flac,
    gone: ['canary-title', 'LAME', 'Info'],
    removed: ['id3'],
    equal: exact('s16le'),
  },
  {
    name: 'an MP3 of nothing but frames',
    needs,
    make: film(...noise, '-c:a', 'libmp3lame', '-write_xing', '0', '-id3v2_version', '0', 'a.mp3'),
    leaves: flac,
    equal: lasting(1000, 100),
  },
  {
    name: 'an MP3 of a low sampling frequency',
    needs,
    make: film(...tone, '-ar', '11025', '-ac', '1', '-c:a', 'libmp3lame', 'a.mp3'),
    leaves: flac,
    equal: lasting(2000, 160),
  },
  {
    name: 'an AAC of nothing but frames',
    needs,
    make: film(...noise, '-c:a', 'aac', 'a.aac'),
    leaves: flac,
    gone: ['Lavc'],
    equal: exact('s16le'),
  },
  {
    name: 'an AAC behind a tag',
    needs,
    make: changed(film(...noise, '-c:a', 'aac', 'a.aac'), (bytes) =>
      Buffer.concat([Buffer.from('ID3\x04\0\0\0\0\0\x0ccanary-title', 'latin1'), bytes]),
    ),
    leaves: flac,
    gone: ['canary-title'],
    removed: ['id3'],
  },
  {
    name: 'an M4A with title and cover',
    needs,
    make: (folder) => {
      const cover = makeCover(folder)
      const maps = ['-map', '0', '-map', '1', '-c:v', 'copy', '-disposition:v', 'attached_pic']
      return film(...noise, '-i', cover, ...maps, '-c:a', 'aac', ...tags, 'a.m4a')(folder)
    },
    leaves: flac,
    gone: ['canary-title', 'IHDR'],
    removed: ['cover', 'user-data'],
    equal: lasting(1000),
  },
  {
    name: 'an M4B with chapters',
    needs,
    make: (folder) => {
      const notes = bytesNamed(
        'a.txt',
        () => ';FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=canary-chapter\n',
      )
      const inputs = [...noise, '-i', notes(folder), '-map_metadata', '1', '-map', '0:a']
      return film(...inputs, '-c:a', 'aac', '-f', 'ipod', 'a.m4b')(folder)
    },
    leaves: flac,
    gone: ['canary-chapter'],
    removed: ['chapters'],
  },
  {
    name: 'an Ogg of Vorbis with comments',
    needs,
    make: film(...noise, '-c:a', 'libvorbis', ...tags, 'a.ogg'),
    leaves: flac,
    gone: ['canary-title', 'canary-comment'],
    removed: ['gps', 'text'],
    equal: exact('s16le'),
  },
  {
    name: 'an Ogg of Opus with comments',
    needs,
    make: film(...noise, '-c:a', 'libopus', ...tags, 'a.opus'),
    leaves: flac,
    gone: ['canary-title'],
    removed: ['gps', 'text'],
    equal: lasting(1000),
  },
  {
    name: 'an Ogg of Speex',
    needs,
    make: film(...tone, '-ar', '16000', '-ac', '1', '-c:a', 'libspeex', 'a.spx'),
    leaves: flac,
    equal: lasting(2000, 100),
  },
  {
    name: 'two Oggs in a row',
    needs,
    make: changed(film(...noise, '-c:a', 'libvorbis', 'a.ogg'), (bytes) =>
      Buffer.concat([bytes, bytes]),
    ),
    leaves: flac,
    equal: lasting(2000, 100),
  },
  {
    name: 'AMR of a telephone',
    needs,
    make: bytesNamed('a.amr', () => amr('#!AMR\n', 0x3c, 32, 100)),
    leaves: flac,
    equal: ([sound]) => {
      assert.deepEqual([sound?.sampleRateHz, sound?.durationMs], [8000, 2000])
    },
  },
  {
    name: 'wide AMR of a telephone',
    needs,
    make: bytesNamed('a.awb', () => amr('#!AMR-WB\n', 0x44, 61, 100)),
    leaves: flac,
    equal: ([sound]) => {
      assert.deepEqual([sound?.sampleRateHz, sound?.durationMs], [16_000, 2000])
    },
  },
]

/** Speech, a pause in which nothing but its noise is sent now and then, and speech. */
const paused: GateCase[] = (
  [
    ['a.amr', '#!AMR\n', [0x3c, 32], 0x44],
    ['a.awb', '#!AMR-WB\n', [0x44, 61], 0x4c],
  ] as const
).map(([name, magic, [speech, speechBytes], noiseType]) => ({
  name: `${name} of a conversation with pauses`,
  needs,
  make: bytesNamed(name, () => {
    const spoken = amr('', speech, speechBytes, 50)
    const pause = Buffer.concat([amr('', noiseType, 6, 1), amr('', 0x7c, 1, 7)])
    return Buffer.concat([amr(magic, speech, speechBytes, 50), pause, pause, spoken, pause])
  }),
  leaves: flac,
  // A hundred frames of speech and three pauses of eight, 20 ms each.
  equal: lasting(2480, 0),
}))

/** Two sounds that came behind a tag, and what is called by its name. */
const taggedCases: GateCase[] = [
  ...(['a.wav', 'a.aiff', 'a.ogg', 'a.amr'] as const).map((name): GateCase => ({
    name: `${name} behind a tag`,
    needs,
    make: (folder) => changed(made(name), (bytes) => Buffer.concat([timeTag, bytes]))(folder),
    leaves: flac,
    gone: ['canary-stamp'],
    removed: ['id3'],
  })),
  {
    name: 'an MP3 behind an APE tag with a large cover, and the room of another',
    needs,
    make: (folder) =>
      changed(made('b.mp3'), (bytes) => {
        const header = Buffer.alloc(32)
        header.write('APETAGEX')
        header.writeUInt32LE(60_000, 12)
        const cover = Buffer.alloc(60_000, 'canary-cover')
        return Buffer.concat([
          header,
          cover,
          Buffer.alloc(100_000),
          bytes.subarray(id3Length(bytes)),
        ])
      })(folder),
    leaves: flac,
    gone: ['canary-cover'],
    removed: ['id3', 'junk'],
    equal: lasting(1000, 100),
  },
  ...(
    [
      ['an MP3 of free bit rate', 'a.mp3', Buffer.from('fffb0000', 'hex'), /free bit rate/],
      ['a sound of layer II', 'a.mp2', Buffer.from('fffd8404', 'hex'), /layer II,[^]*FLAC/],
      ['a Core Audio file', 'a.caf', Buffer.from('caff\0\x01\0\0desc'), /CAF[^]*FLAC/],
      ['a WavPack', 'a.wv', Buffer.from('wvpk\0\0\0\0'), /WavPack[^]*FLAC/],
      ['a Sun sound', 'a.au', Buffer.from('.snd\0\0\0\x18'), /AU[^]*FLAC/],
      ['an AAC in LATM', 'a.latm', Buffer.from('56e03020', 'hex'), /LATM[^]*FLAC/],
    ] as const
  ).map(([name, file, head, says]): GateCase => ({
    name: `${name} is called that`,
    make: bytesNamed(file, () => Buffer.concat([head, Buffer.alloc(5000, 1)])),
    refused: { code: 'media.unsupported', says },
  })),
  {
    name: 'a WavPack behind a tag is called that',
    make: bytesNamed('a.wv', () => Buffer.concat([timeTag, Buffer.from('wvpk\0\0\0\0')])),
    refused: { code: 'media.unsupported', says: /WavPack/ },
  },
]

/** Frames of one type that all say nothing. */
function amr(magic: string, type: number, frameBytes: number, frames: number): Buffer {
  const frame = Buffer.alloc(frameBytes)
  frame.writeUInt8(type)
  return Buffer.concat([Buffer.from(magic), ...Array.from({ length: frames }, () => frame)])
}

/** Puts a chunk before the samples of a WAV. */
const withChunk = (name: string, content: string) => (bytes: Buffer) => {
  const addition = chunk(name, content)
  const copy = Buffer.concat([bytes.subarray(0, 36), addition, bytes.subarray(36)])
  copy.writeUInt32LE(copy.length - 8, 4)
  return copy
}

const bareWav = film(...noise, '-bitexact', 'a.wav')

const stripped: GateCase[] = [
  ...(
    [
      ['bext', 'broadcast'],
      ['iXML', 'broadcast'],
      ['_PMX', 'xmp'],
      ['id3 ', 'id3'],
      ['cue ', 'cuesheet'],
      ['zzzz', 'other'],
    ] as const
  ).map(([name, kind]): GateCase => ({
    name: `a WAV with a chunk ${name}`,
    needs,
    make: changed(bareWav, withChunk(name, 'canary-in-a-chunk')),
    leaves: flac,
    gone: ['canary-in-a-chunk'],
    removed: [kind],
    equal: exact('s16le'),
  })),
  {
    name: 'a WAV with tags',
    needs,
    make: film(...noise, ...tags, 'a.wav'),
    leaves: flac,
    gone: ['canary-title', 'canary-comment'],
    removed: ['text'],
  },
  {
    name: 'a WAV with words in its padding and behind its end',
    needs,
    make: changed(bareWav, (bytes) =>
      Buffer.concat([
        withChunk('JUNK', 'canary-junk')(bytes),
        Buffer.from('PK\x03\x04canary-tail'),
      ]),
    ),
    leaves: flac,
    gone: ['canary-junk', 'canary-tail'],
    removed: ['trailer'],
    equal: exact('s16le'),
  },
  {
    name: 'a FLAC with comments and a cover',
    needs,
    make: (folder) => {
      const cover = makeCover(folder)
      const maps = ['-map', '0', '-map', '1', '-disposition:v', 'attached_pic']
      return film(...noise, '-i', cover, ...maps, '-c:a', 'flac', ...tags, 'a.flac')(folder)
    },
    leaves: flac,
    gone: ['canary-title', 'IHDR'],
    removed: ['cover', 'text'],
  },
  {
    name: 'a FLAC between tags that are not its own',
    needs,
    make: changed(film(...noise, '-c:a', 'flac', '-sample_fmt', 's16', 'a.flac'), (bytes) =>
      Buffer.concat([
        Buffer.from('ID3\x04\0\0\0\0\0\x0ccanary-front', 'latin1'),
        bytes,
        Buffer.from(`TAGcanary-behind`.padEnd(128, '\0')),
      ]),
    ),
    leaves: flac,
    gone: ['canary-front', 'canary-behind'],
    removed: ['id3'],
    equal: lasting(1000, 1),
  },
  {
    name: 'an MP3 with tags of every kind, and a cover',
    needs,
    make: (folder) => {
      const cover = makeCover(folder)
      const maps = ['-map', '0', '-map', '1', '-c:v', 'copy', '-c:a', 'libmp3lame']
      const make = film(...noise, '-i', cover, ...maps, ...tags, '-write_id3v1', '1', 'a.mp3')
      return changed(make, (bytes) => {
        const ape = Buffer.from(`canary-ape`.padEnd(32))
        const footer = Buffer.alloc(32)
        footer.write('APETAGEX')
        footer.writeUInt32LE(2000, 8)
        footer.writeUInt32LE(64, 12)
        return Buffer.concat([bytes.subarray(0, -128), ape, footer, bytes.subarray(-128)])
      })(folder)
    },
    leaves: flac,
    gone: ['canary-title', 'canary-ape', 'IHDR'],
    removed: ['id3'],
    equal: lasting(1000),
  },
  {
    name: 'an AIFF with names and a tag',
    needs,
    make: changed(film(...noise, '-c:a', 'pcm_s16be', ...tags, 'a.aiff'), (bytes) => {
      const addition = chunk('ID3 ', 'canary-id3', true)
      const copy = Buffer.concat([bytes, addition])
      copy.writeUInt32BE(copy.length - 8, 4)
      return copy
    }),
    leaves: flac,
    gone: ['canary-title', 'canary-id3'],
    removed: ['id3', 'text'],
    equal: exact('s16le'),
  },
  {
    name: 'an M4A with a box of somebody',
    needs,
    make: changed(film(...noise, '-c:a', 'aac', 'a.m4a'), (bytes) =>
      intoIndex(bytes, box('uuid', '0123456789abcdef', 'canary-inside')),
    ),
    leaves: flac,
    gone: ['canary-inside'],
    removed: ['user-data'],
  },
]

const corrupt = (says: RegExp) => ({ code: 'media.corrupt' as const, says })

/** Writes both sizes of a WAV, of the whole and of its samples, whose form has 16 bytes. */
const sized = (riff: number, data: number) => (bytes: Buffer) => {
  bytes.writeUInt32LE(riff, 4)
  bytes.writeUInt32LE(data, bytes.indexOf('data') + 4)
  return bytes
}

/** Samples are all there; what is wrong is what somebody said around them. */
const oddSizes: GateCase[] = [
  ...(
    [
      ['of a recorder that lost its power', 0, 0],
      ['of a program that never came back to its head', 36, 0],
      ['that sox wrote to a pipe', 0x7ffff024, 0x7ffff000],
      ['that arecord wrote to a pipe', 0x80000024, 0x80000000],
      ['whose whole is unknown, and whose samples are too', 0, 0xffffffff],
    ] as const
  ).map(([name, riff, data]): GateCase => ({
    name: `a WAV ${name}`,
    needs,
    make: changed(bareWav, sized(riff, data)),
    leaves: flac,
    equal: exact('s16le'),
  })),
  ...[0, 1000, 192_000 + 28, 192_000 + 44, 0xffffffff].map((riff): GateCase => ({
    name: `a WAV that says it had ${riff} bytes in all`,
    needs,
    make: changed(bareWav, sized(riff, 192_000)),
    leaves: flac,
    equal: exact('s16le'),
  })),
  {
    name: 'a WAV that lacks the end of what it says of its samples',
    needs,
    make: changed(bareWav, (bytes) => sized(36 + 192_400, 192_400)(bytes)),
    refused: corrupt(/ at byte 192044/),
  },
  {
    name: 'a WAV of no samples, and with something behind',
    needs,
    make: changed(bareWav, sized(4000, 0)),
    refused: corrupt(/ at byte 44/),
  },
  {
    name: 'a WAV whose last sample is not whole',
    needs,
    make: changed(bareWav, (bytes) => sized(36 + 191_998, 191_998)(bytes.subarray(0, -2))),
    leaves: flac,
    removed: ['cut-frame'],
    equal: lasting(1000, 1),
  },
  {
    name: 'a WAV whose texts are cut behind its samples',
    needs,
    make: changed(bareWav, (bytes) =>
      Buffer.concat([bytes, chunk('LIST', `INFO${'canary-list'.repeat(20)}`).subarray(0, 90)]),
    ),
    leaves: flac,
    gone: ['canary-list'],
    removed: ['trailer'],
    equal: exact('s16le'),
  },
  {
    name: 'a WAV whose chunks do not begin at even places',
    needs,
    make: changed(bareWav, (bytes) => {
      const text = chunk('LIST', 'INFOcanary-text').subarray(0, -1)
      return Buffer.concat([bytes.subarray(0, 12), text, bytes.subarray(12)])
    }),
    leaves: flac,
    gone: ['canary-text'],
    removed: ['text'],
    equal: lasting(1000, 0),
  },
  {
    name: 'an RF64 of a recorder that lost its power',
    needs,
    make: changed(film(...noise, '-rf64', 'always', '-bitexact', 'a.wav'), (bytes) =>
      bytes.fill(0, 20, 44),
    ),
    leaves: flac,
    equal: lasting(1000, 0),
  },
  {
    name: 'a RIFX, whose numbers are the other way round',
    needs,
    make: changed(bareWav, (bytes) => {
      const swapped = Buffer.from(bytes)
      swapped.write('RIFX')
      for (const at of [4, 16, 24, 28, 40]) swapped.writeUInt32BE(bytes.readUInt32LE(at), at)
      for (const at of [20, 22, 32, 34]) swapped.writeUInt16BE(bytes.readUInt16LE(at), at)
      swapped.subarray(44).swap16()
      return swapped
    }),
    leaves: flac,
    equal: ([sound]) => {
      const folder = mkdtempSync(join(tmpdir(), 'gate-sound-'))
      try {
        const raw = ['-f', 's16le', '-c:a', 'pcm_s16le']
        const before = run([...noise, '-bitexact', ...raw, 'pipe:1'])
        assert.ok(sound && decoded(sound.bytes, folder, ...raw).equals(before))
      } finally {
        rmSync(folder, { recursive: true })
      }
    },
  },
  {
    name: 'a WAV of 20 bits in three bytes',
    needs,
    make: changed(film(...noise, '-c:a', 'pcm_s24le', '-bitexact', 'a.wav'), (bytes) => {
      // An extensible format before, a plain one now, with its samples where they were.
      const form = Buffer.from(bytes.subarray(20, 36))
      form.writeUInt16LE(1, 0)
      form.writeUInt16LE(20, 14)
      const data = bytes.subarray(bytes.indexOf('data'))
      const head = Buffer.from('RIFF\0\0\0\0WAVE', 'latin1')
      head.writeUInt32LE(4 + 24 + data.length, 4)
      return Buffer.concat([head, chunk('fmt ', form), data])
    }),
    leaves: flac,
    equal: lasting(1000, 0),
  },
  {
    name: 'a WAV of G.726, as recorders of calls write it',
    needs,
    make: film(...tone, '-ar', '8000', '-ac', '1', '-c:a', 'g726', 'a.wav'),
    leaves: flac,
    equal: lasting(2000),
  },
  {
    name: 'a WAV of G.722',
    needs,
    make: film(...tone, '-ar', '16000', '-ac', '1', '-c:a', 'g722', 'a.wav'),
    leaves: flac,
    equal: lasting(2000),
  },
  {
    name: 'an AIFF that says its whole file is its form',
    needs,
    make: changed(film(...noise, '-c:a', 'pcm_s16be', 'a.aiff'), (bytes) => {
      bytes.writeUInt32BE(bytes.length, 4)
      return bytes
    }),
    leaves: flac,
    equal: exact('s16le'),
  },
  {
    name: 'an AIFF that counts fewer samples than it has',
    needs,
    make: changed(film(...noise, '-c:a', 'pcm_s16be', 'a.aiff'), (bytes) => {
      bytes.writeUInt32BE(40_000, bytes.indexOf('COMM') + 10)
      return bytes
    }),
    leaves: flac,
    equal: exact('s16le'),
  },
]

const cut = (part: number) => (bytes: Buffer) => bytes.subarray(0, Math.floor(bytes.length * part))

/** Bytes in the middle, turned into something else. */
const spoilt = (bytes: Buffer) => {
  const at = Math.floor(bytes.length / 2)
  return Buffer.from(bytes).fill(0x5a, at, at + 400)
}

const sources: Record<string, GateCase['make']> = {
  'a.wav': film(...noise, 'a.wav'),
  'a.aiff': film(...noise, 'a.aiff'),
  'a.flac': film(...noise, 'a.flac'),
  'a.mp3': film(...noise, '-c:a', 'libmp3lame', 'a.mp3'),
  'b.mp3': film(...noise, '-c:a', 'libmp3lame', '-write_xing', '0', 'b.mp3'),
  'a.aac': film(...noise, '-c:a', 'aac', 'a.aac'),
  'a.m4a': film(...noise, '-c:a', 'aac', '-movflags', '+faststart', 'a.m4a'),
  // A page of Ogg holds about a second.
  'a.ogg': film(
    ...noise,
    ...noise.slice(0, 4),
    '-filter_complex',
    '[0][1]concat=v=0:a=1:n=2',
    '-c:a',
    'libvorbis',
    'a.ogg',
  ),
  'a.amr': bytesNamed('a.amr', () => amr('#!AMR\n', 0x3c, 32, 100)),
}

const damaged: GateCase[] = Object.entries(sources).flatMap(([name, make]) => {
  const made = make as (folder: string) => string
  const rows: GateCase[] = [
    {
      name: `${name} that is cut short`,
      needs,
      make: changed(made, cut(0.6789)),
      refused: corrupt(/ at byte \d+| after \d+\.\d s/),
    },
  ]
  const left: GateCase = {
    name: `what is left of ${name}`,
    needs,
    salvage: true,
    make: changed(made, cut(0.6789)),
    leaves: flac,
    equal: ([sound]) => {
      assert.equal(sound?.partial, true)
      assert.ok((sound?.durationMs ?? 0) >= 400)
    },
  }
  return [...rows, left]
})

/** Recorders that lose power, and programs that split, leave a part of the last frame. */
const without = (bytes: number) => (whole: Buffer) => whole.subarray(0, -bytes)
const cutFrames: GateCase[] = [
  {
    name: 'an MP3 whose last frame is cut, as its own count says',
    needs,
    make: changed(sources['a.mp3'] as (folder: string) => string, without(100)),
    leaves: flac,
    removed: ['cut-frame'],
    equal: ([sound]) => {
      assert.equal(sound?.partial, undefined)
      // All but what that frame held.
      const missingMs = 1000 - (sound?.durationMs ?? 0)
      assert.ok(missingMs >= 0 && missingMs <= 24, String(missingMs))
    },
  },
  {
    name: 'an MP3 whose last frame is cut before a tag',
    needs,
    make: changed(sources['a.mp3'] as (folder: string) => string, (bytes) =>
      Buffer.concat([without(100)(bytes), Buffer.from('TAGcanary-behind'.padEnd(128, '\0'))]),
    ),
    leaves: flac,
    gone: ['canary-behind'],
    removed: ['cut-frame', 'id3'],
  },
  {
    name: 'an MP3 that lacks its last two frames',
    needs,
    make: changed(sources['a.mp3'] as (folder: string) => string, without(1000)),
    refused: corrupt(/within a frame[^]*--salvage/),
  },
  {
    name: 'an MP3 whose last frame is cut, and that counts nothing',
    needs,
    make: changed(sources['b.mp3'] as (folder: string) => string, without(100)),
    refused: corrupt(/within a frame[^]*--salvage/),
  },
  {
    name: 'an AAC whose last frame is cut',
    needs,
    make: changed(sources['a.aac'] as (folder: string) => string, without(100)),
    refused: corrupt(/within a frame[^]*--salvage/),
  },
]

const made = (name: string) => sources[name] as (folder: string) => string
const counting = film(...noise, '-c:a', 'libmp3lame', '-write_id3v1', '1', ...tags, 'a.mp3')
const timeTag = Buffer.from('ID3\x04\0\0\0\0\0\x0ccanary-stamp', 'latin1')
const twice =
  (between: string | Buffer = '') =>
  (bytes: Buffer) =>
    Buffer.concat([bytes, Buffer.from(between as string, 'latin1'), bytes])
const followed = (by: string | Buffer) => (bytes: Buffer) =>
  Buffer.concat([bytes, Buffer.from(by as string, 'latin1')])

/** Recordings that were joined, and what programs leave between frames and behind the last one. */
const followedCases: GateCase[] = [
  {
    name: 'two MP3s in a row, each with tags and a count of its own',
    needs,
    make: changed(counting, twice()),
    leaves: flac,
    gone: ['canary-title'],
    removed: ['id3'],
    equal: lasting(2000, 80),
  },
  {
    name: 'an AAC of segments, each behind a time stamp',
    needs,
    make: changed(made('a.aac'), (bytes) => twice(timeTag)(followed(timeTag)(bytes))),
    leaves: flac,
    gone: ['canary-stamp'],
    removed: ['id3'],
    equal: lasting(2000, 80),
  },
  {
    name: 'two MP3s in a row of different sampling rates and channels',
    needs,
    make: (folder) => {
      const other = film(...tone, '-ar', '32000', '-ac', '1', '-c:a', 'libmp3lame', 'b.mp3')(folder)
      return changed(counting, (bytes) => Buffer.concat([bytes, readFileSync(other)]))(folder)
    },
    leaves: flac,
    gone: ['canary-title'],
    // Two seconds and their padding behind one: no block at the seam is lost.
    equal: lasting(3085, 25),
  },
  {
    name: 'two MP3s with something between them',
    needs,
    make: changed(made('b.mp3'), twice('canary-between, where frames may be missing')),
    refused: corrupt(/ at byte \d+/),
  },
  {
    name: 'what is left of two MP3s with something between them',
    needs,
    salvage: true,
    make: changed(made('b.mp3'), twice('canary-between, where frames may be missing')),
    leaves: flac,
    gone: ['canary-between'],
    removed: ['junk'],
    equal: ([sound], source) => {
      assert.equal(sound?.partial, true)
      lasting(2000, 100)([sound] as Outcome[])
      assert.ok(source.length > 0)
    },
  },
  ...(['a.mp3', 'b.mp3', 'a.aac', 'a.amr'] as const).map((name): GateCase => ({
    name: `${name} with something behind its last frame`,
    needs,
    make: changed(made(name), followed('\r\ncanary-behind'.repeat(40))),
    leaves: flac,
    gone: ['canary-behind'],
    removed: ['trailer'],
    equal: ([sound]) => assert.equal(sound?.partial, undefined),
  })),
  {
    name: 'an AMR of which more is lost than is left',
    needs,
    make: bytesNamed('a.amr', () =>
      Buffer.concat([amr('#!AMR\n', 0x3c, 32, 10), Buffer.alloc(4000, 0x5a)]),
    ),
    refused: corrupt(/ at byte 326/),
  },
  {
    name: 'an MP3 with an archive behind its last frame',
    needs,
    make: changed(made('b.mp3'), followed(`PK\x03\x04${'canary-archive'.repeat(10_000)}`)),
    leaves: flac,
    gone: ['canary-archive'],
    removed: ['trailer'],
  },
  {
    name: 'an MP3 whose second half is zeros, and that counts nothing',
    needs,
    make: changed(made('b.mp3'), followed(Buffer.alloc(100_000))),
    refused: corrupt(/ at byte \d+/),
  },
  {
    name: 'an MP3 with zeros behind all the frames that it counts',
    needs,
    make: changed(made('a.mp3'), followed(Buffer.alloc(100_000))),
    leaves: flac,
    removed: ['trailer'],
    equal: lasting(1000, 1),
  },
  {
    name: 'an MP3 whose last third is something else, as its own count says',
    needs,
    make: changed(made('a.mp3'), (bytes) => bytes.fill(0x5a, Math.floor(bytes.length * 0.67))),
    refused: corrupt(/ at byte \d+/),
  },
  {
    name: 'an MP3 that adds less behind its end than a decoder is late',
    needs,
    make: changed(made('a.mp3'), (bytes) => {
      // Two counts of twelve bits, what was added before and behind.
      const at = bytes.indexOf('Info') + 141
      bytes.writeUIntBE((576 << 12) | 100, at, 3)
      return bytes
    }),
    leaves: flac,
    equal: lasting(1024, 24),
  },
  {
    name: 'an MP3 that broke off within its fourth frame',
    needs,
    make: changed(made('b.mp3'), (bytes) => bytes.subarray(0, id3Length(bytes) + 1400)),
    refused: corrupt(/within a frame[^]*--salvage/),
  },
]

/** Where the frames begin behind a short tag. */
const id3Length = (bytes: Buffer) => 10 + bytes.readUInt8(8) * 128 + bytes.readUInt8(9)

/** Four seconds, so that there are pages to lose: each holds about one. */
const opus = film(
  ...tone,
  ...tone,
  '-filter_complex',
  'concat=v=0:a=1',
  '-c:a',
  'libopus',
  'a.opus',
)
const pagesChanged = (change: (pages: Buffer[]) => Buffer[]) => (bytes: Buffer) =>
  oggOf(change(oggPages(bytes)))
const joinedTo = (...args: string[]): GateCase['make'] => {
  return (folder) => {
    const other = film(...args)(folder)
    return changed(made('a.ogg'), (bytes) => Buffer.concat([bytes, readFileSync(other)]))(folder)
  }
}

const oggCases: GateCase[] = [
  {
    name: 'an Ogg of Opus that was joined to itself',
    needs,
    make: changed(opus, twice()),
    leaves: flac,
    equal: lasting(8000, 1),
  },
  {
    name: 'an Ogg whose parts differ in sampling rate and channels',
    needs,
    make: joinedTo(...tone, '-ar', '32000', '-ac', '1', '-c:a', 'libvorbis', 'b.ogg'),
    leaves: flac,
    // No block at the seam is lost.
    equal: lasting(4000, 10),
  },
  {
    name: 'an Ogg whose parts are coded differently',
    needs,
    make: joinedTo(...tone, '-c:a', 'libopus', 'b.opus'),
    refused: { code: 'media.unsupported', says: /vorbis becomes opus[^]*one by one/ },
  },
  {
    name: 'an Ogg of Vorbis with packets that are empty',
    needs,
    make: changed(
      made('a.ogg'),
      pagesChanged((pages) =>
        pages.map((page, i) => (i > 1 && i === pages.length - 1 ? withEmptyPacket(page) : page)),
      ),
    ),
    leaves: flac,
    equal: lasting(2000, 1),
  },
  {
    name: 'an Ogg with something behind its last page',
    needs,
    make: changed(opus, followed('PK\x03\x04canary-behind')),
    leaves: flac,
    gone: ['canary-behind'],
    removed: ['trailer'],
    equal: lasting(4000, 1),
  },
  {
    name: 'an Ogg without a last page, and with something behind',
    needs,
    make: changed(opus, (bytes) => {
      const pages = oggPages(bytes).slice(0, -1)
      return followed('canary-behind')(oggOf(pages))
    }),
    refused: corrupt(/ at byte \d+/),
  },
  {
    name: 'an Ogg that lacks a page inside',
    needs,
    make: changed(
      opus,
      pagesChanged((pages) => pages.toSpliced(3, 1)),
    ),
    refused: corrupt(/ at byte \d+/),
  },
  {
    name: 'what is left of an Ogg with a page that is spoilt',
    needs,
    salvage: true,
    make: changed(opus, (bytes) => {
      const pages = oggPages(bytes)
      const before = oggOf(pages.slice(0, 3)).length
      return bytes.fill(0x5a, before + 400, before + 500)
    }),
    leaves: flac,
    equal: ([sound]) => {
      assert.equal(sound?.partial, true)
      // Those behind it are still there.
      lasting(3000, 200)([sound] as Outcome[])
    },
  },
  {
    name: 'an Ogg of a broadcast that was joined in its fiftieth hour',
    needs,
    make: changed(
      opus,
      pagesChanged((pages) =>
        pages.map((page, i) => {
          if (i < 2) return page
          page.writeBigInt64LE(page.readBigInt64LE(6) + 50n * 3600n * 48_000n, 6)
          page.writeUInt32LE(page.readUInt32LE(18) + 180_000, 18)
          return page
        }),
      ),
    ),
    leaves: flac,
    equal: lasting(4000, 20),
  },
]

const spoiltCases: GateCase[] = ['a.flac', 'a.aac', 'a.ogg', 'a.amr'].map((name) => ({
  name: `${name} that is spoilt inside`,
  needs,
  make: changed(sources[name] as (folder: string) => string, spoilt),
  refused: corrupt(/ at byte \d+| after \d+\.\d s/),
}))

const limited: GateCase[] = [
  {
    name: 'a sound of five samples',
    needs,
    make: film(...noise, '-frames:a', '1', '-af', 'atrim=end_sample=5', 'a.wav'),
    leaves: flac,
    equal: exact('s16le'),
  },
  {
    name: 'a sound of absurd sampling',
    needs,
    make: film(...tone, '-ar', '384000', 'a.wav'),
    refused: { code: 'media.too_large', says: /Hz/ },
  },
  {
    name: 'a sound of nine channels',
    needs,
    make: changed(film(...noise, 'a.wav'), (bytes) => {
      bytes.writeUInt16LE(9, 22)
      bytes.writeUInt16LE(18, 32)
      const data = bytes.indexOf('data') + 4
      const whole = Math.floor(bytes.readUInt32LE(data) / 18) * 18
      bytes.writeUInt32LE(whole, data)
      bytes.writeUInt32LE(data + 4 + whole - 8, 4)
      return bytes.subarray(0, data + 4 + whole)
    }),
    refused: { code: 'media.too_large', says: /channels/ },
  },
  {
    name: 'a day of silence in few bytes',
    needs,
    make: changed(film(...noise, 'a.flac'), (bytes) => {
      // The total of STREAMINFO, 36 bits.
      bytes.writeUInt32BE(0xf7314000, 22)
      return bytes
    }),
    refused: { code: 'media.too_large', says: /long/ },
  },
  {
    name: 'six hours of silence in few frames',
    make: bytesNamed('a.amr', () => amr('#!AMR\n', 0x7c, 1, 6 * 3600 * 50)),
    refused: { code: 'media.too_large', says: /long/ },
  },
  {
    name: 'words called a sound',
    make: bytesNamed('a.mp3', () => 'these are only words, many of them'),
    refused: { code: 'media.unsupported', says: /text/ },
  },
  {
    name: 'a tag without a sound',
    make: bytesNamed('a.mp3', () => Buffer.from('ID3\x04\0\0\0\0\0\x05abcde', 'latin1')),
    refused: { code: 'media.unsupported', says: /tag/ },
  },
  {
    name: 'a tag before a picture',
    make: bytesNamed('a.mp3', () =>
      Buffer.from('ID3\x04\0\0\0\0\0\0\xff\xd8\xff\xe0picture', 'latin1'),
    ),
    refused: { code: 'media.unsupported', says: /tag/ },
  },
  {
    name: 'a playlist called a sound',
    make: bytesNamed('a.mp3', () => '[playlist]\nFile1=file:///etc/passwd\nNumberOfEntries=1\n'),
    refused: { code: 'media.unsupported' },
  },
  {
    name: 'an Ogg of something else',
    needs,
    make: changed(film(...noise, '-c:a', 'libvorbis', 'a.ogg'), (bytes) => {
      // Another name of the codec, and the checksum that goes with it.
      bytes.write('\x01vorbiz', bytes.indexOf('\x01vorbis'), 'latin1')
      return bytes
    }),
    refused: { code: 'media.corrupt', says: /at byte 0/ },
  },
  {
    name: 'a FLAC of 32 bits',
    needs,
    make: changed(film(...noise, '-c:a', 'flac', '-sample_fmt', 's16', 'a.flac'), (bytes) => {
      // Bits less one, across the boundary of two bytes of STREAMINFO.
      bytes.writeUInt8(bytes.readUInt8(20) | 1, 20)
      bytes.writeUInt8(bytes.readUInt8(21) | 0xf0, 21)
      return bytes
    }),
    refused: { code: 'media.unsupported', says: /24 bits[^]*WAV of 32 bits/ },
  },
  {
    name: 'a WAV of a rare codec',
    needs,
    make: film(...tone, '-c:a', 'wmav2', 'a.wav'),
    refused: { code: 'media.unsupported' },
  },
]

/** Whole by its head and its length, and no frame in it: a decoder finds nothing, and says nothing of it. */
const hollow: GateCase[] = (['analysis', 'compact'] as const).map((profile) => ({
  name: `a FLAC with nothing where its frames should be, ${profile}`,
  needs,
  profile,
  make: changed(film(...noise, 'a.flac'), (bytes) =>
    bytes.fill(0, bytes.indexOf(Buffer.from('fff8', 'hex'))),
  ),
  refused: corrupt(/ after 0\.0 s/),
}))

export const soundCases: readonly GateCase[] = [
  ...plain,
  ...coded,
  ...stripped,
  ...oddSizes,
  ...damaged,
  ...cutFrames,
  ...followedCases,
  ...oggCases,
  ...paused,
  ...taggedCases,
  ...spoiltCases,
  ...hollow,
  ...limited,
]
