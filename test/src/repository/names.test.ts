/** Proves that no file and no symbol has a name that says nothing. */

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import { checkFileNames, checkNames, wordsOf } from './name-rules.ts'
import { readRepository, sampleFile } from './source-tree.ts'

const repository = readRepository()

describe('names', () => {
  it('hold no word that can mean anything', () => {
    assert.deepEqual(checkNames(repository), [])
  })

  it('of source files are kebab-case', () => {
    assert.deepEqual(checkFileNames(repository), [])
  })
})

describe('the check of names', () => {
  it('splits names into words', () => {
    assert.deepEqual(wordsOf('makeHTTPServerFor-two_things'), [
      'make',
      'http',
      'server',
      'for',
      'two',
      'things',
    ])
  })

  it('refuses a banned word in a file, a folder and a symbol, and no longer word that holds one', () => {
    // Written out, the samples would be names of this file.
    const [value, type] = ['const', 'class']
    const bad = [
      sampleFile('agent/src/utils/a.ts', ''),
      sampleFile('agent/src/job-manager.ts', ''),
      sampleFile('agent/src/a.ts', `export ${value} errorHandler = 1\n${type} UploadService {}\n`),
    ]
    assert.equal(checkNames(bad).length, 4)
    const good = sampleFile('agent/src/a.ts', 'const utilised = 1\nfunction handleFrame() {}\n')
    assert.deepEqual(checkNames([good]), [])
  })

  it('refuses other spellings of a file', () => {
    assert.equal(checkFileNames([sampleFile('agent/src/partPlan.ts', '')]).length, 1)
    assert.deepEqual(checkFileNames([sampleFile('agent/src/part-plan.long.test.ts', '')]), [])
  })
})
