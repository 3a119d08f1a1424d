/** Proves over a longer life that bad pictures never cost the good ones: 200 of them in one life. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import sharp from 'sharp'
import { isSluiceError } from '@sluice/protocol/errors'
import { collectOutput, detectIsolation } from '../sandbox.ts'
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
})
