/** Opens the epoch keys where they are, and where they were: a changed setting moves them by a roll. */
import { join } from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import type { EpochId } from '@sluice/protocol/ids'
import type { EpochKeyStore } from './epoch-key-store.ts'
import { openPkcs11Store, type Pkcs11Place } from './pkcs11-store.ts'
import { openSlotFile } from './slot-file.ts'

/** Paths and names, no secret: this is the argument of a key process. */
export type EpochKeysPlace = {
  store: EpochKeyStore['name']
  slotFile: string
  /** Also open when keys live in the file, for as long as it is configured. */
  pkcs11?: Pkcs11Place
}

/** @param folder Where epoch keys lie, in the data directory. */
export function epochKeysPlaceOf(
  config: {
    store: EpochKeysPlace['store']
    pkcs11: { [K in 'library' | 'tokenLabel' | 'pinFile']?: string | undefined }
  },
  folder: string,
): EpochKeysPlace {
  const place = { store: config.store, slotFile: join(folder, 'slots') }
  const { library, tokenLabel, pinFile } = config.pkcs11
  if (library === undefined || tokenLabel === undefined || pinFile === undefined) return place
  return { ...place, pkcs11: { folder: join(folder, 'pkcs11'), library, tokenLabel, pinFile } }
}

/**
 * @param options.overwriteTorn As for `openSlotFile`.
 * @throws SluiceError `host.unsafe_file`, `keys.unavailable`.
 */
export async function openEpochKeys(
  place: EpochKeysPlace,
  options: { overwriteTorn: boolean },
): Promise<EpochKeyStore> {
  await using opening = new AsyncDisposableStack()
  const file = opening.use(await openSlotFile(place.slotFile, options))
  const token = place.pkcs11 && opening.use(await openPkcs11Store(place.pkcs11))
  if (place.store === 'pkcs11' && !token)
    throw new SluiceError('keys.unavailable', 'keys.store is pkcs11 but no token is configured')
  const opened = opening.move()
  if (!token) return { ...file, [Symbol.asyncDispose]: () => opened.disposeAsync() }
  const joined = place.store === 'file' ? joinStores(file, token) : joinStores(token, file)
  return { ...joined, [Symbol.asyncDispose]: () => opened.disposeAsync() }
}

/** Makes keys in `first`; finds and destroys them in both. Both stay the caller's. */
export function joinStores(
  first: EpochKeyStore,
  second: EpochKeyStore,
): Omit<EpochKeyStore, typeof Symbol.asyncDispose> {
  const idsOf = async (): Promise<Set<EpochId>> =>
    new Set([...(await first.list()), ...(await second.list())])
  return {
    name: first.name,
    create: (id, key) => first.create(id, key),
    async load(id) {
      return (await second.list()).includes(id) ? second.load(id) : first.load(id)
    },
    async destroy(id) {
      await first.destroy(id)
      await second.destroy(id)
    },
    list: async () => [...(await idsOf())],
    level: () => first.level(),
  }
}
