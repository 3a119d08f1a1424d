/** Has a submission sealed in a child process; what it hands back is complete and durable in the spool. */
import { agentId, jobId, receiveKeyId } from '@sluice/protocol/ids'
import { analyserName, isolationLevel, sha256Hex } from '@sluice/protocol/manifest'
import { kemPublicKey, sealedHeader } from '@sluice/protocol/messages'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { z } from 'zod'
import { infection, sourceIdentity } from '../journal.ts'
import { siblingScript } from '../sandbox.ts'
import { runChild } from './child.ts'
import { efforts } from './compression.ts'
import type { Ffmpeg } from './find-ffmpeg.ts'
import { gatePolicy } from './gate-policy.ts'
import type { Infection } from './scan.ts'
import { deleteSpool } from './spool.ts'

const ffmpegFound = z.strictObject({
  program: z.string(),
  version: z.string(),
  origin: z.enum(['configured', 'system', 'package']),
  films: z.boolean(),
  toneMapping: z.boolean(),
}) satisfies z.ZodType<Ffmpeg>

export const sealOrder = z.strictObject({
  jobId,
  analyser: analyserName,
  sources: z.array(sourceIdentity).min(1),
  agentId,
  receiveKeyId,
  /** The receive key's public half; the job key leaves the child only sealed to it. */
  publicKey: kemPublicKey,
  spoolDir: z.string(),
  reserveBytes: z.int().nonnegative(),
  isolation: isolationLevel,
  /** As `findFfmpeg` found it when the agent started; without one, films and most sounds are refused. */
  ffmpeg: ffmpegFound.optional(),
  gate: gatePolicy.prefault({}),
  /** How much work fewer bytes are worth. */
  effort: z.enum(efforts).default('quick'),
  /** Hashes of what was found infected here before. */
  quarantined: z.array(sha256Hex).max(limits.quarantineEntriesMax).default([]),
})
export type FullSealOrder = z.infer<typeof sealOrder>
/** What has a default may be left out. */
export type SealOrder = Omit<FullSealOrder, 'gate' | 'effort' | 'quarantined'> &
  Partial<Pick<FullSealOrder, 'gate' | 'effort' | 'quarantined'>>

/** What a child tells on the way: which source it is at, and how many bytes are sealed. */
const progress = z.strictObject({
  type: z.literal('progress'),
  stage: z.enum(['normalise', 'seal']),
  done: z.int().nonnegative(),
  total: z.int().nonnegative(),
})
export type SealProgress = Omit<z.infer<typeof progress>, 'type'>

const sealedFacts = z.strictObject({
  type: z.literal('sealed'),
  mediaCount: z.int().min(1),
  /** Media that passed without the word of a scanner. */
  unscanned: z.int().positive().optional(),
  sealedBytes: z.int().positive(),
  sealedHeader,
  sealedHeaderSha256: sha256Hex,
  spoolSha256: sha256Hex,
})
export type SealedFacts = Omit<z.infer<typeof sealedFacts>, 'type'>

/** Which source it was that ended a sealing, by its place in the order. */
const blamed = z.strictObject({ type: z.literal('blamed'), source: z.int().nonnegative() })
/** Told before the refusal itself. */
const infected = z.strictObject({ type: z.literal('infected'), ...infection.shape })

export const sealMessage = z.discriminatedUnion('type', [progress, sealedFacts, blamed, infected])
export type SealMessage = z.infer<typeof sealMessage>

/**
 * Runs gate and sealing for one submission. After a failure nothing of the attempt is left: the
 * next one starts from the source, with another id, key and salt.
 *
 * @throws SluiceError The gate's `media.*`, `spool.full`, `internal` (later) for a killed child.
 */
export async function sealInChild(
  order: SealOrder,
  options: {
    signal: AbortSignal
    progress: (progress: SealProgress) => void
    /** Told which source is to blame for a failure, before it is thrown. */
    blamed?: (source: number) => void
    /** Told of an infected source, before its refusal is thrown. */
    infected?: (infection: Infection) => void
  },
): Promise<SealedFacts> {
  let sealed: SealedFacts | undefined
  try {
    await runChild({
      script: siblingScript(import.meta.url, 'seal-child'),
      order,
      signal: options.signal,
      hear(message) {
        const { type, ...facts } = sealMessage.parse(message)
        if (type === 'progress') options.progress(facts as SealProgress)
        else if (type === 'blamed') options.blamed?.((facts as z.infer<typeof blamed>).source)
        else if (type === 'infected') options.infected?.(facts as Infection)
        else sealed = facts as SealedFacts
      },
    })
    if (sealed) return sealed
    throw new SluiceError('internal', 'a sealing ended without its facts', { retry: 'later' })
  } catch (error) {
    await deleteSpool(order.spoolDir, order.jobId)
    throw error
  }
}
