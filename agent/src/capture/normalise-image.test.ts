/** Proves that pictures leave the gate upright, in sRGB and with nothing but pixels. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import { crc32 } from 'node:zlib'
import sharp from 'sharp'
import type { Sharp } from 'sharp'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { collectOutput, detectIsolation } from '../sandbox.ts'
import { checkClean } from './clean-picture.ts'
import { openSource } from './inspect.ts'
import { plainJfif } from './jpeg-structure.ts'
import { normaliseImage } from './normalise-image.ts'
import type { ImageOptions } from './normalise-image.ts'
import { stripPng } from './strip-picture.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none')
const folder = mkdtempSync(path.join(tmpdir(), 'image-'))
after(() => rmSync(folder, { recursive: true }))

async function normalise(content: Buffer) {
  const file = path.join(folder, 'source')
  writeFileSync(file, content)
  await using source = await openSource(file)
  const [medium] = await normaliseImage(source, { isolation, scratchFolder: folder })
  assert.ok(medium)
  const { content: held, ...facts } = medium
  await using bytes = held
  return { facts, picture: await collectOutput(bytes.read()) }
}

async function normaliseAll(content: Buffer, options: Partial<ImageOptions>) {
  const file = path.join(mkdtempSync(path.join(folder, 'each-')), 'source')
  writeFileSync(file, content)
  await using source = await openSource(file)
  const media = await normaliseImage(source, { isolation, scratchFolder: folder, ...options })
  return Promise.all(
    media.map(async ({ content: held, removed }) => {
      await using bytes = held
      return { removed, picture: await collectOutput(bytes.read()) }
    }),
  )
}

const exif = {
  IFD0: { Artist: 'Ada Secret', Copyright: 'canary-copyright' },
  IFD3: { GPSLatitudeRef: 'N', GPSLatitude: '51/1 30/1 0/1' },
}

/** Left half red, right half blue, 40 x 20. */
function twoColours(): Sharp {
  const right = { create: { width: 20, height: 20, channels: 3, background: 'blue' } } as const
  return sharp({ create: { width: 40, height: 20, channels: 3, background: 'red' } }).composite([
    { input: right, left: 20, top: 0 },
  ])
}

async function pixel(picture: Buffer, left: number, top: number): Promise<number[]> {
  const { data, info } = await sharp(picture).raw().toBuffer({ resolveWithObject: true })
  const at = (top * info.width + left) * info.channels
  return [...data.subarray(at, at + 3)]
}

function near(actual: number[], expected: number[], by = 6): void {
  const close = actual.every((value, i) => Math.abs(value - (expected[i] ?? -999)) <= by)
  assert.ok(close, `${actual.join()} is not near ${expected.join()}`)
}

function pngChunk(name: string, content: Buffer): Buffer {
  const chunk = Buffer.alloc(12 + content.length)
  chunk.writeUInt32BE(content.length)
  chunk.write(name, 4, 'latin1')
  content.copy(chunk, 8)
  chunk.writeUInt32BE(crc32(chunk.subarray(4, -4)), chunk.length - 4)
  return chunk
}

