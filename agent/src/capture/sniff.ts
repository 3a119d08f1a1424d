/** Recognises a format by its first bytes, and names what it refuses; it never looks at a file's name. */

import { exportAgain, foreignBrand, foreignMagic, foreignText, intoFlac } from './foreign.ts'
import type { Foreign } from './foreign.ts'
import { findFrames, findPackets, readDocType } from './sniff-av.ts'

const pictureFormats = ['jpeg', 'png', 'webp', 'gif', 'tiff', 'avif', 'heic', 'bmp'] as const
export type PictureFormat = (typeof pictureFormats)[number]
export type FilmFormat = 'mp4' | 'mov' | '3gp' | 'mkv' | 'webm' | 'avi' | 'ts'
export type SoundFormat = 'wav' | 'mp3' | 'aac' | 'm4a' | 'flac' | 'ogg' | 'aiff' | 'amr'
export type SourceFormat = PictureFormat | FilmFormat | SoundFormat

export function isPictureFormat(format: SourceFormat): format is PictureFormat {
  return pictureFormats.some((known) => known === format)
}

/** What was found; `instead` is what its owner can do when it is not let through. */
export type Found = { supported: true; format: SourceFormat } | ({ supported: false } & Foreign)

/** What is to be recognised: its size, and a way to read a range within it. */
export type Sniffable = {
  bytes: number
  read: (offset: number, length: number) => Promise<Buffer>
}

const headBytes = 4096

/** Players of streams fetch films like that, piece by piece. */
const joinPieces =
  'Join its pieces in order, the initial one first: cat init.mp4 1.m4s 2.m4s > film.mp4'

/** Finds the format from the head, and for tagged sound from what follows the tags. */
export async function sniff(source: Sniffable): Promise<Found> {
  const start = await id3End(source)
  if (start === 0) {
    const head = await source.read(0, Math.min(headBytes, source.bytes))
    return sniffHead(head) ?? (await sniffFrames(source, 0)) ?? unknown(head)
  }
  if (start >= source.bytes) return refused('an ID3 tag without sound')
  const behind = await source.read(start, Math.min(headBytes, source.bytes - start))
  const sound = sniffHead(behind)
  if (sound?.supported === true && taggedFormats.has(sound.format)) return sound
  const found = await sniffFrames(source, start)
  if (found !== undefined) return found
  if (text(behind, 0, 3) === 'TAG' || behind.every((byte) => byte === 0)) {
    return refused('an ID3 tag without sound')
  }
  const named = foreignMagic(behind) ?? layered(behind)
  return named === undefined
    ? refused('an ID3 tag before something that is no sound')
    : { supported: false, ...named }
}

/** Sounds that some programs put a tag before; others have no room for one. */
const taggedFormats = new Set<SourceFormat>(['flac', 'wav', 'aiff', 'ogg', 'amr'])

/** Tags may follow one another; more of them than this are no honest file. */
const tagsMax = 8

/** Offset behind all tags of ID3v2 and APE at the beginning. */
export async function id3End(source: Sniffable): Promise<number> {
  let at = 0
  for (let tag = 0; tag < tagsMax && at < source.bytes; tag++) {
    const head = await source.read(at, Math.min(32, source.bytes - at))
    const bytes = id3Bytes(head) || apeBytes(head)
    if (bytes === 0) break
    at += bytes
  }
  return at
}

/**
 * Bytes of the APE tag that begins with this header, 0 without one.
 *
 * @see wiki.hydrogenaud.io, "APE Tags Header": the size has all but the header.
 */
export function apeBytes(head: Buffer): number {
  if (head.length < 32 || text(head, 0, 8) !== 'APETAGEX') return 0
  return 32 + head.readUInt32LE(12)
}

/**
 * Bytes of the ID3v2 tag at the beginning, 0 without one.
 *
 * @see id3.org, "ID3 tag version 2.4.0", section 3.1: size in four 7-bit bytes, footer flag.
 */
