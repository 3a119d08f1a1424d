/** Proves that a change of the journal is durable and whole, or never was. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { type DurableEffects, diskEffects } from './durable-file.ts'
import { journalName, openJournal } from './journal.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-journal-'))
})
afterEach(() => rm(folder, { recursive: true }))

/** The n-th effect fails (`once`), or it and all that follow. */
function failing(n: number, mode: 'once' | 'from'): DurableEffects & { failed: () => boolean } {
  let count = 0
  let failed = false
  const step = (): void => {
    count += 1
    if (mode === 'once' ? count === n : count >= n) {
      failed = true
      throw Object.assign(new Error('disk'), { code: 'EIO' })
    }
  }
  return {
    failed: () => failed,
    async create(file, bytes, permissions) {
      // A write that fails half-way leaves half a file.
      try {
        step()
      } catch (error) {
        await diskEffects.create(file, bytes.subarray(0, 10), permissions)
        throw error
      }
      await diskEffects.create(file, bytes, permissions)
    },
    async rename(from, to) {
      step()
      await diskEffects.rename(from, to)
    },
    async unlink(file) {
      step()
      await diskEffects.unlink(file)
    },
    async syncFolder(which) {
      step()
      await diskEffects.syncFolder(which)
    },
  }
}

describe('journal', () => {
  it('holds across a restart what a change returned for', async () => {
    const journal = await openJournal(folder)
    const got = await journal.change((draft) => (draft.lastSeq = 7))
    assert.equal(got, 7)
    assert.equal((await openJournal(folder)).data.lastSeq, 7)
  })

  it('applies changes one after the other', async () => {
    const journal = await openJournal(folder)
    await Promise.all(
      Array.from({ length: 20 }, () => journal.change((draft) => (draft.lastSeq += 1))),
    )
    assert.equal((await openJournal(folder)).data.lastSeq, 20)
  })

  it('shows nothing that is not durable yet', async () => {
    const seen: number[] = []
    const journal = await openJournal(folder, {
      ...diskEffects,
      async syncFolder(which) {
        seen.push(journal.data.lastSeq)
        await diskEffects.syncFolder(which)
        seen.push(journal.data.lastSeq)
      },
    })
    await journal.change((draft) => void (draft.lastSeq = 7))
    assert.deepEqual([...seen, journal.data.lastSeq], [0, 0, 7])
  })

  it('changes nothing when an edit throws', async () => {
    const journal = await openJournal(folder)
    const edit = journal.change((draft) => {
      draft.lastSeq = 5
      throw new Error('no')
    })
    await assert.rejects(edit, /no/)
    assert.equal(journal.data.lastSeq, 0)
    await journal.change((draft) => (draft.lastSeq += 1))
    assert.equal(journal.data.lastSeq, 1)
  })

  for (const mode of ['once', 'from'] as const)
    it(`is the old one or the new one when the n-th effect fails (${mode})`, async () => {
      for (let n = 1; ; n += 1) {
        const where = await mkdtemp(path.join(folder, 'n-'))
        const first = await openJournal(where)
        await first.change((draft) => (draft.lastSeq = 1))
        const effects = failing(n, mode)
        const journal = await openJournal(where, effects)
        const done = await journal
          .change((draft) => (draft.lastSeq = 2))
          .then(
            () => true,
            () => false,
          )
        const after = (await openJournal(where)).data.lastSeq
        if (done) assert.equal(after, 2)
        else assert.ok(after === 1 || after === 2)
        if (!effects.failed()) {
          assert.ok(n > 2, 'some effect failed before')
          assert.deepEqual(await readdir(where), [journalName])
          return
        }
      }
    })

  it('never resets a damaged file', async () => {
    const file = path.join(folder, journalName)
    for (const text of ['', '{', '{"schema":"sluice-journal/2"}', '[]']) {
      await writeFile(file, text)
      await assert.rejects(openJournal(folder), (error) => isSluiceError(error, 'host.unsafe_file'))
      assert.equal(await readFile(file, 'utf8'), text)
    }
  })
})
