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

export const bitstreamCases: readonly GateCase[] = codings.flatMap((coding): GateCase[] => [
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
])

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
