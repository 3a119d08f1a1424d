/** Proves that files of watched folders stay known: across crashes, full disks, and from older agents. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { submissionId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { type DurableEffects, diskEffects } from '../durable-file.ts'
import { type Journal, type SourceIdentity, journalName, openJournal } from '../journal.ts'
import { openWatchedFiles, watchedFilesName } from './watched-files.ts'

let state: string
beforeEach(async () => {
  state = await mkdtemp(path.join(tmpdir(), 'sluice-watched-'))
})
afterEach(() => rm(state, { recursive: true }))

const source = (name: string, more: Partial<SourceIdentity> = {}): SourceIdentity => ({
  ...{ path: `/inbox/${name}`, device: '1', inode: '2', bytes: 3, modifiedAtNs: '4' },
  ...more,
})

/** As a watched folder gives it, without a word to the file. */
const submit = (journal: Journal, createdAtMs: number, ...sources: SourceIdentity[]) =>
  journal.change((draft) => {
    const id = newId(submissionId, createdAtMs)
    draft.submissions[id] = {
      ...{ submissionId: id, createdAtMs, origin: 'watch', analyser: 'example', sources },
      ...{ source: { action: 'keep', when: 'result' }, state: 'waiting', attempts: 0 },
    }
  })

/** What an older agent left: a journal that holds them. */
async function older(...sources: SourceIdentity[]): Promise<void> {
  const journal = await openJournal(state)
  await journal.change((draft) => {
    draft.watched = Object.fromEntries(sources.map((each) => [each.path, each]))
  })
}

/** Every effect from the n-th on fails. */
function failing(n: number, code: string): DurableEffects & { failed: () => boolean } {
  let count = 0
  const step = () => {
    if ((count += 1) >= n) throw Object.assign(new Error('disk'), { code })
  }
  return {
    failed: () => count >= n,
    async create(file, bytes, mode) {
      step()
      await diskEffects.create(file, bytes, mode)
    },
    async rename(from, to) {
      step()
      await diskEffects.rename(from, to)
    },
    unlink: (file) => diskEffects.unlink(file),
    async syncFolder(folder) {
      step()
      await diskEffects.syncFolder(folder)
    },
  }
}

describe('files of watched folders', () => {
  it('are known across a restart, as they were, and no others', async () => {
    const watched = await openWatchedFiles(state, await openJournal(state))
    watched.remember([source('a'), source('b')])
    watched.forget(['/inbox/b'])
    await watched.save()
    const after = await openWatchedFiles(state, await openJournal(state))
    assert.deepEqual(after.paths(), ['/inbox/a'])
    assert.ok(after.isTaken(source('a')))
    assert.ok(!after.isTaken(source('a', { bytes: 5 })))
    assert.ok(!after.isTaken(source('a', { modifiedAtNs: '5' })))
    assert.ok(!after.isTaken(source('a', { inode: '5' })))
    assert.ok(!after.isTaken(source('b')))
  })

  it('are the same on a network share that was mounted again', async () => {
    const watched = await openWatchedFiles(state, await openJournal(state))
    watched.remember([source('a')])
    assert.ok(watched.isTaken(source('a', { device: '77' })))
  })

  it('cost no change of the journal, and nothing when nothing is new', async () => {
    const journal = await openJournal(state)
    const watched = await openWatchedFiles(state, journal)
    watched.remember([source('a')])
    await watched.save()
    assert.deepEqual(await readdir(state), [watchedFilesName])
    await journal.change((draft) => (draft.lastSeq = 1))
    assert.ok(!(await readFile(path.join(state, journalName), 'utf8')).includes('/inbox/a'))
    await rm(path.join(state, watchedFilesName))
    watched.remember([source('a')])
    watched.forget(['/inbox/b'])
    await watched.save()
    assert.deepEqual(await readdir(state), [journalName])
  })

  it('are found again after a crash before they were written down', async () => {
    const journal = await openJournal(state)
    const watched = await openWatchedFiles(state, journal)
    await submit(journal, 1, source('a'))
    watched.remember([source('a')])
    await watched.save()
    // Gone, and forgotten: that is not to come back with the submission.
    watched.forget(['/inbox/a'])
    await watched.save()
    await submit(journal, 2, source('b'), source('c', { bytes: 9 }))
    await submit(journal, 3, source('c'))
    const after = await openWatchedFiles(state, await openJournal(state))
    assert.deepEqual(after.paths().toSorted(), ['/inbox/b', '/inbox/c'])
    assert.ok(after.isTaken(source('c')))
  })

  it('are taken over from the journal of an older agent', async () => {
    await older(source('a'), source('b'))
    const journal = await openJournal(state)
    const watched = await openWatchedFiles(state, journal)
    assert.deepEqual(watched.paths(), ['/inbox/a', '/inbox/b'])
    assert.equal(journal.data.watched, undefined)
    assert.equal((await openJournal(state)).data.watched, undefined)
    const after = await openWatchedFiles(state, await openJournal(state))
    assert.ok(after.isTaken(source('a')) && after.isTaken(source('b')))
  })

  for (const code of ['EIO', 'ENOSPC'])
    it(`are known whichever effect of taking over fails first (${code})`, async () => {
      for (let n = 1; ; n += 1) {
        await rm(path.join(state, watchedFilesName), { force: true })
        await older(source('a'))
        const effects = failing(n, code)
        const opened = await openJournal(state, effects)
          .then((journal) => openWatchedFiles(state, journal, effects))
          .catch((error: unknown) => assert.equal((error as { code?: string }).code, code))
        // A disk without room is no reason not to start.
        if (code === 'ENOSPC') assert.ok(opened?.isTaken(source('a')))
        const after = await openWatchedFiles(state, await openJournal(state))
        assert.ok(after.isTaken(source('a')), `lost when effect ${n} failed`)
        if (effects.failed()) continue
        assert.ok(n > 4, 'some effect failed before')
        return
      }
    })

  it('wait in memory for room on the disk', async () => {
    const journal = await openJournal(state)
    const watched = await openWatchedFiles(state, journal, failing(1, 'ENOSPC'))
    watched.remember([source('a')])
    for (let again = 0; again < 2; again += 1)
      await assert.rejects(watched.save(), (error) => isSluiceError(error, 'host.disk_full'))
    assert.ok(watched.isTaken(source('a')))
  })

  it('are never reset when the file is damaged', async () => {
    const file = path.join(state, watchedFilesName)
    for (const text of ['', '{', '{"schema":"sluice-watched/2"}', '[]']) {
      await writeFile(file, text)
      await assert.rejects(openWatchedFiles(state, await openJournal(state)), (error) =>
        isSluiceError(error, 'host.unsafe_file'),
      )
      assert.equal(await readFile(file, 'utf8'), text)
    }
  })
})
