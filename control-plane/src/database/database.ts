/** One SQLite database: serialised atomic writes, separate reads, migrations before anything else. */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import Sqlite from 'better-sqlite3'
import { type BetterSQLite3Database, drizzle } from './drizzle.ts'
import { readMigrationFiles } from './drizzle.ts'
import { migrate } from './drizzle.ts'
import { SluiceError } from '@sluice/protocol/errors'
import * as schema from './schema.ts'
import { isWriteFailure, writeFailure } from './write-failure.ts'

const migrationsFolder = fileURLToPath(new URL('../../migrations', import.meta.url))

/** `$client` is for what is written by the thousand: there a query builder costs more than the writing. */
export type Queries = BetterSQLite3Database<typeof schema> & { $client: Sqlite.Database }

/** One atomic write. What must happen only once it is durable goes into `afterCommit`. */
export type Transaction = {
  sql: Queries
  afterCommit: (effect: () => void) => void
  /** For what must be durable at once: the next write copies the log into the database, not this. */
  hurry: () => void
}

export type Database = AsyncDisposable & {
  /** Runs queries on the reading connection; they see the last committed state. */
  read<T>(query: (sql: Queries) => Promise<T>): Promise<T>
  /**
   * Runs `change` alone and atomically: state change, audit event and obligation belong in one.
   * Everything is rolled back when it throws. `change` must not wait for anything but its own
   * queries, and what is long may let readers go between its pieces (`in-pieces.ts`): every other
   * writer waits for it. Changes that were asked for while another was under
   * way become durable together: each is undone alone when it throws, and none returns before all
   * are on the disk.
   *
   * @param options.urgent It goes before all that is not and still waits: an emergency, and what is quick
   *   and somebody waits for.
   * @throws SluiceError `host.disk_full` (`later`) when the disk is full or broken.
   */
  write<T>(
    change: (transaction: Transaction) => Promise<T>,
    options?: { urgent: boolean },
  ): Promise<T>
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
  let queue: Queued[] = []
  let urgent: Queued[] = []
  let hurried = false
  const hurry = (): void => {
    hurried = true
    writer.pragma('wal_autocheckpoint = 0')
  }

  /** One transaction for all of `group`; with more than one, each in a savepoint of its own. */
  async function writeTogether(group: readonly Queued[]): Promise<void> {
    let refused = false
    const effects: (() => void)[] = []
    const settled: (() => void)[] = []
    writer.exec('BEGIN IMMEDIATE')
    for (const { change, done, failed } of group) {
      const mine: (() => void)[] = []
      if (group.length > 1) writer.exec('SAVEPOINT change')
      try {
        const transaction = {
          sql: writing,
          afterCommit: (effect: () => void) => void mine.push(effect),
          hurry,
        }
        const value = await change(transaction)
        if (group.length > 1) writer.exec('RELEASE change')
        effects.push(...mine)
        settled.push(() => done(value))
      } catch (error) {
        // A full or broken disk may have ended the whole transaction: then nothing of it is kept.
        if (!writer.inTransaction || group.length === 1) throw error
        writer.exec('ROLLBACK TO change; RELEASE change')
        if (isWriteFailure(error)) note(error)
        refused ||= isWriteFailure(error)
        settled.push(() => failed(translatedFailure(error)))
      }
    }
    writer.exec('COMMIT')
    if (failing && !refused) {
      failing = false
      watch?.writable()
    }
    for (const effect of effects) effect()
    for (const settle of settled) settle()
  }

  /** Tells the watch of the first failure of a row of them. */
  function note(error: unknown): void {
    if (!failing) watch?.unwritable(writeFailure(error))
    failing = true
  }

  /** Settles when what has come in over the network has been read; at once when nobody waits. */
  function allRead(): Promise<void> | undefined {
    if (queue.length + urgent.length === 0) return undefined
    return new Promise((resolve) => void afterReading(resolve))
  }

  async function writeQueued(): Promise<void> {
    const group = (urgent.length > 0 ? urgent : queue).slice(0, groupChangesMax)
    if (urgent.length > 0) urgent = urgent.slice(group.length)
    else queue = queue.slice(group.length)
    if (group.length === 0) return
    try {
      await writeTogether(group)
    } catch (error) {
      if (writer.inTransaction) writer.exec('ROLLBACK')
      if (isWriteFailure(error)) note(error)
      for (const { failed } of group) failed(translatedFailure(error))
    } finally {
      if (hurried) writer.pragma(`wal_autocheckpoint = ${checkpointPages}`)
      hurried = false
    }
  }

  return {
    path,
    read: (query) => query(reading),
    write<T>(
      change: (transaction: Transaction) => Promise<T>,
      options?: { urgent: boolean },
    ): Promise<T> {
      const { promise, resolve, reject } = Promise.withResolvers<T>()
      const waiting = options?.urgent === true ? urgent : queue
      waiting.push({ change, done: (value) => resolve(value as T), failed: reject })
      // Whoever comes first works off the others too; later turns find nothing left to do. A turn
      // begins once everything that had come in is read: frames come one by one, and a commit for
      // each of a fleet's would be an fsync each.
      tail = tail.then(allRead).then(writeQueued)
      return promise
    },
    async [Symbol.asyncDispose]() {
      await tail
      reader.close()
      writer.close()
    },
  }
}

type Queued = {
  change: (transaction: Transaction) => Promise<unknown>
  done: (value: unknown) => void
  failed: (error: unknown) => void
}

/** Node's own, also where a test moves the clock by hand. */
const afterReading = setImmediate

/** SQLite's own default: so many pages of the log are copied into the database with a commit. */
const checkpointPages = 1000

/** Changes that become durable together: whoever comes next waits for all of them. */
const groupChangesMax = 128

function translatedFailure(error: unknown): unknown {
  return isWriteFailure(error) ? writeFailure(error) : error
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
