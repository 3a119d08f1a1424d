/** Proves that a roll over PKCS#11 survives kill -9 of each of its processes at each of their steps. */

import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { after, describe, it, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'

import { epochs, jobKeys } from '@sluice/control-plane/database/schema'
import { startKeyProcess } from '@sluice/control-plane/keys/key-process-link'
import type { Keys } from '@sluice/control-plane/keys/keys'
import {
  announce,
  deleteKey,
  makeKeys,
  makeWorld,
  opens,
  opensNever,
  seal,
  type Sealed,
  type World,
} from '@sluice/control-plane/keys/keys.test-setup'
import { makeToken, onToken, withoutSoftHsm } from '@sluice/control-plane/keys/soft-hsm.test-setup'
import {
  makeStubbornModule,
  withoutCompiler,
} from '@sluice/control-plane/keys/stubborn-module.test-setup'
import { openTokenLedger } from '@sluice/control-plane/keys/token-process-link'

import { startProgram } from '../tools/processes.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'
import type { RollOrder } from './hsm-roll-child.ts'

const skip = withoutSoftHsm() || withoutCompiler()
const child = fileURLToPath(new URL('./hsm-roll-child.ts', import.meta.url))
const moments = ['before', 'after'] as const

const folder = await makeTemporaryDirectory('hsm-deaths')
after(() => folder[Symbol.asyncDispose]())
const token = skip === false ? await makeToken(folder.path, 'sluice') : ({} as never)
const module = skip === false ? await makeStubbornModule(folder.path, token.library) : ({} as never)
const kind = onToken({ ...token, library: module.library })

type Rolling = { world: World; kept: Sealed; roll: (order?: Order) => Promise<boolean> }
type Order = Pick<RollOrder, 'death'>

/** One control plane whose survivor lives through all rolls, and the processes to roll it with. */
async function prepare(t: TestContext): Promise<Rolling> {
  const world = await makeWorld(t, {
    ...kind,
    open: async (at) => ({ ...(await openTokenLedger(placeOf(at).pkcs11)), ...neverHere }),
  })
  await using keys = await keysOf(world)
  const kept = await seal(world, keys)
  await announce(world, keys, kept)
  return {
    world,
    kept,
    roll: async (order = {}) => {
      const place = placeOf(world.folder)
      const argument: RollOrder = { folder: world.folder, place, ...order }
      await using program = await startProgram({
        command: process.execPath,
        args: [child, JSON.stringify(argument)],
      })
      const end = await program.ended
      assert.ok(end.code === 0 || end.signal === 'SIGKILL', program.stderr)
      return end.code === 0
    },
  }
}

const neverHere = {
  create: () => Promise.reject(new Error('a key in the main process')),
  load: () => Promise.reject(new Error('a key in the main process')),
}

function placeOf(at: string) {
  const { pkcs11, ...place } = kind.placeIn(at)
  assert.ok(pkcs11)
  return { ...place, pkcs11 }
}

const keysOf = (world: World): Promise<Keys> =>
  makeKeys(world, { startProcess: () => startKeyProcess(placeOf(world.folder)) })

/**
 * Deletes a job's key, rolls with `roll`, and proves what must be true however that went.
 *
 * @returns What `roll` returned.
 */
async function rollThrough(
  { world, kept }: Rolling,
  roll: () => Promise<boolean>,
): Promise<boolean> {
  let gone: Sealed
  let wraps: Buffer[]
  {
    await using keys = await keysOf(world)
    gone = await seal(world, keys)
    await announce(world, keys, gone)
    const rows = await world.database.read((sql) => sql.select().from(jobKeys))
    wraps = rows.filter(({ jobId }) => jobId === gone.jobId).map(({ wrapped }) => wrapped)
    assert.ok(await opens(world, keys, gone), 'control: it opens before')
    await deleteKey(world, gone)
  }
  const again = await roll()
  await using keys = await keysOf(world)
  assert.ok(await opens(world, keys, kept), 'the survivor opens')
  await keys.roll()
  assert.ok(await opens(world, keys, kept))
  const rows = await world.database.read((sql) => sql.select().from(epochs))
  const current = rows.filter(({ state }) => state === 'current')
  assert.equal(current.length, 1)
  assert.ok(rows.every(({ state }) => state === 'current' || state === 'destroyed'))
  const ids = current.map(({ id }) => id)
  assert.deepEqual(await world.store.list(), ids)
  const files = await readdir(placeOf(world.folder).pkcs11.folder)
  const expected = ['instance', 'witness', ...ids.map((id) => `${id}.wrapped`)]
  assert.deepEqual(files.filter((name) => !name.endsWith('.new')).toSorted(), expected.toSorted())
  await opensNever(world, keys, gone, wraps)
  return again
}

describe('a roll over PKCS#11', { timeout: 3_600_000 }, () => {
  for (const when of moments)
    it(`is finished after its main process was killed ${when} each effect`, { skip }, async (t) => {
      const rolling = await prepare(t)
      const die = (effect: number) => async () => !(await rolling.roll({ death: { effect, when } }))
      let deaths = 0
      while (await rollThrough(rolling, die(deaths + 1))) deaths += 1
      t.diagnostic(`${deaths} deaths`)
      assert.ok(deaths >= 10, `${deaths} effects`)
    })

  for (const program of ['key-process', 'token-process'])
    for (const when of moments)
      it(
        `goes on when its ${program} was killed ${when} each call of the HSM`,
        { skip },
        async (t) => {
          const rolling = await prepare(t)
          const kill = (call: number) => async () => {
            await module.doom({ program, call, when })
            assert.ok(await rolling.roll(), 'the main process lives')
            return module.fulfilled()
          }
          let deaths = 0
          while (await rollThrough(rolling, kill(deaths + 1))) deaths += 1
          t.diagnostic(`${deaths} deaths`)
          assert.ok(deaths >= 10, `${deaths} calls`)
        },
      )
})
