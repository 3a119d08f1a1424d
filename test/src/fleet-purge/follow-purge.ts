/**
 * Watches a purge from outside, in a thread of its own: reads the database, as nothing but what is committed is
 * seen there, and says when the order was durable, and when each acknowledgement and each receipt was.
 */

import assert from 'node:assert/strict'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as sleep } from 'node:timers/promises'
import { isMainThread, parentPort, workerData } from 'node:worker_threads'

export type Follow = { file: string; online: number; patienceMs: number }

/** Instants as `epochMs` tells them. */
export type Followed = { durableAtMs: number; ackedAtMs: number[]; signedAtMs: number[] }

const lookMs = 2

/** A fleet that has just connected still writes; what is measured begins when it has come to rest. */
const restMs = 500
const restWaitMsMax = 30_000

/** Fractional epoch milliseconds, the same in all threads. */
export function epochMs(): number {
  return performance.timeOrigin + performance.now()
}

async function follow({ file, online, patienceMs }: Follow): Promise<Followed> {
  using database = new DatabaseSync(file, { readOnly: true })
  const count = (query: string) => {
    const statement = database.prepare(query)
    return () => Number(statement.get()?.['n'])
  }
  const orders = count(`SELECT count(*) AS n FROM purges WHERE state = 'running'`)
  const acks = count(
    `SELECT count(*) AS n FROM commands WHERE lane = 'emergency' AND acked_at_ms IS NOT NULL`,
  )
  const duties = count(
    `SELECT count(*) AS n FROM obligations WHERE kind = 'purge.agent' AND state = 'done'`,
  )
  await untilAtRest(database)
  parentPort?.postMessage('looking', [])
  const until = epochMs() + patienceMs
  const inTime = (): void => assert.ok(epochMs() < until, 'the purge takes too long')
  while (orders() === 0) {
    inTime()
    await sleep(1)
  }
  const durableAtMs = epochMs()
  const ackedAtMs: number[] = []
  const signedAtMs: number[] = []
  while (ackedAtMs.length < online || signedAtMs.length < online) {
    inTime()
    for (const [seen, list] of [
      [acks(), ackedAtMs],
      [duties(), signedAtMs],
    ] as const)
      while (list.length < seen) list.push(epochMs())
    await sleep(lookMs)
  }
  return { durableAtMs, ackedAtMs, signedAtMs }
}

/** Until nobody has written for a while; a fleet that always writes is measured as it is. */
async function untilAtRest(database: DatabaseSync): Promise<void> {
  const version = database.prepare('PRAGMA data_version')
  const seen = () => Number(version.get()?.['data_version'])
  const until = epochMs() + restWaitMsMax
  for (let [last, sinceMs] = [seen(), epochMs()]; epochMs() - sinceMs < restMs;) {
    if (epochMs() > until) return
    await sleep(lookMs)
    if (seen() !== last) [last, sinceMs] = [seen(), epochMs()]
  }
}

if (!isMainThread) parentPort?.postMessage(await follow(workerData as Follow), [])
