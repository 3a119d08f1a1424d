/** Proves on a real disk that is full that the reserve is what a purge needs, and what it gives back. */
import assert from 'node:assert/strict'
import { mkdtemp, open, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { principalId, tokenId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { makeRawDisk, needRawDisk } from '../../../test/src/tools/raw-disk.ts'
import { openDatabase } from '../database/database.ts'
import { agents, principals, purges } from '../database/schema.ts'
import { createChanges } from '../changes.ts'
import { requestPurge } from './begin.ts'
import { openReserve } from './reserve.ts'

const MiB = 1024 * 1024

describe('the reserve', () => {
  it('is made once, freed once, and made again', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-reserve-'))
    t.after(() => rm(folder, { recursive: true }))
    const path = join(folder, 'reserve')
    const size = async () => (await stat(path)).size
    await using reserve = await openReserve(path, 3 * MiB + 1)
    assert.deepEqual([reserve.state, await size()], ['ready', 3 * MiB + 1])
    assert.equal(await reserve.free(), true)
    assert.deepEqual([reserve.state, await size()], ['missing', 0])
    assert.equal(await reserve.free(), false)
    assert.equal(await reserve.restore(), 'ready')
    assert.equal(await size(), 3 * MiB + 1)
  })

  it('is not made of the last room', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'sluice-reserve-'))
    t.after(() => rm(folder, { recursive: true }))
    await using reserve = await openReserve(join(folder, 'reserve'), Number.MAX_SAFE_INTEGER / 4)
    assert.equal(reserve.state, 'missing')
  })

  it('lets a purge begin on a disk without any room', { skip: needRawDisk() }, async () => {
    await using disk = await makeRawDisk(32 * MiB)
    await using database = openDatabase(join(disk.path, 'sluice.db'))
    await using reserve = await openReserve(join(disk.path, 'reserve'), 8 * MiB)
    assert.equal(reserve.state, 'ready')
    const now = Date.now
    const person = newId(principalId, now())
    await database.write(async ({ sql }) => {
      await sql.insert(principals).values({ id: person, name: 'anna', createdAtMs: now() })
    })
    await fill(join(disk.path, 'ballast'))
    const deps = { database, changes: createChanges(), now, storeKind: 's3', aloneJobsMax: 100 }
    const rights = [{ role: 'security' as const, site: '*' }]
    const request = {
      scope: { kind: 'everything' as const },
      reason: 'a test',
      breakGlass: false,
      includingHeld: false,
      access: {
        ...{ principalId: person, tokenId: tokenId.parse(person) },
        ...{ sites: 'all' as const, rights },
      },
    }
    // The log is preallocated in part: write until the disk says no.
    await assert.rejects(
      async () => {
        for (let more = 0; more < 10_000; more += 1)
          await database.write(async ({ sql }) => {
            await sql.insert(principals).values({
              id: newId(principalId, now()),
              name: `${more}-${'x'.repeat(4000)}`,
              createdAtMs: now(),
            })
          })
      },
      (error) => isSluiceError(error, 'host.disk_full'),
    )
    const without = { ...deps, reserve: { free: () => Promise.resolve(false) } }
    await assert.rejects(requestPurge(without, request), (error) =>
      isSluiceError(error, 'host.disk_full'),
    )
    const begun = () => database.read((sql) => sql.select().from(purges))
    assert.deepEqual(await begun(), [])
    await requestPurge({ ...deps, reserve }, request)
    assert.deepEqual(
      (await begun()).map((row) => row.state),
      ['running'],
    )
    assert.equal(reserve.state, 'missing')
    assert.equal((await database.read((sql) => sql.select().from(agents))).length, 0)
  })
})

/** Takes every byte that is left. */
async function fill(path: string): Promise<void> {
  await using file = await open(path, 'w')
  for (const bytes of [64 * 1024, 512])
    try {
      for (;;) await file.write(Buffer.alloc(bytes, 1))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
    }
  await file.sync()
}
