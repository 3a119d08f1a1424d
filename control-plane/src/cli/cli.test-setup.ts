/** Runs the command line as people and scripts do: as a process of its own. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { keyChildEnvironment } from '@sluice/protocol/process/key-child'

/** The file that `sluice` starts. */
export const sluiceMain = fileURLToPath(new URL('main.ts', import.meta.url))

/**
 * What one command printed, and how it ended; −1 when it was killed.
 *
 * @param context The file that holds the login of whoever runs it.
 */
export function runSluice(
  args: readonly string[],
  context: string,
): Promise<{ code: number; out: string; err: string }> {
  const { PATH } = process.env
  const env = { ...keyChildEnvironment(), ...(PATH && { PATH }), SLUICE_CONTEXT: context }
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [sluiceMain, ...args], { env }, (_error, out, err) =>
      resolve({ code: child.exitCode ?? -1, out, err }),
    )
  })
}
