import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { SluiceError } from '@sluice/protocol/errors'
import { controlPlaneId } from '@sluice/protocol/ids'
import { objectKeyFrom } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import { claimKey } from './claim.ts'
import { checkedStore } from './checked-store.ts'
import { openDirectoryStore } from './directory-store.ts'

const key = objectKeyFrom(new Uint8Array(16))

/** A real store whose check answers what the test says. */
async function storeWith(t: TestContext, answers: (SluiceError | 'ok')[]) {
  const folder = await mkdtemp(join(tmpdir(), 'sluice-store-'))
  t.after(() => rm(folder, { recursive: true }))
  const store = await openDirectoryStore({ folder, origin: () => 'https://x', now: Date.now })
  t.after(() => store[Symbol.asyncDispose]())
  return {
    ...store,
    folder,
    async check() {
      const answer = answers.shift() ?? 'ok'
      if (answer !== 'ok') throw answer
      return { versioned: true, locks: false }
    },
  }
}

const owner = { id: newId(controlPlaneId, 1), mark: true }
const away = new SluiceError('store.unreachable', 'no answer', { retry: 'later' })
const insecure = new SluiceError('store.insecure', 'no TLS')

describe('a store that must be checked', () => {
  it('is refused at once for what will not pass by itself', async (t) => {
    const store = await storeWith(t, [insecure])
    await assert.rejects(
      checkedStore(store, owner, () => undefined),
      insecure,
    )
  })

  it('may be away at start, and takes nothing until it was checked', async (t) => {
    const reported: SluiceError[] = []
    const store = await storeWith(t, [away, away, 'ok', insecure])
    const checked = await checkedStore(store, owner, (problem) => reported.push(problem))
    assert.deepEqual(reported, [away])
    assert.equal(checked.traits, undefined)
    await assert.rejects(checked.createUpload(key), away)
    assert.match(await checked.createUpload(key), /^[0-9a-f]{32}$/)
    assert.deepEqual(checked.traits, { versioned: true, locks: false })
    assert.match(await checked.createUpload(key), /./, 'it was checked once and for all')
  })

  it('that turns out to be unfit takes nothing', async (t) => {
    const store = await storeWith(t, [away, insecure, insecure])
    const checked = await checkedStore(store, owner, () => undefined)
    await assert.rejects(checked.createUpload(key), insecure)
    await assert.rejects(checked.list(), insecure, 'and nothing in it is called an orphan')
  })

  it('is refused when it belongs to another control plane, also once it is back', async (t) => {
    const other = { id: newId(controlPlaneId, 2), mark: true }
    const store = await storeWith(t, ['ok', 'ok', away, 'ok', 'ok'])
    await checkedStore(store, other, () => undefined)
    const claimed = { code: 'store.claimed' }
    await assert.rejects(
      checkedStore(store, owner, () => undefined),
      claimed,
    )
    const checked = await checkedStore(store, owner, () => undefined)
    await assert.rejects(checked.createUpload(key), claimed)
    await assert.rejects(checked.list(), claimed)
    const its = await checkedStore(store, other, () => undefined)
    assert.deepEqual(await its.list(), { entries: [] }, 'control: its owner uses it')
    await rm(join(store.folder, claimKey))
    await checkedStore(store, owner, () => undefined)
    await assert.rejects(its.list(), claimed, 'taken over while it ran: it sweeps nothing there')
  })
})
