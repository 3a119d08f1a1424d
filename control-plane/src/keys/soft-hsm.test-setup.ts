/** A token of SoftHSM in a folder of its own. */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { Pkcs11Place } from './epoch-keys-place.ts'
import type { StoreKind } from './keys.test-setup.ts'
import { openPkcs11Store } from './pkcs11-store.ts'

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

/**
 * One configuration a process: the library reads it once. Call it before the first token.
 *
 * The token lies in the folder `token`; without that it is away.
 */
export async function makeToken(
  folder: string,
  label: string,
  pin = '12345678',
): Promise<Pkcs11Place> {
  if (library === undefined) throw new Error('asked for without SoftHSM')
  const at = join(folder, 'token')
  const pinFile = join(folder, 'pin')
  await mkdir(at, { mode: 0o700 })
  process.env['SOFTHSM2_CONF'] = join(folder, 'softhsm2.conf')
  await writeFile(process.env['SOFTHSM2_CONF'], `directories.tokendir = ${at}\nlog.level = ERROR\n`)
  const pins = ['--so-pin', '87654321', '--pin', pin]
  execFileSync('softhsm2-util', ['--init-token', '--free', '--label', label, ...pins], {
    stdio: 'ignore',
  })
  await writeFile(pinFile, `${pin}\n`, { mode: 0o600 })
  return { folder: join(folder, 'wrapped'), library, tokenLabel: label, pinFile }
}

/** The name by which a store's objects are labelled. */
export async function instanceNameOf(place: Pkcs11Place): Promise<string> {
  return (await readFile(join(place.folder, 'instance'), 'utf8')).trim()
}

/** Stores of many data directories on one token. */
export function onToken(token: Pkcs11Place): StoreKind {
  const pkcs11In = (folder: string): Pkcs11Place => ({ ...token, folder: join(folder, 'pkcs11') })
  return {
    name: 'pkcs11',
    placeIn: (folder) => ({
      store: 'pkcs11',
      slotFile: join(folder, 'epoch-keys'),
      pkcs11: pkcs11In(folder),
    }),
    open: (folder) => openPkcs11Store(pkcs11In(folder)),
    copy: (from, to) => cp(join(from, 'pkcs11'), join(to, 'pkcs11'), { recursive: true }),
  }
}
