/** Takes thousands of mutated media of every kind through the whole gate: each leaves clean, or is refused with a code. */

import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'

import { checkClean } from '@sluice/agent/capture/clean-picture'
import { findFfmpeg } from '@sluice/agent/capture/find-ffmpeg'
import { openGate, passGate } from '@sluice/agent/capture/gate'
import type { Gate } from '@sluice/agent/capture/gate'
import { openPicturePool } from '@sluice/agent/capture/picture-pool'
import { randomness } from '@sluice/agent/capture/randomness.test-setup'
import { collectOutput, detectIsolation } from '@sluice/agent/sandbox'
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

import { film, h264 } from './make-films.ts'
import { codeHevc, makeHeic } from './make-heif.ts'
import { animatedPng, bmpRows, makeBmp, makeTiff, rgbPage } from './make-pictures.ts'
import { measured } from './measured.ts'
import { drawScene, picture } from './pixels.ts'

/**
 * `SLUICE_MUTATED_MEDIA=10000` is what the gate has to stand; the default is a tenth of it. What a run
 * did is repeated by its seed.
 */
const wanted = Number(process.env['SLUICE_MUTATED_MEDIA'] ?? 1000)
const seed = Number(process.env['SLUICE_SEED'] ?? 20_261_121)

/** Longer than any of these tiny media can honestly take. */
const hangMs = 90_000
/** What is held of a tiny medium is tiny; the rest is the garbage of thousands of them. */
const ownRiseBytesMax = 256 * 1024 ** 2

const folder = mkdtempSync(join(tmpdir(), 'gate-mutated-'))
after(() => rmSync(folder, { recursive: true }))
const scratchFolder = mkdtempSync(join(folder, 'scratch-'))
const isolation = await detectIsolation().catch(() => detectIsolation('none'))
const gate = await openGate({ scratchFolder, isolation })

type Seed = { name: string; bytes: Buffer }

/** Some bytes changed, more of them where headers are; a piece doubled, left out, or all cut short. */
function mutated(bytes: Buffer, random: () => number): Buffer {
  const copy = Buffer.from(bytes)
  for (let change = 0; change <= random() * 6; change++) {
    const reach = random() < 0.5 ? Math.min(600, copy.length) : copy.length
    copy.writeUInt8(Math.floor(random() * 256), Math.floor(random() * reach))
  }
  const how = random()
  const [from = 0, to = 0] = [random(), random()]
    .map((part) => Math.floor(part * copy.length))
    .toSorted((a, b) => a - b)
  if (how < 0.1) return copy.subarray(0, to)
  if (how < 0.15) return Buffer.concat([copy.subarray(0, from), copy.subarray(to)])
  if (how < 0.2) return Buffer.concat([copy.subarray(0, to), copy.subarray(from)])
  return copy
}

