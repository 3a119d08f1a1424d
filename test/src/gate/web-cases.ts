/** WebP, GIF and AVIF: still and animated. */

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

import sharp from 'sharp'

import type { GateCase } from './cases.ts'
import { box } from './make-heif.ts'
import { gifExtension, withGifBlocks } from './make-pictures.ts'
import { drawScene, picture, pixelsOf, turned } from './pixels.ts'
import { file, firstBytes, looksLike } from './write-case.ts'

const scene = drawScene()
const colours = ['red', 'lime', 'blue'] as const
const exif = { IFD0: { Artist: 'canary-artist' }, IFD3: { GPSLatitudeRef: 'N' } }

async function frames(): Promise<Buffer[]> {
  return Promise.all(
    colours.map((background) =>
      sharp({ create: { width: 30, height: 20, channels: 3, background } })
        .png()
        .toBuffer(),
    ),
  )
}

const animation = async () => sharp(await frames(), { join: { animated: true } })

async function assertFlat(bytes: Buffer, wanted: readonly number[]): Promise<void> {
  const { data } = await pixelsOf(bytes)
  for (const [i, value] of wanted.entries()) assert.ok(Math.abs((data[i] ?? 0) - value) < 8)
}

const xmpTrailer = Buffer.concat([
  Buffer.from([1]),
  Buffer.from(Array.from({ length: 256 }, (_, i) => 255 - i)),
])

const webp: readonly GateCase[] = [
  {
    name: 'a WebP with EXIF, XMP and a profile',
    quick: true,
    make: file('a.webp', () =>
      picture(scene)
        .withExif(exif)
        .withXmp('<x>canary-xmp</x>')
        .withIccProfile('p3')
        .webp({ lossless: true })
        .toBuffer(),
    ),
    leaves: ['png'],
    gone: ['canary-artist', 'canary-xmp'],
    removed: ['exif', 'gps', 'icc', 'xmp'],
    equal: looksLike(scene, 1),
  },
  {
    name: 'a lossy WebP with transparency',
    make: file('a.webp', () => picture(scene).ensureAlpha(0.5).webp({ quality: 95 }).toBuffer()),
    leaves: ['png'],
    async equal(outcomes, source) {
      assert.equal((await sharp(firstBytes(outcomes)).metadata()).hasAlpha, true)
      await looksLike(scene, 4)(outcomes, source)
    },
  },
  {
    name: 'a WebP lying on its side',
    make: file('a.webp', () =>
      picture(scene).withMetadata({ orientation: 5 }).webp({ lossless: true }).toBuffer(),
    ),
    leaves: ['png'],
    equal: looksLike(turned(scene, 5), 1),
  },
  {
    name: 'an animated WebP: its first frame',
    make: file('a.webp', async () => (await animation()).webp({ lossless: true }).toBuffer()),
    leaves: ['png'],
    removed: ['animation'],
    equal: (outcomes) => assertFlat(firstBytes(outcomes), [255, 0, 0]),
  },
  {
    name: 'an animated WebP: all frames in the faithful profile',
    profile: 'faithful',
    make: file('a.webp', async () => (await animation()).webp({ lossless: true }).toBuffer()),
    leaves: ['png', 'png', 'png'],
    async equal([first, second, third]) {
      assert.deepEqual([first?.furtherPage, second?.furtherPage], [undefined, true])
      await assertFlat(second?.bytes ?? Buffer.alloc(0), [0, 255, 0])
      await assertFlat(third?.bytes ?? Buffer.alloc(0), [0, 0, 255])
    },
  },
  {
    name: 'a WebP cut short',
    make: file('a.webp', async () => {
      const whole = await picture(drawScene(200, 200)).webp({ lossless: true }).toBuffer()
      return whole.subarray(0, whole.length - 50)
    }),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'a WebP with something behind its end',
    make: file('a.webp', async () =>
      Buffer.concat([await picture(scene).webp().toBuffer(), Buffer.from('canary-trailer')]),
    ),
    leaves: ['png'],
    gone: ['canary-trailer'],
    removed: ['trailer'],
  },
]

