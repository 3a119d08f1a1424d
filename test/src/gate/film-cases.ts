/** Films of the gate's corpus. */

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
  le32,
  makeCover,
  noise,
  onset,
  patched,
  picture,
  pictureTimes,
  run,
  tags,
  tone,
} from './make-films.ts'

const needs = ['ffmpeg'] as const
const mp4 = [...picture, ...tone, ...h264, '-g', '25', '-c:a', 'aac']
const both = ['mp4', 'flac'] as const

/** Runs a check with a folder of its own. */
function within(check: (folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), 'gate-film-'))
  try {
    check(folder)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** Every picture at its own time, as in the source; sound and picture as far apart. */
function whole(outcomes: readonly Outcome[], source: Buffer): void {
  within((folder) => {
    const [first, sound] = outcomes
    assert.ok(first)
    const before = pictureTimes(source, folder)
    const after = pictureTimes(first.bytes, folder)
    assert.equal(first.frames, before.length)
    const shift = (after[0] ?? 0) - (before[0] ?? 0)
    for (const [i, time] of before.entries()) {
      assert.ok(Math.abs((after[i] ?? 0) - time - shift) <= 1, `picture ${i} moved`)
    }
    assert.ok(Math.abs((first.durationMs ?? 0) - 2000) <= 60, String(first.durationMs))
    if (sound !== undefined) assert.equal(sound.soundOfFilm, true)
    for (const word of ['Lav', 'x264', 'Handler', 'ffmpeg']) {
      assert.ok(!outcomes.some(({ bytes }) => bytes.includes(word)), word)
    }
  })
}

const size = (width: number, height: number) => (outcomes: readonly Outcome[]) => {
  assert.deepEqual([outcomes[0]?.widthPixels, outcomes[0]?.heightPixels], [width, height])
}

/** Turns by the matrix of the track: a, b, c, d of its nine numbers, and where its corner comes to lie. */
function turnedBy(matrix: readonly number[], x: number, y: number): GateCase['make'] {
  const [a = 0, b = 0, c = 0, d = 0] = matrix
  const one = 0x10000
  const values = [a * one, b * one, 0, c * one, d * one, 0, x * one, y * one, 0x40000000]
  return changed(film(...picture, ...h264, 'turned.mp4'), (bytes) =>
    patched(bytes, 'tkhd', 40, Buffer.from(new Int32Array(values).buffer).swap32()),
  )
}

/** Which quarter of the picture is white: counted from the upper left, row by row. */
function brightQuarter(bytes: Buffer): number {
  let quarter = -1
  within((folder) => {
    const gray = decoded(
      bytes,
      folder,
      ...['-frames:v', '1', '-vf', 'scale=2:2:flags=area,format=gray', '-f', 'rawvideo'],
    )
    quarter = gray.subarray(0, 4).findIndex((value) => value > 120)
  })
  return quarter
}

const corner = [
  ...['-f', 'lavfi', '-i', 'color=black:s=320x240:r=25:d=0.2'],
  ...['-vf', 'drawbox=w=160:h=120:color=white:t=fill'],
]

/** The white corner comes to lie in that quarter. */
function quarterTurned(matrix: readonly number[], quarter: number): GateCase {
  const [a = 0, b = 0, c = 0, d = 0] = matrix
  const one = 0x10000
  const x = a + c < 0 ? 320 : 0
  const y = b + d < 0 ? 320 : 0
  const values = [a * one, b * one, 0, c * one, d * one, 0, x * one, y * one, 0x40000000]
  return {
    name: `a film turned by the matrix ${matrix.join(' ')}`,
    needs,
    make: changed(film(...corner, ...h264, 'turned.mp4'), (bytes) =>
      patched(bytes, 'tkhd', 40, Buffer.from(new Int32Array(values).buffer).swap32()),
    ),
    leaves: ['mp4'],
    equal: ([outcome]) => {
      assert.ok(outcome)
      const upright = b === 0
      assert.equal(outcome.widthPixels, upright ? 320 : 240)
      assert.equal(brightQuarter(outcome.bytes), quarter)
    },
  }
}

/** A flash and a beep one second in, the sound's track `offset` seconds later. */
function flash(name: string, offset: number, ...codecs: string[]): GateCase {
  return {
    name: `a flash and a beep in ${name}, the sound ${offset * 1000} ms late${codecs.includes('-af') ? ', with a gap' : ''}`,
    needs,
    make: film(
      ...['-f', 'lavfi', '-i'],
      "color=black:s=160x120:r=25:d=2,drawbox=enable='gte(t,1)':color=white:t=fill",
      ...['-itsoffset', String(offset), '-f', 'lavfi', '-i'],
      "aevalsrc='if(gte(t,1),0.5*sin(2*PI*1000*t),0)':d=2:s=48000",
      ...codecs,
      name,
    ),
    leaves: both,
    equal: ([first, sound], source) =>
      within((folder) => {
        assert.ok(first && sound)
        const apart = onset(source, folder, 'a') - onset(source, folder, 'v')
        const seen = onset(first.bytes, folder, 'v')
        for (const bytes of [first.bytes, sound.bytes]) {
          const now = onset(bytes, folder, 'a') - seen
          assert.ok(Math.abs(now - apart) <= 20, `${now} in place of ${apart}`)
        }
      }),
  }
}

const ownContainers: GateCase[] = [
  ['MP4 of H.264 and AAC', 'a.mp4', [...h264, '-c:a', 'aac']],
  ['MP4 in fragments', 'a.mp4', [...h264, '-c:a', 'aac', '-movflags', '+frag_keyframe+empty_moov']],
  ['MP4 with its index first', 'a.mp4', [...h264, '-c:a', 'aac', '-movflags', '+faststart']],
  ['MP4 of HEVC', 'a.mp4', ['-c:v', 'libx265', '-preset', 'ultrafast', '-c:a', 'aac']],
  ['MP4 of MPEG-4', 'a.mp4', ['-c:v', 'mpeg4', '-c:a', 'mp3']],
  ['MOV of ProRes and PCM', 'a.mov', ['-c:v', 'prores_ks', '-c:a', 'pcm_s16le']],
  ['MOV of run lengths, in RGB', 'a.mov', ['-c:v', 'qtrle', '-c:a', 'pcm_s24be']],
  ['MOV of MJPEG', 'a.mov', ['-c:v', 'mjpeg', '-c:a', 'pcm_u8']],
  ['M4V', 'a.m4v', [...h264, '-c:a', 'aac', '-f', 'ipod']],
  ['3GP of H.263', 'a.3gp', ['-s', '352x288', '-c:v', 'h263', '-c:a', 'aac']],
  ['Matroska of H.264 and Vorbis', 'a.mkv', [...h264, '-c:a', 'libvorbis']],
  ['Matroska of FFV1 and FLAC', 'a.mkv', ['-c:v', 'ffv1', '-c:a', 'flac']],
  ['WebM of VP8 and Vorbis', 'a.webm', ['-c:v', 'libvpx', '-c:a', 'libvorbis']],
  ['WebM of VP9 and Opus', 'a.webm', ['-c:v', 'libvpx-vp9', '-cpu-used', '8', '-c:a', 'libopus']],
  ['AVI of MPEG-4 and MP3', 'a.avi', ['-c:v', 'mpeg4', '-vtag', 'XVID', '-c:a', 'mp3']],
  ['AVI of MJPEG and PCM', 'a.avi', ['-c:v', 'mjpeg', '-c:a', 'pcm_s16le']],
  ['MPEG-TS of H.264 and AAC', 'a.ts', [...h264, '-c:a', 'aac']],
  ['MPEG-TS of MPEG-2 and MP2', 'a.ts', ['-c:v', 'mpeg2video', '-c:a', 'mp2']],
  ['M2TS of H.264 and AC-3', 'a.mts', [...h264, '-c:a', 'ac3', '-mpegts_m2ts_mode', '1']],
].map(([name, file, codecs]) => ({
  name: `a film in ${String(name)}`,
  ...(file === 'a.webm' || name === 'MP4 of H.264 and AAC' ? { quick: true as const } : {}),
  needs,
  make: film(...picture, ...tone, ...(codecs as string[]), String(file)),
  leaves: both,
  equal: whole,
}))

const stripped: GateCase[] = [
  {
    name: 'a film with title and place',
    quick: true,
    needs,
    make: film(...mp4, ...tags, 'a.mp4'),
    leaves: both,
    gone: ['canary-title', 'canary-comment', 'loci'],
    removed: ['gps', 'user-data'],
  },
  {
    name: 'a MOV with title and place',
    needs,
    make: film(...mp4, ...tags, '-metadata', 'make=canary-make', 'a.mov'),
    leaves: both,
    gone: ['canary-title', 'canary-make', '\xa9xyz'.slice(1)],
    removed: ['gps', 'user-data'],
  },
  {
    name: 'a film with its date',
    needs,
    make: film(...mp4, '-metadata', 'creation_time=2020-01-02T03:04:05Z', 'a.mp4'),
    leaves: both,
    gone: [be32(0xda330e25)],
    removed: ['time'],
  },
  {
    name: 'a Matroska with tags, an attachment and subtitles',
    needs,
    make: (folder) => {
      const words = bytesNamed('a.srt', () => '1\n00:00:00,000 --> 00:00:01,000\ncanary-words\n')
      const note = bytesNamed('a.txt', () => 'canary-attached')(folder)
      const inputs = [...picture, ...tone, '-i', words(folder)]
      const maps = ['-map', '0', '-map', '1', '-map', '2', '-attach', note]
      const type = ['-metadata:s:t', 'mimetype=text/plain', ...tags]
      return film(
        ...inputs,
        ...maps,
        ...type,
        ...h264,
        '-c:a',
        'aac',
        '-c:s',
        'srt',
        'a.mkv',
      )(folder)
    },
    leaves: both,
    gone: ['canary-words', 'canary-attached', 'canary-title'],
    removed: ['attachments', 'gps', 'subtitles', 'text'],
  },
  {
    name: 'a film with chapters and subtitles',
    needs,
    make: (folder) => {
      const notes =
        ';FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=canary-chapter\n'
      const words = bytesNamed('a.srt', () => '1\n00:00:00,000 --> 00:00:01,000\ncanary-words\n')
      const inputs = ['-i', bytesNamed('a.txt', () => notes)(folder), '-i', words(folder)]
      const maps = ['-map', '0', '-map', '1', '-map', '3', '-map_chapters', '2']
      const codecs = [...h264, '-c:a', 'aac', '-c:s', 'mov_text']
      return film(...picture, ...tone, ...inputs, ...maps, ...codecs, 'a.mp4')(folder)
    },
    leaves: both,
    gone: ['canary-chapter', 'canary-words'],
    removed: ['chapters', 'subtitles'],
  },
  {
    name: 'a film with a timecode',
    needs,
    make: film(...mp4, '-timecode', '01:02:03:04', 'a.mov'),
    leaves: both,
    gone: ['tmcd'],
    removed: ['timecode'],
  },
  {
    name: 'a film with a track of positions',
    needs,
    make: changed(
      (folder) => {
        const words = bytesNamed('a.srt', () => '1\n00:00:00,000 --> 00:00:02,000\ncanary-gps\n')
        const inputs = [...picture, ...tone, '-i', words(folder)]
        const maps = ['-map', '0', '-map', '1', '-map', '2']
        return film(...inputs, ...maps, ...h264, '-c:a', 'aac', '-c:s', 'mov_text', 'a.mp4')(folder)
      },
      (bytes) => {
        bytes.write('gpmd', bytes.indexOf('tx3g'), 'latin1')
        bytes.write('meta', bytes.indexOf('sbtl'), 'latin1')
        return bytes
      },
    ),
    leaves: both,
    gone: ['canary-gps', 'gpmd'],
    removed: ['timed-metadata'],
  },
  {
    name: 'a film with a box of somebody, in its index and behind it',
    needs,
    make: changed(film(...mp4, 'a.mp4'), (bytes) =>
      Buffer.concat([
        intoIndex(bytes, box('uuid', '0123456789abcdef', 'canary-inside')),
        box('uuid', '0123456789abcdef', 'canary-outside'),
        box('free', 'canary-free'),
      ]),
    ),
    leaves: both,
    gone: ['canary-inside', 'canary-outside', 'canary-free'],
    removed: ['other', 'user-data'],
  },
  {
    name: 'free space inside the index holds what an editor left there',
    needs,
    make: changed(film(...mp4, 'padded.mp4'), (bytes) =>
      intoIndex(bytes, box('free', 'canary-of-an-older-title-that-is-no-box')),
    ),
    leaves: both,
    gone: ['canary-of-an-older-title'],
    equal: whole,
  },
  {
    name: 'an MP4 with a trailer in a form of its maker',
    needs,
    make: changed(film(...mp4, 'trailer.mp4'), (bytes) =>
      Buffer.concat([bytes, Buffer.from('canary-trailer-of-a-camera-in-no-form-of-boxes')]),
    ),
    leaves: both,
    gone: ['canary-trailer'],
    removed: ['trailer'],
    equal: whole,
  },
  {
    name: 'an MP4 whose media data, the last box, is cut by a byte',
    needs,
    make: changed(film(...mp4, '-movflags', 'faststart', 'cut.mp4'), (bytes) =>
      bytes.subarray(0, -1),
    ),
    refused: { code: 'media.corrupt', says: /cut short/ },
  },
  {
    name: 'a film with an archive behind its last box',
    needs,
    make: changed(film(...mp4, 'a.mp4'), (bytes) =>
      Buffer.concat([bytes, box('skip', 'PK\x03\x04', 'canary-archive', 'PK\x05\x06')]),
    ),
    leaves: both,
    gone: ['canary-archive'],
  },
  {
    name: 'a film whose encoder signs in its pictures and its sound',
    needs,
    make: film(...mp4, 'a.mp4'),
    leaves: both,
    gone: ['x264 - core', 'Lavc'],
  },
  {
    name: 'a film with two sounds',
    needs,
    make: film(
      ...picture,
      ...tone,
      ...noise,
      '-map',
      '0',
      '-map',
      '1',
      '-map',
      '2',
      ...h264,
      'a.mp4',
    ),
    leaves: both,
    removed: ['further-tracks'],
  },
  {
    name: 'a film with a cover',
    needs,
    make: (folder) => {
      const cover = makeCover(folder)
      const maps = ['-map', '0', '-map', '1', '-map', '2', '-c:v:1', 'copy']
      const codecs = ['-c:v:0', 'libx264', '-c:a', 'aac', '-disposition:v:1', 'attached_pic']
      return film(...picture, ...tone, '-i', cover, ...maps, ...codecs, 'a.mp4')(folder)
    },
    leaves: both,
    gone: ['IHDR'],
    removed: ['cover'],
    equal: size(320, 240),
  },
  {
    name: 'an AVI with tags',
    needs,
    make: film(...picture, ...tone, '-c:v', 'mjpeg', '-c:a', 'pcm_s16le', ...tags, 'a.avi'),
    leaves: both,
    gone: ['canary-title', 'canary-comment'],
    removed: ['text'],
  },
  {
    name: 'pictures with EXIF of their own in an AVI',
    needs,
    make: changed(film(...picture, '-c:v', 'mjpeg', '-an', 'a.avi'), (bytes) => {
      // The comment of each JPEG, in place of its encoder's.
      bytes.write('canary-exif!', bytes.indexOf('Lavc'), 'latin1')
      return bytes
    }),
    leaves: ['mp4'],
    gone: ['canary-exif!'],
  },
  {
    name: 'a film that is called a picture',
    needs,
    make: film(...mp4, '-f', 'mp4', 'holiday.jpg'),
    leaves: both,
  },
]

const shapes: GateCase[] = [
  quarterTurned([1, 0, 0, 1], 0),
  quarterTurned([0, 1, -1, 0], 1),
  quarterTurned([-1, 0, 0, -1], 3),
  quarterTurned([0, -1, 1, 0], 2),
  quarterTurned([-1, 0, 0, 1], 1),
  // Where nothing is turned by the track, the film as a whole may still be, and nobody may copy it then.
  ...(['analysis', 'faithful'] as const).map((profile): GateCase => ({
    ...quarterTurned([0, 1, -1, 0], 1),
    name: `a film turned by the matrix in the head of the film, ${profile}`,
    profile,
    make: changed(film(...corner, ...h264, 'turned.mp4'), (bytes) =>
      patched(bytes, 'mvhd', 36, be32(0, 0x10000, 0, -0x10000, 0, 0, 320 * 0x10000, 0, 0x40000000)),
    ),
  })),
  {
    name: 'a film lying on its side, with sides of its own',
    needs,
    make: turnedBy([0, 1, -1, 0], 240, 0),
    leaves: ['mp4'],
    equal: size(240, 320),
  },
  {
    name: 'a film of wide pixels',
    needs,
    make: film(...picture, '-vf', 'setsar=4/3', ...h264, 'a.mp4'),
    leaves: ['mp4'],
    equal: size(426, 240),
  },
  {
    name: 'a film of tall pixels',
    needs,
    make: film(...picture, '-vf', 'setsar=3/4', ...h264, 'a.mkv'),
    leaves: ['mp4'],
    equal: size(320, 320),
  },
  {
    name: 'a film of odd sides',
    needs,
    make: film('-f', 'lavfi', '-i', 'testsrc2=s=321x241:r=25:d=1', '-c:v', 'ffv1', 'a.mkv'),
    leaves: ['mp4'],
    equal: size(320, 240),
  },
  {
    name: 'a film of very large pictures',
    needs,
    make: film('-f', 'lavfi', '-i', 'testsrc2=s=6000x1000:r=5:d=0.4', '-c:v', 'mjpeg', 'a.mov'),
    leaves: ['mp4'],
    equal: size(4096, 682),
  },
  {
    name: 'a film whose pictures come unevenly, between the ticks of any clock',
    quick: true,
    needs,
    make: film(
      ...picture,
      ...['-vf', "settb=1/90000,setpts='N*3600+mod(N*N*977,2500)'", '-fps_mode', 'passthrough'],
      ...['-enc_time_base', '-1', ...h264, '-video_track_timescale', '90000', 'a.mp4'],
    ),
    leaves: ['mp4'],
    equal: whole,
  },
  {
    name: 'two pictures an hour apart',
    needs,
    make: film(
      ...['-f', 'lavfi', '-i', 'testsrc2=s=64x64:r=1:d=2', '-vf', "setpts='N*3600/TB'"],
      ...['-fps_mode', 'passthrough', ...h264, 'a.mkv'],
    ),
    leaves: ['mp4'],
    equal: ([outcome]) => assert.equal(outcome?.frames, 2),
  },
  {
    name: 'a transport stream that begins within a packet and within a picture',
    needs,
    make: changed(film(...mp4, '-bf', '2', 'a.ts'), (bytes) => bytes.subarray(20_101)),
    leaves: both,
    equal: ([outcome]) => assert.ok((outcome?.frames ?? 0) >= 25),
  },
  flash('a.mp4', 0, ...h264, '-c:a', 'aac'),
  flash('a.mov', 0.5, ...h264, '-c:a', 'pcm_s16le'),
  flash('a.mkv', 0.5, ...h264, '-c:a', 'aac'),
  flash('a.webm', 0.25, '-c:v', 'libvpx', '-c:a', 'libopus'),
  flash('a.ts', 0.5, ...h264, '-c:a', 'aac'),
  flash('b.mkv', 0, ...h264, '-c:a', 'pcm_s16le', '-af', "aselect='lt(t,0.3)+gt(t,0.8)'"),
  flash('a.avi', 0, '-c:v', 'mpeg4', '-c:a', 'mp3'),
]

const hdr = (transfer: string) => [
  ...['-c:v', 'libx265', '-preset', 'ultrafast', '-pix_fmt', 'yuv420p10le'],
  ...['-color_primaries', 'bt2020', '-color_trc', transfer, '-colorspace', 'bt2020nc'],
]

const profiled: GateCase[] = [
  ...(['smpte2084', 'arib-std-b67'] as const).map((transfer): GateCase => ({
    name: `a film of high dynamic range, ${transfer}`,
    needs,
    make: film(...picture, ...hdr(transfer), '-tag:v', 'hvc1', 'a.mov'),
    leaves: ['mp4'],
    equal: ([outcome]) => {
      assert.equal(outcome?.hdr, 'tone-mapped')
      assert.equal(outcome?.codec, 'h264')
    },
  })),
  {
    name: 'a high dynamic range that only the pictures tell of',
    needs,
    make: film(...picture, ...hdr('smpte2084'), 'a.ts'),
    leaves: ['mp4'],
    equal: ([outcome]) => assert.equal(outcome?.hdr, 'tone-mapped'),
  },
  {
    name: 'a film of high dynamic range, faithfully',
    needs,
    profile: 'faithful',
    make: film(...picture, ...hdr('arib-std-b67'), '-tag:v', 'hvc1', ...tags, 'a.mov'),
    leaves: ['mp4'],
    gone: ['x265', 'canary-title'],
    equal: ([outcome], source) =>
      within((folder) => {
        assert.ok(outcome)
        assert.deepEqual([outcome.codec, outcome.hdr], ['hevc', 'kept'])
        const form = ['-map', '0:v', '-pix_fmt', 'yuv420p10le', '-f', 'rawvideo']
        assert.ok(decoded(outcome.bytes, folder, ...form).equals(decoded(source, folder, ...form)))
      }),
  },
  ...(
    [
      ['copied', 'a.mp4', [...h264, '-bf', '2', '-c:a', 'pcm_s16be', '-f', 'mov']],
      ['copied from Matroska', 'a.mkv', [...h264, '-bf', '2', '-c:a', 'pcm_s16le']],
      ['without loss', 'a.mov', ['-c:v', 'mjpeg', '-pix_fmt', 'yuvj420p', '-c:a', 'pcm_s16le']],
      ['without loss, of ten bits', 'a.mov', ['-c:v', 'prores_ks', '-c:a', 'pcm_s16le']],
    ] as const
  ).map(([name, file, codecs]): GateCase => ({
    name: `a film, faithfully: ${name}`,
    needs,
    profile: 'faithful',
    make: film(...picture, ...noise, ...codecs, ...tags, file),
    leaves: both,
    gone: ['canary-title'],
    equal: (outcomes, source) =>
      within((folder) => {
        const [first, sound] = outcomes
        assert.ok(first && sound)
        const pixels = ['-map', '0:v', '-fps_mode', 'passthrough', '-f', 'rawvideo']
        const samples = ['-map', '0:a', '-f', 's16le']
        assert.ok(
          decoded(first.bytes, folder, ...pixels).equals(decoded(source, folder, ...pixels)),
        )
        const before = decoded(source, folder, ...samples)
        assert.ok(decoded(first.bytes, folder, ...samples).equals(before))
        assert.ok(decoded(sound.bytes, folder, ...samples).equals(before))
        assert.ok(!first.bytes.includes('x264'))
      }),
  })),
  {
    name: 'a film that was trimmed, faithfully: what was cut away does not leave',
    needs,
    profile: 'faithful',
    make: (folder) => {
      const long = film(...picture, ...h264, '-g', '50', 'long.mp4')(folder)
      return film('-ss', '1', '-i', long, '-c', 'copy', 'a.mp4')(folder)
    },
    leaves: ['mp4'],
    equal: ([outcome], source) =>
      within((folder) => {
        assert.ok(outcome)
        const shown = pictureTimes(source, folder).length
        assert.equal(outcome.frames, shown)
        // Coded anew: the source still has the pictures before the cut.
        assert.ok(source.indexOf('stsz') > 0 && shown < 50)
      }),
  },
  {
    name: 'a film for thin links',
    needs,
    profile: 'compact',
    make: film('-f', 'lavfi', '-i', 'testsrc2=s=1920x1080:r=25:d=1', ...tone, ...h264, 'a.mp4'),
    leaves: ['mp4', 'm4a'],
    equal: ([first, sound], source) => {
      assert.deepEqual([first?.widthPixels, first?.heightPixels], [1280, 720])
      assert.ok((first?.bytes.length ?? 0) < source.length / 2)
      assert.equal(sound?.codec, 'aac')
    },
  },
]

const soundsOnly: GateCase[] = [
  ['a.mp4', ['-c:a', 'aac']],
  ['a.3gp', ['-c:a', 'aac']],
  ['a.webm', ['-c:a', 'libopus']],
  ['a.mka', ['-c:a', 'pcm_s16le', '-f', 'matroska']],
].map(([name, codecs]) => ({
  name: `${String(name)} without a picture`,
  needs,
  make: film(...tone, ...(codecs as string[]), String(name)),
  leaves: ['flac'] as const,
  equal: ([sound]: readonly Outcome[]) => {
    assert.equal(sound?.kind, 'audio')
    assert.equal(sound.soundOfFilm, undefined)
    assert.ok(Math.abs((sound.durationMs ?? 0) - 2000) < 60)
  },
}))

const cut = (part: number) => (bytes: Buffer) => bytes.subarray(0, Math.floor(bytes.length * part))

/** Coded pictures in the middle, turned into something else. */
const spoilt = (bytes: Buffer) => {
  const at = Math.floor(bytes.length / 2)
  return Buffer.from(bytes).fill(0xa5, at, at + 3000)
}

const corrupt = (says: RegExp) => ({ code: 'media.corrupt' as const, says })

const damaged: GateCase[] = [
  [
    'an MP4 with its index first',
    [...mp4, '-movflags', '+faststart', 'a.mp4'],
    cut(0.7),
    /at byte \d+/,
  ],
  ['an MP4 with its index last', [...mp4, 'a.mp4'], cut(0.7), /at byte \d+/],
  ['a Matroska', [...mp4, 'a.mkv'], cut(0.7), /at byte \d+/],
  ['an AVI', [...picture, ...tone, '-c:v', 'mjpeg', 'a.avi'], cut(0.7), /at byte \d+/],
  ['a transport stream', [...mp4, 'a.ts'], cut(0.7), /after \d+\.\d s/],
].map(([name, args, damage, says]) => ({
  name: `${String(name)} that is cut short`,
  needs,
  make: changed(film(...(args as string[])), damage as (bytes: Buffer) => Buffer),
  refused: corrupt(says as RegExp),
}))

const salvaged: GateCase[] = [
  ['an MP4 with its index first', [...mp4, '-movflags', '+faststart', 'a.mp4'], cut(0.7)],
  ['a Matroska', [...mp4, 'a.mkv'], cut(0.7)],
  ['an AVI', [...picture, ...tone, '-c:v', 'mjpeg', 'a.avi'], cut(0.7)],
  ['a transport stream', [...mp4, 'a.ts'], cut(0.7)],
  ['an MP4 with spoilt pictures', [...mp4, 'a.mp4'], spoilt],
].map(([name, args, damage]) => ({
  name: `what is left of ${String(name)}`,
  needs,
  salvage: true as const,
  make: changed(film(...(args as string[])), damage as (bytes: Buffer) => Buffer),
  leaves: both,
  equal: (outcomes: readonly Outcome[]) => {
    for (const outcome of outcomes) assert.equal(outcome.partial, true)
    assert.ok((outcomes[0]?.frames ?? 0) >= 15)
  },
}))

/** A complete index of nothing: `count` boxes within each other, where tags belong. */
function deepFilm(count: number): Buffer {
  let inner: Buffer = Buffer.alloc(0)
  for (let i = 0; i < count; i++) inner = box('udta', inner)
  return Buffer.concat([
    box('ftyp', 'isom', be32(512), 'isommp41'),
    box('moov', box('mvhd', be32(0, 0, 0, 1000, 1000), Buffer.alloc(80)), inner),
    box('mdat', 'none'),
  ])
}

/** Does what the hint of a refusal says. */
const intoMatroska = (make: (folder: string) => string) => (folder: string) => {
  const file = make(folder)
  run(['-fflags', '+genpts', '-i', file, '-c', 'copy', `${file}.mkv`])
  return `${file}.mkv`
}

const unsupported = { code: 'media.unsupported' as const }
const tooLarge = { code: 'media.too_large' as const }

const dark = [
  ...['-f', 'lavfi', '-i', 'color=black:s=160x120:r=25:d=2'],
  ...['-f', 'lavfi', '-i', 'anullsrc=r=48000:cl=mono:d=2'],
]
const flashing = [
  ...['-f', 'lavfi', '-i'],
  "color=black:s=160x120:r=25:d=2,drawbox=enable='gte(t,1)':color=white:t=fill",
  ...['-f', 'lavfi', '-i', "aevalsrc='if(gte(t,1),0.5*sin(2*PI*1000*t),0)':d=2:s=48000"],
]

/** One recording behind another, as people join them: `cat first.ts second.ts`. */
function joined(
  options: {
    form?: readonly string[]
    second?: readonly string[]
    first?: readonly string[]
    change?: (first: Buffer) => Buffer
  } = {},
): (folder: string) => string {
  const { form = [], second = [], first = dark, change = (all) => all } = options
  const codecs = [...h264, '-c:a', 'aac', '-f', 'mpegts', ...form]
  return (folder) => {
    const before = readFileSync(film(...first, ...codecs, 'first.ts')(folder))
    const next = readFileSync(film(...flashing, ...codecs, ...second, 'second.ts')(folder))
    return bytesNamed('a.ts', () => Buffer.concat([change(before), next]))(folder)
  }
}

/** Both recordings whole, and the flash of the second one with its beep. */
function bothWhole([first, sound]: readonly Outcome[]): void {
  within((folder) => {
    assert.ok(first && sound)
    assert.deepEqual([first.frames, first.partial], [100, undefined])
    assert.deepEqual([first.joined, sound.joined], [true, true])
    for (const { durationMs = 0 } of [first, sound]) {
      assert.ok(Math.abs(durationMs - 4000) <= 60, String(durationMs))
    }
    const seen = onset(first.bytes, folder, 'v')
    assert.ok(Math.abs(seen - 3000) <= 60, String(seen))
    for (const { bytes } of [first, sound]) {
      const apart = onset(bytes, folder, 'a') - seen
      assert.ok(Math.abs(apart) <= 40, String(apart))
    }
  })
}

const packetsOf = (part: number) => (bytes: Buffer) =>
  bytes.subarray(0, Math.floor((bytes.length * part) / 188) * 188)

const joinedFilms: GateCase[] = [
  { name: 'two transport streams joined', needs, make: joined(), leaves: both, equal: bothWhole },
  {
    name: 'two M2TS joined',
    needs,
    make: joined({ form: ['-mpegts_m2ts_mode', '1'] }),
    leaves: both,
    equal: bothWhole,
  },
  {
    name: 'two transport streams joined, faithfully',
    needs,
    profile: 'faithful',
    make: joined(),
    leaves: both,
    equal: bothWhole,
  },
  {
    name: 'two transport streams joined, the first of which broke off',
    needs,
    make: joined({ first: [...picture, ...tone], form: ['-s', '160x120'], change: packetsOf(0.7) }),
    refused: corrupt(/--salvage/),
  },
  {
    name: 'two transport streams joined, the second with other tracks',
    needs,
    make: joined({ second: ['-mpegts_start_pid', '0x200'] }),
    refused: { code: 'media.unsupported', says: /other tracks[^]*one by one/ },
  },
  {
    name: 'a transport stream that lacks packets',
    needs,
    make: changed(film(...mp4, '-bf', '0', 'a.ts'), (bytes) =>
      Buffer.concat([packetsOf(0.5)(bytes), bytes.subarray(packetsOf(0.6)(bytes).length)]),
    ),
    refused: corrupt(/--salvage/),
  },
  {
    name: 'what is left of a transport stream that lacks packets',
    needs,
    salvage: true,
    make: changed(film(...mp4, '-bf', '0', 'a.ts'), (bytes) =>
      Buffer.concat([packetsOf(0.5)(bytes), bytes.subarray(packetsOf(0.6)(bytes).length)]),
    ),
    leaves: both,
    equal: ([first]) => assert.equal(first?.partial, true),
  },
]

/** Whole, but coded as nothing on the list: no damage, and named. */
const foreignCodecs: GateCase[] = [
  ['a MOV', [...picture, '-c:v', 'svq1', 'a.mov'], /pictures .* svq1[^]*H\.264/],
  ['an AVI', [...picture, '-c:v', 'snow', '-strict', '-2', 'a.avi'], /pictures .* snow/],
  ['a Matroska', [...picture, '-c:v', 'wmv2', 'a.mkv'], /pictures .* wmv2/],
  ['a Matroska', [...picture, ...tone, ...h264, '-c:a', 'tta', 'b.mkv'], /sound .* tta/],
  [
    'an M4A',
    [...tone, '-c:a', 'adpcm_yamaha', '-f', 'mov', '-brand', 'M4A ', 'a.m4a'],
    /sound .* adpcm_yamaha/,
  ],
].map(([name, args, says]) => ({
  name: `${String(name)} coded otherwise than is on the list, ${String((args as string[]).at(-1))}`,
  needs,
  make: film(...(args as string[])),
  refused: { code: 'media.unsupported' as const, says: says as RegExp },
}))

/** ffmpeg has no name for them either: the container's is told. */
const unknownCodecs: GateCase[] = [
  ['a.mkv', 'V_MPEG4/ISO/AVC', 'V_MPEG9/ISO/ABC', /pictures .* V_MPEG9\/ISO\/ABC/],
  ['b.mkv', 'A_AAC', 'A_XYZ', /sound .* A_XYZ/],
  ['a.mov', 'avc1', 'zzz9', /pictures .* zzz9/],
].map(([name, codec, other, says]) => ({
  name: `${String(name)} of a codec that nobody knows, ${String(other)}`,
  needs,
  make: changed(film(...mp4, String(name)), (bytes) => {
    bytes.write(String(other), bytes.indexOf(String(codec)), 'latin1')
    return bytes
  }),
  refused: { code: 'media.unsupported' as const, says: says as RegExp },
}))

const hostile: GateCase[] = [
  {
    name: 'a playlist called a film',
    make: bytesNamed(
      'a.mp4',
      () => '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n',
    ),
    refused: { ...unsupported, says: /playlist/ },
  },
  {
    name: 'a script of files called a film',
    make: bytesNamed('a.mkv', () => "ffconcat version 1.0\nfile '/etc/passwd'\n"),
    refused: { ...unsupported, says: /playlist/ },
  },
  {
    name: 'a DASH manifest called a film',
    make: bytesNamed(
      'a.mp4',
      () => '<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>',
    ),
    refused: unsupported,
  },
  {
    name: 'a session description called a film',
    make: bytesNamed('a.ts', () => 'v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n'),
    refused: unsupported,
  },
  {
    name: 'subtitles called a film',
    make: bytesNamed('a.avi', () => '[Script Info]\nScriptType: v4.00+\n[Events]\n'),
    refused: unsupported,
  },
  {
    name: 'a film whose data lie in another file',
    needs,
    make: changed(film(...mp4, 'a.mp4'), (bytes) => patched(bytes, 'url ', 0, be32(0))),
    refused: { ...unsupported, says: /another file/ },
  },
  {
    name: 'a MOV that names another file to play',
    make: bytesNamed('a.mov', () =>
      Buffer.concat([
        box('ftyp', 'qt  ', be32(512), 'qt  '),
        box(
          'moov',
          box('rmra', box('rmda', box('rdrf', be32(0), 'url ', be32(12), 'file:///etc/'))),
        ),
      ]),
    ),
    refused: { code: 'media.corrupt' },
  },
  {
    name: 'a hundred boxes within each other',
    make: bytesNamed('a.mp4', () => deepFilm(100)),
    refused: { ...tooLarge, says: /boxes/ },
  },
  {
    name: 'a hundred thousand boxes within each other',
    make: bytesNamed('a.mp4', () => deepFilm(10_000)),
    refused: { ...tooLarge, says: /boxes/ },
  },
  {
    name: 'a film of pictures that nobody can hold',
    needs,
    make: changed(film(...mp4, 'a.mp4'), (bytes) =>
      patched(bytes, 'stsd', 8 + 8 + 24, Buffer.from('ffffffff', 'hex')),
    ),
    refused: tooLarge,
  },
  {
    name: 'a film that claims four thousand million samples',
    needs,
    make: changed(film(...picture, ...h264, 'a.mp4'), (bytes) =>
      patched(bytes, 'stsz', 4, be32(1, 0xffffffff)),
    ),
    refused: tooLarge,
  },
  {
    name: 'a film whose table of samples is longer than its box',
    needs,
    make: changed(film(...picture, ...h264, 'a.mp4'), (bytes) =>
      patched(bytes, 'stsz', 4, be32(0, 0x7fffffff)),
    ),
    refused: { code: 'media.corrupt' },
  },
  {
    name: 'a film of a thousand pictures a second',
    needs,
    make: film('-f', 'lavfi', '-i', 'testsrc2=s=32x32:r=1000:d=1', '-c:v', 'mjpeg', 'a.mov'),
    refused: { ...tooLarge, says: /second/ },
  },
  {
    name: 'a film of five days',
    needs,
    make: changed(film(...picture, '-c:v', 'mjpeg', 'a.mov'), (bytes) =>
      patched(bytes, 'mdhd', 12, be32(1, 432_000)),
    ),
    refused: { ...tooLarge, says: /long/ },
  },
  {
    name: 'a film of ten tracks',
    needs,
    make: film(
      ...picture,
      ...tone,
      '-map',
      '0',
      ...Array.from({ length: 9 }, () => ['-map', '1']).flat(),
      ...h264,
      'a.mp4',
    ),
    refused: { ...tooLarge, says: /tracks/ },
  },
  {
    name: 'a film without index',
    make: bytesNamed('a.mp4', () =>
      Buffer.concat([box('ftyp', 'isom', be32(512), 'isom'), box('mdat', Buffer.alloc(1000))]),
    ),
    refused: { code: 'media.corrupt' },
  },
  {
    name: 'an encrypted film',
    needs,
    make: film(
      ...mp4,
      ...['-encryption_scheme', 'cenc-aes-ctr', '-encryption_key', '0'.repeat(32)],
      ...['-encryption_kid', '0'.repeat(32), 'a.mp4'],
    ),
    refused: { ...unsupported, says: /encrypted/ },
  },
  {
    name: 'an AVI of lists within lists',
    make: bytesNamed('a.avi', () => {
      let inner: Buffer = chunk('JUNK', '')
      for (let i = 0; i < 5000; i++)
        inner = chunk('LIST', Buffer.concat([Buffer.from('strl'), inner]))
      return chunk(
        'RIFF',
        Buffer.concat([
          Buffer.from('AVI '),
          chunk('LIST', Buffer.concat([Buffer.from('hdrl'), inner])),
        ]),
      )
    }),
    refused: { code: 'media.corrupt' },
  },
  {
    name: 'an AVI of absurd pictures',
    needs,
    make: changed(film(...picture, '-c:v', 'mjpeg', 'a.avi'), (bytes) =>
      patched(bytes, 'strf', 8, le32(100_000, 100_000)),
    ),
    refused: tooLarge,
  },
  {
    name: 'an Ogg film',
    needs,
    make: film(...picture, '-c:v', 'libtheora', '-an', 'a.ogv'),
    refused: { ...unsupported, says: /Ogg film[^]*-c copy FILE\.mkv/ },
  },
  {
    name: 'an Ogg film that was put into Matroska as it was told',
    needs,
    make: intoMatroska(
      film(...picture, ...tone, '-c:v', 'libtheora', '-c:a', 'libvorbis', 'a.ogv'),
    ),
    leaves: both,
    equal: whole,
  },
  {
    name: 'a film in FLV',
    needs,
    make: film(...picture, ...tone, '-ar', '44100', ...h264, '-c:a', 'aac', 'a.flv'),
    refused: { ...unsupported, says: /FLV[^]*-c copy FILE\.mkv/ },
  },
  {
    name: 'a film in FLV that was put into Matroska as it was told',
    needs,
    make: intoMatroska(film(...picture, ...tone, '-ar', '44100', ...h264, '-c:a', 'aac', 'a.flv')),
    leaves: both,
  },
  {
    name: 'a film in an MPEG program stream',
    needs,
    make: film(...picture, '-c:v', 'mpeg2video', '-f', 'vob', 'a.mpg'),
    refused: { ...unsupported, says: /program stream[^]*-c copy FILE\.mkv/ },
  },
  {
    name: 'a scrambled transport stream',
    needs,
    make: changed(film(...mp4, 'a.ts'), (bytes) => {
      for (let at = 188 * 20; at + 188 <= bytes.length; at += 188) {
        bytes.writeUInt8(bytes.readUInt8(at + 3) | 0x80, at + 3)
      }
      return bytes
    }),
    refused: { ...unsupported, says: /scrambled/ },
  },
  {
    name: 'pictures whose coded size is not that of the index',
    needs,
    make: (folder) => {
      const small = film(...picture, '-c:v', 'mjpeg', 'a.mov')(folder)
      // A real picture of 64 megapixels among small ones.
      const large = run([
        '-f',
        'lavfi',
        '-i',
        'color=red:s=8000x8000',
        '-frames:v',
        '1',
        '-c:v',
        'mjpeg',
        '-f',
        'mjpeg',
        'pipe:1',
      ])
      return changed(
        () => small,
        (bytes) => {
          const at = bytes.indexOf(Buffer.from('ffd8ff', 'hex'))
          const header = large.indexOf(Buffer.from('ffc0', 'hex'))
          const own = bytes.indexOf(Buffer.from('ffc0', 'hex'), at)
          large.copy(bytes, own + 5, header + 5, header + 9)
          return bytes
        },
      )(folder)
    },
    refused: { code: 'media.corrupt' },
  },
]

export const filmCases: readonly GateCase[] = [
  ...ownContainers,
  ...stripped,
  ...shapes,
  ...profiled,
  ...soundsOnly,
  ...damaged,
  ...salvaged,
  ...joinedFilms,
  ...foreignCodecs,
  ...unknownCodecs,
  ...hostile,
]
