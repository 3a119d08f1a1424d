/** What every command has: an example in its help, output for machines, and a client when it needs one. */
import { type Command, InvalidArgumentError } from 'commander'
import { SluiceError } from '@sluice/protocol/errors'
import { dataDirectoryAt, readIfThere } from '../data-directory.ts'
import { adminClient, apiClient, type Client } from './client.ts'
import { hasContext, readContext } from './context.ts'

/** A command with its example; all of them speak JSON when asked to. */
export function addCommand(
  parent: Command,
  shape: string,
  about: { does: string; example: string },
): Command {
  return parent
    .command(shape)
    .description(about.does)
    .option('--json', 'print JSON for machines')
    .option('--local', 'print times in the zone of this host instead of UTC')
    .addHelpText('after', `\nExample:\n  $ ${about.example}`)
}

/** Runs `work` with a client for whoever is logged in. */
export async function withClient<T>(work: (client: Client) => Promise<T>): Promise<T> {
  await using client = apiClient(await readContext())
  return await work(client)
}

/**
 * Runs `work` as the owner of a data directory when one is named, else as whoever is logged in.
 *
 * @throws SluiceError `control_plane.unreachable` when no control plane runs there.
 */
export async function withOwnerOrClient<T>(
  dataDir: string | undefined,
  work: (client: Client) => Promise<T>,
): Promise<T> {
  if (dataDir === undefined && (await hasContext())) return await withClient(work)
  if (dataDir === undefined)
    throw new SluiceError('access.unauthenticated', 'nobody is logged in here', {
      hint: 'Log in, or name the data directory with --data-dir on the host of the control plane.',
    })
  const { adminSocket, listeners } = dataDirectoryAt(dataDir)
  if ((await readIfThere(listeners)) === undefined)
    throw new SluiceError('control_plane.unreachable', `no control plane lives in ${dataDir}`, {
      hint: 'Start one with `sluice serve --data-dir DIR`.',
    })
  await using client = adminClient(adminSocket)
  return await work(client)
}

/** For options that take whole numbers. */
export function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('not a whole number')
  return Number(text)
}
