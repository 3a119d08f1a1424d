/** Reads the directories of a TIFF or BigTIFF: its pages, and whether it is a camera's raw file in disguise. */
import { limits } from '@sluice/protocol/limits'
import { DamagedPicture, TooLargePicture, UnsupportedPicture } from './damaged-picture.ts'
import { orientationOf, requireSizes } from './picture-facts.ts'
import type { LabForm, PictureFacts, ReadOptions, Size } from './picture-facts.ts'
import { canUnpack, rasterBytes, readRaster } from './tiff-raster.ts'
import type { Raster, RasterForm } from './tiff-raster.ts'

type Entry = { tag: number; type: number; count: number; valueAt: number }
type Directory = { at: number; entries: Map<number, Entry>; next: number; nextAt: number }

/** A number that a decoder is to read otherwise than the file has it. */
type Patch = { at: number; bytes: 2 | 4 | 8; value: number }

/** How numbers lie in this file. */
type Layout = {
  bytes: Buffer
  little: boolean
  /** BigTIFF: offsets and counts of 64 bits. */
  big: boolean
  u16: (at: number) => number
  u32: (at: number) => number
  /** An offset or count in the width of this file; Infinity beyond what a number holds exactly. */
  wide: (at: number) => number
}

const tags = {
  subfileType: 254,
  oldSubfileType: 255,
  width: 256,
  height: 257,
  bits: 258,
  compression: 259,
  photometric: 262,
  fillOrder: 266,
  stripOffsets: 273,
  orientation: 274,
  samples: 277,
  rowsPerStrip: 278,
  stripBytes: 279,
  planar: 284,
  predictor: 317,
  colours: 320,
  tileWidth: 322,
  tileHeight: 323,
  tileOffsets: 324,
  tileBytes: 325,
  subDirectories: 330,
  inks: 332,
  extraSamples: 338,
  sampleFormat: 339,
  icc: 34675,
  dngVersion: 50706,
} as const

/** What the pixels need; all else is metadata and named by its kind. */
const structural = new Set([
  ...[254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281],
  ...[282, 283, 284, 288, 289, 290, 291, 292, 293, 296, 301, 317, 318, 319, 320, 321, 322, 323],
  ...[324, 325, 332, 334, 336, 338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 519, 520],
  ...[521, 529, 530, 531, 532, 559],
])

const kinds = new Map([
  [269, 'text'],
  [270, 'text'],
  [271, 'camera'],
  [272, 'camera'],
  [285, 'text'],
  [305, 'software'],
  [306, 'time'],
  [315, 'author'],
  [316, 'software'],
  [330, 'previews'],
  [700, 'xmp'],
  [33432, 'author'],
  [33550, 'gps'],
  [33723, 'iptc'],
  [33922, 'gps'],
  [34264, 'gps'],
  [34377, 'iptc'],
  [34665, 'exif'],
  [34675, 'icc'],
  [34735, 'gps'],
  [34736, 'gps'],
  [34737, 'gps'],
  [34853, 'gps'],
])

/** @see TIFF 6.0, section 2, and the tags of TIFF/EP and DNG: colour filter array, linear raw. */
const rawPhotometrics = new Set([32_803, 34_892])

/**
 * @throws DamagedPicture, TooLargePicture, UnsupportedPicture.
 * @see TIFF 6.0; BigTIFF (AWare Systems); TIFF Technical Note 1 (sub-directories); DNG 1.7.
 */
