/** JPEGs: as cameras and telephones write them, in every colour space and orientation, and damaged ones. */

import assert from 'node:assert/strict'

import sharp from 'sharp'

import type { GateCase } from './cases.ts'
import { exifSegment, segment, withSegments } from './make-pictures.ts'
import { colourDistance, drawScene, picture, pixelsOf, turned } from './pixels.ts'
import { file, firstBytes, looksLike } from './write-case.ts'

const scene = drawScene()
const jpeg = () => picture(scene).jpeg({ quality: 95, chromaSubsampling: '4:4:4' }).toBuffer()
const xmp = (text: string) => segment(0xe1, `http://ns.adobe.com/xap/1.0/\0<x>${text}</x>`)
const film = Buffer.from('\0\0\0\x18ftypmp42\0\0\0\0isommp42canary-film', 'latin1')

const orientations: readonly GateCase[] = [1, 2, 3, 4, 5, 6, 7, 8].map((orientation) => ({
  name: `a JPEG lying in way ${orientation}`,
  ...(orientation === 7 ? { quick: true as const } : {}),
  make: file('a.jpg', async () => withSegments(await jpeg(), exifSegment(orientation))),
  leaves: ['jpg'],
  gone: ['canary-maker'],
  removed: ['exif', 'gps', 'thumbnail'],
  equal: looksLike(turned(scene, orientation)),
}))

