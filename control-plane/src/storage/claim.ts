/**
 * Marks a store as the one of one control plane: two on one store would take each other's objects for
 * orphans, and delete them.
 */
import { canonicalJson } from '@sluice/protocol/canonical'
import { SluiceError } from '@sluice/protocol/errors'
import { type ControlPlaneId, controlPlaneId } from '@sluice/protocol/ids'
import { z } from 'zod'

/** Key of the mark; no object's key has this form. */
export const claimKey = 'sluice-control-plane'

/** A mark has some 60 bytes; whatever is longer is none. */
export const claimBytesMax = 512

const claim = z.strictObject({ controlPlane: controlPlaneId })

/** What the mark says. */
export function claimText(owner: ControlPlaneId): string {
  return canonicalJson({ controlPlane: owner })
}

/**
 * Refuses a store that another control plane has marked.
 *
 * @param text The mark as it is in the store, as far as `claimBytesMax`.
 * @param place In words, with the mark's own place: who really takes a store over removes it by hand.
 * @throws SluiceError `store.claimed`.
 */
export function refuseForeign(text: string, owner: ControlPlaneId, place: string): void {
  const other = ownerIn(text)
  if (other === owner) return
  throw new SluiceError('store.claimed', `${place} is that of control plane ${other}`, {
    hint: `Use another one. If that control plane is gone for good, remove ${place} and start again: what it left there is then swept as orphans.`,
  })
}

function ownerIn(text: string): string {
  try {
    return claim.parse(JSON.parse(text)).controlPlane
  } catch {
    return '(unknown: its mark cannot be read)'
  }
}
