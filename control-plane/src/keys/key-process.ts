/**
 * The key process: holds the epoch key and opens keys, so that the control plane's main process
 * never does. It has no other work, no environment and no output, and ends with its parent. Keys
 * leave copies in memory that nothing can wipe (libsodium's heap), so every roll ends this process.
 *
 * Started with one argument: where epoch keys are (`EpochKeysPlace`), as JSON.
 */
import assert from 'node:assert/strict'
import { isSluiceError } from '@sluice/protocol/errors'
import { createKeyHolder } from './key-holder.ts'
import type { KeyAnswer, KeyQuestion } from './key-process-link.ts'
import { type EpochKeysPlace, openEpochKeys } from './open-epoch-keys.ts'

const place = process.argv[2]
assert(place !== undefined && process.send !== undefined, 'started by hand')

// The parent decides when this process ends; a signal to the whole group must not come before it.
process.on('SIGTERM', () => undefined)
process.on('SIGINT', () => undefined)
process.on('disconnect', () => process.exit(0))

const store = await openEpochKeys(JSON.parse(place) as EpochKeysPlace, { overwriteTorn: false })
const holder = createKeyHolder(store)

async function answer(question: KeyQuestion): Promise<KeyAnswer> {
  const { number, operation, request } = question
  try {
    const work = holder[operation] as (request: unknown) => Promise<unknown>
    return { number, reply: await work(request) }
  } catch (error) {
    // A bug ends this process; the parent starts another.
    if (!isSluiceError(error)) throw error
    const { code, message, retry, hint } = error
    return { number, problem: { code, message, retry, ...(hint === undefined ? {} : { hint }) } }
  }
}

process.on('message', (question: KeyQuestion) => {
  void answer(question).then((reply) => process.send?.(reply))
})
process.send('ready')