async function pictures(): Promise<Seed[]> {
  const scene = drawScene(96, 64)
  const busy = { ...scene, data: Buffer.from(scene.data.map((value, i) => value ^ ((i * i) % 31))) }
  const page = rgbPage(drawScene(32, 32))
  const rows = bmpRows(scene, (r, g, b) => [b, g, r])
  const bmp = { width: scene.width, height: scene.height }
  const runs = Buffer.from(Array.from({ length: 64 }, () => [96, 7, 0, 0]).flat())
  const grey = Array.from({ length: 256 }, (_, i) => [i, i, i] as const)
  const two = drawScene(24, 24)
  const seeds: Record<string, Buffer | Promise<Buffer>> = {
    'a.jpg': picture(busy)
      .withExif({ IFD0: { Artist: 'somebody' } })
      .jpeg()
      .toBuffer(),
    'progressive.jpg': picture(busy).jpeg({ progressive: true }).toBuffer(),
    'cmyk.jpg': picture(busy).toColourspace('cmyk').withIccProfile('cmyk').jpeg().toBuffer(),
    'a.png': picture(busy).withIccProfile('p3').png().toBuffer(),
    'palette.png': picture(busy).png({ palette: true }).toBuffer(),
    'deep.png': picture(busy).toColourspace('rgb16').png({ progressive: true }).toBuffer(),
    'animated.png': animatedPng([two, two, two]),
    'a.webp': picture(busy).webp().toBuffer(),
    'lossless.webp': picture(busy).ensureAlpha(0.5).webp({ lossless: true }).toBuffer(),
    'a.gif': picture(busy).gif().toBuffer(),
    'lzw.tif': picture(busy).tiff({ compression: 'lzw' }).toBuffer(),
    'jpeg.tif': picture(busy).tiff({ compression: 'jpeg' }).toBuffer(),
    'tiled.tif': picture(busy).tiff({ tile: true, compression: 'deflate' }).toBuffer(),
    'pages.tif': makeTiff([page, page]),
    'big.tif': makeTiff([page], { big: true }),
    'a.avif': picture(busy).avif({ effort: 0 }).toBuffer(),
    'deep.avif': picture(busy).avif({ effort: 0, bitdepth: 10 }).toBuffer(),
    'a.bmp': makeBmp({ ...bmp, bits: 24, data: rows }),
    'runs.bmp': makeBmp({ ...bmp, bits: 8, compression: 1, palette: grey, data: runs }),
  }
  const found = Object.entries(seeds).map(async ([name, bytes]) => ({ name, bytes: await bytes }))
  const ffmpeg = await findFfmpeg({ isolation })
  if (ffmpeg === undefined) return Promise.all(found)
  const size = { widthPixels: 64, heightPixels: 48 }
  const coded = codeHevc(ffmpeg.program, { ...size, rgb: drawScene(64, 48).data })
  const heic = { coded, irot: 1 as const, nclx: { primaries: 1, transfer: 13, matrix: 1 } }
  return [...(await Promise.all(found)), { name: 'a.heic', bytes: makeHeic(heic) }]
}

const seen = ['-f', 'lavfi', '-i', 'testsrc2=s=64x48:r=10:d=0.4']
const heard = ['-f', 'lavfi', '-i', 'sine=440:d=0.4:r=16000']
const both = [...seen, ...heard]

const filmRecipes: Record<string, readonly string[]> = {
  'a.mp4': [...both, ...h264, '-c:a', 'aac'],
  'fragments.mp4': [...both, ...h264, '-c:a', 'aac', '-movflags', '+frag_keyframe+empty_moov'],
  'a.mov': [...both, '-c:v', 'mjpeg', '-c:a', 'pcm_s16le'],
  'a.3gp': [...both, ...h264, '-c:a', 'aac'],
  'a.mkv': [...both, ...h264, '-c:a', 'flac'],
  'a.webm': [...both, '-c:v', 'libvpx', '-c:a', 'libopus'],
  'a.avi': [...both, '-c:v', 'mpeg4', '-c:a', 'mp3'],
  'a.ts': [...both, ...h264, '-c:a', 'aac'],
}

const soundRecipes: Record<string, readonly string[]> = {
  'a.wav': heard,
  'coded.wav': [...heard, '-c:a', 'adpcm_ms'],
  'a.aiff': heard,
  'a.flac': heard,
  'a.mp3': [...heard, '-c:a', 'libmp3lame'],
  'a.aac': [...heard, '-c:a', 'aac'],
  'a.m4a': [...heard, '-c:a', 'aac'],
  'a.ogg': [...heard, '-c:a', 'libvorbis'],
  'a.opus': [...heard, '-c:a', 'libopus'],
}

function made(recipes: Record<string, readonly string[]>): Seed[] {
  if (gate.ffmpeg === undefined) return []
  return Object.entries(recipes).map(([name, args]) => {
    const file = film(...args, name)(folder)
    const bytes = readFileSync(file)
    rmSync(file)
    return { name, bytes }
  })
}

/** A film costs as much as a hundred pictures: of twenty media, one is a film and four are sounds. */
function planned(count: number, kinds: Record<'picture' | 'sound' | 'film', Seed[]>): Seed[] {
  const random = randomness(seed)
  return Array.from({ length: count }, (_, i) => {
    const of = i % 20 === 0 ? kinds.film : i % 5 === 1 ? kinds.sound : kinds.picture
    const from = of.length === 0 ? kinds.picture : of
    const { name, bytes } = from[Math.floor(random() * from.length)] ?? {
      name: '',
      bytes: Buffer.alloc(0),
    }
    return { name, bytes: mutated(bytes, random) }
  })
}

