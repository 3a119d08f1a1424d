/**
 * The key process: holds the epoch key and opens keys, so that the control plane's main process
 * never does. It has no other work, no environment and no output, and ends with its parent. Keys
 * leave copies in memory that nothing can wipe (libsodium's heap), so every roll ends this process.
 *
 * Started with one argument: where epoch keys are (`EpochKeysPlace`), as JSON.
 */
import { answerParent } from './answer-parent.ts'
import type { EpochKeysPlace } from './epoch-keys-place.ts'
import { createKeyHolder } from './key-holder.ts'
import { keyOperations } from './key-operations.ts'
import { openEpochKeys } from './open-epoch-keys.ts'

await answerParent(async (place) => {
  const holder = createKeyHolder(await openEpochKeys(JSON.parse(place) as EpochKeysPlace))
  return Object.fromEntries(
    keyOperations.map((operation) => [operation, (request: never) => holder[operation](request)]),
  )
})
