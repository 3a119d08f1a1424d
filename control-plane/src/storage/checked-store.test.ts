import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { SluiceError } from '@sluice/protocol/errors'
import { objectKeyFrom } from '@sluice/protocol/object-keys'
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
    async check() {
      const answer = answers.shift() ?? 'ok'
      if (answer !== 'ok') throw answer
      return { versioned: true, locks: false }
    },
  }
}

const away = new SluiceError('store.unreachable', 'no answer', { retry: 'later' })
const insecure = new SluiceError('store.insecure', 'no TLS')

describe('a store that must be checked', () => {
  it('is refused at once for what will not pass by itself', async (t) => {
    const store = await storeWith(t, [insecure])
    await assert.rejects(
      checkedStore(store, () => undefined),
      insecure,
    )
  })

  it('may be away at start, and takes nothing until it was checked', async (t) => {
    const reported: SluiceError[] = []
    const store = await storeWith(t, [away, away, 'ok', insecure])
    const checked = await checkedStore(store, (problem) => reported.push(problem))
    assert.deepEqual(reported, [away])
    assert.equal(checked.traits, undefined)
    await assert.rejects(checked.createUpload(key), away)
    assert.match(await checked.createUpload(key), /^[0-9a-f]{32}$/)
    assert.deepEqual(checked.traits, { versioned: true, locks: false })
    assert.match(await checked.createUpload(key), /./, 'it was checked once and for all')
  })

  it('that turns out to be unfit takes nothing', async (t) => {
    const checked = await checkedStore(await storeWith(t, [away, insecure]), () => undefined)
    await assert.rejects(checked.createUpload(key), insecure)
  })
})
