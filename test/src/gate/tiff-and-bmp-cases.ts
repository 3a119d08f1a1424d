/** TIFF: pages, depths, raw files in disguise. BMP: every way to write one. */

import assert from 'node:assert/strict'

import sharp from 'sharp'

import type { GateCase } from './cases.ts'
import { bmpRows, makeBmp, makeTiff, rgbPage } from './make-pictures.ts'
import type { BmpForm, TiffPage } from './make-pictures.ts'
import { drawScene, picture, pixelsOf, turned } from './pixels.ts'
import { file, firstBytes, looksLike } from './write-case.ts'

const scene = drawScene()
const other = turned(scene, 3)

async function exactly(bytes: Buffer, wanted: { data: Buffer }): Promise<void> {
  assert.deepEqual((await pixelsOf(bytes)).data, wanted.data)
}

/** What a camera's raw file has in front of its sensor data: a small picture that any viewer shows. */
const preview = rgbPage(drawScene(16, 8), [[254, 4, [1]]])
const sensor: TiffPage = {
  entries: [
    [256, 4, [16]],
    [257, 4, [8]],
    [258, 3, [16]],
    [259, 3, [1]],
    [262, 3, [32_803]],
    [277, 3, [1]],
    [278, 4, [8]],
  ],
  strip: Buffer.alloc(256),
}
function labRed(pixels: number): Buffer {
  return Buffer.alloc(pixels * 3, Buffer.from([136, 80, 67]))
}

const raw = { code: 'media.unsupported', says: /camera raw[\s\S]*converter/ } as const

const tiff: readonly GateCase[] = [
  {
    name: 'a TIFF with texts, position and Photoshop data',
    quick: true,
    make: file('a.tif', () =>
      makeTiff([
        rgbPage(scene, [
          [270, 2, Buffer.from('canary-description\0')],
          [305, 2, Buffer.from('canary-software\0')],
          [315, 2, Buffer.from('canary-artist\0')],
          [700, 1, Buffer.from('<x>canary-xmp</x>')],
          [33_922, 2, Buffer.from('canary-tiepoint\0')],
          [34_377, 1, Buffer.from('8BIMcanary-photoshop')],
          [65_000, 2, Buffer.from('canary-private\0')],
        ]),
      ]),
    ),
    leaves: ['png'],
    gone: [
      ...['canary-description', 'canary-software', 'canary-artist', 'canary-xmp'],
      ...['canary-tiepoint', 'canary-photoshop', 'canary-private'],
    ],
    removed: ['author', 'gps', 'iptc', 'other', 'software', 'text', 'xmp'],
    equal: async (outcomes) => exactly(firstBytes(outcomes), scene),
  },
  {
    name: 'a TIFF of three pages and a thumbnail: three media',
    quick: true,
    make: file('a.tif', () =>
      makeTiff([
        rgbPage(scene),
        rgbPage(drawScene(4, 4), [[254, 4, [1]]]),
        rgbPage(other),
        rgbPage(scene),
      ]),
    ),
    leaves: ['png', 'png', 'png'],
    removed: ['thumbnail'],
    async equal([first, second, third]) {
      assert.deepEqual(
        [first, second, third].map((page) => page?.furtherPage),
        [undefined, true, true],
      )
      await exactly(second?.bytes ?? Buffer.alloc(0), other)
      await exactly(third?.bytes ?? Buffer.alloc(0), scene)
    },
  },
  {
    name: 'a TIFF of more pages than are taken',
    make: file('a.tif', () => makeTiff(Array.from({ length: 51 }, () => rgbPage(drawScene(4, 4))))),
    refused: { code: 'media.too_large', says: /pages/ },
  },
  {
    name: 'a BigTIFF',
    make: file('a.tif', () => makeTiff([rgbPage(scene)], { big: true })),
    leaves: ['png'],
    equal: async (outcomes) => exactly(firstBytes(outcomes), scene),
  },
  ...[2, 4, 6, 7].map((orientation): GateCase => ({
    name: `a TIFF lying in way ${orientation}`,
    make: file('a.tif', () => makeTiff([rgbPage(scene, [[274, 3, [orientation]]])])),
    leaves: ['png'],
    equal: async (outcomes) => exactly(firstBytes(outcomes), turned(scene, orientation)),
  })),
  ...(['lzw', 'deflate', 'packbits', 'jpeg'] as const).map((compression): GateCase => ({
    name: `a TIFF compressed with ${compression}`,
    make: file('a.tif', () => picture(scene).tiff({ compression, quality: 98 }).toBuffer()),
    leaves: ['png'],
    equal: looksLike(scene, 2),
  })),
  {
    name: 'a TIFF in tiles with reduced copies of itself',
    make: file('a.tif', () =>
      picture(drawScene(300, 300))
        .tiff({ tile: true, pyramid: true, tileWidth: 64, tileHeight: 64, compression: 'lzw' })
        .toBuffer(),
    ),
    leaves: ['png'],
    equal: looksLike(drawScene(300, 300), 1),
  },
  {
    name: 'a TIFF in CMYK with its profile',
    make: file('a.tif', () =>
      picture(scene)
        .withIccProfile('cmyk')
        .toColourspace('cmyk')
        .tiff({ compression: 'lzw' })
        .toBuffer(),
    ),
    leaves: ['png'],
    removed: ['icc'],
    equal: looksLike(scene, 6),
  },
  {
    name: 'a TIFF in Lab',
    make: file('a.tif', () => {
      // L 53.2 of 100, a 80, b 67: the red of sRGB.
      const page = rgbPage({ width: 16, height: 16, channels: 3, data: labRed(256) })
      const entries = page.entries.map((entry) =>
        entry[0] === 262 ? ([262, 3, [8]] as const) : entry,
      )
      return makeTiff([{ ...page, entries }])
    }),
    leaves: ['png'],
    async equal(outcomes) {
      const [red = 0, green = 0, blue = 0] = (await pixelsOf(firstBytes(outcomes))).data
      assert.ok(red > 245 && green < 20 && blue < 20, `${red} ${green} ${blue}`)
    },
  },
  {
    name: 'a TIFF of 16 bits keeps them in the faithful profile',
    profile: 'faithful',
    make: file('a.tif', () =>
      picture(scene).toColourspace('rgb16').tiff({ compression: 'lzw' }).toBuffer(),
    ),
    leaves: ['png'],
    async equal(outcomes) {
      assert.equal((await sharp(firstBytes(outcomes)).metadata()).depth, 'ushort')
    },
  },
  {
    name: 'a TIFF of floating point numbers',
    make: file('a.tif', () => {
      const page = rgbPage(drawScene(4, 4))
      const entries = page.entries.map((entry) =>
        entry[0] === 258 ? ([258, 3, [32, 32, 32]] as const) : entry,
      )
      return makeTiff([{ entries: [...entries, [339, 3, [3, 3, 3]]], strip: Buffer.alloc(192) }])
    }),
    refused: { code: 'media.unsupported', says: /16 bits/ },
  },
  {
    name: 'a TIFF cut short',
    make: file('a.tif', () => {
      // Its directory behind the strip is gone.
      const whole = makeTiff([rgbPage(scene)])
      return whole.subarray(0, whole.length - 300)
    }),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'a TIFF whose strip reaches behind its end',
    make: file('a.tif', () => {
      const page = rgbPage(scene)
      const entries = [...page.entries, [273, 4, [8]], [279, 4, [1_000_000]]] as const
      return makeTiff([{ entries }])
    }),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'a DNG',
    make: file('a.dng', () => makeTiff([rgbPage(scene, [[50_706, 1, [1, 4, 0, 0]]])])),
    refused: raw,
  },
  {
    name: 'a NEF: a preview, and the sensor in a directory of its own',
    quick: true,
    make: file('a.nef', () => makeTiff([{ ...preview, children: [rgbPage(scene), sensor] }])),
    refused: raw,
  },
  {
    name: 'a PEF: the sensor in the first directory',
    make: file('a.tif', () => makeTiff([sensor])),
    refused: raw,
  },
  {
    name: 'a CR2',
    make: file('a.cr2', () => {
      const whole = makeTiff([rgbPage(scene)])
      whole.write('CR', 8, 'latin1')
      return whole
    }),
    refused: raw,
  },
]

