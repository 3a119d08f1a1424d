/** What the gate is measured against: the same pictures through bare tools that people use today. */

import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'

import { agentMain, hasProgram } from './contenders.ts'
import type { Command } from './measure.ts'

/** One runner over files that lie in a folder; `out` is empty and its own. */
export type Runner = {
  name: string
  kind: 'ours' | 'peer'
  missing: () => string | undefined
  command: (files: { folder: string; paths: readonly string[] }, out: string) => Command
}

export type Race = {
  name: string
  /** Files that are made, and how many of them. */
  count: number
  make: (path: string, place: number) => Promise<unknown>
  extension: string
  runners: readonly Runner[]
  /** What the issue promises, in words and as a check of medians. */
  promise: {
    text: string
    holds: (msOf: (runner: string) => number | undefined) => boolean | undefined
  }
}

const packages = 'apt-get install libvips-tools mat2'

function need(program: string): () => string | undefined {
  return () => (hasProgram(program) ? undefined : `${program} is not installed: ${packages}`)
}

export const sluice: Runner = {
  name: 'sluice-agent sanitise',
  kind: 'ours',
  missing: () => undefined,
  command: ({ folder }, out) => ({
    program: process.execPath,
    args: [agentMain, 'sanitise', folder, out],
  }),
}

/** Decodes, turns upright, converts to sRGB, and encodes with the same settings, in one process. */
const vipsthumbnail: Runner = {
  name: 'vipsthumbnail',
  kind: 'peer',
  missing: need('vipsthumbnail'),
  command: ({ paths }, out) => ({
    program: 'vipsthumbnail',
    args: [
      ...['--size', '4096x4096>', '--export-profile', 'srgb'],
      ...['-o', `${out}/%s.jpg[Q=95,subsample-mode=off,strip]`],
      ...paths,
    ],
  }),
}

/** As folders are cleaned with it from a script or a file manager. It keeps quality 75 and half the colours. */
const mat2PerFile: Runner = {
  name: 'mat2, file by file',
  kind: 'peer',
  missing: need('mat2'),
  command: ({ paths }) => ({
    program: 'sh',
    args: ['-c', 'for file do mat2 --inplace "$file" || exit; done', 'sh', ...paths],
  }),
}

const mat2: Runner = {
  name: 'mat2, all at once',
  kind: 'peer',
  missing: need('mat2'),
  command: ({ paths }) => ({ program: 'mat2', args: ['--inplace', ...paths] }),
}

/** Something like a photograph: soft shapes under grain. */
async function photograph(
  path: string,
  place: number,
  width: number,
  height: number,
): Promise<void> {
  const grain = (sigma: number, size: { width: number; height: number }) =>
    sharp({
      create: {
        ...size,
        channels: 3,
        background: '#808080',
        noise: { type: 'gaussian', mean: 100 + (place % 50), sigma },
      },
    })
      .png({ compressionLevel: 0 })
      .toBuffer()
  const soft = await grain(50, { width: Math.ceil(width / 8), height: Math.ceil(height / 8) })
  const fine = await grain(12, { width, height })
  await sharp(soft)
    .resize(width, height, { kernel: 'cubic' })
    .composite([{ input: fine, blend: 'overlay' }])
    .withExif({ IFD0: { Artist: 'someone' }, IFD3: { GPSLatitudeRef: 'N' } })
    .jpeg({ quality: 88 })
    .toFile(path)
}

const ratio = (a: number | undefined, b: number | undefined): number | undefined =>
  a === undefined || b === undefined ? undefined : a / b

export const races: readonly Race[] = [
  {
    name: 'small pictures (640 x 480)',
    count: 500,
    extension: 'jpg',
    make: (path, place) => photograph(path, place, 640, 480),
    runners: [sluice, vipsthumbnail, mat2PerFile, mat2],
    promise: {
      text: 'at least five times the files a second of mat2, file by file',
      holds: (msOf) => {
        const faster = ratio(msOf('mat2, file by file'), msOf('sluice-agent sanitise'))
        return faster === undefined ? undefined : faster >= 5
      },
    },
  },
  {
    name: 'large pictures (12 megapixels)',
    count: 12,
    extension: 'jpg',
    make: (path, place) => photograph(path, place, 4000, 3000),
    runners: [sluice, vipsthumbnail, mat2],
    promise: {
      text: 'at most 15 % over vipsthumbnail',
      holds: (msOf) => {
        const slower = ratio(msOf('sluice-agent sanitise'), msOf('vipsthumbnail'))
        return slower === undefined ? undefined : slower <= 1.15
      },
    },
  },
]

/** Makes the files of a race; not timed. */
export async function makeFiles(race: Race, folder: string): Promise<string[]> {
  mkdirSync(folder)
  for (let place = 0; place < race.count; place++) {
    await race.make(join(folder, `${String(place).padStart(5, '0')}.${race.extension}`), place)
  }
  return readdirSync(folder).map((name) => join(folder, name))
}

/** An empty folder for what one runner writes. */
export function emptyFolder(folder: string): string {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder)
  return folder
}
