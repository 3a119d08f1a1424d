/** The certificate authority: who it is, and how another one takes its place. */
import { createHash } from 'node:crypto'
import { type Command } from 'commander'
import { authoritiesReply } from '@sluice/protocol/api'
import { type AuthorityView, authorityView } from '@sluice/protocol/api-authority'
import type { Client } from './client.ts'
import { readContext, writeContext } from './context.ts'
import { instant, remark, say, sayFacts, type View } from './output.ts'
import { addCommand, wholeNumber, withClient } from './program.ts'

/** How long a compromised authority is trusted beside its successor, for agents that are here. */
const revokeWithinMinutes = 10

export function addAuthorityCommands(program: Command): void {
  const authority = program
    .command('authority')
    .description('look at the certificate authority, and replace it')

  addCommand(authority, 'show', {
    does: 'show the authorities that are trusted, and who has not adopted the newest',
    example: 'sluice authority show',
  }).action(async (options: View) =>
    withClient(async (client) =>
      sayAuthority(await client.get('/v1/authority', authorityView), options),
    ),
  )

  addCommand(authority, 'rotate', {
    does: 'make another authority; both are trusted until the old one is retired',
    example: 'sluice authority rotate --reason "yearly change"',
  })
    .requiredOption('--reason <text>', 'why, for the audit log')
    .option(
      '--retire-within <minutes>',
      'retire the old one by itself, at the latest then',
      wholeNumber,
    )
    .action(async (options: View & { reason: string; retireWithin?: number }) =>
      withClient(async (client) => sayAuthority(await rotate(client, options), options)),
    )

  addCommand(authority, 'retire', {
    does: 'end the trust in the authority that was replaced',
    example: 'sluice authority retire',
  })
    .option('--abandon', 'also while agents have not adopted the new one; they have to join anew')
    .action(async (options: View & { abandon?: true }) =>
      withClient(async (client) => {
        const body = { abandon: options.abandon === true }
        sayAuthority(await client.post('/v1/authority/retire', body, authorityView), options)
      }),
    )

  addCommand(authority, 'adopt', {
    does: 'let this login trust the authority that issues now, before the old one is retired',
    example: 'sluice authority adopt',
  }).action(async (options: View) =>
    withClient(async (client) => {
      const { authorities } = await client.get('/v1/authorities', authoritiesReply)
      const [newest = ''] = authorities
      await writeContext({ ...(await readContext()), ca: newest })
      const sha256 = createHash('sha256').update(Buffer.from(newest, 'base64')).digest('hex')
      if (options.json === true) say(JSON.stringify({ sha256 }))
      else say(`this login trusts ${sha256}`)
    }),
  )
}

/** Replaces an authority that may be in wrong hands: the old one goes as soon as those who are here can do without. */
export function revokeAuthority(client: Client, reason: string): Promise<AuthorityView> {
  return rotate(client, { reason, retireWithin: revokeWithinMinutes })
}

function rotate(
  client: Client,
  order: { reason: string; retireWithin?: number },
): Promise<AuthorityView> {
  const { reason, retireWithin } = order
  const within = retireWithin === undefined ? {} : { retireWithinMinutes: retireWithin }
  return client.post('/v1/authority/rotate', { reason, ...within }, authorityView)
}

export function sayAuthority(view: AuthorityView, options: View): void {
  if (options.json === true) return sayFacts(view, options)
  say(`issues   ${view.sha256}`)
  for (const { sha256, notAfterMs } of view.trusted)
    say(`trusted  ${sha256}, until ${instant(notAfterMs, options)}`)
  const { rotation } = view
  if (!rotation) return
  say(`replaced ${instant(rotation.beganAtMs, options)}`)
  for (const { name } of rotation.waitingFor) say(`owed     ${name} has not adopted it yet`)
  if (view.trusted.length > 1)
    remark('next: `sluice authority adopt` for each login, then `sluice authority retire`')
}