const gif: readonly GateCase[] = [
  {
    name: 'a GIF with comment, XMP and what no one knows',
    quick: true,
    make: file('a.gif', async () =>
      withGifBlocks(
        await picture(scene).gif().toBuffer(),
        gifExtension(0xfe, 'canary-comment'),
        Buffer.concat([
          Buffer.from([0x21, 0xff, 11]),
          Buffer.from('XMP DataXMPcanary-xmp'),
          xmpTrailer,
          Buffer.from([0]),
        ]),
        gifExtension(0xff, 'CANARYAPP1.', 'canary-application'),
      ),
    ),
    leaves: ['png'],
    gone: ['canary-comment', 'canary-xmp', 'canary-application'],
    removed: ['comment', 'other', 'xmp'],
    equal: looksLike(scene, 6),
  },
  {
    name: 'an animated GIF: its first frame',
    make: file('a.gif', async () => (await animation()).gif().toBuffer()),
    leaves: ['png'],
    removed: ['animation'],
    equal: (outcomes) => assertFlat(firstBytes(outcomes), [255, 0, 0]),
  },
  {
    name: 'an animated GIF: all frames in the faithful profile',
    profile: 'faithful',
    make: file('a.gif', async () => (await animation()).gif().toBuffer()),
    leaves: ['png', 'png', 'png'],
    equal: ([, , third]) => assertFlat(third?.bytes ?? Buffer.alloc(0), [0, 0, 255]),
  },
  {
    name: 'a GIF without its last byte, as many writers leave it',
    make: file('a.gif', async () => (await picture(scene).gif().toBuffer()).subarray(0, -1)),
    leaves: ['png'],
    equal: looksLike(scene, 6),
  },
  {
    name: 'a GIF cut short',
    make: file('a.gif', async () => (await picture(scene).gif().toBuffer()).subarray(0, -40)),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'a GIF of more frames than anyone looks at',
    make: file('a.gif', async () => {
      const one = await picture(drawScene(8, 8)).gif().toBuffer()
      const start = 13 + 3 * 2 ** (((one[10] ?? 0) & 7) + 1)
      const frame = one.subarray(start, -1)
      return Buffer.concat([
        one.subarray(0, start),
        ...Array.from({ length: 501 }, () => frame),
        Buffer.from([0x3b]),
      ])
    }),
    refused: { code: 'media.too_large', says: /frames/ },
  },
  {
    name: 'a GIF with something behind its end',
    make: file('a.gif', async () =>
      Buffer.concat([
        await picture(scene).gif().toBuffer(),
        Buffer.from('<script>canary()</script>'),
      ]),
    ),
    leaves: ['png'],
    gone: ['<script>'],
    removed: ['trailer'],
  },
]

/** From black on the left to white on the right, as grey of 16 to 235. */
function filmGrey(folder: string): string {
  const [width, height] = [64, 32]
  const input = Buffer.alloc(width * height * 3)
  for (let i = 0; i < input.length; i++) input[i] = (Math.floor(i / 3) % width) * 4
  const path = join(folder, 'a.avif')
  execFileSync(
    'ffmpeg',
    [
      ...['-v', 'error', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', `${width}x${height}`],
      ...['-i', '-', '-vf', 'scale=out_range=tv,format=gray', '-color_range', 'tv'],
      ...['-color_primaries', 'bt709', '-color_trc', 'iec61966-2-1', '-colorspace', 'smpte170m'],
      ...['-c:v', 'libaom-av1', '-still-picture', '1', '-cpu-used', '8', '-crf', '3', path],
    ],
    { input },
  )
  return path
}

const avif: readonly GateCase[] = [
  {
    name: 'an AVIF of grey as films have it',
    needs: ['ffmpeg'],
    make: filmGrey,
    leaves: ['png'],
    async equal(outcomes) {
      const { data } = await pixelsOf(firstBytes(outcomes))
      for (const x of [0, 10, 32, 50, 63]) {
        assert.ok(Math.abs((data[x * 3] ?? 0) - x * 4) <= 4, `column ${x}: ${data[x * 3]}`)
      }
    },
  },
  {
    name: 'an AVIF that is a sequence too: its still picture',
    quick: true,
    make: file('a.avif', async () => {
      const still = await picture(scene)
        .avif({ quality: 90, chromaSubsampling: '4:4:4' })
        .toBuffer()
      still.write('avis', 8, 'latin1')
      return Buffer.concat([still, box('moov', box('mvhd', Buffer.alloc(100)))])
    }),
    leaves: ['png'],
    removed: ['animation'],
    equal: looksLike(scene, 5),
  },
  {
    name: 'an AVIF with a trailer that is no box',
    make: file('a.avif', async () =>
      Buffer.concat([await picture(scene).avif().toBuffer(), Buffer.from('canary-trailer')]),
    ),
    leaves: ['png'],
    gone: ['canary-trailer'],
    removed: ['trailer'],
  },
  {
    name: 'an AVIF with EXIF',
    quick: true,
    make: file('a.avif', () =>
      picture(scene).withExif(exif).avif({ quality: 90, chromaSubsampling: '4:4:4' }).toBuffer(),
    ),
    leaves: ['png'],
    gone: ['canary-artist'],
    removed: ['exif'],
    equal: looksLike(scene, 3),
  },
  {
    name: 'an AVIF of ten bits',
    make: file('a.avif', () =>
      picture(scene).avif({ quality: 95, bitdepth: 10, chromaSubsampling: '4:4:4' }).toBuffer(),
    ),
    leaves: ['png'],
    equal: looksLike(scene, 3),
  },
  {
    name: 'an AVIF in P3 by its profile',
    make: file('a.avif', () =>
      picture(scene)
        .withIccProfile('p3')
        .avif({ quality: 95, chromaSubsampling: '4:4:4' })
        .toBuffer(),
    ),
    leaves: ['png'],
    removed: ['icc'],
    equal: looksLike(scene, 3),
  },
  {
    name: 'an AVIF with transparency',
    make: file('a.avif', () => picture(scene).ensureAlpha(0.5).avif({ quality: 90 }).toBuffer()),
    leaves: ['png'],
    async equal(outcomes) {
      assert.equal((await sharp(firstBytes(outcomes)).metadata()).hasAlpha, true)
    },
  },
  {
    name: 'an AVIF cut short',
    make: file('a.avif', async () => {
      const whole = await picture(scene).avif().toBuffer()
      return whole.subarray(0, whole.length - 20)
    }),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
]

export const webCases: readonly GateCase[] = [...webp, ...gif, ...avif]
