/** Locks somebody out at once, and says what is in force and what is still owed. */
import type { Command } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import { agentView } from '@sluice/protocol/api-fleet'
import {
  type RevocationDetail,
  revocationDetail,
  revocationPreview,
  type RevocationTarget,
  revocationTarget,
  revocationView,
} from '@sluice/protocol/api-revocations'
import { SluiceError } from '@sluice/protocol/errors'
import { agentId } from '@sluice/protocol/ids'
import { revokeAuthority, sayAuthority } from './authority.ts'
import type { Client } from './client.ts'
import { instant, remark, say, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

const exampleId = '0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0'

export function addRevokeCommands(program: Command): void {
  addCommand(program, 'revoke <kind> [what]', {
    does: 'lock out an agent, a token, a label or all grants at once; destroys nothing',
    example: 'sluice revoke agent node-3 --reason "stolen"',
  })
    .requiredOption('--reason <text>', 'why, for the audit log')
    .option('--dry-run', 'show what it would hit and change nothing')
    .addHelpText(
      'after',
      '\nWhat:\n  agent NAME|ID | token ID | join-token ID | label KEY=VALUE | grants | authority',
    )
    .action(
      async (
        kind: string,
        what: string | undefined,
        options: View & { reason: string; dryRun?: true },
      ) =>
        withClient(async (client) => {
          if (kind === 'authority' && options.dryRun !== true)
            return sayAuthority(await revokeAuthority(client, options.reason), options)
          const target = await targetFrom(client, kind, what)
          const { reason } = options
          if (options.dryRun === true) {
            const asked = { target, reason, dryRun: true }
            const preview = await client.post('/v1/revocations', asked, revocationPreview)
            if (options.json === true) return sayFacts(preview, options)
            const { target: _, dryRun: __, ...facts } = preview
            say('Nothing was changed. This revocation would hit:')
            return sayFacts(facts, options)
          }
          sayRevocation(
            await client.post('/v1/revocations', { target, reason }, revocationDetail),
            options,
          )
        }),
    )

  const revocations = program.command('revocations').description('list and show revocations')

  addCommand(revocations, 'list', {
    does: 'list revocations, newest first',
    example: 'sluice revocations list',
  })
    .option('--after <id>', 'continue after this revocation')
    .action(async (options: View & { after?: string }) =>
      withClient(async (client) => {
        const query = new URLSearchParams({ limit: '100' })
        if (options.after !== undefined) query.set('after', options.after)
        const page = await client.get(`/v1/revocations?${query.toString()}`, pageOf(revocationView))
        sayList(page.items, options, {
          ID: (item) => item.id,
          KIND: (item) => item.kind,
          TARGET: (item) => item.target,
          SITE: (item) => item.site,
          REVOKED: (item) => instant(item.atMs, options),
          REASON: (item) => item.reason,
        })
        if (page.next !== undefined && options.json !== true)
          remark(`more: sluice revocations list --after ${page.next}`)
      }),
    )

  addCommand(revocations, 'show <id>', {
    does: 'show what of a revocation is in force, and what is still owed',
    example: `sluice revocations show ${exampleId}`,
  }).action(async (id: string, options: View) =>
    withClient(async (client) =>
      sayRevocation(
        await client.get(`/v1/revocations/${encodeURIComponent(id)}`, revocationDetail),
        options,
      ),
    ),
  )
}

function sayRevocation(made: RevocationDetail, view: View): void {
  if (view.json === true) return sayFacts(made, view)
  const { inForce, owed, exposed, ...facts } = made
  sayFacts(facts, view)
  say('')
  say('In force:')
  sayFacts(inForce, view)
  say('')
  if (owed.length === 0) say('Nothing is owed.')
  else {
    say('Still owed:')
    sayList(owed, view, {
      DUTY: (duty) => duty.kind,
      COUNT: (duty) => String(duty.count),
      'LAST ERROR': (duty) => duty.lastError ?? '',
    })
  }
  if (exposed.length === 0) return
  say('')
  say('Exposed: a revoked node had been given the keys of these jobs:')
  for (const job of exposed) say(`  ${job}`)
}

/** @throws SluiceError `usage` for what is no target; `request.not_found` for an unknown name. */
async function targetFrom(
  client: Client,
  kind: string,
  what: string | undefined,
): Promise<RevocationTarget> {
  const raw = await rawTarget(client, kind, what)
  const target = revocationTarget.safeParse(raw)
  if (target.success) return target.data
  throw new SluiceError('usage', `not to be revoked: ${[kind, what ?? ''].join(' ').trim()}`, {
    hint: 'Write one of those that `sluice revoke --help` lists.',
  })
}

async function rawTarget(client: Client, kind: string, what: string | undefined): Promise<unknown> {
  if (what === undefined) return { kind }
  if (kind === 'token' || kind === 'join-token') return { kind, tokenId: what }
  if (kind === 'agent') {
    const isId = agentId.safeParse(what).success
    return { kind, agentId: isId ? what : await agentNamed(client, what) }
  }
  const at = what.indexOf('=')
  return kind === 'label' && at > 0
    ? { kind, key: what.slice(0, at), value: what.slice(at + 1) }
    : { kind, what }
}

async function agentNamed(client: Client, name: string): Promise<string> {
  let after: string | undefined
  do {
    const query = new URLSearchParams({ limit: '500', ...(after === undefined ? {} : { after }) })
    const page = await client.get(`/v1/agents?${query.toString()}`, pageOf(agentView))
    const found = page.items.find((agent) => agent.name === name)
    if (found) return found.id
    after = page.next
  } while (after !== undefined)
  throw new SluiceError('request.not_found', `no agent is named ${name}`, {
    hint: 'See `sluice agents list`.',
  })
}
