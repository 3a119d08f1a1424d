/** PNGs: every depth and colour, what their chunks say about colours, animation, damage. */

import assert from 'node:assert/strict'
import { deflateSync } from 'node:zlib'

import { rgbSpaces, writeProfile } from '@sluice/agent/capture/icc-profile'
import sharp from 'sharp'

import type { GateCase, Outcome } from './cases.ts'
import { animatedPng, chunk, exifBlock, withChunks } from './make-pictures.ts'
import { drawScene, picture, pixelsOf, turned } from './pixels.ts'
import type { Pixels } from './pixels.ts'
import { file, firstBytes, looksLike } from './write-case.ts'

const scene = drawScene()
const png = () => picture(scene).png().toBuffer()

/** The numbers of P3 that show the scene. */
async function inP3(): Promise<Pixels> {
  const tagged = await picture(scene).withIccProfile('p3').png().toBuffer()
  const data = await sharp(tagged, { ignoreIcc: true }).raw().toBuffer()
  return { ...scene, data }
}

async function sameNumbers(bytes: Buffer, wanted: Pixels): Promise<void> {
  const { data, info } = await sharp(bytes).raw().toBuffer({ resolveWithObject: true })
  assert.equal(info.channels, wanted.channels)
  assert.deepEqual(data, wanted.data)
}

const deep = () => picture(scene).toColourspace('rgb16').png().toBuffer()

/** The scene with its left half erased as editors do it: only the alpha is gone. */
function erased(): Pixels {
  const data = Buffer.alloc(scene.width * scene.height * 4)
  for (let i = 0; i < scene.width * scene.height; i++) {
    scene.data.copy(data, i * 4, i * 3, i * 3 + 3)
    data[i * 4 + 3] = i % scene.width < scene.width / 2 ? 0 : 255
  }
  return { ...scene, channels: 4, data }
}

/** Nothing is left of what was erased; the rest has the numbers it had. */
async function holdsNoErased(outcomes: readonly Outcome[], source: Buffer): Promise<void> {
  const sixteen = (bytes: Buffer) =>
    sharp(bytes, { ignoreIcc: true }).toColourspace('rgb16').raw({ depth: 'ushort' }).toBuffer()
  const [before, after] = [await sixteen(source), await sixteen(firstBytes(outcomes))]
  assert.equal(after.length, before.length)
  let hidden = 0
  for (let at = 0; at < before.length; at += 8) {
    const pixel = before.subarray(at, at + 8)
    if (pixel.readUInt16LE(6) !== 0) continue
    if (pixel.some((byte) => byte !== 0)) hidden += 1
    pixel.fill(0)
  }
  assert.ok(hidden > 0, 'the input has no colours that cannot be seen')
  assert.deepEqual(after, before)
}

