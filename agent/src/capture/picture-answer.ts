/** Checks what a picture decoder answers: fixed words and numbers only, as it may have been taken over. */
import { z } from 'zod'
import { tooMuch, unsupportedKinds } from './damaged-picture.ts'
import type { TooMuch, UnsupportedKind } from './damaged-picture.ts'
import type { DecoderFrame } from './picture-frames.ts'

const words = <Word extends string>(record: Readonly<Record<Word, unknown>>) =>
  z.enum(Object.keys(record) as [Word, ...Word[]])

const kind = z.string().regex(/^[a-z0-9-]{1,64}$/)

/** Told once the header was read and is within the limits; decoding begins. */
const begun = z.strictObject({ type: z.literal('begun'), pixels: z.int().nonnegative().max(1e9) })

/** One finished picture. */
const picture = z.strictObject({
  type: z.literal('picture'),
  partial: z.literal(true).optional(),
  hdr: z.literal('tone-mapped').optional(),
})

const done = z.strictObject({
  type: z.literal('done'),
  removed: z.array(kind).max(64),
  tools: z.record(kind, z.string().regex(/^[0-9A-Za-z.+-]{1,64}$/)),
})

const failed = z.discriminatedUnion('why', [
  z.strictObject({
    type: z.literal('failed'),
    why: z.literal('damaged'),
    atByte: z.int().nonnegative(),
  }),
  z.strictObject({
    type: z.literal('failed'),
    why: z.literal('too-large'),
    what: words<TooMuch>(tooMuch),
  }),
  z.strictObject({
    type: z.literal('failed'),
    why: z.literal('unsupported'),
    found: words<UnsupportedKind>(unsupportedKinds),
  }),
])

export const decoderFrame: z.ZodType<DecoderFrame> = z.union([begun, picture, done, failed])
