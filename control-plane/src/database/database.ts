/** One SQLite database: serialised atomic writes, separate reads, migrations before anything else. */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import Sqlite from 'better-sqlite3'
import { type BetterSQLite3Database, drizzle } from 'drizzle-orm/better-sqlite3'
import { readMigrationFiles } from 'drizzle-orm/migrator'
import { migrate } from 'drizzle-orm/better-sqlite3/migrator'
import { SluiceError } from '@sluice/protocol/errors'
import * as schema from './schema.ts'
import { isWriteFailure, writeFailure } from './write-failure.ts'

const migrationsFolder = fileURLToPath(new URL('../../migrations', import.meta.url))

export type Queries = BetterSQLite3Database<typeof schema>

/** One atomic write. What must happen only once it is durable goes into `afterCommit`. */
export type Transaction = {
  sql: Queries
  afterCommit: (effect: () => void) => void
}

export type Database = AsyncDisposable & {
  /** Runs queries on the reading connection; they see the last committed state. */
  read<T>(query: (sql: Queries) => Promise<T>): Promise<T>
  /**
   * Runs `change` alone and atomically: state change, audit event and obligation belong in one.
   * Everything is rolled back when it throws. `change` must not wait for anything but its own
   * queries: every other writer waits for it.
   *
   * @throws SluiceError `host.disk_full` (`later`) when the disk is full or broken.
   */
  write<T>(change: (transaction: Transaction) => Promise<T>): Promise<T>
  readonly path: string
}

/** Is told once when writes begin to fail, and once when they succeed again. */
export type DatabaseWatch = {
  unwritable: (problem: SluiceError) => void
  writable: () => void
}

/**
 * Opens the database and brings its schema up to date.
 *
 * @throws SluiceError `database.newer` when a newer build has written it; `host.disk_full`.
 */
export function openDatabase(path: string, watch?: DatabaseWatch): Database {
  const existed = existsSync(path)
  const [writer, reader] = translated(() => connectTwice(path, existed))
  const writing = drizzle(writer, { schema, casing: 'snake_case' })
  const reading = drizzle(reader, { schema, casing: 'snake_case' })
  let tail: Promise<unknown> = Promise.resolve()
  let failing = false

  async function writeAlone<T>(change: (transaction: Transaction) => Promise<T>): Promise<T> {
    const effects: (() => void)[] = []
    writer.exec('BEGIN IMMEDIATE')
    let value: T
    try {
      value = await change({ sql: writing, afterCommit: (effect) => void effects.push(effect) })
      writer.exec('COMMIT')
    } catch (error) {
      if (writer.inTransaction) writer.exec('ROLLBACK')
      throw error
    }
    for (const effect of effects) effect()
    return value
  }

  async function writeWatched<T>(change: (transaction: Transaction) => Promise<T>): Promise<T> {
    try {
      const value = await writeAlone(change)
      if (failing) watch?.writable()
      failing = false
      return value
    } catch (error) {
      if (!isWriteFailure(error)) throw error
      const problem = writeFailure(error)
      if (!failing) watch?.unwritable(problem)
      failing = true
      throw problem
    }
  }

  return {
    path,
    read: (query) => query(reading),
    write(change) {
      const turn = tail.then(() => writeWatched(change))
      // The queue goes on whatever became of this turn; its caller gets the failure.
      tail = turn.catch(() => undefined)
      return turn
    },
    async [Symbol.asyncDispose]() {
      await tail
      reader.close()
      writer.close()
    },
  }
}

/** A writing and a reading connection to a database whose schema is up to date. */
function connectTwice(path: string, existed: boolean): [Sqlite.Database, Sqlite.Database] {
  const writer = connect(path)
  try {
    prepare(writer, path, existed)
    return [writer, connect(path)]
  } catch (error) {
    writer.close()
    throw error
  }
}

function translated<T>(work: () => T): T {
  try {
    return work()
  } catch (error) {
    throw isWriteFailure(error) ? writeFailure(error) : error
  }
}

function connect(path: string): Sqlite.Database {
  const connection = new Sqlite(path)
  connection.pragma('journal_mode = WAL')
  connection.pragma('synchronous = FULL')
  connection.pragma('foreign_keys = ON')
  connection.pragma('busy_timeout = 5000')
  return connection
}

function prepare(connection: Sqlite.Database, path: string, existed: boolean): void {
  const known = readMigrationFiles({ migrationsFolder }).map((file) => file.folderMillis)
  const applied = appliedMigrations(connection)
  const newest = known.at(-1) ?? 0
  if (applied.some((instant) => instant > newest))
    throw new SluiceError('database.newer', `a newer build has written ${path}`, {
      hint: 'Start the newer build, or restore the copy it made before it migrated.',
    })
  if (applied.length === known.length) return
  // The copy holds wrapped keys only; epoch keys live elsewhere, so it opens nothing by itself.
  if (existed && applied.length > 0)
    connection.exec(`VACUUM INTO '${`${path}.before-${newest}`.replaceAll("'", "''")}'`)
  migrate(drizzle(connection, { casing: 'snake_case' }), { migrationsFolder })
}

function appliedMigrations(connection: Sqlite.Database): number[] {
  const table = connection
    .prepare(`SELECT name FROM sqlite_master WHERE name = '__drizzle_migrations'`)
    .get()
  if (!table) return []
  const rows = connection.prepare('SELECT created_at FROM __drizzle_migrations').all()
  return rows.map((row) => (row as { created_at: number }).created_at)
}
