/** Breaks the stripper in each of its places, one after the other: the check of what was written must see it every time. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { registerHooks } from 'node:module'
import { describe, it } from 'node:test'
import sharp from 'sharp'
import { checkClean } from './clean-picture.ts'
import { rgbSpaces, writeProfile } from './icc-profile.ts'
import { pngChunk } from './png-structure.ts'
import * as stripper from './strip-picture.ts'

type Stripper = typeof stripper

type Mutant = {
  place: string
  file: string
  from: string
  to: string
}

/** The place, and what stands there in a stripper that has gone wrong. */
const mutants: readonly Mutant[] = [
  {
    place: 'JPEG: unknown segments',
    file: 'jpeg-structure.ts',
    from: "if (known === undefined) return 'other'",
    to: "if (known === undefined) return 'coding'",
  },
  {
    place: 'JPEG: EXIF, XMP and their like',
    file: 'jpeg-structure.ts',
    from: 'return known[2]\n',
    to: "return 'coding'\n",
  },
  {
    place: 'JPEG: comments',
    file: 'jpeg-structure.ts',
    from: "return 'comment'",
    to: "return 'coding'",
  },
  {
    place: 'JPEG: thumbnails of JFIF',
    file: 'jpeg-structure.ts',
    from: "return 'thumbnail'",
    to: "return 'coding'",
  },
  {
    place: 'JPEG: the resolution in JFIF',
    file: 'jpeg-structure.ts',
    from: 'kept.push(plainJfif)',
    to: 'kept.push(bytes.subarray(segment.start, segment.end))',
  },
  {
    place: 'JPEG: what stands behind the end',
    file: 'jpeg-structure.ts',
    from: 'decodable: Buffer.concat([...kept, endOfImage])',
    to: 'decodable: Buffer.concat([...kept, endOfImage, bytes.subarray(end)])',
  },
  {
    place: 'PNG: further chunks',
    file: 'png-structure.ts',
    from: "coding.has(name) && name !== 'IEND'",
    to: "name !== 'IEND'",
  },
  {
    place: 'PNG: what stands behind the end',
    file: 'png-structure.ts',
    from: "pngChunk('IEND', Buffer.alloc(0)),",
    to: "pngChunk('IEND', Buffer.alloc(0)), bytes.subarray(end),",
  },
  {
    place: 'PNG: content of the end',
    file: 'png-structure.ts',
    from: "pngChunk('IEND', Buffer.alloc(0)),",
    to: "pngChunk('IEND', Buffer.from('canary')),",
  },
  {
    place: 'PNG: checksums',
    file: 'png-structure.ts',
    from: 'chunk.writeUInt32BE(crc32(chunk.subarray(4, -4)), chunk.length - 4)',
    to: 'chunk.writeUInt32BE(1, chunk.length - 4)',
  },
  {
    place: 'PNG: a profile that is none of ours',
    file: 'strip-picture.ts',
    from: 'deflateSync(profile)',
    to: "deflateSync(Buffer.concat([profile, Buffer.from('canary')]))",
  },
  {
    place: 'PNG: the name of a profile',
    file: 'strip-picture.ts',
    from: '${profileName}',
    to: 'canary',
  },
  {
    place: 'PNG: what stands behind the packed profile',
    file: 'strip-picture.ts',
    from: 'deflateSync(profile)',
    to: "Buffer.concat([deflateSync(profile), Buffer.from('canary')])",
  },
  {
    place: 'WebP: further chunks',
    file: 'webp-structure.ts',
    from: "chunk.name === 'ALPH' || chunk === picture",
    to: "chunk.name !== 'VP8X'",
  },
  {
    place: 'WebP: what the header announces',
    file: 'webp-structure.ts',
    from: 'header.readUInt8(0) & (flags.alpha | flags.animation)',
    to: 'header.readUInt8(0)',
  },
  {
    place: 'WebP: what stands behind the end',
    file: 'webp-structure.ts',
    from: 'decodable: rebuild(extended?.content, needed)',
    to: 'decodable: Buffer.concat([rebuild(extended?.content, needed), bytes.subarray(end)])',
  },
]

