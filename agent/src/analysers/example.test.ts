/** The example analyser over real media, run as a node runs it: inside the sandbox, from standard input. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { describe, it } from 'node:test'
import sharp from 'sharp'
import type { IsolationLevel, MediumKind } from '@sluice/protocol/manifest'
import { exampleAnalyser } from '../analysis/example-analyser.ts'
import { analyseStream } from '../analysis/run.ts'
import { detectIsolation } from '../sandbox.ts'
import { measureWave } from './measure-wave.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none' as const)
const ffmpeg = '/usr/bin/ffmpeg'
const skip = !hasFfmpeg() && 'ffmpeg is not installed'

function hasFfmpeg(): boolean {
  try {
    execFileSync(ffmpeg, ['-version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

async function* inPieces(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 65_536) yield bytes.subarray(at, at + 65_536)
}

async function measured(kind: MediumKind, bytes: Buffer): Promise<Record<string, unknown>> {
  const run = { analyser: exampleAnalyser(), isolation, leashDescriptor: 0, ran: () => undefined }
  const { output } = await analyseStream(run, { name: '0001.jpg', kind }, inPieces(bytes))
  return output as Record<string, unknown>
}

function made(...args: string[]): Buffer {
  const bytesMax = 64 * 1024 ** 2
  return execFileSync(ffmpeg, ['-v', 'error', '-nostdin', ...args], { maxBuffer: bytesMax })
}

function bitsBetween(one: unknown, other: unknown): number {
  const difference = BigInt(`0x${String(one)}`) ^ BigInt(`0x${String(other)}`)
  return difference.toString(2).replaceAll('0', '').length
}

describe('the example analyser', () => {
  it('measures an image: its size, a hash that survives scaling, and how sharp it is', async () => {
    const svg = Buffer.from(
      `<svg xmlns="http://www.w3.org/2000/svg" width="640" height="480"><rect width="640" height="480"
       fill="#235"/><circle cx="200" cy="180" r="120" fill="#fc4"/><path d="M300 400 L620 60 L600 440Z"
       fill="#a3c"/></svg>`,
    )
    const picture = sharp(svg)
    const sharpOne = await measured('image', await picture.clone().png().toBuffer())
    const small = await measured('image', await picture.clone().resize(160).jpeg().toBuffer())
    const blurred = await measured('image', await picture.clone().blur(12).png().toBuffer())
    const turned = await measured('image', await picture.clone().rotate(90).png().toBuffer())
    assert.equal(sharpOne['widthPixels'], 640)
    assert.equal(sharpOne['heightPixels'], 480)
    assert.match(String(sharpOne['differenceHash']), /^[0-9a-f]{16}$/)
    assert.ok(bitsBetween(sharpOne['differenceHash'], small['differenceHash']) <= 6)
    assert.ok(bitsBetween(sharpOne['differenceHash'], turned['differenceHash']) > 12)
    assert.ok(Number(sharpOne['sharpness']) > 20 * Number(blurred['sharpness']))
  })

  it('measures a film: its frames, its length, and the one cut in it', { skip }, async () => {
    const film = made(
      ...['-f', 'lavfi', '-i', 'color=red:s=160x120:r=10:d=1'],
      ...['-f', 'lavfi', '-i', 'testsrc=s=160x120:r=10:d=1'],
      ...['-filter_complex', '[0][1]concat=n=2:v=1', '-pix_fmt', 'yuv420p', '-c:v', 'libx264'],
      ...['-movflags', '+frag_keyframe+empty_moov', '-f', 'mp4', 'pipe:1'],
    )
    assert.deepEqual(await measured('video', film), {
      kind: 'video',
      frames: 20,
      durationMs: 2000,
      sceneCuts: 1,
      sceneCutsAtMs: [1000],
    })
  })

  it('measures sound: its length and loudness', { skip }, async () => {
    const sine = ['-f', 'lavfi', '-i', 'sine=frequency=1000:duration=3:sample_rate=48000']
    const sound = await measured('audio', made(...sine, '-f', 'flac', 'pipe:1'))
    assert.equal(sound['durationMs'], 3000)
    // ffmpeg's sine is an eighth of full scale: -21 dBFS RMS, and so about -21.8 LUFS.
    const loudness = Number(sound['integratedLoudnessLufs'])
    assert.ok(loudness > -24 && loudness < -19, `${loudness} LUFS`)
    const louder = await measured(
      'audio',
      made(...sine, '-af', 'volume=6dB', '-f', 'flac', 'pipe:1'),
    )
    assert.ok(Math.abs(Number(louder['integratedLoudnessLufs']) - loudness - 6) < 0.2)
  })

  it('fails on what is no medium', async () => {
    await assert.rejects(measured('image', Buffer.from('no image')), { code: 'analysis.failed' })
  })
})

describe('measureWave', () => {
  function wave(samples: number[], channels = 1): Buffer {
    const head = Buffer.alloc(44)
    head.write('RIFF\0\0\0\0WAVEfmt ', 'latin1')
    head.writeUInt32LE(16, 16)
    head.writeUInt16LE(1, 20)
    head.writeUInt16LE(channels, 22)
    head.writeUInt32LE(8000, 24)
    head.writeUInt16LE(16, 34)
    head.write('data', 36, 'latin1')
    head.writeUInt32LE(samples.length * 2, 40)
    const data = Buffer.alloc(samples.length * 2)
    samples.forEach((sample, index) => data.writeInt16LE(sample, index * 2))
    return Buffer.concat([head, data])
  }

  async function* byteByByte(bytes: Buffer): AsyncGenerator<Buffer> {
    for (let at = 0; at < bytes.length; at += 1) yield bytes.subarray(at, at + 1)
  }

  it('gives length and level without a decoder, however the bytes come', async () => {
    const half = wave(Array.from({ length: 8000 }, (_, index) => (index % 2 ? 16_384 : -16_384)))
    const expected = { durationMs: 1000, rmsDbfs: -6 }
    assert.deepEqual(await measureWave(inPieces(half)), expected)
    assert.deepEqual(await measureWave(byteByByte(half)), expected)
    assert.deepEqual(await measureWave(inPieces(wave([0, 0]))), { durationMs: 0, rmsDbfs: null })
  })

  it('says nothing about anything else', async () => {
    assert.equal(await measureWave(inPieces(Buffer.alloc(100_000))), undefined)
    assert.equal(await measureWave(inPieces(Buffer.alloc(10))), undefined)
  })
})
