/** Where epoch keys live: made durable, read back, and destroyed in place. */
import type { SanitisationLevel } from '@sluice/protocol/certificate'
import type { EpochId } from '@sluice/protocol/ids'

/** What the destruction of a key may claim, and why. */
export type DestructionLevel = { level: SanitisationLevel; reason: string }

/**
 * Keys of epochs. `list` and `destroy` never read a key, so the control plane's main process may
 * call them; `create` and `load` belong in the key process.
 */
export type EpochKeyStore = AsyncDisposable & {
  /** Where `create` puts keys; recorded with each epoch. */
  readonly name: 'file' | 'pkcs11'
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
  /**
   * Overwrites a key and looks again. A key that is gone already is no error.
   *
   * @throws SluiceError `keys.damaged` when its bytes are still there.
   */
  destroy(id: EpochId): Promise<void>
  /** Epochs that have a key here. */
  list(): Promise<EpochId[]>
  level(): Promise<DestructionLevel>
}

const worstFirst: readonly SanitisationLevel[] = ['none', 'Clear', 'Purge']

/** The least of several claims; nothing may be claimed of none. */
export function weakestOf(levels: readonly DestructionLevel[]): DestructionLevel {
  const [weakest] = levels.toSorted(
    (left, right) => worstFirst.indexOf(left.level) - worstFirst.indexOf(right.level),
  )
  return weakest ?? { level: 'none', reason: 'no epoch is recorded' }
}
