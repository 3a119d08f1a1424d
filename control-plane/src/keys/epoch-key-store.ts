/** Where epoch keys live: made durable, read back, and destroyed in place. */
import type { SanitisationLevel } from '@sluice/protocol/certificate'
import type { EpochId } from '@sluice/protocol/ids'

/** What the destruction of a key may claim, and why. */
export type DestructionLevel = { level: SanitisationLevel; reason: string }

/** What destroying an object of a token may claim. */
export const tokenLevel: DestructionLevel = {
  level: 'Purge',
  reason:
    'epoch key wrapped by a non-extractable key of an HSM, which was destroyed there and is gone; unwrapped it lived only in the memory of the key process, for one epoch',
}

/** What the control plane's main process does with epoch keys: nothing here ever reads one. */
export type EpochKeyLedger = AsyncDisposable & {
  /** Where new keys are made; recorded with each epoch. */
  readonly name: 'file' | 'pkcs11'
  /**
   * Destroys a key and looks again. A key that is gone already is no error, but that it is gone is
   * believed only of a store that shows what must be there.
   *
   * @throws SluiceError `keys.damaged` when it is still there, `keys.unavailable` when nothing can
   * be said about it.
   */
  destroy(id: EpochId): Promise<void>
  /**
   * Epochs that are seen to have a key here. One that is not seen may be there all the same, when a
   * token is away.
   */
  list(): Promise<EpochId[]>
  /** Somebody has said that what was here is lost for good: new keys may be made elsewhere. */
  startAnew(): Promise<void>
  level(): Promise<DestructionLevel>
}

/** Keys of epochs, as the key process has them. */
export type EpochKeyStore = EpochKeyLedger & {
  /**
   * Makes a key durable: when it returns, the key was written and read back.
   *
   * @param key 32 bytes; stay the caller's, who zeroes them.
   * @throws SluiceError `keys.damaged` when it cannot be read back or there is no room.
   */
  create(id: EpochId, key: Buffer): Promise<void>
  /**
   * @returns 32 bytes, the caller's to zero.
   * @throws SluiceError `keys.no_epoch` when there is no such key, `keys.damaged` when it is torn.
   */
  load(id: EpochId): Promise<Buffer>
}

const worstFirst: readonly SanitisationLevel[] = ['none', 'Clear', 'Purge']

/** The least of several claims; nothing may be claimed of none. */
export function weakestOf(levels: readonly DestructionLevel[]): DestructionLevel {
  const [weakest] = levels.toSorted(
    (left, right) => worstFirst.indexOf(left.level) - worstFirst.indexOf(right.level),
  )
  return weakest ?? { level: 'none', reason: 'no epoch is recorded' }
}
