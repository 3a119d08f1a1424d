/** For tests: databases without room, as SQLite itself reports it and as it is translated. */
import Sqlite from 'better-sqlite3'
import { sql as raw } from './drizzle.ts'
import type { Database, Transaction } from './database.ts'

/** From now on SQLite itself finds no room beyond these pages; more pages are room again. */
export async function dangerousTestOnlyFillDisk(
  { sql }: Transaction,
  { pagesFree } = { pagesFree: 0 },
): Promise<void> {
  const { page_count: pages } = sql.get<{ page_count: number }>(raw`PRAGMA page_count`)
  sql.get(raw.raw(`PRAGMA max_page_count = ${pages + pagesFree}`))
}

/** A database whose writes fail as on a full disk while `disk.full`. */
export function onDisk(database: Database): { disk: { full: boolean }; database: Database } {
  const disk = { full: false }
  const fail = (): never => {
    throw new Sqlite.SqliteError('database or disk is full', 'SQLITE_FULL')
  }
  // Thrown inside: the database itself translates it, as it does with SQLite's own.
  const write: Database['write'] = (change, options) =>
    database.write((tx) => (disk.full ? fail() : change(tx)), options)
  return { disk, database: { ...database, write } }
}
