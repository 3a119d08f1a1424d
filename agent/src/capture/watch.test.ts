/** Proves that a watched file is taken once, and only when nothing writes to it any more. */
import assert from 'node:assert/strict'
import { appendFile, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { submissionId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { diskEffects } from '../durable-file.ts'
import { type Journal, openJournal } from '../journal.ts'
import type { NewSubmission } from './pipeline.ts'
import { identifySource } from './sources.ts'
import { createLook } from './watch.ts'

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
  look = makeLook(await openJournal(state))
})
afterEach(async () => {
  await rm(folder, { recursive: true, force: true })
  await rm(state, { recursive: true })
})

function makeLook(journal: Journal): () => Promise<void> {
  const rule = { analyser: 'example', sourceAction: 'keep', sourceWhen: 'result' } as const
  return createLook({
    folders: [{ path: folder, ...rule }],
    journal,
    capture: {
      async submit(submission) {
        taken.push(submission)
        const sources = await Promise.all(submission.files.map(identifySource))
        await journal.change((draft) => {
          for (const source of sources) draft.watched[source.path] = source
        })
        return newId(submissionId, 1)
      },
    },
    pollMs: 1,
    signal: new AbortController().signal,
    failed: (where) => void failures.push(where),
  })
}
const put = (name: string, text = 'x') => writeFile(path.join(folder, name), text)

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

  it('outlives a disk too full to write down what is gone', async () => {
    let full = false
    const journal = await openJournal(state, {
      ...diskEffects,
      async create(file, bytes, mode) {
        if (full) throw Object.assign(new Error('no room'), { code: 'ENOSPC' })
        await diskEffects.create(file, bytes, mode)
      },
    })
    look = makeLook(journal)
    await put('a.jpg')
    await look()
    await look()
    await rm(path.join(folder, 'a.jpg'))
    full = true
    await look()
    assert.deepEqual(failures, [folder])
    assert.equal(Object.keys(journal.data.watched).length, 1)
    full = false
    await look()
    assert.equal(Object.keys(journal.data.watched).length, 0)
  })

  it('remembers across a restart what it gave', async () => {
    await put('a.jpg')
    await look()
    await look()
    look = makeLook(await openJournal(state))
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
    await put('a.jpg')
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

  it('says when it cannot be read, and goes on', async () => {
    await rm(folder, { recursive: true })
    await look()
    assert.deepEqual(failures, [folder])
  })
})
