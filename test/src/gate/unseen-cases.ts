/** What a file holds and no viewer shows: it does not leave, and never in the place of what is shown. */

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import sharp from 'sharp'

import type { GateCase, Outcome } from './cases.ts'
import { box, changed, chunk, decoded, film, h264, picture } from './make-films.ts'
import { makeHeic } from './make-heif.ts'
import type { CodedPicture } from './make-heif.ts'
import { animatedPng, makeTiff } from './make-pictures.ts'
import { pixelsOf } from './pixels.ts'
import { file, firstBytes } from './write-case.ts'

const side = 64

/** One colour, as AVIF codes it. */
async function codeAv1(background: string): Promise<CodedPicture> {
  const avif = await sharp({ create: { width: side, height: side, channels: 3, background } })
    .avif({ quality: 90, chromaSubsampling: '4:4:4' })
    .toBuffer()
  const content = (type: string) => {
    const at = avif.indexOf(type) - 4
    return avif.subarray(at, at + avif.readUInt32BE(at))
  }
  const data = content('mdat').subarray(8)
  return { widthPixels: side, heightPixels: side, configuration: content('av1C'), data }
}

const isBlue: NonNullable<GateCase['equal']> = async (outcomes) => {
  const [red = 255, , blue = 0] = (await pixelsOf(firstBytes(outcomes))).data
  assert.ok(red < 32 && blue > 223, `red ${red}, blue ${blue}`)
}

/** One whose default picture is none of its frames. */
async function besideItsFrames(): Promise<Buffer> {
  const [hidden, shown] = await Promise.all(
    ['red', 'blue'].map(async (background) =>
      pixelsOf(
        await sharp({ create: { width: side, height: side, channels: 3, background } })
          .png()
          .toBuffer(),
      ),
    ),
  )
  assert.ok(hidden && shown)
  const png = animatedPng([hidden, shown, shown])
  const at = png.indexOf('fcTL') - 4
  // Without its control the first is no frame any more.
  return Buffer.concat([png.subarray(0, at), png.subarray(at + 12 + 26)])
}

const stills: readonly GateCase[] = (['analysis', 'faithful', 'compact'] as const).map(
  (profile) => ({
    name: `an APNG whose default picture is none of its frames, ${profile}`,
    profile,
    make: file('a.png', besideItsFrames),
    leaves: [profile === 'compact' ? 'jpg' : 'png'],
    removed: ['animation'],
    equal: isBlue,
  }),
)

/** Samples beside red, green and blue in each pixel; what they are, `kinds` says. */
function tiffOf(kinds: readonly number[], samplesOf: (pixel: number) => readonly number[]): Buffer {
  const pixels = Array.from({ length: side * side }, (_, i) => [20, 200, i & 255, ...samplesOf(i)])
  const channels = 3 + kinds.length
  return makeTiff([
    {
      strip: Buffer.from(pixels.flat()),
      entries: [
        [256, 4, [side]],
        [257, 4, [side]],
        [258, 3, Array.from({ length: channels }, () => 8)],
        [259, 3, [1]],
        [262, 3, [2]],
        [277, 3, [channels]],
        [278, 4, [side]],
        [338, 3, kinds],
      ],
    },
  ])
}

const infrared = (pixel: number) => 'another picture, as that of infrared. '.charCodeAt(pixel % 38)

const channelCases: readonly GateCase[] = (
  [
    ['a channel that nothing is said of', [0], (i: number) => [infrared(i)]],
    ['two channels that nothing is said of', [0, 0], (i: number) => [infrared(i), 255]],
    ['a channel behind its alpha', [2, 0], (i: number) => [i % 2 === 0 ? 255 : 9, infrared(i)]],
  ] as const
).flatMap(([name, kinds, samplesOf]) =>
  (['analysis', 'faithful'] as const).map((profile): GateCase => ({
    name: `a TIFF with ${name} leaves without it, ${profile}`,
    profile,
    make: file('a.tif', () => tiffOf(kinds, samplesOf)),
    leaves: ['png'],
    removed: ['auxiliary'],
    async equal(outcomes) {
      const { data, info } = await sharp(firstBytes(outcomes))
        .raw()
        .toBuffer({ resolveWithObject: true })
      const alpha = kinds[0] !== 0
      assert.equal(info.channels, alpha ? 4 : 3)
      for (let i = 0; i < side * side; i++) {
        const wanted = [20, 200, i & 255, ...(alpha ? [samplesOf(i)[0] ?? 0] : [])]
        assert.deepEqual([...data.subarray(i * info.channels, (i + 1) * info.channels)], wanted)
      }
    },
  })),
)