export const pngCases: readonly GateCase[] = [
  {
    name: 'a PNG whose erased half still has its colours',
    quick: true,
    make: file('a.png', () => picture(erased()).png().toBuffer()),
    leaves: ['png'],
    equal: holdsNoErased,
  },
  {
    name: 'a PNG of 16 bits whose erased half still has its colours, in the faithful profile',
    profile: 'faithful',
    make: file('a.png', () => picture(erased()).toColourspace('rgb16').png().toBuffer()),
    leaves: ['png'],
    equal: holdsNoErased,
  },
  {
    name: 'a PNG in P3 whose erased half still has its colours, in the faithful profile',
    profile: 'faithful',
    make: file('a.png', async () =>
      sharp(await picture(erased()).png().toBuffer())
        .withIccProfile('p3')
        .png()
        .toBuffer(),
    ),
    leaves: ['png'],
    equal: holdsNoErased,
  },
  {
    name: 'a PNG keeps every bit and loses every text',
    quick: true,
    make: file('a.png', async () =>
      Buffer.concat([
        withChunks(
          await png(),
          chunk('tEXt', 'Author\0canary-text'),
          chunk('iTXt', 'XML:com.adobe.xmp\0\0\0\0\0canary-xmp'),
          chunk('eXIf', exifBlock(1)),
          chunk('tIME', Buffer.from([7, 234, 1, 1, 1, 1, 1])),
          chunk('caBX', 'canary-c2pa'),
          chunk('prVt', 'canary-private'),
        ),
        Buffer.from('canary-trailer'),
      ]),
    ),
    leaves: ['png'],
    gone: [
      'canary-text',
      'canary-xmp',
      'canary-maker',
      'canary-c2pa',
      'canary-private',
      'canary-trailer',
    ],
    removed: ['c2pa', 'exif', 'gps', 'other', 'text', 'time', 'trailer', 'xmp'],
    equal: async (outcomes) => sameNumbers(firstBytes(outcomes), scene),
  },
  {
    name: 'a PNG with transparency keeps it',
    make: file('a.png', () =>
      sharp({
        create: {
          width: 8,
          height: 8,
          channels: 4,
          background: { r: 9, g: 99, b: 199, alpha: 0.5 },
        },
      })
        .png()
        .toBuffer(),
    ),
    leaves: ['png'],
    async equal(outcomes) {
      const raw = await sharp(firstBytes(outcomes)).raw().toBuffer()
      assert.deepEqual([...raw.subarray(0, 4)], [9, 99, 199, 128])
    },
  },
  {
    name: 'a PNG with transparency becomes WebP for a thin link',
    profile: 'compact',
    make: file('a.png', () =>
      sharp({
        create: {
          width: 64,
          height: 64,
          channels: 4,
          background: { r: 9, g: 99, b: 199, alpha: 0.5 },
        },
      })
        .png()
        .toBuffer(),
    ),
    leaves: ['webp'],
    async equal([first]) {
      assert.equal(first?.codec, 'webp')
      assert.equal((await sharp(first.bytes).metadata()).hasAlpha, true)
    },
  },
  {
    name: 'a PNG with a palette and one transparent colour',
    make: file('a.png', () => picture(scene).png({ palette: true, colours: 32 }).toBuffer()),
    leaves: ['png'],
    equal: looksLike(scene, 6),
  },
  {
    name: 'a PNG woven in seven passes',
    make: file('a.png', () => picture(scene).png({ progressive: true }).toBuffer()),
    leaves: ['png'],
    equal: async (outcomes) => sameNumbers(firstBytes(outcomes), scene),
  },
  {
    name: 'a PNG of one bit',
    make: file('a.png', () =>
      picture(scene).greyscale().threshold(128).png({ palette: true, colours: 2 }).toBuffer(),
    ),
    leaves: ['png'],
    async equal(outcomes) {
      const { data } = await pixelsOf(firstBytes(outcomes))
      assert.ok(data.every((value) => value === 0 || value === 255))
    },
  },
  {
    name: 'a PNG of 16 bits becomes one of 8',
    make: file('a.png', deep),
    leaves: ['png'],
    async equal(outcomes) {
      assert.equal((await sharp(firstBytes(outcomes)).metadata()).depth, 'uchar')
      await looksLike(scene, 1)(outcomes, Buffer.alloc(0))
    },
  },
  {
    name: 'a PNG of 16 bits keeps them in the faithful profile',
    profile: 'faithful',
    make: file('a.png', deep),
    leaves: ['png'],
    async equal(outcomes, source) {
      const raw = (bytes: Buffer) =>
        sharp(bytes).toColourspace('rgb16').raw({ depth: 'ushort' }).toBuffer()
      assert.equal((await sharp(firstBytes(outcomes)).metadata()).depth, 'ushort')
      assert.deepEqual(await raw(firstBytes(outcomes)), await raw(source))
    },
  },
  {
    name: 'a PNG of 16 bits in P3',
    quick: true,
    make: file('a.png', () =>
      picture(scene).toColourspace('rgb16').withIccProfile('p3').png().toBuffer(),
    ),
    leaves: ['png'],
    equal: looksLike(scene, 1),
  },
  {
    name: 'a grey PNG of 16 bits with a profile for colours',
    make: file('a.png', async () => {
      const grey = await picture(scene).toColourspace('grey16').png().toBuffer()
      return withChunks(
        grey,
        chunk(
          'iCCP',
          Buffer.concat([Buffer.from('p\0\0'), deflateSync(writeProfile(rgbSpaces.p3))]),
        ),
      )
    }),
    leaves: ['png'],
    async equal(outcomes) {
      const { data } = await pixelsOf(firstBytes(outcomes))
      const grey = await picture(scene).toColourspace('grey16').png().toBuffer()
      assert.deepEqual(data, (await pixelsOf(grey)).data)
    },
  },
  ...(['adobe', 'prophoto', 'rec2020'] as const).map((space): GateCase => ({
    name: `a PNG in ${space} looks as it was meant`,
    make: file('a.png', async () => {
      const { red, green, blue } = unsaturated[space]
      const flat = await sharp({
        create: { width: 16, height: 16, channels: 3, background: { r: red, g: green, b: blue } },
      })
        .png()
        .toBuffer()
      const profile = deflateSync(writeProfile(rgbSpaces[space]))
      return withChunks(flat, chunk('iCCP', Buffer.concat([Buffer.from('p\0\0'), profile])))
    }),
    leaves: ['png'],
    removed: ['icc'],
    equal: looksLike(flatPixels(16, [200, 120, 60]), 2),
  })),
  {
    name: 'a PNG in P3 by cICP alone',
    make: file('a.png', async () =>
      withChunks(
        await picture(await inP3())
          .png()
          .toBuffer(),
        chunk('cICP', Buffer.from([12, 13, 0, 1])),
      ),
    ),
    leaves: ['png'],
    equal: looksLike(scene, 1.5),
  },
  {
    name: 'a PNG in linear light by gAMA',
    make: file('a.png', async () => {
      const linear = Buffer.from(
        scene.data.map((value) => Math.round(255 * ((value / 255 + 0.055) / 1.055) ** 2.4)),
      )
      const gamma = Buffer.alloc(4)
      gamma.writeUInt32BE(100_000)
      return withChunks(
        await picture({ ...scene, data: linear })
          .png()
          .toBuffer(),
        chunk('gAMA', gamma),
      )
    }),
    leaves: ['png'],
    equal: looksLike(scene, 3),
  },
  {
    name: 'a PNG with the gamma and chromaticities of sRGB is not touched',
    make: file('a.png', async () => {
      const gamma = Buffer.alloc(4)
      gamma.writeUInt32BE(45_455)
      const places = [31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6000]
      const chromaticities = Buffer.alloc(32)
      for (const [i, value] of places.entries()) chromaticities.writeUInt32BE(value, 4 * i)
      return withChunks(await png(), chunk('gAMA', gamma), chunk('cHRM', chromaticities))
    }),
    leaves: ['png'],
    equal: async (outcomes) => sameNumbers(firstBytes(outcomes), scene),
  },
  {
    name: 'a PNG of high dynamic range is mapped and marked',
    make: file('a.png', async () => {
      // 58 % of PQ is paper white, 203 nits.
      const grey = sharp({
        create: { width: 16, height: 16, channels: 3, background: { r: 148, g: 148, b: 148 } },
      })
      return withChunks(await grey.png().toBuffer(), chunk('cICP', Buffer.from([9, 16, 0, 1])))
    }),
    leaves: ['png'],
    async equal([first]) {
      assert.equal(first?.hdr, 'tone-mapped')
      const { data } = await pixelsOf(first.bytes)
      assert.ok((data[0] ?? 0) > 190 && (data[0] ?? 0) < 250, `paper white became ${data[0]}`)
      assert.equal(data[0], data[1])
    },
  },
  {
    name: 'an animated PNG: its default picture',
    quick: true,
    make: file('a.png', () => animatedPng([scene, drawScene()])),
    leaves: ['png'],
    removed: ['animation'],
    equal: async (outcomes) => sameNumbers(firstBytes(outcomes), scene),
  },
  {
    name: 'a PNG lying on its side by eXIf',
    make: file('a.png', async () => withChunks(await png(), chunk('eXIf', exifBlock(6)))),
    leaves: ['png'],
    removed: ['exif', 'gps'],
    equal: async (outcomes) => sameNumbers(firstBytes(outcomes), turned(scene, 6)),
  },
  {
    name: 'a PNG with a damaged text is whole',
    make: file('a.png', async () => {
      const text = chunk('tEXt', 'Author\0someone')
      text[text.length - 1] = (text.at(-1) ?? 0) ^ 1
      return withChunks(await png(), text)
    }),
    leaves: ['png'],
    equal: async (outcomes) => sameNumbers(firstBytes(outcomes), scene),
  },
  {
    name: 'a PNG with a damaged piece is refused with its position',
    make: file('a.png', async () => {
      const whole = await png()
      const at = whole.indexOf('IDAT')
      whole[at + 20] = (whole[at + 20] ?? 0) ^ 1
      return whole
    }),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'a PNG cut short',
    make: file('a.png', async () => (await png()).subarray(0, 200)),
    refused: { code: 'media.corrupt', says: /at byte 200/ },
  },
  {
    name: 'what decodes of a PNG cut short is kept when that is asked for',
    salvage: true,
    make: file('a.png', async () => {
      const whole = await picture(drawScene(300, 300)).png({ compressionLevel: 0 }).toBuffer()
      return whole.subarray(0, Math.floor(whole.length * 0.7))
    }),
    leaves: ['png'],
    async equal([first]) {
      assert.equal(first?.partial, true)
      const { data } = await pixelsOf(first.bytes)
      assert.deepEqual(data.subarray(0, 3000), drawScene(300, 300).data.subarray(0, 3000))
    },
  },
]

/** What shows as (200, 120, 60) of sRGB. */
const unsaturated = {
  adobe: { red: 180, green: 119, blue: 66 },
  prophoto: { red: 148, green: 111, blue: 59 },
  rec2020: { red: 175, green: 127, blue: 73 },
}

function flatPixels(side: number, colour: readonly [number, number, number]): Pixels {
  const data = Buffer.alloc(side * side * 3, Buffer.from(colour))
  return { width: side, height: side, channels: 3, data }
}
