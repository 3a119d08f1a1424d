/** Small files that want much: memory, time or depth. Each is refused, within bounds that `bombs.long.test.ts` measures. */

import { truncateSync } from 'node:fs'
import { deflateSync } from 'node:zlib'

import { oggPage } from '@sluice/agent/capture/ogg-page.test-setup'

import type { GateCase } from './cases.ts'
import { be32, box, bytesNamed, changed, film, h264, le32, tone } from './make-films.ts'
import { box as heifBox, u16, u32 } from './make-heif.ts'
import { chunk as pngChunk, makeTiff, rgbPage, withChunks } from './make-pictures.ts'
import { drawScene, picture } from './pixels.ts'
import { file } from './write-case.ts'

const MiB = 1024 ** 2
const scene = drawScene(64, 64)
const needs = ['ffmpeg'] as const
const corrupt = { code: 'media.corrupt' as const }
const tooLarge = { code: 'media.too_large' as const }
const unsupported = { code: 'media.unsupported' as const }

/** The same bytes again and again. */
function times(count: number, part: Buffer): Buffer {
  const whole = Buffer.alloc(count * part.length)
  return whole.fill(part)
}

const png = () => picture(scene).png().toBuffer()
const zeros = () => deflateSync(Buffer.alloc(256 * MiB), { level: 1 })

