/** Agents: who they are, what they may do, and locking them out. */
import type { Command } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import { agentView } from '@sluice/protocol/api-fleet'
import { instant, sayFacts, sayList, type View } from './output.ts'
import { addCommand, wholeNumber, withClient } from './program.ts'

export function addAgentCommands(program: Command): void {
  const agents = program.command('agents').description('look at agents, bound them, lock them out')

  addCommand(agents, 'list', { does: 'list agents', example: 'sluice agents list' })
    .option('--after <id>', 'continue after this agent')
    .action(async (options: View & { after?: string }) =>
      withClient(async (client) => {
        const page = await client.get(
          `/v1/agents?limit=500${options.after === undefined ? '' : `&after=${encodeURIComponent(options.after)}`}`,
          pageOf(agentView),
        )
        sayList(page.items, options, {
          ID: (item) => item.id,
          NAME: (item) => item.name,
          ROLE: (item) => item.role,
          SITE: (item) => item.site,
          STATE: (item) =>
            item.revokedAtMs !== undefined ? 'revoked' : item.connected ? 'connected' : 'away',
          'LAST SEEN': (item) => instant(item.lastSeenAtMs, options),
        })
      }),
    )

  addCommand(agents, 'show <id>', {
    does: 'show one agent',
    example: 'sluice agents show 0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0',
  }).action(async (id: string, options: View) =>
    withClient(async (client) =>
      sayFacts(await client.get(`/v1/agents/${encodeURIComponent(id)}`, agentView), options),
    ),
  )

  addCommand(agents, 'change <id>', {
    does: 'bound what a GPU node may do; its own offer can only narrow it',
    example: 'sluice agents change 0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0 --leases-max 2',
  })
    .option('--leases-max <count>', 'leases at the same time', wholeNumber)
    .option('--analyser <name...>', 'the only analysers it may run')
    .action(async (id: string, options: View & { leasesMax?: number; analyser?: string[] }) =>
      withClient(async (client) => {
        const body = {
          ...(options.leasesMax === undefined ? {} : { leasesMax: options.leasesMax }),
          ...(options.analyser === undefined ? {} : { allowedAnalysers: options.analyser }),
        }
        const path = `/v1/agents/${encodeURIComponent(id)}`
        sayFacts(await client.post(path, body, agentView), options)
      }),
    )

  addCommand(agents, 'revoke <id>', {
    does: 'lock an agent out at once; its stored jobs are frozen, not destroyed',
    example: 'sluice agents revoke 0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0',
  }).action(async (id: string, options: View) =>
    withClient(async (client) => {
      const path = `/v1/agents/${encodeURIComponent(id)}/revoke`
      sayFacts(await client.post(path, {}, agentView), options)
    }),
  )
}
