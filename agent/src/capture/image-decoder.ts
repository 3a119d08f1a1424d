/**
 * Runs alone in the sandbox: takes pictures from standard input one after the other and writes them anew to
 * standard output, upright, in known colours, with nothing but pixels. Trusts nothing, is trusted by nobody.
 */
import sharp from 'sharp'
import { DamagedPicture, TooLargePicture, UnsupportedPicture } from './damaged-picture.ts'
import { libheifVersion } from './decode-heic.ts'
import { frameHead, readFrames } from './picture-frames.ts'
import type { DecoderFrame, DecoderOrder } from './picture-frames.ts'
import { profiles } from './profiles.ts'
import { readPicture, setUpSharp } from './render-picture.ts'

const [fileBytesMax] = process.argv.slice(2).map(Number)

setUpSharp()
const input = readFrames(process.stdin)
for (;;) {
  const frame = await input.next(fileBytesMax ?? 0)
  if (frame === undefined) break
  // The one who asks is the one who is trusted.
  await work(frame.json as DecoderOrder, frame.bytes)
}

async function work(order: DecoderOrder, bytes: Buffer): Promise<void> {
  const { format, profile, ...how } = order
  try {
    const { image } = profiles[profile]
    const { facts, pictures } = readPicture(format, bytes, { profile: image, ...how })
    const pixels = facts.pages.reduce(
      (sum, { widthPixels, heightPixels }) => sum + widthPixels * heightPixels,
      0,
    )
    await tell({ type: 'begun', pixels })
    for await (const { bytes: written, ...told } of pictures()) {
      await tell({ type: 'picture', ...told }, written)
    }
    await tell({ type: 'done', removed: [...facts.removed].toSorted(), tools: tools(format) })
  } catch (error) {
    await tell(failure(error))
  }
}

/** A bug of ours ends the process, which its parent takes for what it is: a decoder that broke down. */
function failure(error: unknown): DecoderFrame {
  if (error instanceof DamagedPicture) {
    return { type: 'failed', why: 'damaged', atByte: error.atByte }
  }
  if (error instanceof TooLargePicture) {
    return { type: 'failed', why: 'too-large', what: error.what }
  }
  if (error instanceof UnsupportedPicture) {
    return { type: 'failed', why: 'unsupported', found: error.found }
  }
  throw error
}

function tools(format: DecoderOrder['format']): Record<string, string> {
  const { vips, sharp: version } = sharp.versions
  const used = { sharp: version, libvips: vips }
  return format === 'heic' ? { ...used, libheif: libheifVersion() } : used
}

async function tell(frame: DecoderFrame, bytes: Buffer = Buffer.alloc(0)): Promise<void> {
  for (const piece of [frameHead(frame, bytes.length), bytes]) {
    await new Promise<void>((resolve) => process.stdout.write(piece, () => resolve()))
  }
}
