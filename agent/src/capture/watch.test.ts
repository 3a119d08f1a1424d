/** Proves that a watched file is taken once, and only when nothing writes to it any more. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { watch } from 'node:fs'
import {
  appendFile,
  mkdir,
  mkdtemp,
  readdir,
  readlink,
  rename,
  rm,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { submissionId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import type { WatchedFolder } from '../config.ts'
import { diskEffects } from '../durable-file.ts'
import { type Journal, openJournal } from '../journal.ts'
import { contentKey, isContentKnown, rememberContents } from './contents.ts'
import { hashFiles } from './hash-files.ts'
import type { NewSubmission } from './take-in.ts'
import { identifySource } from './sources.ts'
import { createLook } from './watch.ts'
import { type WatchedFiles, openWatchedFiles } from './watched-files.ts'

let folder: string
let state: string
let taken: NewSubmission[]
let failures: string[]
let look: () => Promise<void>
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-watch-'))
  state = await mkdtemp(path.join(tmpdir(), 'sluice-watch-state-'))
  taken = []
  failures = []
  clock = { nowMs: 1000 }
  duplicates = 0
  held = []
  look = await makeLook(await openJournal(state))
})
afterEach(async () => {
  await rm(folder, { recursive: true, force: true })
  await rm(state, { recursive: true })
})

let clock: { nowMs: number }
let duplicates: number
let held: number[]

const rule: Omit<WatchedFolder, 'path'> = {
  ...{ analyser: 'example', sourceAction: 'keep', sourceWhen: 'result', subfolders: false },
  ...{ include: [], exclude: [], settleMs: 0, batchFiles: 1, batchMs: 60_000, dedupe: true },
}

async function makeLook(
  journal: Journal,
  more: Partial<WatchedFolder> & {
    pendingMax?: number
    watched?: WatchedFiles
    now?: (() => number) | undefined
  } = {},
): Promise<() => Promise<void>> {
  const { pendingMax = 100, watched: given, now: _, ...changed } = more
  const now = 'now' in more ? more.now : () => clock.nowMs
  const watched = given ?? (await openWatchedFiles(state, journal))
  return createLook({
    watched,
    folders: [{ path: folder, ...rule, ...changed }],
    journal,
    capture: {
      async submit(submission) {
        taken.push(submission)
        const sources = await Promise.all(submission.files.map(identifySource))
        const id = newId(submissionId, clock.nowMs)
        const { analyser, source, contents = [] } = submission
        await journal.change((draft) => {
          draft.submissions[id] = {
            ...{ submissionId: id, createdAtMs: clock.nowMs, origin: 'watch', analyser, sources },
            ...{ source, state: 'waiting', attempts: 0 },
          }
          const keys = contents.map((sha256) => contentKey(sha256, analyser))
          rememberContents(draft, keys, { submissionId: id, atMs: clock.nowMs })
        })
        return id
      },
    },
    ...{ pollMs: 1, pendingMax, isolation: 'none', ...(now && { now }) },
    signal: new AbortController().signal,
    failed: (where) => void failures.push(where),
    duplicates: (count) => void (duplicates += count),
    holding: (pending) => void held.push(pending),
  })
}
const names = () => taken.map(({ files }) => files.map((file) => path.relative(folder, file)))
const put = (name: string, text = `of ${name}`) => writeFile(path.join(folder, name), text)

describe('a watched folder', () => {
  it('gives a file once it is the same in two looks, and only once', async () => {
    await put('a.jpg')
    await look()
    assert.equal(taken.length, 0)
    await appendFile(path.join(folder, 'a.jpg'), 'more')
    await look()
    assert.equal(taken.length, 0)
    await look()
    await look()
    assert.deepEqual(
      taken.map(({ files }) => files),
      [[path.join(folder, 'a.jpg')]],
    )
    assert.equal(taken[0]?.origin, 'watch')
  })

  it('needs no events, which network shares do not send', async () => {
    const events = async () => {
      const open = (await readdir('/proc/self/fd')).map((fd) => path.join('/proc/self/fd', fd))
      const targets = await Promise.all(open.map((fd) => readlink(fd).catch(() => '')))
      return targets.filter((target) => target.includes('inotify')).length
    }
    const before = await events()
    await put('a.jpg')
    await look()
    await look()
    assert.equal(taken.length, 1)
    assert.equal(await events(), before)
    // Whoever asks for events is seen.
    const watcher = watch(folder)
    assert.ok((await events()) > before)
    watcher.close()
  })

  it('waits while either size or time of a file still changes: a share may show one late', async () => {
    const file = path.join(folder, 'a.jpg')
    await put('a.jpg', 'one')
    await utimes(file, 1000, 1000)
    await look()
    await put('a.jpg', 'longer')
    await utimes(file, 1000, 1000)
    await look()
    await put('a.jpg', 'as long')
    await utimes(file, 1000, 1000)
    await look()
    assert.equal(taken.length, 0)
    await utimes(file, 1000, 1001)
    await look()
    assert.equal(taken.length, 0)
    await look()
    assert.equal(taken.length, 1)
  })

  it('outlives a disk too full to write down what is gone', async () => {
    let full = false
    const journal = await openJournal(state)
    const effects = {
      ...diskEffects,
      async create(file: string, bytes: Uint8Array, mode: number) {
        if (full) throw Object.assign(new Error('no room'), { code: 'ENOSPC' })
        await diskEffects.create(file, bytes, mode)
      },
    }
    look = await makeLook(journal, { watched: await openWatchedFiles(state, journal, effects) })
    const written = async () => (await openWatchedFiles(state, await openJournal(state))).paths()
    await put('a.jpg')
    await look()
    await look()
    await rm(path.join(folder, 'a.jpg'))
    full = true
    await look()
    assert.deepEqual(failures, [folder])
    assert.equal((await written()).length, 1)
    full = false
    await look()
    assert.equal((await written()).length, 0)
  })

  it('remembers across a restart what it gave', async () => {
    await put('a.jpg')
    await look()
    await look()
    look = await makeLook(await openJournal(state))
    await look()
    await look()
    assert.equal(taken.length, 1)
  })

  it('gives a new file under an old name again', async () => {
    await put('a.jpg')
    await look()
    await look()
    await rm(path.join(folder, 'a.jpg'))
    await look()
    await put('a.jpg', 'another one')
    await look()
    await look()
    assert.equal(taken.length, 2)
  })

  it('passes over hidden files and what is being looked at for the last time', async () => {
    await put('.a.jpg.part')
    await put('b.jpg.sluice-taken')
    await look()
    await look()
    assert.equal(taken.length, 0)
  })

  it('gives nothing twice of a share that was not mounted for a while', async () => {
    const journal = await openJournal(state)
    const watched = await openWatchedFiles(state, journal)
    look = await makeLook(journal, { watched, dedupe: false })
    const file = path.join(folder, 'a.jpg')
    const away = path.join(state, 'a.jpg')
    await put('a.jpg')
    await look()
    await look()
    watched.remember([{ ...(await identifySource(file)), device: 'of the share' }])
    for (const round of ['unmounted', 'removed']) {
      await rename(file, away)
      await look()
      assert.equal(watched.paths().length, round === 'removed' ? 0 : 1)
      await rename(away, file)
      await look()
      await look()
      // The control: on its own file system it is gone, and a new one when it comes back.
      assert.equal(taken.length, round === 'removed' ? 2 : 1)
    }
  })

  it('is watched beside a folder within that cannot be read, which is told once', async () => {
    look = await makeLook(await openJournal(state), { subfolders: true })
    // No name of text is that of this folder, so nobody reaches it, whoever runs the test.
    await mkdir(Buffer.concat([Buffer.from(`${folder}/`), Buffer.from([0xff])]))
    await writeFile(Buffer.concat([Buffer.from(`${folder}/`), Buffer.from([0xfe])]), 'a film')
    await put('a.jpg')
    for (let round = 0; round < 4; round += 1) await look()
    assert.deepEqual(names(), [['a.jpg']])
    assert.deepEqual(failures, [folder])
  })

  it('waits for no clock that was set back', async (t) => {
    t.mock.timers.enable({ apis: ['Date'], now: 90_000_000 })
    look = await makeLook(await openJournal(state), { settleMs: 1, now: undefined })
    await put('a.jpg')
    await look()
    t.mock.timers.setTime(1000)
    const deadlineMs = performance.now() + 60_000
    while (taken.length === 0 && performance.now() < deadlineMs) await look()
    assert.equal(taken.length, 1)
  })

  it('says when it cannot be read, and goes on', async () => {
    await rm(folder, { recursive: true })
    await look()
    assert.deepEqual(failures, [folder])
  })
})

describe('what is taken from a watched folder', () => {
  const twice = async (again: () => Promise<void> = look) => {
    await again()
    await again()
  }

  it('is as its names say, upper or lower case, below it only when asked', async () => {
    await mkdir(path.join(folder, 'below', '.thumbs'), { recursive: true })
    for (const name of ['A.JPG', 'b.jpg.part', 'c.mov', 'draft-d.jpg', 'Thumbs.db']) await put(name)
    await put(path.join('below', 'e.jpg'))
    await put(path.join('below', '.thumbs', 'e.jpg'))
    const journal = await openJournal(state)
    const named = { include: ['*.jpg'], exclude: ['draft-*'] }
    await twice(await makeLook(journal, named))
    assert.deepEqual(names(), [['A.JPG']])
    await twice(await makeLook(journal, { ...named, subfolders: true }))
    assert.deepEqual(names(), [['A.JPG'], [path.join('below', 'e.jpg')]])
    await twice(await makeLook(journal, { include: ['below/**'], subfolders: true }))
    assert.equal(taken.length, 2)
  })

  it('waits until it was left alone for as long as is set, and is never empty', async () => {
    look = await makeLook(await openJournal(state), { settleMs: 10_000 })
    await put('a.jpg')
    await put('empty.jpg', '')
    await twice()
    clock.nowMs += 9999
    await look()
    assert.equal(taken.length, 0)
    await appendFile(path.join(folder, 'a.jpg'), 'more')
    clock.nowMs += 1
    await twice()
    assert.equal(taken.length, 0)
    clock.nowMs += 10_000
    await look()
    assert.deepEqual(names(), [['a.jpg']])
  })

  it('is taken when it is renamed into place', async () => {
    await put('a.jpg.part')
    await twice()
    await rename(path.join(folder, 'a.jpg.part'), path.join(folder, 'a.jpg'))
    await twice()
    assert.deepEqual(names(), [['a.jpg']])
  })

  it('goes together by number, and the rest after a time', async () => {
    look = await makeLook(await openJournal(state), { batchFiles: 2, batchMs: 5000 })
    for (const name of ['a.jpg', 'b.jpg', 'c.jpg']) await put(name)
    await twice()
    assert.deepEqual(names(), [['a.jpg', 'b.jpg']])
    clock.nowMs += 4999
    await look()
    assert.equal(taken.length, 1)
    clock.nowMs += 1
    await look()
    assert.deepEqual(names().at(-1), ['c.jpg'])
  })

  it('waits in its folder while too much waits to be sealed', async () => {
    const journal = await openJournal(state)
    look = await makeLook(journal, { pendingMax: 2 })
    for (const name of ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']) await put(name)
    await twice()
    await look()
    assert.deepEqual(names(), [['a.jpg'], ['b.jpg']])
    assert.deepEqual(held, [2])
    await journal.change((draft) => {
      for (const each of Object.values(draft.submissions)) each.state = 'refused'
    })
    await look()
    assert.equal(taken.length, 4)
  })

  it('is taken once by its content, also after a restart, and again for another analyser', async () => {
    await put('a.jpg', 'the same')
    await put('b.jpg', 'the same')
    await twice()
    assert.deepEqual(names(), [['a.jpg']])
    assert.equal(duplicates, 1)
    await rm(path.join(folder, 'a.jpg'))
    const journal = await openJournal(state)
    look = await makeLook(journal)
    await put('c.jpg', 'the same')
    await twice()
    assert.equal(taken.length, 1)
    assert.equal(duplicates, 2)
    await put('d.jpg', 'the same')
    await twice(await makeLook(journal, { analyser: 'other' }))
    assert.deepEqual(names().at(-1), ['d.jpg'])
    await put('e.jpg', 'the same')
    await twice(await makeLook(journal, { dedupe: false }))
    assert.deepEqual(names().at(-1), ['e.jpg'])
  })

  it('is taken again when what it was taken for came to nothing', async () => {
    const journal = await openJournal(state)
    look = await makeLook(journal)
    await put('a.jpg', 'the same')
    await twice()
    await journal.change((draft) => {
      for (const each of Object.values(draft.submissions)) each.state = 'refused'
    })
    await put('b.jpg', 'the same')
    await twice()
    assert.deepEqual(names(), [['a.jpg'], ['b.jpg']])
  })
})

describe('hashes of contents', () => {
  it('are made in a process of their own, each for its file, whatever happens to another', async () => {
    const files: { path: string; bytes: number }[] = []
    for (let count = 0; count < 70; count += 1) {
      await put(`${count}.bin`, `content ${count}`)
      files.push({ path: path.join(folder, `${count}.bin`), bytes: 12 })
    }
    files[3] = { path: path.join(folder, 'absent'), bytes: 12 }
    const digests = await hashFiles(files, { isolation: 'none' })
    const expected = files.map((_, place) =>
      place === 3 ? undefined : createHash('sha256').update(`content ${place}`).digest('hex'),
    )
    assert.deepEqual(digests, expected)
  })
})

describe('contents that were taken', () => {
  const journalWith = async (submissionState: 'waiting' | 'refused' | 'purged') => {
    const journal = await openJournal(state)
    const id = newId(submissionId, 1)
    const key = contentKey('ab', 'example')
    await journal.change((draft) => {
      draft.submissions[id] = {
        ...{ submissionId: id, createdAtMs: 1, origin: 'watch', analyser: 'example' },
        ...{
          sources: [],
          source: { action: 'keep', when: 'result' },
          state: submissionState,
          attempts: 0,
        },
      }
      rememberContents(draft, [key], { submissionId: id, atMs: 1 })
    })
    return { journal, id, key }
  }

  it('are known while they may come to a result', async () => {
    const { journal, key } = await journalWith('waiting')
    assert.ok(isContentKnown(journal.data, key))
    assert.ok(!isContentKnown(journal.data, contentKey('ab', 'other')))
  })

  for (const over of ['refused', 'purged'] as const)
    it(`are not known any more when they were ${over}`, async () => {
      const { journal, key } = await journalWith(over)
      assert.ok(!isContentKnown(journal.data, key))
    })

  it('are bounded, the oldest going first', async () => {
    const { journal, id, key } = await journalWith('waiting')
    const more = Array.from({ length: limits.contentsRememberedMax }, (_, place) => `${place}/x`)
    await journal.change((draft) => rememberContents(draft, more, { submissionId: id, atMs: 2 }))
    assert.equal(Object.keys(journal.data.contents).length, limits.contentsRememberedMax)
    assert.ok(!isContentKnown(journal.data, key))
  })
})
