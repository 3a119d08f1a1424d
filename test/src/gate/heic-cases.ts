/** HEIC as telephones write it: turned by its own boxes, in P3, with EXIF that must not turn it again. */

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

import { findFfmpeg } from '@sluice/agent/capture/find-ffmpeg'
import { rgbSpaces, writeProfile } from '@sluice/agent/capture/icc-profile'
import { detectIsolation } from '@sluice/agent/sandbox'
import sharp from 'sharp'

import type { GateCase } from './cases.ts'
import { box, codeHevc, makeHeic } from './make-heif.ts'
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
  {
    name: 'an AVIF of high dynamic range',
    needs: ['ffmpeg'],
    async make(folder) {
      const path = join(folder, 'a.avif')
      // 58 % of PQ is paper white.
      const words = '-v error -f lavfi -i color=c=0x949494:s=64x48,format=gbrp -frames:v 1'
      const colours = '-color_primaries bt2020 -color_trc smpte2084 -colorspace bt2020nc'
      execFileSync(await ffmpegHere(), [
        ...words.split(' '),
        ...['-vf', 'scale=out_color_matrix=bt2020:out_range=pc,format=yuv444p10le'],
        ...'-c:v libaom-av1 -still-picture 1 -crf 5 -cpu-used 8'.split(' '),
        ...colours.split(' '),
        ...['-color_range', 'pc', path],
      ])
      return path
    },
    leaves: ['png'],
    async equal([first]) {
      assert.equal(first?.hdr, 'tone-mapped')
      const [grey = 0] = (await pixelsOf(first.bytes)).data
      assert.ok(grey > 190 && grey < 250, `paper white became ${grey}`)
    },
  },
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
]