async function verdictOf(medium: Seed, place: number, through: Gate): Promise<string> {
  const file = join(folder, `${place}-${medium.name}`)
  writeFileSync(file, medium.bytes)
  const startedAt = performance.now()
  try {
    await using passed = await passGate(file, through)
    assert.ok(passed.media.length > 0)
    for (const { kind, content } of passed.media)
      if (kind === 'image') checkClean(await collectOutput(content.read()))
    return 'passed'
  } catch (error) {
    if (!isSluiceError(error)) throw error
    return error.code
  } finally {
    rmSync(file)
    assert.ok(performance.now() - startedAt < hangMs, `${medium.name}, number ${place}, hangs`)
  }
}

/** What may become of a damaged medium. That ours wrote what the check must stop, or broke down, may not. */
const verdicts =
  /^(?:passed|media\.(?:corrupt|unsupported|too_large|decoder_failed|timeout|empty))$/

describe(`${wanted} mutated media of every kind, seed ${seed}`, () => {
  it('passes every one of them as it was before', async () => {
    await using pool = openPicturePool({ isolation, width: 1 })
    const seeds = [...(await pictures()), ...made(soundRecipes), ...made(filmRecipes)]
    for (const [place, medium] of seeds.entries()) {
      assert.equal(
        await verdictOf(medium, place, { ...gate, pictures: pool }),
        'passed',
        medium.name,
      )
    }
  })

  it('each has a verdict: no crash, no hang, no file left, memory bounded', async (t) => {
    const kinds = { picture: await pictures(), sound: made(soundRecipes), film: made(filmRecipes) }
    const media = planned(wanted, kinds)
    const counts = new Map<string, number>()
    const unexpected: string[] = []
    const profiles = ['analysis', 'faithful', 'compact'] as const
    const cost = await measured(async () => {
      await using pool = openPicturePool({ isolation, width: 2 })
      const waiting = [...media.entries()]
      const work = async () => {
        for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
          const [place, medium] = next
          const profile = profiles[place % 3] ?? 'analysis'
          const through = { ...gate, pictures: pool, profile, salvage: place % 7 < 3 }
          const verdict = await verdictOf(medium, place, through)
          if (!verdicts.test(verdict))
            unexpected.push(`${medium.name}, number ${place}: ${verdict}`)
          const kind = medium.name.split('.').at(-1) ?? ''
          for (const key of [verdict, `${kind} ${verdict === 'passed' ? 'passed' : 'refused'}`]) {
            counts.set(key, (counts.get(key) ?? 0) + 1)
          }
        }
      }
      await Promise.all([work(), work()])
    })
    const lines = [...counts].toSorted(([a], [b]) => a.localeCompare(b))
    t.diagnostic(lines.map(([key, count]) => `${key}: ${count}`).join(', '))
    const mebibytes = (bytes: number) => `${Math.round(bytes / 1024 ** 2)} MiB`
    t.diagnostic(
      `${wanted} in ${Math.round(cost.elapsedMs / 1000)} s; this process rose by ` +
        `${mebibytes(cost.ownRiseBytes)}, no child held more than ${mebibytes(cost.childPeakBytes)}`,
    )
    assert.deepEqual(unexpected, [])
    // Most mutations of a medium break it; some only change a colour or a tone.
    assert.ok((counts.get('passed') ?? 0) > 0 && (counts.get('media.corrupt') ?? 0) > 0)
    assert.ok(cost.ownRiseBytes < ownRiseBytesMax)
    assert.ok(cost.childPeakBytes <= limits.imageDecoderMemoryBytesMax)
    assert.deepEqual(readdirSync(scratchFolder), [])
    assert.deepEqual(readdirSync(folder), [scratchFolder.slice(folder.length + 1)])
  })
})
