/** Proves that the spool keeps to itself, knows its room and removes what it says it removed. */
import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import {
  chmod,
  link,
  mkdtemp,
  open,
  readFile,
  readdir,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { jobId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import {
  createSpoolFile,
  createSpoolFolder,
  deleteResultSeed,
  deleteSealed,
  deleteSpool,
  hasResultSeed,
  openSpooledArchive,
  prepareSpool,
  requireRoom,
  spoolFiles,
  spooledJobs,
} from './spool.ts'

const id = newId(jobId, 1)
let folder: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-spool-'))
})
afterEach(() => rm(folder, { recursive: true }))

async function fill(): Promise<string> {
  const where = await createSpoolFolder(folder, id)
  for (const name of Object.values(spoolFiles)) {
    await using file = await createSpoolFile(where, name)
    await file.write(Buffer.alloc(32, 7))
  }
  return where
}

describe('spool', () => {
  it('is for its owner alone', async () => {
    const where = await fill()
    assert.equal((await stat(where)).mode & 0o777, 0o700)
    assert.equal((await stat(path.join(where, spoolFiles.archive))).mode & 0o777, 0o600)
    await chmod(folder, 0o755)
    await assert.rejects(prepareSpool(folder), (error) => isSluiceError(error, 'host.unsafe_file'))
  })

  it('never seals a job twice', async () => {
    await fill()
    await assert.rejects(createSpoolFolder(folder, id), /EEXIST/)
  })

  it('says when there is no room, before anything is written', async () => {
    await requireRoom(folder, { bytes: 1, reserveBytes: 0 })
    await assert.rejects(
      requireRoom(folder, { bytes: 2 ** 52, reserveBytes: 0 }),
      (error) => isSluiceError(error, 'spool.full') && error.retry === 'later',
    )
  })

  it('keeps the seed for the result when the archive goes', async () => {
    await fill()
    await deleteSealed(folder, id)
    await assert.rejects(openSpooledArchive(folder, id), (error) =>
      isSluiceError(error, 'spool.damaged'),
    )
    assert.equal(await hasResultSeed(folder, id), true)
    await deleteSpool(folder, id)
    assert.deepEqual(await readdir(folder), [])
  })

  it('overwrites the seed before it unlinks it', async () => {
    const where = await fill()
    const second = path.join(folder, 'second-name')
    await link(path.join(where, spoolFiles.resultSeed), second)
    assert.ok((await readFile(second)).every((byte) => byte === 7))
    await deleteResultSeed(folder, id)
    assert.ok((await readFile(second)).every((byte) => byte === 0))
  })

  it('deletes as often as asked, and also what it never had', async () => {
    await deleteSealed(folder, id)
    await deleteSpool(folder, id)
    await fill()
    await deleteSpool(folder, id)
    await deleteSpool(folder, id)
  })

  it('is deleted by two at the same time without a failure, as by an order and a purge', async () => {
    for (let round = 0; round < 20; round += 1) {
      await fill()
      await Promise.all(Array.from({ length: 4 }, () => deleteSpool(folder, id)))
      assert.deepEqual(await readdir(folder), [])
    }
  })

  it('lists its jobs and follows no link', async () => {
    const where = await createSpoolFolder(folder, id)
    await writeFile(path.join(folder, 'other'), '')
    assert.deepEqual(await spooledJobs(folder), [id])
    const target = path.join(folder, 'other')
    const { symlink } = await import('node:fs/promises')
    await symlink(target, path.join(where, spoolFiles.archive))
    await assert.rejects(createSpoolFile(where, spoolFiles.archive))
    await assert.rejects(openSpooledArchive(folder, id))
    await using plain = await open(target, constants.O_RDONLY)
    assert.equal((await plain.stat()).size, 0)
  })
})
