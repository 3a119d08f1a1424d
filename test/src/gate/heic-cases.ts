/** HEIC as telephones write it: turned by its own boxes, in P3, with EXIF that must not turn it again. */

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

import { findFfmpeg } from '@sluice/agent/capture/find-ffmpeg'
import { rgbSpaces, writeProfile } from '@sluice/agent/capture/icc-profile'
import { detectIsolation } from '@sluice/agent/sandbox'
import sharp from 'sharp'

import type { GateCase, Outcome } from './cases.ts'
import { box, u32, codeHevc, makeHeic } from './make-heif.ts'
import type { CodedPicture, HeifParts } from './make-heif.ts'
import { exifBlock } from './make-pictures.ts'
import { drawScene, picture, pixelsOf, turned } from './pixels.ts'
import { file, looksLike } from './write-case.ts'

const scene = drawScene(64, 48)
let coded: Promise<CodedPicture> | undefined

async function ffmpegHere(): Promise<string> {
  const isolation = await detectIsolation().catch(() => detectIsolation('none'))
  const ffmpeg = await findFfmpeg({ isolation })
  assert.ok(ffmpeg)
  return ffmpeg.program
}

async function code(rgb: Buffer, pixelFormat?: string): Promise<CodedPicture> {
  const ffmpeg = await ffmpegHere()
  const size = { widthPixels: scene.width, heightPixels: scene.height }
  return codeHevc(ffmpeg, {
    ...size,
    rgb,
    ...(pixelFormat === undefined ? {} : { pixelFormat }),
  })
}

async function heic(parts: Omit<HeifParts, 'coded'> = {}): Promise<Buffer> {
  coded ??= code(scene.data)
  return makeHeic({ coded: await coded, nclx: { primaries: 1, transfer: 13, matrix: 1 }, ...parts })
}

/** Quarter turns against the clock are EXIF's 1, 8, 3 and 6. */
const turnedBy = [1, 8, 3, 6]

const turns: readonly GateCase[] = [0, 1, 2, 3].map((irot) => ({
  name: `a HEIC turned by ${irot} quarters, whose EXIF says otherwise`,
  needs: ['ffmpeg'],
  ...(irot === 1 ? { quick: true as const } : {}),
  make: file('a.heic', () => heic({ irot: irot as 0 | 1 | 2 | 3, exif: exifBlock(6) })),
  leaves: ['png'],
  gone: ['canary-maker'],
  removed: ['exif', 'gps'],
  equal: looksLike(turned(scene, turnedBy[irot] ?? 1), 2),
}))

/** An AVIF of ten bits in BT.2020; `light` is a formula for the 1024 steps of each pixel, from X and Y. */
async function highAvif(folder: string, transfer: string, light: string): Promise<string> {
  const path = join(folder, 'a.avif')
  const pixels = `nullsrc=s=1024x16,format=gbrp10le,geq=r=${light}:g=${light}:b=${light}`
  const words = `-v error -f lavfi -i ${pixels} -frames:v 1`
  execFileSync(await ffmpegHere(), [
    ...words.split(' '),
    ...['-vf', 'scale=out_color_matrix=bt2020:out_range=pc,format=yuv444p10le'],
    ...'-c:v libaom-av1 -still-picture 1 -crf 5 -cpu-used 8'.split(' '),
    ...'-color_primaries bt2020 -colorspace bt2020nc -color_range pc -color_trc'.split(' '),
    ...[transfer, path],
  ])
  return path
}

/** Paper white, 203 nits, is 58 % of PQ and 75 % of HLG (ITU-R BT.2408, table 1). */
const paperWhite = { smpte2084: 0.58, 'arib-std-b67': 0.75 }

const highAvifs: readonly GateCase[] = Object.entries(paperWhite).flatMap(([transfer, grey]) =>
  (['analysis', 'faithful', 'compact'] as const).map((profile) => ({
    name: `an AVIF of ten bits and high dynamic range, ${transfer}, ${profile}`,
    needs: ['ffmpeg'] as const,
    profile,
    make: (folder: string) => highAvif(folder, transfer, String(Math.round(grey * 1023))),
    leaves: [profile === 'compact' ? ('jpg' as const) : ('png' as const)],
    async equal([first]: readonly Outcome[], source: Buffer) {
      // 9 is BT.2020; 16 is PQ and 18 HLG (ITU-T H.273).
      const codes = Buffer.from([0, 9, 0, transfer === 'smpte2084' ? 16 : 18])
      assert.ok(source.includes(Buffer.concat([Buffer.from('nclx'), codes])))
      assert.equal(first?.hdr, 'tone-mapped')
      const { depth, hasProfile } = await sharp(first.bytes).metadata()
      assert.equal(depth, profile === 'faithful' ? 'ushort' : 'uchar')
      assert.equal(hasProfile, false)
      const [red = 0, green = 0, blue = 0] = (await pixelsOf(first.bytes)).data
      assert.ok(green > 190 && green < 250, `paper white became ${green}`)
      assert.ok(Math.abs(red - green) <= 2 && Math.abs(blue - green) <= 2, 'grey has a colour now')
    },
  })),
)

