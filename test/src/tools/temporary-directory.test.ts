/** Proves what `temporary-directory.ts` promises. */

import assert from 'node:assert/strict'
import { existsSync, mkdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'

import { makeTemporaryDirectory } from './temporary-directory.ts'

describe('makeTemporaryDirectory', () => {
  it('is private, and gone with all it holds after disposal', async () => {
    let path = ''
    {
      await using folder = await makeTemporaryDirectory('own')
      path = folder.path
      assert.equal(statSync(path).mode & 0o777, 0o700)
      mkdirSync(join(path, 'a'))
      writeFileSync(join(path, 'a', 'b'), 'c')
    }
    assert.equal(existsSync(path), false)
  })
})