export function readTiff(bytes: Buffer, options: ReadOptions): PictureFacts {
  const layout = layoutOf(bytes)
  const patches: Patch[] = []
  const directories = walk(layout, patches)
  if (isCameraRaw(layout, directories)) throw new UnsupportedPicture('camera-raw')
  const pages = directories.filter((directory) => !isReduced(layout, directory))
  // Some writers call reduced whatever they have made smaller once: what there is no larger one of is a page.
  const whole = pages.length === 0 ? directories : pages
  const [first] = whole
  if (first === undefined) throw new DamagedPicture(8)
  const damaged = whole.some((directory) => {
    const mended = trueLength(layout, directory)
    if (mended !== undefined) patches.push(mended)
    return mended === undefined && !isComplete(layout, directory)
  })
  const damagedAt = damaged ? bytes.length : undefined
  if (damagedAt !== undefined && !options.salvage) throw new DamagedPicture(damagedAt)
  const sizes = whole.map((directory) => sizeOf(layout, directory))
  requireSizes(sizes, 'pages')
  for (const directory of whole) requireDecodable(layout, directory)
  const removed = new Set<string>()
  for (const { entries } of directories) {
    for (const tag of entries.keys())
      if (!structural.has(tag)) removed.add(kinds.get(tag) ?? 'other')
  }
  if (directories.length > whole.length) removed.add('thumbnail')
  if (whole.some((directory) => hasMore(layout, directory))) removed.add('auxiliary')
  const wanted = options.pages === 'all' ? whole : [first]
  if (whole.length > wanted.length) removed.add('further-pictures')
  const icc = contentOf(layout, first.entries.get(tags.icc))
  const lab = labForms.get(numberOf(layout, first, tags.photometric) ?? 0)
  if (lab !== undefined) patches.push(...asRgb(wanted))
  const { decodable, damagedPieceAt } = arranged(layout, wanted, { directories, patches })
  const brokenAt = damagedAt ?? damagedPieceAt
  if (brokenAt !== undefined && !options.salvage) throw new DamagedPicture(brokenAt)
  return {
    pages: wanted.map((directory, i) => ({
      index: directories.indexOf(directory),
      orientation: orientationOf(numberOf(layout, directory, tags.orientation) ?? 1),
      ...(sizes[whole.indexOf(directory)] ?? sizes[i] ?? sizeOf(layout, directory)),
    })),
    animated: false,
    removed,
    codedAt:
      numberOf(layout, first, tags.stripOffsets) ?? numberOf(layout, first, tags.tileOffsets) ?? 8,
    decodable,
    ...(lab === undefined ? {} : { lab }),
    ...(icc === undefined ? {} : { icc }),
    ...(brokenAt === undefined ? {} : { damagedAt: brokenAt }),
  }
}

/**
 * The file for the decoder: what it would read otherwise or not at all, unpacked behind its end, in a directory
 * that takes the place of the page's own.
 */
function arranged(
  layout: Layout,
  wanted: readonly Directory[],
  file: { directories: readonly Directory[]; patches: readonly Patch[] },
): { decodable: Buffer; damagedPieceAt?: number } {
  const forms = wanted.flatMap((directory) => {
    const form = rasterForm(layout, directory)
    return form === undefined ? [] : [{ directory, form }]
  })
  const sum = forms.reduce((bytes, { form }) => bytes + rasterBytes(form), 0)
  if (sum > rasterBytesMax) throw new TooLargePicture('memory')
  const copy = patched(layout, file.patches)
  const parts = [copy]
  let end = copy.length
  let damagedPieceAt: number | undefined
  const moved: Patch[] = []
  for (const { directory, form } of forms) {
    const raster = readRaster(form)
    damagedPieceAt ??= raster.damagedAt
    const at = end + (end % 2)
    const from = { ...layout, bytes: copy }
    const { part, directoryAt, nextAt } = rasterDirectory(from, { directory, form, raster, at })
    parts.push(Buffer.alloc(end % 2), part)
    end = at + part.length
    const width = layout.big ? 8 : 4
    const before = file.directories[file.directories.indexOf(directory) - 1]
    moved.push({ at: before?.nextAt ?? width, bytes: width, value: directoryAt })
    // The one behind it is found from the new one.
    directory.nextAt = nextAt
  }
  if (forms.length === 0) return { decodable: copy }
  const decodable = patched({ ...layout, bytes: Buffer.concat(parts) }, moved)
  return { decodable, ...(damagedPieceAt === undefined ? {} : { damagedPieceAt }) }
}

/** The decoder needs as much again, and has a gigabyte. */
const rasterBytesMax = 250_000_000

