/** Proves over a longer life that bad pictures never cost the good ones: 200 of them, and thousands that were mutated. */
import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import sharp from 'sharp'
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { collectOutput, detectIsolation } from '../sandbox.ts'
import { residentBytes } from '../process-tree.ts'
import { checkClean } from './clean-picture.ts'
import { openGate, passGate } from './gate.ts'
import type { Gate } from './gate.ts'
import { openPicturePool } from './picture-pool.ts'
import { stripPng } from './strip-picture.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'pool-'))
after(() => rmSync(folder, { recursive: true }))
const isolation = await detectIsolation().catch(() => 'none' as const)
const scratchFolder = mkdtempSync(path.join(folder, 'scratch-'))
const gate = await openGate({ scratchFolder, isolation })

/** Takes all through one gate, two at a time; the verdict of each, in order. */
async function judge(sources: readonly Buffer[], through: Gate): Promise<string[]> {
  const verdicts: string[] = []
  const waiting = [...sources.entries()]
  const work = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const [place, bytes] = next
      const file = path.join(folder, String(place))
      writeFileSync(file, bytes)
      verdicts[place] = await verdictOf(file, through)
      rmSync(file)
    }
  }
  await Promise.all([work(), work()])
  return verdicts
}

async function verdictOf(file: string, through: Gate): Promise<string> {
  try {
    await using passed = await passGate(file, through)
    for (const { content } of passed.media) checkClean(await collectOutput(content.read()))
    return 'passed'
  } catch (error) {
    if (!isSluiceError(error)) throw error
    return error.code
  }
}

/** Small, repeatable randomness (mulberry32). */
function randomness(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** 10,000 take half an hour on two cores. */
const mutationsWanted = Number(process.env['SLUICE_MUTATED_PICTURES'] ?? 1000)

const plain = sharp({ create: { width: 96, height: 64, channels: 3, background: 'teal' } })
const tricks = ['crash', 'hog', 'leave', 'babble', 'lie', 'crash', 'hog', 'leave', 'babble', 'hang']

describe('a life full of bad pictures', () => {
  it('takes the 134 good ones of 200, of which every third kills or blocks its decoder', async () => {
    const picture = stripPng(await plain.clone().png().toBuffer())
    const sources = Array.from({ length: 200 }, (_, i) => {
      const trick = tricks[Math.floor(i / 3) % tricks.length] ?? ''
      return i % 3 === 2 ? Buffer.concat([picture, Buffer.from(`please ${trick}`)]) : picture
    })
    const dangerousTestOnlyScript = new URL('./picture-pool.test-decoder.ts', import.meta.url)
    await using pictures = openPicturePool({ isolation, width: 2, dangerousTestOnlyScript })
    const verdicts = await judge(sources, { ...gate, pictures })
    for (const [i, verdict] of verdicts.entries()) {
      if (i % 3 !== 2) assert.equal(verdict, 'passed', `picture ${i}`)
      else assert.match(verdict, /^media\.(?:decoder_failed|too_large|timeout)$/)
    }
    assert.equal(verdicts.filter((verdict) => verdict === 'passed').length, 134)
  })

  it('gives every mutated picture a verdict: no crash, no file left, memory bounded', async () => {
    const noise = Buffer.from(Array.from({ length: 96 * 64 * 3 }, (_, i) => (i * i) % 251))
    const busy = sharp(noise, { raw: { width: 96, height: 64, channels: 3 } })
    const seeds = await Promise.all([
      busy.clone().jpeg().toBuffer(),
      busy.clone().jpeg({ progressive: true }).toBuffer(),
      busy.clone().png().toBuffer(),
      busy.clone().png({ palette: true }).toBuffer(),
      busy.clone().webp().toBuffer(),
      busy.clone().webp({ lossless: true }).toBuffer(),
      busy.clone().gif().toBuffer(),
      busy.clone().tiff({ compression: 'lzw' }).toBuffer(),
      busy.clone().tiff({ compression: 'jpeg' }).toBuffer(),
      busy.clone().avif({ effort: 0 }).toBuffer(),
    ])
    const random = randomness(20_261_121)
    const sources = Array.from({ length: mutationsWanted }, (_, i) => {
      const copy = Buffer.from(seeds[i % seeds.length] ?? Buffer.alloc(0))
      for (let change = 0; change <= random() * 8; change++) {
        // Half of them near the beginning, where headers are.
        const reach = random() < 0.5 ? Math.min(200, copy.length) : copy.length
        copy[Math.floor(random() * reach)] = Math.floor(random() * 256)
      }
      return random() < 0.1 ? copy.subarray(0, Math.floor(random() * copy.length)) : copy
    })
    await using pictures = openPicturePool({ isolation, width: 2 })
    const before = residentBytes(process.pid)
    const verdicts = await judge(sources, { ...gate, pictures })
    const counts = Object.groupBy(verdicts, (verdict) => verdict)
    for (const verdict of Object.keys(counts)) {
      assert.match(
        verdict,
        /^(?:passed|media\.(?:corrupt|unsupported|too_large|decoder_failed|timeout|empty))$/,
      )
    }
    // Most mutations of a picture break it; some only change a colour.
    assert.ok((counts['passed'] ?? []).length > 0 && (counts['media.corrupt'] ?? []).length > 0)
    assert.deepEqual(readdirSync(scratchFolder), [])
    assert.ok(residentBytes(process.pid) - before < limits.imageDecoderMemoryBytesMax / 2)
  })
})
