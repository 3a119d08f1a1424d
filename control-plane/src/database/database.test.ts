import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import Sqlite from 'better-sqlite3'
import { isSluiceError } from '@sluice/protocol/errors'
import { principalId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { openDatabase, type Transaction } from './database.ts'
import { principals } from './schema.ts'
import { isWriteFailure } from './write-failure.ts'
import { dangerousTestOnlyFillDisk } from './full-disk.test-setup.ts'

describe('the database', () => {
  let folder: string
  let path: string
  let count = 0
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'sluice-database-'))
  })
  after(async () => rm(folder, { recursive: true }))

  const fresh = () => {
    path = join(folder, `${(count += 1)}.db`)
    return openDatabase(path)
  }
  const add = ({ sql }: Transaction, name: string) =>
    sql.insert(principals).values({ id: newId(principalId, 1), name, createdAtMs: 1 })
  const names = async (database: ReturnType<typeof fresh>) =>
    await database.read(async (sql) =>
      (await sql.select().from(principals)).map((row) => row.name).toSorted(),
    )

  it('keeps nothing of a write that failed, and goes on with the next', async () => {
    await using database = fresh()
    let effects = 0
    const failing = database.write(async (transaction) => {
      await add(transaction, 'lost')
      transaction.afterCommit(() => void (effects += 1))
      throw new Error('changed my mind')
    })
    const next = database.write(async (transaction) => {
      await add(transaction, 'kept')
      transaction.afterCommit(() => void (effects += 1))
    })
    await assert.rejects(failing, /changed my mind/)
    await next
    assert.deepEqual(await names(database), ['kept'])
    assert.equal(effects, 1)
  })

  it('makes what came meanwhile durable together, and undoes alone what fails of it', async () => {
    await using database = fresh()
    const told: string[] = []
    const one = (name: string, fails: boolean) =>
      database.write(async (transaction) => {
        await add(transaction, name)
        transaction.afterCommit(() => void told.push(name))
        if (fails) throw new Error(name)
        return name
      })
    const first = one('first', false)
    const group = ['a', 'b', 'c', 'd'].map((name) => one(name, name === 'b'))
    const outcomes = await Promise.allSettled([first, ...group])
    assert.deepEqual(
      outcomes.map((outcome) => (outcome.status === 'fulfilled' ? outcome.value : 'failed')),
      ['first', 'a', 'failed', 'c', 'd'],
    )
    assert.deepEqual(await names(database), ['a', 'c', 'd', 'first'])
    assert.deepEqual(told, ['first', 'a', 'c', 'd'])
  })

  it('runs one write at a time, in the order they came', async () => {
    await using database = fresh()
    const order: string[] = []
    await Promise.all(
      ['a', 'b', 'c'].map((name) =>
        database.write(async (transaction) => {
          order.push(`begin ${name}`)
          await add(transaction, name)
          order.push(`end ${name}`)
        }),
      ),
    )
    assert.deepEqual(order, ['begin a', 'end a', 'begin b', 'end b', 'begin c', 'end c'])
  })

  it('lets what is urgent go before all that waits', async () => {
    await using database = fresh()
    const order: string[] = []
    const one = (name: string, urgent: boolean) =>
      database.write(async () => void order.push(name), { urgent })
    const waiting = ['a', 'b'].map((name) => one(name, false))
    await Promise.all([...waiting, one('ack', true), one('purge', true)])
    assert.deepEqual(order, ['ack', 'purge', 'a', 'b'])
  })

  it('shows a reader nothing of a write before it is committed', async () => {
    await using database = fresh()
    await database.write(async (transaction) => {
      await add(transaction, 'early')
      assert.deepEqual(await names(database), [])
    })
    assert.deepEqual(await names(database), ['early'])
  })

  it('on a full disk keeps nothing of a write, says so once, and goes on when there is room', async () => {
    const said: string[] = []
    path = join(folder, `${(count += 1)}.db`)
    await using database = openDatabase(path, {
      unwritable: ({ code, retry }) => void said.push(`${code} ${retry}`),
      writable: () => void said.push('writable'),
    })
    await database.write((tx) => add(tx, 'before').then(() => undefined))
    await database.write((tx) => dangerousTestOnlyFillDisk(tx))
    const large = 'x'.repeat(100_000)
    for (let tries = 0; tries < 2; tries += 1)
      await assert.rejects(
        database.write((tx) => add(tx, large)),
        (error) => isSluiceError(error, 'host.disk_full') && isWriteFailure(error),
      )
    assert.deepEqual(await names(database), ['before'])
    assert.deepEqual(said, ['host.disk_full later'])
    await database.write((tx) => dangerousTestOnlyFillDisk(tx, { pagesFree: 1000 }))
    await database.write((tx) => add(tx, 'after').then(() => undefined))
    assert.deepEqual(await names(database), ['after', 'before'])
    assert.deepEqual(said, ['host.disk_full later', 'writable'])
  })

  it('refuses one that a newer build has written', async () => {
    await fresh()[Symbol.asyncDispose]()
    const raw = new Sqlite(path)
    raw.exec(`INSERT INTO __drizzle_migrations (hash, created_at) VALUES ('x', 99999999999999)`)
    raw.close()
    assert.throws(
      () => openDatabase(path),
      (error) => isSluiceError(error, 'database.newer'),
    )
  })

  it('opens again what it wrote', async () => {
    {
      await using database = fresh()
      await database.write((transaction) => add(transaction, 'kept').then(() => undefined))
    }
    await using again = openDatabase(path)
    assert.deepEqual(await names(again), ['kept'])
  })
})
