/**
 * Runs alone in the sandbox: decodes one picture from standard input and writes it anew to standard
 * output, upright, in sRGB, with nothing but pixels. Trusts nothing, is trusted by nobody.
 */
import sharp from 'sharp'
import { isSluiceError } from '@sluice/protocol/errors'
import { reduceJpeg, reducePng } from './image-structure.ts'
import type { DecodedImage } from './normalise-image.ts'
import { listRemoved } from './image-metadata.ts'

type PictureFormat = 'jpeg' | 'png' | 'webp'

const loaders: Record<PictureFormat, string> = {
  jpeg: 'VipsForeignLoadJpeg',
  png: 'VipsForeignLoadPng',
  webp: 'VipsForeignLoadWebp',
}

const [format, pixelsMax, sideMax] = readArguments()

// Only the loader that our own sniff named: libvips would else try every one it knows.
sharp.block({ operation: ['VipsForeignLoad'] })
sharp.unblock({ operation: [loaders[format]] })
sharp.cache(false)
sharp.concurrency(1)

const [header, picture] = await decode()
const json = Buffer.from(JSON.stringify(header))
const prefix = Buffer.alloc(4)
prefix.writeUInt32LE(json.length)
for (const piece of [prefix, json, picture]) {
  await new Promise<void>((resolve) => process.stdout.write(piece, () => resolve()))
}

async function decode(): Promise<[DecodedImage, Buffer]> {
  try {
    return await writeAnew(await readAll())
  } catch (error) {
    // Whatever libvips says may quote the picture; the kind of failure is all that leaves.
    const code = isSluiceError(error) && error.code === 'media.too_large' ? 'too_large' : 'corrupt'
    return [{ failed: code }, Buffer.alloc(0)]
  }
}

async function writeAnew(source: Buffer): Promise<[DecodedImage, Buffer]> {
  const input = { failOn: 'warning', limitInputPixels: pixelsMax, pages: 1 } as const
  // Reads the header only; the limit is ours to check, so that a large picture isn't called damaged.
  const metadata = await sharp(source, { ...input, limitInputPixels: false }).metadata()
  const { width, height } = metadata
  if (width > sideMax || height > sideMax || width * height > pixelsMax) {
    return [{ failed: 'too_large' }, Buffer.alloc(0)]
  }
  const removed = listRemoved({ format, source, exif: metadata.exif })
  // The profile is applied with perceptual intent and dropped; no keep…() is ever called.
  const upright = sharp(source, { ...input, sequentialRead: true })
    .autoOrient()
    .toColourspace('srgb')
  const output =
    format === 'jpeg'
      ? reduceJpeg(await upright.jpeg({ quality: 95, chromaSubsampling: '4:4:4' }).toBuffer())
      : reducePng(await upright.png({ compressionLevel: 1, palette: false }).toBuffer())
  const { vips, sharp: version } = sharp.versions
  return [{ removed, tools: { sharp: version, libvips: vips } }, output]
}

async function readAll(): Promise<Buffer> {
  const pieces: Buffer[] = []
  for await (const piece of process.stdin) pieces.push(Buffer.from(piece))
  return Buffer.concat(pieces)
}

function readArguments(): [PictureFormat, number, number] {
  const [name, pixels, side] = process.argv.slice(2)
  if (name !== 'jpeg' && name !== 'png' && name !== 'webp') process.exit(2)
  return [name, Number(pixels), Number(side)]
}
