import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import {
  appendFile,
  mkdir,
  mkdtemp,
  open,
  readFile,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { alerts, obligations } from '../database/schema.ts'
import { recordTry } from '../deletion/store.ts'
import { testGround } from '../doubles.ts'
import { exportAudit, keepExporting } from './export.ts'
import { followChain } from './rules.ts'
import { lineOf, type OpenFile } from './sink.ts'
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
  const work = async (more: { openFile?: OpenFile; path?: string; dataDir?: string } = {}) => {
    await keepExporting({ ...deps, report: (error) => assert.fail(String(error)) })[
      Symbol.asyncDispose
    ]()
    const owed = await duty()
    assert(owed)
    return exportAudit({ ...deps, sink: { ...deps.sink, ...more } }, owed)
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

const opened: OpenFile = (path) =>
  open(path, constants.O_RDWR | constants.O_APPEND | constants.O_CREAT, 0o600)

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
        const openFile: OpenFile = async (path) =>
          new Proxy(await opened(path), {
            get(file, name) {
              const member = Reflect.get(file, name, file) as unknown
              if (typeof member !== 'function') return member
              if (name === 'close') return () => file.close()
              return async (...given: [Buffer, ...unknown[]]) => {
                effect += 1
                if (effect === nth || (forGood && effect > nth)) {
                  failures += 1
                  // A full disk takes the first part of what is written.
                  if (name === 'appendFile') await file.appendFile(given[0].subarray(0, 700))
                  throw Object.assign(new Error('no room'), { code: 'ENOSPC' })
                }
                return (member as (...all: unknown[]) => unknown).apply(file, given)
              }
            },
          })
        const outcome = await work({ openFile }).catch((error: unknown) => {
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
