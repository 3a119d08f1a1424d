import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readdir, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { type ErrorCode, isSluiceError } from '@sluice/protocol/errors'
import { epochId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import type { Pkcs11Place } from './epoch-keys-place.ts'
import { openPkcs11Store } from './pkcs11-store.ts'
import { findObjects, openToken } from './pkcs11-token.ts'
import { makeToken, withoutSoftHsm } from './soft-hsm.test-setup.ts'
import { makeStubbornModule, withoutCompiler } from './stubborn-module.test-setup.ts'
import { openTokenLedger } from './token-process-link.ts'

const skip = withoutSoftHsm() || withoutCompiler()
const withCode = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)
const newEpoch = () => newId(epochId, Date.now())

const folder = await mkdtemp(join(tmpdir(), 'sluice-hsm-'))
after(() => rm(folder, { recursive: true }))
const { module, place } = skip === false ? await makeStubborn() : ({} as never)

async function makeStubborn() {
  const token = await makeToken(folder, 'sluice')
  const made = await makeStubbornModule(folder, token.library)
  return { module: made, place: { ...token, library: made.library } satisfies Pkcs11Place }
}

/** What an event loop sees of a call that hangs. */
async function turnsWhileHanging(work: () => Promise<unknown>): Promise<number> {
  const call = { turns: 0, over: false }
  const turning = (async () => {
    while (!call.over) {
      if (module.hangs()) call.turns += 1
      await new Promise(setImmediate)
    }
  })()
  await module.hang()
  try {
    await work()
  } finally {
    call.over = true
    await turning
    await module.goOn()
  }
  return call.turns
}

describe('the token process', () => {
  it(
    'is killed when the library hangs, and the main process goes on meanwhile',
    { skip },
    async () => {
      await using ledger = await openTokenLedger(place, { answerMs: 3_000 })
      const { pid } = ledger
      assert.ok(pid)
      const turns = await turnsWhileHanging(async () => {
        await assert.rejects(ledger.list(), withCode('keys.unavailable'))
      })
      assert.ok(turns > 0)
      await assert.rejects(readdir(`/proc/${pid}`), 'it is gone and reaped')
      assert.deepEqual(await ledger.list(), [], 'another one does the work')
    },
  )

  it('control: a library that hangs in this process stops it', { skip }, async () => {
    await using store = await openPkcs11Store(place)
    const at = join(folder, 'stubborn')
    const rescue = spawn('sh', [
      '-c',
      'until [ -e "$0/hangs" ]; do sleep 0.05; done; sleep 0.2; rm "$0/hangs" "$0/hang"',
      at,
    ])
    const rescued = once(rescue, 'exit')
    assert.equal(await turnsWhileHanging(() => store.list()), 0)
    await rescued
  })

  it(
    'calls nothing destroyed of a token that is away, and sees it again by itself',
    { skip },
    async () => {
      await using ledger = await openTokenLedger(place)
      const [id, key] = [newEpoch(), randomBytes(32)]
      {
        await using store = await openPkcs11Store(place)
        await using token = await openToken({ ...place, refusedFile: join(folder, 'refused') })
        await store.create(id, Buffer.from(key))
        assert.deepEqual(await ledger.list(), [id])
        await rename(join(folder, 'token'), join(folder, 'away'))
        try {
          const seen = await token.with((on) => findObjects(on, []).length)
          assert.equal(seen, 0, 'control: the library says that there is nothing')
          await assert.rejects(store.load(id), withCode('keys.unavailable'))
          await assert.rejects(
            store.create(newEpoch(), randomBytes(32)),
            withCode('keys.unavailable'),
          )
          await assert.rejects(store.destroy(id), withCode('keys.unavailable'))
          await assert.rejects(ledger.destroy(id), withCode('keys.unavailable'))
          await assert.rejects(ledger.list(), withCode('keys.unavailable'))
        } finally {
          await rename(join(folder, 'away'), join(folder, 'token'))
        }
        await assert.rejects(store.destroy(id), withCode('keys.unavailable'), 'it stays blind')
      }
      assert.deepEqual(await ledger.list(), [id])
      await using store = await openPkcs11Store(place)
      assert.deepEqual(await store.load(id), key)
      await ledger.destroy(id)
      await assert.rejects(store.load(id), withCode('keys.no_epoch'))
    },
  )

  it('takes a token made anew for no other than the one that was used', { skip }, async () => {
    await using ledger = await openTokenLedger(place)
    const id = newEpoch()
    {
      await using store = await openPkcs11Store(place)
      await store.create(id, randomBytes(32))
    }
    await rename(join(folder, 'token'), join(folder, 'away'))
    try {
      // The same label and PIN, and nothing on it.
      const again = await mkdtemp(join(folder, 'anew-'))
      const environment = process.env['SOFTHSM2_CONF']
      await makeToken(again, 'sluice')
      process.env['SOFTHSM2_CONF'] = environment
      await rename(join(again, 'token'), join(folder, 'token'))
      await assert.rejects(ledger.destroy(id), withCode('keys.unavailable'))
      {
        await using store = await openPkcs11Store(place)
        await assert.rejects(
          store.create(newEpoch(), randomBytes(32)),
          withCode('keys.unavailable'),
        )
        await ledger.startAnew()
        const first = newEpoch()
        await store.create(first, randomBytes(32))
        assert.deepEqual(await ledger.list(), [first])
        await ledger.destroy(first)
      }
      await rm(join(folder, 'token'), { recursive: true })
    } finally {
      await rename(join(folder, 'away'), join(folder, 'token'))
    }
    await ledger.destroy(id)
  })
})
