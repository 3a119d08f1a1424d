/** Ends the wait for archives whose capture host never came back. */
import type { JobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Problem } from '@sluice/protocol/messages'
import { type JobDeps, system, unlessDecided } from './deps.ts'
import { failJob } from './fail.ts'
import { waitingForAbsent } from './store.ts'

const problem: Problem = {
  code: 'job.failed',
  message: 'its capture host was away for too long before the archive was stored',
  hint: 'Submit the media again.',
  retry: 'never',
}

/**
 * Makes announced and uploading jobs `failed` when neither they nor their host gave a sign for
 * `absentMs`; what the store has of them goes with the ordinary end of their time. A job under legal
 * hold stays. Each is decided on its fresh row, so a host that returns meanwhile goes on.
 *
 * @returns How many failed.
 */
export async function failAbsent(
  deps: JobDeps,
  absentMs: number,
  signal?: AbortSignal,
): Promise<number> {
  const { database, turns, now } = deps
  const beforeMs = now() - absentMs
  let after: JobId | undefined
  let failed = 0
  const fail = (id: JobId) =>
    turns.take(id, () =>
      unlessDecided(
        database.write(async (tx) => {
          const [job] = await waitingForAbsent(tx.sql, { beforeMs, id, itemsMax: 1 })
          if (!job) return
          await failJob(deps, tx, { job, from: job.state, to: 'failed', problem, actor: system })
          failed += 1
        }),
      ),
    )
  for (;;) {
    if (signal?.aborted === true) return failed
    const itemsMax = limits.purgePageJobs
    const page = await database.read((sql) => waitingForAbsent(sql, { beforeMs, after, itemsMax }))
    for (const { id } of page) await fail(id)
    if (page.length < itemsMax) return failed
    after = page.at(-1)?.id
  }
}
