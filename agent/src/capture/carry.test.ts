/** Proves that only what the policy names is carried, no finer than it says, whatever file it comes from. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import * as fc from 'fast-check'
import sharp from 'sharp'
import { captured as capturedSchema } from '@sluice/protocol/manifest'
import { need } from '../../../test/src/tools/need.ts'
import { type CarrySource, coarse, readCaptured, readIndex, readTags } from './carry.ts'
import { type CarryPolicy, carryPolicy } from './gate-policy.ts'
import { openSource } from './inspect.ts'

const folder = await mkdtemp(path.join(tmpdir(), 'sluice-carry-'))
after(() => rm(folder, { recursive: true }))
const all: CarryPolicy = { captureTimeStepMinutes: 60, camera: true, regionStepDegrees: 1 }
const nothing = carryPolicy.parse({})

const exif = {
  IFD0: { Make: 'Apple', Model: 'iPhone 15' },
  IFD2: { DateTimeOriginal: '2026:05:17 14:38:21' },
  IFD3: {
    GPSLatitudeRef: 'N',
    GPSLatitude: '48/1 8/1 3600/100',
    GPSLongitudeRef: 'W',
    GPSLongitude: '11/1 34/1 0/1',
  },
}
const fromPicture = {
  time: { fromMs: Date.UTC(2026, 4, 17, 14), stepMs: 3_600_000, zone: 'unknown' },
  camera: 'phone',
  region: { latitudeDegrees: 48.5, longitudeDegrees: -11.5, stepDegrees: 1 },
}

async function pictureOf(format: 'jpeg' | 'png' | 'webp' | 'tiff' | 'avif'): Promise<string> {
  const file = path.join(folder, `picture.${format}`)
  const noise = { type: 'gaussian', mean: 128, sigma: 60 } as const
  await sharp({ create: { width: 64, height: 64, channels: 3, background: 'teal', noise } })
    .withExif(exif)
    .toFormat(format)
    .toFile(file)
  return file
}

describe('what is carried of a picture', () => {
  for (const format of ['jpeg', 'png', 'webp', 'avif'] as const)
    it(`is found in ${format}, and made coarse`, async () => {
      await using source = await openSource(await pictureOf(format))
      assert.deepEqual(await readCaptured(source, all), fromPicture)
      assert.deepEqual(await readCaptured(source, { ...nothing, camera: true }), {
        camera: 'phone',
      })
    })

  it(
    'is found in tiff, wherever its directories lie',
    { skip: need('exiftool', existsSync('/usr/bin/exiftool'), 'apt-get install exiftool') },
    async () => {
      const file = await pictureOf('tiff')
      const jpeg = await pictureOf('jpeg')
      execFileSync('/usr/bin/exiftool', ['-q', '-tagsfromfile', jpeg, '-all', '-gps:all', file])
      await using source = await openSource(file)
      assert.deepEqual(await readCaptured(source, all), fromPicture)
    },
  )

  it('is nothing when nothing is named, and the source is not even read', async () => {
    const unread = { kind: 'image', format: 'jpeg', bytes: 1e6 } as const
    const source: CarrySource = { ...unread, read: () => assert.fail('it was read') }
    assert.equal(await readCaptured(source, nothing), undefined)
  })

  it('is nothing where there is nothing', async () => {
    const file = path.join(folder, 'plain.png')
    await sharp({ create: { width: 9, height: 9, channels: 3, background: 'red' } }).toFile(file)
    await using source = await openSource(file)
    assert.equal(await readCaptured(source, all), undefined)
  })

  it('is found beyond the first piece that is searched', async () => {
    const bytes = await readFile(await pictureOf('jpeg'))
    const at = bytes.indexOf('Exif\0\0')
    for (const before of [1024 ** 2 - 3 - at, 1024 ** 2 + 5 - at, 3 * 1024 ** 2]) {
      const shifted = Buffer.concat([Buffer.alloc(before), bytes])
      const source: CarrySource = {
        ...{ kind: 'image', format: 'jpeg', bytes: shifted.length },
        read: async (from, length) => Buffer.from(shifted.subarray(from, from + length)),
      }
      assert.deepEqual(await readCaptured(source, all), fromPicture)
    }
  })

  it('holds for whatever bytes come', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), fc.boolean(), (bytes, little) => {
        const head = Buffer.from(little ? 'II*\0\u0008\0\0\0' : 'MM\0*\0\0\0\u0008', 'latin1')
        for (const block of [Buffer.from(bytes), Buffer.concat([head, bytes])])
          capturedSchema.parse(coarse(readTags(block), all))
        capturedSchema.parse(coarse(readIndex(Buffer.from(bytes)), all))
      }),
      { numRuns: 2000 },
    )
  })
})

describe('what is carried of a film', () => {
  it(
    'is its time, its place and the kind of camera',
    { skip: need('ffmpeg', existsSync('/usr/bin/ffmpeg'), 'apt-get install ffmpeg') },
    async () => {
      const file = path.join(folder, 'film.mov')
      const words =
        '-y -loglevel error -f lavfi -i testsrc=size=64x64:rate=5:duration=1 -c:v libx264 -movflags use_metadata_tags'
      const tags = [
        ...['-metadata', 'creation_time=2026-05-17T14:38:21Z'],
        ...['-metadata', 'com.apple.quicktime.location.ISO6709=+48.1434-011.5678+520/'],
        ...['-metadata', 'com.apple.quicktime.make=Apple'],
      ]
      execFileSync('/usr/bin/ffmpeg', [...words.split(' '), ...tags, file])
      await using source = await openSource(file)
      assert.deepEqual(await readCaptured(source, all), {
        ...fromPicture,
        time: { ...fromPicture.time, zone: 'utc' },
        region: { latitudeDegrees: 48.5, longitudeDegrees: -11.5, stepDegrees: 1 },
      })
    },
  )
})

describe('coarse', () => {
  it('tells apart nothing within a step, for any time and place', () => {
    const policy = { captureTimeStepMinutes: 30, camera: false, regionStepDegrees: 5 }
    fc.assert(
      fc.property(
        fc.integer({ min: 700_000_000_000, max: 4_000_000_000_000 }),
        fc.double({ min: -90, max: 90, noNaN: true }),
        fc.double({ min: -180, max: 180, noNaN: true }),
        (ms, latitude, longitude) => {
          const { time, region } = capturedSchema.parse(
            coarse({ at: { ms, zone: 'utc' }, place: { latitude, longitude } }, policy),
          )
          assert.equal(time && time.fromMs % (30 * 60_000), 0)
          assert.ok(time && ms >= time.fromMs && ms < time.fromMs + time.stepMs)
          // Cells lie on one grid: where in its cell a place is cannot be seen.
          const cell = region && Math.abs(region.latitudeDegrees % 5)
          assert.ok(cell === 2.5 || Math.abs(region?.latitudeDegrees ?? 0) === 90)
        },
      ),
    )
  })
})
