/** Who is logged in: one file per context, 0600, with the address, the authority and the secret. */
import { chmod, mkdir } from 'node:fs/promises'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { type TokenContent, tokenContent } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { readIfThere, writeDurably } from '../data-directory.ts'

const fileBytesMax = 16 * 1024

/** `SLUICE_CONTEXT` chooses another file than `~/.config/sluice/context.json`. */
export function contextPath(env: NodeJS.ProcessEnv = process.env): string {
  const chosen = env['SLUICE_CONTEXT']
  if (chosen !== undefined && chosen !== '') return chosen
  const base = env['XDG_CONFIG_HOME'] ?? join(homedir(), '.config')
  return join(base, 'sluice', 'context.json')
}

/** Whether somebody is logged in here. */
export async function hasContext(): Promise<boolean> {
  return (await readIfThere(contextPath())) !== undefined
}

/**
 * @throws SluiceError `access.unauthenticated` without a login; `host.unsafe_file` when others can
 * read it.
 */
export async function readContext(): Promise<TokenContent> {
  const path = contextPath()
  if (!(await hasContext()))
    throw new SluiceError('access.unauthenticated', 'nobody is logged in here', {
      hint: 'Run `sluice login --token-file FILE` with a token made by `sluice tokens create`.',
    })
  using secret = await readSecretFile(path, fileBytesMax)
  const parsed = tokenContent.safeParse(JSON.parse(secret.bytes.toString('utf8')))
  if (!parsed.success)
    throw new SluiceError('token.invalid', `${path}: damaged`, { hint: 'Log in again.' })
  return parsed.data
}

export async function writeContext(login: TokenContent): Promise<string> {
  const path = contextPath()
  const made = await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  if (made !== undefined) await chmod(dirname(path), 0o700)
  await writeDurably(path, `${JSON.stringify(login)}\n`, 0o600)
  return path
}
