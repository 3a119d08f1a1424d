import assert from 'node:assert/strict'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { readS3Credentials } from './s3-credentials.ts'

describe('credentials of an S3 store', () => {
  let folder: string
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'sluice-credentials-'))
  })
  after(async () => rm(folder, { recursive: true }))

  const file = async (text: string) => {
    const path = join(folder, 'credentials')
    await writeFile(path, text, { mode: 0o600 })
    await chmod(path, 0o600)
    return path
  }

  it('are read from the default profile', async () => {
    const path = await file(
      '[other]\naws_access_key_id = no\n[default]\naws_access_key_id = id\naws_secret_access_key=s/+=\n',
    )
    assert.deepEqual(await readS3Credentials(path), { accessKeyId: 'id', secretAccessKey: 's/+=' })
  })

  it('are refused when one is missing', async () => {
    const path = await file('[default]\naws_access_key_id = id\n')
    await assert.rejects(readS3Credentials(path), (error) => isSluiceError(error, 'config.invalid'))
  })

  it('are refused from a file that others may read', async () => {
    const path = await file('[default]\naws_access_key_id = id\naws_secret_access_key = s\n')
    await chmod(path, 0o644)
    await assert.rejects(readS3Credentials(path), (error) =>
      isSluiceError(error, 'host.unsafe_file'),
    )
  })
})