const pictures: readonly GateCase[] = (['analysis', 'faithful'] as const).map((profile) => ({
  name: `an AVIF whose first picture is not the one that is shown, ${profile}`,
  profile,
  make: file('a.avif', async () =>
    makeHeic({
      coded: await codeAv1('blue'),
      coding: 'av01',
      before: (await codeAv1('red')).data,
      brands: ['avif', 'mif1', 'miaf'],
    }),
  ),
  leaves: ['png'],
  removed: ['further-pictures'],
  equal: isBlue,
}))

/** A tone of so many bits, sample by sample. */
const toneOf = (used: number, i: number) => Math.round(Math.sin(i / 20) * 2 ** (used - 2))

/** In whole bytes, whose lowest bits hold something else in every sample. */
function toneAbove(bits: 16 | 24 | 32, used: number, bigEndian: boolean): Buffer {
  const bytes = bits / 8
  const samples = Buffer.alloc(8000 * bytes)
  const steps = 2 ** (bits - used)
  for (let i = 0; i < 8000; i++) {
    const value = toneOf(used, i) * steps + 1 + (i % (steps - 1))
    if (bigEndian) samples.writeIntBE(value, i * bytes, bytes)
    else samples.writeIntLE(value, i * bytes, bytes)
  }
  return samples
}

/** @see Microsoft, WAVEFORMATEXTENSIBLE: `wValidBitsPerSample`. */
function wavOf(bits: 16 | 24 | 32, used: number): Buffer {
  const data = toneAbove(bits, used, false)
  const format = Buffer.alloc(40)
  format.writeUInt16LE(0xfffe, 0)
  format.writeUInt16LE(1, 2)
  format.writeUInt32LE(8000, 4)
  format.writeUInt32LE(1000 * bits, 8)
  format.writeUInt16LE(bits / 8, 12)
  format.writeUInt16LE(bits, 14)
  format.writeUInt16LE(22, 16)
  format.writeUInt16LE(used, 18)
  format.writeUInt32LE(4, 20)
  Buffer.from('0100000000001000800000aa00389b71', 'hex').copy(format, 24)
  const chunks = Buffer.concat([Buffer.from('WAVE'), chunk('fmt ', format), chunk('data', data)])
  return chunk('RIFF', chunks)
}

function aiffOf(bits: 16 | 24 | 32, used: number): Buffer {
  const data = toneAbove(bits, used, true)
  const described = Buffer.from('0001000000000000400bfa00000000000000', 'hex')
  described.writeUInt32BE(8000, 2)
  described.writeUInt16BE(used, 6)
  const sound = Buffer.concat([Buffer.alloc(8), data])
  return chunk(
    'FORM',
    Buffer.concat([
      Buffer.from('AIFF'),
      chunk('COMM', described, true),
      chunk('SSND', sound, true),
    ]),
    true,
  )
}

