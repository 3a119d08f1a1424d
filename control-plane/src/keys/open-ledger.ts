/**
 * Opens what the main process may do with epoch keys. A token is spoken to by a child: no call of an
 * HSM's library happens in the main process, which has neither its PIN nor its code.
 */
import { SluiceError } from '@sluice/protocol/errors'
import type { EpochId } from '@sluice/protocol/ids'
import type { EpochKeyLedger } from './epoch-key-store.ts'
import type { EpochKeysPlace } from './epoch-keys-place.ts'
import { openSlotFile } from './slot-file.ts'
import { openTokenLedger } from './token-process-link.ts'

/**
 * Also overwrites torn slots of the file: for the process that owns it, at start.
 *
 * @throws SluiceError `host.unsafe_file`, `keys.unavailable`.
 */
export async function openLedger(place: EpochKeysPlace): Promise<EpochKeyLedger> {
  await using opening = new AsyncDisposableStack()
  const file = opening.use(await openSlotFile(place.slotFile, { overwriteTorn: true }))
  const token = place.pkcs11 && opening.use(await openTokenLedger(place.pkcs11))
  if (place.store === 'pkcs11' && !token)
    throw new SluiceError('keys.unavailable', 'keys.store is pkcs11 but no token is configured')
  const opened = opening.move()
  const disposed = { [Symbol.asyncDispose]: () => opened.disposeAsync() }
  if (!token) return { ...file, ...disposed }
  const [first, second] = place.store === 'file' ? [file, token] : [token, file]
  return { ...joinLedgers(first, second), ...disposed }
}

/** Finds and destroys keys in both, which stay the caller's; new ones are made in `first`. */
export function joinLedgers(
  first: EpochKeyLedger,
  second: EpochKeyLedger,
): Omit<EpochKeyLedger, typeof Symbol.asyncDispose> {
  const idsOf = async (): Promise<Set<EpochId>> =>
    new Set([...(await first.list()), ...(await second.list())])
  return {
    name: first.name,
    list: async () => [...(await idsOf())],
    async destroy(id) {
      await first.destroy(id)
      await second.destroy(id)
    },
    async startAnew() {
      await first.startAnew()
      await second.startAnew()
    },
    level: () => first.level(),
  }
}
