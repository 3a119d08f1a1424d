/** Proves that only the very file that was sealed is ever moved or deleted. */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readFile, readdir, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import type { SourceIdentity } from '../journal.ts'
import { handleSource, identifySource } from './sources.ts'

let folder: string
let file: string
let source: SourceIdentity
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-sources-'))
  file = path.join(folder, 'a.jpg')
  await writeFile(file, 'first')
  source = await identifySource(file)
})
afterEach(() => rm(folder, { recursive: true }))

describe('handleSource', () => {
  it('keeps, deletes or moves the file', async () => {
    await handleSource(source, { action: 'keep' })
    assert.deepEqual(await readdir(folder), ['a.jpg'])
    await mkdir(path.join(folder, 'done'))
    await handleSource(source, { action: 'move', moveTo: path.join(folder, 'done') })
    assert.deepEqual(await readdir(folder), ['done'])
    const moved = await identifySource(path.join(folder, 'done', 'a.jpg'))
    await handleSource(moved, { action: 'delete' })
    assert.deepEqual(await readdir(path.join(folder, 'done')), [])
  })

  it('is done when it was done before', async () => {
    await handleSource(source, { action: 'delete' })
    await handleSource(source, { action: 'delete' })
  })

  it('never deletes a file that took the place', async () => {
    await rm(file)
    await writeFile(file, 'other')
    const gone = handleSource(source, { action: 'delete' })
    await assert.rejects(gone, (error) => isSluiceError(error, 'media.changed'))
    assert.equal(await readFile(file, 'utf8'), 'other')
    assert.deepEqual(await readdir(folder), ['a.jpg'])
  })

  it('goes on after a crash between its steps', async () => {
    await rename(file, `${file}.sluice-taken`)
    await writeFile(file, 'new one')
    await handleSource(source, { action: 'delete' })
    assert.equal(await readFile(file, 'utf8'), 'new one')
    assert.deepEqual(await readdir(folder), ['a.jpg'])
  })

  it('never overwrites where it moves to, and puts the file back', async () => {
    await mkdir(path.join(folder, 'done'))
    await writeFile(path.join(folder, 'done', 'a.jpg'), 'older')
    const moving = handleSource(source, { action: 'move', moveTo: path.join(folder, 'done') })
    await assert.rejects(moving, (error) => isSluiceError(error, 'host.unsafe_file'))
    assert.equal(await readFile(file, 'utf8'), 'first')
    assert.equal(await readFile(path.join(folder, 'done', 'a.jpg'), 'utf8'), 'older')
  })
})

describe('identifySource', () => {
  it('takes regular files only', async () => {
    await symlink(file, path.join(folder, 'link.jpg'))
    for (const name of ['link.jpg', 'missing.jpg', '.'])
      await assert.rejects(identifySource(path.join(folder, name)), (error) =>
        isSluiceError(error, 'media.not_a_file'),
      )
  })
})