/** @returns undefined for what decoders know: samples side by side, of 1 to 16 bits in powers of two. */
function rasterForm(layout: Layout, directory: Directory): RasterForm | undefined {
  const { entries } = directory
  const number = (tag: number) => numberOf(layout, directory, tag)
  const samples = number(tags.samples) ?? 1
  const [bits = 1, ...others] = numbersOf(layout, entries.get(tags.bits), samples)
  const planes = number(tags.planar) === 2 && samples > 1
  const photometric = number(tags.photometric) ?? 1
  const kept = seenSamples(layout, directory, photometric)
  const odd = ![1, 2, 4, 8, 16].includes(bits) || (bits < 8 && samples > 1)
  const compression = number(tags.compression) ?? 1
  // Those of three planes in JPEG the decoder puts together by itself.
  if (!odd && kept === samples && (!planes || compression === 7)) return undefined
  // Indices of 4 bits beside alpha the decoder looks up by itself.
  if (photometric === 3 && kept === samples && !planes && [1, 2, 4].includes(bits)) {
    return undefined
  }
  const differences = number(tags.predictor) === 2
  if (
    others.some((other) => other !== bits) ||
    photometric === 6 ||
    (photometric === 3 && bits !== 8 && bits !== 16) ||
    !canUnpack({ compression, bits, differences })
  ) {
    throw new UnsupportedPicture(odd ? 'odd-samples' : 'compression')
  }
  const size = sizeOf(layout, directory)
  const tiled = entries.has(tags.tileOffsets)
  const offsets = entries.get(tiled ? tags.tileOffsets : tags.stripOffsets)
  const lengths = entries.get(tiled ? tags.tileBytes : tags.stripBytes)
  const sizes = [...numbersOf(layout, lengths, piecesMax)]
  const pieces = [...numbersOf(layout, offsets, piecesMax)].map((at, i) => ({
    at,
    bytes: sizes[i] ?? layout.bytes.length - at,
  }))
  const pieceWidth = tiled ? (number(tags.tileWidth) ?? 0) : size.widthPixels
  const rows = tiled ? number(tags.tileHeight) : number(tags.rowsPerStrip)
  const pieceHeight = tiled ? (rows ?? 0) : Math.min(rows ?? size.heightPixels, size.heightPixels)
  const rowsInFile = pieceWidth > 0 && pieceHeight > 0
  // A tile larger than any page is no tile.
  if (!rowsInFile || pieceWidth * pieceHeight > limits.imagePixelsMax) {
    throw new DamagedPicture(directory.at)
  }
  return {
    ...size,
    bytes: layout.bytes,
    little: layout.little,
    ...{ samples, kept, bits, compression, differences, planes, pieces, pieceWidth, pieceHeight },
    reversed: number(tags.fillOrder) === 2,
    scaled: photometric !== 3,
  }
}

/** Samples of a pixel that are its colour, by the photometric interpretation. */
const colourSamples = new Map([
  [2, 3],
  [5, 4],
  [6, 3],
  [8, 3],
  [9, 3],
])

/**
 * Samples that are seen: the colour, and the alpha behind it. What else a writer keeps beside them, near
 * infrared or somebody's selection, is none, and decoders take it for alpha.
 *
 * @see TIFF 6.0, section 18: `ExtraSamples`, 0 unspecified, 1 and 2 alpha; a single one that nothing is
 *   said of is alpha for most.
 */
function seenSamples(layout: Layout, directory: Directory, photometric: number): number {
  const samples = numberOf(layout, directory, tags.samples) ?? 1
  const colours = colourSamples.get(photometric) ?? 1
  if (samples <= colours) return samples
  const extra = [...numbersOf(layout, directory.entries.get(tags.extraSamples), samples - colours)]
  const alpha = extra.findIndex((kind) => kind !== 0)
  if (alpha > 0) throw new UnsupportedPicture('many-channels')
  if (extra.length === 0) return samples - colours === 1 ? samples : colours
  return alpha === 0 ? colours + 1 : colours
}

function hasMore(layout: Layout, directory: Directory): boolean {
  const photometric = numberOf(layout, directory, tags.photometric) ?? 1
  const samples = numberOf(layout, directory, tags.samples) ?? 1
  return seenSamples(layout, directory, photometric) < samples
}

/** What of a directory describes the samples themselves, and not how they lie. */
const described = [tags.width, tags.height, tags.photometric, tags.colours, tags.inks]

