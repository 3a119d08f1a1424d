/**
 * Pictures with faults that lose nothing, as every viewer takes them; and beside them those that look like it and
 * have lost pixels.
 */

import assert from 'node:assert/strict'
import { deflateSync } from 'node:zlib'

import sharp from 'sharp'

import type { GateCase } from './cases.ts'
import { chunk, exifBlock, makeBmp, makeTiff, rgbPage, withChunks } from './make-pictures.ts'
import { drawScene, picture, pixelsOf, turned } from './pixels.ts'
import { file, firstBytes, looksLike } from './write-case.ts'

const scene = drawScene()
const png = () => picture(scene).png().toBuffer()
const jpeg = () => picture(scene).jpeg({ quality: 95, chromaSubsampling: '4:4:4' }).toBuffer()
const progressive = () => picture(scene).jpeg({ quality: 95, progressive: true }).toBuffer()
const gif = () => picture(scene).gif().toBuffer()
const corrupt = { code: 'media.corrupt', says: /at byte \d+/ } as const

/** Rows that are alike only two rows away, compressed as if nobody looked back that far. */
async function smallWindow(): Promise<Buffer> {
  const [width, height] = [64, 8]
  const row = (seed: number) =>
    Buffer.from(Array.from({ length: width * 3 }, (_, i) => (i * seed * 97 + i * i) % 251))
  const rows = Array.from({ length: height }, (_, y) => [Buffer.from([0]), row(1 + (y % 3))])
  const data = deflateSync(Buffer.concat(rows.flat()), { level: 9 })
  data.set([0x08, 0x1d])
  const header = Buffer.from([0, 0, 0, width, 0, 0, 0, height, 8, 2, 0, 0, 0])
  const signature = Buffer.from('89504e470d0a1a0a', 'hex')
  const parts = [chunk('IHDR', header), chunk('IDAT', data), chunk('IEND', '')]
  const bytes = Buffer.concat([signature, ...parts])
  await assert.rejects(sharp(bytes).raw().toBuffer(), 'a decoder takes it as it is')
  return bytes
}

