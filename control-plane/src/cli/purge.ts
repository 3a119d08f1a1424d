/** Destroys a scope at once, and follows how far that has come. */
import { open } from 'node:fs/promises'
import type { Command } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import {
  type PurgeDetail,
  purgeDetail,
  type PurgePreview,
  purgePreview,
  purgeView,
} from '@sluice/protocol/api-purge'
import { approvalAsked } from '@sluice/protocol/api-approvals'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { type PurgeScope, purgeScope } from '@sluice/protocol/purge'
import { sayAsked } from './approvals.ts'
import { instant, remark, say, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

const exampleId = '0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0'

type PurgeOptions = View & {
  reason: string
  dryRun?: true
  breakGlass?: true
  includingHeld?: true
  wait: boolean
}

export function addPurgeCommands(program: Command): void {
  addCommand(program, 'purge <scope> [what...]', {
    does: 'destroy every copy and key of a scope at once',
    example: 'sluice purge label ward=3 --reason "stolen host" --dry-run',
  })
    .requiredOption('--reason <text>', 'why, for the audit log')
    .option('--dry-run', 'show what it would hit and change nothing')
    .option('--break-glass', 'begin at once without a second person; everybody hears of it')
    .option('--including-held', 'destroy held jobs too; always takes two people')
    .option('--no-wait', 'do not follow it')
    .addHelpText(
      'after',
      [
        '\nScopes:',
        '  job ID | agent ID | site NAME | label KEY=VALUE | store directory|s3',
        '  time FROM UNTIL    instants with an offset, or milliseconds since 1970',
        '  everything',
      ].join('\n'),
    )
    .action(async (kind: string, what: string[], options: PurgeOptions) =>
      purge(scopeFrom(kind, what), options),
    )

  const purges = program.command('purges').description('follow purges and fetch their evidence')

  addCommand(purges, 'list', { does: 'list purges, newest first', example: 'sluice purges list' })
    .option('--after <id>', 'continue after this purge')
    .action(async (options: View & { after?: string }) =>
      withClient(async (client) => {
        const query = new URLSearchParams({ limit: '100' })
        if (options.after !== undefined) query.set('after', options.after)
        const page = await client.get(`/v1/purges?${query.toString()}`, pageOf(purgeView))
        sayList(page.items, options, {
          ID: (item) => item.id,
          STATE: (item) => item.state,
          SCOPE: (item) => scopeText(item.scope),
          SITE: (item) => item.site,
          JOBS: (item) => String(item.jobs),
          REQUESTED: (item) => instant(item.requestedAtMs, options),
          'KEYS UNUSABLE': (item) => instant(item.keysUnusableAtMs, options),
          CONCLUDED: (item) => instant(item.concludedAtMs, options),
        })
        if (page.next !== undefined && options.json !== true)
          remark(`more: sluice purges list --after ${page.next}`)
      }),
    )

  addCommand(purges, 'show <id>', {
    does: 'show how far a purge has come, and what is still owed',
    example: `sluice purges show ${exampleId}`,
  }).action(async (id: string, options: View) =>
    withClient(async (client) => sayPurge(await client.get(pathOf(id), purgeDetail), options)),
  )

  addCommand(purges, 'watch <id>', {
    does: 'follow a purge until it has ended',
    example: `sluice purges watch ${exampleId}`,
  }).action(async (id: string, options: View) => watch(id, options))

  addCommand(purges, 'write-off <id>', {
    does: 'ask a second person to give up on agents that cannot confirm any more',
    example: `sluice purges write-off ${exampleId} --reason 'the host was stolen'`,
  })
    .requiredOption('--reason <text>', 'why, for the audit log')
    .action(async (id: string, options: View & { reason: string }) =>
      withClient(async (client) => {
        const body = { reason: options.reason }
        const { approval } = await client.post(`${pathOf(id)}/write-off`, body, approvalAsked)
        sayAsked(approval, options)
      }),
    )

  addCommand(purges, 'bundle <id>', {
    does: 'fetch everything that proves a purge, as one signed tar',
    example: `sluice purges bundle ${exampleId} --out purge.tar`,
  })
    .requiredOption('--out <file>', 'new file for it')
    .action(async (id: string, options: View & { out: string }) =>
      withClient(async (client) => {
        await using file = await open(options.out, 'wx', 0o600).catch((cause: unknown) => {
          throw new SluiceError('usage', `${options.out}: exists, or cannot be made`, {
            hint: 'Name a new file.',
            cause,
          })
        })
        for await (const piece of client.pieces(`${pathOf(id)}/bundle`)) await file.writeFile(piece)
        await file.sync()
        return remark(
          `wrote ${options.out}; check it with: sluice verify ${options.out} --trust KEY`,
        )
      }),
    )

  addCommand(purges, 'report <id>', {
    does: 'fetch the certificate of a purge, or a signed report of what is open',
    example: `sluice purges report ${exampleId} --out purge.certificate.json`,
  })
    .option('--out <file>', 'new file for it; else standard output')
    .action(async (id: string, options: View & { out?: string }) =>
      withClient(async (client) => {
        const bytes = await client.bytes(
          `${pathOf(id)}/report`,
          limits.purgeCertificateBytesMax * 2,
        )
        if (options.out === undefined) return void process.stdout.write(bytes)
        await using file = await open(options.out, 'wx', 0o644).catch((cause: unknown) => {
          throw new SluiceError('usage', `${options.out}: exists, or cannot be made`, {
            hint: 'Name a new file.',
            cause,
          })
        })
        await file.writeFile(bytes)
        await file.sync()
        return remark(
          `wrote ${options.out}; check it with: sluice verify ${options.out} --trust KEY`,
        )
      }),
    )
}

async function purge(scope: PurgeScope, options: PurgeOptions): Promise<void> {
  const { reason, breakGlass = false, includingHeld = false } = options
  const body = { scope, reason, breakGlass, includingHeld }
  if (options.dryRun === true)
    return withClient(async (client) => {
      const asked = { ...body, dryRun: true }
      sayPreview(await client.post('/v1/purges', asked, purgePreview), options)
    })
  const begun = await withClient((client) => client.post('/v1/purges', body, purgeDetail))
  if (begun.state === 'waiting') {
    sayPurge(begun, options)
    remark('Its scope is locked. Nothing is destroyed before another person agrees:')
    remark(`  sluice approvals give ${begun.approvalId ?? ''}`)
    return
  }
  if (!options.wait) return sayPurge(begun, options)
  if (options.json !== true) say(`purge ${begun.id}`)
  await watch(begun.id, options)
}

/** @throws SluiceError `usage` for what is no scope. */
function scopeFrom(kind: string, what: readonly string[]): PurgeScope {
  const [first = '', second = ''] = what
  const wanted = kind === 'everything' ? 0 : kind === 'time' ? 2 : 1
  const refuse = () =>
    new SluiceError('usage', `not a scope: ${[kind, ...what].join(' ')}`, {
      hint: 'Write one of those that `sluice purge --help` lists.',
    })
  if (what.length !== wanted) throw refuse()
  const at = first.indexOf('=')
  const scopes: Record<string, () => unknown> = {
    job: () => ({ kind, jobId: first }),
    agent: () => ({ kind, agentId: first }),
    site: () => ({ kind, site: first }),
    label: () => ({ kind, key: first.slice(0, Math.max(at, 0)), value: first.slice(at + 1) }),
    store: () => ({ kind, store: first }),
    time: () => ({ kind, fromMs: millisecondsOf(first), untilMs: millisecondsOf(second) }),
    everything: () => ({ kind }),
  }
  const make = Object.hasOwn(scopes, kind) ? scopes[kind] : undefined
  if (!make) throw refuse()
  const parsed = purgeScope.safeParse(make())
  if (!parsed.success) throw refuse()
  return parsed.data
}

/** An instant with its offset, or milliseconds; one without offset would mean another one elsewhere. */
function millisecondsOf(text: string): number {
  if (/^\d{1,15}$/.test(text)) return Number(text)
  if (/(Z|[+-]\d\d:\d\d)$/.test(text) && !Number.isNaN(Date.parse(text))) return Date.parse(text)
  throw new SluiceError('usage', `not an instant: ${text}`, {
    hint: 'Write it with its offset: 2026-11-21T08:00:00Z.',
  })
}

function scopeText(scope: PurgeScope): string {
  const { kind, ...rest } = scope
  return [kind, ...Object.values(rest).map(String)].join(' ')
}

function sayPreview(preview: PurgePreview, view: View): void {
  if (view.json === true) return sayFacts(preview, view)
  const { agents, leases, scope, heldSkipped, dryRun: _, ...facts } = preview
  say('Nothing was changed. This purge would hit:')
  sayFacts({ scope: scopeText(scope), ...facts, heldSkipped }, view)
  say('')
  sayList(agents, view, {
    AGENT: (agent) => agent.id,
    NAME: (agent) => agent.name,
    ROLE: (agent) => agent.role,
    CONNECTED: (agent) => (agent.connected ? 'yes' : 'NO'),
  })
  if (leases.length === 0) return
  say('')
  sayList(leases, view, {
    'LEASED JOB': (lease) => lease.jobId,
    NODE: (lease) => lease.nodeId,
    'HAS KEY': (lease) => (lease.keyReleased ? 'yes' : 'no'),
    'OVER AT THE LATEST': (lease) => instant(lease.overAtMs, view),
  })
}

function sayPurge(purgeNow: PurgeDetail, view: View): void {
  if (view.json === true) return sayFacts(purgeNow, view)
  const { scope, duties, silent, silentCount, ...facts } = purgeNow
  sayFacts({ scope: scopeText(scope), ...facts }, view)
  if (duties.length > 0) {
    say('')
    sayList(duties, view, {
      DUTY: (duty) => duty.kind,
      OWED: (duty) => String(duty.owed),
      REQUESTED: (duty) => String(duty.requested),
      DELIVERED: (duty) => String(duty.delivered),
      DONE: (duty) => String(duty.done),
      PROVEN: (duty) => String(duty.proven),
    })
  }
  if (silentCount === 0) return
  say('')
  say(`${silentCount} agents have not confirmed:`)
  sayList(silent, view, {
    AGENT: (agent) => agent.id,
    NAME: (agent) => agent.name,
    CONNECTED: (agent) => (agent.connected ? 'yes' : 'NO'),
    'LAST SEEN': (agent) => instant(agent.lastSeenAtMs, view),
    'ITS LEASES ARE OVER AT': (agent) => instant(agent.leasesOverAtMs, view),
  })
}

function pathOf(id: string): string {
  return `/v1/purges/${encodeURIComponent(id)}`
}

async function watch(id: string, options: View): Promise<void> {
  await withClient(async (client) => {
    const over = new AbortController()
    let last: PurgeDetail | undefined
    // A stream that breaks is taken up again: each of its events is the whole state.
    for (let tries = 0; tries < 10; tries += 1) {
      try {
        for await (const event of client.events(`${pathOf(id)}/events`, {
          afterId: '0',
          signal: over.signal,
        })) {
          tries = 0
          last = purgeDetail.parse(JSON.parse(event.data))
          if (options.json === true) say(event.data)
          else say(progressLine(last, options))
          if (last.state === 'concluded' || last.state === 'refused') {
            if (options.json !== true) sayPurge(last, options)
            return
          }
        }
      } catch (error) {
        if (error instanceof SluiceError && error.retry === 'never') throw error
      }
    }
    throw new SluiceError('control_plane.unreachable', 'the stream of events ended', {
      retry: 'later',
    })
  })
}

function progressLine(now: PurgeDetail, view: View): string {
  const orders = now.duties.find((duty) => duty.kind === 'purge.agent')
  const signed = (orders?.done ?? 0) + (orders?.proven ?? 0)
  const asked = signed + (orders?.owed ?? 0) + (orders?.requested ?? 0) + (orders?.delivered ?? 0)
  const over =
    now.leasesOverAtMs === undefined || now.silentCount === 0
      ? ''
      : `, leases of silent nodes over ${instant(now.leasesOverAtMs, view)}`
  return [
    now.state,
    `keys ${now.keysUnusableAtMs === undefined ? 'usable' : 'unusable'}`,
    `epoch ${now.keysUnrecoverableAtMs === undefined ? 'rolling' : 'destroyed'}`,
    `orders signed ${signed}/${asked}`,
    `jobs deleted ${now.jobsDeleted}/${now.jobs}${over}`,
  ].join(', ')
}
