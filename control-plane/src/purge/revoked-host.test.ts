/** Proves that a purge reaches what a revoked host still has: by the keys, since nobody can order it. */
import assert from 'node:assert/strict'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { eq } from 'drizzle-orm'
import type { PurgeScope } from '@sluice/protocol/purge'
import { agents, receiveKeys } from '../database/schema.ts'
import { requestPurge } from './begin.ts'
import { makeWorld, type Signing, type World } from './world.test-setup.ts'

let world: World
beforeEach(async () => {
  world = await makeWorld()
})
afterEach(() => world[Symbol.asyncDispose]())

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
        access: { principalId: await world.person(), rights: [], sites: 'all' },
      })
      assert.deepEqual([await keysOf(stolen), await keysOf(other)], [0, 2])
      assert.deepEqual(await world.purgeOrders(stolen.id), [], 'nobody can order it any more')
    })
})
