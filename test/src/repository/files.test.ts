/** Proves that every file opens with its promise, and that none holds a line that must not be there. */

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import { readRepository, sampleFile } from './source-tree.ts'
import { checkExecutables, checkPromises, checkTexts } from './text-rules.ts'

const repository = readRepository()

describe('files', () => {
  it('are all read', () => {
    const paths = new Set(repository.map(({ path }) => path))
    for (const path of ['package.json', 'installers/setup.mjs', 'protocol/src/limits.ts']) {
      assert.ok(paths.has(path), path)
    }
    assert.ok(![...paths].some((path) => path.includes('node_modules')))
  })

  it('hold no line that must never be there', () => {
    assert.deepEqual(checkTexts(repository), [])
  })

  it('open with what they promise', () => {
    assert.deepEqual(checkPromises(repository), [])
  })

  it('are executable exactly when they are programs', () => {
    assert.deepEqual(checkExecutables(repository), [])
  })
})

describe('the check of files', () => {
  const bad: [path: string, text: string][] = [
    ['agent/src/a.ts', 'connect({ rejectUnauthorized: false })'],
    ['docs/a.md', 'set NODE_TLS_REJECT_UNAUTHORIZED=0'],
    ['agent/src/a.ts', `connect({ minVersion: 'TLSv1.1' })`],
    ['agent/src/a.ts', 'export default function run() {}'],
    ['docs/a.md', 'TODO: write this'],
    ['docs/a.md', 'look into /home/anna/media/'],
    ['pnpm-lock.yaml', 'tarball: http://127.0.0.1/a.tgz'],
    ['agent/src/a.test.ts', 'describe.only(() => {})'],
    ['agent/src/a.test.ts', `it.skip('later')`],
    ['agent/src/a.ts', 'try { run() } catch {}'],
    ['agent/src/a.ts', 'try { run() } catch (error) {\n}'],
    ['test/a.pem', '-----BEGIN PRIVATE KEY-----\nMC4C'],
    ['agent/src/a.test.ts', `server.listen(0, '0.0.0.0')`],
  ]
  for (const [path, text] of bad) {
    it(`refuses ${JSON.stringify(text)}`, () => {
      assert.equal(checkTexts([sampleFile(path, text)]).length, 1)
    })
  }

  it('lets innocent lines pass', () => {
    const text = `const path = 'protocol/work/x'\nconst todo = list.map((one) => one.id)\n`
    assert.deepEqual(checkTexts([sampleFile('agent/src/a.ts', text)]), [])
  })

  it('refuses a source without a promise, and a program that cannot run', () => {
    const good = sampleFile('a.ts', '/** Does one thing. */\n\nrun()\n')
    const bare = sampleFile('b.ts', `import { a } from './a.ts'\n`)
    const empty = sampleFile('c.ts', '/** */\nrun()\n')
    assert.equal(checkPromises([good, bare, empty]).length, 2)
    assert.equal(checkExecutables([sampleFile('run', '#!/bin/sh\n')]).length, 1)
    assert.equal(checkExecutables([sampleFile('run', 'text\n', true)]).length, 1)
    assert.deepEqual(checkExecutables([sampleFile('run', '#!/bin/sh\n', true)]), [])
  })
})
