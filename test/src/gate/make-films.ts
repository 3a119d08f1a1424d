/** Films and sounds as ffmpeg makes them, and what is changed in them byte by byte. */

import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Two seconds of a test picture, 25 a second. */
export const picture = ['-f', 'lavfi', '-i', 'testsrc2=s=320x240:r=25:d=2']
/** Two seconds of a tone. */
export const tone = ['-f', 'lavfi', '-i', 'sine=440:d=2:r=48000']
/** Noise in which every sample differs. */
export const noise = ['-f', 'lavfi', '-i', 'anoisesrc=d=1:r=48000:c=pink:seed=7', '-ac', '2']
export const h264 = ['-c:v', 'libx264', '-preset', 'ultrafast', '-pix_fmt', 'yuv420p']
export const tags = [
  ...['-metadata', 'title=canary-title', '-metadata', 'comment=canary-comment'],
  ...['-metadata', 'location=+51.5000-000.1200/'],
]

/** Makes a source in `folder`; the last argument is its name. */
export function film(...args: string[]): (folder: string) => string {
  return (folder) => {
    const file = join(folder, args.at(-1) ?? 'a')
    run([...args.slice(0, -1), file])
    return file
  }
}

/** A picture to be attached to something else. */
export const makeCover = film('-f', 'lavfi', '-i', 'color=red:s=64x64', '-frames:v', '1', 'c.png')

/** Makes a source, and changes its bytes. */
export function changed(
  make: (folder: string) => string,
  change: (bytes: Buffer) => Buffer,
): (folder: string) => string {
  return (folder) => {
    const file = make(folder)
    writeFileSync(file, change(readFileSync(file)))
    return file
  }
}

/** Writes bytes that no program has to make. */
export function bytesNamed(name: string, bytes: () => Buffer | string): (folder: string) => string {
  return (folder) => {
    const file = join(folder, name)
    writeFileSync(file, bytes())
    return file
  }
}

export function run(args: readonly string[]): Buffer {
  return execFileSync('ffmpeg', ['-v', 'error', '-y', '-nostdin', ...args], {
    maxBuffer: 256 * 1024 ** 2,
    stdio: ['ignore', 'pipe', 'ignore'],
  })
}

/** What an outcome or source decodes to, as ffmpeg writes it in a given form. */
export function decoded(bytes: Buffer, folder: string, ...form: string[]): Buffer {
  const file = join(folder, 'decoded')
  writeFileSync(file, bytes)
  return run(['-i', file, ...form, 'pipe:1'])
}

/** When each picture is shown, in milliseconds. */
export function pictureTimes(bytes: Buffer, folder: string): number[] {
  return frameFacts(bytes, folder, 'v', 'best_effort_timestamp_time').map(
    ([time]) => Math.round((time ?? 0) * 10_000) / 10,
  )
}

/** When something is first seen or heard, in milliseconds: a white picture, a loud sample. */
export function onset(bytes: Buffer, folder: string, kind: 'v' | 'a'): number {
  if (kind === 'v') {
    const gray = decoded(
      bytes,
      folder,
      ...['-map', '0:v', '-fps_mode', 'passthrough', '-vf', 'scale=2:2,format=gray'],
      ...['-f', 'rawvideo'],
    )
    const frame = gray.findIndex((value, i) => i % 4 === 0 && value > 120) / 4
    return pictureTimes(bytes, folder)[frame] ?? NaN
  }
  const samples = decoded(bytes, folder, '-map', '0:a', '-ac', '1', '-f', 's16le')
  let loud = 0
  while (loud < samples.length / 2 && Math.abs(samples.readInt16LE(loud * 2)) < 1000) loud++
  const entries = 'best_effort_timestamp_time,nb_samples'
  for (const [time, count] of frameFacts(bytes, folder, 'a', entries)) {
    if (loud < (count ?? 0)) return ((time ?? 0) + loud / 48_000) * 1000
    loud -= count ?? 0
  }
  return NaN
}

function frameFacts(bytes: Buffer, folder: string, kind: 'v' | 'a', entries: string): number[][] {
  const file = join(folder, 'probed')
  writeFileSync(file, bytes)
  const lines = execFileSync(
    'ffprobe',
    [
      '-v',
      'error',
      '-select_streams',
      kind,
      '-show_entries',
      `frame=${entries}`,
      '-of',
      'csv',
      file,
    ],
    { maxBuffer: 64 * 1024 ** 2 },
  )
  return lines
    .toString()
    .split('\n')
    .filter((line) => line.startsWith('frame,'))
    .map((line) => line.split(',').slice(1).map(Number))
}

/** A box of an ISO media file. */
export function box(type: string, ...content: (Buffer | string)[]): Buffer {
  const body = Buffer.concat(content.map((part) => Buffer.from(part as string, 'latin1')))
  const head = Buffer.alloc(8)
  head.writeUInt32BE(body.length + 8)
  head.write(type, 4, 'latin1')
  return Buffer.concat([head, body])
}

/** A chunk of RIFF, or with `bigEndian` of AIFF. */
export function chunk(name: string, content: Buffer | string, bigEndian = false): Buffer {
  const body = Buffer.from(content as string, 'latin1')
  const head = Buffer.alloc(8)
  head.write(name, 'latin1')
  if (bigEndian) head.writeUInt32BE(body.length, 4)
  else head.writeUInt32LE(body.length, 4)
  return Buffer.concat([head, body, Buffer.alloc(body.length % 2)])
}

/** Puts a box at the end of an index that lies behind the data, so that no offset changes. */
export function intoIndex(bytes: Buffer, addition: Buffer): Buffer {
  const at = bytes.lastIndexOf('moov') - 4
  const size = bytes.readUInt32BE(at)
  const copy = Buffer.concat([bytes.subarray(0, at + size), addition, bytes.subarray(at + size)])
  copy.writeUInt32BE(size + addition.length, at)
  return copy
}

/** Changes the fields of the first box of a type; `at` counts from its content. */
export function patched(bytes: Buffer, type: string, at: number, value: Buffer): Buffer {
  const found = bytes.indexOf(type)
  if (found < 0) throw new Error(`no ${type}`)
  value.copy(bytes, found + 4 + at)
  return bytes
}

export const be32 = (...values: number[]) => Buffer.from(new Uint32Array(values).buffer).swap32()
export const le32 = (...values: number[]) => Buffer.from(new Uint32Array(values).buffer)
