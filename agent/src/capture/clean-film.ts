/** Lets an encoder's fragmented MP4 through box by box, blanks tags and what names the encoder, and stops at anything else. */
import { SluiceError } from '@sluice/protocol/errors'
import { boxAt, boxesIn, contentRange } from './movie-structure.ts'
import type { Box } from './movie-structure.ts'

/** Index and fragment headers are small; only `mdat` is large, and passes through. */
const headBoxBytesMax = 4 * 1024 ** 2

/** What may stand inside what; everything that is not named is refused. */
const children: Readonly<Record<string, readonly string[]>> = {
  '': ['ftyp', 'moov', 'moof', 'mdat', 'mfra'],
  moov: ['mvhd', 'trak', 'mvex'],
  trak: ['tkhd', 'edts', 'mdia'],
  edts: ['elst'],
  mdia: ['mdhd', 'hdlr', 'minf'],
  minf: ['vmhd', 'smhd', 'dinf', 'stbl'],
  dinf: ['dref'],
  stbl: ['stsd', 'stts', 'ctts', 'stss', 'stsc', 'stsz', 'stco'],
  avc1: ['avcC', 'pasp', 'colr', 'btrt', 'fiel'],
  mp4a: ['esds', 'btrt', 'chan'],
  mvex: ['mehd', 'trex'],
  moof: ['mfhd', 'traf'],
  traf: ['tfhd', 'tfdt', 'trun'],
  mfra: ['tfra', 'mfro'],
}

/** Bytes before the first child box. */
const fieldBytes: Readonly<Record<string, number>> = { avc1: 78, mp4a: 28 }

/**
 * @param encoded What ffmpeg wrote, in pieces of any size.
 * @returns The same film, its encoder's name blanked; complete only if it ends without error.
 * @throws SluiceError `media.not_clean` at the first box that has no place there.
 */
export async function* cleanFilm(encoded: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let pending: Buffer = Buffer.alloc(0)
  let mediaDataLeft = 0
  let order = 0
  for await (const piece of encoded) {
    let rest = piece
    if (mediaDataLeft > 0) {
      const passed = rest.subarray(0, mediaDataLeft)
      mediaDataLeft -= passed.length
      yield passed
      rest = rest.subarray(passed.length)
    }
    pending = pending.length === 0 ? rest : Buffer.concat([pending, rest])
    while (mediaDataLeft === 0 && pending.length >= 16) {
      const box = headOf(pending)
      const next = requireOrder(order, box)
      const needed = box.type === 'mdat' ? box.headerBytes : box.bytes
      if (needed > headBoxBytesMax) throw notClean(box.type)
      if (pending.length < needed) break
      order = next
      const head = Buffer.from(pending.subarray(0, needed))
      pending = pending.subarray(needed)
      if (box.type !== 'mdat') {
        cleanBox(head, { ...box, offset: 0 })
        yield head
        continue
      }
      yield head
      mediaDataLeft = box.bytes - needed
      const passed = pending.subarray(0, mediaDataLeft)
      refuseEncoderName(passed)
      mediaDataLeft -= passed.length
      pending = pending.subarray(passed.length)
      if (passed.length > 0) yield passed
    }
  }
  if (pending.length > 0 || mediaDataLeft > 0 || order < 2) throw notClean('an unfinished box')
}

function headOf(bytes: Buffer): Box {
  const box = boxAt(bytes, 0, Number.MAX_SAFE_INTEGER)
  if (bytes.readUInt32BE(0) === 0) throw notClean(box.type)
  return box
}

/** `ftyp`, then `moov`, then fragments. */
function requireOrder(order: number, box: Box): number {
  if (order === 0 && box.type === 'ftyp') return 1
  if (order === 1 && box.type === 'moov') return 2
  if (order === 2 && ['moof', 'mdat', 'mfra'].includes(box.type)) return 2
  throw notClean(box.type)
}

function cleanBox(bytes: Buffer, box: Box): void {
  const allowed = children[box.type]
  if (allowed === undefined) {
    cleanLeaf(bytes, box)
    return
  }
  const [start, end] = contentRange(box)
  const from = start + (fieldBytes[box.type] ?? 0)
  if (from > end) throw notClean(box.type)
  if (box.type === 'avc1') blankEncoderName(bytes, start)
  for (const child of boxesIn(bytes, [from, end])) {
    // ffmpeg writes an empty list of tags even when there are none.
    if (box.type === 'moov' && child.type === 'udta') blankBox(bytes, child)
    else if (allowed.includes(child.type)) cleanBox(bytes, child)
    else throw notClean(child.type)
  }
}

function cleanLeaf(bytes: Buffer, box: Box): void {
  const [start, end] = contentRange(box)
  switch (box.type) {
    case 'mvhd':
    case 'tkhd':
    case 'mdhd': {
      const times = bytes.subarray(start + 4, start + (bytes[start] === 1 ? 20 : 12))
      if (times.some((byte) => byte !== 0)) throw notClean('a date')
      return
    }
    case 'hdlr':
      // Version, two reserved fields and the type take 24 bytes; the rest is a name.
      if (bytes.subarray(start + 24, end).some((byte) => byte !== 0)) throw notClean('a name')
      return
    case 'dref':
      // One reference, 12 bytes long, so without a URL, to this file itself.
      if (end - start !== 20 || bytes.readUInt32BE(start + 16) !== 1) throw notClean('a reference')
      return
    case 'colr':
      if (bytes.toString('latin1', start, start + 4) !== 'nclx') throw notClean('a colour profile')
      return
    case 'stsd':
      for (const entry of boxesIn(bytes, [start + 8, end])) {
        if (entry.type !== 'avc1' && entry.type !== 'mp4a') throw notClean(entry.type)
        cleanBox(bytes, entry)
      }
  }
}

/** @see ISO/IEC 14496-12, 12.1.3: `compressorname`, 32 bytes at 42 of a VisualSampleEntry. */
function blankEncoderName(bytes: Buffer, start: number): void {
  bytes.fill(0, start + 42, start + 74)
}

/** Turns a box into free space of the same size, so that no offset changes. */
function blankBox(bytes: Buffer, box: Box): void {
  bytes.fill(0, box.offset + box.headerBytes, box.offset + box.bytes)
  bytes.write('free', box.offset + 4, 'latin1')
}

/** x264 signs its first frame and ffmpeg's AAC its first packet unless told not to. */
function refuseEncoderName(mediaData: Buffer): void {
  if (mediaData.includes('x264 - core') || /Lavc\d\d\./.test(mediaData.toString('latin1'))) {
    throw notClean("its encoder's name")
  }
}

function notClean(what: string): SluiceError {
  return new SluiceError('media.not_clean', `the normalised film still holds ${what}`, {
    hint: 'Nothing was sealed. This is a fault of Sluice: please report it with the versions in use.',
  })
}
