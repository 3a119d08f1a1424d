/** A folder of a test's own that is gone when the test ends. */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export type TemporaryDirectory = AsyncDisposable & {
  /** Absolute, mode 0700. */
  readonly path: string
}

/**
 * @param name Shown in the folder's name, for whoever looks at a stopped test.
 * @param parent Another place than the system's, such as `/dev/shm` or a mounted image.
 */
export async function makeTemporaryDirectory(
  name: string,
  parent: string = tmpdir(),
): Promise<TemporaryDirectory> {
  const path = await mkdtemp(join(parent, `sluice-${name}-`))
  return {
    path,
    async [Symbol.asyncDispose]() {
      // A process that was just killed may still hold a folder for a moment.
      await rm(path, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 })
    },
  }
}
