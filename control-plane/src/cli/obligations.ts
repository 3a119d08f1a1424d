/** Obligations: everything that is owed, by whom, and how far it has come. */
import type { Command } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import { type DutyView, dutyView } from '@sluice/protocol/api-obligations'
import { instant, remark, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

type Wanted = {
  all?: boolean
  overdue?: boolean
  kind?: string
  job?: string
  agent?: string
  purge?: string
  after?: string
}

export function addObligationsCommand(program: Command): void {
  addCommand(program, 'obligations', {
    does: 'list what is owed: recorded, requested, delivered, done, proven',
    example: 'sluice obligations --overdue',
  })
    .option('--all', 'also what is done and proven')
    .option('--overdue', 'only what is beyond its deadline')
    .option('--kind <kind>', 'only of this kind, like spool.delete')
    .option('--job <id>', 'only of this job')
    .option('--agent <id>', 'only what this agent owes')
    .option('--purge <id>', 'only of this purge and its jobs')
    .option('--after <id>', 'continue after this one')
    .action(async (options: View & Wanted) =>
      withClient(async (client) => {
        const page = await client.get(
          `/v1/obligations?${queryOf(options).toString()}`,
          pageOf(dutyView),
        )
        sayList(page.items, options, {
          ID: (item) => item.id,
          KIND: (item) => item.kind,
          PROGRESS: (item) => item.progress,
          ABOUT: aboutOf,
          HOLDER: (item) => item.agentId ?? '-',
          TRIES: (item) => String(item.attempts),
          'NEXT TRY': (item) => (item.doneAtMs ? '-' : instant(item.nextTryAtMs, options)),
          DEADLINE: (item) =>
            instant(item.deadlineAtMs, options) + (item.overdue ? ' OVERDUE' : ''),
          'LAST ERROR': (item) => item.lastErrorCode ?? '-',
        })
        if (page.next !== undefined) remark(`there are more: --after ${page.next}`)
      }),
    )
}

function queryOf({ all, overdue, kind, job, agent, purge, after }: Wanted): URLSearchParams {
  const query = new URLSearchParams({ limit: '500' })
  if (all === true) query.set('all', 'true')
  if (overdue === true) query.set('overdue', 'true')
  for (const [name, value] of Object.entries({ kind, job, agent, purge, after }))
    if (value !== undefined) query.set(name, value)
  return query
}

function aboutOf({ jobId, leaseId, subjectId }: DutyView): string {
  if (jobId === undefined) return subjectId ?? '-'
  return leaseId === undefined ? `job ${jobId}` : `job ${jobId} lease ${leaseId}`
}
