/** The audit log, and deletion certificates: what happened, and whether it can be believed. */
import { createPublicKey, type KeyObject } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import type { Command } from 'commander'
import { z } from 'zod'
import { auditVerdict, pageOf } from '@sluice/protocol/api'
import { auditEvent } from '@sluice/protocol/audit-event'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import {
  type CertificateSummary,
  verifyCertificate,
} from '@sluice/protocol/sealing/verify-certificate'
import { instant, say, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

const listed = z.strictObject({ ...auditEvent.shape, sha256: z.string() })

export function addAuditCommands(program: Command): void {
  const audit = program.command('audit').description('read and check the audit log')

  addCommand(audit, 'list', {
    does: 'list audit events in the order they happened',
    example: 'sluice audit list --after 1000',
  })
    .option('--after <number>', 'continue after this event')
    .option('--job <id>', 'only of this job')
    .option('--agent <id>', 'only of this agent')
    .action(async (options: View & { after?: string; job?: string; agent?: string }) =>
      withClient(async (client) => {
        const query = new URLSearchParams({ limit: '500' })
        if (options.after !== undefined) query.set('after', options.after)
        if (options.job !== undefined) query.set('jobId', options.job)
        if (options.agent !== undefined) query.set('agentId', options.agent)
        const page = await client.get(`/v1/audit?${query.toString()}`, pageOf(listed))
        sayList(page.items, options, {
          SEQ: (item) => String(item.seq),
          AT: (item) => instant(item.atMs, options),
          TYPE: (item) => item.type,
          ACTOR: (item) => ('id' in item.actor ? `${item.actor.kind}:${item.actor.id}` : 'system'),
          SITE: (item) => item.site,
          DETAIL: (item) =>
            Object.entries(item.detail)
              .map(([key, fact]) => `${key}=${fact}`)
              .join(' '),
        })
      }),
    )

  addCommand(audit, 'verify', {
    does: 'follow the chain of all events; with a head noted earlier, also see a cut end',
    example: 'sluice audit verify --head 1042:5f2c…',
  })
    .option('--head <seq:sha256>', 'a head that an earlier run printed')
    .action(async (options: View & { head?: string }) =>
      withClient(async (client) => {
        const verdict = await client.get(`/v1/audit/verify${headQuery(options.head)}`, auditVerdict)
        if (!verdict.whole)
          throw new SluiceError(
            'evidence.invalid',
            `the audit log does not hold at event ${verdict.seq}: ${verdict.reason ?? ''}`,
            {
              hint: 'Keep a copy of the data directory as it is, and find out who could write it.',
            },
          )
        if (options.json === true) say(JSON.stringify(verdict))
        else say(`whole; head ${verdict.seq}:${verdict.sha256 ?? ''}`)
      }),
    )

  addCommand(program, 'verify <file>', {
    does: 'check a deletion certificate offline, against a key pinned beforehand',
    example: 'sluice verify job.certificate.json --trust evidence-public.pem',
  })
    .requiredOption('--trust <key>', 'PEM file of the evidence public key, from a source you trust')
    .action(async (path: string, options: View & { trust: string }) => {
      const summary = judge(await read(path), publicKeyFrom(await read(options.trust)))
      if (options.json === true) say(JSON.stringify({ verified: true, ...summary }, null, 2))
      else tellSummary(summary, options)
    })
}

/** @throws SluiceError `evidence.*`, with what to do about a certificate that does not hold. */
function judge(certificate: Buffer, trusted: KeyObject): CertificateSummary {
  try {
    return verifyCertificate(certificate, trusted)
  } catch (error) {
    if (!isSluiceError(error) || error.hint !== undefined) throw error
    const { code, message } = error
    throw new SluiceError(code, message, {
      hint:
        code === 'evidence.untrusted'
          ? 'Ask whoever gave you the key whether it belongs to this control plane; until then believe nothing in the file.'
          : 'Fetch it again with `sluice jobs certificate`, byte for byte; if that does not verify either, it proves nothing.',
      cause: error,
    })
  }
}

function tellSummary(summary: CertificateSummary, view: View): void {
  const { holders, leases, exclusions, ...facts } = summary
  say('verified: every holder of this job signed that its copy is gone')
  sayFacts({ ...facts, leases: leases.length }, view)
  say('\nholders')
  sayList(holders, view, {
    HOLDER: (item) => item.holder.kind,
    WIPED: (item) => instant(item.wipedAtMs, view),
    METHOD: (item) => item.method,
    CHECKED: (item) => item.checked.join('; '),
  })
  say('\nnot claimed')
  for (const exclusion of exclusions) say(`- ${exclusion}`)
}

function headQuery(head: string | undefined): string {
  if (head === undefined) return ''
  const match = /^(\d{1,15}):([0-9a-f]{64})$/.exec(head)
  if (!match)
    throw new SluiceError('usage', `not a head: ${head}`, {
      hint: 'Pass what `sluice audit verify` printed earlier, like 1042:5f2c….',
    })
  return `?seq=${match[1]}&sha256=${match[2]}`
}

async function read(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (cause) {
    throw new SluiceError('usage', `${path}: cannot be read`, {
      hint: 'Name an existing file.',
      cause,
    })
  }
}

function publicKeyFrom(pem: Buffer): KeyObject {
  const refused = (cause?: unknown) =>
    new SluiceError('usage', 'the trusted key is not a public key in PEM', {
      hint: 'Pin evidence/evidence-key.pub.pem of the data directory, which was made at the first start.',
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
