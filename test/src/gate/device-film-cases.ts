/** Films as telephones, cameras and programs write them, where that is odd but honest. */

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { GateCase, Outcome } from './cases.ts'
import {
  be32,
  bytesNamed,
  changed,
  chunk,
  film,
  h264,
  patched,
  picture,
  pictureTimes,
  run,
  tone,
} from './make-films.ts'

const needs = ['ffmpeg'] as const
const both = ['mp4', 'flac'] as const
const mp4 = [...picture, ...tone, ...h264, '-g', '25', '-c:a', 'aac']

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
  const list = bytes.subarray(end)
  const whole = Buffer.concat([bytes.subarray(0, end), repeated, list, ...entries])
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

export const deviceFilmCases: readonly GateCase[] = [...lastPictures, ...edited, ...oddTracks]
