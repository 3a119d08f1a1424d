/** Proves what `need.ts` promises. */

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { describe, it } from 'node:test'

import { need } from './need.ts'

describe('need', () => {
  it('lets a test run when the thing is there', () => {
    assert.equal(need('a wheel', true, 'make one'), false)
  })

  it('gives a reason to skip, and fails instead where nothing may be skipped', () => {
    const script = `import { need } from './need.ts'; console.log(need('a wheel', false, 'make one'))`
    const run = (value: string): ReturnType<typeof spawnSync> =>
      spawnSync(process.execPath, ['--input-type=module', '-e', script], {
        cwd: import.meta.dirname,
        env: { ...process.env, SLUICE_REQUIRE_ALL: value },
        encoding: 'utf8',
      })
    assert.equal(run('').stdout, 'needs a wheel: make one\n')
    const strict = run('1')
    assert.equal(strict.status, 1)
    assert.match(String(strict.stderr), /a test needs a wheel: make one/)
  })
})