const pictures: readonly GateCase[] = [
  {
    name: 'a bomb: a PNG whose pixels unpack to a thousand times what its header says',
    make: file('a.png', async () => {
      const whole = await png()
      const from = whole.indexOf('IDAT') - 4
      return Buffer.concat([
        whole.subarray(0, from),
        pngChunk('IDAT', zeros()),
        pngChunk('IEND', ''),
      ])
    }),
    // What is behind the last pixel is not unpacked.
    leaves: ['png'],
  },
  {
    name: 'a bomb: an animated PNG of four hundred thousand frames',
    make: file('a.png', async () => {
      const control = Buffer.alloc(26)
      control.writeUInt32BE(64, 4)
      control.writeUInt32BE(64, 8)
      const frame = Buffer.concat([
        pngChunk('fcTL', control),
        pngChunk('fdAT', Buffer.concat([u32(1), deflateSync(Buffer.alloc(64))])),
      ])
      return withChunks(await png(), pngChunk('acTL', be32(400_000, 0)), times(400_000, frame))
    }),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a PNG of four million pieces',
    make: file('a.png', async () =>
      withChunks(await png(), times(4_000_000, pngChunk('tEXt', ''))),
    ),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a GIF of a million frames',
    make: file('a.gif', async () => {
      const whole = await picture(scene).gif().toBuffer()
      const frame = Buffer.from('2c00000000010001000002024401', 'hex')
      return Buffer.concat([
        whole.subarray(0, -1),
        times(1_000_000, Buffer.concat([frame, Buffer.from([0])])),
        Buffer.from([0x3b]),
      ])
    }),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a GIF on a screen of 65,535 by 65,535',
    make: file('a.gif', async () => {
      const whole = await picture(scene).gif().toBuffer()
      whole.fill(0xff, 6, 10)
      return whole
    }),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a WebP on a canvas of sixteen million by sixteen million',
    make: file('a.webp', async () => webp(await picture(scene).webp().toBuffer(), 0xffffff)),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a WebP of half a million frames',
    make: file('a.webp', async () => {
      const still = (await picture(scene).webp().toBuffer()).subarray(12)
      const place = Buffer.alloc(16)
      place[6] = 63
      place[9] = 63
      const frame = riff('ANMF', Buffer.concat([place, still]))
      const head = Buffer.from('0200000000000000000000', 'hex').subarray(0, 10)
      head[4] = 63
      head[7] = 63
      return riff(
        'RIFF',
        Buffer.concat([
          Buffer.from('WEBP'),
          riff('VP8X', head),
          riff('ANIM', Buffer.alloc(6)),
          times(Math.floor((60 * MiB) / frame.length), frame),
        ]),
      )
    }),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a TIFF whose strip unpacks to a thousand times its pixels',
    make: file('a.tif', () => tiff(8, zeros())),
    leaves: ['png'],
  },
  {
    name: 'a bomb: a TIFF of runs without end',
    make: file('a.tif', () => tiff(32_773, times(32 * MiB, Buffer.from([0x81, 0])))),
    leaves: ['png'],
  },
  {
    name: 'a bomb: a TIFF whose strips are four thousand million',
    make: file('a.tif', () => {
      const whole = makeTiff([rgbPage(scene)])
      const at = whole.readUInt32LE(4)
      for (let i = 0; i < whole.readUInt16LE(at); i++) {
        const entry = at + 2 + i * 12
        if ([273, 279].includes(whole.readUInt16LE(entry)))
          whole.writeUInt32LE(2 ** 32 - 1, entry + 4)
      }
      return whole
    }),
    refused: corrupt,
  },
  {
    name: 'a bomb: a TIFF whose tiles are larger than any picture',
    make: file('a.tif', () => {
      const page = rgbPage(scene, [
        [322, 4, [2 ** 30]],
        [323, 4, [2 ** 30]],
        [324, 4, [8]],
        [325, 4, [100]],
      ])
      return makeTiff([page])
    }),
    refused: corrupt,
  },
  {
    name: 'no bomb: a TIFF whose chain and previews come back to their beginning, and end there',
    make: file('a.tif', () => {
      const whole = makeTiff([{ ...rgbPage(scene), children: [rgbPage(drawScene(4, 4))] }])
      const at = whole.readUInt32LE(4)
      for (let i = 0; i < whole.readUInt16LE(at); i++) {
        const entry = at + 2 + i * 12
        if (whole.readUInt16LE(entry) === 330) {
          whole.writeUInt32LE(at, entry + 8)
        }
      }
      // A chain that comes back to its beginning, too.
      whole.writeUInt32LE(at, at + 2 + 12 * whole.readUInt16LE(at))
      return whole
    }),
    leaves: ['png'],
  },
  {
    name: 'a bomb: a HEIC with a grid of 65,536 tiles that are all the same',
    make: file('a.heic', () => heif({ tiles: 65_535, output: 2 ** 32 - 1 })),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a HEIC whose grid is a tile of itself',
    make: file('a.heic', () => heif({ tiles: 1, output: 64, circle: true })),
    refused: tooLarge,
  },
  {
    name: 'a bomb: an AVIF of thousands of pictures made of each other',
    make: file('a.avif', () => web(8000)),
    refused: tooLarge,
  },
  {
    name: 'a bomb: an AVIF of twenty thousand pictures made of each other, in a long row',
    make: file('a.avif', () => web(19_000, 1)),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a HEIC whose items lie in more places than it has bytes',
    make: file('a.heic', () => heif({ tiles: 1, output: 64, places: 60_000 })),
    refused: tooLarge,
  },
]

function riff(name: string, content: Buffer): Buffer {
  return Buffer.concat([
    Buffer.from(name),
    le32(content.length),
    content,
    Buffer.alloc(content.length % 2),
  ])
}

/** A still WebP on a canvas of that many pixels a side, less one. */
function webp(still: Buffer, side: number): Buffer {
  const head = Buffer.alloc(10)
  head.writeUIntLE(side, 4, 3)
  head.writeUIntLE(side, 7, 3)
  return riff('RIFF', Buffer.concat([Buffer.from('WEBP'), riff('VP8X', head), still.subarray(12)]))
}

function tiff(compression: number, strip: Buffer): Buffer {
  const { entries } = rgbPage(scene)
  return makeTiff([
    {
      entries: entries.map((entry) => (entry[0] === 259 ? [259, 3, [compression]] : entry)),
      strip,
    },
  ])
}

