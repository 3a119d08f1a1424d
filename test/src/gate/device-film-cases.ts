/** Films as telephones, cameras and programs write them, where that is odd but honest. */

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
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
  le32,
  patched,
  picture,
  pictureTimes,
  run,
  tone,
} from './make-films.ts'

const needs = ['ffmpeg'] as const
const both = ['mp4', 'flac'] as const
const inPieces = [
  ...[...picture, ...tone, ...h264, '-c:a', 'aac'],
  ...['-movflags', '+dash+frag_keyframe+empty_moov', 'pieces.mp4'],
]

/** Pictures, and how long they last together. */
const lasts =
  (frames: number, durationMs: number) =>
  ([outcome]: readonly Outcome[]): void => {
    assert.ok(outcome)
    assert.equal(outcome.frames, frames)
    assert.ok(Math.abs((outcome.durationMs ?? 0) - durationMs) <= 60, String(outcome.durationMs))
  }

/** Three pictures, of which the last stays for eight seconds: a screen on which nothing moves. */
const heldMp4 = changed(
  film(
    ...['-f', 'lavfi', '-i', 'testsrc2=s=320x240:r=25:d=0.12', ...h264, '-bf', '0'],
    // Uneven, so that the table of times has a second entry.
    ...['-vf', "settb=1/16000,setpts='N*16000+N*(N-1)*320'", '-fps_mode', 'passthrough'],
    ...['-enc_time_base', '-1', '-video_track_timescale', '16000', 'held.mp4'],
  ),
  (bytes) => {
    patched(bytes, 'stts', 4, be32(2, 2, 16_000, 1, 8 * 16_000))
    patched(bytes, 'mdhd', 16, be32(10 * 16_000))
    patched(bytes, 'mvhd', 16, be32(10_000))
    patched(bytes, 'tkhd', 20, be32(10_000))
    return patched(bytes, 'elst', 8, be32(10_000))
  },
)

/** The same pictures in another container. */
function remuxed(make: (folder: string) => string, name: string, ...how: string[]) {
  return (folder: string): string => {
    const file = join(folder, name)
    run(['-i', make(folder), '-c', 'copy', ...how, file])
    return file
  }
}

/** Pictures without bytes, behind all others: recorders that find nothing changed write them. */
function withRepeated(bytes: Buffer, count: number): Buffer {
  const movi = bytes.indexOf('movi') - 8
  const end = movi + 8 + bytes.readUInt32LE(movi + 4)
  const frames = bytes.readUInt32LE(bytes.indexOf('avih') + 8 + 16)
  const index = Buffer.alloc(16)
  index.write('00dc', 'latin1')
  const repeated = Buffer.concat(Array.from({ length: count }, () => chunk('00dc', '')))
  const entries = Array.from({ length: count }, (_, i) => {
    index.writeUInt32LE(end - movi - 8 + i * 8, 8)
    return Buffer.from(index)
  })
  const rest = bytes.subarray(end)
  const whole = Buffer.concat([bytes.subarray(0, end), repeated, rest, ...entries])
  whole.writeUInt32LE(whole.length - 8, 4)
  whole.writeUInt32LE(end - movi - 8 + repeated.length, movi + 4)
  const idx1 = end + repeated.length
  assert.equal(whole.toString('latin1', idx1, idx1 + 4), 'idx1')
  whole.writeUInt32LE(whole.readUInt32LE(idx1 + 4) + count * 16, idx1 + 4)
  whole.writeUInt32LE(frames + count, bytes.indexOf('avih') + 8 + 16)
  whole.writeUInt32LE(frames + count, bytes.indexOf('strh') + 8 + 32)
  return whole
}

