/** Tokens: who may talk to the API, and who may join. */
import { open, readFile } from 'node:fs/promises'
import { type Command, Option } from 'commander'
import {
  createdJoinToken,
  createdToken,
  decodeToken,
  joinTokenView,
  pageOf,
  roles,
  tokenView,
} from '@sluice/protocol/api'
import { approvalAsked } from '@sluice/protocol/api-approvals'
import { principalId } from '@sluice/protocol/ids'
import { SluiceError } from '@sluice/protocol/errors'
import { z } from 'zod'
import { createHash } from 'node:crypto'
import { apiClient } from './client.ts'
import { writeContext } from './context.ts'
import { durationMs, instant, remark, say, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient, withOwnerOrClient } from './program.ts'

type OutOption = { out?: string }

export function addTokenCommands(program: Command): void {
  const tokens = program.command('tokens').description('make, list and revoke tokens')

  addCommand(tokens, 'create', {
    does: 'make an API token for a principal; the owner of the data directory needs no login',
    example:
      "sluice tokens create --principal alice --role security --site '*' --data-dir /var/lib/sluice --out alice.token",
  })
    .requiredOption('--principal <name>', 'named human or machine; made when new')
    .addOption(
      new Option('--role <role...>', 'roles of a new principal; they do not nest').choices(roles),
    )
    .option('--site <site>', "site of these roles, '*' for all", '*')
    .option('--life <duration>', 'how long it counts, such as 30d')
    .option('--reason <text>', 'for the second person, where one is needed')
    .option('--data-dir <dir>', 'ask the control plane that lives there, as its owner')
    .option('--out <file>', 'new file for the token, 0600; - for standard output')
    .action(
      async (
        options: View &
          OutOption & {
            principal: string
            role?: (typeof roles)[number][]
            site: string
            life?: string
            reason?: string
            dataDir?: string
          },
      ) => {
        refuseTerminal(options)
        const body = {
          principal: options.principal,
          ...(options.role && {
            rights: options.role.map((role) => ({ role, site: options.site })),
          }),
          ...(options.life === undefined ? {} : { lifeMs: durationMs(options.life) }),
          ...(options.reason === undefined ? {} : { reason: options.reason }),
        }
        const made = await withOwnerOrClient(options.dataDir, (client) =>
          client.post('/v1/tokens', body, z.union([createdToken, approvalAsked])),
        )
        if ('approval' in made) throw waitsForAnother(made.approval.id)
        const { token, ...view } = made
        await handOver(token, view, options)
      },
    )

  addCommand(tokens, 'join', {
    does: 'make a single-use token with which one agent joins',
    example: 'sluice tokens join --role capture --site berlin --out cam-7.join',
  })
    .addOption(
      new Option('--role <role>', 'what the agent will be')
        .choices(['capture', 'gpu'])
        .makeOptionMandatory(),
    )
    .requiredOption('--site <site>', 'the site it belongs to for good')
    .option('--name <name>', 'name of the agent')
    .option('--label <key=value...>', 'labels of the agent')
    .option('--life <duration>', 'how long it counts, at most 24h', '10m')
    .option('--data-dir <dir>', 'ask the control plane that lives there, as its owner')
    .option('--out <file>', 'new file for the token, 0600; - for standard output')
    .action(
      async (
        options: View &
          OutOption & {
            role: 'capture' | 'gpu'
            site: string
            name?: string
            label?: string[]
            life: string
            dataDir?: string
          },
      ) => {
        refuseTerminal(options)
        const body = {
          role: options.role,
          site: options.site,
          labels: labelsFrom(options.label ?? []),
          lifeMs: durationMs(options.life),
          ...(options.name === undefined ? {} : { name: options.name }),
        }
        const { token, ...view } = await withOwnerOrClient(options.dataDir, (client) =>
          client.post('/v1/join-tokens', body, createdJoinToken),
        )
        await handOver(token, view, options)
      },
    )

  addCommand(tokens, 'list', {
    does: 'list API tokens, or join tokens',
    example: 'sluice tokens list --join',
  })
    .option('--join', 'join tokens instead')
    .action(async (options: View & { join?: boolean }) =>
      withClient(async (client) => {
        if (options.join === true) {
          const page = await client.get('/v1/join-tokens?limit=500', pageOf(joinTokenView))
          return sayList(page.items, options, {
            ID: (item) => item.id,
            ROLE: (item) => item.role,
            SITE: (item) => item.site,
            EXPIRES: (item) => instant(item.expiresAtMs, options),
            USED: (item) => instant(item.usedAtMs, options),
            REVOKED: (item) => instant(item.revokedAtMs, options),
          })
        }
        const page = await client.get('/v1/tokens?limit=500', pageOf(tokenView))
        return sayList(page.items, options, {
          ID: (item) => item.id,
          PRINCIPAL: (item) => item.principal,
          RIGHTS: (item) => item.rights.map(({ role, site }) => `${role}@${site}`).join(' '),
          EXPIRES: (item) => instant(item.expiresAtMs, options),
          'LAST USED': (item) => instant(item.lastUsedAtMs, options),
          REVOKED: (item) => instant(item.revokedAtMs, options),
        })
      }),
    )

  addCommand(tokens, 'revoke <id>', {
    does: 'end an API token, or a join token, at once',
    example: 'sluice tokens revoke 0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0',
  })
    .option('--join', 'it is a join token')
    .action(async (id: string, options: View & { join?: boolean }) =>
      withClient(async (client) => {
        const path = options.join === true ? '/v1/join-tokens' : '/v1/tokens'
        const reply = z.union([tokenView, joinTokenView])
        sayFacts(await client.post(`${path}/${encodeURIComponent(id)}/revoke`, {}, reply), options)
      }),
    )

  addCommand(program, 'login [url]', {
    does: 'keep a token for later commands, after trying it',
    example: 'sluice login https://sluice.example:8444 --token-file alice.token',
  })
    .requiredOption('--token-file <file>', 'file with the token; - for standard input')
    .option('--ca-fingerprint <sha256>', 'what the fingerprint of the authority must be')
    .action(
      async (
        url: string | undefined,
        options: View & { tokenFile: string; caFingerprint?: string },
      ) => {
        const token = decodeToken('token', await readToken(options.tokenFile))
        const login = url === undefined ? token : { ...token, url: originFrom(url) }
        refuseOtherAuthority(login.ca, options.caFingerprint)
        await using client = apiClient(login)
        const who = await client.get('/v1/whoami', whoami)
        const path = await writeContext(login)
        if (options.json === true) say(JSON.stringify({ ...who, url: login.url, context: path }))
        else say(`logged in to ${login.url} as ${who.principal}`)
      },
    )
}