const full = (type: string, version: number, ...content: readonly Buffer[]) =>
  heifBox(type, u32(version * 2 ** 24), ...content)

/** Item 1 is a grid of item 2, again and again; item 2 is coded, or the grid itself. */
function heif(options: {
  tiles: number
  output: number
  circle?: true
  /** Entries of `iloc` that each claim 65,535 places of no length. */
  places?: number
}): Buffer {
  const { tiles, output, circle, places = 0 } = options
  const item = (id: number, type: string) =>
    full('infe', 2, u16(id), u16(0), Buffer.from(`${type}\0`))
  const nowhere = Buffer.concat([u16(2), u16(0), u16(0xffff)])
  const meta = full(
    'meta',
    0,
    full('hdlr', 0, u32(0), Buffer.from('pict'), Buffer.alloc(13)),
    full('pitm', 0, u16(1)),
    full('iinf', 0, u16(2), item(1, 'grid'), item(2, circle === true ? 'grid' : 'hvc1')),
    // Neither offsets nor lengths: a place costs no byte.
    full('iloc', 0, u16(0), u16(places), times(places, nowhere)),
    full(
      'iref',
      0,
      heifBox('dimg', u16(1), u16(tiles), times(tiles, u16(circle === true ? 1 : 2))),
    ),
    heifBox(
      'iprp',
      heifBox('ipco', full('ispe', 0, u32(64), u32(64))),
      full('ipma', 0, u32(2), Buffer.from([0, 1, 1, 1, 0, 2, 1, 1])),
    ),
    heifBox('idat', Buffer.from([0, 1, 255, 255]), u32(output), u32(output)),
  )
  const ftyp = heifBox('ftyp', Buffer.from('heic'), u32(0), Buffer.from('mif1heic'))
  return Buffer.concat([ftyp, meta, heifBox('mdat', Buffer.alloc(100))])
}

/** Each item is a grid of all items, or of so many of the next ones. */
function web(items: number, each = items): Buffer {
  const ids = Array.from({ length: items }, (_, i) => u16(i + 1))
  const all = Buffer.concat(ids)
  const makeUp = ids
    .slice(0, each === items ? 5000 : -each)
    .map((id, i) =>
      heifBox(
        'dimg',
        id,
        u16(each),
        each === items ? all : all.subarray(2 * (i + 1), 2 * (i + 1 + each)),
      ),
    )
  const meta = full(
    'meta',
    0,
    full('hdlr', 0, u32(0), Buffer.from('pict'), Buffer.alloc(13)),
    full('pitm', 0, u16(1)),
    full(
      'iinf',
      0,
      u16(items),
      ...ids.map((id) => full('infe', 2, id, u16(0), Buffer.from('grid\0'))),
    ),
    full('iref', 0, ...makeUp),
    heifBox(
      'iprp',
      heifBox('ipco', full('ispe', 0, u32(64), u32(64))),
      full('ipma', 0, u32(items), ...ids.map((id) => Buffer.concat([id, Buffer.from([1, 1])]))),
    ),
  )
  const ftyp = heifBox('ftyp', Buffer.from('avif'), u32(0), Buffer.from('mif1avif'))
  return Buffer.concat([ftyp, meta, heifBox('mdat', Buffer.alloc(100))])
}

/** Replaces the content of the first box of a type, and corrects the sizes of those around it. */
function replaced(bytes: Buffer, path: readonly string[], content: Buffer): Buffer {
  const at = bytes.lastIndexOf(path.at(-1) ?? '') - 4
  const before = bytes.readUInt32BE(at)
  const copy = Buffer.concat([
    bytes.subarray(0, at),
    box(path.at(-1) ?? '', content),
    bytes.subarray(at + before),
  ])
  let from = 0
  for (const name of path) {
    const found = copy.indexOf(name, from) - 4
    if (name === path.at(-1)) break
    copy.writeUInt32BE(copy.readUInt32BE(found) + content.length + 8 - before, found)
    from = found + 8
  }
  return copy
}

