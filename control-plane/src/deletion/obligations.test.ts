import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import type { DutyView } from '@sluice/protocol/api-obligations'
import { obligationId, purgeId, type PurgeId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { startControlPlane } from '../control-plane.test-setup.ts'
import { openDatabase } from '../database/database.ts'
import { createChanges } from '../changes.ts'
import { evidenceDocuments, receipts } from '../database/schema.ts'
import { addObligation, markDone, recordTry } from './store.ts'
import { progressOf } from './rules.ts'

const flags = [false, true]

describe('how far a duty has come', () => {
  for (const done of flags)
    for (const acked of flags)
      for (const asked of flags)
        for (const proven of flags) {
          const open = acked ? 'delivered' : asked ? 'requested' : 'owed'
          const expected = !done ? open : proven ? 'proven' : 'done'
          it(`is ${expected} when done ${done}, acked ${acked}, asked ${asked}, proven ${proven}`, () => {
            assert.equal(progressOf({ done, acked, asked, proven }), expected)
          })
        }
})

describe('GET /v1/obligations', () => {
  it('shows each duty once, in exactly one state, to those who reach its site', async () => {
    await using system = await startControlPlane()
    const changes = createChanges()
    const subject: PurgeId = newId(purgeId, Date.now())
    {
      await using rows = openDatabase(system.controlPlane.directory.database)
      await rows.write(async (tx) => {
        let idAtMs = Date.now()
        const farMs = Date.now() + 86_400_000
        const duty = (site: string, deadlineAtMs = farMs) =>
          addObligation(
            tx,
            {
              ...{ kind: 'purge.agent', subjectId: subject, site, state: 'due', deadlineAtMs },
              ...{ id: newId(obligationId, (idAtMs += 1)), atMs: Date.now(), nextTryAtMs: farMs },
            },
            changes,
          )
        await duty('berlin')
        await recordTry(tx, { id: await duty('berlin', 1), nextTryAtMs: farMs })
        await markDone(tx, await duty('paris'), Date.now())
        const proven = await duty('paris')
        await markDone(tx, proven, Date.now())
        await tx.sql.insert(receipts).values({
          obligationId: proven,
          envelope: '{}',
          payloadSha256: '0'.repeat(64),
          signerKeyId: 'a key',
          signerPublicKey: randomBytes(44),
          receivedAtMs: Date.now(),
        })
        await tx.sql.insert(evidenceDocuments).values({
          ...{ id: 'one', kind: 'purge-certificate', subjectId: subject, site: '*' },
          ...{ envelope: '{}', issuedAtMs: Date.now() },
        })
      })
    }
    const secret = await system.secretFor('viewer')
    const list = async (query: string, asker = secret) => {
      const answer = await system.call('GET', `/v1/obligations?${query}`, { secret: asker })
      assert.equal(answer.status, 200, answer.text)
      return (answer.json as unknown as { items: DutyView[] }).items
    }
    const words = async (query: string, asker?: string) =>
      (await list(query, asker)).map(({ progress }) => progress)
    const purge = `purge=${subject}`
    assert.deepEqual(await words(purge), ['owed', 'requested'])
    assert.deepEqual(await words(`${purge}&all=true`), ['owed', 'requested', 'done', 'proven'])
    assert.deepEqual(await words(`${purge}&overdue=true`), ['requested'])
    assert.deepEqual(await words(`${purge}&kind=spool.delete`), [])
    const standing = async () => {
      const { json } = await system.call('GET', '/v1/status', { secret })
      return (json['obligations'] as { progress: Record<string, number> }).progress
    }
    assert.deepEqual(await standing(), {
      ...{ owed: 1, requested: 1, delivered: 0, done: 1, proven: 1 },
    })
    const paris = await system.secretFor('viewer', 'paris')
    assert.deepEqual(await words(`${purge}&all=true`, paris), ['done', 'proven'])
    const first = await list(`${purge}&all=true&limit=1`)
    assert.deepEqual(await words(`${purge}&all=true&after=${first[0]?.id}`), [
      ...['requested', 'done', 'proven'],
    ])
    const wrong = await system.call('GET', '/v1/obligations?state=done', { secret })
    assert.equal(wrong.status, 400)
  })
})
