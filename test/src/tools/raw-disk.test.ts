/** Proves that the raw bytes of a test disk show what was written to it, deleted or not. */

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'

import { takeNeedles } from './needles.ts'
import { makeRawDisk, needRawDisk } from './raw-disk.ts'
import { makeScanner, scanFile } from './scan.ts'

describe('makeRawDisk', () => {
  const skip = needRawDisk()
  it(
    'shows a file on the raw image, also after it was deleted, and nothing that was never there',
    { skip },
    async () => {
      let image = ''
      {
        await using disk = await makeRawDisk(16 * 1024 * 1024)
        image = disk.image
        const secret = randomBytes(20_000)
        const scanner = makeScanner(takeNeedles(secret, { source: 'secret' }))
        await disk.sync()
        assert.equal((await scanFile(scanner, disk.image)).hits.length, 0)

        const file = join(disk.path, 'secret')
        writeFileSync(file, secret, { flush: true })
        await disk.sync()
        const written = await scanFile(scanner, disk.image)
        assert.equal(written.hits.length, scanner.needleCount)
        assert.equal(written.bytes, statSync(disk.image).size)

        rmSync(file)
        await disk.sync()
        assert.equal((await scanFile(scanner, disk.image)).hits.length, scanner.needleCount)

        writeFileSync(join(disk.path, 'kept'), 'still here')
        await disk.unmount()
        assert.equal(existsSync(join(disk.path, 'kept')), false)
        await disk.mount()
        assert.equal(readFileSync(join(disk.path, 'kept'), 'utf8'), 'still here')
      }
      assert.equal(existsSync(image), false)
      assert.doesNotMatch(readFileSync('/proc/mounts', 'utf8'), new RegExp(image))
    },
  )
})
