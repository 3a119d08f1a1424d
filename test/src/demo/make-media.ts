/** Makes media on the spot that look like what a camera gives, with the metadata that must not travel. */

import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'

import sharp from 'sharp'

const run = promisify(execFile)

const photoWidthPixels = 1600
const photoHeightPixels = 1200
const sampleRateHz = 44_100
const soundSeconds = 6
const filmSeconds = 10

/** Written into the photo's EXIF, the film's title and the sound's chunks: a needle of its own. */
export const metadataMark = 'Sluice demo: the owner of this camera, 48.1374 N 11.5755 E'

export type MadeMedia = {
  files: string[]
  /** What could not be made, in words, and why. */
  missing: string[]
}

/**
 * Makes a photo with a position, a sound, and a film with sound where there is an ffmpeg to make it with.
 *
 * @param folder Where they are written.
 * @param ffmpeg Path of a program that can make films, or undefined.
 */
export async function makeMedia(folder: string, ffmpeg: string | undefined): Promise<MadeMedia> {
  const made: MadeMedia = { files: [], missing: [] }
  made.files.push(await makePhoto(join(folder, 'photo.jpg')))
  if (ffmpeg === undefined) {
    made.missing.push('no film: none could be made without an ffmpeg that encodes H.264')
  } else {
    made.files.push(await makeFilm(join(folder, 'film.mp4'), ffmpeg))
  }
  made.files.push(await makeSound(join(folder, 'sound.wav')))
  return made
}

async function makePhoto(path: string): Promise<string> {
  const size = `width="${photoWidthPixels}" height="${photoHeightPixels}"`
  const scene = `<svg xmlns="http://www.w3.org/2000/svg" ${size}>
    <defs><linearGradient id="sky" x1="0" y1="0" x2="0" y2="1">
      <stop offset="0" stop-color="#1b3a6b"/><stop offset="1" stop-color="#f4b07a"/>
    </linearGradient></defs>
    <rect ${size} fill="url(#sky)"/>
    <circle cx="1180" cy="620" r="120" fill="#ffe9b8"/>
    <path d="M0 900 L380 520 L700 860 L1000 600 L1600 980 V1200 H0 Z" fill="#2d3b45"/>
    <path d="M0 1010 C400 940 900 1090 1600 1000 V1200 H0 Z" fill="#3f6f8f"/>
  </svg>`
  // Grain, as every sensor has it: without it the compressed file would repeat itself.
  const noise = { type: 'gaussian', mean: 128, sigma: 30 } as const
  const dimensions = { width: photoWidthPixels, height: photoHeightPixels }
  const grain = await sharp({
    create: { ...dimensions, channels: 3, background: '#808080', noise },
  })
    .png({ compressionLevel: 1 })
    .toBuffer()
  await sharp(Buffer.from(scene))
    .composite([{ input: grain, blend: 'soft-light' }])
    .removeAlpha()
    .withExif({
      IFD0: { Make: 'Sluice', Model: 'Demo camera', Artist: metadataMark },
      IFD3: {
        GPSLatitudeRef: 'N',
        GPSLatitude: '48/1 8/1 1464/100',
        GPSLongitudeRef: 'E',
        GPSLongitude: '11/1 34/1 3180/100',
      },
    })
    .jpeg({ quality: 90 })
    .toFile(path)
  return path
}

/** Three scenes, so that there are two cuts to find, and a tone. */
async function makeFilm(path: string, ffmpeg: string): Promise<string> {
  const size = 's=640x360:r=25'
  const sources = [
    `testsrc2=${size}:d=4`,
    `mandelbrot=${size}:start_scale=0.6:end_scale=0.2`,
    `smptehdbars=${size}:d=3`,
  ]
  const scenes = '[0:v]format=yuv420p[a];[1:v]trim=duration=3,format=yuv420p[b];[2:v]noise=alls=12'
  await run(ffmpeg, [
    ...['-nostdin', '-v', 'error', '-y'],
    ...sources.flatMap((source) => ['-f', 'lavfi', '-i', source]),
    ...['-f', 'lavfi', '-i', `sine=frequency=330:beep_factor=3:duration=${filmSeconds}`],
    ...['-filter_complex', `${scenes}:allf=t,format=yuv420p[c];[a][b][c]concat=n=3:v=1[v]`],
    ...['-map', '[v]', '-map', '3:a', '-t', String(filmSeconds)],
    ...['-c:v', 'libx264', '-preset', 'ultrafast', '-crf', '26', '-c:a', 'aac', '-b:a', '96k'],
    ...['-metadata', `title=${metadataMark}`, '-metadata', 'location=+48.1374+011.5755/'],
    path,
  ])
  return path
}

/** A chord with a little hiss, 16 bit, two channels, and a chunk that names its author. */
async function makeSound(path: string): Promise<string> {
  const frames = sampleRateHz * soundSeconds
  const samples = Buffer.alloc(frames * 4)
  for (let frame = 0; frame < frames; frame += 1) {
    const angle = (2 * Math.PI * frame) / sampleRateHz
    const fade = Math.min(1, frame / sampleRateHz, (frames - frame) / sampleRateHz)
    const chord = Math.sin(angle * 220) + Math.sin(angle * 277.18) + Math.sin(angle * 329.63)
    for (const channel of [0, 1]) {
      const hiss = (Math.random() - 0.5) * 0.04
      const value = fade * (chord * 0.2 + hiss + channel * 0.05 * Math.sin(angle * 440))
      samples.writeInt16LE(Math.round(value * 0x7fff), frame * 4 + channel * 2)
    }
  }
  const format = Buffer.alloc(16)
  format.writeUInt16LE(1, 0)
  format.writeUInt16LE(2, 2)
  format.writeUInt32LE(sampleRateHz, 4)
  format.writeUInt32LE(sampleRateHz * 4, 8)
  format.writeUInt16LE(4, 12)
  format.writeUInt16LE(16, 14)
  const author = Buffer.from(`${metadataMark}\0`)
  const list = Buffer.concat([Buffer.from('INFO'), chunk('IART', author)])
  const wave = [Buffer.from('WAVE'), chunk('fmt ', format), chunk('LIST', list)]
  await writeFile(path, chunk('RIFF', Buffer.concat([...wave, chunk('data', samples)])))
  return path
}

/** @see Multimedia Programming Interface and Data Specifications 1.0: RIFF chunks are padded to even sizes. */
function chunk(name: string, content: Buffer): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32LE(content.length)
  return Buffer.concat([Buffer.from(name), length, content, Buffer.alloc(content.length % 2)])
}
