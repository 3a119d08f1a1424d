/** Streams the forensic bundle of a purge: signed, complete and without secrets, a page at a time. */
import { createHash, type Hash } from 'node:crypto'
import { endBytes, planEntry } from '@sluice/protocol/archive'
import { type CanonicalValue, canonicalJson } from '@sluice/protocol/canonical'
import { SluiceError } from '@sluice/protocol/errors'
import type { PurgeId } from '@sluice/protocol/ids'
import {
  bundleDocumentName,
  bundleManifestName,
  purgeBundleOf,
} from '@sluice/protocol/purge-bundle'
import { signStatement } from '@sluice/protocol/sealing/dsse'
import { bundlePayloadType } from '@sluice/protocol/sealing/verify-bundle'
import { buildVersion } from '../build.ts'
import { type ConcludeParts, interimReport } from './conclude.ts'
import { bundleAgents, bundleDocuments, bundleEvents, bundleReceipts, documentOf } from './store.ts'

/** Rows in memory at a time; a certificate of a job with many leases has a few hundred KiB. */
const pageRows = 100

type Entry = { name: string; text: string }

/**
 * The bundle as a tar: the purge's document, its jobs' certificates and write-offs, all receipts,
 * agents with the time each was good, and audit events with their hashes; a signed manifest ends it.
 *
 * No token, key row, label, name of a file or result is in it.
 *
 * @throws SluiceError `request.conflict` for a purge that destroyed nothing.
 */
export async function* purgeBundle(parts: ConcludeParts, id: PurgeId): AsyncGenerator<Buffer> {
  const digest = createHash('sha256')
  let filesCount = 0
  for await (const entry of entriesOf(parts, id)) {
    filesCount += 1
    yield* tarEntry(entry, digest)
  }
  const filesSha256 = digest.digest('hex')
  const builtAtMs = parts.now()
  const version = buildVersion()
  const statement = purgeBundleOf({ purgeId: id, filesCount, filesSha256, builtAtMs, version })
  const text = canonicalJson(signStatement(bundlePayloadType, statement, parts.evidence))
  yield* tarEntry({ name: bundleManifestName, text })
  yield Buffer.alloc(endBytes)
}

async function* entriesOf(parts: ConcludeParts, id: PurgeId): AsyncGenerator<Entry> {
  yield { name: bundleDocumentName, text: await documentText(parts, id) }
  const { database } = parts
  let after = ''
  for (;;) {
    const page = await database.read(async (sql) =>
      bundleDocuments(sql, { id, after, items: pageRows }),
    )
    for (const { kind, subjectId, envelope } of page)
      yield { name: `${kind}-${subjectId}.json`, text: envelope }
    if (page.length < pageRows) break
    after = page.at(-1)!.subjectId
  }
  after = ''
  for (;;) {
    const page = await database.read(async (sql) =>
      bundleReceipts(sql, { id, after, items: pageRows }),
    )
    for (const { obligationId, envelope } of page)
      yield { name: `receipt-${obligationId}.json`, text: envelope }
    if (page.length < pageRows) break
    after = page.at(-1)!.obligationId
  }
  after = ''
  for (let number = 1; ; number += 1) {
    const page = await database.read(async (sql) =>
      bundleAgents(sql, { id, after, items: pageRows }),
    )
    if (page.length > 0) yield { name: `agents-${number}.jsonl`, text: linesOf(page) }
    if (page.length < pageRows) break
    after = page.at(-1)!.id
  }
  let afterSeq = 0
  for (let number = 1; ; number += 1) {
    const page = await database.read(async (sql) =>
      bundleEvents(sql, { id, afterSeq, items: pageRows }),
    )
    if (page.length > 0) yield { name: `audit-${number}.jsonl`, text: linesOf(page) }
    if (page.length < pageRows) break
    afterSeq = page.at(-1)!.seq
  }
}

async function documentText(parts: ConcludeParts, id: PurgeId): Promise<string> {
  const kept = await parts.database.read(
    async (sql) =>
      (await documentOf(sql, id, 'purge-certificate')) ??
      (await documentOf(sql, id, 'purge-report')),
  )
  return kept ?? interimReport(parts, id)
}

function linesOf(rows: readonly object[]): string {
  return rows.map((row) => `${canonicalJson(row as CanonicalValue)}\n`).join('')
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