const lastPictures: GateCase[] = [
  {
    name: 'a film whose last picture stays for eight seconds',
    needs,
    make: heldMp4,
    leaves: ['mp4'],
    equal: lasts(3, 10_000),
  },
  {
    name: 'a film whose last picture stays for eight seconds, in Matroska',
    needs,
    make: remuxed(heldMp4, 'held.mkv'),
    leaves: ['mp4'],
    equal: lasts(3, 10_000),
  },
  {
    name: 'a film whose last picture stays for eight seconds, in fragments',
    needs,
    make: remuxed(heldMp4, 'fragments.mp4', '-movflags', '+frag_keyframe+empty_moov'),
    leaves: ['mp4'],
    equal: lasts(3, 10_000),
  },
  {
    name: 'a film whose last picture stays for eight seconds, in Matroska, faithfully',
    needs,
    profile: 'faithful',
    make: remuxed(heldMp4, 'held.mkv'),
    leaves: ['mp4'],
    equal: lasts(3, 10_000),
  },
  {
    name: 'pictures that come unevenly, shown in another order than they are coded, faithfully',
    needs,
    profile: 'faithful',
    make: film(
      ...['-f', 'lavfi', '-i', 'testsrc2=s=320x240:r=15:d=3'],
      ...['-vf', "select='lt(n,20)+not(mod(n,3))'", '-fps_mode', 'passthrough'],
      ...['-c:v', 'libx264', '-bf', '2', 'uneven.mp4'],
    ),
    leaves: ['mp4'],
    equal: ([outcome]) => {
      assert.deepEqual([outcome?.frames, outcome?.durationMs], [28, 2867])
    },
  },
  {
    name: 'a Matroska that says it is longer, and breaks off within a block',
    needs,
    make: changed(film(...picture, '-c:v', 'mjpeg', 'a.mkv'), (bytes) => {
      // Longer by its head; the last cluster ends in bytes that are no elements.
      const at = bytes.indexOf(Buffer.from('4489', 'hex')) + 3
      bytes.writeDoubleBE(20_000, at)
      return bytes.fill(0, Math.floor(bytes.length * 0.6), Math.floor(bytes.length * 0.95))
    }),
    refused: { code: 'media.corrupt', says: /--salvage/ },
  },
  {
    name: 'an AVI whose last picture is repeated without bytes',
    needs,
    make: changed(film(...picture, '-c:v', 'mjpeg', 'a.avi'), (bytes) => withRepeated(bytes, 100)),
    leaves: ['mp4'],
    equal: lasts(50, 6000),
  },
  {
    name: 'an AVI that counts more pictures than it holds',
    needs,
    make: changed(film(...picture, '-c:v', 'mjpeg', 'a.avi'), (bytes) => {
      bytes.writeUInt32LE(150, bytes.indexOf('strh') + 8 + 32)
      return bytes
    }),
    refused: { code: 'media.corrupt', says: /--salvage/ },
  },
]

const edited: GateCase[] = [
  ...(['analysis', 'faithful'] as const).map((profile): GateCase => ({
    name: `two seconds out of twenty, as telephones trim, ${profile}`,
    needs,
    profile,
    make: (folder) => {
      const long = film(
        ...['-f', 'lavfi', '-i', 'testsrc2=s=160x120:r=25:d=20', ...h264, '-g', '500', 'long.mp4'],
      )(folder)
      return film('-ss', '10', '-t', '2', '-i', long, '-c', 'copy', 'trimmed.mp4')(folder)
    },
    leaves: ['mp4'],
    equal: ([outcome], source) => {
      lasts(50, 2000)([outcome] as Outcome[])
      // The source still has what came before.
      assert.ok(source.readUInt32BE(source.indexOf('stsz') + 12) >= 290)
    },
  })),
  {
    name: 'a film whose end was cut off by its list of edits does not leave with it',
    needs,
    profile: 'faithful',
    make: changed(film(...picture, ...h264, '-bf', '0', '-g', '10', 'a.mp4'), (bytes) =>
      patched(bytes, 'elst', 8, be32(800)),
    ),
    leaves: ['mp4'],
    equal: lasts(20, 800),
  },
]

const oddTracks: GateCase[] = [
  {
    name: 'a film with a track of sound in which there is none',
    needs,
    make: film(
      ...[...picture, ...tone, '-c:v', 'libvpx', '-c:a', 'libvorbis', '-af', 'aselect=0'],
      'mute.webm',
    ),
    leaves: ['mp4'],
    equal: ([outcome]) => assert.equal(outcome?.sampleRateHz, undefined),
  },
  {
    name: 'pictures whose times go backwards, as the order in which they are shown was lost',
    needs,
    make: changed(film(...picture, ...h264, '-bf', '2', 'a.mp4'), (bytes) => {
      bytes.write('free', bytes.indexOf('ctts'), 'latin1')
      return bytes
    }),
    leaves: ['mp4'],
    equal: ([outcome], source) => {
      const folder = mkdtempSync(join(tmpdir(), 'gate-device-'))
      try {
        assert.equal(outcome?.frames, pictureTimes(source, folder).length)
      } finally {
        rmSync(folder, { recursive: true })
      }
    },
  },
]

