/** Takes away the rows of orders that are over, so that their table does not grow for ever. */
import type { CommandId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Database } from '../database/database.ts'
import { deleteOverCommands, pageOfCommands } from './store.ts'

/**
 * Goes through the orders given before `limits.commandKeepMs`, a page in a transaction: what is not
 * over yet is left, and an end before the last page loses nothing but time.
 *
 * @returns How many it took away.
 */
export async function pruneCommands(
  deps: { database: Database; now: () => number },
  signal?: AbortSignal,
): Promise<number> {
  const { database } = deps
  const beforeMs = deps.now() - limits.commandKeepMs
  const itemsMax = limits.commandPageRows
  let after: CommandId | undefined
  let pruned = 0
  for (;;) {
    if (signal?.aborted === true) return pruned
    const page = await database.read((sql) => pageOfCommands(sql, { after, itemsMax }))
    const ids = page.filter(({ createdAtMs }) => createdAtMs < beforeMs).map(({ id }) => id)
    if (ids.length > 0)
      pruned += await database.write((tx) => deleteOverCommands(tx, { ids, beforeMs }))
    if (page.length < itemsMax || ids.length === 0) return pruned
    after = page.at(-1)?.id
  }
}
