/** A token of SoftHSM in a folder of its own. */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { Pkcs11Place } from './epoch-keys-place.ts'

const library = [
  '/usr/lib/softhsm/libsofthsm2.so',
  '/usr/lib64/softhsm/libsofthsm.so',
  '/usr/local/lib/softhsm/libsofthsm2.so',
].find(existsSync)

/** Why no token can be made here; false when one can. */
export function withoutSoftHsm(): string | false {
  const required = process.env['SLUICE_REQUIRE_ALL'] === '1'
  let why: string | false =
    library === undefined ? 'needs SoftHSM: apt-get install softhsm2' : false
  try {
    createRequire(import.meta.url)('pkcs11js')
  } catch {
    why = 'needs pkcs11js: docs/operate/hsm.md, "Install"'
  }
  if (why !== false && required) throw new Error(`SLUICE_REQUIRE_ALL=1 and a test ${why}`)
  return why
}

/** One configuration a process: the library reads it once. Call it before the first token. */
export async function makeToken(folder: string, label: string): Promise<Pkcs11Place> {
  if (library === undefined) throw new Error('asked for without SoftHSM')
  const at = join(folder, 'token')
  const pinFile = join(folder, 'pin')
  await mkdir(at, { mode: 0o700 })
  process.env['SOFTHSM2_CONF'] = join(folder, 'softhsm2.conf')
  await writeFile(process.env['SOFTHSM2_CONF'], `directories.tokendir = ${at}\nlog.level = ERROR\n`)
  const pins = ['--so-pin', '87654321', '--pin', '12345678']
  execFileSync('softhsm2-util', ['--init-token', '--free', '--label', label, ...pins], {
    stdio: 'ignore',
  })
  await writeFile(pinFile, '12345678\n', { mode: 0o600 })
  return { folder: join(folder, 'wrapped'), library, tokenLabel: label, pinFile }
}

/** The name by which a store's objects are labelled. */
export async function instanceNameOf(place: Pkcs11Place): Promise<string> {
  return (await readFile(join(place.folder, 'instance'), 'utf8')).trim()
}
