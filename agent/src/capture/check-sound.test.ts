/** Proves the second parsers of sounds: what an encoder adds, or anyone else, is refused. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { describe, it } from 'node:test'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { collectOutput, detectIsolation } from '../sandbox.ts'
import { checkFlac } from './check-flac.ts'
import { checkWavpack } from './check-wavpack.ts'
import { planSound } from './film-recipe.ts'
import { findFfmpeg } from './find-ffmpeg.ts'
import { splitFlac } from './flac-structure.ts'
import { profiles } from './profiles.ts'
import { splitWavpack } from './wavpack-head.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none')
const ffmpeg = await findFfmpeg({ isolation })
const skip = ffmpeg === undefined ? 'no usable ffmpeg on this host' : false
const refused = { code: 'media.not_clean' }

function encode(depth: 16 | 24 | 32, ...more: string[]): Buffer {
  assert.ok(ffmpeg)
  const { args } = planSound({
    profile: profiles.faithful.sound,
    depth,
    filters: [],
    speech: false,
  })
  const noise = 'anoisesrc=d=0.6:r=48000:c=pink:seed=7'
  return execFileSync(
    ffmpeg.program,
    ['-v', 'error', '-nostdin', '-f', 'lavfi', '-i', noise, '-ac', '2', ...more, ...args],
    { maxBuffer: 64 * 1024 ** 2 },
  )
}

async function* pieces(bytes: Buffer, size = 1000): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

describe('checkFlac', { skip }, () => {
  async function clean(): Promise<Buffer> {
    const flac = splitFlac()
    const frames = await collectOutput(flac.frames(pieces(encode(16))))
    return Buffer.concat([flac.head(0), frames])
  }

  it('counts the samples of a clean one, whatever the pieces (control)', async () => {
    const sound = await clean()
    for (const size of [97, 4096, sound.length]) {
      const facts = await checkFlac(pieces(sound, size))
      assert.deepEqual(facts, { sampleRateHz: 48_000, channels: 2, samples: 28_800 })
    }
  })

  it('refuses what the encoder itself writes: its name, and padding', async () => {
    const raw = encode(16)
    assert.ok(raw.includes('Lavf') || raw.includes('ffmpeg') || raw.readUInt8(4) === 0)
    await assert.rejects(checkFlac(pieces(raw)), refused)
  })

  it('refuses anything before, between and behind the frames, and another count', async () => {
    const sound = await clean()
    const second = sound.indexOf(Buffer.from([0xff, 0xf8]), 60)
    const canary = Buffer.from('canary')
    const at = (offset: number) =>
      Buffer.concat([sound.subarray(0, offset), canary, sound.subarray(offset)])
    for (const offset of [0, 4, 42, second, sound.length]) {
      await assert.rejects(checkFlac(pieces(at(offset))), refused, String(offset))
    }
    await assert.rejects(checkFlac(pieces(sound.subarray(0, -1))), refused)
    const counted = Buffer.from(sound)
    counted.writeUInt32BE(28_801, 22)
    await assert.rejects(checkFlac(pieces(counted)), refused)
    const summed = Buffer.from(sound)
    summed.writeUInt8(1, 30)
    await assert.rejects(checkFlac(pieces(summed)), refused)
    const first = Buffer.from(sound)
    first.writeUInt8(0, 4)
    await assert.rejects(checkFlac(pieces(first)), refused)
  })

  it('refuses a change of any byte behind its head', async () => {
    const sound = await clean()
    for (let offset = 26; offset < sound.length; offset += 997) {
      const copy = Buffer.from(sound)
      copy.writeUInt8(copy.readUInt8(offset) ^ 0x10, offset)
      await assert.rejects(checkFlac(pieces(copy)), refused, String(offset))
    }
  })
})

describe('checkWavpack', { skip }, () => {
  async function clean(samples: number): Promise<Buffer> {
    const wavpack = splitWavpack()
    const rest = await collectOutput(wavpack.rest(pieces(encode(32))))
    return Buffer.concat([wavpack.head(samples), rest])
  }

  it('counts the samples of a clean one (control)', async () => {
    for (const samples of [0, 28_800]) {
      assert.deepEqual(await checkWavpack(pieces(await clean(samples))), {
        sampleRateHz: 48_000,
        channels: 2,
        samples: 28_800,
      })
    }
  })

  it('refuses tags, further parts, and another count', async () => {
    const sound = await clean(28_800)
    await assert.rejects(checkWavpack(pieces(await clean(28_801))), refused)
    const tag = Buffer.concat([sound, Buffer.from('APETAGEX'.padEnd(64, '\0'))])
    await assert.rejects(checkWavpack(pieces(tag)), refused)
    // The first part, of decorrelation, said to be a RIFF header, text, or an MD5.
    for (const id of [0x21, 0x22, 0x25, 0x26, 0x00, 0x2f]) {
      const copy = Buffer.from(sound)
      copy.writeUInt8(id, 32)
      await assert.rejects(checkWavpack(pieces(copy)), refused, String(id))
    }
    await assert.rejects(checkWavpack(pieces(sound.subarray(0, -3))), refused)
    await assert.rejects(checkWavpack(pieces(Buffer.concat([Buffer.from('x'), sound]))), refused)
  })
})
