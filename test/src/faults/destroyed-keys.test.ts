/** Three hundred keys are destroyed by a purge, and looked for everywhere. */

import { describe, it } from 'node:test'

import { proveKeysDestroyed } from '../tools/destroyed-keys.ts'
import { needRawDisk } from '../tools/raw-disk.ts'

describe('destroyed keys', { skip: needRawDisk(), timeout: 120_000 }, () => {
  it('are on no disk and in no process, and no copy from before opens them', () =>
    proveKeysDestroyed(300))
})
