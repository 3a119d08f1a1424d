/** Proves that the content decides what a source is, and that nothing but a calm regular file is taken. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import { limits } from '@sluice/protocol/limits'
import { collectOutput } from '../sandbox.ts'
import { openSource } from './inspect.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'inspect-'))
after(() => rmSync(folder, { recursive: true }))

function file(name: string, content: string | Buffer): string {
  const at = path.join(folder, name)
  writeFileSync(at, content)
  return at
}

const latin1 = (text: string) => Buffer.from(text, 'latin1')
const jpeg = latin1('\xff\xd8\xff\xe0\0\x10JFIF\0')
/** MPEG-1 layer 3, 128 kbit/s, 44.1 kHz: frames of 417 bytes. */
const mp3 = Buffer.concat(
  Array.from({ length: 2 }, () => Buffer.concat([latin1('\xff\xfb\x90\0'), Buffer.alloc(413)])),
)
const ftyp = (brand: string, more = '') =>
  latin1(`\0\0\0\x18ftyp${brand}\0\0\0\0${more.padEnd(8, '\0')}`)

const accepted: readonly (readonly [string, string, Buffer])[] = [
  ['jpeg', 'a.jpg', jpeg],
  ['png', 'a.png', latin1('\x89PNG\r\n\x1a\n')],
  ['webp', 'a.webp', latin1('RIFF\0\0\0\0WEBPVP8 ')],
  ['wav', 'a.wav', latin1('RIFF\0\0\0\0WAVEfmt ')],
  ['flac', 'a.flac', latin1('fLaC\0\0\0\x22')],
  ['mp3', 'a.mp3', mp3],
  ['mp3', 'tagged.mp3', Buffer.concat([latin1('ID3\x04\0\0\0\0\0\x05aaaaa'), mp3])],
  ['gif', 'a.gif', latin1('GIF89a')],
  ['tiff', 'a.tif', latin1('MM\0*\0\0\0\x08')],
  ['tiff', 'big.tif', latin1('II+\0\x08\0\0\0')],
  ['bmp', 'a.bmp', latin1('BM'.padEnd(14, '\0') + '\x28'.padEnd(40, '\0'))],
  ['heic', 'a.heic', ftyp('heic')],
  ['heic', 'mif1.heif', ftyp('mif1', 'heic')],
  ['avif', 'a.avif', ftyp('avif')],
  ['avif', 'mif1.avif', ftyp('mif1', 'avif')],
  ['avi', 'a.avi', latin1('RIFF\0\0\0\0AVI LIST')],
  ['m4a', 'a.m4a', ftyp('M4A ')],
  ['3gp', 'a.3gp', ftyp('3gp4', 'isom')],
  ['mp4', 'a.mp4', ftyp('isom')],
  ['mp4', 'b.mp4', ftyp('XYZ1', 'mp42')],
  ['mov', 'a.mov', ftyp('qt  ')],
  ['mov', 'old.mov', latin1('\0\0\0\x08wide\0\0\0\x08mdat')],
]