const soundTable = ['moov', 'trak', 'mdia', 'minf', 'stbl'] as const

const films: readonly GateCase[] = [
  {
    name: 'a bomb: a MOV whose packed index unpacks to 256 MiB',
    make: bytesNamed('a.mov', () =>
      Buffer.concat([
        box('ftyp', 'qt  ', be32(512), 'qt  '),
        box('moov', box('cmov', box('dcom', 'zlib'), box('cmvd', be32(256 * MiB), zeros()))),
      ]),
    ),
    refused: unsupported,
  },
  {
    name: 'a bomb: a film of two million boxes without content',
    make: bytesNamed('a.mp4', () =>
      Buffer.concat([box('ftyp', 'isom', be32(512), 'isom'), times(2_000_000, box('free', ''))]),
    ),
    refused: corrupt,
  },
  {
    name: 'a bomb: a film of a hundred thousand boxes of something, far apart',
    make: bytesNamed('a.mp4', () =>
      Buffer.concat([
        box('ftyp', 'isom', be32(512), 'isom'),
        times(110_000, box('free', Buffer.alloc(5000, 1))),
      ]),
    ),
    refused: corrupt,
  },
  {
    name: 'a bomb: a sound in MP4 of forty million samples in one line',
    needs,
    make: changed(film(...tone, '-c:a', 'aac', 'a.mp4'), (bytes) => {
      const sizes = replaced(bytes, [...soundTable, 'stsz'], be32(0, 1, 40_000_000))
      const chunks = replaced(sizes, [...soundTable, 'stsc'], be32(0, 1, 1, 40_000_000, 1))
      return replaced(chunks, [...soundTable, 'stts'], be32(0, 1, 40_000_000, 2))
    }),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a sound in fragments, one of which claims forty million samples',
    needs,
    make: changed(
      film(...tone, '-c:a', 'aac', '-movflags', '+frag_keyframe+empty_moov', 'a.mp4'),
      (bytes) => {
        const at = bytes.indexOf('trun') - 4
        const size = bytes.readUInt32BE(at)
        // No field of its own for any sample.
        const run = Buffer.alloc(size)
        box('trun', be32(1, 40_000_000), Buffer.alloc(size - 16)).copy(run)
        run.copy(bytes, at)
        return bytes
      },
    ),
    refused: tooLarge,
  },
  {
    name: 'a bomb: pictures of 35 megapixels in a film that says 64 by 48',
    needs,
    make: changed(
      film(
        ...['-f', 'lavfi', '-i', 'color=gray:s=8192x4320:r=10:d=1,format=yuv420p'],
        ...['-c:v', 'libx264', '-preset', 'ultrafast', '-x264-params', 'keyint=1', 'a.mp4'],
      ),
      (bytes) => {
        be32(64 * 65_536 + 48).copy(bytes, bytes.lastIndexOf('avc1') + 28)
        return bytes
      },
    ),
    // As many as a film may have: they are scaled down, within the same memory as honest ones.
    leaves: ['mp4'],
  },
  {
    name: 'a bomb: a Matroska whose segment is as large as the sea',
    make: bytesNamed('a.mkv', () =>
      Buffer.concat([ebmlHead, element('18538067', Buffer.alloc(8), 2n ** 56n - 2n)]),
    ),
    refused: corrupt,
  },
  {
    name: 'a bomb: a Matroska of six million elements without content',
    make: bytesNamed('a.mkv', () =>
      Buffer.concat([ebmlHead, element('18538067', times(6_000_000, Buffer.from([0xec, 0x80])))]),
    ),
    refused: corrupt,
  },
  {
    name: 'a bomb: a Matroska of four million tracks',
    make: bytesNamed('a.mkv', () =>
      Buffer.concat([
        ebmlHead,
        element('18538067', element('1654ae6b', times(4_000_000, Buffer.from([0xae, 0x80])))),
      ]),
    ),
    refused: corrupt,
  },
  {
    name: 'a bomb: a Matroska with track lists of 16 MiB, eight times',
    make: bytesNamed('a.mkv', () => {
      const tracks = element(
        '1654ae6b',
        times(90_000, element('ae', Buffer.alloc(170, 'ec80', 'hex'))),
      )
      return Buffer.concat([ebmlHead, element('18538067', times(8, tracks))])
    }),
    refused: corrupt,
  },
  {
    name: 'a bomb: a Matroska of tags within tags',
    make: bytesNamed('a.mkv', () => {
      let inner: Buffer = Buffer.alloc(0)
      for (let i = 0; i < 5000; i++) inner = element('67c8', inner)
      return Buffer.concat([
        ebmlHead,
        element('18538067', element('1254c367', element('7373', inner))),
      ])
    }),
    refused: corrupt,
  },
  {
    name: 'a bomb: a transport stream of eight thousand programs',
    make: bytesNamed('a.ts', () => {
      const entries = Buffer.concat(
        Array.from({ length: 40 }, (_, i) => Buffer.concat([u16(i + 1), u16(0xe000 + 32 + i)])),
      )
      const section = Buffer.concat([
        Buffer.from([0, 0xb0, 9 + entries.length]),
        u16(1),
        Buffer.from([0xc1, 0, 0]),
        entries,
        Buffer.alloc(4),
      ])
      const packet = Buffer.alloc(188, 0xff)
      Buffer.from([0x47, 0x40, 0, 0x10, 0]).copy(packet)
      section.copy(packet, 5)
      return times(50_000, packet)
    }),
    refused: unsupported,
  },
  {
    name: 'a bomb: an AVI of a million chunks without content',
    make: bytesNamed('a.avi', () =>
      riff(
        'RIFF',
        Buffer.concat([Buffer.from('AVI '), times(1_000_000, riff('JUNK', Buffer.alloc(0)))]),
      ),
    ),
    refused: corrupt,
  },
  ...(
    [
      '#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nconcat:/etc/passwd|/etc/hosts\n',
      '\ufeff#EXTM3U\n',
      '\n \n#EXTM3U\n',
      'ffconcat version 1.0\nfile /dev/zero\n',
      '1\n00:00:00,000 --> 00:00:01,000\n<script>\n',
      'WEBVTT\n\n00:00.000 --> 99:00.000\n',
      '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>file:///</BaseURL></MPD>',
    ] as const
  ).map((words, i) => ({
    name: `a bomb: words that make programs open other files, ${i + 1}`,
    make: bytesNamed(`a${i}.mp4`, () => words),
    refused: unsupported,
  })),
]

