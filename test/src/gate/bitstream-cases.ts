/** Coded pictures that pass as they are in the faithful profile: what someone hid among them does not. */

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { GateCase, Outcome } from './cases.ts'
import { decoded, h264, picture, run } from './make-films.ts'

type Coding = {
  name: 'h264' | 'hevc'
  encoder: readonly string[]
  typeOf: (unit: Buffer) => number
}

const codings: readonly Coding[] = [
  {
    name: 'h264',
    encoder: [...h264, '-bf', '0'],
    typeOf: (unit) => unit.readUInt8(0) & 31,
  },
  {
    name: 'hevc',
    encoder: [
      '-c:v',
      'libx265',
      '-preset',
      'ultrafast',
      '-x265-params',
      'log-level=none:bframes=0',
    ],
    typeOf: (unit) => (unit.readUInt8(0) >> 1) & 63,
  },
]

const startCode = Buffer.from([0, 0, 0, 1])

/** Codes the test picture, changes its units, and puts them into a film that nothing was trimmed of. */
function withUnits(coding: Coding, change: (unit: Buffer) => Buffer[]): GateCase['make'] {
  return (folder) => {
    const raw = join(folder, `raw.${coding.name}`)
    run([...picture, ...coding.encoder, '-f', coding.name, raw])
    const bytes = readFileSync(raw)
    const units: Buffer[] = []
    for (let at = bytes.indexOf('\0\0\x01'); at >= 0;) {
      const next = bytes.indexOf('\0\0\x01', at + 3)
      const end = next < 0 ? bytes.length : bytes[next - 1] === 0 ? next - 1 : next
      units.push(...change(bytes.subarray(at + 3, end)))
      at = next
    }
    writeFileSync(raw, Buffer.concat(units.flatMap((unit) => [startCode, unit])))
    const film = join(folder, 'a.mkv')
    run(['-r', '25', '-f', coding.name, '-i', raw, '-c', 'copy', film])
    return film
  }
}

/** The same pictures, and as small as coded ones: so they have been copied. */
function copied(outcomes: readonly Outcome[], source: Buffer): void {
  samePictures(outcomes, source)
  assert.ok((outcomes[0]?.bytes.length ?? 0) < source.length * 1.2, 'it was coded anew')
}

