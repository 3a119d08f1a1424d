/** Writes the archive of a job: each medium in turn, the manifest that describes them, and the index. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { archiveEnd, manifestName, planEntry, planIndex } from '@sluice/protocol/archive'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { manifest as manifestSchema } from '@sluice/protocol/manifest'
import type { Manifest, MediumEntry } from '@sluice/protocol/manifest'
import type { NormalisedMedium } from './normalised.ts'

/** What the manifest says beside the media; `tools` is completed by the decoders' versions. */
export type ManifestHead = Pick<
  Manifest,
  'jobId' | 'analyser' | 'resultPublicKey' | 'isolation' | 'systemCalls' | 'profile' | 'tools'
>

/** Takes the archive's bytes in order; each call is awaited, and its buffer zeroed afterwards. */
export type ArchiveSink = (bytes: Buffer) => Promise<void> | void

/**
 * Streams the archive. Each item of `media` is what one source became (a film's sound follows its
 * film); it is read once, to its end, before the next one is asked for, so one is held at a time.
 *
 * @returns The manifest as it was written.
 * @throws SluiceError `object.too_large` when the job has too many media; what `media` and `sink`
 *   throw. The archive is complete only when this returns.
 */
export async function writeArchive(
  job: {
    media: AsyncIterable<readonly NormalisedMedium[]> | Iterable<readonly NormalisedMedium[]>
    head: ManifestHead
  },
  sink: ArchiveSink,
): Promise<Manifest> {
  let offset = 0
  const put = async (bytes: Buffer) => {
    if (bytes.length === 0) return
    offset += bytes.length
    await sink(bytes)
    bytes.fill(0)
  }
  const entries: MediumEntry[] = []
  let first: MediumEntry | undefined
  const tools = { ...job.head.tools }
  for await (const group of job.media) {
    for (const medium of group) {
      if (entries.length === limits.mediaPerJobMax) throw tooMany()
      const previous = entries.at(-1)
      const name = `${String(entries.length + 1).padStart(4, '0')}.${medium.extension}`
      const { header, paddingBytes } = planEntry(name, medium.content.bytes)
      await put(header)
      const entryOffset = offset
      const sha256 = await putContent(medium, put)
      await put(Buffer.alloc(paddingBytes))
      const entry = describe({ medium, name, offset: entryOffset, sha256, previous, first })
      if (medium.furtherPage !== true) first = entry
      entries.push(entry)
      Object.assign(tools, medium.tools)
    }
  }
  const manifest: Manifest = {
    schema: 'sluice-manifest/1',
    ...job.head,
    tools,
    media: entries,
  }
  await putManifest(manifest, { offset, put })
  return manifest
}

async function putContent(
  medium: NormalisedMedium,
  put: (bytes: Buffer) => Promise<void>,
): Promise<string> {
  const digest = createHash('sha256')
  let left = medium.content.bytes
  for await (const piece of medium.content.read()) {
    left -= piece.length
    digest.update(piece)
    await put(piece)
  }
  // The header with the size is out already.
  assert.equal(left, 0)
  return digest.digest('hex')
}

async function putManifest(
  manifest: Manifest,
  at: { offset: number; put: (bytes: Buffer) => Promise<void> },
): Promise<void> {
  // What a reader would refuse must never be sealed.
  const json = Buffer.from(JSON.stringify(manifestSchema.parse(manifest)))
  if (json.length > limits.manifestBytesMax) throw tooMany()
  const index = planIndex({ manifestHeaderOffset: at.offset, manifestBytes: json.length })
  const { header, paddingBytes } = planEntry(manifestName, json.length)
  await at.put(header)
  await at.put(json)
  await at.put(Buffer.alloc(paddingBytes))
  await at.put(archiveEnd(index))
}

function describe(options: {
  medium: NormalisedMedium
  name: string
  offset: number
  sha256: string
  previous: MediumEntry | undefined
  /** The last one that was no further page. */
  first: MediumEntry | undefined
}): MediumEntry {
  const { medium, name, offset, sha256, previous, first } = options
  const { kind, codec, source, removed, content } = medium
  const entry: MediumEntry = {
    name,
    kind,
    codec,
    offset,
    bytes: content.bytes,
    sha256,
    source,
    removed,
  }
  const { widthPixels, heightPixels, durationMs, frames, sampleRateHz, channels } = medium
  if (widthPixels !== undefined) entry.widthPixels = widthPixels
  if (heightPixels !== undefined) entry.heightPixels = heightPixels
  if (durationMs !== undefined) entry.durationMs = durationMs
  if (frames !== undefined) entry.frames = frames
  if (sampleRateHz !== undefined) entry.sampleRateHz = sampleRateHz
  if (channels !== undefined) entry.channels = channels
  if (medium.soundOfFilm === true) {
    assert.equal(previous?.kind, 'video')
    if (previous !== undefined) entry.soundOf = previous.name
  }
  if (medium.furtherPage === true) {
    assert.equal(first?.kind, medium.kind)
    if (first !== undefined) entry.pageOf = first.name
  }
  if (medium.partial === true) entry.partial = true
  if (medium.joined === true) entry.joined = true
  if (medium.hdr !== undefined) entry.hdr = medium.hdr
  if (medium.scan !== undefined) entry.scan = medium.scan
  if (medium.captured !== undefined) entry.captured = medium.captured
  return entry
}

function tooMany(): SluiceError {
  return new SluiceError('object.too_large', 'the job has too many media', {
    hint: `A job holds at most ${limits.mediaPerJobMax} media; split it over several.`,
  })
}
