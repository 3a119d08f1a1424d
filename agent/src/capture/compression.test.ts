/** Proves that work is spent where it saves time, and that each kind of picture gets the coding that suits it. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import sharp from 'sharp'
import { chooseEffort, choosePng, efforts } from './compression.ts'
import type { Coded, Effort } from './compression.ts'
import { randomness } from './randomness.test-setup.ts'

const width = 480
const height = 320

/** Soft shapes under grain. */
const grain = randomness(7)
const photograph = Buffer.from(
  Array.from({ length: width * height * 3 }, (_, i) => {
    const [x, y] = [Math.floor(i / 3) % width, Math.floor(i / 3 / width)]
    return 128 + 60 * Math.sin(x / 40) + 40 * Math.cos(y / 30) + 6 * grain()
  }),
)

/** Letters on paper, as it were. */
const drawing = Buffer.alloc(width * height * 3, 250)
for (let y = 0; y < height; y += 12)
  for (let x = 0; x < width; x += 7) drawing.fill(20, (y * width + x) * 3, (y * width + x + 3) * 3)

const written = (samples: Buffer, effort: Effort, coded: Coded): Promise<Buffer> =>
  sharp(samples, { raw: { width, height, channels: 3 } })
    .png(choosePng(effort, coded))
    .toBuffer()

describe('how much work fewer bytes are worth', () => {
  it('is most on a thin link, least on a fast one, and less where processors are busy', () => {
    const on = (megabytes: number, freeCores: number) =>
      chooseEffort({ linkBytesPerSecond: megabytes * 1e6, freeCores })
    assert.deepEqual(
      [0.1, 2, 5, 20, 1000].map((each) => on(each, 2)),
      [...['small', 'small', 'balanced', 'quick', 'quick']],
    )
    assert.equal(on(0.5, 2), 'small')
    assert.equal(on(0.5, 0.2), 'balanced')
    assert.equal(on(0.5, 0), 'quick')
    assert.equal(chooseEffort({ linkBytesPerSecond: undefined, freeCores: 64 }), 'quick')
  })

  it('knows a drawing from a photograph, by its samples and by a file of them', async () => {
    const asFile = async (samples: Buffer): Promise<Coded> => ({
      bytes: await written(samples, 'balanced', 'with-loss'),
      sampleBytes: samples.length,
    })
    const asSamples = (samples: Buffer): Coded => ({ bytes: samples, sampleBytes: samples.length })
    for (const effort of efforts) {
      for (const coded of [asSamples(photograph), await asFile(photograph), 'with-loss' as const])
        assert.equal(choosePng(effort, coded).adaptiveFiltering, true)
      for (const coded of [asSamples(drawing), await asFile(drawing)])
        assert.equal(choosePng(effort, coded).adaptiveFiltering, false)
    }
    assert.equal(choosePng('quick', { bytes: Buffer.alloc(0), sampleBytes: 0 }).compressionLevel, 2)
  })

  it('never makes a file that is larger than its samples, and a smaller one with more work', async () => {
    for (const samples of [photograph, drawing]) {
      const coded = { bytes: samples, sampleBytes: samples.length }
      const sizes: number[] = []
      for (const effort of efforts) sizes.push((await written(samples, effort, coded)).length)
      assert.ok(sizes.every((size) => size < samples.length))
      const [quick = 0, , small = 0] = sizes
      assert.ok(small < quick, `${small} bytes are not less than ${quick}`)
    }
  })
})
