/**
 * Takes nothing new into a store that was not looked at, and calls nothing in it an orphan: not at
 * start, and not after an outage either.
 */
import { isSluiceError, type SluiceError } from '@sluice/protocol/errors'
import type { ObjectStore, StoreTraits } from './object-store.ts'

/** What the check has found so far; undefined until the store has answered. */
export type CheckedStore = { readonly traits: StoreTraits | undefined }

/**
 * Checks the store now. One that does not answer is no reason to stay away: keys can be destroyed
 * and agents revoked without it. But before the first upload or listing after that it is checked
 * again.
 *
 * @param owner Whose it is; with `mark`, marked as such.
 * @param report Is told that the store does not answer.
 * @throws SluiceError `store.insecure`, `store.claimed`: what will not pass by itself.
 */
export async function checkedStore<S extends ObjectStore>(
  store: S,
  owner: Parameters<ObjectStore['claim']>[0],
  report: (problem: SluiceError) => void,
): Promise<S & CheckedStore> {
  let traits: StoreTraits | undefined
  const check = async (): Promise<StoreTraits> => {
    const found = await store.check()
    await store.claim(owner)
    return found
  }
  try {
    traits = await check()
  } catch (error) {
    if (!isSluiceError(error) || error.retry === 'never') throw error
    report(error)
  }
  return {
    ...store,
    get traits() {
      return traits
    },
    async createUpload(key) {
      traits ??= await check()
      return await store.createUpload(key)
    },
    async list(after) {
      // Each look begins with whose store it is now: somebody may have taken it over meanwhile.
      if (after === undefined || traits === undefined) traits = await check()
      return await store.list(after)
    },
  }
}

/** What is known of a store, to be shown. */
export function traitsOf({ traits }: CheckedStore): { checked: boolean } & Partial<StoreTraits> {
  return { checked: traits !== undefined, ...traits }
}
