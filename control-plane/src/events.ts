/** What the control plane tells its log: one function per event, so that each has one name and shape. */
import { isSluiceError, type SluiceError } from '@sluice/protocol/errors'
import type { Log } from '@sluice/protocol/process/log'

export type Events = ReturnType<typeof createEvents>

/** @param log Where lines go. */
export function createEvents(log: Log) {
  return {
    /** The listeners are open. */
    started(facts: { agentUrl: string; operatorUrl: string; dataDir: string }) {
      log('info', 'control-plane.started', facts)
    },
    /** Writes fail since now: all work waits, nothing is lost. Said once. */
    databaseUnwritable(problem: SluiceError) {
      const { code, message, hint } = problem
      const cause = nameOf(problem.cause)
      log('error', 'database.unwritable', { code, message, hint, cause })
    },
    /** Writes succeed again, and what waited goes on. */
    databaseWritable() {
      log('info', 'database.writable', {})
    },
    /** The place of the epoch keys is out of reach: what is owed waits, nothing is lost. Said once. */
    keysAway(problem: SluiceError) {
      const { code, message, hint } = problem
      log('error', 'keys.away', { code, message, hint })
    },
    /** An epoch was rolled again after that. */
    keysBack() {
      log('info', 'keys.back', {})
    },
    /** The store or a replica may lock objects: their deletions can be late. Said at each start. */
    storeLocks(replica?: string) {
      log('warning', 'store.locks', { replica })
    },
    /** A connection to the agent listener was not let in. */
    agentRefused(error: unknown) {
      log('warning', 'agent.refused', { reason: nameOf(error) })
    },
    /** A request failed for a reason that is ours. */
    requestFailed(method: string, error: unknown) {
      log('error', 'request.failed', { method, reason: nameOf(error), stack: stackOf(error) })
    },
    /** Work in the background failed and will be tried again; what is owed stays a row. */
    workFailed(work: string, error: unknown) {
      log('error', 'work.failed', { work, reason: nameOf(error), stack: stackOf(error) })
    },
  }
}

function nameOf(error: unknown): string {
  if (isSluiceError(error)) return error.code
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  return code ?? (error instanceof Error ? error.name : 'unknown')
}

/** Frames only: a message may quote what was asked for. */
function stackOf(error: unknown): string | undefined {
  if (isSluiceError(error) || !(error instanceof Error)) return undefined
  return error.stack
    ?.split('\n')
    .filter((line) => /^\s+at /.test(line))
    .slice(0, 8)
    .join(' ')
}
