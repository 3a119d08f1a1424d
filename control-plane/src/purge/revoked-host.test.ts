/** Proves that a purge reaches what a revoked host still has: by the keys, since nobody can order it. */
import assert from 'node:assert/strict'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { eq } from '../database/drizzle.ts'
import { unaskedExclusion } from '@sluice/protocol/purge-certificate'
import type { PurgeScope } from '@sluice/protocol/purge'
import { verifyPurgeCertificate, verifyPurgeReport } from '@sluice/protocol/sealing/verify-purge'
import type { Access } from '../access/rules.ts'
import { agents, receiveKeys } from '../database/schema.ts'
import { requestPurge } from './begin.ts'
import { interimReport } from './conclude.ts'
import { countOpenDuties, documentOf, openOf } from './store.ts'
import { askPurgeWriteOff, writeOffPurge } from './write-off.ts'
import { makeWorld, type Signing, tokenOf, type World } from './world.test-setup.ts'

let world: World
beforeEach(async () => {
  world = await makeWorld()
})
afterEach(() => world[Symbol.asyncDispose]())

async function accessOfSomebody(): Promise<Access> {
  const principalId = await world.person()
  return {
    ...{ principalId, principal: 'anna', tokenId: tokenOf(principalId), sites: 'all' },
    rights: [{ role: 'security', site: '*' }],
  }
}

describe('a purge of a host that was revoked before', () => {
  const scopes: [string, (host: Signing) => PurgeScope][] = [
    ['agent', ({ id }) => ({ kind: 'agent', agentId: id })],
    ['site', ({ site }) => ({ kind: 'site', site })],
    ['label', () => ({ kind: 'label', key: 'ward', value: '3' })],
  ]
  for (const [name, scopeOf] of scopes)
    it(`ends its unused receive keys, by ${name}: what it sealed and hid opens for nobody`, async () => {
      const labels = { ward: '3' }
      const stolen = await world.enrol('capture', { labels, receiveKeys: 3 })
      const other = await world.enrol('capture', { site: 'south', receiveKeys: 2 })
      const { database, now } = world.ground
      await database.write(async ({ sql }) => {
        await sql.update(agents).set({ revokedAtMs: now() }).where(eq(agents.id, stolen.id))
      })
      const keysOf = async ({ id }: Signing) =>
        (await database.read((sql) => sql.select().from(receiveKeys))).filter(
          ({ agentId }) => agentId === id,
        ).length
      assert.equal(await keysOf(stolen), 3, 'control: a revocation freezes, it destroys nothing')
      await requestPurge(world.deps, {
        ...{ scope: scopeOf(stolen), reason: 'stolen', breakGlass: false, includingHeld: false },
        access: await accessOfSomebody(),
      })
      assert.deepEqual([await keysOf(stolen), await keysOf(other)], [0, 2])
      assert.deepEqual(await world.purgeOrders(stolen.id), [], 'nobody can order it any more')
    })

  it('and had no job in it is named as unasked, in certificate, report and words', async () => {
    const revoked = await world.enrol('capture', { receiveKeys: 2 })
    const elsewhere = await world.enrol('capture', { site: 'south' })
    const node = await world.enrol('gpu')
    const ordered = await world.enrol('capture')
    const { database, now } = world.ground
    await database.write(async ({ sql }) => {
      for (const { id } of [revoked, elsewhere, node])
        await sql.update(agents).set({ revokedAtMs: now() }).where(eq(agents.id, id))
    })
    const access = await accessOfSomebody()
    const ask = { reason: 'stolen', breakGlass: false, includingHeld: false, access }
    const scope = { kind: 'site', site: revoked.site } as const
    const id = await requestPurge(world.deps, { ...ask, scope })
    await world.work()
    const parts = { ...world.ground, evidence: world.evidence }
    const report = verifyPurgeReport(
      Buffer.from(await interimReport(parts, id)),
      world.evidence.publicKey,
    )
    await world.obey(ordered)
    await world.work()
    const text = await database.read((sql) => documentOf(sql, id, 'purge-certificate'))
    const certificate = verifyPurgeCertificate(Buffer.from(text!), world.evidence.publicKey)
    for (const { unasked, exclusions } of [report, certificate]) {
      assert.deepEqual(unasked, { count: 1, agentIds: [revoked.id] })
      assert.ok(exclusions.includes(unaskedExclusion))
    }
    const other = await requestPurge(world.deps, {
      ...ask,
      scope: { kind: 'agent', agentId: ordered.id },
    })
    await world.work()
    const { unasked, exclusions } = verifyPurgeReport(
      Buffer.from(await interimReport(parts, other)),
      world.evidence.publicKey,
    )
    assert.deepEqual(unasked, { count: 0, agentIds: [] }, 'control: beyond the scope')
    assert.ok(!exclusions.includes(unaskedExclusion))
  })

  it('that has orders ends in a report once two people give up on it, and not before', async () => {
    const stolen = await world.enrol('capture')
    await world.job({ by: stolen })
    const { database, changes, now } = world.ground
    const access = await accessOfSomebody()
    const purgeId = await requestPurge(world.deps, {
      ...{ scope: { kind: 'site', site: stolen.site }, reason: 'stolen' },
      ...{ breakGlass: false, includingHeld: false, access },
    })
    const deps = { database, changes, now }
    const give = () => askPurgeWriteOff(deps, { purgeId, access, reason: 'it will not come back' })
    await assert.rejects(give(), { code: 'request.conflict' }, 'control: it could still confirm')
    await database.write(async ({ sql }) => {
      await sql.update(agents).set({ revokedAtMs: now() }).where(eq(agents.id, stolen.id))
    })
    const approvalId = await give()
    assert.equal(await database.read(async (sql) => openOf(sql, purgeId).agents), 1)
    await database.write((tx) =>
      writeOffPurge(deps, tx, {
        ...{ approvalId, operation: { kind: 'purge.write-off', purgeId }, site: '*' },
        ...{ askedBy: access.principalId, askedAtMs: now(), reason: 'gone' },
        ...{ approvedBy: access.principalId, atMs: now() },
      }),
    )
    const open = await database.read(async (sql) => openOf(sql, purgeId))
    assert.equal(open.agents, 0)
    assert.ok((await database.read(async (sql) => countOpenDuties(sql, purgeId))) > 0)
  })
})
