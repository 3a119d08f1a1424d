/** Measures an image: its size, a hash that survives scaling, and how sharp it is. */
import sharp, { type Sharp } from 'sharp'

/** What a normalised image has at most, and room to spare. */
const bytesMax = 256 * 1024 ** 2
/** Sharpness is compared at one size, so that large images are not blurred by their own resolution. */
const sharpnessSidePixels = 1024

/** @param input The whole image, JPEG, PNG or WebP. */
export async function measureImage(input: AsyncIterable<Buffer>): Promise<object> {
  const bytes = await collect(input)
  const { width, height, format, channels } = await sharp(bytes).metadata()
  return {
    widthPixels: width,
    heightPixels: height,
    format,
    channels,
    differenceHash: await differenceHash(bytes),
    sharpness: await laplacianVariance(bytes),
  }
}

/**
 * dHash: one bit for each pair of neighbours in a 9 × 8 greyscale image, row by row.
 *
 * @returns 64 bits as 16 lower-case hex digits; alike images differ in few bits.
 * @see hackerfactor.com, "Kind of Like That" (2013)
 */
async function differenceHash(bytes: Buffer): Promise<string> {
  const { data } = await grey(bytes).resize(9, 8, { fit: 'fill' }).raw().toBuffer({
    resolveWithObject: true,
  })
  let hash = 0n
  for (let row = 0; row < 8; row += 1) {
    for (let column = 0; column < 8; column += 1) {
      const at = row * 9 + column
      hash = (hash << 1n) | (data[at]! < data[at + 1]! ? 1n : 0n)
    }
  }
  return hash.toString(16).padStart(16, '0')
}

/**
 * Variance of the Laplacian: near 0 for a blurred image, hundreds and more for a sharp one.
 *
 * @see Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000)
 */
async function laplacianVariance(bytes: Buffer): Promise<number> {
  const side = sharpnessSidePixels
  const { data, info } = await grey(bytes)
    .resize(side, side, { fit: 'inside', withoutEnlargement: true })
    .raw()
    .toBuffer({ resolveWithObject: true })
  const { width, height } = info
  let count = 0
  let sum = 0
  let squares = 0
  for (let y = 1; y < height - 1; y += 1) {
    for (let x = 1; x < width - 1; x += 1) {
      const at = y * width + x
      const around = data[at - 1]! + data[at + 1]! + data[at - width]! + data[at + width]!
      const value = around - 4 * data[at]!
      count += 1
      sum += value
      squares += value * value
    }
  }
  if (count === 0) return 0
  const mean = sum / count
  return Math.round((squares / count - mean * mean) * 100) / 100
}

function grey(bytes: Buffer): Sharp {
  return sharp(bytes).flatten().toColourspace('b-w').extractChannel(0)
}

async function collect(input: AsyncIterable<Buffer>): Promise<Buffer> {
  const pieces: Buffer[] = []
  let total = 0
  for await (const piece of input) {
    total += piece.length
    if (total > bytesMax) throw new Error('The image is too large.')
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}