describe('normaliseImage', () => {
  it('removes EXIF, GPS and XMP from a JPEG (control: they were there)', async () => {
    const xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>canary-xmp</a></x:xmpmeta>'
    const before = await twoColours().withExif(exif).withXmp(xmp).jpeg().toBuffer()
    assert.ok(before.includes('Ada Secret') && before.includes('canary-xmp'))
    const { facts, picture } = await normalise(before)
    assert.ok(!picture.includes('Ada Secret') && !picture.includes('canary'))
    assert.deepEqual(facts.removed, ['exif', 'gps', 'xmp'])
    assert.deepEqual(
      { kind: facts.kind, extension: facts.extension, codec: facts.codec },
      { kind: 'image', extension: 'jpg', codec: 'mjpeg' },
    )
    assert.deepEqual([facts.widthPixels, facts.heightPixels], [40, 20])
    const metadata = await sharp(picture).metadata()
    assert.equal(metadata.exif ?? metadata.xmp ?? metadata.icc, undefined)
    assert.equal(metadata.chromaSubsampling, '4:4:4')
    assert.match(facts.tools['sharp'] ?? '', /^\d/)
  })

  it('turns the pixels by the EXIF orientation', async () => {
    const before = await twoColours().withMetadata({ orientation: 6 }).jpeg().toBuffer()
    const { facts, picture } = await normalise(before)
    assert.deepEqual([facts.widthPixels, facts.heightPixels], [20, 40])
    near(await pixel(picture, 10, 5), [255, 0, 0])
    near(await pixel(picture, 10, 35), [0, 0, 255])
    assert.equal((await sharp(picture).metadata()).orientation, undefined)
  })

  it('converts Display P3 to sRGB and drops the profile', async () => {
    const before = await twoColours().withIccProfile('p3').png().toBuffer()
    // What the file stores is not the colour that is meant.
    const [stored] = await sharp(before, { ignoreIcc: true }).raw().toBuffer()
    assert.ok((stored ?? 0) < 240)
    const { facts, picture } = await normalise(before)
    near(await pixel(picture, 5, 5), [255, 0, 0])
    assert.ok(facts.removed.includes('icc'))
    assert.equal((await sharp(picture).metadata()).icc, undefined)
  })

  it('converts CMYK and 16 bits to 8-bit sRGB', async () => {
    const cmyk = await twoColours().toColourspace('cmyk').jpeg().toBuffer()
    assert.equal((await sharp(cmyk).metadata()).space, 'cmyk')
    assert.equal((await sharp((await normalise(cmyk)).picture).metadata()).space, 'srgb')
    const deep = await twoColours().toColourspace('rgb16').png().toBuffer()
    assert.equal((await sharp(deep).metadata()).depth, 'ushort')
    assert.equal((await sharp((await normalise(deep)).picture).metadata()).depth, 'uchar')
  })

  it('drops a film behind the end of a JPEG and its further segments', async () => {
    const plain = await twoColours().jpeg().toBuffer()
    const comment = Buffer.from('fffe000c63616e617279212121', 'hex')
    const before = Buffer.concat([
      plain.subarray(0, 2),
      Buffer.from('fffe000a', 'hex'),
      Buffer.from('comment!'),
      plain.subarray(2),
      Buffer.from('ftypmp42 canary film'),
      comment,
    ])
    const { facts, picture } = await normalise(before)
    assert.deepEqual(facts.removed, ['comment', 'trailer'])
    assert.ok(!picture.includes('canary') && !picture.includes('comment'))
    assert.equal(picture.toString('hex', picture.length - 2), 'ffd9')
  })

  it('keeps every bit of a PNG and its transparency, and none of its texts', async () => {
    const raw = Buffer.from(Array.from({ length: 16 * 16 * 4 }, (_, i) => (i * 37) % 256))
    const plain = await sharp(raw, { raw: { width: 16, height: 16, channels: 4 } })
      .png()
      .toBuffer()
    const before = Buffer.concat([
      plain.subarray(0, 33),
      pngChunk('tEXt', Buffer.from('Author\0canary')),
      pngChunk('tIME', Buffer.from([7, 234, 1, 1, 1, 1, 1])),
      pngChunk('prVt', Buffer.from('canary')),
      plain.subarray(33),
      Buffer.from('canary behind the end'),
    ])
    const { facts, picture } = await normalise(before)
    assert.ok(!picture.includes('canary'))
    assert.deepEqual(facts.removed, ['other', 'resolution', 'text', 'time', 'trailer'])
    assert.deepEqual(await sharp(picture).raw().toBuffer(), raw)
  })

  it('makes a PNG of a WebP, and of the first frame of an animated one', async () => {
    const still = await twoColours().withExif(exif).webp({ lossless: true }).toBuffer()
    const { facts, picture } = await normalise(still)
    assert.deepEqual(facts.removed, ['exif', 'gps'])
    assert.deepEqual([facts.extension, facts.codec], ['png', 'png'])
    near(await pixel(picture, 5, 5), [255, 0, 0], 0)
    const frames = await Promise.all(
      ['lime', 'blue'].map((background) =>
        sharp({ create: { width: 30, height: 10, channels: 3, background } })
          .png()
          .toBuffer(),
      ),
    )
    const animated = await sharp(frames, { join: { animated: true } })
      .webp({ lossless: true })
      .toBuffer()
    assert.equal((await sharp(animated, { animated: true }).metadata()).pages, 2)
    const first = await normalise(animated)
    assert.deepEqual([first.facts.widthPixels, first.facts.heightPixels], [30, 10])
    near(await pixel(first.picture, 5, 5), [0, 255, 0], 0)
    assert.ok(first.facts.removed.includes('animation'))
  })

  it('leaves out further pages where only the first is wanted', async () => {
    const pages = ['lime', 'blue'].map((background) =>
      sharp({ create: { width: 30, height: 10, channels: 3, background } })
        .png()
        .toBuffer(),
    )
    const document = await sharp(await Promise.all(pages), { join: { animated: true } })
      .tiff({ compression: 'deflate' })
      .toBuffer()
    const all = await normaliseAll(document, { pages: 'all' })
    assert.equal(all.length, 2)
    assert.ok(all.every(({ removed }) => !removed.includes('further-pictures')))
    const [first, ...none] = await normaliseAll(document, { pages: 'first' })
    assert.ok(first)
    assert.ok(first.removed.includes('further-pictures'))
    near(await pixel(first.picture, 5, 5), [0, 255, 0], 0)
    assert.deepEqual(none, [])
  })

  it('spends more work on fewer bytes where the link asks for it, and loses nothing by it', async () => {
    const lines = Buffer.from(
      Array.from({ length: 300 * 200 * 3 }, (_, i) => (i % 97 < 60 ? 255 : i % 7)),
    )
    const shot = sharp(lines, { raw: { width: 300, height: 200, channels: 3 } })
    const drawn = await shot.clone().png().toBuffer()
    const [quick, small] = await Promise.all([
      normaliseAll(drawn, { effort: 'quick' }),
      normaliseAll(drawn, { effort: 'small' }),
    ])
    const [less, more] = [small[0]?.picture, quick[0]?.picture]
    assert.ok(less && more && less.length < more.length)
    assert.ok((await sharp(less).raw().toBuffer()).equals(lines))
    assert.ok((await sharp(more).raw().toBuffer()).equals(lines))
    const seen = await shot.clone().jpeg().toBuffer()
    const [fast] = await normaliseAll(seen, { effort: 'quick' })
    const [thin] = await normaliseAll(seen, { effort: 'small' })
    assert.ok(fast && thin && thin.picture.length < fast.picture.length)
    assert.ok(
      (await sharp(thin.picture).raw().toBuffer()).equals(
        await sharp(fast.picture).raw().toBuffer(),
      ),
    )
  })

  it('refuses pictures that are cut short, wherever', async () => {
    const raw = Buffer.from(Array.from({ length: 200 * 200 * 3 }, (_, i) => (i * i) % 251))
    const picture = sharp(raw, { raw: { width: 200, height: 200, channels: 3 } })
    const whole = [
      await picture.clone().jpeg().toBuffer(),
      await picture.clone().jpeg({ progressive: true }).toBuffer(),
      await picture.clone().png().toBuffer(),
      await picture.clone().webp().toBuffer(),
    ]
    for (const bytes of whole) {
      await normalise(bytes)
      for (const part of [0.5, 0.95]) {
        const cut = bytes.subarray(0, Math.floor(bytes.length * part))
        await assert.rejects(normalise(cut), { code: 'media.corrupt' })
      }
    }
  })

  it('refuses a picture whose header promises too many pixels, before decoding', async () => {
    const png = await twoColours().png().toBuffer()
    const wide = pngChunk('IHDR', Buffer.from(png.subarray(16, 29)))
    for (const [width, height] of [
      [16_385, 10],
      [16_000, 16_000],
    ] as const) {
      wide.writeUInt32BE(width, 8)
      wide.writeUInt32BE(height, 12)
      wide.writeUInt32BE(crc32(wide.subarray(4, -4)), wide.length - 4)
      const lying = Buffer.concat([png.subarray(0, 8), wide, png.subarray(33)])
      await assert.rejects(normalise(lying), { code: 'media.too_large' })
    }
  })
})