function samePictures([first]: readonly Outcome[], source: Buffer): void {
  assert.ok(first)
  const folder = mkdtempSync(join(tmpdir(), 'gate-units-'))
  try {
    const form = ['-map', '0:v', '-fps_mode', 'passthrough', '-f', 'rawvideo']
    assert.ok(decoded(first.bytes, folder, ...form).equals(decoded(source, folder, ...form)))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const canary = 'canary-behind-the-last-field'

/** Behind every parameter set of a type. */
function behind(coding: Coding, type: number): GateCase['make'] {
  return withUnits(coding, (unit) =>
    coding.typeOf(unit) === type ? [Buffer.concat([unit, Buffer.from(canary)])] : [unit],
  )
}

const faithful = {
  needs: ['ffmpeg'],
  profile: 'faithful',
  leaves: ['mp4'],
  equal: copied,
} as const

/** Adds up to `count` bits in front of those that end a unit, the last of which must be `from`. */
function extended(unit: Buffer, from: '0' | '1', by: string): Buffer {
  const bits = [...unit].map((byte) => byte.toString(2).padStart(8, '0')).join('')
  const whole = bits.slice(0, bits.lastIndexOf('1'))
  assert.ok(whole.endsWith(from), 'it has an extension already')
  const longer = `${whole.slice(0, -1)}${by}1`
  const padded = longer.padEnd(Math.ceil(longer.length / 8) * 8, '0')
  return Buffer.from((padded.match(/.{8}/g) ?? []).map((byte) => parseInt(byte, 2)))
}

const bitsOf = (text: string) =>
  [...Buffer.from(text)].map((byte) => byte.toString(2).padStart(8, '0')).join('')

/** In whichever bit of a byte it begins. */
function holdsBits(bytes: Buffer, text: string): boolean {
  const wanted = bitsOf(text)
  const whole = [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('')
  return whole.includes(wanted)
}

/** The same pictures, and neither as coded nor with what was hidden among them. */
function codedAnew(text: string): NonNullable<GateCase['equal']> {
  return (outcomes, source) => {
    assert.ok(holdsBits(source, text), 'the control: the source has it')
    for (const { bytes } of outcomes) assert.ok(!holdsBits(bytes, text), 'it has left')
    samePictures(outcomes, source)
  }
}

/** Extensions of sets in HEVC: flags of those that are known, none of them, and then data without meaning. */
const hevcExtensions: readonly GateCase[] = [
  ['video', 32, '1'],
  ['sequence', 33, '100001111'],
  ['picture', 34, '100001111'],
].map(([name, type, flags]): GateCase => ({
  ...faithful,
  name: `hevc, faithfully: words in the extension of a ${name} parameter set`,
  make: withUnits(codings[1] as Coding, (unit) =>
    codings[1]?.typeOf(unit) === type ? [extended(unit, '0', `${flags}${bitsOf(canary)}`)] : [unit],
  ),
  equal: codedAnew(canary),
}))

/** A parameter set of H.264 with another number, which no slice asks for: its lists say anything. */
function unusedPictureSet(): Buffer {
  const unsigned = (value: number) => {
    const bits = (value + 1).toString(2)
    return '0'.repeat(bits.length - 1) + bits
  }
  const signed = (value: number) => unsigned(value > 0 ? 2 * value - 1 : -2 * value)
  const lists = Array.from({ length: 6 }, (_, list) => {
    const words = Buffer.from(canary.repeat(2)).subarray(list, list + 16)
    return `1${[...words].map((word, i) => signed(word - (i === 0 ? 8 : (words[i - 1] ?? 0)))).join('')}`
  })
  const head = [unsigned(9), unsigned(0), '00', '111', '000', '111', '000', '0', '1']
  const bits = `${head.join('')}${lists.join('')}${signed(0)}1`
  const padded = bits.padEnd(Math.ceil(bits.length / 8) * 8, '0')
  const content = (padded.match(/.{8}/g) ?? []).map((byte) => parseInt(byte, 2))
  return Buffer.from([0x68, ...content])
}

const unseen: readonly GateCase[] = [
  {
    ...faithful,
    name: 'h264, faithfully: a parameter set that no slice asks for',
    make: withUnits(codings[0] as Coding, (unit) =>
      (unit.readUInt8(0) & 31) === 8 ? [unit, unusedPictureSet()] : [unit],
    ),
    equal(outcomes, source) {
      // Its number and those of its lists, without the bits that end it.
      const start = unusedPictureSet().subarray(1, 40)
      assert.ok(source.includes(start), 'the control: the source has it')
      assert.ok(!outcomes.some(({ bytes }) => bytes.includes(start)), 'it has left')
      samePictures(outcomes, source)
    },
  },
  {
    ...faithful,
    name: 'h264, faithfully: a film that is cut off at an edge from its second half on',
    make: (folder) => {
      const [whole, film] = [join(folder, 'whole.h264'), join(folder, 'a.mkv')]
      run([...picture, ...h264, '-g', '25', '-bf', '0', whole])
      const bytes = readFileSync(whole)
      const second = bytes.lastIndexOf(sequenceHead)
      assert.ok(second > 0)
      writeFileSync(whole, Buffer.concat([bytes.subarray(0, second), cropped(whole, second)]))
      run(['-r', '25', '-f', 'h264', '-i', whole, '-c', 'copy', film])
      return film
    },
    equal([first], source) {
      const sets = (of: Buffer | undefined) => {
        const found = of?.indexOf(croppedSet) ?? -1
        return found >= 0
      }
      assert.ok(croppedSet.length > 8 && sets(source), 'the control: the source has it')
      assert.ok(!sets(first?.bytes), 'it has been copied')
    },
  },
  {
    ...faithful,
    name: 'h264, faithfully: each sample has a second picture, which nobody shows',
    make: (folder) => {
      const film = join(folder, 'a.mp4')
      run([
        ...picture,
        ...h264,
        '-bf',
        '0',
        '-g',
        '1',
        '-bsf:v',
        'filter_units=pass_types=1|5',
        film,
      ])
      const bytes = readFileSync(film)
      const [sizes, chunks, times] = ['stsz', 'stsc', 'stts'].map((type) => bytes.indexOf(type) + 8)
      assert.ok(sizes && chunks && times)
      const count = bytes.readUInt32BE(sizes + 4) / 2
      assert.deepEqual([bytes.readUInt32BE(chunks), bytes.readUInt32BE(chunks + 8)], [1, 2 * count])
      for (let i = 0; i < count; i++) {
        const [one, two] = [0, 4].map((at) => bytes.readUInt32BE(sizes + 8 + 8 * i + at))
        bytes.writeUInt32BE((one ?? 0) + (two ?? 0), sizes + 8 + 4 * i)
      }
      bytes.writeUInt32BE(count, sizes + 4)
      bytes.writeUInt32BE(count, chunks + 8)
      bytes.writeUInt32BE(count, times + 4)
      bytes.writeUInt32BE(2 * bytes.readUInt32BE(times + 8), times + 8)
      writeFileSync(film, bytes)
      return film
    },
    equal(outcomes, source) {
      samePictures(outcomes, source)
      const [data, edge] = [source.indexOf('mdat'), source.indexOf('moov')] as const
      assert.ok(data > 0 && edge > data)
      // Bytes of slices from all over the film: coded anew, none of them is the same.
      for (let at = data + 1000; at + 64 < edge; at += 5000) {
        assert.ok(!outcomes[0]?.bytes.includes(source.subarray(at, at + 64)), `bytes at ${at}`)
      }
    },
  },
]

const sequenceHead = Buffer.concat([startCode, Buffer.from([0x67])])
let croppedSet: Buffer = Buffer.alloc(0)

/** The pictures of a film from a place on, their right edge cut off without coding them anew. */
function cropped(film: string, from: number): Buffer {
  const cut = `${film}.cut`
  run(['-i', film, '-c', 'copy', '-bsf:v', 'h264_metadata=crop_right=64', '-f', 'h264', cut])
  const bytes = readFileSync(cut)
  const at = bytes.lastIndexOf(sequenceHead)
  assert.ok(from > 0 && at > 0)
  croppedSet = Buffer.from(bytes.subarray(at + 4, bytes.indexOf(startCode, at + 4)))
  return bytes.subarray(at)
}

export const bitstreamCases: readonly GateCase[] = [
  ...hevcExtensions,
  ...unseen,
  ...codings.flatMap((coding): GateCase[] => [
    ...(coding.name === 'h264' ? [7, 8] : [32, 33]).map((type): GateCase => ({
      ...faithful,
      name: `${coding.name}, faithfully: words behind a parameter set of type ${type}`,
      make: behind(coding, type),
      // In this one they are taken for more fields, of which only the decoder makes sense.
      ...(coding.name === 'h264' && type === 8 ? { equal: samePictures } : {}),
      gone: [canary],
    })),
    ...(coding.name === 'h264' ? [2, 3, 4] : [41, 48]).map((type): GateCase => ({
      ...faithful,
      name: `${coding.name}, faithfully: a unit of type ${type}, which no decoder here knows`,
      make: withUnits(coding, (unit) => {
        const head = coding.name === 'h264' ? [type] : [type << 1, 1]
        const entry = coding.name === 'h264' ? 5 : 20
        const hidden = Buffer.concat([Buffer.from(head), Buffer.from(`${canary}\x80`, 'latin1')])
        return [19, entry].includes(coding.typeOf(unit)) ? [unit, hidden] : [unit]
      }),
      gone: [canary],
    })),
    {
      ...faithful,
      name: `${coding.name}, faithfully: what is cut off at an edge without coding anew does not leave`,
      make: (folder) => {
        const [whole, cut] = [join(folder, 'whole.mp4'), join(folder, 'cut.mp4')]
        run([...picture, ...coding.encoder, whole])
        run(['-i', whole, '-c', 'copy', '-bsf:v', `${coding.name}_metadata=crop_right=64`, cut])
        return cut
      },
      equal: (outcomes, source) => {
        samePictures(outcomes, source)
        assert.equal(sidesOf(source), '320x240', 'the control: the source still has it')
        assert.equal(sidesOf(outcomes[0]?.bytes), '256x240')
      },
    },
  ]),
]

/** Of the first picture, with all that is coded. */
function sidesOf(bytes: Buffer = Buffer.alloc(0)): string {
  const folder = mkdtempSync(join(tmpdir(), 'gate-units-'))
  try {
    const file = join(folder, 'film')
    writeFileSync(file, bytes)
    const form = ['-frames:v', '1', '-c:v', 'pgm', '-f', 'image2pipe', 'pipe:1']
    // A greymap begins with its width and height.
    const [, sides = ''] =
      /^P5\s+(\d+\s+\d+)/.exec(
        run(['-apply_cropping', '0', '-i', file, ...form]).toString('latin1', 0, 64),
      ) ?? []
    return sides.replace(/\s+/, 'x')
  } finally {
    rmSync(folder, { recursive: true })
  }
}
