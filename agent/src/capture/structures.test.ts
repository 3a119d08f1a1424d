/** Proves that no parser of ours trips over damaged bytes: it answers, or refuses with a code. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import * as fc from 'fast-check'
import { readAiff } from './aiff-structure.ts'
import { readAvi } from './avi-structure.ts'
import { checkFilm } from './check-film.ts'
import { checkFlac } from './check-flac.ts'
import { checkWavpack } from './check-wavpack.ts'
import { cleanFilm } from './clean-film.ts'
import { listFlacBlocks, readFlacHead, splitFlac } from './flac-structure.ts'
import { walkFrames } from './frames-structure.ts'
import { readMatroska, readMatroskaColour } from './matroska-structure.ts'
import { readMovie } from './movie-structure.ts'
import { readTagged } from './mp3-structure.ts'
import { oggPage } from './ogg-page.test-setup.ts'
import { mendedPages, readOgg } from './ogg-structure.ts'
import { randomness } from './randomness.test-setup.ts'
import { sniff } from './sniff.ts'
import { followOn, isJoined } from './joined-transport.ts'
import { readTransport } from './transport-structure.ts'
import { readWav } from './wav-structure.ts'

/** Every prefix, then many copies with a few bytes changed. */
function* damaged(bytes: Buffer, rounds: number): Generator<Buffer> {
  for (let length = 0; length < bytes.length; length += Math.ceil(bytes.length / 300)) {
    yield bytes.subarray(0, length)
  }
  const random = randomness(bytes.length)
  const values = [0, 1, 0x7f, 0x80, 0xff]
  for (let round = 0; round < rounds; round++) {
    const copy = Buffer.from(bytes)
    for (let change = 0; change <= random() * 4; change++) {
      copy[Math.floor(random() * copy.length)] = values[Math.floor(random() * 5)] ?? 0
    }
    yield copy
  }
}

/** Like a source: a range outside of it is a failure of the parser. */
function readable(bytes: Buffer) {
  return {
    bytes: bytes.length,
    read: async (offset: number, length: number) => {
      assert.ok(offset >= 0 && length >= 0 && offset + length <= bytes.length, 'reads outside')
      return Buffer.from(bytes.subarray(offset, offset + length))
    },
  }
}

async function answersOrRefuses(
  whole: Buffer,
  parse: (bytes: Buffer) => Promise<unknown>,
): Promise<void> {
  await parse(whole)
  for (const bytes of damaged(whole, 1500)) {
    try {
      await parse(bytes)
    } catch (error) {
      if (!isSluiceError(error)) throw error
    }
  }
}

function box(type: string, ...content: (Buffer | string)[]): Buffer {
  const body = Buffer.concat(content.map((part) => Buffer.from(part as string, 'latin1')))
  const head = Buffer.alloc(8)
  head.writeUInt32BE(body.length + 8)
  head.write(type, 4, 'latin1')
  return Buffer.concat([head, body])
}

const zeros = (bytes: number) => Buffer.alloc(bytes)
const u32 = (...values: number[]) => Buffer.from(new Uint32Array(values).buffer).swap32()

/** A film's boxes without pictures, complete enough for the parsers. */
function filmBoxes(): Buffer {
  const self = box('dinf', box('dref', u32(0, 1), box('url ', u32(1))))
  const entry = Buffer.concat([zeros(24), Buffer.from([0, 160, 0, 120]), zeros(50)])
  const colour = box('colr', 'nclx', Buffer.from([0, 9, 0, 16, 0, 9, 0]))
  const picture = box('stsd', u32(0, 1), box('avc1', entry, colour))
  const sound = box('stsd', u32(0, 1), box('mp4a', zeros(28)))
  const track = (type: string, description: Buffer) =>
    box(
      'trak',
      box('tkhd', zeros(84)),
      box(
        'mdia',
        box('mdhd', u32(0, 0, 0, 1000, 5000, 0)),
        box('hdlr', u32(0, 0), type, zeros(13)),
        box('minf', self, box('stbl', description)),
      ),
    )
  return Buffer.concat([
    box('ftyp', 'isom', u32(512), 'isomavc1'),
    box(
      'moov',
      box('mvhd', u32(0, 0, 0, 1000, 5000), zeros(80)),
      track('vide', picture),
      track('soun', sound),
    ),
    box('moof', box('mfhd', u32(0, 1))),
    box('mdat', zeros(50)),
  ])
}

