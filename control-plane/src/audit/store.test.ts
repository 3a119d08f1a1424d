import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import Sqlite from 'better-sqlite3'
import { openDatabase } from '../database/database.ts'
import { appendAudit, listAudit, verifyAudit } from './store.ts'

async function databaseWithEvents(t: TestContext, count: number) {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-audit-'))
  const database = openDatabase(join(folder, 'sluice.db'))
  t.after(async () => {
    await database[Symbol.asyncDispose]()
    await rm(folder, { recursive: true })
  })
  for (let index = 0; index < count; index += 1)
    await database.write((tx) =>
      appendAudit(tx, {
        atMs: 1_700_000_000_000 + index,
        type: 'control-plane.started',
        actor: { kind: 'system' },
        site: index % 2 === 0 ? '*' : 'berlin',
        detail: { index, left: undefined },
      }),
    )
  return database
}

describe('audit chain', () => {
  it('numbers events from 1 without gaps and is whole', async (t) => {
    const database = await databaseWithEvents(t, 5)
    const events = await listAudit(database, { afterSeq: 0, items: 10 })
    assert.deepEqual(
      events.map((event) => event.seq),
      [1, 2, 3, 4, 5],
    )
    const verdict = await verifyAudit(database)
    assert.deepEqual(verdict, { whole: true, head: { seq: 5, sha256: events[4]?.sha256 } })
  })

  it('leaves nothing behind when its transaction fails', async (t) => {
    const database = await databaseWithEvents(t, 1)
    await assert.rejects(
      database.write(async (tx) => {
        await appendAudit(tx, {
          atMs: 1,
          type: 'control-plane.started',
          actor: { kind: 'system' },
          site: '*',
        })
        throw new Error('later statement failed')
      }),
    )
    assert.equal((await listAudit(database, { afterSeq: 0, items: 10 })).length, 1)
  })

  it('shows a reader only events of the sites asked for', async (t) => {
    const database = await databaseWithEvents(t, 4)
    const events = await listAudit(database, { afterSeq: 0, items: 10, sites: ['berlin'] })
    assert.deepEqual(
      events.map((event) => event.seq),
      [2, 4],
    )
  })

  const tampering: Record<string, { sql: string; at: number }> = {
    'an edited fact': {
      sql: `UPDATE audit_events SET detail = '{"index":9}' WHERE seq = 3`,
      at: 3,
    },
    'an edited actor': { sql: `UPDATE audit_events SET actor = 'x' WHERE seq = 2`, at: 2 },
    'a deleted event': { sql: `DELETE FROM audit_events WHERE seq = 3`, at: 3 },
    'a deleted first event': { sql: `DELETE FROM audit_events WHERE seq = 1`, at: 1 },
    'an inserted event': {
      sql: `INSERT INTO audit_events SELECT 6, at_ms, type, actor, site, job_id, agent_id, detail,
        previous_sha256, sha256 FROM audit_events WHERE seq = 5`,
      at: 6,
    },
    'two events that changed places': {
      sql: `UPDATE audit_events SET seq = -1 WHERE seq = 2;
        UPDATE audit_events SET seq = 2 WHERE seq = 3;
        UPDATE audit_events SET seq = 3 WHERE seq = -1`,
      at: 2,
    },
  }
  for (const [what, { sql, at }] of Object.entries(tampering))
    it(`finds ${what}`, async (t) => {
      const database = await databaseWithEvents(t, 5)
      assert.equal((await verifyAudit(database)).whole, true)
      const intruder = new Sqlite(database.path)
      intruder.exec(sql)
      intruder.close()
      const verdict = await verifyAudit(database)
      assert.equal(verdict.whole, false)
      assert.equal(verdict.whole ? undefined : verdict.seq, at)
    })

  it('finds a cut end, given a head noted earlier', async (t) => {
    const database = await databaseWithEvents(t, 5)
    const verdict = await verifyAudit(database)
    assert(verdict.whole)
    const intruder = new Sqlite(database.path)
    intruder.exec('DELETE FROM audit_events WHERE seq > 3')
    intruder.close()
    assert.equal((await verifyAudit(database)).whole, true)
    assert.deepEqual(await verifyAudit(database, verdict.head), {
      whole: false,
      seq: 4,
      reason: 'the chain ends before the noted head',
    })
    const other = { seq: 3, sha256: '0'.repeat(64) }
    assert.equal((await verifyAudit(database, other)).whole, false)
  })
})