const pngs: readonly GateCase[] = [
  {
    name: 'a PNG without its end',
    quick: true,
    make: file('a.png', async () => (await png()).subarray(0, -12)),
    leaves: ['png'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a PNG cut in a text behind its picture',
    make: file('a.png', async () =>
      Buffer.concat([
        (await png()).subarray(0, -12),
        chunk('tEXt', 'Comment\0canary-text').subarray(0, -2),
      ]),
    ),
    leaves: ['png'],
    gone: ['canary-text'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a PNG cut in the last bytes of its picture',
    make: file('a.png', async () => (await png()).subarray(0, -20)),
    refused: corrupt,
  },
  {
    name: 'a PNG as Xcode packs it',
    make: file('a.png', async () => {
      const bytes = await png()
      return Buffer.concat([
        bytes.subarray(0, 8),
        chunk('CgBI', Buffer.alloc(4)),
        bytes.subarray(8),
      ])
    }),
    refused: { code: 'media.unsupported', says: /Export the picture/ },
  },
  {
    name: 'a PNG whose data look back farther than they say',
    quick: true,
    make: file('a.png', smallWindow),
    leaves: ['png'],
  },
  ...(['tEXt', 'zTXt'] as const).map((name): GateCase => {
    const exif = Buffer.concat([Buffer.from('Exif\0\0'), exifBlock(6)])
    const hex = exif.toString('hex').replaceAll(/.{72}/g, '$&\n')
    const text = Buffer.from(`\nexif\n${String(exif.length).padStart(8)}\n${hex}\n`)
    const content = name === 'tEXt' ? text : Buffer.concat([Buffer.from([0]), deflateSync(text)])
    const keyword = Buffer.from('Raw profile type exif\0')
    return {
      name: `a PNG lying, as EXIF in a ${name} says`,
      make: file('a.png', async () =>
        withChunks(await png(), chunk(name, Buffer.concat([keyword, content]))),
      ),
      leaves: ['png'],
      removed: ['exif', 'gps', 'text', 'thumbnail'],
      equal: looksLike(turned(scene, 6), 0),
    }
  }),
]

/** A JPEG that has lost some bytes in the middle of its coded data. */
async function holed(): Promise<Buffer> {
  const bytes = await jpeg()
  const hole = bytes.indexOf(Buffer.from('ffda', 'hex')) + 120
  return Buffer.concat([bytes.subarray(0, hole), bytes.subarray(hole + 60)])
}

const jpegs: readonly GateCase[] = [
  {
    name: 'a JPEG without its end',
    quick: true,
    make: file('a.jpg', async () => (await jpeg()).subarray(0, -2)),
    leaves: ['jpg'],
    equal: looksLike(scene),
  },
  {
    name: 'a progressive JPEG without its end',
    make: file('a.jpg', async () => (await progressive()).subarray(0, -2)),
    leaves: ['jpg'],
    equal: looksLike(scene, 5),
  },
  {
    name: 'a JPEG cut in its last bytes',
    make: file('a.jpg', async () => (await jpeg()).subarray(0, -8)),
    refused: corrupt,
  },
  {
    name: 'a progressive JPEG cut between two passes',
    make: file('a.jpg', async () => {
      const bytes = await progressive()
      return bytes.subarray(0, bytes.lastIndexOf(Buffer.from('ffc4', 'hex')))
    }),
    refused: corrupt,
  },
  {
    name: 'a JPEG with a hole',
    make: file('a.jpg', holed),
    refused: corrupt,
  },
  {
    name: 'a JPEG with a hole, salvaged and called so',
    salvage: true,
    make: file('a.jpg', holed),
    leaves: ['jpg'],
    equal: ([first]) => assert.equal(first?.partial, true),
  },
  {
    name: 'a JPEG that needs no salvaging',
    salvage: true,
    make: file('a.jpg', async () => (await jpeg()).subarray(0, -2)),
    leaves: ['jpg'],
    equal: ([first]) => assert.equal(first?.partial, undefined),
  },
]

/** Where the frame of a GIF of one frame begins, and where its sub-blocks. */
function placesOf(bytes: Buffer): { frameAt: number; blocks: number[] } {
  const frameAt = bytes.indexOf(0x2c, 13 + 3 * 2 ** (((bytes[10] ?? 0) & 7) + 1))
  const blocks: number[] = []
  for (let at = frameAt + 11; (bytes[at] ?? 0) > 0; at += 1 + (bytes[at] ?? 0)) blocks.push(at)
  return { frameAt, blocks }
}

const gifs: readonly GateCase[] = [
  {
    name: 'a GIF with an end of blocks too many',
    quick: true,
    make: file('a.gif', async () => {
      const bytes = await gif()
      return Buffer.concat([bytes.subarray(0, -1), Buffer.from([0, 0]), bytes.subarray(-1)])
    }),
    leaves: ['png'],
    equal: looksLike(scene, 6),
  },
  {
    name: 'a GIF cut behind its last pixel',
    make: file('a.gif', async () => (await gif()).subarray(0, -3)),
    leaves: ['png'],
    equal: looksLike(scene, 6),
  },
  {
    name: 'a GIF whose blocks end before its pixels',
    quick: true,
    make: file('a.gif', async () => {
      const bytes = await gif()
      return Buffer.concat([bytes.subarray(0, placesOf(bytes).blocks.at(-1)), bytes.subarray(-2)])
    }),
    refused: corrupt,
  },
  {
    name: 'a GIF of codes that mean nothing',
    make: file('a.gif', async () => {
      const bytes = Buffer.from(await gif())
      const [first = 0] = placesOf(bytes).blocks
      bytes.fill(0xff, first + 40, first + 60)
      return bytes
    }),
    refused: corrupt,
  },
]

/** A white pixel in codes of eight bits: clear, the pixel, and perhaps the end. */
function onePixel(...codes: readonly number[]): Buffer {
  const head = Buffer.from('GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff', 'latin1')
  const frame = [0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 7, codes.length, ...codes, 0]
  return Buffer.concat([head, Buffer.from([...frame, 0x3b])])
}

const pixels: readonly GateCase[] = [
  ['with the code of its end', onePixel(0x80, 1, 0x81)] as const,
  ['without the code of its end', onePixel(0x80, 1)] as const,
].map(([name, bytes]) => ({
  name: `a GIF ${name}`,
  make: file('a.gif', () => bytes),
  leaves: ['png'],
  equal: async (outcomes) => {
    assert.deepEqual([...(await pixelsOf(firstBytes(outcomes))).data], [255, 255, 255])
  },
}))

const grey = Array.from({ length: 16 }, (_, i) => [i * 16, i * 16, i * 16] as const)
const bmpShape = { width: 16, height: 4, palette: grey, compression: 0, bits: 8 } as const
const columns = Buffer.from(Array.from({ length: 64 }, (_, i) => i % 16))

async function isStriped(bytes: Buffer): Promise<void> {
  const { data } = await pixelsOf(bytes)
  for (const x of [1, 7, 15]) assert.equal(data[x * 3], x * 16)
}

const bmps: readonly GateCase[] = [
  ...[54, 0].map((place): GateCase => ({
    name: `a BMP that says its pixels are at ${place}, before its palette ends`,
    make: file('a.bmp', () => {
      const bytes = makeBmp({ ...bmpShape, data: columns })
      bytes.writeUInt32LE(place, 10)
      return bytes
    }),
    leaves: ['png'],
    equal: async (outcomes) => isStriped(firstBytes(outcomes)),
  })),
  {
    name: 'a BMP in runs without the code of its end',
    make: file('a.bmp', () => {
      const rows = Array.from({ length: 4 }, () => [0, 16, ...columns.subarray(0, 16)])
      const data = Buffer.from(rows.flatMap((row, i) => (i === 3 ? row : [...row, 0, 0])))
      return makeBmp({ ...bmpShape, compression: 1, data })
    }),
    leaves: ['png'],
    equal: async (outcomes) => isStriped(firstBytes(outcomes)),
  },
  {
    name: 'a BMP in runs that jumps out of its picture',
    make: file('a.bmp', () =>
      makeBmp({ ...bmpShape, compression: 1, data: Buffer.from([0, 2, 200, 0, 4, 9, 0, 1]) }),
    ),
    refused: corrupt,
  },
  {
    name: 'a BMP in runs that copies more than the file has',
    make: file('a.bmp', () =>
      makeBmp({ ...bmpShape, compression: 1, data: Buffer.from([0, 16, 1, 2, 3]) }),
    ),
    refused: corrupt,
  },
]

const tiffs: readonly GateCase[] = [
  {
    name: 'a TIFF whose last page leads back to its first',
    quick: true,
    make: file('a.tif', () => {
      const bytes = makeTiff([rgbPage(scene), rgbPage(turned(scene, 3))])
      const first = bytes.readUInt32LE(4)
      const second = bytes.readUInt32LE(first + 2 + 12 * bytes.readUInt16LE(first))
      bytes.writeUInt32LE(first, second + 2 + 12 * bytes.readUInt16LE(second))
      return bytes
    }),
    leaves: ['png', 'png'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a TIFF whose only page calls itself reduced',
    make: file('a.tif', () => makeTiff([rgbPage(scene, [[254, 4, [1]]])])),
    leaves: ['png'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a TIFF that says more bytes for its strip than the file has',
    make: file('a.tif', () => withStripBytes(36_000_000)),
    leaves: ['png'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a TIFF that says fewer bytes for its strip than its rows take',
    make: file('a.tif', () => withStripBytes(700)),
    leaves: ['png'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a TIFF that says fewer bytes for its strip, and has fewer',
    make: file('a.tif', () => {
      const { entries, strip } = rgbPage(scene)
      return makeTiff([{ entries, strip: strip?.subarray(0, 700) ?? Buffer.alloc(0) }])
    }),
    refused: corrupt,
  },
]

const webp = () => picture(scene).webp({ lossless: true }).toBuffer()

/** The size that a RIFF file says of itself, made larger. */
function saysMore(bytes: Buffer, more: number): Buffer {
  const other = Buffer.from(bytes)
  other.writeUInt32LE(other.readUInt32LE(4) + more, 4)
  return other
}

const webps: readonly GateCase[] = [
  {
    name: 'a WebP that says it goes on behind its picture',
    make: file('a.webp', async () => saysMore(await webp(), 100)),
    leaves: ['png'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a WebP cut in the metadata behind its picture',
    make: file('a.webp', async () => {
      const bytes = await picture(scene)
        .withXmp('<x>canary-xmp</x>')
        .webp({ lossless: true })
        .toBuffer()
      return bytes.subarray(0, -3)
    }),
    leaves: ['png'],
    gone: ['canary-xmp'],
    removed: ['xmp'],
    equal: looksLike(scene, 0),
  },
  {
    name: 'a WebP cut in its picture',
    make: file('a.webp', async () => (await webp()).subarray(0, -20)),
    refused: corrupt,
  },
  {
    name: 'an animated WebP cut between two frames',
    make: file('a.webp', async () => {
      const frames = ['red', 'lime', 'blue'].map((background) =>
        sharp({ create: { width: 30, height: 20, channels: 3, background } })
          .png()
          .toBuffer(),
      )
      const bytes = await sharp(await Promise.all(frames), { join: { animated: true } })
        .webp({ lossless: true })
        .toBuffer()
      return bytes.subarray(0, bytes.lastIndexOf('ANMF'))
    }),
    refused: corrupt,
  },
]

function withStripBytes(count: number): Buffer {
  const bytes = makeTiff([rgbPage(scene)])
  const directory = bytes.readUInt32LE(4)
  for (let at = directory + 2; at < bytes.length - 12; at += 12) {
    if (bytes.readUInt16LE(at) === 279) bytes.writeUInt32LE(count, at + 8)
  }
  return bytes
}

export const wornPictureCases: readonly GateCase[] = [
  ...pngs,
  ...jpegs,
  ...gifs,
  ...pixels,
  ...bmps,
  ...tiffs,
  ...webps,
]