/** One strip without compression, and behind it the directory that describes it. */
function rasterDirectory(
  layout: Layout,
  page: { directory: Directory; form: RasterForm; raster: Raster; at: number },
): { part: Buffer; directoryAt: number; nextAt: number } {
  const { bytes, big, little } = layout
  const { directory, form, raster, at } = page
  const offsetBytes = big ? 8 : 4
  const headBytes = 4 + offsetBytes
  const number = (value: number, width: number) => {
    const field = Buffer.alloc(width)
    // No offset here needs the upper half of eight bytes.
    const low = width === 8 && !little ? 4 : 0
    if (little) field.writeUIntLE(value, low, Math.min(width, 4))
    else field.writeUIntBE(value, low, Math.min(width, 4))
    return field
  }
  const entry = (tag: number, type: 3 | 4, values: readonly number[]) => {
    const content = Buffer.concat(values.map((value) => number(value, type === 3 ? 2 : 4)))
    const inline = Buffer.alloc(offsetBytes)
    content.copy(inline)
    const pointer = content.length > offsetBytes ? number(bitsAt, offsetBytes) : inline
    const head = [number(tag, 2), number(type, 2), number(values.length, offsetBytes)]
    return [tag, Buffer.concat([...head, pointer])] as const
  }
  const bits = Array.from({ length: form.kept }, () => raster.bits)
  const bitsBlock = Buffer.concat(bits.map((value) => number(value, 2)))
  const bitsAt = at + raster.samples.length + (raster.samples.length % 2)
  const colours = colourSamples.get(numberOf(layout, directory, tags.photometric) ?? 1) ?? 1
  const [kind = 2] = numbersOf(layout, directory.entries.get(tags.extraSamples), 1)
  const alpha = form.kept > colours ? [entry(tags.extraSamples, 3, [kind])] : []
  const rows = new Map([
    ...[...described, tags.icc].flatMap((tag) => {
      const found = directory.entries.get(tag)
      if (found === undefined) return []
      const start = found.valueAt - headBytes
      return [[tag, bytes.subarray(start, start + headBytes + offsetBytes)] as const]
    }),
    entry(tags.bits, 3, bits),
    entry(tags.compression, 3, [1]),
    entry(tags.stripOffsets, 4, [at]),
    entry(tags.samples, 3, [form.kept]),
    ...alpha,
    entry(tags.rowsPerStrip, 4, [form.heightPixels]),
    entry(tags.stripBytes, 4, [raster.samples.length]),
    entry(tags.planar, 3, [1]),
  ])
  const sorted = [...rows].toSorted(([one], [other]) => one - other).map(([, row]) => row)
  const directoryAt = bitsAt + bitsBlock.length
  const part = Buffer.concat([
    raster.samples,
    Buffer.alloc(raster.samples.length % 2),
    bitsBlock,
    number(sorted.length, big ? 8 : 2),
    ...sorted,
    number(directory.next, offsetBytes),
  ])
  return { part, directoryAt, nextAt: at + part.length - offsetBytes }
}

const labForms = new Map<number, LabForm>([
  [8, 'signed'],
  [9, 'offset'],
])

/** Makes the decoder hand out Lab samples as they are; the pages of one file are of one kind. */
function asRgb(directories: readonly Directory[]): Patch[] {
  return directories.flatMap(({ entries }): Patch[] => {
    const entry = entries.get(tags.photometric)
    return entry === undefined ? [] : [{ at: entry.valueAt, bytes: 2, value: 2 }]
  })
}

function patched({ bytes, little }: Layout, patches: readonly Patch[]): Buffer {
  if (patches.length === 0) return bytes
  const copy = Buffer.from(bytes)
  for (const { at, bytes: width, value } of patches) {
    const low = width === 8 ? (little ? at : at + 4) : at
    if (width === 8) copy.fill(0, at, at + 8)
    if (little) copy.writeUIntLE(value, low, width === 2 ? 2 : 4)
    else copy.writeUIntBE(value, low, width === 2 ? 2 : 4)
  }
  return copy
}

function layoutOf(bytes: Buffer): Layout {
  if (bytes.length < 16) throw new DamagedPicture(bytes.length)
  const little = bytes.toString('latin1', 0, 2) === 'II'
  const need = (at: number, length: number) => {
    if (at < 0 || at + length > bytes.length) throw new DamagedPicture(bytes.length)
  }
  const u16 = (at: number) => {
    need(at, 2)
    return little ? bytes.readUInt16LE(at) : bytes.readUInt16BE(at)
  }
  const u32 = (at: number) => {
    need(at, 4)
    return little ? bytes.readUInt32LE(at) : bytes.readUInt32BE(at)
  }
  const u64 = (at: number) => {
    need(at, 8)
    return Number(little ? bytes.readBigUInt64LE(at) : bytes.readBigUInt64BE(at))
  }
  const big = u16(2) === 43
  return { bytes, little, big, u16, u32, wide: big ? u64 : u32 }
}

