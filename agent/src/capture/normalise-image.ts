/** Turns a picture of unknown origin into one that is only pixels: upright, sRGB, checked piece by piece. */
import { z } from 'zod'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { collectOutput, ownScript, runInSandbox, siblingScript } from '../sandbox.ts'
import { requireDecoderEnd } from './decoder-end.ts'
import { checkCleanJpeg, checkCleanPng } from './image-structure.ts'
import type { Source } from './inspect.ts'
import type { NormalisedMedium } from './normalised.ts'
import { hold } from './scratch.ts'
import type { HoldOptions } from './scratch.ts'

const decodedImage = z.union([
  z.strictObject({ failed: z.enum(['corrupt', 'too_large']) }),
  z.strictObject({
    removed: z.array(z.string().regex(/^[a-z0-9-]{1,64}$/)).max(64),
    tools: z.strictObject({ sharp: z.string().max(64), libvips: z.string().max(64) }),
  }),
])

/** What the decoder says before the bytes: u32 little-endian length, this as JSON, the picture. */
export type DecodedImage = z.infer<typeof decodedImage>

/** A PNG of noise is a little larger than its samples; four bytes a pixel and some room. */
const outputBytesMax = 4 * limits.imagePixelsMax + 64 * 1024 ** 2
const headerBytesMax = 16 * 1024

/**
 * Normalises a JPEG to JPEG (quality 95, 4:4:4) and a PNG or WebP to PNG, the first frame only.
 * JPEG stays JPEG because what a camera's JPEG lost is lost; PNG may hold screens and masks, where
 * every bit counts.
 *
 * @throws SluiceError `media.corrupt`, `media.too_large`, `media.timeout`, `media.decoder_failed`,
 *   `media.not_clean`.
 */
export async function normaliseImage(
  source: Source,
  options: HoldOptions & { isolation: IsolationLevel; signal?: AbortSignal },
): Promise<NormalisedMedium> {
  const script = ownScript(siblingScript(import.meta.url, 'image-decoder'))
  const bounds = [limits.imagePixelsMax, limits.imageSidePixelsMax].map(String)
  const { exit, value } = await runInSandbox(
    {
      isolation: options.isolation,
      program: script.program,
      args: () => [...script.args, source.format, ...bounds],
      visible: script.visible,
      stdin: source.stream(),
      bounds: {
        wallMs: limits.imageDecodeMsMax,
        memoryBytes: limits.decoderMemoryBytesMax,
        outputBytesMax,
      },
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    },
    collectOutput,
  )
  requireDecoderEnd(exit, 'picture')
  const { header, picture } = splitAnswer(value)
  if ('failed' in header) throw failure(header.failed)
  const jpeg = source.format === 'jpeg'
  const size = jpeg ? checkCleanJpeg(picture) : checkCleanPng(picture)
  const content = await hold([picture], options)
  value.fill(0)
  return {
    kind: 'image',
    extension: jpeg ? 'jpg' : 'png',
    codec: jpeg ? 'mjpeg' : 'png',
    ...size,
    source: { format: source.format, bytes: source.bytes },
    removed: header.removed,
    tools: header.tools,
    content,
  }
}

function splitAnswer(answer: Buffer): { header: DecodedImage; picture: Buffer } {
  const jsonBytes = answer.length < 4 ? Infinity : answer.readUInt32LE(0)
  if (jsonBytes > headerBytesMax || 4 + jsonBytes > answer.length) throw nonsense()
  let json: unknown
  try {
    json = JSON.parse(answer.toString('utf8', 4, 4 + jsonBytes))
  } catch {
    // Nothing of the answer is repeated: it comes from a decoder that may have been taken over.
    throw nonsense()
  }
  const header = decodedImage.safeParse(json)
  if (!header.success) throw nonsense()
  return { header: header.data, picture: answer.subarray(4 + jsonBytes) }
}

function nonsense(): SluiceError {
  return new SluiceError('media.decoder_failed', 'the picture decoder gave no valid answer', {
    hint: 'The picture may be hostile; look at it on a machine that has nothing to lose.',
  })
}

function failure(failed: 'corrupt' | 'too_large'): SluiceError {
  if (failed === 'corrupt') {
    return new SluiceError('media.corrupt', 'the picture is damaged or cut short', {
      hint: 'Copy it from the camera again; damaged pictures are not sealed.',
    })
  }
  const megapixels = limits.imagePixelsMax / 1_000_000
  const side = limits.imageSidePixelsMax
  return new SluiceError('media.too_large', `the picture has too many pixels`, {
    hint: `The limits are ${megapixels} megapixels and ${side} pixels a side; scale it down first.`,
  })
}
