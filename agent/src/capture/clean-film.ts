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
  stbl: ['stsd', 'stts', 'ctts', 'stss', 'stsc', 'stsz', 'stco', 'sdtp'],
  avc1: ['avcC', 'pasp', 'colr', 'btrt', 'fiel'],
  hvc1: ['hvcC', 'pasp', 'colr', 'btrt', 'fiel'],
  mp4a: ['esds', 'btrt', 'chan'],
  fLaC: ['dfLa', 'btrt', 'chan'],
  mvex: ['mehd', 'trex'],
  moof: ['mfhd', 'traf'],
  traf: ['tfhd', 'tfdt', 'trun'],
  mfra: ['tfra', 'mfro'],
}

/**
 * What ffmpeg hands on from a source, whether its pictures are copied or not, and no option holds back: on
 * which screen a film was made, how bright it gets, where it is to be looked at from, by which eye.
 */
const handedOn = new Set([
  'mdcv',
  'clli',
  'cclv',
  'amve',
  'st3d',
  'sv3d',
  'vexu',
  'dvcC',
  'dvvC',
  'dvwC',
])

/** Bytes before the first child box. */
const fieldBytes: Readonly<Record<string, number>> = { avc1: 78, hvc1: 78, mp4a: 28, fLaC: 28 }

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
        yield box.type === 'moov' ? withoutForeign(head) : head
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
  if (isPicture(box)) blankEncoderName(bytes, start)
  for (const child of boxesIn(bytes, [from, end])) {
    // ffmpeg writes an empty list of tags even when there are none.
    if (box.type === 'moov' && child.type === 'udta') blankBox(bytes, child)
    else if (allowed.includes(child.type)) cleanBox(bytes, child)
    else if (isPicture(box) && handedOn.has(child.type)) continue
    else throw notClean(child.type)
  }
}

function isPicture({ type }: Box): boolean {
  return type === 'avc1' || type === 'hvc1'
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
        if (fieldBytes[entry.type] === undefined) throw notClean(entry.type)
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

/**
 * Encoders of HEVC sign in the configuration too, beside the parameter sets. What is taken out there, and
 * what was handed on, becomes free space at the end of the index, so that no offset changes.
 */
function withoutForeign(index: Buffer): Buffer {
  const rest = rebuilt(index, boxAt(index, 0, index.length))
  const freed = index.length - rest.length
  if (freed === 0) return index
  if (freed < 8) throw notClean('a unit of no size')
  const free = Buffer.alloc(freed)
  free.writeUInt32BE(freed, 0)
  free.write('free', 4, 'latin1')
  rest.writeUInt32BE(index.length, 0)
  return Buffer.concat([rest, free])
}

/** Where the description of pictures lies. */
const wayToPictures = new Set(['moov', 'trak', 'mdia', 'minf', 'stbl', 'stsd', 'avc1', 'hvc1'])

function rebuilt(bytes: Buffer, box: Box): Buffer {
  const [start, end] = contentRange(box)
  let content: Buffer
  if (box.type === 'hvcC') content = parameterSets(bytes.subarray(start, end))
  else if (wayToPictures.has(box.type)) {
    const from = start + (box.type === 'stsd' ? 8 : (fieldBytes[box.type] ?? 0))
    const parts = boxesIn(bytes, [from, end])
      .filter((child) => !isPicture(box) || !handedOn.has(child.type))
      .map((child) => rebuilt(bytes, child))
    content = Buffer.concat([bytes.subarray(start, from), ...parts])
  } else return bytes.subarray(box.offset, end)
  const head = Buffer.from(bytes.subarray(box.offset, box.offset + 8))
  head.writeUInt32BE(8 + content.length, 0)
  return Buffer.concat([head, content])
}

/** @see ISO/IEC 14496-15, 8.3.3.1: 22 bytes, the number of arrays, and each with its type and units. */
function parameterSets(configuration: Buffer): Buffer {
  if (configuration.length < 23) throw notClean('a short configuration')
  const kept: Buffer[] = []
  let at = 23
  for (let array = 0; array < configuration.readUInt8(22); array++) {
    const from = at
    if (at + 3 > configuration.length) throw notClean('a short configuration')
    const units = configuration.readUInt16BE(at + 1)
    at += 3
    for (let unit = 0; unit < units; unit++) {
      if (at + 2 > configuration.length) throw notClean('a short configuration')
      at += 2 + configuration.readUInt16BE(at)
    }
    if (at > configuration.length) throw notClean('a short configuration')
    const type = configuration.readUInt8(from) & 63
    if (type >= 32 && type <= 34) kept.push(configuration.subarray(from, at))
  }
  const head = Buffer.from(configuration.subarray(0, 23))
  head.writeUInt8(kept.length, 22)
  return Buffer.concat([head, ...kept])
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
