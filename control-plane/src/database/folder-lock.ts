/** Keeps a data directory to one process: held by the kernel, and gone with the process that held it. */
import Sqlite from 'better-sqlite3'
import { SluiceError } from '@sluice/protocol/errors'

/**
 * Takes the lock of a data directory. Node cannot lock files itself; SQLite can.
 *
 * @param path An empty file of its own, made when missing.
 * @throws SluiceError `request.conflict` while another process has it.
 */
export function lockFolder(path: string): Disposable {
  const connection = new Sqlite(path, { timeout: 0 })
  try {
    connection.exec('BEGIN EXCLUSIVE')
  } catch (error) {
    connection.close()
    if (!(error instanceof Sqlite.SqliteError) || error.code !== 'SQLITE_BUSY') throw error
    throw new SluiceError('request.conflict', 'a control plane runs on this data directory', {
      hint: 'End it first, or choose another --data-dir.',
      cause: error,
    })
  }
  return { [Symbol.dispose]: () => void connection.close() }
}