/**
 * The main chain, in order; what a directory points to as its previews is looked at by its owner. A chain that
 * leads back into itself has no more pages, and ends there for the decoder too.
 */
function walk(layout: Layout, patches: Patch[]): Directory[] {
  const found: Directory[] = []
  const seen = new Set<number>()
  for (let at = layout.wide(layout.big ? 8 : 4); at !== 0;) {
    const last = found.at(-1)
    if (last !== undefined && seen.has(at)) {
      patches.push({ at: last.nextAt, bytes: layout.big ? 8 : 4, value: 0 })
      break
    }
    seen.add(at)
    const directory = readDirectory(layout, at)
    found.push(directory)
    // Of each page a reduced copy and a mask may stand in the chain.
    if (found.length > 3 * limits.imagePagesMax) throw new TooLargePicture('pages')
    at = directory.next
  }
  return found
}

function readDirectory(layout: Layout, at: number): Directory {
  const { big, u16, wide } = layout
  const count = big ? wide(at) : u16(at)
  const entryBytes = big ? 20 : 12
  const start = at + (big ? 8 : 2)
  if (start + count * entryBytes > layout.bytes.length)
    throw new DamagedPicture(layout.bytes.length)
  // The standard knows some hundred tags.
  if (count > 4096) throw new TooLargePicture('nesting')
  const entries = new Map<number, Entry>()
  for (let i = 0; i < count; i++) {
    const entryAt = start + i * entryBytes
    const entry = {
      tag: u16(entryAt),
      type: u16(entryAt + 2),
      count: wide(entryAt + 4),
      valueAt: entryAt + (big ? 12 : 8),
    }
    if (!entries.has(entry.tag)) entries.set(entry.tag, entry)
  }
  const nextAt = start + count * entryBytes
  // Some writers end right behind the last entry.
  const next = nextAt + (big ? 8 : 4) > layout.bytes.length ? 0 : wide(nextAt)
  return { at, entries, next, nextAt }
}

/** BYTE, ASCII, SHORT, LONG, RATIONAL, … LONG8, SLONG8, IFD8. */
const typeBytes = [0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8]

function* numbersOf(layout: Layout, entry: Entry | undefined, most: number): Generator<number> {
  if (entry === undefined) return
  const width = typeBytes[entry.type] ?? 0
  const room = layout.big ? 8 : 4
  const at = entry.count * width <= room ? entry.valueAt : layout.wide(entry.valueAt)
  for (let i = 0; i < Math.min(entry.count, most); i++) {
    const valueAt = at + i * width
    if (valueAt + width > layout.bytes.length) throw new DamagedPicture(layout.bytes.length)
    if (entry.type === 1) yield layout.bytes.readUInt8(valueAt)
    else if (entry.type === 3) yield layout.u16(valueAt)
    else if (entry.type === 4 || entry.type === 13) yield layout.u32(valueAt)
    else if (entry.type >= 16) yield layout.wide(valueAt)
    else return
  }
}

function numberOf(layout: Layout, directory: Directory, tag: number): number | undefined {
  for (const value of numbersOf(layout, directory.entries.get(tag), 1)) return value
  return undefined
}

function contentOf(layout: Layout, entry: Entry | undefined): Buffer | undefined {
  if (entry === undefined || entry.count > limits.imageMetadataBytesMax) return undefined
  const at = layout.wide(entry.valueAt)
  if (at + entry.count > layout.bytes.length) return undefined
  return Buffer.from(layout.bytes.subarray(at, at + entry.count))
}

function sizeOf(layout: Layout, directory: Directory): Size {
  const widthPixels = numberOf(layout, directory, tags.width) ?? 0
  const heightPixels = numberOf(layout, directory, tags.height) ?? 0
  if (widthPixels === 0 || heightPixels === 0) throw new DamagedPicture(directory.at)
  return { widthPixels, heightPixels }
}

/** Bit 0 of the subfile type is a reduced copy, bit 2 a mask; the old tag says 2 for the former. */
function isReduced(layout: Layout, directory: Directory): boolean {
  const type = numberOf(layout, directory, tags.subfileType) ?? 0
  return (type & 5) !== 0 || numberOf(layout, directory, tags.oldSubfileType) === 2
}