/** What power loss, careless copying and streams leave of a film, and what it lacks then. */
const mjpeg = [...picture, ...tone, '-c:v', 'mjpeg', '-c:a', 'pcm_s16le']
const broken: GateCase[] = [
  {
    name: 'a recording without index, as its camera lost its power',
    needs,
    make: changed(film(...picture, ...h264, 'a.mp4'), (bytes) =>
      bytes.subarray(0, bytes.lastIndexOf('moov') - 1000),
    ),
    refused: { code: 'media.corrupt', says: /at byte \d+: its index is missing[^]*camera/ },
  },
  {
    name: 'a recording without index, when what is left is asked for',
    needs,
    salvage: true,
    make: changed(film(...picture, ...h264, 'a.mp4'), (bytes) =>
      bytes.subarray(0, bytes.lastIndexOf('moov') - 1000),
    ),
    refused: { code: 'media.corrupt', says: /at byte \d+: its index is missing/ },
  },
  {
    name: 'a film whose index counts more than its box holds',
    needs,
    make: changed(film(...picture, ...h264, 'a.mp4'), (bytes) =>
      patched(bytes, 'stts', 4, be32(1000)),
    ),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'an AVI whose index, behind its pictures, is cut',
    needs,
    make: changed(film(...mjpeg, 'a.avi'), (bytes) => bytes.subarray(0, -100)),
    leaves: both,
    removed: ['trailer'],
    equal: lasts(50, 2000),
  },
  {
    name: 'an AVI that says it is longer than it is, without lacking anything',
    needs,
    make: changed(film(...mjpeg, 'a.avi'), (bytes) => {
      bytes.writeUInt32LE(bytes.length + 500, 4)
      return bytes
    }),
    leaves: both,
    equal: lasts(50, 2000),
  },
  {
    name: 'an AVI that nobody finished',
    needs,
    make: changed(film(...mjpeg, 'a.avi'), unfinishedAvi),
    refused: { code: 'media.corrupt', says: /at byte \d+[^]*--salvage/ },
  },
  {
    name: 'what is left of an AVI that nobody finished',
    needs,
    salvage: true,
    make: changed(film(...mjpeg, 'a.avi'), unfinishedAvi),
    leaves: both,
    equal: ([outcome]) => {
      assert.equal(outcome?.partial, true)
      assert.ok((outcome.frames ?? 0) >= 25)
    },
  },
  {
    name: 'a piece of a film that is sent in pieces',
    needs,
    make: changed(film(...inPieces), (bytes) => bytes.subarray(bytes.indexOf('moof') - 4)),
    refused: { code: 'media.unsupported', says: /piece of a film[^]*cat init\.mp4/ },
  },
  {
    name: 'the pieces of a film that was sent in pieces, joined',
    needs,
    make: film(...inPieces),
    leaves: both,
    equal: lasts(50, 2000),
  },
  {
    name: 'a bare H.264 stream',
    needs,
    make: film(...picture, ...h264, '-f', 'h264', 'a.h264'),
    refused: { code: 'media.unsupported', says: /bare H\.264[^]*ffmpeg -framerate/ },
  },
]

function unfinishedAvi(bytes: Buffer): Buffer {
  const left = Buffer.from(bytes.subarray(0, Math.floor(bytes.length * 0.7)))
  left.writeUInt32LE(0, 4)
  left.writeUInt32LE(0, left.indexOf('movi') - 4)
  return left
}

