/** Pictures that lie, explode, or are none. */

import { deflateSync } from 'node:zlib'

import type { GateCase } from './cases.ts'
import { chunk, segment, withChunks, withSegments, withSize } from './make-pictures.ts'
import { drawScene, picture } from './pixels.ts'
import { file, looksLike } from './write-case.ts'

const scene = drawScene()
const png = () => picture(scene).png().toBuffer()
const jpeg = () => picture(scene).jpeg().toBuffer()

/** A chunk of so many zeros, packed to a thousandth. */
function zeros(name: string, head: string, mebibytes: number): Buffer {
  return chunk(
    name,
    Buffer.concat([Buffer.from(head), deflateSync(Buffer.alloc(mebibytes * 1024 ** 2))]),
  )
}

function refusedType(name: string, at: string, content: Buffer | string, says: RegExp): GateCase {
  return {
    name: `refused: ${name}`,
    make: file(at, () => Buffer.from(content)),
    refused: { code: 'media.unsupported', says },
  }
}

const box = (type: string, rest: string) =>
  Buffer.from(`\0\0\0\x18${type}${rest}`.padEnd(24, '\0'), 'latin1')

export const hostileImageCases: readonly GateCase[] = [
  {
    name: 'a PNG that promises a gigapixel in a hundred bytes',
    quick: true,
    make: file('a.png', async () => withSize(await png(), 30_000, 30_000)),
    refused: { code: 'media.too_large', says: /pixels/ },
  },
  {
    name: 'a PNG that is one pixel high and very wide',
    make: file('a.png', async () => withSize(await png(), 2 ** 31 - 1, 1)),
    refused: { code: 'media.too_large', says: /pixels/ },
  },
  {
    name: 'a PNG whose header promises more than its data has',
    make: file('a.png', async () => withSize(await png(), 3000, 3000)),
    refused: { code: 'media.corrupt' },
  },
  {
    name: 'a PNG with a profile that unpacks to 64 MiB',
    quick: true,
    make: file('a.png', async () => withChunks(await png(), zeros('iCCP', 'p\0\0', 64))),
    refused: { code: 'media.too_large', says: /metadata/ },
  },
  {
    name: 'a PNG with a text that unpacks to 64 MiB loses it unread',
    make: file('a.png', async () => withChunks(await png(), zeros('zTXt', 'Comment\0\0', 64))),
    leaves: ['png'],
    removed: ['text'],
    equal: looksLike(scene),
  },
  {
    name: 'a JPEG of a thousand passes',
    make: file('a.jpg', async () => {
      const whole = await picture(scene).jpeg({ progressive: true }).toBuffer()
      const at = whole.lastIndexOf(Buffer.from('ffda', 'hex'))
      const pass = whole.subarray(at, -2)
      return Buffer.concat([
        whole.subarray(0, -2),
        ...Array.from({ length: 1000 }, () => pass),
        whole.subarray(-2),
      ])
    }),
    refused: { code: 'media.too_large', says: /passes/ },
  },
  {
    name: 'a JPEG whose frame promises 65,535 by 65,535',
    make: file('a.jpg', async () => {
      const whole = await jpeg()
      whole.fill(
        0xff,
        whole.indexOf(Buffer.from('ffc0', 'hex')) + 5,
        whole.indexOf(Buffer.from('ffc0', 'hex')) + 9,
      )
      return whole
    }),
    refused: { code: 'media.too_large', says: /pixels/ },
  },
  {
    name: 'a JPEG with EXIF that points to itself and far away',
    make: file('a.jpg', async () => {
      const exif = Buffer.from(
        'MM\0*\0\0\0\x08\0\x02\x88\x25\0\x04\0\0\0\x01\xff\xff\xff\xff\x01\x12\0\x03\0\0\0\x01\0\x63',
        'latin1',
      )
      return withSegments(
        await jpeg(),
        segment(0xe1, Buffer.concat([Buffer.from('Exif\0\0'), exif])),
      )
    }),
    leaves: ['jpg'],
    removed: ['exif', 'gps'],
    equal: looksLike(scene, 6),
  },
  {
    name: 'a JPEG that is only its beginning',
    make: file('a.jpg', () => Buffer.from('ffd8ffe000104a46494600', 'hex')),
    refused: { code: 'media.corrupt', says: /at byte/ },
  },
  {
    name: 'a PNG that is only its signature',
    make: file('a.png', () => Buffer.from('89504e470d0a1a0a', 'hex')),
    refused: { code: 'media.corrupt' },
  },
  {
    name: 'no bytes at all',
    make: file('a.jpg', () => Buffer.alloc(0)),
    refused: { code: 'media.empty' },
  },
  {
    name: 'a HEIC of boxes within boxes',
    make: file('a.heic', () => {
      let inner: Buffer = Buffer.alloc(8)
      for (let i = 0; i < 5000; i++) {
        const head = Buffer.alloc(12)
        head.writeUInt32BE(12 + inner.length)
        head.write('meta', 4, 'latin1')
        inner = Buffer.concat([head, inner])
      }
      return Buffer.concat([box('ftyp', 'heic\0\0\0\0mif1heic'), inner])
    }),
    refused: { code: 'media.corrupt' },
  },
  refusedType(
    'SVG',
    'a.jpg',
    '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    /SVG[\s\S]*PNG/,
  ),
  refusedType(
    'a drawing script',
    'a.png',
    'push graphic-context\nimage over 0,0 0,0 "label:@/etc/passwd"\n',
    /drawing/,
  ),
  refusedType('PDF', 'a.jpg', '%PDF-1.7\n', /PDF[\s\S]*pages/),
  refusedType('PostScript', 'a.jpg', '%!PS-Adobe-3.0\n', /PostScript/),
  refusedType('PSD', 'a.psd', '8BPS\0\x01', /PSD/),
  refusedType('JPEG XL', 'a.jxl', box('JXL ', '\r\n\x87\n'), /JPEG XL/),
  refusedType('JPEG 2000', 'a.jp2', Buffer.from('ff4fff51002f', 'hex'), /JPEG 2000/),
  refusedType('an MNG', 'a.mng', Buffer.from('8a4d4e470d0a1a0a0000', 'hex'), /MNG/),
  refusedType('a JPEG XR', 'a.jxr', Buffer.from('4949bc0108000000', 'hex'), /JPEG XR/),
  refusedType('PCX', 'a.pcx', Buffer.from('0a0501080000000063006300', 'hex'), /PCX/),
  refusedType(
    'a colour profile',
    'a.icc',
    Buffer.concat([Buffer.alloc(36, 1), Buffer.from('acsp'), Buffer.alloc(88)]),
    /colour profile/,
  ),
  refusedType('an icon', 'a.ico', Buffer.from('000001000100', 'hex'), /icon/),
  refusedType('CR3', 'a.cr3', box('ftyp', 'crx \0\0\0\x01crx isom'), /CR3[\s\S]*converter/),
  refusedType('a ZIP archive', 'a.jpg', 'PK\x03\x04', /ZIP[\s\S]*[Uu]npack/),
  refusedType(
    'a tar archive',
    'a.tar',
    Buffer.concat([Buffer.alloc(257, 'a'), Buffer.from('ustar\0')]),
    /tar/,
  ),
  refusedType('a program', 'a.jpg', '\x7fELF', /program/),
  refusedType('a page', 'a.png', '\n\n<!doctype html><img src=x>', /HTML/),
  refusedType('a script', 'a.png', '#!/bin/sh\nrm -rf /\n', /script/),
  refusedType('nothing known', 'a.jpg', Buffer.from('0102030405060708090a', 'hex'), /unknown/),
]
