/** Media as small as a journey can do with, each with metadata that must not leave the capture host. */

import { execFile } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'

import { findFfmpeg } from '@sluice/agent/capture/find-ffmpeg'
import { detectIsolation } from '@sluice/agent/sandbox'
import sharp from 'sharp'

import { need } from './need.ts'

const run = promisify(execFile)

export const photoWidthPixels = 480
export const photoHeightPixels = 360
export const soundMs = 1000
export const filmMs = 1000

const sampleRateHz = 44_100
const frameBytes = 4

let ffmpeg: Promise<string | undefined> | undefined

async function ffmpegHere(): Promise<string | undefined> {
  const isolation = await detectIsolation().catch(() => detectIsolation('none'))
  return (await findFfmpeg({ isolation }))?.program
}

/** For `skip`: false where films can be made and normalised. */
export async function needFfmpeg(): Promise<string | false> {
  ffmpeg ??= ffmpegHere()
  return need('ffmpeg', (await ffmpeg) !== undefined, 'apt-get install ffmpeg')
}

/** Noise all over, so that every piece of it is unlike anything else; with a position in its EXIF. */
export async function makePhoto(path: string): Promise<string> {
  const size = { width: photoWidthPixels, height: photoHeightPixels, channels: 3 } as const
  const pixels = randomFillSync(Buffer.alloc(size.width * size.height * size.channels))
  await sharp(pixels, { raw: size })
    .withExif({
      IFD0: { Artist: 'the owner of this camera' },
      IFD3: { GPSLatitudeRef: 'N', GPSLatitude: '48/1 8/1 1464/100' },
    })
    .jpeg({ quality: 85 })
    .toFile(path)
  return path
}

/** One second of moving picture with a tone. */
export async function makeFilm(path: string): Promise<string> {
  ffmpeg ??= ffmpegHere()
  const program = await ffmpeg
  if (program === undefined) throw new Error('a film takes ffmpeg')
  const seconds = String(filmMs / 1000)
  await run(program, [
    ...['-nostdin', '-v', 'error', '-y'],
    ...['-f', 'lavfi', '-i', `testsrc2=s=320x240:r=25:d=${seconds}`],
    ...['-f', 'lavfi', '-i', `sine=frequency=440:duration=${seconds}`],
    ...['-vf', 'noise=alls=20:allf=t,format=yuv420p', '-c:v', 'libx264', '-preset', 'ultrafast'],
    ...['-c:a', 'aac', '-metadata', 'location=+48.1374+011.5755/', '-shortest', path],
  ])
  return path
}

/** White noise, which no codec makes smaller. 16 bit, two channels. */
export async function makeSound(path: string, lengthMs: number = soundMs): Promise<string> {
  const dataBytes = Math.round((sampleRateHz * lengthMs) / 1000) * frameBytes
  const file = randomFillSync(Buffer.alloc(44 + dataBytes), 44)
  file.write('RIFF', 0, 'latin1')
  file.writeUInt32LE(36 + dataBytes, 4)
  file.write('WAVEfmt ', 8, 'latin1')
  file.writeUInt32LE(16, 16)
  file.writeUInt16LE(1, 20)
  file.writeUInt16LE(2, 22)
  file.writeUInt32LE(sampleRateHz, 24)
  file.writeUInt32LE(sampleRateHz * frameBytes, 28)
  file.writeUInt16LE(frameBytes, 32)
  file.writeUInt16LE(16, 34)
  file.write('data', 36, 'latin1')
  file.writeUInt32LE(dataBytes, 40)
  await writeFile(path, file)
  return path
}
