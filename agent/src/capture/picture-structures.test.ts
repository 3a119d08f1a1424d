/** Proves that no parser of pictures trips over damaged bytes: it answers, or refuses with a code. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import sharp from 'sharp'
import { isSluiceError } from '@sluice/protocol/errors'
import { readBmp } from './bmp-structure.ts'
import { checkClean } from './clean-picture.ts'
import { readExif } from './exif-tags.ts'
import { readGif } from './gif-structure.ts'
import { readHeif } from './heif-structure.ts'
import { recogniseProfile, rgbSpaces, writeProfile } from './icc-profile.ts'
import { readJpeg } from './jpeg-structure.ts'
import { readFrames } from './picture-frames.ts'
import { readPng } from './png-structure.ts'
import { stripJpeg, stripPng, stripWebp } from './strip-picture.ts'
import { readTiff } from './tiff-structure.ts'
import { readWebp } from './webp-structure.ts'

const all = { salvage: false, pages: 'all', frames: 'all' } as const
const blank = sharp({ create: { width: 24, height: 16, channels: 3, background: 'teal' } })
  .withExif({ IFD0: { Artist: 'someone' }, IFD3: { GPSLatitudeRef: 'N' } })
  .withIccProfile('p3')

const bmpHead = Buffer.alloc(54)
bmpHead.write('BM')
bmpHead.writeUInt32LE(54, 10)
bmpHead.writeUInt32LE(40, 14)
bmpHead.writeInt32LE(4, 18)
bmpHead.writeInt32LE(-4, 22)
bmpHead.writeUInt16LE(24, 28)
const bmp = Buffer.concat([bmpHead, Buffer.alloc(48, 7)])
const runs = Buffer.concat([bmpHead, Buffer.from([4, 1, 0, 3, 1, 2, 3, 0, 0, 2, 1, 1, 0, 1])])
runs.writeUInt16LE(8, 28)
runs.writeUInt32LE(1, 30)

const jpeg = await blank.clone().jpeg().toBuffer()
const png = await blank.clone().png().toBuffer()
const webp = await blank.clone().webp().toBuffer()
const bare = blank.clone().keepMetadata()
const plain = sharp(await bare.png().toBuffer())

/** Each parser with a whole file of its format. */
const parsers: readonly (readonly [string, Buffer, (bytes: Buffer) => unknown])[] = [
  ['JPEG', jpeg, (bytes) => readJpeg(bytes, all)],
  ['JPEG, salvaging', jpeg, (bytes) => readJpeg(bytes, { ...all, salvage: true })],
  ['PNG', png, (bytes) => readPng(bytes, all)],
  ['PNG, salvaging', png, (bytes) => readPng(bytes, { ...all, salvage: true })],
  ['WebP', webp, (bytes) => readWebp(bytes, all)],
  ['GIF', await plain.clone().gif().toBuffer(), (bytes) => readGif(bytes, all)],
  ['TIFF', await plain.clone().tiff().toBuffer(), (bytes) => readTiff(bytes, all)],
  [
    'BigTIFF',
    await plain.clone().tiff({ bigtiff: true }).toBuffer(),
    (bytes) => readTiff(bytes, all),
  ],
  ['AVIF', await plain.clone().avif({ effort: 0 }).toBuffer(), (bytes) => readHeif(bytes, all)],
  ['BMP', bmp, (bytes) => readBmp(bytes, all)],
  ['BMP in runs', runs, (bytes) => readBmp(bytes, { salvage: true })],
  ['EXIF', (await sharp(jpeg).metadata()).exif ?? Buffer.alloc(0), readExif],
  ['ICC', writeProfile(rgbSpaces.p3), recogniseProfile],
  ['ICC with curves', (await sharp(jpeg).metadata()).icc ?? Buffer.alloc(0), recogniseProfile],
  ['clean JPEG', stripJpeg(await sharp(jpeg).jpeg().toBuffer()), checkClean],
  ['clean PNG', stripPng(png, writeProfile(rgbSpaces.p3)), checkClean],
  ['clean WebP', stripWebp(await sharp(jpeg).webp().toBuffer()), checkClean],
]

function answersOrRefuses(bytes: Buffer, parse: (bytes: Buffer) => unknown): void {
  try {
    parse(bytes)
  } catch (error) {
    if (!isSluiceError(error)) throw error
    assert.match(error.code, /^media\.(?:corrupt|too_large|unsupported|not_clean)$/)
  }
}

describe('parsers of pictures', () => {
  for (const [name, whole, parse] of parsers) {
    it(`${name}: reads the whole file, and answers or refuses whatever is cut or changed`, () => {
      parse(whole)
      for (let length = 0; length < whole.length; length += Math.ceil(whole.length / 300)) {
        answersOrRefuses(whole.subarray(0, length), parse)
      }
      const place = fc.nat(whole.length - 1)
      const value = fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xfe, 0xff), fc.nat(255))
      const change = fc.array(fc.tuple(place, value), { minLength: 1, maxLength: 6 })
      fc.assert(
        fc.property(change, (changes) => {
          const copy = Buffer.from(whole)
          for (const [at, byte] of changes) copy[at] = byte
          answersOrRefuses(copy, parse)
        }),
        { numRuns: 800 },
      )
      // What is strange from the first byte on, behind a beginning that fits.
      fc.assert(
        fc.property(fc.nat(40), fc.uint8Array({ maxLength: 300 }), (head, tail) => {
          answersOrRefuses(Buffer.concat([whole.subarray(0, head), tail]), parse)
        }),
        { numRuns: 400 },
      )
    })
  }

  it('refuse what once was read beyond its end', () => {
    const masked = Buffer.concat([bmp, Buffer.alloc(20)])
    masked.writeUInt32LE(3, 30)
    assert.throws(() => readBmp(masked, all), { code: 'media.corrupt' })
    assert.throws(() => readJpeg(Buffer.from([0xff]), all), { code: 'media.corrupt' })
  })

  it('frames of a decoder: an answer, an end, or a refusal', async () => {
    const answer = fc.uint8Array({ maxLength: 100 })
    await fc.assert(
      fc.asyncProperty(fc.array(answer, { maxLength: 5 }), async (pieces) => {
        async function* stream() {
          yield* pieces
        }
        const reader = readFrames(stream())
        try {
          while ((await reader.next(1000)) !== undefined);
        } catch (error) {
          assert.ok(isSluiceError(error, 'media.decoder_failed'))
        }
      }),
    )
  })
})