const flac = Buffer.concat([
  Buffer.from('fLaC\0\0\0\x22\x10\0\x10\0\0\0\0\0\0\0\x0a\xc4\x42\xf0\0\0\0\x64', 'latin1'),
  zeros(16),
  Buffer.from('\x84\0\0\x04abcd\xff\xf8\xc9\x08', 'latin1'),
  zeros(40),
])

const wav = Buffer.from(
  'RIFF\x36\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0LIST\x04\0\0\0abcddata\x06\0\0\0abcdef',
  'latin1',
)

/** 16 bits, one channel; all numbers the other way round. */
const rifx = Buffer.from(
  'RIFX\0\0\0\x2aWAVEfmt \0\0\0\x10\0\x01\0\x01\0\0\x1f\x40\0\0\x3e\x80\0\x02\0\x10data\0\0\0\x06abcdef',
  'latin1',
)

const mp3 = Buffer.concat([
  Buffer.from('ID3\x04\0\0\0\0\0\x05aaaaa\xff\xfb\x90\0', 'latin1'),
  zeros(32),
  Buffer.from('Xing\0\0\0\x0f\0\0\0\x10', 'latin1'),
  zeros(369),
  Buffer.from('\xff\xfb\x90\0', 'latin1'),
  zeros(413),
  Buffer.from('TAG'.padEnd(128, 'x')),
])

/** EBML: identity, size in one byte or eight, content. */
function element(id: string, ...content: (Buffer | string)[]): Buffer {
  const body = Buffer.concat(content.map((part) => Buffer.from(part as string, 'latin1')))
  const size = Buffer.alloc(8)
  size.writeBigUInt64BE(BigInt(body.length) | (1n << 56n))
  return Buffer.concat([Buffer.from(id, 'hex'), size, body])
}

const matroska = Buffer.concat([
  element('1a45dfa3', element('4282', 'matroska')),
  element(
    '18538067',
    element('1549a966', element('2ad7b1', '\x0f\x42\x40'), element('4489', u32(0x45000000))),
    element(
      '1654ae6b',
      element(
        'ae',
        element('83', '\x01'),
        element('86', 'V_VP9'),
        element(
          'e0',
          element('b0', '\x01\x40'),
          element('ba', '\xf0'),
          element('55b0', element('55ba', '\x10')),
        ),
      ),
      element('ae', element('83', '\x02'), element('e1', element('9f', '\x02'))),
    ),
    element('1254c367', element('7373', element('67c8', element('45a3', 'LOCATION')))),
    element('1f43b675', element('e7', '\0'), element('a3', '\x81\0\0\x80abcd')),
  ),
])

function chunk(name: string, ...content: (Buffer | string)[]): Buffer {
  const body = Buffer.concat(content.map((part) => Buffer.from(part as string, 'latin1')))
  const head = Buffer.alloc(8)
  head.write(name, 'latin1')
  head.writeUInt32LE(body.length, 4)
  return Buffer.concat([head, body, Buffer.alloc(body.length % 2)])
}

const le = (...values: number[]) => Buffer.from(new Uint32Array(values).buffer)

const avi = chunk(
  'RIFF',
  'AVI ',
  chunk(
    'LIST',
    'hdrl',
    chunk('avih', le(40_000, 0, 0, 0, 50, 0, 2, 0, 320, 240, 0, 0, 0, 0)),
    chunk(
      'LIST',
      'strl',
      chunk('strh', 'vidsMJPG', le(0, 0, 0, 1, 25, 0, 50, 0, 0, 0, 0, 0)),
      chunk('strf', le(40, 320, 240, 0x180001), 'MJPG', le(0, 0, 0, 0, 0)),
      chunk('strn', 'a name'),
    ),
    chunk('LIST', 'INFO', chunk('IART', 'someone')),
  ),
  chunk('LIST', 'movi', chunk('00dc', zeros(20))),
)

/** One packet of a table and the beginning of a picture, as often as packets are recognised by. */
function transport(): Buffer {
  const packet = (pid: number, payload: Buffer) =>
    Buffer.concat([
      Buffer.from([0x47, 0x40 | (pid >> 8), pid & 255, 0x10]),
      payload,
      Buffer.alloc(184 - payload.length, 0xff),
    ])
  const programs = Buffer.from([0, 0, 0xb0, 13, 0, 1, 0xc1, 0, 0, 0, 1, 0xe1, 0, 0, 0, 0, 0])
  const streams = Buffer.from([
    0, 2, 0xb0, 23, 0, 1, 0xc1, 0, 0, 0xe1, 1, 0xf0, 0, 0x1b, 0xe1, 1, 0xf0, 0, 0x0f, 0xe1, 2, 0xf0,
    0, 0, 0, 0, 0,
  ])
  const picture = Buffer.from([0, 0, 1, 0xe0, 0, 0, 0x80, 0x80, 5, 0x21, 0, 1, 0, 1, 0, 0])
  const all = [packet(0, programs), packet(256, streams)]
  for (let i = 0; i < 20; i++) all.push(packet(257, picture))
  return Buffer.concat(all)
}