export const jpegCases: readonly GateCase[] = [
  ...orientations,
  {
    name: 'a JPEG turned once, and not again when it comes back',
    make: file('a.jpg', async () => withSegments(await jpeg(), exifSegment(6))),
    leaves: ['jpg'],
    async equal(outcomes) {
      assert.equal((await sharp(firstBytes(outcomes)).metadata()).orientation, undefined)
    },
  },
  {
    name: 'a progressive JPEG with half the colours',
    make: file('a.jpg', () => picture(scene).jpeg({ progressive: true, quality: 95 }).toBuffer()),
    leaves: ['jpg'],
    equal: looksLike(scene, 5),
  },
  {
    name: 'a JPEG with every block of metadata there is',
    quick: true,
    make: file('a.jpg', async () =>
      withSegments(
        await jpeg(),
        exifSegment(1),
        xmp('canary-xmp'),
        segment(0xed, 'Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0bcanary-iptc'),
        segment(0xeb, 'JP\0\x01canary-c2pa'),
        segment(0xfe, 'canary-comment'),
        segment(0xe0, 'JFXX\0\x10canary-thumbnail'),
        segment(0xe2, 'urn:iso:std:iso:ts:21496:-1\0canary-gain'),
        segment(0xe5, 'canary-maker-note'),
      ),
    ),
    leaves: ['jpg'],
    gone: [
      ...['canary-xmp', 'canary-iptc', 'canary-c2pa', 'canary-comment', 'canary-thumbnail'],
      ...['canary-gain', 'canary-maker-note'],
    ],
    removed: ['c2pa', 'comment', 'exif', 'gain-map', 'gps', 'iptc', 'other', 'thumbnail', 'xmp'],
    equal: looksLike(scene),
  },
  {
    name: 'a motion photo: a film behind the picture',
    quick: true,
    make: file('a.jpg', async () =>
      Buffer.concat([withSegments(await jpeg(), xmp('GCamera:MotionPhoto="1"')), film]),
    ),
    leaves: ['jpg'],
    gone: ['canary-film', 'ftypmp42'],
    removed: ['motion-photo', 'trailer'],
  },
  {
    name: 'an MPO: a second picture behind the first',
    make: file('a.mpo', async () =>
      Buffer.concat([
        withSegments(await jpeg(), segment(0xe2, 'MPF\0MM\0*\0\0\0\x08\0\0\0\0\0\0')),
        withSegments(await jpeg(), segment(0xfe, 'canary-second')),
      ]),
    ),
    leaves: ['jpg'],
    gone: ['canary-second', 'MPF'],
    removed: ['further-pictures', 'trailer'],
    equal: looksLike(scene),
  },
  {
    name: 'a JPEG that is a ZIP archive as well',
    make: file('a.jpg', async () =>
      Buffer.concat([await jpeg(), Buffer.from('PK\x03\x04canary-zip'), Buffer.alloc(50)]),
    ),
    leaves: ['jpg'],
    gone: ['canary-zip', 'PK\x03\x04'],
    removed: ['trailer'],
  },
  {
    name: 'a JPEG with padding between its segments',
    make: file('a.jpg', async () => {
      const whole = await jpeg()
      return Buffer.concat([
        whole.subarray(0, 2),
        exifSegment(1),
        Buffer.alloc(7),
        whole.subarray(2),
      ])
    }),
    leaves: ['jpg'],
    equal: looksLike(scene),
  },
  {
    name: 'a grey JPEG',
    make: file('a.jpg', () => picture(scene).greyscale().jpeg({ quality: 95 }).toBuffer()),
    leaves: ['jpg'],
    async equal(outcomes) {
      const { data } = await pixelsOf(firstBytes(outcomes))
      assert.ok(Math.abs((data[300] ?? 0) - (data[301] ?? 0)) <= 1)
    },
  },
  {
    name: 'a JPEG in CMYK with its profile',
    quick: true,
    make: file('a.jpg', () =>
      picture(scene).withIccProfile('cmyk').toColourspace('cmyk').jpeg({ quality: 98 }).toBuffer(),
    ),
    leaves: ['jpg'],
    removed: ['icc'],
    // The gamut of ink is smaller.
    equal: looksLike(scene, 6),
  },
  {
    name: 'a JPEG in CMYK without a profile',
    make: file('a.jpg', () =>
      picture(scene).toColourspace('cmyk').jpeg({ quality: 98 }).toBuffer(),
    ),
    leaves: ['jpg'],
    equal: looksLike(scene, 8),
  },
  {
    name: 'a JPEG in Display P3',
    make: file('a.jpg', () =>
      picture(scene)
        .withIccProfile('p3')
        .jpeg({ quality: 98, chromaSubsampling: '4:4:4' })
        .toBuffer(),
    ),
    leaves: ['jpg'],
    removed: ['icc'],
    equal: looksLike(scene, 2),
  },
  {
    name: 'a JPEG in Display P3 keeps its numbers in the faithful profile',
    profile: 'faithful',
    make: file('a.jpg', () => picture(scene).withIccProfile('p3').jpeg({ quality: 98 }).toBuffer()),
    leaves: ['png'],
    async equal(outcomes, source) {
      const kept = await sharp(firstBytes(outcomes), { ignoreIcc: true }).raw().toBuffer()
      const wanted = await sharp(source, { ignoreIcc: true }).raw().toBuffer()
      assert.deepEqual(kept, wanted)
      // And a viewer that honours the profile sees the colours that were meant.
      const [shown, meant] = [await pixelsOf(firstBytes(outcomes)), await pixelsOf(source)]
      for (let at = 0; at < shown.data.length; at += 333) {
        const colour = (data: Buffer) => [...data.subarray(at, at + 3)]
        assert.ok(colourDistance(colour(shown.data), colour(meant.data)) < 2)
      }
    },
  },
  {
    name: 'a JPEG with a broken profile counts as sRGB',
    make: file('a.jpg', async () =>
      withSegments(
        await jpeg(),
        segment(0xe2, `ICC_PROFILE\0\x01\x01${'canary-profile'.repeat(20)}`),
      ),
    ),
    leaves: ['jpg'],
    gone: ['canary-profile'],
    removed: ['icc'],
    equal: looksLike(scene),
  },
  {
    name: 'a large JPEG is scaled down to what models look at',
    make: file('a.jpg', () =>
      sharp({ create: { width: 6000, height: 3000, channels: 3, background: 'teal' } })
        .jpeg()
        .toBuffer(),
    ),
    leaves: ['jpg'],
    equal([first]) {
      assert.deepEqual([first?.widthPixels, first?.heightPixels], [4096, 2048])
    },
  },
  {
    name: 'a large JPEG lying on its side is scaled and turned',
    make: file('a.jpg', async () =>
      withSegments(
        await sharp({ create: { width: 5000, height: 2500, channels: 3, background: 'teal' } })
          .jpeg()
          .toBuffer(),
        exifSegment(8),
      ),
    ),
    leaves: ['jpg'],
    equal([first]) {
      assert.deepEqual([first?.widthPixels, first?.heightPixels], [2048, 4096])
    },
  },
  {
    name: 'a JPEG for a thin link is smaller',
    profile: 'compact',
    make: file('a.jpg', () => picture(drawScene(800, 600)).jpeg({ quality: 98 }).toBuffer()),
    leaves: ['jpg'],
    async equal(outcomes, source) {
      assert.ok(firstBytes(outcomes).length < source.length / 2)
      await looksLike(drawScene(800, 600), 3)(outcomes, source)
    },
  },
  {
    name: 'a JPEG cut short is refused with the position where it broke',
    quick: true,
    make: file('a.jpg', async () => {
      const whole = await picture(drawScene(400, 300)).jpeg().toBuffer()
      return whole.subarray(0, 3000)
    }),
    refused: { code: 'media.corrupt', says: /at byte 3000/ },
  },
  {
    name: 'what decodes of a JPEG cut short is kept when that is asked for',
    salvage: true,
    make: file('a.jpg', async () => {
      const whole = await picture(drawScene(400, 300)).jpeg().toBuffer()
      return whole.subarray(0, Math.floor(whole.length * 0.8))
    }),
    leaves: ['jpg'],
    async equal([first]) {
      assert.equal(first?.partial, true)
      assert.deepEqual([first.widthPixels, first.heightPixels], [400, 300])
      const { data } = await pixelsOf(first.bytes)
      const wanted = drawScene(400, 300).data
      assert.ok(
        colourDistance([...data.subarray(60_000, 60_003)], [...wanted.subarray(60_000, 60_003)]) <
          8,
      )
    },
  },
  {
    name: 'a JPEG with rubbish in its coded data',
    make: file('a.jpg', async () => {
      const whole = await picture(drawScene(400, 300)).jpeg({ optimiseCoding: false }).toBuffer()
      whole.fill(0xa5, 1500, 1800)
      return whole
    }),
    refused: { code: 'media.corrupt', says: /at byte \d+/ },
  },
  {
    name: 'a JPEG with a few bytes too many before its end, as some cameras write it',
    make: file('a.jpg', async () => {
      const whole = await jpeg()
      return Buffer.concat([whole.subarray(0, -2), Buffer.from([0, 0]), whole.subarray(-2)])
    }),
    leaves: ['jpg'],
    equal: looksLike(scene),
  },
  {
    name: 'a JPEG whose scan says nonsense about itself, as some telephones write it',
    make: file('a.jpg', async () => {
      const whole = await jpeg()
      const at = whole.indexOf(Buffer.from('ffda', 'hex'))
      whole.fill(0, at + 2 + whole.readUInt16BE(at + 2) - 3, at + 2 + whole.readUInt16BE(at + 2))
      return withSegments(whole, segment(0xee, Buffer.from('Adobe\0\x64\0\0\0\0\x05', 'latin1')))
    }),
    leaves: ['jpg'],
    equal: looksLike(scene),
  },
  {
    name: 'a JPEG of 12 bits',
    make: file('a.jpg', async () => {
      const whole = await jpeg()
      const at = whole.indexOf(Buffer.from('ffc0', 'hex'))
      whole[at + 4] = 12
      return whole
    }),
    refused: { code: 'media.unsupported', says: /12 bits/ },
  },
  ...[0xc3, 0xf7].map((frame): GateCase => ({
    name: `a lossless JPEG, of frame ${frame.toString(16)}`,
    make: file('a.jpg', async () => {
      const whole = await jpeg()
      whole[whole.indexOf(Buffer.from('ffc0', 'hex')) + 1] = frame
      return whole
    }),
    refused: { code: 'media.unsupported', says: /lossless/ },
  })),
]
