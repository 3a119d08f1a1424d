/**
 * The keys of a control plane in a process that rolls them once and ends; it may be doomed to die by
 * SIGKILL at the n-th of its effects, which are all it does to its database, token and children.
 *
 * Started with one argument, `RollOrder` as JSON; its exit code is 0 once the roll is done.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'

import { openDatabase } from '@sluice/control-plane/database/database'
import type { EpochKeysPlace } from '@sluice/control-plane/keys/epoch-keys-place'
import { startKeyProcess } from '@sluice/control-plane/keys/key-process-link'
import { createKeys } from '@sluice/control-plane/keys/keys'
import { openLedger } from '@sluice/control-plane/keys/open-ledger'
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

export type RollOrder = {
  folder: string
  place: EpochKeysPlace
  /** Which of its own effects is its last. */
  death?: { effect: number; when: 'before' | 'after' }
}

/** A child of it that dies is replaced, and the roll asked for again, as duties ask. */
const triesMax = 4

const { folder, place, death } = JSON.parse(process.argv[2] ?? '') as RollOrder
let effects = 0

async function effect<T>(work: () => Promise<T>): Promise<T> {
  effects += 1
  const mine = effects === death?.effect
  if (mine && death.when === 'before') die()
  const value = await work()
  if (mine) die()
  return value
}

function die(): void {
  process.kill(process.pid, 'SIGKILL')
}

function counted<T extends object>(target: T, names: readonly (keyof T)[]): T {
  return new Proxy(target, {
    get(from, name) {
      const member: unknown = Reflect.get(from, name)
      if (typeof member !== 'function' || !names.includes(name as keyof T)) return member
      return (...args: unknown[]) => effect(() => Reflect.apply(member, from, args))
    },
  })
}

async function rollOnce(): Promise<void> {
  await using database = openDatabase(join(folder, 'sluice.db'))
  await using ledger = await openLedger(place)
  await using keys = await createKeys({
    database: counted(database, ['write']),
    store: counted(ledger, ['list', 'destroy']),
    startProcess: async () =>
      counted(await effect(() => startKeyProcess(place)), ['hold', 'reseal', 'verify']),
    now: Date.now,
    offlineMsMax: limits.offlineMsMaxDefault,
    report: (problem) => assert.fail(problem),
    coalesceMs: 0,
  })
  await keys.roll()
}

for (let tries = 1; ; tries += 1)
  try {
    await rollOnce()
    break
  } catch (error) {
    if (tries >= triesMax || !isSluiceError(error) || error.retry !== 'later') throw error
  }
