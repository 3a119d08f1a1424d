/** One medium as it leaves the gate: finished, checked, and held until it is archived. */
import type { Captured, MediumKind, ScanMark } from '@sluice/protocol/manifest'
import type { HeldBytes } from './scratch.ts'
import type { SourceFormat } from './sniff.ts'

/** Facts for the manifest; names, offsets and digests come with the archive. */
export type NormalisedMedium = {
  kind: MediumKind
  /** Extension of the name in the archive, without a dot. */
  extension: 'jpg' | 'png' | 'webp' | 'mp4' | 'flac' | 'wav' | 'm4a' | 'wv'
  /** In ffprobe's words. */
  codec: string
  widthPixels?: number
  heightPixels?: number
  durationMs?: number
  frames?: number
  sampleRateHz?: number
  channels?: number
  /** The sound of the film that comes right before it. */
  soundOfFilm?: true
  /** A further page or frame of the source whose first one came before it. */
  furtherPage?: true
  /** Only what could be decoded of a damaged source. */
  partial?: true
  /** Of several recordings that were joined in one source. */
  joined?: true
  /** What became of a high dynamic range; absent when there was none. */
  hdr?: 'tone-mapped' | 'clipped' | 'kept'
  source: { format: SourceFormat; bytes: number; nameDisagrees?: true }
  /** What the scanners said; absent where nothing is scanned. */
  scan?: ScanMark
  /** What the policy lets through of its metadata. */
  captured?: Captured
  /** Kinds of metadata that were there and are gone, never values. */
  removed: string[]
  /** Tool name to version, for the manifest. */
  tools: Record<string, string>
  /** Disposed of by whoever holds the medium. */
  content: HeldBytes
}
