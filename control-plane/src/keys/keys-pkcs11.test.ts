import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { testKeys } from './keys.test-setup.ts'
import { makeToken, onToken, withoutSoftHsm } from './soft-hsm.test-setup.ts'

const skip = withoutSoftHsm()
const folder = await mkdtemp(join(tmpdir(), 'sluice-hsm-'))
after(() => rm(folder, { recursive: true }))
const kind = onToken(skip === false ? await makeToken(folder, 'sluice') : ({} as never))

describe('keys on PKCS#11', () => {
  if (skip !== false) return it('live as on a file', { skip })
  return testKeys(kind)
})