/** The same packets, each track counted from `first` on. */
function counted(first: number): Buffer {
  const bytes = transport()
  const counters = new Map<number, number>()
  for (let at = 0; at < bytes.length; at += 188) {
    const pid = bytes.readUInt16BE(at + 1) & 0x1fff
    const counter = counters.get(pid) ?? first
    counters.set(pid, counter + 1)
    bytes.writeUInt8(0x10 | (counter & 15), at + 3)
  }
  return bytes
}

function joinedTransport(): Buffer {
  return Buffer.concat([counted(0), counted(9)])
}

const ogg = Buffer.concat([
  oggPage({
    flags: 2,
    body: Buffer.from('OpusHead\x01\x02\0\0\x80\xbb\0\0\0\0\0', 'latin1'),
  }),
  oggPage({
    flags: 0,
    sequence: 1,
    body: Buffer.from('OpusTags\0\0\0\0\x01\0\0\0\x0a\0\0\0ARTIST=abc', 'latin1'),
  }),
  oggPage({ flags: 4, granule: 96_000n, sequence: 2, body: zeros(30) }),
])

const aiff = Buffer.from(
  'FORM\0\0\0\x4aAIFFNAME\0\0\0\x04abcdCOMM\0\0\0\x12\0\x01\0\0\0\x08\0\x10\x40\x0e\xac\x44\0\0\0\0\0\0SSND\0\0\0\x18\0\0\0\0\0\0\0\0abcdefghijklmnop',
  'latin1',
)

const amr = Buffer.concat([
  Buffer.from('#!AMR\n', 'latin1'),
  ...Array.from({ length: 5 }, () => Buffer.concat([Buffer.from([0x3c]), zeros(31)])),
])

const adts = Buffer.concat(
  Array.from({ length: 5 }, () =>
    Buffer.concat([Buffer.from([0xff, 0xf1, 0x50, 0x80, 0x03, 0x9f, 0xfc]), zeros(21)]),
  ),
)

/** Every parser of films and sounds, with bytes it understands. */
const parsers: [string, Buffer, (bytes: Buffer) => Promise<unknown>][] = [
  ['film index', filmBoxes(), (bytes) => readMovie(readable(bytes))],
  ['film index, salvaged', filmBoxes(), (bytes) => readMovie(readable(bytes), { salvage: true })],
  ['encoded film', filmBoxes(), drain],
  ['Matroska', matroska, (bytes) => readMatroska(readable(bytes))],
  ['Matroska, salvaged', matroska, (bytes) => readMatroska(readable(bytes), { salvage: true })],
  ['Matroska head of ours', matroska, async (bytes) => readMatroskaColour(bytes)],
  ['AVI', avi, (bytes) => readAvi(readable(bytes))],
  ['AVI, salvaged', avi, (bytes) => readAvi(readable(bytes), { salvage: true })],
  ['transport stream', transport(), (bytes) => readTransport(readable(bytes))],
  [
    'transport stream with room behind it, salvaged',
    Buffer.concat([transport(), zeros(64 * 188)]),
    (bytes) => readTransport(readable(bytes), { salvage: true }),
  ],
  ['transport streams joined', joinedTransport(), (bytes) => isJoined(readable(bytes))],
  [
    'transport streams that follow on',
    joinedTransport(),
    async (bytes) => {
      let length = 0
      for await (const piece of followOn(readable(bytes))) length += piece.length
      assert.ok(length === 0 || length === bytes.length)
    },
  ],
  ['Ogg', ogg, (bytes) => readOgg(readable(bytes))],
  ['Ogg, salvaged', ogg, (bytes) => readOgg(readable(bytes), { salvage: true })],
  [
    'Ogg, mended',
    ogg,
    async (bytes) => {
      const { runs } = await readOgg(readable(bytes), { salvage: true })
      const needs = { serials: true, packets: true }
      for await (const page of mendedPages(readable(bytes), { runs, needs })) {
        assert.ok(page.length >= 27 && page.toString('latin1', 0, 4) === 'OggS')
      }
    },
  ],
  ['AIFF', aiff, (bytes) => readAiff(readable(bytes))],
  ['AIFF, salvaged', aiff, (bytes) => readAiff(readable(bytes), { salvage: true })],
  ['WAV', wav, (bytes) => readWav(readable(bytes))],
  ['RIFX', rifx, (bytes) => readWav(readable(bytes))],
  ['WAV, salvaged', wav, (bytes) => readWav(readable(bytes), { salvage: true })],
  ['MP3', mp3, (bytes) => readTagged(readable(bytes), { format: 'mp3' })],
  ['MP3, salvaged', mp3, (bytes) => readTagged(readable(bytes), { format: 'mp3', salvage: true })],
  ['AAC', adts, (bytes) => readTagged(readable(bytes), { format: 'aac' })],
  ['AAC, salvaged', adts, (bytes) => readTagged(readable(bytes), { format: 'aac', salvage: true })],
  [
    'AMR',
    amr,
    (bytes) =>
      walkFrames(readable(bytes), {
        format: 'amr',
        from: Math.min(6, bytes.length),
        to: bytes.length,
      }),
  ],
  [
    'FLAC head',
    flac,
    async (bytes) => {
      readFlacHead(bytes)
      await listFlacBlocks(bytes.length, readable(bytes).read)
    },
  ],
  [
    'encoded FLAC',
    flac,
    async (bytes) => {
      const splitter = splitFlac()
      for await (const piece of splitter.frames(pieces(bytes))) assert.ok(piece.length > 0)
      splitter.head(100)
    },
  ],
]

