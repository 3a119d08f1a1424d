/** Keeps a stock of receive keys, so that sealing goes on while the control plane is away. */
import { limits } from '@sluice/protocol/limits'
import { type CaptureParts, createErrand } from './capture-parts.ts'

/**
 * @param arrived Told when the stock has grown.
 * @returns Tops the stock up, by and by. Each key is good for one sealing attempt.
 */
export function createKeyStock(parts: CaptureParts, arrived: () => void): () => void {
  const { link, journal, signal, now } = parts
  // What fails is asked again with the next sealing; a lack of keys is said by the sealing.
  return createErrand(parts, async () => {
    for (;;) {
      await journal.change((draft) => {
        draft.receiveKeys = draft.receiveKeys.filter((key) => key.expiresAtMs > now())
      })
      const stock = journal.data.receiveKeys.length
      if (stock >= limits.receiveKeysPerAgent || signal.aborted) return
      const reply = await link.request('receive-keys.request', { stock }, { signal })
      if (reply.body.keys.length === 0) return
      await journal.change((draft) => {
        const known = new Set(draft.receiveKeys.map((key) => key.receiveKeyId))
        draft.receiveKeys.push(...reply.body.keys.filter((key) => !known.has(key.receiveKeyId)))
      })
      arrived()
    }
  })
}
