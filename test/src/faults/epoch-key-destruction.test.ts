/** Proves on the raw device that a roll leaves no byte of the old epoch key, and that a look would find one. */

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { open, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'

import { openDatabase } from '@sluice/control-plane/database/database'
import { startKeyProcess } from '@sluice/control-plane/keys/key-process-link'
import { createKeys } from '@sluice/control-plane/keys/keys'
import { openSlotFile, slotBytes, slotCount } from '@sluice/control-plane/keys/slot-file'
import { limits } from '@sluice/protocol/limits'

import { takeKeyNeedles } from '../tools/needles.ts'
import { makeRawDisk, needRawDisk, type RawDisk } from '../tools/raw-disk.ts'
import { describeHits, makeScanner, scanFile, type ScanReport } from '../tools/scan.ts'

const keyOffset = 512

/** The keys that stand in the slots now; only a test reads them. */
async function keysIn(slotFile: string): Promise<Buffer[]> {
  const bytes = await readFile(slotFile)
  return Array.from({ length: slotCount }, (_, slot) => {
    const at = slot * slotBytes + keyOffset
    return bytes.subarray(at, at + 32)
  }).filter((key) => key.some((byte) => byte !== 0))
}

async function scanDisk(disk: RawDisk, key: Buffer, source: string): Promise<ScanReport> {
  await disk.sync()
  return scanFile(makeScanner(takeKeyNeedles(key, source)), disk.image)
}

describe('the old epoch key', { skip: needRawDisk() }, () => {
  it('is on the raw disk before the roll, and nowhere on it after', async () => {
    await using disk = await makeRawDisk()
    const slotFile = join(disk.path, 'epoch-keys')
    let old: Buffer
    {
      await using database = openDatabase(join(disk.path, 'sluice.db'))
      await using store = await openSlotFile(slotFile, { overwriteTorn: true })
      await using keys = await createKeys({
        database,
        store,
        startProcess: () => startKeyProcess({ slotFile }),
        now: Date.now,
        offlineMsMax: limits.offlineMsMaxDefault,
        report: (problem) => assert.fail(problem),
        coalesceMs: 0,
      })
      assert.equal(keys.level.level, 'Clear')
      const [first, ...others] = await keysIn(slotFile)
      assert.ok(first !== undefined && others.length === 0)
      old = Buffer.from(first)
      const before = await scanDisk(disk, old, 'old epoch key')
      assert.ok(before.hits.length > 0, 'control: the key is found where it is')
      await keys.rollNow()
      const after = await scanDisk(disk, old, 'old epoch key')
      assert.equal(after.hits.length, 0, describeHits(after))
      const [next] = await keysIn(slotFile)
      assert.ok(next !== undefined && !next.equals(old))
      const held = await scanDisk(disk, Buffer.from(next), 'new epoch key')
      assert.equal(held.hits.length, 1, 'control: the new key lies in one place')
    }
    await disk.unmount()
    const ended = await scanFile(makeScanner(takeKeyNeedles(old, 'old epoch key')), disk.image)
    assert.equal(ended.hits.length, 0, describeHits(ended))
  })

  it('would have stayed if the file were replaced instead of overwritten', async () => {
    await using disk = await makeRawDisk()
    const path = join(disk.path, 'replaced')
    const key = randomBytes(32)
    for (const content of [key, randomBytes(32)]) {
      await writeFile(`${path}.new`, content)
      const file = await open(`${path}.new`)
      await file.sync()
      await file.close()
      await rename(`${path}.new`, path)
    }
    const report = await scanDisk(disk, key, 'replaced key')
    assert.ok(report.hits.length > 0, 'the scan finds what a rename leaves behind')
  })
})