function waitsForAnother(id: string): SluiceError {
  return new SluiceError('approval.needed', `approval ${id} waits for a second person`, {
    hint: `When another has run \`sluice approvals give ${id}\`, run this command again.`,
  })
}

const whoami = z.object({ principalId, principal: z.string(), rights: z.array(z.unknown()) })

function labelsFrom(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=')
      if (at < 1)
        throw new SluiceError('usage', `not a label: ${pair}`, { hint: 'Write key=value.' })
      return [pair.slice(0, at), pair.slice(at + 1)]
    }),
  )
}

function originFrom(url: string): string {
  if (!URL.canParse(url) || !/^https?:/.test(url))
    throw new SluiceError('usage', `not an address: ${url}`, {
      hint: 'Write it like https://sluice.example:8444.',
    })
  return new URL(url).origin
}

function refuseOtherAuthority(ca: string, fingerprint: string | undefined): void {
  if (fingerprint === undefined) return
  const wanted = fingerprint.toLowerCase().replaceAll(':', '')
  const found = createHash('sha256').update(Buffer.from(ca, 'base64')).digest('hex')
  if (wanted !== found)
    throw new SluiceError('access.forbidden', 'the token names another authority', {
      hint: `It names ${found}; ask whoever made the token.`,
    })
}

async function readToken(path: string): Promise<string> {
  if (path !== '-') return await readFile(path, 'utf8').catch(cannotRead(path))
  let text = ''
  for await (const piece of process.stdin) text += String(piece)
  return text
}

function cannotRead(path: string) {
  return (cause: unknown): never => {
    throw new SluiceError('usage', `${path}: cannot be read`, {
      hint: 'Name the file that holds the token.',
      cause,
    })
  }
}

/** A token on a screen stays in its scroll-back. */
function refuseTerminal(options: OutOption): void {
  if (options.out === undefined && process.stdout.isTTY)
    throw new SluiceError('usage', 'a token does not belong on a screen', {
      hint: 'Name a new file with --out FILE, or ask for it with --out -.',
    })
}

/** Gives the token to a file or standard output, and what it is to people. */
async function handOver(token: string, view: object, options: View & OutOption): Promise<void> {
  if (options.out === undefined || options.out === '-') {
    if (options.json === true) return say(JSON.stringify({ ...view, token }))
    return say(token)
  }
  await writeNewFile(options.out, `${token}\n`)
  if (options.json === true) return say(JSON.stringify({ ...view, file: options.out }))
  return remark(`wrote ${options.out}`)
}

async function writeNewFile(path: string, text: string): Promise<void> {
  let file
  try {
    file = await open(path, 'wx', 0o600)
  } catch (cause) {
    throw new SluiceError('usage', `${path}: exists, or cannot be made`, {
      hint: 'Name a new file: a token never overwrites anything.',
      cause,
    })
  }
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
}
