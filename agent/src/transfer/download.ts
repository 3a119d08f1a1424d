/** Reads ranges of a sealed object: exactly the bytes asked for, of one and the same object, or an error. */
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Grant } from '@sluice/protocol/messages'
import { backoffMs } from '@sluice/protocol/process/retry'
import type { ObjectAnswer, ObjectClient } from './object-client.ts'

export type ObjectReader = {
  /**
   * Reads exactly `length` bytes from `offset`, with new grants and tries as needed.
   *
   * @param length 1 to `limits.rangeBytesMax`.
   * @throws SluiceError `store.unreachable` (later) when it did not work in the tries there are,
   * `store.not_found`, `download.refused`, `download.mismatch` for an answer that is not that range
   * of the object that was read before.
   */
  read(offset: number, length: number): Promise<Buffer>
}

const triesMax = 6
/** A grant is given up this long before it ends, so that a request does not arrive too late. */
const grantMarginMs = 10_000

/**
 * @param options.grant Asks for a fresh read grant; called again whenever the last one has ended.
 * @param options.sealedBytes Size the whole object must have.
 */
export function createObjectReader(options: {
  grant: () => Promise<Grant>
  client: ObjectClient
  sealedBytes: number
  signal?: AbortSignal
  now?: () => number
  random?: () => number
}): ObjectReader {
  const { client, sealedBytes, signal } = options
  const now = options.now ?? Date.now
  const random = options.random ?? Math.random
  let current: Promise<Grant> | undefined
  let etag: string | undefined

  async function freshGrant(): Promise<Grant> {
    const held = await current
    if (held && held.expiresAtMs - grantMarginMs > now()) return held
    const asked = options.grant()
    current = asked
    try {
      return await asked
    } catch (error) {
      // A grant that could not be had is asked for again by the next try.
      if (current === asked) current = undefined
      throw error
    }
  }

  function accept(answer: ObjectAnswer, offset: number, length: number): Buffer {
    const range = `bytes ${offset}-${offset + length - 1}/${sealedBytes}`
    if (answer.headers['content-range'] !== range || answer.body.length !== length)
      throw new SluiceError('download.mismatch', 'the store answered another range or object size')
    const found = answer.headers['etag']
    etag ??= found
    if (found !== etag)
      throw new SluiceError('download.mismatch', 'the stored object changed between two reads')
    return answer.body
  }

  async function readOnce(offset: number, length: number): Promise<Buffer> {
    const grant = await freshGrant()
    const range = { first: offset, last: offset + length - 1 }
    const bodyBytesMax = Math.max(length, limits.requestBodyBytesMax)
    const answer = await client.send({
      grant,
      method: 'GET',
      range,
      bodyBytesMax,
      ...(signal ? { signal } : {}),
    })
    if (answer.status === 206) return accept(answer, offset, length)
    if (answer.status === 404) throw new SluiceError('store.not_found', 'the stored object is gone')
    if (answer.status === 416 || answer.status === 200)
      throw new SluiceError('download.mismatch', `the store answers ${answer.status} to a range`)
    // 403 is what an expired grant gets (FACTS: the code alone cannot tell): the next try has a new one.
    current = undefined
    const again = answer.status === 403 || answer.status === 429 || answer.status >= 500
    throw new SluiceError('download.refused', `the store answers ${answer.status}`, {
      retry: again ? 'later' : 'never',
    })
  }

  return {
    async read(offset, length) {
      for (let attempt = 0; ; attempt += 1) {
        try {
          return await readOnce(offset, length)
        } catch (error) {
          const again = error instanceof SluiceError && error.retry === 'later'
          if (!again || attempt + 1 >= triesMax || signal?.aborted) throw error
        }
        const waitMs = backoffMs(attempt, { minMs: 100, maxMs: 5000 }, random())
        await sleep(waitMs, undefined, signal ? { signal } : {})
      }
    },
  }
}
