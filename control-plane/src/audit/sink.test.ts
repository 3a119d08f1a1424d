import assert from 'node:assert/strict'
import {
  appendFile,
  mkdir,
  mkdtemp,
  type FileHandle,
  readFile,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { isSluiceError } from '@sluice/protocol/errors'
import { alerts, obligations } from '../database/schema.ts'
import { recordTry } from '../deletion/store.ts'
import { testGround } from '../doubles.ts'
import { exportAudit, keepExporting } from './export.ts'
import { followChain } from './rules.ts'
import { lineOf, type SinkFiles, sinkFiles } from './sink.ts'
import { appendAudit, listAudit, sinkPosition } from './store.ts'

const sinkFailed = (error: unknown) => isSluiceError(error, 'audit_sink.failed')

async function world(t: TestContext, events = 3) {
  const ground = await testGround()
  const { database, changes, now } = ground
  const folder = await mkdtemp(join(tmpdir(), 'sluice-sink-'))
  const [path, dataDir] = [join(folder, 'audit.jsonl'), join(folder, 'data')] as const
  await mkdir(dataDir)
  t.after(async () => {
    await ground[Symbol.asyncDispose]()
    await rm(folder, { recursive: true })
  })
  const happen = () =>
    database.write((tx) =>
      appendAudit(tx, {
        ...{ atMs: now(), type: 'control-plane.started', actor: { kind: 'system' }, site: '*' },
      }),
    )
  for (let index = 0; index < events; index += 1) await happen()
  const eventsAfter = (afterSeq: number, items: number) => listAudit(database, { afterSeq, items })
  const deps = { database, changes, now, sink: { path, dataDir, eventsAfter } }
  const duty = async () =>
    (await database.read((sql) => sql.select().from(obligations))).find(
      ({ kind }) => kind === 'audit.export',
    )
  /** Owes what is new, and tries once. */
  const work = async (
    more: {
      files?: SinkFiles
      path?: string
      dataDir?: string
      timeoutMs?: number
      signal?: AbortSignal
    } = {},
  ) => {
    await keepExporting({ ...deps, report: (error) => assert.fail(String(error)) })[
      Symbol.asyncDispose
    ]()
    const owed = await duty()
    assert(owed)
    const { timeoutMs = 20_000, signal, ...sink } = more
    return exportAudit({ ...deps, timeoutMs, sink: { ...deps.sink, ...sink } }, owed, signal)
  }
  const text = () => readFile(path, 'utf8')
  /** Everything in the database, once and in order. */
  const whole = async () => {
    const all = await eventsAfter(0, 1000)
    assert.equal(await text(), all.map(lineOf).join(''))
    const rows = (await text()).trimEnd().split('\n')
    assert.equal(followChain(rows.map((row) => JSON.parse(row) as unknown)).whole, true)
    const position = await database.read((sql) => sinkPosition(sql, 'file'))
    assert.equal(position.seq, all.at(-1)?.seq)
  }
  return { ground, folder, path, dataDir, happen, work, text, whole, duty, deps, eventsAfter }
}

describe('audit sink', () => {
  it('holds every event once, in order, and goes on where it was', async (t) => {
    const { work, whole, happen, duty } = await world(t)
    assert.equal(await work(), 'settled')
    await whole()
    await happen()
    assert.equal(await work(), 'settled')
    await whole()
    assert.equal((await duty())?.state, 'done')
  })

  for (const forGood of [false, true])
    it(`loses and doubles nothing when its n-th effect fails ${forGood ? 'from then on' : 'once'}`, async (t) => {
      for (let nth = 1, failures = 1; failures > 0; nth += 1) {
        const { work, whole, duty } = await world(t)
        let effect = 0
        failures = 0
        const willFail = () => effect + 1 === nth || (forGood && effect + 1 > nth)
        const fails = (): void => {
          const failing = willFail()
          effect += 1
          if (!failing) return
          failures += 1
          throw Object.assign(new Error('no room'), { code: 'ENOSPC' })
        }
        const failing = (opened: FileHandle) =>
          new Proxy(opened, {
            get(file, name) {
              const member = Reflect.get(file, name, file) as unknown
              if (typeof member !== 'function') return member
              if (name === 'close') return () => file.close()
              return async (...given: [Buffer, ...unknown[]]) => {
                // A full disk takes the first part of what is written.
                if (name === 'appendFile' && willFail())
                  await file.appendFile(given[0].subarray(0, 700))
                fails()
                return (member as (...all: unknown[]) => unknown).apply(file, given)
              }
            },
          })
        const files: SinkFiles = {
          open: async (path) => failing(await sinkFiles.open(path)),
          async create(path) {
            fails()
            return failing(await sinkFiles.create(path))
          },
          async place(from, to) {
            fails()
            await sinkFiles.place(from, to)
            // Also what comes after the file has its name may fail.
            fails()
          },
        }
        const outcome = await work({ files }).catch((error: unknown) => {
          assert(sinkFailed(error), String(error))
          return 'owed'
        })
        assert.equal(outcome, failures > 0 ? 'owed' : 'settled')
        assert.equal((await duty())?.state, failures > 0 ? 'due' : 'done')
        assert.equal(await work(), 'settled', `after effect ${nth}`)
        await whole()
        assert(nth < 50)
      }
    })

  it('knows its own lines again when the row of them was lost', async (t) => {
    const { work, whole, deps, eventsAfter, path } = await world(t)
    const lines = (await eventsAfter(0, 2)).map(lineOf).join('')
    await writeFile(path, lines, { mode: 0o600 })
    assert.equal((await deps.database.read((sql) => sinkPosition(sql, 'file'))).seq, 0)
    assert.equal(await work(), 'settled')
    await whole()
  })

  it('removes its own torn line, and nothing else', async (t) => {
    const { work, whole, happen, path, text, eventsAfter } = await world(t)
    await work()
    await happen()
    // The failure of a sink is an event itself: what comes next is known only now.
    const [next] = (await eventsAfter(3, 1)).map(lineOf)
    await appendFile(path, next!.slice(0, 40))
    assert.equal(await work(), 'settled')
    await whole()
    await happen()
    await appendFile(path, 'somebody else')
    const before = await text()
    await assert.rejects(work(), sinkFailed)
    assert.equal(await text(), before)
  })

  const foreign: Record<string, (line: string) => string> = {
    'another file': () => 'root:x:0:0\n',
    'an edited line': (line) => line.replace('"site":"*"', '"site":"x"'),
    'an event that never was': (line) => line.replace('"seq":3', '"seq":9'),
    'one long line': () => 'x'.repeat(300_000),
  }
  for (const [what, edit] of Object.entries(foreign))
    it(`touches nothing of ${what}, says so once, and stays owed`, async (t) => {
      const { work, path, text, eventsAfter, duty, deps } = await world(t)
      const [last] = (await eventsAfter(2, 1)).map(lineOf)
      await writeFile(path, edit(last!))
      const before = await text()
      await assert.rejects(work(), (error: unknown) => {
        assert(isSluiceError(error, 'audit_sink.failed'))
        return true
      })
      const failing = await duty()
      assert(failing)
      const problem = {
        code: 'audit_sink.failed',
        message: 'as the engine writes it down',
      } as const
      await deps.database.write((tx) => recordTry(tx, { id: failing.id, nextTryAtMs: 0, problem }))
      await assert.rejects(work(), sinkFailed)
      assert.equal(await text(), before)
      assert.equal((await duty())?.state, 'due')
      const said = await deps.database.read((sql) => sql.select().from(alerts))
      assert.deepEqual(
        said.map(({ type }) => type),
        ['audit-sink.failed'],
      )
      await rm(path)
      assert.equal(await work(), 'settled')
      const types = (await eventsAfter(0, 100)).map(({ type }) => type)
      assert.equal(types.filter((type) => type === 'audit-sink.failed').length, 1)
      assert.equal(types.at(-1), 'audit-sink.recovered')
    })

  it('refuses a file that lost events it held', async (t) => {
    const { work, path, text, happen } = await world(t)
    await work()
    const [first] = (await text()).split('\n')
    await writeFile(path, `${first}\n`)
    await happen()
    await assert.rejects(work(), sinkFailed)
  })

  const shortened: Record<string, (text: string) => string> = {
    emptied: () => '',
    'cut in its first line': (text) => text.slice(0, 30),
    'cut in its last line': (text) => text.slice(0, -30),
    'cut after a line': (text) => `${text.split('\n')[0]}\n`,
  }
  for (const [what, cut] of Object.entries(shortened))
    it(`takes a file that was ${what} for no rotation, and says so`, async (t) => {
      const { work, whole, path, text, happen, deps } = await world(t)
      await work()
      await writeFile(path, cut(await text()))
      const before = await text()
      await happen()
      await assert.rejects(work(), sinkFailed)
      assert.equal(await text(), before)
      const said = await deps.database.read((sql) => sql.select().from(alerts))
      assert.deepEqual(
        said.map(({ type }) => type),
        ['audit-sink.failed'],
      )
      await rm(path)
      assert.equal(await work(), 'settled', 'the control: moved away')
      const rows = (await text()).trimEnd().split('\n')
      assert.equal((JSON.parse(rows[0]!) as { seq: number }).seq, 4)
      await assert.rejects(whole(), 'the first three are where it was moved to')
    })

  it('replaces nothing that came while it made a new file', async (t) => {
    const { work, path, text } = await world(t)
    const files: SinkFiles = {
      ...sinkFiles,
      async place(from, to) {
        await writeFile(path, 'somebody else')
        await sinkFiles.place(from, to)
      },
    }
    await assert.rejects(work({ files }), sinkFailed)
    assert.equal(await text(), 'somebody else')
  })

  it('waits for no file system that hangs, and never begins a second try beside one', async (t) => {
    const { work, whole, duty } = await world(t)
    const hangs = Promise.withResolvers<void>()
    const first = Promise.withResolvers<void>()
    let begun = 0
    const files: SinkFiles = {
      ...sinkFiles,
      async create(path) {
        begun += 1
        first.resolve()
        await hangs.promise
        return sinkFiles.create(path)
      },
    }
    await assert.rejects(work({ files, timeoutMs: 20 }), /hangs/)
    await assert.rejects(work({ files, timeoutMs: 20 }), /hangs/)
    await assert.rejects(work({ files, signal: AbortSignal.abort() }), /hangs/)
    // On a busy host the time may be over before the file system is asked at all.
    await first.promise
    assert.equal(begun, 1)
    assert.equal((await duty())?.state, 'due')
    hangs.resolve()
    const deadlineMs = Date.now() + 20_000
    const settles = async (): Promise<unknown> => {
      try {
        return await work()
      } catch (error) {
        if (!sinkFailed(error) || Date.now() > deadlineMs) throw error
        await setImmediate()
        return settles()
      }
    }
    assert.equal(await settles(), 'settled')
    await whole()
  })

  it('refuses a link, and a place in the data directory', async (t) => {
    const { work, whole, folder, path, dataDir } = await world(t)
    await writeFile(join(folder, 'target'), '')
    await symlink(join(folder, 'target'), join(folder, 'link'))
    await assert.rejects(work({ path: join(folder, 'link') }), sinkFailed)
    await assert.rejects(work({ path: join(dataDir, 'audit.jsonl') }), sinkFailed)
    await symlink(dataDir, join(folder, 'other-way'))
    await assert.rejects(work({ path: join(folder, 'other-way', 'x') }), sinkFailed)
    assert.equal(await work({ path }), 'settled', 'the control')
    await whole()
  })
})