/** DV as tapes have it: pictures and sound in one stream. */
function tapeAvi(folder: string): string {
  const target = ['-ac', '2', '-target', 'pal-dv', '-f', 'dv', 'pipe:1']
  const tape = run([...picture, ...tone, '-t', '1', ...target])
  const frameBytes = 144_000
  const frames = Math.floor(tape.length / frameBytes)
  const main = le32(40_000, 3_600_000, 0, 16, frames, 0, 1, frameBytes, 720, 576, 0, 0, 0, 0)
  const head = Buffer.concat([
    Buffer.from('iavsdvsd'),
    le32(0, 0, 0, 1, 25, 0, frames, frameBytes, 10_000, 0),
    Buffer.alloc(8),
  ])
  const stream = list('strl', chunk('strh', head), chunk('strf', Buffer.alloc(32)))
  const pictures = Array.from({ length: frames }, (_, i) =>
    chunk('00__', tape.subarray(i * frameBytes, (i + 1) * frameBytes)),
  )
  const lists = [list('hdrl', chunk('avih', main), stream), list('movi', ...pictures)]
  const whole = chunk('RIFF', Buffer.concat([Buffer.from('AVI '), ...lists]))
  return bytesNamed('tape.avi', () => whole)(folder)
}

function list(name: string, ...chunks: Buffer[]): Buffer {
  return chunk('LIST', Buffer.concat([Buffer.from(name), ...chunks]))
}

const owned: GateCase[] = [
  {
    name: 'an AVI of DV, with pictures and sound in one stream',
    needs,
    make: tapeAvi,
    leaves: both,
    equal: lasts(25, 1000),
  },
  {
    name: 'positions in a box of the camera, and in space that is called free',
    needs,
    make: changed(film(...picture, ...h264, 'a.mp4'), (bytes) =>
      Buffer.concat([
        bytes,
        box('gps0', 'canary-of-a-camera'),
        box('free', 'freeGPS canary-in-free-space'),
      ]),
    ),
    leaves: ['mp4'],
    gone: ['canary-of-a-camera', 'canary-in-free-space'],
    removed: ['gps', 'other'],
  },
  {
    name: 'a transport stream of pictures that are coded as nothing known',
    needs,
    make: changed(film(...picture, ...tone, ...h264, '-c:a', 'aac', 'a.ts'), (bytes) =>
      programmed(bytes, 0x1b, 0x42),
    ),
    refused: { code: 'media.unsupported', says: /pictures are coded with AVS/ },
  },
]

/** Tells another type of a stream in all tables of programs, and their checksums. */
function programmed(bytes: Buffer, type: number, other: number): Buffer {
  for (let at = 0; at + 188 <= bytes.length; at += 188) {
    const start = at + 5
    if (bytes[start] !== 2 || (bytes.readUInt16BE(at + 1) & 0x4000) === 0) continue
    const end = start + 3 + (bytes.readUInt16BE(start + 1) & 0xfff) - 4
    const found = bytes.subarray(start, end).indexOf(type, 12)
    if (found < 0) continue
    bytes.writeUInt8(other, start + found)
    bytes.writeUInt32BE(sectionChecksum(bytes.subarray(start, end)), end)
  }
  return bytes
}

/** @see ISO/IEC 13818-1, annex A. */
function sectionChecksum(bytes: Buffer): number {
  let sum = 0xffffffff
  for (const byte of bytes) {
    for (let bit = 7; bit >= 0; bit--) {
      const carry = ((sum >>> 31) ^ (byte >> bit)) & 1
      sum = ((sum << 1) ^ (carry === 1 ? 0x04c11db7 : 0)) >>> 0
    }
  }
  return sum
}

/** A second of speech as bare AMR: fifty frames of 32 bytes. */
const speech = bytesNamed('a.amr', () => {
  const frame = Buffer.alloc(32)
  frame.writeUInt8(0x3c)
  return Buffer.concat([Buffer.from('#!AMR\n'), ...Array.from({ length: 50 }, () => frame)])
})

/** Five frames of AMR in each sample, as telephones write them. */
function grouped(bytes: Buffer): Buffer {
  const field = (type: string, at: number) => bytes.indexOf(type) + 4 + at
  const chunks = bytes.readUInt32BE(field('stsc', 4))
  assert.deepEqual([bytes.readUInt32BE(field('stsz', 4)), chunks], [32, 1])
  const inChunk = bytes.readUInt32BE(field('stsc', 12))
  assert.equal(inChunk % 5, 0)
  patched(bytes, 'stsz', 4, be32(160, 10))
  patched(bytes, 'stts', 8, be32(10, 800))
  return patched(bytes, 'stsc', 12, be32(inChunk / 5))
}

