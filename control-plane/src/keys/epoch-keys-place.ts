/** Where epoch keys lie, as configured: paths and names, no secret. */
import { join } from 'node:path'
import type { EpochKeyStore } from './epoch-key-store.ts'

/** Where epoch keys of a PKCS#11 store are. */
export type Pkcs11Place = { folder: string; library: string; tokenLabel: string; pinFile: string }

/** The argument of a key process. */
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
