/** `sluice verify`: judges certificates and reports offline, and never takes one for the other. */
import { createPublicKey, type KeyObject } from 'node:crypto'
import { open, readFile } from 'node:fs/promises'
import type { Command } from 'commander'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { PurgeCertificate, PurgeReport } from '@sluice/protocol/purge-certificate'
import type { CertificateSummary } from '@sluice/protocol/sealing/verify-certificate'
import { verifyBundle } from '@sluice/protocol/sealing/verify-bundle'
import { type VerifiedDocument, verifyDocument } from '@sluice/protocol/sealing/verify-document'
import type { WriteOff } from '@sluice/protocol/write-off'
import { instant, say, sayFacts, sayList, type View } from './output.ts'
import { addCommand } from './program.ts'

export function addVerifyCommand(program: Command): void {
  addCommand(program, 'verify <file>', {
    does: 'check a certificate, report or bundle (.tar) offline, against a key pinned beforehand',
    example: 'sluice verify job.certificate.json --trust evidence-public.pem',
  })
    .requiredOption('--trust <key>', 'PEM file of the evidence public key, from a source you trust')
    .action(async (path: string, options: View & { trust: string }) => {
      const trusted = publicKeyFrom(await read(options.trust))
      if (path.endsWith('.tar')) return judgeBundle(path, trusted, options)
      const found = judge(await read(path), trusted)
      tell(found, options)
      requireCertificate(found)
    })
}

/** Reads a bundle entry by entry: it may be larger than memory. */
async function judgeBundle(path: string, trusted: KeyObject, options: View): Promise<void> {
  const file = await open(path).catch((cause: unknown) => {
    throw unreadable(path, cause)
  })
  await using stream = file.createReadStream()
  const { bundle, document, certificates, audit } = await verifyBundle(stream, trusted)
  if (options.json !== true) {
    say('the bundle is whole: nothing was added, left out or changed')
    sayFacts({ ...bundle, certificates, auditEvents: audit.events }, options)
    say('')
  }
  tell(document, options)
  requireCertificate(document)
}

/** @throws SluiceError `evidence.*`, with what to do about a document that does not hold. */
function judge(bytes: Buffer, trusted: KeyObject): VerifiedDocument {
  try {
    return verifyDocument(bytes, trusted)
  } catch (error) {
    if (!isSluiceError(error) || error.hint !== undefined) throw error
    const { code, message } = error
    throw new SluiceError(code, message, {
      hint:
        code === 'evidence.untrusted'
          ? 'Ask whoever gave you the key whether it belongs to this control plane; until then believe nothing in the file.'
          : 'Fetch it again, byte for byte; if that does not verify either, it proves nothing.',
      cause: error,
    })
  }
}

/** A report is true and still proves no deletion: scripts must see that in the exit code. */
function requireCertificate(found: VerifiedDocument): void {
  if (found.kind === 'deletion-certificate' || found.kind === 'purge-certificate') return
  const name = found.kind === 'purge-report' ? 'a purge report' : 'a write-off report'
  throw new SluiceError('evidence.incomplete', `this is ${name}, not a certificate`, {
    hint: 'Its signature holds, and it says itself what is missing.',
  })
}

function tell(found: VerifiedDocument, view: View): void {
  if (view.json === true) {
    const verified = found.kind === 'deletion-certificate' || found.kind === 'purge-certificate'
    return say(JSON.stringify({ verified, kind: found.kind, ...found.facts }, null, 2))
  }
  switch (found.kind) {
    case 'deletion-certificate':
      return tellJob(found.facts, view)
    case 'purge-certificate':
      say('verified: this purge is complete; every holder signed that nothing is left')
      return tellPurge(found.facts, view)
    case 'purge-report':
      say('not a certificate: a purge that is not complete')
      tellPurge(found.facts, view)
      say(`\nopen: ${found.facts.open.count}`)
      return sayList(found.facts.open.duties, view, {
        DUTY: (item) => item.kind,
        JOB: (item) => item.jobId ?? '-',
        AGENT: (item) => item.agentId ?? '-',
        TRIES: (item) => String(item.attempts),
        ERROR: (item) => item.lastErrorCode ?? '-',
      })
    case 'write-off':
      return tellWriteOff(found.facts, view)
  }
}

function tellJob(summary: CertificateSummary, view: View): void {
  const { holders, leases, exclusions, ...facts } = summary
  say('verified: every holder of this job signed that its copy is gone')
  sayFacts({ ...facts, leases: leases.length }, view)
  say('\nholders')
  sayList(holders, view, {
    HOLDER: ({ holder }) =>
      holder.place === undefined ? holder.kind : `${holder.kind} ${holder.place}`,
    WIPED: (item) => instant(item.wipedAtMs, view),
    METHOD: (item) => item.method,
    CHECKED: (item) => item.checked.join('; '),
  })
  tellExclusions(exclusions)
}

function tellPurge(facts: PurgeCertificate | PurgeReport, view: View): void {
  const { agents, receipts: _receipts, signers: _signers, exclusions, ...others } = facts
  const { heldSkipped, unasked, ...rest } = others
  const { jobs: _jobs, open: _open, ...plain } = { jobs: undefined, open: undefined, ...rest }
  sayFacts({ ...plain, heldSkipped: heldSkipped.count, unasked: unasked.count }, view)
  say('\nagents')
  sayList(agents, view, {
    AGENT: (item) => item.agentId,
    CONFIRMED: (item) => instant(item.confirmedAtMs, view),
    SCOPE: (item) => (item.everything ? 'everything' : 'what was named'),
  })
  if (unasked.count > 0) say('\ncould not be asked: revoked before, with no job in the scope')
  for (const id of unasked.agentIds) say(`- ${id}`)
  tellExclusions(exclusions)
}

function tellWriteOff({ gaps, confirmed, ...facts }: WriteOff, view: View): void {
  say('not a certificate: a job whose holder never confirmed')
  sayFacts({ ...facts, confirmed: confirmed.length }, view)
  say('\nnever confirmed')
  sayList(gaps, view, {
    HOLDER: (item) => item.kind,
    AGENT: (item) => item.agentId ?? '-',
    SEEN: (item) => instant(item.lastSeenAtMs, view),
    KEY: (item) => (item.hadKey ? 'had it' : 'never'),
    LEASE_ENDED: (item) => instant(item.leaseDeadlineAtMs, view),
  })
}

function tellExclusions(exclusions: readonly string[]): void {
  say('\nnot claimed')
  for (const exclusion of exclusions) say(`- ${exclusion}`)
}

async function read(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (cause) {
    throw unreadable(path, cause)
  }
}

function unreadable(path: string, cause: unknown): SluiceError {
  const hint = 'Name an existing file.'
  return new SluiceError('usage', `${path}: cannot be read`, { hint, cause })
}

function publicKeyFrom(pem: Buffer): KeyObject {
  const refused = (cause?: unknown) =>
    new SluiceError('usage', 'the trusted key is not a public key in PEM', {
      hint: 'Pin evidence/evidence-public.pem of the data directory, which was made at the first start.',
      cause,
    })
  // A private key would do for node:crypto too, but nobody should have it at hand.
  if (!pem.toString('latin1').startsWith('-----BEGIN PUBLIC KEY-----')) throw refused()
  try {
    return createPublicKey(pem)
  } catch (cause) {
    throw refused(cause)
  }
}
