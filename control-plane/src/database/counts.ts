/** Counts over all features, for the status page. */
import { and, count, eq, isNull, lt } from './drizzle.ts'
import type { Database } from './database.ts'
import { agents, jobs, obligations } from './schema.ts'

/** @param nowMs Duties whose deadline lies before it count as overdue. */
export function countEverything(database: Database, nowMs: number) {
  return database.read(async (sql) => {
    const byState = await sql
      .select({ state: jobs.state, jobs: count() })
      .from(jobs)
      .groupBy(jobs.state)
    const duties = await sql
      .select({ state: obligations.state, duties: count() })
      .from(obligations)
      .groupBy(obligations.state)
    const [overdue] = await sql
      .select({ duties: count() })
      .from(obligations)
      .where(
        and(
          eq(obligations.state, 'due'),
          lt(obligations.deadlineAtMs, nowMs),
          isNull(obligations.writtenOffAtMs),
        ),
      )
    const [known] = await sql
      .select({ agents: count() })
      .from(agents)
      .where(isNull(agents.revokedAtMs))
    const inState = (state: string) => duties.find((row) => row.state === state)?.duties ?? 0
    return {
      agents: known?.agents ?? 0,
      jobs: Object.fromEntries(byState.map((row) => [row.state, row.jobs])),
      obligations: {
        waiting: inState('waiting'),
        due: inState('due'),
        overdue: overdue?.duties ?? 0,
      },
    }
  })
}
