/** Verifies a purge's forensic bundle offline: every byte of it, and every document in it. */
import { createHash, type KeyObject } from 'node:crypto'
import { blockBytes, endBytes, planEntry } from '../archive.ts'
import { parseCanonicalJson } from '../canonical.ts'
import { limits } from '../limits.ts'
import {
  bundleDocumentName,
  bundleManifestName,
  type PurgeBundle,
  purgeBundleStatement,
} from '../purge-bundle.ts'
import { verifyStatement } from './dsse.ts'
import { incomplete, invalid } from './evidence-problem.ts'
import { type AuditFound, BundleAudit } from './verify-bundle-audit.ts'
import { verifyCertificate } from './verify-certificate.ts'
import { type VerifiedDocument, verifyDocument } from './verify-document.ts'
import { verifyWriteOff } from './verify-write-off.ts'

export const bundlePayloadType = 'application/vnd.sluice.purge-bundle.v1+json'

export type VerifiedBundle = {
  bundle: PurgeBundle
  document: VerifiedDocument
  certificates: number
  audit: AuditFound
}

/** One entry after another of a tar as our writer makes it; no other form is read. */
export async function* bundleEntries(
  bytes: AsyncIterable<Uint8Array>,
): AsyncGenerator<{ name: string; content: Buffer }> {
  let held = Buffer.alloc(0)
  const source = bytes[Symbol.asyncIterator]()
  const take = async (count: number): Promise<Buffer> => {
    const pieces = [held]
    let length = held.length
    while (length < count) {
      const next = await source.next()
      if (next.done === true) throw invalid('the bundle is cut')
      pieces.push(Buffer.from(next.value))
      length += next.value.length
    }
    const all = Buffer.concat(pieces)
    held = all.subarray(count)
    return all.subarray(0, count)
  }
  for (;;) {
    const header = await take(blockBytes)
    if (header.every((byte) => byte === 0)) {
      const rest = await take(endBytes - blockBytes)
      const more = held.length > 0 || (await source.next()).done !== true
      if (more || rest.some((byte) => byte !== 0)) throw invalid('something follows the bundle')
      return
    }
    const name = header.toString('latin1', 0, 100).replace(/\0+$/, '')
    const size = Number.parseInt(header.toString('latin1', 124, 135), 8)
    if (!/^[0-9A-Za-z][0-9A-Za-z._-]{0,79}$/.test(name) || !Number.isSafeInteger(size) || size < 0)
      throw invalid('an entry of the bundle has no name or size')
    if (size > limits.purgeCertificateBytesMax) throw invalid(`${name} is too large`)
    const plan = planEntry(name, size)
    if (!plan.header.equals(header)) throw invalid(`the header of ${name} is not as we write it`)
    const content = await take(size)
    if ((await take(plan.paddingBytes)).some((byte) => byte !== 0))
      throw invalid(`something hides behind ${name}`)
    yield { name, content }
  }
}

/**
 * Verifies a bundle as it is read, one entry in memory.
 *
 * @throws SluiceError `evidence.*`: anything added, left out, changed or reordered, and any document
 * in it that does not hold, or that the purge's certificate does not name.
 */
export async function verifyBundle(
  bytes: AsyncIterable<Uint8Array>,
  trustedKey: KeyObject,
): Promise<VerifiedBundle> {
  const files = createHash('sha256')
  const named = createHash('sha256')
  const audit = new BundleAudit()
  let count = 0
  let certificates = 0
  let document: VerifiedDocument | undefined
  let bundle: PurgeBundle | undefined
  for await (const { name, content } of bundleEntries(bytes)) {
    if (bundle) throw invalid('an entry follows the manifest')
    if (name === bundleManifestName) {
      bundle = manifestIn(content, trustedKey)
      continue
    }
    const sha256 = createHash('sha256').update(content).digest('hex')
    files.update(`${sha256} ${name}\n`)
    count += 1
    if ((count === 1) !== (name === bundleDocumentName))
      throw invalid('it does not begin with the document of its purge')
    if (count === 1) document = verifyDocument(content, trustedKey)
    if (name.startsWith('write-off-')) verifyWriteOff(content, trustedKey)
    if (name.startsWith('audit-')) audit.read(content)
    if (!name.startsWith('certificate-')) continue
    const { jobId } = verifyCertificate(content, trustedKey)
    if (name !== `certificate-${jobId}.json`) throw invalid('a certificate lies under another name')
    named.update(`${jobId} ${sha256}\n`)
    certificates += 1
  }
  if (!bundle || !document) throw incomplete('the bundle has no manifest or no document')
  if (bundle.filesCount !== count || bundle.filesSha256 !== files.digest('hex'))
    throw invalid('its files are not those of its manifest')
  checkDocument(document, { bundle, certificates, certificatesSha256: named.digest('hex') })
  return { bundle, document, certificates, audit: audit.found }
}

function checkDocument(
  document: VerifiedDocument,
  found: { bundle: PurgeBundle; certificates: number; certificatesSha256: string },
): void {
  if (document.kind !== 'purge-certificate' && document.kind !== 'purge-report')
    throw invalid('it begins with another document')
  const { facts } = document
  if (facts.purgeId !== found.bundle.purgeId) throw invalid('its document is of another purge')
  if (document.kind === 'purge-report') return
  if (found.certificates !== document.facts.jobsCount)
    throw incomplete('a deletion certificate is missing')
  if (found.certificatesSha256 !== document.facts.certificatesSha256)
    throw invalid('its certificates are not those that the purge names')
}

function manifestIn(content: Buffer, publicKey: KeyObject): PurgeBundle {
  const expected = { payloadType: bundlePayloadType, publicKey } as const
  const parsed = purgeBundleStatement.safeParse(
    verifyStatement(parseCanonicalJson(content), expected),
  )
  if (!parsed.success) throw invalid('its manifest is none', parsed.error)
  const { subject, predicate } = parsed.data
  const about = subject[0]
  if (about?.name !== `purge:${predicate.purgeId}`) throw invalid('its manifest names two purges')
  if (about.digest.sha256 !== predicate.filesSha256) throw invalid('its manifest names two digests')
  return predicate
}