async function drain(bytes: Buffer): Promise<void> {
  for await (const piece of cleanFilm(pieces(bytes))) assert.ok(piece.length <= bytes.length)
}

describe('transport streams', () => {
  const rest = (bytes: Buffer, from: number) => bytes.subarray(from * 188)

  it('are joined where one begins behind another', async () => {
    assert.equal(await isJoined(readable(joinedTransport())), true)
    assert.equal(await isJoined(readable(counted(5))), false)
  })

  it('are not where packets are missing within one, or before the second has begun', async () => {
    const whole = counted(0)
    const lacking = Buffer.concat([whole.subarray(0, 188 * 10), rest(whole, 13)])
    assert.equal(await isJoined(readable(lacking)), false)
    assert.equal(await isJoined(readable(Buffer.concat([lacking, counted(9)]))), false)
    assert.equal(await isJoined(readable(Buffer.concat([whole, rest(counted(9), 2)]))), false)
  })

  it('count on without a break once they follow on, and are otherwise the same', async () => {
    const before = joinedTransport()
    const after: Buffer[] = []
    for await (const piece of followOn(readable(before))) after.push(piece)
    const joined = Buffer.concat(after)
    assert.equal(await isJoined(readable(joined)), false)
    const counters = new Map<number, number>()
    for (let at = 0; at < joined.length; at += 188) {
      const pid = joined.readUInt16BE(at + 1) & 0x1fff
      const counter = joined.readUInt8(at + 3) & 15
      assert.equal(counter, (counters.get(pid) ?? 0) & 15)
      counters.set(pid, counter + 1)
      before.writeUInt8(joined.readUInt8(at + 3), at + 3)
    }
    assert.ok(joined.equals(before))
  })
})

describe('parsers on damaged bytes', () => {
  for (const [name, bytes, parse] of parsers) {
    it(name, () => answersOrRefuses(bytes, parse))
  }

  it('any beginning', async () => {
    for (const [, whole] of parsers) {
      await answersOrRefuses(whole, (bytes) => sniff(readable(bytes)))
    }
  })

  it('anything at all', async () => {
    const checks = [checkFilm, checkFlac, checkWavpack].map(
      (check) => (bytes: Buffer) => check(pieces(bytes)),
    )
    const all = [...parsers.map(([, , parse]) => parse), ...checks]
    const heads = parsers.map(([, whole]) => whole)
    // Random bytes behind a beginning that is understood get further than random bytes alone.
    const input = fc.tuple(
      fc.constantFrom(Buffer.alloc(0), ...heads),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.uint8Array({ maxLength: 600 }),
    )
    await fc.assert(
      fc.asyncProperty(input, async ([head, part, rest]) => {
        const bytes = Buffer.concat([head.subarray(0, Math.floor(head.length * part)), rest])
        for (const parse of all) {
          try {
            await parse(bytes)
          } catch (error) {
            if (!isSluiceError(error)) throw error
          }
        }
      }),
      { numRuns: 300 },
    )
  })
})

async function* pieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 100) yield bytes.subarray(at, at + 100)
}
