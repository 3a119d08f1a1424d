/** Approvals: what waits for a second person, and that person's word. */
import { type Command, Option } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import { type ApprovalView, approvalState, approvalView } from '@sluice/protocol/api-approvals'
import { instant, remark, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

const exampleId = '0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0'

export function addApprovalCommands(program: Command): void {
  const approvals = program
    .command('approvals')
    .description('see what waits for a second person, agree to it or refuse it')

  addCommand(approvals, 'list', {
    does: 'list what waits for a second person, newest first',
    example: 'sluice approvals list',
  })
    .addOption(
      new Option('--state <state>', 'only those in this state')
        .choices([...approvalState.options, 'all'])
        .default('open'),
    )
    .option('--after <id>', 'continue after this one')
    .action(async (options: View & { state: string; after?: string }) =>
      withClient(async (client) => {
        const query = new URLSearchParams({ limit: '100' })
        if (options.state !== 'all') query.set('state', options.state)
        if (options.after !== undefined) query.set('after', options.after)
        const page = await client.get(`/v1/approvals?${query.toString()}`, pageOf(approvalView))
        sayList(page.items, options, {
          ID: (item) => item.id,
          WHAT: (item) => whatOf(item.operation),
          SITE: (item) => item.site,
          'ASKED BY': (item) => item.asker ?? item.askedBy,
          STATE: (item) => item.state,
          EXPIRES: (item) => instant(item.expiresAtMs, options),
          REASON: (item) => item.reason,
        })
        if (page.next !== undefined && options.json !== true)
          remark(`more: sluice approvals list --state ${options.state} --after ${page.next}`)
      }),
    )

  addCommand(approvals, 'show <id>', {
    does: 'show one approval',
    example: `sluice approvals show ${exampleId}`,
  }).action(async (id: string, options: View) =>
    withClient(async (client) => sayFacts(await client.get(pathOf(id), approvalView), options)),
  )

  for (const [word, does] of [
    ['give', 'agree as the second person; what was asked is done at once'],
    ['refuse', 'refuse what was asked, or withdraw what you asked'],
  ] as const)
    addCommand(approvals, `${word} <id>`, {
      does,
      example: `sluice approvals ${word} ${exampleId}`,
    }).action(async (id: string, options: View) =>
      withClient(async (client) =>
        sayFacts(await client.post(`${pathOf(id)}/${word}`, {}, approvalView), options),
      ),
    )
}

/** Prints what waits now, and who may end the waiting. */
export function sayAsked(approval: ApprovalView, view: View): void {
  sayFacts(approval, view)
  if (view.json !== true) remark(`another person agrees with: sluice approvals give ${approval.id}`)
}

function whatOf(operation: ApprovalView['operation']): string {
  const { kind, ...about } = operation
  const facts = Object.values(about).map((fact) =>
    typeof fact === 'string' ? fact : fact.map(({ role, site }) => `${role}@${site}`).join(' '),
  )
  return [kind, ...facts].join(' ')
}

function pathOf(id: string): string {
  return `/v1/approvals/${encodeURIComponent(id)}`
}
