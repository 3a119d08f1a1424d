/**
 * Loaded into the daemons of a doomed fleet before anything else: counts what they do to their disks and
 * to other processes, and kills them with SIGKILL in front of the n-th of these effects.
 *
 * SIGUSR2 reads n from the file `NAME.arm` in the folder `FATE_FOLDER`; 0 lets the process live.
 */

import { ChildProcess } from 'node:child_process'
import fs from 'node:fs'
import { createRequire, syncBuiltinESMExports } from 'node:module'
import { basename, join } from 'node:path'

const databaseModule = 'better-sqlite3'

type Work = (...args: never[]) => unknown

const folder = process.env['FATE_FOLDER']
const name = nameOf(process.argv)
const { readFileSync, renameSync } = fs
let left = 0

if (folder !== undefined && name !== undefined) {
  await countEffects(name)
  process.on('SIGUSR2', () => {
    const file = join(folder, `${name}.arm`)
    left = Number(readFileSync(file, 'utf8'))
    renameSync(file, join(folder, `${name}.armed`))
  })
}

/** Short programs of the fleet and children of its daemons have no fate. */
function nameOf([, script = '', verb = '', , config = '']: readonly string[]): string | undefined {
  if (script.endsWith('control-plane/src/cli/main.ts') && verb === 'serve') return 'control plane'
  if (script.endsWith('agent/src/cli/main.ts') && verb === 'run') return basename(config, '.json')
  return undefined
}

function meetFate(): void {
  if (left === 0) return
  left -= 1
  if (left === 0) process.kill(process.pid, 'SIGKILL')
}

async function countEffects(whose: string): Promise<void> {
  const handle = await fs.promises.open('/dev/null')
  const files = Object.getPrototypeOf(handle) as Record<string, Work>
  await handle.close()
  for (const effect of ['write', 'writeFile', 'appendFile', 'datasync', 'sync', 'truncate'])
    count(files, effect)
  const onDisk = fs.promises as unknown as Record<string, Work>
  for (const effect of ['rename', 'unlink', 'rm', 'rmdir', 'writeFile', 'mkdir'])
    count(onDisk, effect)
  const atOnce = fs as unknown as Record<string, Work>
  for (const effect of ['writeSync', 'fsyncSync', 'renameSync', 'unlinkSync', 'rmSync'])
    count(atOnce, effect)
  count(ChildProcess.prototype as unknown as Record<string, Work>, 'kill')
  syncBuiltinESMExports()
  if (whose === 'control plane') {
    // The very module that the control plane will import; it is no dependency of the tests.
    const load = createRequire(new URL('../../../control-plane/package.json', import.meta.url))
    const sqlite = load(databaseModule) as { prototype: Record<string, Work> }
    count(sqlite.prototype, 'exec', (sql) => sql === 'COMMIT')
  }
}

function count(of: Record<string, Work>, effect: string, counts = (_first: unknown) => true): void {
  const work = of[effect]
  if (work === undefined) throw new Error(`there is no ${effect}`)
  of[effect] = function (this: unknown, ...args: never[]): unknown {
    if (counts(args[0])) meetFate()
    return work.apply(this, args)
  }
}