/** An element of EBML; its size in eight bytes. */
function element(id: string, content: Buffer, size = BigInt(content.length)): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(2n ** 56n + size)
  return Buffer.concat([Buffer.from(id, 'hex'), bytes, content])
}

const ebmlHead = element('1a45dfa3', Buffer.from('4282886d6174726f736b61', 'hex'))

function wavHead(rate: number, channels: number): Buffer {
  return Buffer.concat([
    Buffer.from('WAVEfmt '),
    le32(16),
    Buffer.from([1, 0, channels & 255, channels >> 8]),
    le32(rate, 0),
    Buffer.from([(channels * 2) & 255, (channels * 2) >> 8, 16, 0]),
  ])
}

const sounds: readonly GateCase[] = [
  {
    name: 'a bomb: a WAV of four thousand million samples a second',
    make: bytesNamed('a.wav', () =>
      riffWith(wavHead(2 ** 32 - 1, 1), riff('data', Buffer.alloc(100))),
    ),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a WAV of 32,767 channels',
    make: bytesNamed('a.wav', () =>
      riffWith(wavHead(48_000, 32_767), riff('data', Buffer.alloc(65_534))),
    ),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a WAV of two million chunks without content',
    make: bytesNamed('a.wav', () =>
      riffWith(wavHead(48_000, 1), times(2_000_000, riff('JUNK', Buffer.alloc(0)))),
    ),
    refused: corrupt,
  },
  {
    name: 'a bomb: a FLAC of a million samples a second',
    needs,
    make: changed(film(...tone, 'a.flac'), (bytes) => {
      bytes.writeUIntBE((bytes.readUIntBE(18, 3) & 15) | 0xfffff0, 18, 3)
      return bytes
    }),
    refused: tooLarge,
  },
  {
    name: 'a bomb: a FLAC of eight million blocks before its sound',
    needs,
    make: changed(film(...tone, 'a.flac'), (bytes) =>
      Buffer.concat([
        bytes.subarray(0, 42),
        times(8_000_000, Buffer.from([1, 0, 0, 0])),
        bytes.subarray(42),
      ]),
    ),
    refused: corrupt,
  },
  {
    name: 'a bomb: an Ogg whose comments come byte by byte',
    make: bytesNamed('a.ogg', () => {
      const head = Buffer.from(
        '\x01vorbis\0\0\0\0\x01\x80\xbb\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xb8\x01',
        'latin1',
      )
      return Buffer.concat([
        oggPage({ serial: 1, flags: 2, body: head }),
        times(1_500_000, oggPage({ serial: 1, flags: 0, body: Buffer.from('A') })),
      ])
    }),
    refused: corrupt,
  },
  {
    name: 'a bomb: an MP3 behind a tag that says 256 MB',
    make: bytesNamed('a.mp3', () =>
      Buffer.concat([Buffer.from('ID3\x04\0\0\x7f\x7f\x7f\x7f', 'latin1'), Buffer.alloc(1000)]),
    ),
    refused: unsupported,
  },
  {
    name: 'a bomb: an AAC of frames without sound',
    make: bytesNamed('a.aac', () => times(6_000_000, Buffer.from('fff14c4000fffc', 'hex'))),
    refused: tooLarge,
  },
  {
    name: 'a bomb: an AMR of fifty million frames of silence',
    make: bytesNamed('a.amr', () =>
      Buffer.concat([Buffer.from('#!AMR\n'), Buffer.alloc(50_000_000, 0x7c)]),
    ),
    refused: tooLarge,
  },
]

