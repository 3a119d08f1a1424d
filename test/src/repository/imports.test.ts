/** Proves that every import of the repository stands in the table of who may import whom. */

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import { checkImports, checkPurity, findCycles, findMissing, readImports } from './import-rules.ts'
import { readRepository, sampleFile } from './source-tree.ts'

const repository = readRepository()

function complaintsAbout(path: string, specifier: string): string[] {
  return checkImports([sampleFile(path, `import { thing } from '${specifier}'\n`)])
}

describe('imports', () => {
  it('all stand in the table', () => {
    assert.deepEqual(checkImports(repository), [])
  })

  it('have no cycle, not even of types', () => {
    assert.deepEqual(findCycles(repository), [])
  })

  it('lead to files that exist', () => {
    assert.deepEqual(findMissing(repository), [])
  })

  it('leave pure files pure', () => {
    assert.deepEqual(checkPurity(repository), [])
  })
})

describe('the check of imports', () => {
  it('reads every form of import, and nothing else', () => {
    // Written out, the sample itself would be read as an import of this file.
    const keyword = 'import'
    const text = [
      `import one from 'one'`,
      `import type { Two } from './two.ts'`,
      `import {\n  three,\n  type Four,\n} from '@sluice/protocol/three'`,
      `import * as five from '@scope/five/deep'`,
      `import 'six'`,
      `export { seven } from '../seven.ts'`,
      `export * from 'node:eight'`,
      `const nine = await ${keyword}('nine/deep')`,
      `export const ten = "from 'ten'"`,
      `// import { eleven } from 'eleven'`,
    ].join('\n')
    const targets = readImports(sampleFile('agent/src/a/b.ts', text)).map(({ target }) => target)
    assert.deepEqual(targets, [
      'one',
      'agent/src/a/two.ts',
      'protocol/src/three.ts',
      '@scope/five',
      'six',
      'agent/src/seven.ts',
      'node:eight',
      'nine',
    ])
  })

  const forbidden: [path: string, specifier: string, because: RegExp][] = [
    ['protocol/src/job.ts', '@sluice/agent/config', /both sides agree on data/],
    ['protocol/src/job.ts', 'node:fs', /not on effects/],
    ['protocol/src/sealing/seal.ts', 'node:fs', /bytes alone/],
    ['protocol/src/sealing/seal.ts', 'koffi', /bytes alone/],
    ['protocol/src/process/log.ts', '../sealing/seal.ts', /no key/],
    ['agent/src/journal.ts', '@sluice/control-plane/config', /knows neither/],
    ['agent/src/journal.ts', './capture/spool.ts', /knows neither/],
    ['agent/src/capture/spool.ts', '../analysis/lease.ts', /never meet/],
    ['agent/src/analysis/lease.ts', '../capture/spool.ts', /never meet/],
    ['agent/src/transfer/upload.ts', '@aws-sdk/client-s3', /through grants/],
    ['agent/src/transfer/part-plan.ts', 'node:fs', /pure/],
    ['agent/src/main.ts', './cli/main.ts', /depends on it/],
    ['agent/src/main.ts', '../../test/src/tools/scan.ts', /only the command line starts it/],
    ['control-plane/src/jobs/rules.ts', 'node:fs', /pure/],
    ['control-plane/src/jobs/rules.ts', './store.ts', /pure/],
    ['control-plane/src/jobs/leases.ts', '../doubles.ts', /nowhere else/],
    ['control-plane/src/jobs/dispatch.ts', '../database/drizzle.ts', /SQL appears only/],
    ['control-plane/src/jobs/store.ts', 'drizzle-orm', /loaded, in one place/],
    ['control-plane/src/jobs/dispatch.ts', 'hono', /Hono appears only/],
    ['control-plane/src/jobs/dispatch.ts', './routes.ts', /mounted in one place/],
    ['control-plane/src/jobs/dispatch.ts', '@sluice/agent/config', /a job leans on/],
    ['control-plane/src/keys/roll.ts', '../jobs/store.ts', /without knowing why/],
    ['control-plane/src/jobs/dispatch.ts', '@aws-sdk/client-s3', /only the storage feature/],
    ['control-plane/src/jobs/dispatch.ts', '../main.ts', /no feature may lean on it/],
    ['dashboard/main.ts', 'zod', /fits no row/],
  ]
  for (const [path, specifier, because] of forbidden) {
    it(`refuses ${specifier} in ${path}`, () => {
      assert.match(complaintsAbout(path, specifier).join('\n'), because)
    })
  }

  it('allows what the table allows', () => {
    assert.deepEqual(
      complaintsAbout('control-plane/src/jobs/store.ts', '../database/drizzle.ts'),
      [],
    )
    assert.deepEqual(complaintsAbout('agent/src/capture/spool.ts', 'node:fs/promises'), [])
    assert.deepEqual(complaintsAbout('protocol/src/sealing/aead.ts', 'koffi'), [])
  })

  it('lets a pure file name the types of others', () => {
    for (const statement of ['import type { Job }', 'import { type Job, type Lease }']) {
      const file = sampleFile('control-plane/src/jobs/rules.ts', `${statement} from './store.ts'\n`)
      assert.deepEqual(checkImports([file]), [])
    }
    const mixed = `import { type Job, save } from './store.ts'\n`
    assert.equal(checkImports([sampleFile('control-plane/src/jobs/rules.ts', mixed)]).length, 1)
  })

  it('finds a cycle of types, a missing file and a clock in a pure file', () => {
    const a = sampleFile('protocol/src/a.ts', `import type { B } from './b.ts'\n`)
    const b = sampleFile('protocol/src/b.ts', `import type { A } from './a.ts'\n`)
    assert.deepEqual(findCycles([a, b]), [
      'protocol/src/a.ts → protocol/src/b.ts → protocol/src/a.ts',
    ])
    assert.deepEqual(findMissing([a]), ['protocol/src/a.ts imports ./b.ts, which does not exist'])
    const rules = sampleFile('control-plane/src/jobs/rules.ts', 'const atMs = Date.now()\n')
    assert.match(checkPurity([rules]).join(), /pass time as an argument/)
  })
})
