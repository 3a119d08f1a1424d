import assert from 'node:assert/strict'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { limits } from '@sluice/protocol/limits'
import {
  type StoreKind,
  testKeyProcess,
  testKeys,
  testRolls,
  testRollsCutShort,
} from './keys.test-setup.ts'
import { receiveKeysWanted } from './receive-keys.ts'
import { openSlotFile } from './slot-file.ts'

const slotFileOf = (folder: string): string => join(folder, 'epoch-keys')

const file: StoreKind = {
  name: 'file',
  placeIn: (folder) => ({ store: 'file', slotFile: slotFileOf(folder) }),
  open: (folder) => openSlotFile(slotFileOf(folder), { overwriteTorn: true }),
  copy: (from, to) => copyFile(slotFileOf(from), slotFileOf(to)),
}

describe('keys', () => {
  testKeys(file)
  testRolls(file)

  it('supplies at most what fits, and never more than an agent can hold', () => {
    assert.equal(receiveKeysWanted(0, 0), limits.receiveKeysPerMessage)
    assert.equal(receiveKeysWanted(255, 255), 1)
    assert.equal(receiveKeysWanted(256, 256), 0)
    assert.equal(receiveKeysWanted(0, limits.receiveKeysHeldMax), 0)
    assert.equal(receiveKeysWanted(0, limits.receiveKeysHeldMax - 3), 3)
  })
})

describe('a roll cut short at any effect', () => testRollsCutShort(file))

describe('the key process', () => testKeyProcess(file))
