import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { jobId } from '@sluice/protocol/ids'
import { type ObjectKey, objectKeyFrom } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import { jobs } from '../database/schema.ts'
import { joined, testGround } from '../doubles.ts'
import { type Counts, lookAtStore } from './look.ts'
import type { SweptEntry } from './rules.ts'

const entriesMax = 1_000_000
/** Every tenth key has a job. */
const jobEvery = 10
const pageEntries = 1000
const MiB = 1024 * 1024

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/** The n-th key of a listing in order. */
function keyAt(n: number): ObjectKey {
  const tail = createHash('sha256').update(String(n)).digest()
  const head = Buffer.alloc(4)
  head.writeUInt32BE(n)
  return objectKeyFrom(Buffer.concat([head, tail.subarray(0, 12)]))
}

function pageAt(after: string | undefined): { entries: SweptEntry[]; next?: string } {
  const from = after === undefined ? 0 : Number.parseInt(after.slice(2, 10), 16) + 1
  const until = Math.min(from + pageEntries, entriesMax)
  const entries = Array.from({ length: until - from }, (_, index) => ({
    key: keyAt(from + index),
    objects: 1,
    versions: 0,
    uploads: [],
  }))
  return { entries, ...(until < entriesMax ? { next: entries.at(-1)!.key } : {}) }
}

describe('a sweep over a million objects', { timeout: 900_000 }, () => {
  it('holds a page of them in memory, not all', async () => {
    await using ground = await testGround()
    const capture = await joined(ground, 'capture')
    for (let from = 0; from < entriesMax; from += 500 * jobEvery)
      await ground.database.write(async ({ sql }) => {
        await sql.insert(jobs).values(
          Array.from({ length: 500 }, (_, index) => ({
            id: newId(jobId, ground.now()),
            site: 'north',
            captureAgentId: capture.id,
            analyser: 'example',
            state: 'stored' as const,
            mediaCount: 1,
            sealedBytes: 10,
            sealedHeader: randomBytes(56),
            sealedHeaderSha256: 'a'.repeat(64),
            spoolSha256: 'b'.repeat(64),
            source: { action: 'keep', when: 'result' } as const,
            objectKey: keyAt(from + index * jobEvery),
            sealedAtMs: 1,
            announcedAtMs: 1,
            stateChangedAtMs: 1,
            storedAtMs: 1,
          })),
        )
      })
    const heap = () => {
      collect()
      return process.memoryUsage().heapUsed
    }
    const before = heap()
    let peak = 0
    let pages = 0
    let orphans = 0
    const counts: Counts = {}
    await lookAtStore(
      {
        database: ground.database,
        async list(after) {
          pages += 1
          if (pages % 50 === 0) peak = Math.max(peak, heap() - before)
          return pageAt(after)
        },
        isThere: async () => true,
      },
      { counts, tell: async () => void (orphans += 1) },
    )
    assert.equal(counts['objects'], entriesMax)
    assert.equal(counts['jobs'], entriesMax / jobEvery)
    assert.equal(orphans, entriesMax - entriesMax / jobEvery)
    assert.ok(peak < 16 * MiB, `${Math.round(peak / MiB)} MiB at the most`)

    // The control: the same measure sees a listing that is kept.
    const kept: SweptEntry[] = []
    for (let after: string | undefined; ;) {
      const page = pageAt(after)
      kept.push(...page.entries)
      after = page.next
      if (after === undefined) break
    }
    assert.ok(heap() - before > 64 * MiB)
    assert.equal(kept.length, entriesMax)
  })
})
