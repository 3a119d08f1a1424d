/** Proves that what a crash leaves of a write is gone after the next start, and nothing else is. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, it } from 'node:test'
import { diskEffects, sweepUnfinished, writeDurably } from './durable-file.ts'

describe('a write that a crash cut short', () => {
  let folder = ''
  before(async () => {
    folder = await mkdtemp(path.join(tmpdir(), 'sluice-durable-'))
  })
  after(() => rm(folder, { recursive: true }))

  it('leaves nothing behind once its folder was swept', async () => {
    const kept = ['identity.json', 'other.new', 'other.012345678901.newer']
    for (const name of kept) await writeFile(path.join(folder, name), 'old')
    const dead = () => Promise.reject(new Error('killed'))
    const effects = { ...diskEffects, rename: dead, unlink: dead }
    const file = path.join(folder, 'identity.json')
    await assert.rejects(writeDurably(file, Buffer.from('a key'), { effects }), /killed/)
    assert.equal((await readdir(folder)).length, kept.length + 1, 'control: something was left')
    await sweepUnfinished(folder)
    assert.deepEqual((await readdir(folder)).toSorted(), kept.toSorted())
  })
})