const deepAvif: GateCase = {
  name: 'an AVIF of ten bits and high dynamic range keeps its thousand steps in the faithful profile',
  needs: ['ffmpeg'],
  profile: 'faithful',
  make: (folder) => highAvif(folder, 'arib-std-b67', 'X'),
  leaves: ['png'],
  async equal([first]) {
    const row = { left: 0, top: 8, width: 1024, height: 1 }
    const deep = sharp(first?.bytes).toColourspace('rgb16').extract(row)
    const samples = await deep.raw({ depth: 'ushort' }).toBuffer()
    const greens = new Uint16Array(samples.buffer, samples.byteOffset, samples.length / 2)
    const steps = new Set(greens.filter((_, i) => i % 3 === 1))
    assert.ok(steps.size > 700, `${steps.size} steps are left`)
  },
}

export const heicCases: readonly GateCase[] = [
  ...turns,
  {
    name: 'a HEIC mirrored',
    needs: ['ffmpeg'],
    make: file('a.heic', () => heic({ imir: 1 })),
    leaves: ['png'],
    equal: looksLike(turned(scene, 2), 2),
  },
  {
    name: 'a HEIC of which only the middle is meant to be seen',
    needs: ['ffmpeg'],
    make: file('a.heic', () => heic({ clap: { widthPixels: 32, heightPixels: 24 } })),
    leaves: ['png'],
    equal([first]) {
      assert.deepEqual([first?.widthPixels, first?.heightPixels], [32, 24])
    },
  },
  {
    name: 'a HEIC in Display P3 with XMP',
    needs: ['ffmpeg'],
    make: file('a.heic', async () => {
      const tagged = await picture(scene).withIccProfile('p3').png().toBuffer()
      const numbers = await sharp(tagged, { ignoreIcc: true }).raw().toBuffer()
      return makeHeic({
        coded: await code(numbers),
        icc: writeProfile(rgbSpaces.p3),
        xmp: '<x>canary-xmp</x>',
        nclx: { primaries: 12, transfer: 13, matrix: 1 },
      })
    }),
    leaves: ['png'],
    gone: ['canary-xmp'],
    removed: ['icc', 'xmp'],
    equal: looksLike(scene, 2),
  },
  {
    name: 'a HEIC of ten bits',
    needs: ['ffmpeg'],
    profile: 'faithful',
    make: file('a.heic', async () =>
      makeHeic({
        coded: await code(scene.data, 'yuv444p10le'),
        nclx: { primaries: 1, transfer: 13, matrix: 1 },
      }),
    ),
    leaves: ['png'],
    async equal(outcomes, source) {
      assert.equal((await sharp(outcomes[0]?.bytes).metadata()).depth, 'ushort')
      await looksLike(scene, 2)(outcomes, source)
    },
  },
  {
    name: 'a HEIC of high dynamic range',
    needs: ['ffmpeg'],
    make: file('a.heic', () => heic({ nclx: { primaries: 9, transfer: 18, matrix: 1 } })),
    leaves: ['png'],
    equal([first]) {
      assert.equal(first?.hdr, 'tone-mapped')
    },
  },
  ...highAvifs,
  deepAvif,
  {
    name: 'a HEIC with a film behind it',
    needs: ['ffmpeg'],
    make: file('a.heic', () => heic({ trailer: box('mpvd', Buffer.from('canary-film')) })),
    leaves: ['png'],
    gone: ['canary-film'],
    removed: ['motion-photo'],
  },
  {
    name: 'a HEIC cut short',
    needs: ['ffmpeg'],
    make: file('a.heic', async () => {
      const whole = await heic()
      return whole.subarray(0, whole.length - 30)
    }),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'a HEIC that promises a gigapixel',
    needs: ['ffmpeg'],
    make: file('a.heic', () =>
      heic({ claimedSize: { widthPixels: 40_000, heightPixels: 40_000 } }),
    ),
    refused: { code: 'media.too_large', says: /pixels/ },
  },
  {
    name: 'a HEIF sequence without a still picture',
    make: file('a.heic', () =>
      Buffer.concat([
        box('ftyp', Buffer.from('msf1\0\0\0\0hevc')),
        box('moov', box('mvhd', Buffer.alloc(100))),
      ]),
    ),
    refused: { code: 'media.unsupported', says: /film/ },
  },
  {
    name: 'an AVIF sequence that says of a still picture only that there is none',
    make: file('a.avif', () =>
      Buffer.concat([
        box('ftyp', Buffer.from('avis\0\0\0\0msf1')),
        box('meta', u32(0), box('hdlr', Buffer.alloc(24))),
        box('moov', box('mvhd', Buffer.alloc(100))),
      ]),
    ),
    refused: { code: 'media.unsupported', says: /film/ },
  },
]
