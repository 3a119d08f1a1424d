/** Tables for where plaintext may live on a node, and a real mount that is what it says. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, it } from 'node:test'
import { isMounted, mountMedia, unmountMedia } from './media-mount.ts'
import { planMemory, probeMounts } from './memory-level.ts'

const areas = (count: number) => Array.from({ length: count }, (_, index) => `/dev/swap${index}`)
const all = ['tmpfs-noswap', 'tmpfs', 'ramfs'] as const

describe('the memory level', () => {
  it('is the first that holds', () => {
    const plan = (swaps: number, cgroupCannotSwap: boolean, allowSwap: boolean) =>
      planMemory({ areas: areas(swaps), cgroupCannotSwap, mounts: all }, { allowSwap }).level
    assert.equal(plan(0, false, false), 'no-swap')
    assert.equal(plan(0, true, true), 'no-swap')
    assert.equal(plan(1, true, false), 'cgroup-swap-max-0')
    assert.equal(plan(1, true, true), 'cgroup-swap-max-0')
    assert.equal(plan(2, false, true), 'swap-allowed')
    assert.throws(() => plan(1, false, false), { code: 'node.swap_possible' })
  })

  it('never puts a directory on an ordinary tmpfs while swap can be reached', () => {
    const directory = (swaps: number, mounts: readonly (typeof all)[number][]) =>
      planMemory({ areas: areas(swaps), cgroupCannotSwap: false, mounts }, { allowSwap: true })
        .directory
    assert.equal(directory(0, all), 'tmpfs-noswap')
    assert.equal(directory(0, ['tmpfs', 'ramfs']), 'tmpfs')
    assert.equal(directory(1, ['tmpfs', 'ramfs']), 'ramfs')
    assert.equal(directory(1, ['tmpfs']), undefined)
    assert.equal(directory(0, []), undefined)
  })
})

describe(
  'a directory in memory',
  { skip: process.geteuid?.() !== 0 && 'mounting needs root' },
  () => {
    it('is mounted as the kind that was asked for, and gone afterwards', async () => {
      const folder = mkdtempSync(path.join(tmpdir(), 'mount \\-'))
      try {
        for (const kind of await probeMounts(folder)) {
          await mountMedia({ kind, folder, bytesMax: 65_536, filesMax: 1 })
          assert.ok(isMounted(folder))
          await unmountMedia(folder)
          assert.ok(!isMounted(folder))
        }
        await assert.rejects(
          mountMedia({
            kind: 'ramfs',
            folder: path.join(folder, 'none'),
            bytesMax: 1,
            filesMax: 1,
          }),
          { code: 'node.swap_possible' },
        )
      } finally {
        rmSync(folder, { recursive: true })
      }
    })
  },
)
