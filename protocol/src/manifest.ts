/** The manifest: what a sealed archive says about its own media. It travels only inside the archive. */
import { z } from 'zod'
import { jobId } from './ids.ts'
import { limits } from './limits.ts'

/** Lower-case hexadecimal SHA-256. */
export const sha256Hex = z.string().regex(/^[0-9a-f]{64}$/, 'must be 64 lower-case hex digits')

/** What an analyser is called: lower-case words joined by dashes. */
export const analyserName = z
  .string()
  .max(limits.nameCharsMax)
  .regex(/^[a-z0-9]+(?:-[a-z0-9]+)*$/, 'must be lower-case letters and digits joined by dashes')

export const mediumKind = z.enum(['image', 'video', 'audio'])
export type MediumKind = z.infer<typeof mediumKind>

/** An entry's name inside the archive: its number and the normalised format, never the source's name. */
export const mediumName = z.string().regex(/^[0-9]{4,5}\.(?:jpg|png|webp|mp4|flac|wav|m4a|wv)$/)

/** How a decoder was kept from the rest of the host. */
export const isolationLevel = z.enum(['bubblewrap', 'none'])
export type IsolationLevel = z.infer<typeof isolationLevel>

/** `inherited`: decoders are only held to what the service of their agent may call. */
export const systemCalls = z.enum(['filtered', 'inherited', 'any'])
export type SystemCalls = z.infer<typeof systemCalls>

/** Which table of `capture/profiles.ts` the media were normalised by. */
export const gateProfile = z.enum(['analysis', 'faithful', 'compact'])
export type GateProfile = z.infer<typeof gateProfile>

export const scanMark = z.enum(['clean', 'unscanned'])
export type ScanMark = z.infer<typeof scanMark>

/** What looks at media on a capture host; `quarantine` knows a content again by its hash. */
export const scanEngine = z.enum(['clamd', 'yara', 'quarantine'])
export type ScanEngineName = z.infer<typeof scanEngine>

/**
 * What the operator of the capture host lets through of a source's metadata, made coarse there: the
 * true time lies within `stepMs` after `fromMs`, the true place in a cell of `stepDegrees` around the
 * one named.
 */
export const captured = z.strictObject({
  time: z
    .strictObject({
      fromMs: z.int().nonnegative(),
      stepMs: z.int().positive(),
      /** `unknown`: the camera's local time, taken as UTC. */
      zone: z.enum(['utc', 'unknown']),
    })
    .optional(),
  camera: z.enum(['phone', 'camera', 'action-camera', 'drone', 'scanner']).optional(),
  region: z
    .strictObject({
      latitudeDegrees: z.number().min(-90).max(90),
      longitudeDegrees: z.number().min(-180).max(180),
      stepDegrees: z.number().positive(),
    })
    .optional(),
})
export type Captured = z.infer<typeof captured>

const count = z.int().nonnegative()

/**
 * One normalised medium. `offset` is where its bytes begin in the opened archive, behind its tar
 * header; `removed` names kinds of metadata, never their values.
 */
export const mediumEntry = z.strictObject({
  name: mediumName,
  kind: mediumKind,
  /** Codec of the normalised medium, in ffprobe's words: `mjpeg`, `png`, `h264`, `flac`, `pcm_s16le`. */
  codec: z.string().max(32),
  offset: count,
  bytes: count,
  sha256: sha256Hex,
  widthPixels: z.int().positive().optional(),
  heightPixels: z.int().positive().optional(),
  durationMs: count.optional(),
  frames: count.optional(),
  sampleRateHz: z.int().positive().optional(),
  channels: z.int().positive().optional(),
  /** The film this sound was taken from, when it is a film's own track. */
  soundOf: mediumName.optional(),
  /** The first page of the same source, when this is a further page or frame of it. */
  pageOf: mediumName.optional(),
  /** Only what could still be decoded of a damaged source; the rest is missing or grey. */
  partial: z.literal(true).optional(),
  /** Several recordings that were joined in one source: what is seen jumps between them. */
  joined: z.literal(true).optional(),
  /**
   * What the scanners of the capture host said: `unscanned` passed without a verdict, because its
   * policy lets it. Absent where nothing is scanned.
   */
  scan: scanMark.optional(),
  /** High dynamic range of the source: mapped to the range of a screen, cut off at it, or kept. */
  hdr: z.enum(['tone-mapped', 'clipped', 'kept']).optional(),
  source: z.strictObject({
    /** Type found by content, such as `jpeg` or `mov`. */
    format: z.string().max(16),
    bytes: count,
    /** The name of the source promised another type. */
    nameDisagrees: z.literal(true).optional(),
  }),
  removed: z.array(z.string().max(64)).max(64),
  captured: captured.optional(),
})
export type MediumEntry = z.infer<typeof mediumEntry>

export const manifest = z.strictObject({
  schema: z.literal('sluice-manifest/1'),
  jobId,
  analyser: analyserName,
  /** X-Wing public key (1216 bytes, base64url) that results are sealed to. */
  resultPublicKey: z.base64url().length(1622),
  media: z.array(mediumEntry).min(1).max(limits.mediaPerJobMax),
  isolation: isolationLevel,
  /** Whether decoders could reach only the system calls they need (seccomp). */
  systemCalls: systemCalls.optional(),
  profile: gateProfile.optional(),
  /** Tool name to version: `sluice`, `sharp`, `libvips`, `ffmpeg`. */
  tools: z.record(z.string().max(32), z.string().max(128)),
})
export type Manifest = z.infer<typeof manifest>
