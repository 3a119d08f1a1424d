/** Proves that pictures share decoders, and that one that kills its decoder never costs the next one. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import sharp from 'sharp'
import type { ErrorCode } from '@sluice/protocol/errors'
import { detectIsolation } from '../sandbox.ts'
import { openGate, passEach, passGate } from './gate.ts'
import { openPicturePool } from './picture-pool.ts'
import type { PicturePool } from './picture-pool.ts'
import { stripPng } from './strip-picture.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'pool-'))
after(() => rmSync(folder, { recursive: true }))
const isolation = await detectIsolation().catch(() => 'none' as const)
const gate = await openGate({ scratchFolder: folder, isolation })
const picture = stripPng(
  await sharp({ create: { width: 32, height: 32, channels: 3, background: 'teal' } })
    .png()
    .toBuffer(),
)

function file(name: string, bytes: Buffer): string {
  const at = path.join(folder, name)
  writeFileSync(at, bytes)
  return at
}

/** Decoders that misbehave when the file asks for it. */
function badPool(): PicturePool {
  const dangerousTestOnlyScript = new URL('./picture-pool.test-decoder.ts', import.meta.url)
  return openPicturePool({ isolation, width: 2, dangerousTestOnlyScript })
}

const tricks: readonly (readonly [string, ErrorCode])[] = [
  ['crash', 'media.decoder_failed'],
  ['leave', 'media.decoder_failed'],
  ['hog', 'media.too_large'],
  ['babble', 'media.decoder_failed'],
  ['lie', 'media.decoder_failed'],
]

describe('the pool of picture decoders', () => {
  it('takes thirty pictures with two processes, in their order', async () => {
    const files = Array.from({ length: 30 }, (_, i) => file(`${i}.png`, picture))
    await using pictures = openPicturePool({ isolation, width: 2 })
    const passed: string[] = []
    for await (const media of passEach(files, { ...gate, pictures }, (name) => passed.push(name))) {
      assert.equal(media.length, 1)
    }
    assert.deepEqual(passed, files)
    assert.ok(pictures.started <= 2, `${pictures.started} processes`)
  })

  it('keeps a decoder that only our own parsers have shown something bad', async () => {
    await using pictures = openPicturePool({ isolation, width: 1 })
    const through = { ...gate, pictures }
    for (let round = 0; round < 3; round++) {
      const cut = file('cut.png', picture.subarray(0, 50))
      await assert.rejects(passGate(cut, through), { code: 'media.corrupt' })
      await using good = await passGate(file('good.png', picture), through)
      assert.equal(good.media.length, 1)
    }
    assert.equal(pictures.started, 1)
  })

  it('throws away a decoder that saw damaged picture data', async () => {
    await using pictures = openPicturePool({ isolation, width: 1 })
    const through = { ...gate, pictures }
    const jpeg = await sharp(picture).resize(400, 400).jpeg().toBuffer()
    jpeg.fill(0xa5, Math.floor(jpeg.length / 2), Math.floor(jpeg.length / 2) + 300)
    await assert.rejects(passGate(file('bad.jpg', jpeg), through), { code: 'media.corrupt' })
    await using good = await passGate(file('good.png', picture), through)
    assert.equal(good.media.length, 1)
    assert.equal(pictures.started, 2)
  })

  for (const [trick, code] of tricks) {
    it(`refuses a picture whose decoder plays "${trick}", and takes the next one`, async () => {
      await using pictures = badPool()
      const through = { ...gate, pictures }
      const bad = file('bad.png', Buffer.concat([picture, Buffer.from(`please ${trick}`)]))
      const [refusal, next] = await Promise.allSettled([
        passGate(bad, through),
        passGate(file('next.png', picture), through),
      ])
      assert.equal(refusal.status, 'rejected')
      assert.equal((refusal.reason as { code?: string }).code, code)
      assert.equal(next.status, 'fulfilled')
      await next.value[Symbol.asyncDispose]()
      await using again = await passGate(file('again.png', picture), through)
      assert.equal(again.media.length, 1)
    })
  }

  it('refuses one picture, and no more, when its decoder dies before it gets it', async () => {
    const dangerousTestOnlyScript = new URL('./picture-pool.test-decoder.ts', import.meta.url)
    const die = Buffer.concat([picture, Buffer.from('please answer, then die')])
    for (let round = 0; round < 5; round += 1) {
      await using pictures = openPicturePool({ isolation, width: 1, dangerousTestOnlyScript })
      const through = { ...gate, pictures }
      const last = await passGate(file('last.png', die), through)
      await last[Symbol.asyncDispose]()
      // It ends now, before or while the next picture is written to it.
      await sleep(round * 20)
      await assert.rejects(passGate(file('late.png', picture), through), {
        code: 'media.decoder_failed',
      })
      await using again = await passGate(file('again.png', picture), through)
      assert.equal(again.media.length, 1)
    }
  })

  it('refuses what no decoder can be started for, and says so', async () => {
    const dangerousTestOnlyScript = new URL('./no-such-script.ts', import.meta.url)
    await assert.rejects(async () => {
      await using pictures = openPicturePool({ isolation, width: 1, dangerousTestOnlyScript })
      await passGate(file('good.png', picture), { ...gate, pictures })
    })
  })
})
