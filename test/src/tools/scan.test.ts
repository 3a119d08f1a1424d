/** Proves that a scan finds what lies in a place, and nothing else. */

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, it } from 'node:test'

import { needleBytes, takeKeyNeedles, takeNeedles } from './needles.ts'
import { startProgram } from './processes.ts'
import {
  describeHits,
  makeScanner,
  proveScanFinds,
  scanBytes,
  scanFile,
  scanProcess,
  scanTree,
} from './scan.ts'
import { makeTemporaryDirectory } from './temporary-directory.ts'

/** Bytes that look random and are the same in every process. */
function expand(seed: string, bytes: number): Buffer {
  const blocks = []
  for (let i = 0; i * 64 < bytes; i++) {
    blocks.push(createHash('sha512').update(`${seed} ${i}`).digest())
  }
  return Buffer.concat(blocks).subarray(0, bytes)
}

describe('takeNeedles', () => {
  it('gives windows of the secret, each with where it came from', () => {
    const secret = randomBytes(10_000)
    const needles = takeNeedles(secret, { source: '0001.jpg', count: 100 })
    assert.equal(needles.length, 100)
    for (const { bytes, sourceOffset } of needles) {
      assert.ok(secret.subarray(sourceOffset, sourceOffset + needleBytes).equals(bytes))
    }
  })

  it('refuses a secret that innocent files hold too, or that is too short', () => {
    assert.throws(() => takeNeedles(Buffer.alloc(10_000), { source: 'silence' }), /no needle/)
    assert.throws(() => takeNeedles(randomBytes(31), { source: 'short' }), /no needle/)
    assert.equal(takeNeedles(randomBytes(32), { source: 'exact' }).length, 1)
  })

  it('knows a key in every form in which it could be written down', () => {
    const key = randomBytes(32)
    const scanner = makeScanner(takeKeyNeedles(key, 'job key'))
    for (const form of ['latin1', 'hex', 'base64', 'base64url'] as const) {
      const line = Buffer.from(`x {"key":"${key.toString(form)}"}`, 'latin1')
      assert.ok(scanBytes(scanner, 'log', line).hits.length > 0, form)
    }
    const upper = Buffer.from(key.toString('hex').toUpperCase())
    assert.equal(scanBytes(scanner, 'log', upper).hits.length, 1)
  })
})

describe('makeScanner', () => {
  const secret = expand('secret', 100_000)
  const needles = takeNeedles(secret, { source: 'secret', count: 3000 })
  const scanner = makeScanner(needles)

  it('finds all of thousands of needles, each exactly where it is', () => {
    const place = Buffer.concat([randomBytes(7), secret, randomBytes(9)])
    const hits: string[] = []
    scanner.scan(place, (offset, needle) => hits.push(`${offset - 7} ${needle.sourceOffset}`))
    const expected = needles.map(({ sourceOffset }) => `${sourceOffset} ${sourceOffset}`)
    assert.deepEqual(new Set(hits), new Set(expected))
  })

  it('finds a needle at every alignment of bytes and of memory', () => {
    const needle = needles[0]?.bytes ?? assert.fail()
    const memory = new ArrayBuffer(256)
    for (let skew = 0; skew < 8; skew++) {
      for (let offset = 0; offset < 24; offset++) {
        const bytes = Buffer.from(memory, skew, 128).fill(0x5a)
        needle.copy(bytes, offset)
        const { hits } = scanBytes(scanner, 'memory', bytes)
        assert.deepEqual(
          hits.map((hit) => hit.offset),
          [offset],
          `skew ${skew}, offset ${offset}`,
        )
      }
    }
  })

  it('finds one that is the whole place, and none where only a part lies', () => {
    const needle = needles[1]?.bytes ?? assert.fail()
    assert.equal(scanBytes(scanner, 'exact', needle).hits.length, 1)
    assert.equal(scanBytes(scanner, 'part', needle.subarray(1)).hits.length, 0)
    const changed = Buffer.from(needle)
    changed[31] = (changed[31] ?? 0) ^ 1
    assert.equal(scanBytes(scanner, 'changed', changed).hits.length, 0)
    assert.equal(scanBytes(scanner, 'empty', Buffer.alloc(0)).hits.length, 0)
  })

  it('finds nothing in random bytes, and says how many it looked at', () => {
    const report = scanBytes(scanner, 'noise', randomBytes(1_000_003))
    assert.deepEqual(report, { bytes: 1_000_003, places: 1, hits: [] })
  })

  it('refuses to look for nothing', () => {
    assert.throws(() => makeScanner([]), /proves nothing/)
  })
})

describe('scanTree', () => {
  it('finds a needle in a nested file and in a name, across reads, and follows no link', async () => {
    await using folder = await makeTemporaryDirectory('scan')
    await using outside = await makeTemporaryDirectory('outside')
    const [needle] = takeNeedles(randomBytes(32), { source: 'secret' })
    assert.ok(needle !== undefined)
    const scanner = makeScanner([needle])
    writeFileSync(join(outside.path, 'leak'), needle.bytes)
    symlinkSync(outside.path, join(folder.path, 'link'))
    mkdirSync(join(folder.path, 'a/b'), { recursive: true })
    writeFileSync(join(folder.path, 'a/b/clean'), randomBytes(100))
    assert.equal((await scanTree(scanner, folder.path)).hits.length, 0)
    assert.equal((await scanFile(scanner, join(outside.path, 'leak'))).hits.length, 1)

    const hit = await proveScanFinds(scanner, needle, join(folder.path, 'a/b'))
    assert.equal(hit.needle, needle)
    const [key] = takeKeyNeedles(randomBytes(32), 'key').filter((one) => one.source.includes('hex'))
    assert.ok(key !== undefined)
    writeFileSync(join(folder.path, key.bytes.toString('latin1')), '')
    const report = await scanTree(makeScanner([key]), folder.path)
    assert.match(describeHits(report), /1 needles found[^]*key \(hex\) at 0 of name of/)
  })

  it('fails the control when the scan does not look for the needle', async () => {
    await using folder = await makeTemporaryDirectory('scan')
    const [wanted] = takeNeedles(randomBytes(32), { source: 'wanted' })
    const [other] = takeNeedles(randomBytes(32), { source: 'other' })
    assert.ok(wanted !== undefined && other !== undefined)
    const control = proveScanFinds(makeScanner([other]), wanted, folder.path)
    await assert.rejects(control, /does not find/)
  })
})

describe('scanProcess', () => {
  it('finds what a process holds in memory, and nothing that it does not hold', async () => {
    const script = `
      const { createHash } = require('node:crypto')
      globalThis.held = Buffer.concat([0, 1].map((i) => createHash('sha512').update('held ' + i).digest()))
      console.log('ready'); setInterval(() => {}, 1000)`
    await using program = await startProgram({
      command: process.execPath,
      args: ['-e', script],
    })
    await program.waitForLine(/^ready$/)
    const held = takeNeedles(expand('held', 128), { source: 'held' })
    const absent = takeNeedles(expand('absent', 128), { source: 'absent' })
    const report = await scanProcess(makeScanner([...held, ...absent]), program.pid)
    assert.ok(report.hits.some((hit) => hit.needle.source === 'held'))
    assert.ok(!report.hits.some((hit) => hit.needle.source === 'absent'))
    assert.ok(report.bytes > 10_000_000)
  })
})
