import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { testKeyProcess, testRolls, testRollsCutShort } from './keys.test-setup.ts'
import { makeToken, onToken, withoutSoftHsm } from './soft-hsm.test-setup.ts'

const skip = withoutSoftHsm()
const folder = await mkdtemp(join(tmpdir(), 'sluice-hsm-'))
after(() => rm(folder, { recursive: true }))
const kind = onToken(skip === false ? await makeToken(folder, 'sluice') : ({} as never))

describe('keys on PKCS#11, everything', () => {
  if (skip !== false) return it('hold as on a file', { skip })
  testRolls(kind)
  testKeyProcess(kind)
  return testRollsCutShort(kind)
})