const refused: readonly (readonly [string, string, string | Buffer])[] = [
  ['text', 'text.jpg', 'just some words\n'],
  ['a playlist', 'playlist.mp4', '#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n'],
  ['camera raw (CR3)', 'a.cr3', ftyp('crx ')],
  ['an unknown EBML file', 'a.mkv', latin1('\x1a\x45\xdf\xa3')],
  ['MPEG sound other than MP3 and AAC', 'a.aac', latin1('\xff\xf1\x50\x80\0\0')],
  ['SVG', 'a.svg', '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'],
  ['SVG', 'wide.svg', Buffer.from('\ufeff<svg></svg>', 'utf16le')],
  ['HTML', 'a.jpg', '<!DOCTYPE html><html></html>'],
  ['a script', 'a.jpg', '#!/bin/sh\n'],
  ['a drawing script', 'a.mvg', 'push graphic-context\n'],
  ['PNM', 'a.ppm', latin1('P6\n1 1\n255\n\0\0\0')],
  ['PDF', 'a.pdf', '%PDF-1.7'],
  ['PSD', 'a.psd', '8BPS\0\x01'],
  ['JPEG XL', 'a.jxl', latin1('\xff\x0a')],
  ['JPEG XL or JPEG 2000', 'b.jxl', latin1('\0\0\0\x0cJXL \r\n\x87\n')],
  ['an icon', 'a.ico', latin1('\0\0\x01\0\x01\0')],
  ['camera raw (RAF)', 'a.raf', 'FUJIFILMCCD-RAW '],
  ['a ZIP archive', 'a.zip', latin1('PK\x03\x04')],
  ['of an unknown type', 'letters.bmp', latin1('BM'.padEnd(40, '\x01'))],
  ['a program', 'a.png', latin1('\x7fELF')],
  ['an ID3 tag without sound', 'id3.mp3', latin1('ID3\x04\0\0\0\0\x05\0')],
  ['of an unknown type', 'zero.wav', Buffer.alloc(5000)],
]

describe('openSource', () => {
  for (const [format, name, content] of accepted) {
    it(`takes ${name} for ${format}, whatever it is called`, async () => {
      await using source = await openSource(file(name, content))
      assert.equal(source.format, format)
      assert.equal(source.nameDisagrees, false)
      await using other = await openSource(file('a.bin', content))
      assert.equal(other.format, format)
      assert.equal(other.nameDisagrees, true)
      assert.deepEqual(await collectOutput(other.stream()), content)
      assert.deepEqual(await other.read(1, 3), content.subarray(1, 4))
    })
  }

  for (const [found, name, content] of refused) {
    it(`refuses ${name} and says it is ${found}`, async () => {
      await assert.rejects(openSource(file(name, content)), {
        code: 'media.unsupported',
        message: `the content is ${found}, which is not accepted`,
      })
    })
  }

  it('refuses an empty file and one that is too large for its kind', async () => {
    await assert.rejects(openSource(file('empty.jpg', '')), { code: 'media.empty' })
    const large = file('large.jpg', jpeg)
    truncateSync(large, limits.imageFileBytesMax)
    await (await openSource(large))[Symbol.asyncDispose]()
    truncateSync(large, limits.imageFileBytesMax + 1)
    await assert.rejects(openSource(large), { code: 'media.too_large' })
  })

  it('takes only regular files: no link, no folder, no pipe, nothing absent', async () => {
    const target = file('target.jpg', jpeg)
    const link = path.join(folder, 'link.jpg')
    symlinkSync(target, link)
    const directory = path.join(folder, 'folder.jpg')
    mkdirSync(directory)
    const pipe = path.join(folder, 'pipe.jpg')
    execFileSync('mkfifo', [pipe])
    for (const at of [link, directory, pipe, path.join(folder, 'absent')]) {
      await assert.rejects(openSource(at), { code: 'media.not_a_file' })
    }
  })

  it('says of a name that is not UTF-8 what is wrong with it', async () => {
    const within = mkdtempSync(path.join(folder, 'names-'))
    writeFileSync(Buffer.concat([Buffer.from(`${within}/x`), Buffer.of(0xff)]), jpeg)
    const [name = ''] = readdirSync(within)
    await assert.rejects(openSource(path.join(within, name)), /name is not UTF-8/)
  })

  it('notices that the file grew, shrank, was rewritten or replaced', async () => {
    const changes: ((at: string) => void)[] = [
      (at) => appendFileSync(at, 'more'),
      (at) => truncateSync(at, 4),
      (at) => writeFileSync(at, jpeg),
      (at) => renameSync(file('new.jpg', jpeg), at),
      (at) => rmSync(at),
    ]
    for (const change of changes) {
      const at = file('changing.jpg', jpeg)
      await using source = await openSource(at)
      await source.assertUnchanged()
      change(at)
      await assert.rejects(source.assertUnchanged(), { code: 'media.changed', retry: 'later' })
    }
  })
})