/** Samples of 32 bits, as the outcome has them. */
function decodedSamples(bytes: Buffer): Int32Array {
  const folder = mkdtempSync(join(tmpdir(), 'gate-bits-'))
  try {
    const raw = decoded(bytes, folder, '-f', 's32le')
    return new Int32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const sounds: readonly GateCase[] = (
  [
    ['WAV', 32, 24],
    ['WAV', 16, 12],
    ['AIFF', 24, 20],
    ['AIFF', 16, 12],
  ] as const
).flatMap(([format, bits, used]) =>
  (['analysis', 'faithful'] as const).map((profile): GateCase => ({
    name: `${format} of ${bits} bits, of which ${used} are the sound's, ${profile}`,
    needs: ['ffmpeg'],
    profile,
    make: file(format === 'WAV' ? 'a.wav' : 'a.aiff', () =>
      format === 'WAV' ? wavOf(bits, used) : aiffOf(bits, used),
    ),
    leaves: ['flac'],
    equal(outcomes) {
      const kept = profile === 'faithful' ? used : Math.min(used, 16)
      const samples = decodedSamples(firstBytes(outcomes))
      assert.equal(samples.length, 8000)
      for (const [i, sample] of samples.entries()) {
        const wanted = toneOf(used, i) * 2 ** (32 - used)
        // To 16 bits it is rounded.
        assert.ok(Math.abs(sample - wanted) <= (kept === used ? 0 : 2 ** (32 - kept)), `${i}`)
      }
    },
  })),
)

/** Adds a box at the end of the description of the first track's pictures; the index lies behind the data. */
function intoPictures(bytes: Buffer, addition: Buffer): Buffer {
  const grown = Buffer.from(bytes)
  let at = grown.lastIndexOf('moov') - 4
  for (const type of ['trak', 'mdia', 'minf', 'stbl', 'stsd', /avc1|hvc1/]) {
    const size = grown.readUInt32BE(at)
    grown.writeUInt32BE(size + addition.length, at)
    const found = grown.toString('latin1', at + 8, at + size).search(type)
    assert.ok(found > 0, String(type))
    at += 8 + found - 4
  }
  const end = at + grown.readUInt32BE(at)
  grown.writeUInt32BE(grown.readUInt32BE(at) + addition.length, at)
  return Buffer.concat([grown.subarray(0, end), addition, grown.subarray(end)])
}

const highHevc = [
  ...['-c:v', 'libx265', '-preset', 'ultrafast', '-x265-params', 'log-level=none:bframes=0'],
  ...['-pix_fmt', 'yuv420p10le', '-tag:v', 'hvc1', '-color_primaries', 'bt2020'],
  ...['-color_trc', 'smpte2084', '-colorspace', 'bt2020nc'],
]

/** @see ISO/IEC 14496-12, 12.1.5 and following: numbers of 16 and 32 bits, none of which is checked. */
const screens = ['mastering-canary-of-24-b', 'clli']

/** Tracks are played that are enabled, by the lowest flag of their heads. */
function playing(bytes: Buffer, played: readonly boolean[]): Buffer {
  let at = bytes.indexOf('moov')
  for (const plays of played) {
    at = bytes.indexOf('tkhd', at + 4)
    assert.ok(at > 0)
    bytes.writeUInt8(plays ? 3 : 2, at + 7)
  }
  return bytes
}

const twoOfEach = [
  ...['red', 'blue'].flatMap((name) => ['-f', 'lavfi', '-i', `color=${name}:s=64x64:r=25:d=1`]),
  ...['-f', 'lavfi', '-i', 'anullsrc=r=48000:cl=mono', '-f', 'lavfi', '-i', 'sine=r=48000'],
  ...['-map', '0', '-map', '1', '-map', '2', '-map', '3', '-t', '1', '-c:a', 'aac'],
]

/** Red and silence, or blue and a tone. */
function playsSecond(outcomes: readonly Outcome[], second: boolean): void {
  const folder = mkdtempSync(join(tmpdir(), 'gate-played-'))
  try {
    for (const { bytes, kind } of outcomes) {
      const samples = decoded(bytes, folder, '-map', '0:a:0', '-ac', '1', '-f', 's16le')
      const loud = samples.some((byte, i) => i % 2 === 1 && byte > 1 && byte < 254)
      assert.equal(loud, second, `the sound of ${kind}`)
    }
    const form = ['-map', '0:V:0', '-frames:v', '1', '-f', 'rawvideo', '-pix_fmt', 'rgb24']
    const [red = 0, , blue = 0] = decoded(firstBytes(outcomes), folder, ...form)
    assert.ok(second ? blue > 200 && red < 50 : red > 200 && blue < 50, `red ${red}, blue ${blue}`)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const playedFilms: readonly GateCase[] = (['analysis', 'faithful'] as const).flatMap((profile) =>
  [
    { name: 'the tracks that are played leave, and not those before them', first: false },
    { name: 'where no track is played the first ones leave', first: undefined },
    { name: 'where all tracks are played the first ones leave', first: true },
  ].map(({ name, first }): GateCase => ({
    name: `a film of two pictures and two sounds: ${name}, ${profile}`,
    needs: ['ffmpeg'],
    profile,
    make: changed(film(...twoOfEach, ...h264, 'a.mp4'), (bytes) => {
      const [one, other] = [first ?? false, first !== undefined]
      return playing(bytes, [one, other, one, other])
    }),
    leaves: ['mp4', 'flac'],
    removed: ['further-tracks'],
    equal: (outcomes) => {
      playsSecond(outcomes, first === false)
    },
  })),
)

const films: readonly GateCase[] = [
  ...playedFilms,
  ...(['analysis', 'faithful', 'compact'] as const).map((profile): GateCase => ({
    name: `a film of high dynamic range says nothing of the screen it was made on, ${profile}`,
    needs: ['ffmpeg'],
    profile,
    make: changed(film(...picture, ...highHevc, 'a.mp4'), (bytes) => {
      const [screen = '', light = ''] = screens
      return intoPictures(bytes, Buffer.concat([box('mdcv', screen), box('clli', light)]))
    }),
    leaves: ['mp4'],
    gone: ['mdcv', ...screens],
  })),
  ...(['analysis', 'faithful'] as const).map((profile): GateCase => ({
    name: `a film for both eyes leaves as the pictures it has, ${profile}`,
    needs: ['ffmpeg'],
    profile,
    make: film(...picture, ...h264, '-metadata:s:v', 'stereo_mode=left_right', 'a.mkv'),
    leaves: ['mp4'],
    equal([first], source) {
      assert.ok(source.includes(Buffer.from('53b88101', 'hex')), 'the control: StereoMode is 1')
      assert.ok(!first?.bytes.includes('st3d'))
    },
  })),
]

export const unseenCases: readonly GateCase[] = [
  ...pictures,
  ...stills,
  ...channelCases,
  ...sounds,
  ...films,
]