/**
 * A single strip that is not compressed has as many bytes as its rows take; some writers say more, beyond the
 * end of the file. Fewer than that stay missing.
 */
function trueLength(layout: Layout, directory: Directory): Patch | undefined {
  const { entries } = directory
  const [offset, said] = [tags.stripOffsets, tags.stripBytes].map((tag) => entries.get(tag))
  if (offset?.count !== 1 || said?.count !== 1) return undefined
  if ((numberOf(layout, directory, tags.compression) ?? 1) !== 1) return undefined
  const at = numberOf(layout, directory, tags.stripOffsets) ?? 0
  const length = numberOf(layout, directory, tags.stripBytes) ?? 0
  const { widthPixels, heightPixels } = sizeOf(layout, directory)
  const samples = numberOf(layout, directory, tags.samples) ?? 1
  const bits = numberOf(layout, directory, tags.bits) ?? 1
  const needed = Math.ceil((widthPixels * samples * bits) / 8) * heightPixels
  const end = layout.bytes.length
  if (at + length <= end || at + needed > end || ![3, 4, 16].includes(said.type)) return undefined
  const bytes = said.type === 3 ? 2 : said.type === 4 ? 4 : 8
  return { at: said.valueAt, bytes, value: needed }
}

/** Whether all of its strips or tiles lie within the file. */
function isComplete(layout: Layout, directory: Directory): boolean {
  const { entries } = directory
  const tiled = entries.has(tags.tileOffsets)
  const offsets = entries.get(tiled ? tags.tileOffsets : tags.stripOffsets)
  const sizes = entries.get(tiled ? tags.tileBytes : tags.stripBytes)
  if (offsets === undefined) return false
  // Without sizes, which old writers leave out for a single strip, only the start can be looked at.
  const lengths = sizes === undefined ? [] : [...numbersOf(layout, sizes, piecesMax)]
  let i = 0
  for (const offset of numbersOf(layout, offsets, piecesMax)) {
    if (offset + (lengths[i] ?? 1) > layout.bytes.length) return false
    i++
  }
  return i > 0
}

/** 100 megapixels in tiles of 16 by 16 pixels. */
const piecesMax = 400_000

function requireDecodable(layout: Layout, directory: Directory): void {
  const samples = numberOf(layout, directory, tags.samples) ?? 1
  if (samples > 5) throw new UnsupportedPicture('many-channels')
  // JPEG as TIFF 6.0 had it, withdrawn since: decoders answer with nothing, and do not say so.
  if (numberOf(layout, directory, tags.compression) === 6)
    throw new UnsupportedPicture('compression')
  for (const bits of numbersOf(layout, directory.entries.get(tags.bits), 5)) {
    if (bits > 16) throw new UnsupportedPicture('deep-samples')
    if (bits < 1) throw new UnsupportedPicture('odd-samples')
  }
  // 1 unsigned, 2 signed, 3 floating point, 4 undefined, which writers use for unsigned.
  for (const format of numbersOf(layout, directory.entries.get(tags.sampleFormat), 5)) {
    if (format !== 1 && format !== 4) throw new UnsupportedPicture('deep-samples')
  }
}

/** A raw file's first directory may be a harmless preview: every directory is asked, and its children. */
function isCameraRaw(layout: Layout, directories: readonly Directory[]): boolean {
  // Canon's CR2 says so behind the header.
  if (!layout.big && layout.bytes.toString('latin1', 8, 10) === 'CR') return true
  const waiting = [...directories]
  const seen = new Set<number>()
  for (let directory = waiting.pop(); directory !== undefined; directory = waiting.pop()) {
    if (directory.entries.has(tags.dngVersion)) return true
    const photometric = numberOf(layout, directory, tags.photometric)
    if (photometric !== undefined && rawPhotometrics.has(photometric)) return true
    for (const at of numbersOf(
      layout,
      directory.entries.get(tags.subDirectories),
      limits.boxDepthMax,
    )) {
      if (seen.has(at)) continue
      seen.add(at)
      if (seen.size > directoriesMax) throw new TooLargePicture('nesting')
      waiting.push(readDirectory(layout, at))
    }
  }
  return false
}

const directoriesMax = 1000
