/** The audit log: what happened, and whether the log can be believed. */
import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'
import type { Command } from 'commander'
import { z } from 'zod'
import { auditSinkView, auditVerdict, pageOf } from '@sluice/protocol/api'
import { auditEvent } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import { type ChainHead, chainStart, followChain } from '../audit/rules.ts'
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

  addCommand(audit, 'sink', {
    does: 'show how far the audit sink has come, and what last went wrong',
    example: 'sluice audit sink',
  }).action(async (options: View) =>
    withClient(async (client) =>
      sayFacts(await client.get('/v1/audit/sink', auditSinkView), options),
    ),
  )

  addCommand(audit, 'verify', {
    does: 'follow the chain of all events; with a head noted earlier, also see a cut end',
    example: 'sluice audit verify --head 1042:5f2c…',
  })
    .option('--head <seq:sha256>', 'a head that an earlier run printed')
    .option('--file <file>', 'a file of the audit sink instead, offline')
    .action(async (options: View & { head?: string; file?: string }) => {
      if (options.file !== undefined) {
        const { seq, sha256 } = await verifyFile(options.file, options.head)
        return say(
          options.json === true
            ? JSON.stringify({ whole: true, seq, sha256 })
            : `whole; head ${seq}:${sha256}`,
        )
      }
      await withClient(async (client) => {
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
      })
    })
}

/**
 * Follows the chain of an exported file from its first line, whatever number that has.
 *
 * @throws SluiceError `evidence.invalid` at the first line that does not hold.
 */
async function verifyFile(path: string, head: string | undefined): Promise<ChainHead> {
  headQuery(head)
  const broken = (line: number, reason: string) =>
    new SluiceError('evidence.invalid', `${path} does not hold at line ${line}: ${reason}`)
  let at: ChainHead | undefined
  let line = 0
  let noted = head === undefined
  for await (const text of createInterface({ input: createReadStream(path) })) {
    line += 1
    let event: Record<string, unknown>
    try {
      event = JSON.parse(text) as Record<string, unknown>
    } catch (cause) {
      throw new SluiceError('evidence.invalid', broken(line, 'it is no event').message, { cause })
    }
    at ??= { seq: Number(event['seq']) - 1, sha256: String(event['previousSha256']) }
    if (line === 1 && event['seq'] === 1) at = { seq: 0, sha256: chainStart }
    const verdict = followChain([event], at)
    if (!verdict.whole) throw broken(line, verdict.reason)
    at = verdict.head
    noted ||= head === `${at.seq}:${at.sha256}`
  }
  if (at === undefined) throw broken(1, 'it is empty')
  if (!noted) throw broken(line, 'the noted head is not in it')
  return at
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