const telephones: GateCase[] = [
  {
    name: 'a 3GP of AMR with five frames in each sample',
    needs,
    make: changed(
      (folder) => film('-i', speech(folder), '-c', 'copy', 'grouped.3gp')(folder),
      grouped,
    ),
    leaves: ['flac'],
    equal: ([sound]) => assert.deepEqual([sound?.durationMs, sound?.sampleRateHz], [1000, 8000]),
  },
  {
    name: 'a 3GP of H.263 and AMR',
    needs,
    make: (folder) => {
      const small = ['-f', 'lavfi', '-i', 'testsrc2=s=176x144:r=15:d=1']
      const codecs = ['-c:v', 'h263', '-c:a', 'copy', 'a.3gp']
      return film(...small, '-i', speech(folder), ...codecs)(folder)
    },
    leaves: both,
    equal: lasts(15, 1000),
  },
]

/** Bars that move sideways, each row of the frame half as late again: combs, where nobody undoes them. */
const bars = [
  ...['-f', 'lavfi', '-i'],
  "nullsrc=s=320x240:r=50:d=1,geq=lum='if(lt(mod(X+N*10,80),40),235,16)':cb=128:cr=128",
  ...['-vf', 'interlace=scan=tff:lowpass=off,setfield=tff'],
]
const fields = ['-flags', '+ilme+ildct', '-top', '1']

