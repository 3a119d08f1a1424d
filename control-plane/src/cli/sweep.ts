/** Sweeps: what is there that should not be, and what is missing. */
import { setTimeout as pause } from 'node:timers/promises'
import type { Command } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import { findingView, type SweepView, sweepView } from '@sluice/protocol/api-sweeps'
import type { Client } from './client.ts'
import { instant, remark, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

const pollMs = 500

export function addSweepCommands(program: Command): void {
  addCommand(program, 'sweep', {
    does: 'compare stores, spools, nodes and keys with the database, now',
    example: 'sluice sweep --dry-run',
  })
    .option('--dry-run', 'look and report only: nothing is quarantined, deleted or given up')
    .option('--no-wait', 'do not wait for its end')
    .action(async (options: View & { dryRun?: boolean; wait: boolean }) =>
      withClient(async (client) => {
        const begun = await client.post(
          '/v1/sweeps',
          { dryRun: options.dryRun === true },
          sweepView,
        )
        const sweep = options.wait ? await ended(client, begun) : begun
        sayFacts(sweep, options)
        if (sweep.state === 'ended' && options.json !== true)
          remark(`see what it found: sluice sweeps findings --sweep ${sweep.id}`)
      }),
    )

  const sweeps = program.command('sweeps').description('look at sweeps, and decide about findings')

  addCommand(sweeps, 'list', {
    does: 'list sweeps, newest first',
    example: 'sluice sweeps list',
  }).action(async (options: View) =>
    withClient(async (client) => {
      const page = await client.get('/v1/sweeps?limit=100', pageOf(sweepView))
      sayList(page.items, options, {
        ID: (item) => item.id,
        STARTED: (item) => instant(item.startedAtMs, options),
        STATE: (item) => (item.dryRun ? `${item.state} (dry run)` : item.state),
        FOUND: (item) => String(found(item, /^(orphan|missing)\./)),
        'NOT SEEN': (item) => String(found(item, /NotSeen$/)),
      })
    }),
  )

  addCommand(sweeps, 'show <id>', {
    does: 'show one sweep with its counts',
    example: 'sluice sweeps show 0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0',
  }).action(async (id: string, options: View) =>
    withClient(async (client) =>
      sayFacts(await client.get(`/v1/sweeps/${encodeURIComponent(id)}`, sweepView), options),
    ),
  )

  addCommand(sweeps, 'findings', {
    does: 'list what sweeps found',
    example: 'sluice sweeps findings --open',
  })
    .option('--sweep <id>', 'only what this sweep saw')
    .option('--open', 'only what is still there')
    .action(async (options: View & { sweep?: string; open?: boolean }) =>
      withClient(async (client) => {
        const query = new URLSearchParams({
          limit: '500',
          ...(options.sweep === undefined ? {} : { sweep: options.sweep }),
          ...(options.open === true ? { open: 'true' } : {}),
        })
        const page = await client.get(`/v1/sweep-findings?${query.toString()}`, pageOf(findingView))
        sayList(page.items, options, {
          ID: (item) => item.id,
          KIND: (item) => item.kind,
          STATE: (item) => item.state,
          'FIRST SEEN': (item) => instant(item.firstSeenAtMs, options),
          'DELETED AFTER': (item) => instant(item.graceUntilMs, options),
          SUBJECT: (item) => item.subject,
        })
      }),
    )

  const decisions = [
    ['delete', 'delete a finding now instead of at the end of its quarantine'],
    ['keep', 'take a finding out of quarantine: it stays, and is reported again'],
  ] as const
  for (const [verb, does] of decisions)
    addCommand(sweeps, `${verb} <finding>`, {
      does,
      example: `sluice sweeps ${verb} 0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0`,
    }).action(async (id: string, options: View) =>
      withClient(async (client) => {
        const path = `/v1/sweep-findings/${encodeURIComponent(id)}/${verb}`
        sayFacts(await client.post(path, {}, findingView), options)
      }),
    )
}

function found({ counts }: SweepView, names: RegExp): number {
  return Object.entries(counts)
    .filter(([name]) => names.test(name))
    .reduce((sum, [, value]) => sum + value, 0)
}

async function ended(client: Client, begun: SweepView): Promise<SweepView> {
  let sweep = begun
  while (sweep.state === 'running') {
    await pause(pollMs)
    sweep = await client.get(`/v1/sweeps/${sweep.id}`, sweepView)
  }
  return sweep
}