function riffWith(...parts: readonly Buffer[]): Buffer {
  return riff('RIFF', Buffer.concat(parts))
}

/** A sparse file: what lies behind the film takes no room, and would take a minute to read. */
function endless(name: string): GateCase['make'] {
  const make = film('-f', 'lavfi', '-i', 'testsrc2=s=64x48:r=10:d=1', ...h264, name)
  return (folder) => {
    const path = make(folder)
    truncateSync(path, 10 * 1024 * MiB)
    return path
  }
}

const sparse: readonly GateCase[] = [
  ...['a.avi', 'a.mkv', 'a.mp4'].map((name): GateCase => ({
    name: `a bomb: ten gibibytes of nothing behind ${name}`,
    needs,
    make: endless(name),
    leaves: ['mp4'],
    removed: ['trailer'],
  })),
  {
    name: 'a bomb: ten gibibytes of nothing behind a transport stream',
    needs,
    make: endless('a.ts'),
    refused: { code: 'media.corrupt', says: /at byte \d{4}\b/ },
  },
  {
    name: 'a bomb: the same, when what is left is asked for',
    needs,
    salvage: true,
    make: endless('a.ts'),
    leaves: ['mp4'],
  },
  {
    name: 'a bomb: ten gibibytes of nothing behind a sound',
    needs,
    make: (folder) => {
      const path = film(...tone, '-t', '1', 'a.mp3')(folder)
      truncateSync(path, 10 * 1024 * MiB)
      return path
    },
    refused: tooLarge,
  },
]

export const bombCases: readonly GateCase[] = [...pictures, ...films, ...sounds, ...sparse]