export function id3Bytes(head: Buffer): number {
  if (head.length < 10 || text(head, 0, 3) !== 'ID3') return 0
  const size = head.subarray(6, 10)
  if (size.some((byte) => byte > 0x7f)) return 0
  const footer = (head.readUInt8(5) & 0x10) !== 0 ? 10 : 0
  return 10 + size.reduce((total, byte) => total * 128 + byte, 0) + footer
}

function sniffHead(head: Buffer): Found | undefined {
  if (starts(head, 'ffd8ff')) return accepted('jpeg')
  if (starts(head, '89504e470d0a1a0a')) return accepted('png')
  if (text(head, 0, 4) === 'fLaC') return accepted('flac')
  if (/^GIF8[79]a$/.test(text(head, 0, 6))) return accepted('gif')
  if (isTiff(head)) return accepted('tiff')
  if (isBmp(head)) return accepted('bmp')
  if (['RIFF', 'RF64', 'BW64', 'RIFX'].includes(text(head, 0, 4))) return sniffRiff(head)
  if (text(head, 0, 4) === 'FORM') return sniffForm(head)
  if (starts(head, '1a45dfa3')) return sniffMatroska(head)
  if (text(head, 0, 4) === 'OggS') return accepted('ogg')
  if (/^#!AMR(?:-WB)?\n/.test(text(head, 0, 9))) return accepted('amr')
  const box = sniffBoxes(head)
  if (box !== undefined) return box
  const known = foreignMagic(head)
  if (known !== undefined) return { supported: false, ...known }
  return findPackets(head) === undefined ? undefined : accepted('ts')
}

/** Text is told first: nothing behind it makes it a sound. */
async function sniffFrames(source: Sniffable, start: number): Promise<Found | undefined> {
  const head = await source.read(start, Math.min(64, source.bytes - start))
  if (foreignText(head) !== undefined) return undefined
  const found = await findFrames(source, start)
  return found === undefined ? undefined : accepted(found.format)
}

function unknown(head: Buffer): Found {
  const readable = foreignText(head)
  if (readable !== undefined) return { supported: false, ...readable }
  const named = layered(head)
  return named === undefined ? refused('of an unknown type') : { supported: false, ...named }
}

/** @see ISO/IEC 11172-3, 2.4.1.3: layer and bit rate; ISO/IEC 14496-3, 1.7.2: the sync word of LOAS. */
function layered(head: Buffer): Foreign | undefined {
  const [first = 0, second = 0, third = 0] = head
  if (first === 0x56 && second >= 0xe0) return { name: 'AAC in LATM', instead: intoFlac }
  if (first !== 0xff || second < 0xe0) return undefined
  const layer = 4 - ((second >> 1) & 3)
  if (layer === 3 && third >> 4 === 0) {
    return { name: 'an MP3 of free bit rate', instead: 'Decode it: lame --decode FILE FILE.wav' }
  }
  if (layer < 3) return { name: `MPEG sound of layer ${'I'.repeat(layer)}`, instead: intoFlac }
  return { name: 'MPEG sound other than MP3 and AAC', instead: intoFlac }
}

/** @see EA IFF 85, and Apple, "Audio Interchange File Format". */
function sniffForm(head: Buffer): Found {
  const form = text(head, 8, 12)
  return form === 'AIFF' || form === 'AIFC' ? accepted('aiff') : refused('an unknown IFF file')
}

function sniffMatroska(head: Buffer): Found {
  const type = readDocType(head)
  if (type === 'webm') return accepted('webm')
  return type === 'matroska' ? accepted('mkv') : refused('an unknown EBML file')
}

function sniffRiff(head: Buffer): Found {
  const form = text(head, 8, 12)
  if (form === 'WAVE') return accepted('wav')
  if (text(head, 0, 4) !== 'RIFF') return refused('an unknown RIFF file')
  if (form === 'QLCM') return refused('a QCP of a telephone', intoFlac)
  if (form === 'RMID') return refused('MIDI', 'Render it to sound first.')
  if (form === 'WEBP') return accepted('webp')
  return form === 'AVI ' ? accepted('avi') : refused('an unknown RIFF file')
}

/**
 * TIFF and BigTIFF. Camera raw files that are TIFF by magic are told apart by their tags
 * (`tiff-structure.ts`), as one look at the head does not show them.
 *
 * @see TIFF 6.0, section 2; BigTIFF has 43 in place of 42.
 */
function isTiff(head: Buffer): boolean {
  return ['49492a00', '4d4d002a', '49492b00', '4d4d002b'].some((magic) => starts(head, magic))
}

/** Two letters are no evidence; the size of the header behind them is one of few. */
function isBmp(head: Buffer): boolean {
  if (text(head, 0, 2) !== 'BM' || head.length < 26) return false
  return bmpHeaderBytes.has(head.readUInt32LE(14))
}

/** OS/2 1 and 2, Windows 3, with masks, with alpha mask, version 4, version 5. */
const bmpHeaderBytes = new Set([12, 64, 16, 40, 52, 56, 108, 124])

const heicBrands = new Set(['heic', 'heix', 'heim', 'heis', 'hevc', 'hevx', 'hevm', 'hevs'])
const avifBrands = new Set(['avif', 'avis'])
/** Structural brands of HEIF, which leave the codec to the other brands. */
const heifBrands = new Set(['mif1', 'mif2', 'mif3', 'msf1', 'miaf', 'MiHE', 'MiHB', 'MiHA', '1pic'])

/** @see ISO/IEC 23008-12, annex B and section 10; AV1 Image File Format, section 8. */
function sniffStill(head: Buffer): Found | undefined {
  const end = Math.min(head.readUInt32BE(0), head.length)
  const major = text(head, 8, 12)
  if (avifBrands.has(major)) return accepted('avif')
  if (heicBrands.has(major)) return accepted('heic')
  if (!heifBrands.has(major)) return undefined
  for (let at = 16; at + 4 <= end; at += 4) {
    if (avifBrands.has(text(head, at, at + 4))) return accepted('avif')
  }
  return accepted('heic')
}

/** @see ISO/IEC 14496-12, 4.2 and 4.3: size, type, and the brands of `ftyp`. */
function sniffBoxes(head: Buffer): Found | undefined {
  const type = text(head, 4, 8)
  if (type === 'JXL ' || type === 'jP  ') {
    return refused('JPEG XL or JPEG 2000', 'Export the picture as JPEG, PNG or TIFF first.')
  }
  // QuickTime before 2001 had no `ftyp`.
  if (['moov', 'mdat', 'wide', 'pnot'].includes(type)) return accepted('mov')
  if (['free', 'skip'].includes(type) && head.readUInt32BE(0) >= 8) return accepted('mov')
  if (['styp', 'moof', 'sidx', 'emsg', 'prft'].includes(type)) {
    return refused('a piece of a film without its beginning', joinPieces)
  }
  if (type !== 'ftyp') return undefined
  const major = text(head, 8, 12)
  const other = foreignBrand(major)
  if (other !== undefined) return { supported: false, ...other }
  const still = sniffStill(head)
  if (still !== undefined) return still
  if (major === 'qt  ') return accepted('mov')
  if (/^M4[AB] $/.test(major)) return accepted('m4a')
  if (/^3g[0-9a-z]{2}$/.test(major)) return accepted('3gp')
  // Cameras write brands of their own: whether it is a film, its index says.
  return accepted('mp4')
}

function accepted(format: SourceFormat): Found {
  return { supported: true, format }
}

function refused(name: string, instead: string = exportAgain): Found {
  return { supported: false, name, instead }
}

function text(bytes: Buffer, start: number, end: number): string {
  return bytes.toString('latin1', start, end)
}

function starts(head: Buffer, magic: string): boolean {
  return head.toString('hex', 0, magic.length / 2) === magic
}