/** How much neighbouring rows differ, where those of the same half do not. */
function combs(bytes: Buffer): number {
  const folder = mkdtempSync(join(tmpdir(), 'gate-device-'))
  try {
    const gray = decoded(
      bytes,
      folder,
      ...['-ss', '0.4', '-frames:v', '1', '-vf', 'format=gray', '-f', 'rawvideo'],
    )
    let sum = 0
    for (let at = 0; at + 640 < gray.length; at++) {
      sum += Math.abs((gray[at] ?? 0) - (gray[at + 320] ?? 0))
      sum -= Math.abs((gray[at] ?? 0) - (gray[at + 640] ?? 0))
    }
    return sum / gray.length
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const interlaced: GateCase[] = [
  ...(
    [
      ['an M2TS of H.264', 'a.mts', [...h264, ...fields, '-mpegts_m2ts_mode', '1']],
      ['a transport stream of MPEG-2', 'a.ts', ['-c:v', 'mpeg2video', '-b:v', '4M', ...fields]],
    ] as const
  ).map(([name, file, codecs]): GateCase => ({
    name: `${name} whose pictures are two halves of different moments`,
    needs,
    make: film(...bars, ...codecs, file),
    leaves: ['mp4'],
    equal: ([outcome], source) => {
      lasts(25, 1000)([outcome] as Outcome[])
      assert.ok(combs(source) > 20, 'the source has combs')
      assert.ok(combs(outcome?.bytes ?? source) < 3, 'what leaves has none')
    },
  })),
  {
    name: 'pictures of two halves stay as they are, faithfully',
    needs,
    profile: 'faithful',
    make: film(...bars, ...h264, ...fields, 'a.mp4'),
    leaves: ['mp4'],
    equal: ([outcome], source) => {
      assert.ok(Math.abs(combs(outcome?.bytes ?? Buffer.alloc(0)) - combs(source)) < 0.01)
    },
  },
]

/** What each box holds before its first child. */
const fieldBytes: Readonly<Record<string, number>> = { stsd: 8, avc1: 78 }

/** Puts a box at the end of one deep inside of an index that lies behind the data. */
function insideOf(bytes: Buffer, path: readonly string[], addition: Buffer): Buffer {
  const copy = Buffer.from(bytes)
  let [at, end] = [0, copy.length]
  for (const name of path) {
    while (copy.toString('latin1', at + 4, at + 8) !== name) at += copy.readUInt32BE(at)
    end = at + copy.readUInt32BE(at)
    copy.writeUInt32BE(end - at + addition.length, at)
    at += 8 + (fieldBytes[name] ?? 0)
  }
  return Buffer.concat([copy.subarray(0, end), addition, copy.subarray(end)])
}

/** Puts elements at the end of the description of pictures: within the segment, tracks, track, video. */
function intoVideo(bytes: Buffer, addition: Buffer): Buffer {
  const copy = Buffer.from(bytes)
  let [at, end] = [0, 0]
  for (const id of ['18538067', '1654ae6b', 'ae', 'e0']) {
    // The name of the tracks is in an index too, before them.
    const name = Buffer.from(id, 'hex')
    at = name.length === 4 ? copy.lastIndexOf(name) : copy.indexOf(name, at)
    at += name.length
    const sizeBytes = Math.clz32(copy.readUInt8(at)) - 23
    const field = at + Math.max(0, sizeBytes - 2)
    const size = sizeBytes === 1 ? copy.readUInt8(at) & 0x7f : copy.readUInt16BE(field) & 0x3fff
    if (sizeBytes === 1) copy.writeUInt8(0x80 | (size + addition.length), at)
    else copy.writeUInt16BE(copy.readUInt16BE(field) + addition.length, field)
    at += sizeBytes
    end = at + size
    // A checksum comes first.
    if (copy[at] === 0xbf) at += 6
  }
  return Buffer.concat([copy.subarray(0, end), addition, copy.subarray(end)])
}

/** White to the left of what is to be seen, and above it, black elsewhere. */
const framed = [
  ...['-f', 'lavfi', '-i', 'color=black:s=320x240:r=25:d=0.4'],
  ...['-vf', 'drawbox=w=80:h=240:color=white:t=fill,drawbox=w=320:h=60:color=white:t=fill'],
]

/** A quarter of the size, and nothing white in it. */
function onlyInside([outcome]: readonly Outcome[]): void {
  assert.ok(outcome)
  assert.deepEqual([outcome.widthPixels, outcome.heightPixels], [160, 120])
  assert.ok(brightness(outcome.bytes) < 20, String(brightness(outcome.bytes)))
}

/** Of the first picture as a whole, from 0 to 255. */
function brightness(bytes: Buffer): number {
  const folder = mkdtempSync(join(tmpdir(), 'gate-device-'))
  try {
    const form = ['-frames:v', '1', '-vf', 'format=gray,scale=1:1:flags=area', '-f', 'rawvideo']
    return decoded(bytes, folder, ...form).readUInt8(0)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const unseen: GateCase[] = [
  ...(['analysis', 'faithful'] as const).map((profile): GateCase => ({
    name: `a film of which its aperture shows a quarter, ${profile}`,
    needs,
    profile,
    make: changed(film(...framed, ...h264, 'a.mp4'), (bytes) =>
      insideOf(
        bytes,
        ['moov', 'trak', 'mdia', 'minf', 'stbl', 'stsd', 'avc1'],
        box('clap', be32(160, 1, 120, 1, 0, 1, 0, 1)),
      ),
    ),
    leaves: ['mp4'],
    equal: onlyInside,
  })),
  {
    name: 'a Matroska of which a quarter is to be seen',
    needs,
    make: changed(
      // With sound, the tracks need a size of two bytes.
      film(
        ...framed.slice(0, 4),
        ...tone,
        ...framed.slice(4),
        ...h264,
        '-fflags',
        '+bitexact',
        'a.mkv',
      ),
      (bytes) => intoVideo(bytes, Buffer.from('54cc815054dd815054bb813c54aa813c', 'hex')),
    ),
    leaves: both,
    equal: onlyInside,
  },
  {
    name: 'white under full transparency becomes black',
    needs,
    make: film(
      ...['-f', 'lavfi', '-i', 'color=white@0.0:s=64x64:r=25:d=0.4,format=rgba'],
      ...['-c:v', 'qtrle', 'clear.mov'],
    ),
    leaves: ['mp4'],
    equal: ([outcome]) => assert.ok(brightness(outcome?.bytes ?? Buffer.alloc(0)) < 4),
  },
]

const around: GateCase[] = [
  {
    name: 'a film of two pixels by two',
    needs,
    make: film('-f', 'lavfi', '-i', 'color=white:s=2x2:r=25:d=0.4', '-c:v', 'libvpx', 'tiny.webm'),
    leaves: ['mp4'],
    equal: lasts(10, 400),
  },
  ...['late.mkv', 'late.mp4'].map((name): GateCase => ({
    name: `pictures that begin eight seconds after the sound, ${name}`,
    needs,
    make: film(
      ...[...tone, '-itsoffset', '8', ...picture, '-map', '0', '-map', '1'],
      ...[...h264, '-c:a', 'aac', '-fps_mode', 'passthrough', name],
    ),
    leaves: both,
    equal: lasts(50, 2000),
  })),
  {
    name: 'a Matroska whose subtitles go on long after its pictures',
    needs,
    make: (folder) => {
      const said = '1\n00:00:00,000 --> 00:00:01,000\na\n\n2\n00:01:00,000 --> 00:01:01,000\nb\n'
      const words = bytesNamed('a.srt', () => said)(folder)
      const maps = ['-map', '0', '-map', '1', '-map', '2', '-c:s', 'srt', 'said.mkv']
      return film(...picture, ...tone, '-i', words, ...h264, '-c:a', 'aac', ...maps)(folder)
    },
    leaves: both,
    removed: ['subtitles'],
    equal: lasts(50, 2000),
  },
  {
    name: 'a transport stream that announces sound, of a camera without a microphone',
    needs,
    make: changed(film(...picture, ...tone, ...h264, '-c:a', 'aac', 'a.ts'), (bytes) => {
      for (let at = 0; at + 188 <= bytes.length; at += 188) {
        // Its sound comes second; packets of the last number only fill up.
        if ((bytes.readUInt16BE(at + 1) & 0x1fff) === 0x101) bytes.writeUInt16BE(0x1fff, at + 1)
      }
      return bytes
    }),
    leaves: ['mp4'],
    equal: lasts(50, 2000),
  },
  {
    name: 'what is asked to be taken of a film in which nothing decodes',
    needs,
    salvage: true,
    make: changed(film(...picture, ...h264, 'a.mp4'), (bytes) =>
      patched(bytes, 'stts', 4, be32(1000)),
    ),
    refused: { code: 'media.corrupt', says: /Nothing of it can be decoded/ },
  },
  {
    name: 'a Matroska whose index, behind all else, is cut',
    needs,
    make: changed(film(...picture, ...tone, ...h264, '-g', '2', 'a.mkv'), (bytes) =>
      bytes.subarray(0, -8),
    ),
    leaves: both,
    removed: ['trailer'],
    equal: lasts(50, 2000),
  },
  ...['a.avi', 'a.mkv'].map((name): GateCase => ({
    name: `room that was made behind ${name}, and not needed`,
    needs,
    make: changed(film(...picture, ...tone, ...h264, name), (bytes) =>
      Buffer.concat([bytes, Buffer.alloc(3_000_000)]),
    ),
    leaves: both,
    removed: ['trailer'],
    equal: lasts(50, 2000),
  })),
  {
    name: 'a transport stream of which only zeros are left behind some place',
    needs,
    make: changed(film(...picture, ...tone, ...h264, 'a.ts'), (bytes) => bytes.fill(0, 20_680)),
    refused: { code: 'media.corrupt', says: /at byte 20680\b/ },
  },
  {
    name: 'what is left of one with room behind it',
    needs,
    salvage: true,
    make: changed(film(...picture, ...tone, ...h264, 'a.ts'), (bytes) =>
      Buffer.concat([bytes, Buffer.alloc(3_000_000)]),
    ),
    leaves: both,
    equal: ([outcome]) => {
      assert.equal(outcome?.partial, true)
      assert.equal(outcome.frames, 50)
    },
  },
  {
    name: 'a transport stream behind what is none',
    needs,
    make: changed(film(...picture, ...tone, ...h264, '-c:a', 'aac', 'a.ts'), (bytes) =>
      Buffer.concat([Buffer.alloc(2500, 0x81), bytes]),
    ),
    leaves: both,
    equal: lasts(50, 2000),
  },
]

export const deviceFilmCases: readonly GateCase[] = [
  ...lastPictures,
  ...edited,
  ...oddTracks,
  ...broken,
  ...owned,
  ...telephones,
  ...interlaced,
  ...unseen,
  ...around,
]
