/** Streams the forensic bundle of a purge: signed, complete and without secrets, a page at a time. */
import { createHash, type Hash } from 'node:crypto'
import { endBytes, planEntry } from '@sluice/protocol/archive'
import type { AuditEventType } from '@sluice/protocol/audit-event'
import { type CanonicalValue, canonicalJson } from '@sluice/protocol/canonical'
import { SluiceError } from '@sluice/protocol/errors'
import type { PurgeId } from '@sluice/protocol/ids'
import {
  bundleDocumentName,
  type BundleEvent,
  bundleManifestName,
  personalDetails,
  purgeBundleOf,
} from '@sluice/protocol/purge-bundle'
import { signStatement } from '@sluice/protocol/sealing/dsse'
import { bundlePayloadType } from '@sluice/protocol/sealing/verify-bundle'
import { buildVersion } from '../build.ts'
import { type ConcludeParts, interimReport } from './conclude.ts'
import {
  bundleAgents,
  bundleDocuments,
  bundleEvents,
  bundleReceipts,
  bundleRevocations,
  documentOf,
} from './store.ts'

export type BundleParts = ConcludeParts & {
  /** Hex, of the configuration in force without credentials. */
  configSha256: string
}

/** Rows in memory at a time; a certificate of a job with many leases has a few hundred KiB. */
const pageRows = 100

type Entry = { name: string; text: string }

/**
 * The bundle as a tar: the purge's document, its jobs' certificates and write-offs, all receipts,
 * agents with the time each was good, revocations that concern them, and audit events with their
 * hashes; a signed manifest ends it.
 *
 * No token, key row, label, name of a file or result is in it, and of what a person wrote as a reason
 * only its SHA-256.
 *
 * @throws SluiceError `request.conflict` for a purge that destroyed nothing.
 */
export async function* purgeBundle(parts: BundleParts, id: PurgeId): AsyncGenerator<Buffer> {
  const digest = createHash('sha256')
  let filesCount = 0
  for await (const entry of entriesOf(parts, id)) {
    filesCount += 1
    yield* tarEntry(entry, digest)
  }
  const filesSha256 = digest.digest('hex')
  const builtAtMs = parts.now()
  const version = buildVersion()
  const { configSha256 } = parts
  const of = { purgeId: id, filesCount, filesSha256, builtAtMs, version, configSha256 }
  const statement = purgeBundleOf(of)
  const text = canonicalJson(signStatement(bundlePayloadType, statement, parts.evidence))
  yield* tarEntry({ name: bundleManifestName, text })
  yield Buffer.alloc(endBytes)
}

async function* entriesOf(parts: BundleParts, id: PurgeId): AsyncGenerator<Entry> {
  yield { name: bundleDocumentName, text: await documentText(parts, id) }
  const { database } = parts
  const items = pageRows
  const documents = pages<Awaited<ReturnType<typeof bundleDocuments>>[number]>((last) =>
    database.read(async (sql) => bundleDocuments(sql, { id, after: last?.subjectId ?? '', items })),
  )
  for await (const page of documents)
    for (const { kind, subjectId, envelope } of page)
      yield { name: `${kind}-${subjectId}.json`, text: envelope }
  const signed = pages<{ obligationId: string; envelope: string }>((last) =>
    database.read(async (sql) =>
      bundleReceipts(sql, { id, after: last?.obligationId ?? '', items }),
    ),
  )
  for await (const page of signed)
    for (const { obligationId, envelope } of page)
      yield { name: `receipt-${obligationId}.json`, text: envelope }
  const agents = pages<{ id: string }>((last) =>
    database.read(async (sql) => bundleAgents(sql, { id, after: last?.id ?? '', items })),
  )
  yield* lists('agents', agents)
  const revoked = pages<Awaited<ReturnType<typeof bundleRevocations>>[number]>((last) =>
    database.read((sql) => bundleRevocations(sql, { id, after: last?.id ?? '', items })),
  )
  yield* lists('revocations', revoked, revocationLine)
  const events = pages<BundleEvent>((last) =>
    database.read((sql) => bundleEvents(sql, { id, afterSeq: last?.event.seq ?? 0, items })),
  )
  yield* lists('audit', events, withoutReasons)
}

/** Page after page, until one is not full; each begins behind the last row of the one before. */
async function* pages<Row>(read: (last: Row | undefined) => Promise<Row[]>): AsyncGenerator<Row[]> {
  let last: Row | undefined
  do {
    const page = await read(last)
    if (page.length > 0) yield page
    last = page.length < pageRows ? undefined : page.at(-1)
  } while (last !== undefined)
}

/** A file of lines for each page. */
async function* lists<Row extends object>(
  name: string,
  rows: AsyncIterable<Row[]>,
  line: (row: Row) => object = (row) => row,
): AsyncGenerator<Entry> {
  let number = 0
  for await (const page of rows) {
    number += 1
    const lines = page.map((row) => `${canonicalJson(line(row) as CanonicalValue)}\n`)
    yield { name: `${name}-${number}.jsonl`, text: lines.join('') }
  }
}

/** A label may name a ward, and a reason a person. */
function revocationLine({
  reason,
  target,
  ...rest
}: Awaited<ReturnType<typeof bundleRevocations>>[number]): object {
  const named = rest.kind === 'label' ? { targetSha256: sha256Of(target) } : { target }
  return { ...rest, ...named, reasonSha256: sha256Of(reason) }
}

/** Events whose `reason` is a code of ours. */
const coded: ReadonlySet<AuditEventType> = new Set(['job.state-changed', 'lease.ended'])

function withoutReasons({ event, sha256 }: BundleEvent): BundleEvent {
  if (coded.has(event.type)) return { event, sha256 }
  const detail = { ...event.detail }
  const redacted: BundleEvent['redacted'] = {}
  for (const name of personalDetails) {
    const text = detail[name]
    if (typeof text !== 'string') continue
    redacted[name] = sha256Of(text)
    delete detail[name]
  }
  const isWhole = Object.keys(redacted).length === 0
  return isWhole ? { event, sha256 } : { event: { ...event, detail }, sha256, redacted }
}

function sha256Of(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

async function documentText(parts: ConcludeParts, id: PurgeId): Promise<string> {
  const kept = await parts.database.read(
    async (sql) =>
      (await documentOf(sql, id, 'purge-certificate')) ??
      (await documentOf(sql, id, 'purge-report')),
  )
  return kept ?? interimReport(parts, id)
}

function* tarEntry({ name, text }: Entry, digest?: Hash): Generator<Buffer> {
  const content = Buffer.from(text)
  if (content.length === 0)
    throw new SluiceError('evidence.incomplete', `${name} of this bundle is empty`)
  digest?.update(`${createHash('sha256').update(content).digest('hex')} ${name}\n`)
  const { header, paddingBytes } = planEntry(name, content.length)
  yield header
  yield content
  yield Buffer.alloc(paddingBytes)
}
