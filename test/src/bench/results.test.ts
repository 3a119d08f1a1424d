/** Proves that the bench's page shows its numbers, and how they relate. */

import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import type { BenchResults } from './results.ts'
import { median, printable } from './results.ts'

const command = { cpuMs: 900, bytesPerSecond: 1e9, peakBytes: 80 * 1024 * 1024, samplesMs: [1000] }

const results: BenchResults = {
  machine: { cpu: 'a chip', cores: 2, node: '26', openssl: 'OpenSSL', folder: '/dev/shm' },
  sizeBytes: 1024 ** 3,
  rounds: 3,
  speed: [
    { name: 'openssl', kind: 'limit', bytesPerSecond: 6e9, samples: [6e9] },
    { name: 'seal', kind: 'ours', bytesPerSecond: 3e9, bytesPerCpuSecond: 3e9, samples: [3e9] },
  ],
  commands: [
    { ...command, name: 'sluice', kind: 'ours', phase: 'seal', ms: 1000 },
    { ...command, name: 'age', kind: 'peer', phase: 'seal', ms: 2500 },
  ],
  memoryLimitBytes: 160 * 1024 * 1024,
  memory: [
    { sizeBytes: 1024 ** 3, phase: 'seal', peakBytes: 200 * 1024 * 1024, withinLimit: false },
  ],
  unmeasured: [{ name: 'restic', reason: 'not installed' }],
}

describe('printable', () => {
  it('relates speeds to the limit and times to ours', () => {
    const page = printable(results)
    assert.match(page, /^seal +3\.00 +3\.00 +50 %$/m)
    assert.match(page, /^age +2\.50 +1\.00 +0\.90 +80 +2\.50 x$/m)
    assert.match(page, /^seal 1024 MiB +200 +TOO MUCH$/m)
    assert.match(page, /not measured\n {2}restic: not installed/)
  })
})

describe('median', () => {
  it('is the middle value, or the mean of the two', () => {
    assert.equal(median([9, 1, 5]), 5)
    assert.equal(median([4, 1, 2, 3]), 2.5)
    assert.ok(Number.isNaN(median([])))
  })
})
