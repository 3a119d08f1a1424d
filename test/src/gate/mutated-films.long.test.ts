/** Takes hundreds of mutated films and sounds through the whole gate: each leaves clean, or is refused with a code. */

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'

import { openGate, passGate } from '@sluice/agent/capture/gate'
import { detectIsolation } from '@sluice/agent/sandbox'
import { isSluiceError } from '@sluice/protocol/errors'

import { film, h264 } from './make-films.ts'

const folder = mkdtempSync(join(tmpdir(), 'gate-mutated-'))
after(() => rmSync(folder, { recursive: true }))
const scratchFolder = mkdtempSync(join(folder, 'scratch-'))
const isolation = await detectIsolation().catch(() => detectIsolation('none'))
const gate = await openGate({ scratchFolder, isolation })

const rounds = 40
/** Longer than any of these tiny media can honestly take. */
const hangMs = 90_000

const picture = ['-f', 'lavfi', '-i', 'testsrc2=s=64x48:r=10:d=0.5']
const tone = ['-f', 'lavfi', '-i', 'sine=440:d=0.5:r=16000']
const sources: Record<string, string[]> = {
  'a.mp4': [...picture, ...tone, ...h264, '-c:a', 'aac'],
  'a.mov': [...picture, ...tone, '-c:v', 'mjpeg', '-c:a', 'pcm_s16le'],
  'a.webm': [...picture, ...tone, '-c:v', 'libvpx', '-c:a', 'libopus'],
  'a.avi': [...picture, ...tone, '-c:v', 'mpeg4', '-c:a', 'mp3'],
  'a.ts': [...picture, ...tone, ...h264, '-c:a', 'aac'],
  'a.ogg': [...tone, '-c:a', 'libvorbis'],
  'a.mp3': [...tone, '-c:a', 'libmp3lame'],
  'a.aac': [...tone, '-c:a', 'aac'],
  'a.m4a': [...tone, '-c:a', 'aac'],
  'a.wav': tone,
  'a.aiff': tone,
  'a.flac': tone,
}

/** Small, repeatable randomness (a linear congruence of Numerical Recipes). */
function randomness(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

/** Some bytes changed, more of them where headers are. */
function mutated(bytes: Buffer, random: () => number): Buffer {
  const copy = Buffer.from(bytes)
  for (let change = 0; change <= random() * 6; change++) {
    const reach = random() < 0.5 ? Math.min(2000, copy.length) : copy.length
    copy.writeUInt8(Math.floor(random() * 256), Math.floor(random() * reach))
  }
  return random() < 0.2 ? copy.subarray(0, Math.floor(random() * copy.length)) : copy
}

describe('mutated films and sounds', { skip: gate.ffmpeg === undefined && 'no ffmpeg' }, () => {
  for (const [place, [name, args]] of Object.entries(sources).entries()) {
    it(`${rounds} times ${name}`, async (t) => {
      const whole = readFileSync(film(...args, name)(folder))
      const random = randomness(place + 1)
      const ends = new Map<string, number>()
      for (let round = 0; round < rounds; round++) {
        const file = join(folder, `mutated-${name}`)
        const bytes = mutated(whole, random)
        writeFileSync(file, bytes)
        const profile = (['analysis', 'faithful', 'compact'] as const)[Math.floor(random() * 3)]
        const through = { ...gate, profile: profile ?? 'analysis', salvage: random() < 0.5 }
        const startedAt = performance.now()
        let end = 'left'
        try {
          await using passed = await passGate(file, through)
          assert.ok(passed.media.length > 0)
        } catch (error) {
          if (!isSluiceError(error)) throw error
          end = error.code
        }
        // Whatever came in, the stripper never makes what the check has to stop.
        assert.ok(!['media.not_clean', 'internal'].includes(end), `${end} in round ${round}`)
        assert.ok(performance.now() - startedAt < hangMs, `round ${round} hangs`)
        ends.set(end, (ends.get(end) ?? 0) + 1)
      }
      t.diagnostic([...ends].map(([end, count]) => `${end}: ${count}`).join(', '))
      assert.deepEqual(readdirSync(scratchFolder), [])
    })
  }
})
