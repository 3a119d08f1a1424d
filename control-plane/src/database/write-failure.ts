/** Tells a disk that is full or broken from a bug in a query. */
import Sqlite from 'better-sqlite3'
import { SluiceError } from '@sluice/protocol/errors'

/**
 * Whether SQLite could not write for a reason that lies outside the program. The transaction was rolled
 * back then, and the same one may succeed later.
 */
export function isWriteFailure(error: unknown): boolean {
  const cause = error instanceof Error && error.cause !== undefined ? error.cause : error
  return cause instanceof Sqlite.SqliteError && /^SQLITE_(FULL|IOERR|BUSY)/.test(cause.code)
}

/** The same as an expected failure: whoever asked may ask again later. */
export function writeFailure(cause: unknown): SluiceError {
  return new SluiceError('host.disk_full', 'the control plane cannot write its database', {
    retry: 'later',
    hint: 'Make room on the disk of the data directory, or look at its health.',
    cause: cause instanceof SluiceError ? cause.cause : cause,
  })
}

/** For what is only noted, and what nobody decides by: a full disk must not stop what it is noted about. */
export async function unlessDiskFails(write: Promise<unknown>): Promise<void> {
  try {
    await write
  } catch (error) {
    if (!isWriteFailure(error)) throw error
  }
}

/**
 * How long background work rests after a write that failed: what it would do is still a row, and a
 * disk is not emptied faster.
 */
export const writeRetryMs = 5_000