const rows24 = bmpRows(scene, (r, g, b) => [b, g, r])
const shape = { width: scene.width, height: scene.height }
const grey = Array.from({ length: 256 }, (_, i) => [i, i, i] as const)
const indices = (bits: number) => bmpRowsOfIndices(bits)

/** Every pixel its column, in so many bits. */
function bmpRowsOfIndices(bits: number): Buffer {
  const perByte = 8 / bits
  const row = Buffer.alloc(Math.ceil((scene.width * bits) / 32) * 4)
  for (let x = 0; x < scene.width; x++) {
    const at = Math.floor(x / perByte)
    row[at] = (row[at] ?? 0) | ((x % 2 ** bits) << (8 - bits * ((x % perByte) + 1)))
  }
  return Buffer.concat(Array.from({ length: scene.height }, () => row))
}

async function columnsOf(outcomes: Parameters<typeof firstBytes>[0], bits: number): Promise<void> {
  const { data } = await pixelsOf(firstBytes(outcomes))
  for (let x = 0; x < scene.width; x++) assert.equal(data[3 * x], x % 2 ** bits, `column ${x}`)
}

function bmpCase(name: string, form: BmpForm, more: Partial<GateCase> = {}): GateCase {
  return { name, make: file('a.bmp', () => makeBmp(form)), leaves: ['png'], ...more }
}