describe('the check of what was written', () => {
  it('refuses any segment or byte in a JPEG that has no place there', async () => {
    const { picture } = await normalise(await twoColours().jpeg().toBuffer())
    checkClean(picture)
    checkClean(Buffer.concat([picture.subarray(0, 2), plainJfif, picture.subarray(2)]))
    const dirty = [
      Buffer.concat([picture, Buffer.from('x')]),
      Buffer.concat([
        picture.subarray(0, 2),
        Buffer.from('ffe1000441', 'hex'),
        picture.subarray(2),
      ]),
      Buffer.concat([
        picture.subarray(0, 2),
        Buffer.from('fffe000441ff', 'hex'),
        picture.subarray(2),
      ]),
      Buffer.concat([
        picture.subarray(0, 2),
        Buffer.from(plainJfif).fill(72, 14, 16),
        picture.subarray(2),
      ]),
      picture.subarray(0, -2),
      await twoColours().withExif(exif).jpeg().toBuffer(),
    ]
    for (const bytes of dirty) assert.throws(() => checkClean(bytes), { code: 'media.not_clean' })
  })

  it('refuses any chunk in a PNG that has no place there, and a wrong checksum', async () => {
    const picture = stripPng(await twoColours().png().toBuffer())
    checkClean(picture)
    const dirty = [
      Buffer.concat([picture, Buffer.from('x')]),
      await twoColours().withExif(exif).png().toBuffer(),
      Buffer.from(picture).fill(9, 20, 21),
      picture.subarray(0, -4),
    ]
    for (const bytes of dirty) assert.throws(() => checkClean(bytes), { code: 'media.not_clean' })
  })
})
