/** Turns a picture of unknown origin into ones that are only pixels: upright, in known colours, checked byte by byte. */
import assert from 'node:assert/strict'
import type { GateProfile, IsolationLevel } from '@sluice/protocol/manifest'
import { checkClean } from './clean-picture.ts'
import type { Effort } from './compression.ts'
import type { Source } from './inspect.ts'
import type { NormalisedMedium } from './normalised.ts'
import type { PicturePool } from './picture-pool.ts'
import { openPicturePool } from './picture-pool.ts'
import { isPictureFormat } from './sniff.ts'
import { hold } from './scratch.ts'
import type { HoldOptions } from './scratch.ts'

export type ImageOptions = HoldOptions & {
  isolation: IsolationLevel
  /** Decoders that are shared with other pictures; without one, a process of its own. */
  pictures?: PicturePool
  profile?: GateProfile
  salvage?: boolean
  effort?: Effort
  pages?: 'all' | 'first'
  signal?: AbortSignal
}

/**
 * Normalises a picture as its profile says; the further pages of a document, or frames where they are
 * wanted, follow the first one.
 *
 * @throws SluiceError `media.corrupt` with the position where it broke, `media.unsupported`,
 *   `media.too_large`, `media.timeout`, `media.decoder_failed`, `media.not_clean`.
 */
export async function normaliseImage(
  source: Source,
  options: ImageOptions,
): Promise<NormalisedMedium[]> {
  const { pictures } = options
  if (pictures !== undefined) return normaliseWith(pictures, source, options)
  await using own = openPicturePool({ ...options, width: 1 })
  return await normaliseWith(own, source, options)
}

async function normaliseWith(
  pool: PicturePool,
  source: Source,
  options: ImageOptions,
): Promise<NormalisedMedium[]> {
  const { profile = 'analysis', salvage = false, effort = 'quick', pages = 'all' } = options
  const { format } = source
  assert.ok(isPictureFormat(format))
  const order = { format, profile, salvage, effort, pages }
  const media: NormalisedMedium[] = []
  try {
    const file = { bytes: source.bytes, stream: source.stream() }
    const { removed, tools } = await pool.use(
      order.format === 'heic' ? 'heic' : 'sharp',
      async (decoder) =>
        decoder.decode(order, file, async ({ partial, hdr }, bytes) => {
          const { codec, extension, ...size } = checkClean(bytes)
          media.push({
            kind: 'image',
            extension,
            codec,
            ...size,
            ...(partial === undefined ? {} : { partial }),
            ...(hdr === undefined ? {} : { hdr }),
            ...(media.length === 0 ? {} : { furtherPage: true }),
            source: { format: source.format, bytes: source.bytes },
            removed: [],
            tools: {},
            content: await hold([bytes], options),
          })
          bytes.fill(0)
        }),
    )
    return media.map((medium) => ({ ...medium, removed, tools }))
  } catch (error) {
    for (const { content } of media) await content[Symbol.asyncDispose]()
    throw error
  }
}