const bmp: readonly GateCase[] = [
  bmpCase(
    'a BMP of 24 bits',
    { ...shape, bits: 24, data: rows24 },
    {
      quick: true,
      equal: async (outcomes) => exactly(firstBytes(outcomes), scene),
    },
  ),
  bmpCase(
    'a BMP from top to bottom',
    {
      ...shape,
      bits: 24,
      topDown: true,
      data: bmpRows(turned(scene, 4), (r, g, b) => [b, g, r]),
    },
    { equal: async (outcomes) => exactly(firstBytes(outcomes), scene) },
  ),
  bmpCase(
    'a BMP of OS/2',
    { ...shape, headerBytes: 12, bits: 24, data: rows24 },
    {
      equal: async (outcomes) => exactly(firstBytes(outcomes), scene),
    },
  ),
  bmpCase(
    'a BMP of 32 bits without alpha',
    {
      ...shape,
      bits: 32,
      data: bmpRows(scene, (r, g, b) => [b, g, r, 0]),
    },
    { equal: async (outcomes) => exactly(firstBytes(outcomes), scene) },
  ),
  bmpCase(
    'a BMP of 32 bits with alpha',
    {
      ...shape,
      headerBytes: 124,
      bits: 32,
      compression: 3,
      masks: [0xff0000, 0xff00, 0xff, 0xff000000],
      data: bmpRows(scene, (r, g, b) => [b, g, r, 128]),
    },
    {
      async equal(outcomes) {
        assert.equal((await sharp(firstBytes(outcomes)).metadata()).hasAlpha, true)
        await exactly(firstBytes(outcomes), scene)
      },
    },
  ),
  bmpCase(
    'a BMP of 16 bits by masks',
    {
      ...shape,
      bits: 16,
      compression: 3,
      masks: [0xf800, 0x07e0, 0x001f],
      data: bmpRows(scene, (r, g, b) => {
        const value = ((r >> 3) << 11) | ((g >> 2) << 5) | (b >> 3)
        return [value & 255, value >> 8]
      }),
    },
    { equal: looksLike(scene, 3) },
  ),
  bmpCase(
    'a BMP of 16 bits without masks',
    {
      ...shape,
      bits: 16,
      data: bmpRows(scene, (r, g, b) => {
        const value = ((r >> 3) << 10) | ((g >> 3) << 5) | (b >> 3)
        return [value & 255, value >> 8]
      }),
    },
    { equal: looksLike(scene, 3) },
  ),
  ...([8, 4, 1] as const).map((bits) =>
    bmpCase(
      `a BMP of ${bits} bits`,
      {
        ...shape,
        bits,
        palette: grey.slice(0, 2 ** bits),
        data: indices(bits),
      },
      { equal: async (outcomes) => columnsOf(outcomes, bits) },
    ),
  ),
  bmpCase(
    'a BMP in runs of 8 bits',
    {
      ...shape,
      bits: 8,
      compression: 1,
      palette: grey,
      // A run, copied indices, the end of the line; then a jump, and the end.
      data: Buffer.from([10, 7, 0, 3, 1, 2, 3, 0, 0, 0, 0, 2, 5, 1, 4, 9, 0, 1]),
    },
    {
      async equal(outcomes) {
        const { data } = await pixelsOf(firstBytes(outcomes))
        const at = (x: number, y: number) => data[((scene.height - 1 - y) * scene.width + x) * 3]
        assert.deepEqual([at(0, 0), at(9, 0), at(10, 0), at(12, 0), at(13, 0)], [7, 7, 1, 3, 0])
        assert.deepEqual([at(4, 2), at(5, 2), at(8, 2), at(9, 2)], [0, 9, 9, 0])
      },
    },
  ),
  bmpCase(
    'a BMP in runs of 4 bits',
    {
      ...shape,
      bits: 4,
      compression: 2,
      palette: grey.slice(0, 16),
      data: Buffer.from([5, 0x12, 0, 4, 0x34, 0x56, 0, 0, 0, 1]),
    },
    {
      async equal(outcomes) {
        const { data } = await pixelsOf(firstBytes(outcomes))
        const row = (scene.height - 1) * scene.width * 3
        assert.deepEqual(
          Array.from({ length: 9 }, (_, x) => data[row + 3 * x]),
          [1, 2, 1, 2, 1, 3, 4, 5, 6],
        )
      },
    },
  ),
  bmpCase(
    'a BMP with something behind its end',
    {
      ...shape,
      bits: 24,
      data: rows24,
      trailer: Buffer.from('canary-trailer'),
    },
    { gone: ['canary-trailer'], removed: ['trailer'] },
  ),
  {
    name: 'a BMP cut short',
    make: file('a.bmp', () => makeBmp({ ...shape, bits: 24, data: rows24 }).subarray(0, 1000)),
    refused: { code: 'media.corrupt', says: /at byte 1000/ },
  },
  {
    name: 'a BMP that holds a JPEG',
    make: file('a.bmp', () => makeBmp({ ...shape, bits: 24, compression: 4, data: rows24 })),
    refused: { code: 'media.unsupported', says: /coded/ },
  },
  {
    name: 'a BMP whose header promises a gigapixel',
    make: file('a.bmp', () => makeBmp({ width: 40_000, height: 40_000, bits: 24, data: rows24 })),
    refused: { code: 'media.too_large', says: /pixels/ },
  },
]

export const tiffAndBmpCases: readonly GateCase[] = [...tiff, ...bmp]
