/**
 * Opens the epoch keys where they are, and where they were: a changed setting moves them by a roll.
 * For the key process; the main process has the ledger alone (`open-ledger.ts`).
 */
import { SluiceError } from '@sluice/protocol/errors'
import type { EpochKeyStore } from './epoch-key-store.ts'
import type { EpochKeysPlace } from './epoch-keys-place.ts'
import { joinLedgers } from './open-ledger.ts'
import { openPkcs11Store } from './pkcs11-store.ts'
import { openSlotFile } from './slot-file.ts'

/** @throws SluiceError `host.unsafe_file`, `keys.unavailable`. */
export async function openEpochKeys(place: EpochKeysPlace): Promise<EpochKeyStore> {
  await using opening = new AsyncDisposableStack()
  const file = opening.use(await openSlotFile(place.slotFile, { overwriteTorn: false }))
  const token = place.pkcs11 && opening.use(await openPkcs11Store(place.pkcs11))
  if (place.store === 'pkcs11' && !token)
    throw new SluiceError('keys.unavailable', 'keys.store is pkcs11 but no token is configured')
  const opened = opening.move()
  const disposed = { [Symbol.asyncDispose]: () => opened.disposeAsync() }
  if (!token) return { ...file, ...disposed }
  const [first, second] = place.store === 'file' ? [file, token] : [token, file]
  return {
    ...joinLedgers(first, second),
    create: (id, key) => first.create(id, key),
    // What is not in the file is for the token to say: only there can a key be out of sight.
    async load(id) {
      return (await file.list()).includes(id) ? file.load(id) : token.load(id)
    },
    ...disposed,
  }
}
