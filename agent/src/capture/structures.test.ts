/** Proves that no parser of ours trips over damaged bytes: it answers, or refuses with a code. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { cleanFilm } from './clean-film.ts'
import { listFlacBlocks, readFlacHead, splitFlac } from './flac-structure.ts'
import { readMovie } from './movie-structure.ts'
import { readTagged } from './mp3-structure.ts'
import { sniff } from './sniff.ts'
import { readWav } from './wav-structure.ts'

/** Small, repeatable randomness (mulberry32). */
function randomness(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

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

const mp3 = Buffer.concat([
  Buffer.from('ID3\x04\0\0\0\0\0\x05aaaaa\xff\xfb\x90\0', 'latin1'),
  zeros(32),
  Buffer.from('Xing\0\0\0\x0f\0\0\0\x10', 'latin1'),
  zeros(369),
  Buffer.from('\xff\xfb\x90\0', 'latin1'),
  zeros(413),
  Buffer.from('TAG'.padEnd(128, 'x')),
])

describe('parsers on damaged bytes', () => {
  it('film index', async () => {
    await answersOrRefuses(filmBoxes(), (bytes) => readMovie(readable(bytes)))
  })

  it('encoded film', async () => {
    const drain = async (bytes: Buffer) => {
      for await (const piece of cleanFilm(pieces(bytes))) assert.ok(piece.length <= bytes.length)
    }
    await answersOrRefuses(filmBoxes(), drain)
  })

  it('FLAC', async () => {
    await answersOrRefuses(flac, async (bytes) => {
      readFlacHead(bytes)
      await listFlacBlocks(bytes.length, readable(bytes).read)
    })
    await answersOrRefuses(flac, async (bytes) => {
      const splitter = splitFlac()
      for await (const piece of splitter.frames(pieces(bytes))) assert.ok(piece.length > 0)
      splitter.head(100)
    })
  })

  it('WAV', async () => {
    await answersOrRefuses(wav, (bytes) => readWav(readable(bytes)))
  })

  it('MP3', async () => {
    await answersOrRefuses(mp3, async (bytes) => {
      const { start, end } = await readTagged(readable(bytes), { format: 'mp3' })
      assert.ok(start <= end && end <= bytes.length)
    })
  })

  it('any beginning', async () => {
    for (const whole of [filmBoxes(), flac, wav, mp3]) {
      await answersOrRefuses(whole, (bytes) => sniff(readable(bytes)))
    }
  })
})

async function* pieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 100) yield bytes.subarray(at, at + 100)
}
