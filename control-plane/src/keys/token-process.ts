/**
 * The token process: lists and destroys objects of an HSM for the control plane's main process, which
 * so never waits for one. It unwraps nothing.
 *
 * Started with one argument: which token (`Pkcs11Place`), as JSON.
 */
import type { EpochId } from '@sluice/protocol/ids'
import { answerParent } from './answer-parent.ts'
import type { Pkcs11Place } from './epoch-keys-place.ts'
import { openPkcs11Store } from './pkcs11-store.ts'

await answerParent(async (place) => {
  const store = await openPkcs11Store(JSON.parse(place) as Pkcs11Place)
  return {
    list: () => store.list(),
    destroy: (id: EpochId) => store.destroy(id),
    startAnew: () => store.startAnew(),
  }
})