/** Modules whose address ends in `?mutant=N` are loaded with that one change. */
registerHooks({
  resolve(specifier, context, next) {
    const resolved = next(specifier, context)
    const mutant = /\?mutant=\d+$/.exec(context.parentURL ?? '')?.[0]
    const own = specifier.startsWith('./') && mutant !== undefined
    return own ? { ...resolved, url: `${resolved.url}${mutant}` } : resolved
  },
  load(url, context, next) {
    const loaded = next(url, context)
    const mutant = mutants[Number(/\?mutant=(\d+)$/.exec(url)?.[1] ?? NaN)]
    if (mutant === undefined || !url.includes(`/${mutant.file}?`)) return loaded
    const source = readFileSync(new URL(url), 'utf8')
    // A change of the stripper must not leave a mutant without effect.
    assert.ok(source.includes(mutant.from), `${mutant.file} no longer holds: ${mutant.from}`)
    return { ...loaded, source: source.replace(mutant.from, mutant.to) }
  },
})

const canaries = {
  jpeg: await dirtyJpeg(),
  png: await dirtyPng(),
  webp: await dirtyWebp(),
}

/** As an encoder might write that carries everything over. */
async function dirtyJpeg(): Promise<Buffer> {
  const whole = await picture().jpeg().toBuffer()
  const segment = (code: number, text: string) => {
    const content = Buffer.from(text, 'latin1')
    const head = Buffer.from([0xff, code, 0, content.length + 2])
    return Buffer.concat([head, content])
  }
  return Buffer.concat([
    whole.subarray(0, 2),
    segment(0xe0, 'JFIF\0\x01\x01\x01\0\x48\0\x48\0\0'),
    segment(0xe0, 'JFXX\0canary'),
    segment(0xe1, 'Exif\0\0canary'),
    segment(0xe5, 'canary'),
    segment(0xfe, 'canary'),
    whole.subarray(2),
    Buffer.from('canary'),
  ])
}

async function dirtyPng(): Promise<Buffer> {
  const whole = await picture().png().toBuffer()
  const text = pngChunk('tEXt', Buffer.from('canary'))
  return Buffer.concat([whole.subarray(0, 33), text, whole.subarray(33), Buffer.from('canary')])
}

async function dirtyWebp(): Promise<Buffer> {
  const whole = await picture()
    .ensureAlpha(0.5)
    .withExif({ IFD0: { Artist: 'canary' } })
    .webp()
    .toBuffer()
  return Buffer.concat([whole, Buffer.from('canary')])
}

function picture() {
  return sharp({ create: { width: 20, height: 10, channels: 3, background: 'teal' } })
}

function stripAll({ stripJpeg, stripPng, stripWebp }: Stripper, profile: Buffer): Buffer[] {
  return [
    stripJpeg(canaries.jpeg),
    stripPng(canaries.png),
    stripPng(canaries.png, profile),
    stripWebp(canaries.webp),
  ]
}

const profile = writeProfile(rgbSpaces.p3)

describe('the check of what was written', () => {
  it('is content with the stripper as it is', () => {
    for (const bytes of stripAll(stripper, profile)) {
      assert.ok(!bytes.includes('canary'))
      checkClean(bytes)
    }
    for (const bytes of Object.values(canaries)) {
      assert.throws(() => checkClean(bytes), { code: 'media.not_clean' })
    }
  })

  for (const [i, { place }] of mutants.entries()) {
    it(`sees when the stripper fails at ${place}`, async () => {
      const broken = (await import(`./strip-picture.ts?mutant=${i}`)) as Stripper
      const caught = stripAll(broken, profile).filter((bytes) => {
        try {
          checkClean(bytes)
          return false
        } catch (error) {
          assert.equal(
            error instanceof Error && 'code' in error ? error.code : undefined,
            'media.not_clean',
          )
          return true
        }
      })
      assert.ok(caught.length > 0, 'the broken stripper was not noticed')
    })
  }
})
