/** Reads the boxes of a HEIC or AVIF file: which item is the picture, how large, in which colours, and what else is there. */
import { limits } from '@sluice/protocol/limits'
import { DamagedPicture, TooLargePicture, UnsupportedPicture } from './damaged-picture.ts'
import { readExif } from './exif-tags.ts'
import { requireSizes } from './picture-facts.ts'
import type { ColourCode, PictureFacts, ReadOptions, Size } from './picture-facts.ts'

type Box = { type: string; start: number; contentAt: number; end: number }

type Item = {
  type: string
  /** Where its entry has the flag that hides it. */
  flagsAt: number
  properties: number[]
  extents: { at: number; bytes: number; inItemData: boolean }[]
}

type Property = { type: string; box: Box }

/** What the file says about its items; everything is by item number. */
type Meta = {
  primary: number | undefined
  items: Map<number, Item>
  properties: Property[]
  references: { type: string; from: number; to: number[] }[]
  itemDataAt: number | undefined
  /** Places, properties and references that were counted so far. */
  parts: number
}

/** A picture of 100 megapixels in small tiles has some thousands of each kind. */
const partsMax = 5 * limits.imageItemsMax

/** Some of them cost the file no byte, but a reader some. */
function countParts(meta: Meta, count: number): void {
  meta.parts += count
  if (meta.parts > partsMax) throw new TooLargePicture('nesting')
}

/** Which decoder has to be asked, by the primary item's own coding. */
export type HeifFacts = PictureFacts & { coding: 'av1' | 'hevc'; bits: number }

/**
 * @throws DamagedPicture, TooLargePicture, UnsupportedPicture.
 * @see ISO/IEC 14496-12 (boxes, `meta`, `iloc`), ISO/IEC 23008-12 (items and their properties).
 */
export function readHeif(bytes: Buffer, options: Pick<ReadOptions, 'salvage'>): HeifFacts {
  const { boxes, damagedAt: brokenAt } = walk(bytes, 0, bytes.length)
  const metaBox = boxes.find(({ type }) => type === 'meta')
  if (metaBox === undefined) {
    if (boxes.some(({ type }) => type === 'moov')) throw new UnsupportedPicture('sequence')
    throw new DamagedPicture(brokenAt ?? bytes.length)
  }
  const meta = readMeta(bytes, metaBox)
  const { primary } = meta
  const item = primary === undefined ? undefined : meta.items.get(primary)
  if (meta.items.size === 0 && boxes.some(({ type }) => type === 'moov')) {
    throw new UnsupportedPicture('sequence')
  }
  if (primary === undefined || item === undefined) throw new DamagedPicture(metaBox.start)
  // Behind the last item nothing of a picture is missing, whatever stands there.
  const missing = missingExtent(bytes, meta)
  const damagedAt = missing === undefined ? undefined : (brokenAt ?? missing)
  if (damagedAt !== undefined && !options.salvage) throw new DamagedPicture(damagedAt)
  for (const [, other] of meta.items) {
    const size = sizeOf(bytes, meta, other)
    if (size !== undefined) requireSizes([size], 'pages')
  }
  const size = sizeOf(bytes, meta, item)
  if (size === undefined) throw new DamagedPicture(metaBox.start)
  // Before anything else goes through the parts: pictures of pictures end here.
  const coding = codingOf(meta, primary, 0)
  const removed = namePresent({ bytes, boxes, meta, primary })
  if (brokenAt !== undefined) removed.add('trailer')
  const icc = profileOf(bytes, meta, item)
  const colour = codeOf(bytes, meta, item)
  const filmGrey = isFilmGrey(bytes, meta, primary)
  const bits = bitsOf(bytes, meta, primary)
  return {
    coding,
    bits,
    pages: [{ index: 0, orientation: 1, ...size }],
    animated: false,
    removed,
    codedAt: item.extents[0]?.at ?? 0,
    decodable: asStill(withoutOthers(bytes, meta, primary), boxes, coding),
    ...(icc === undefined ? {} : { icc }),
    ...(colour === undefined ? {} : { colour }),
    ...(filmGrey && icc === undefined ? { filmGrey: { bits } } : {}),
    ...(damagedAt === undefined ? {} : { damagedAt }),
  }
}

/**
 * Hides every picture that stands for itself but the primary one: some decoders take the first that is not
 * hidden, whichever the file says is the picture.
 *
 * @see ISO/IEC 14496-12, 8.11.6: `infe`, and ISO/IEC 23008-12, 6.4.2: the lowest flag hides an item.
 */
function withoutOthers(bytes: Buffer, meta: Meta, primary: number): Buffer {
  const auxiliary = new Set(meta.references.map(({ type, from }) => (type === 'auxl' ? from : -1)))
  const others = [...meta.items].filter(([id]) => id !== primary && !auxiliary.has(id))
  if (others.length === 0) return bytes
  const copy = Buffer.from(bytes)
  for (const [, { flagsAt }] of others) copy.writeUInt8(copy.readUInt8(flagsAt) | 1, flagsAt)
  return copy
}

/**
 * A file that is a sequence too, as the still picture that it also is: decoders take it for one or the other by
 * its first brand, and ours know stills only.
 *
 * @see ISO/IEC 23008-12, 10.2 (brands of images and of sequences); AV1 Image File Format, section 6.
 */
function asStill(bytes: Buffer, boxes: readonly Box[], coding: 'av1' | 'hevc'): Buffer {
  const [head] = boxes
  const sequences = boxes.filter(({ type }) => type === 'moov')
  const major = bytes.toString('latin1', 8, 12)
  if (head?.type !== 'ftyp') return bytes
  if (!sequenceBrands.has(major) && sequences.length === 0) return bytes
  const still = Buffer.from(bytes)
  for (const { start } of sequences) still.write('free', start + 4, 'latin1')
  // Major brand, its version, then all brands that the file is.
  for (let at = head.contentAt; at + 4 <= head.end; at += 4) {
    if (at === head.contentAt + 4) continue
    const brand = bytes.toString('latin1', at, at + 4)
    if (at === head.contentAt) still.write(coding === 'av1' ? 'avif' : 'heic', at, 'latin1')
    else if (sequenceBrands.has(brand)) still.write('mif1', at, 'latin1')
  }
  return still
}

const sequenceBrands = new Set(['avis', 'msf1', 'hevc', 'hevx', 'hevm', 'hevs'])

function walk(bytes: Buffer, from: number, to: number): { boxes: Box[]; damagedAt?: number } {
  const boxes: Box[] = []
  for (let at = from; at < to;) {
    if (at + 8 > to) return { boxes, damagedAt: at }
    const short = bytes.readUInt32BE(at)
    const long = short === 1
    if (long && at + 16 > to) return { boxes, damagedAt: at }
    const size = long ? Number(bytes.readBigUInt64BE(at + 8)) : short === 0 ? to - at : short
    const contentAt = at + (long ? 16 : 8)
    if (at + size < contentAt) return { boxes, damagedAt: at }
    const box = {
      type: bytes.toString('latin1', at + 4, at + 8),
      start: at,
      contentAt,
      end: at + size,
    }
    if (box.end > to) {
      // A picture at the end of a file cut short may still be there in part.
      if (box.type === 'mdat') boxes.push({ ...box, end: to })
      return { boxes, damagedAt: to }
    }
    boxes.push(box)
    if (boxes.length > limits.imageItemsMax) throw new TooLargePicture('nesting')
    at = box.end
  }
  return { boxes }
}

/** Reads numbers of a box one after the other, and never beyond its end. */
function reader(bytes: Buffer, box: Pick<Box, 'contentAt' | 'end'>) {
  let at = box.contentAt
  const take = (width: number) => {
    if (at + width > box.end) throw new DamagedPicture(at)
    at += width
    return at - width
  }
  const number = (width: number): number => {
    const start = take(width)
    if (width === 0) return 0
    // Widths of `iloc` are 0, 4 or 8; others are in no version of the standard.
    if (width > 6 && width !== 8) throw new DamagedPicture(start)
    return width === 8 ? Number(bytes.readBigUInt64BE(start)) : bytes.readUIntBE(start, width)
  }
  return {
    number,
    text: (length: number) => bytes.toString('latin1', take(length), at),
    at: () => at,
    left: () => box.end - at,
  }
}

function children(bytes: Buffer, box: Box, skip: number): Box[] {
  const { boxes, damagedAt } = walk(bytes, box.contentAt + skip, box.end)
  if (damagedAt !== undefined) throw new DamagedPicture(damagedAt)
  return boxes
}

function readMeta(bytes: Buffer, box: Box): Meta {
  // The `meta` of QuickTime is a plain box, that of HEIF a full one.
  const parts = children(bytes, box, 4)
  const find = (type: string) => parts.find((part) => part.type === type)
  const meta: Meta = {
    primary: undefined,
    items: new Map(),
    properties: [],
    references: [],
    itemDataAt: find('idat')?.contentAt,
    parts: 0,
  }
  const pitm = find('pitm')
  if (pitm !== undefined) {
    const read = reader(bytes, pitm)
    meta.primary = read.number(4) >>> 24 === 0 ? read.number(2) : read.number(4)
  }
  const iinf = find('iinf')
  if (iinf !== undefined) readItems(bytes, iinf, meta)
  const iloc = find('iloc')
  if (iloc !== undefined) readLocations(bytes, iloc, meta)
  const iprp = find('iprp')
  if (iprp !== undefined) readProperties(bytes, iprp, meta)
  const iref = find('iref')
  if (iref !== undefined) readReferences(bytes, iref, meta)
  return meta
}

function readItems(bytes: Buffer, box: Box, meta: Meta): void {
  const version = bytes.readUInt8(box.contentAt)
  for (const entry of children(bytes, box, version === 0 ? 6 : 8)) {
    if (entry.type !== 'infe') continue
    const read = reader(bytes, entry)
    const entryVersion = read.number(4) >>> 24
    if (entryVersion < 2) continue
    const id = entryVersion === 2 ? read.number(2) : read.number(4)
    read.number(2)
    // Which of two items of one number is meant, each decoder decides for itself.
    if (meta.items.has(id)) throw new DamagedPicture(entry.start)
    const flagsAt = entry.contentAt + 3
    meta.items.set(id, { type: read.text(4), flagsAt, properties: [], extents: [] })
  }
}

function readLocations(bytes: Buffer, box: Box, meta: Meta): void {
  const read = reader(bytes, box)
  const version = read.number(4) >>> 24
  const sizes = read.number(2)
  const [offsetBytes, lengthBytes, baseBytes] = [sizes >> 12, (sizes >> 8) & 15, (sizes >> 4) & 15]
  const indexBytes = version === 0 ? 0 : sizes & 15
  const count = version < 2 ? read.number(2) : read.number(4)
  for (let i = 0; i < count; i++) {
    const id = version < 2 ? read.number(2) : read.number(4)
    const construction = version === 0 ? 0 : read.number(2) & 15
    read.number(2)
    const base = read.number(baseBytes)
    const extents = read.number(2)
    countParts(meta, 1 + extents)
    for (let extent = 0; extent < extents; extent++) {
      read.number(indexBytes)
      const at = base + read.number(offsetBytes)
      const length = read.number(lengthBytes)
      if (construction === 2) continue
      meta.items.get(id)?.extents.push({ at, bytes: length, inItemData: construction === 1 })
    }
  }
}

function readProperties(bytes: Buffer, box: Box, meta: Meta): void {
  const parts = children(bytes, box, 0)
  const container = parts.find(({ type }) => type === 'ipco')
  if (container === undefined) return
  meta.properties = children(bytes, container, 0).map((property) => ({
    type: property.type,
    box: property,
  }))
  for (const association of parts.filter(({ type }) => type === 'ipma')) {
    const read = reader(bytes, association)
    const head = read.number(4)
    const wideItem = head >>> 24 > 0
    const wideIndex = (head & 1) !== 0
    const count = read.number(4)
    for (let i = 0; i < count; i++) {
      const item = meta.items.get(read.number(wideItem ? 4 : 2))
      const properties = read.number(1)
      countParts(meta, 1 + properties)
      for (let index = 0; index < properties; index++) {
        const value = wideIndex ? read.number(2) & 0x7fff : read.number(1) & 0x7f
        item?.properties.push(value - 1)
      }
    }
  }
}

function readReferences(bytes: Buffer, box: Box, meta: Meta): void {
  const idBytes = bytes.readUInt8(box.contentAt) === 0 ? 2 : 4
  for (const reference of children(bytes, box, 4)) {
    const read = reader(bytes, reference)
    const from = read.number(idBytes)
    const count = read.number(2)
    countParts(meta, 1 + count)
    const to = Array.from({ length: count }, () => read.number(idBytes))
    meta.references.push({ type: reference.type, from, to })
  }
}

function propertiesOf(meta: Meta, item: Item, type: string): Box[] {
  return item.properties.flatMap((index) => {
    const property = meta.properties[index]
    return property?.type === type ? [property.box] : []
  })
}

function sizeOf(bytes: Buffer, meta: Meta, item: Item): Size | undefined {
  const [box] = propertiesOf(meta, item, 'ispe')
  if (box === undefined) return undefined
  const read = reader(bytes, box)
  read.number(4)
  return { widthPixels: read.number(4), heightPixels: read.number(4) }
}

function missingExtent(bytes: Buffer, meta: Meta): number | undefined {
  for (const [, { extents }] of meta.items) {
    for (const extent of extents) {
      const at = extent.inItemData ? (meta.itemDataAt ?? 0) + extent.at : extent.at
      if (at + extent.bytes > bytes.length) return bytes.length
    }
  }
  return undefined
}

/** Derived pictures (grid, overlay, identity) lead to their first part. */
function codingOf(meta: Meta, id: number, depth: number): 'av1' | 'hevc' {
  const type = meta.items.get(id)?.type
  if (type === 'av01') return 'av1'
  if (type === 'hvc1' || type === 'hev1') return 'hevc'
  if (depth > limits.boxDepthMax) throw new TooLargePicture('nesting')
  const parts = meta.references.find(
    (reference) => reference.type === 'dimg' && reference.from === id,
  )
  const first = parts?.to[0]
  if (type === undefined || !['grid', 'iovl', 'iden'].includes(type) || first === undefined) {
    throw new UnsupportedPicture('compression')
  }
  if (parts !== undefined && parts.to.length > limits.imageItemsMax)
    throw new TooLargePicture('nesting')
  return codingOf(meta, first, depth + 1)
}

/** Bits of a sample; as `pixi` is optional, also what the decoder's own configuration says. */
function bitsOf(bytes: Buffer, meta: Meta, primary: number): number {
  let bits = 8
  for (const id of partsOf(meta, primary)) {
    const item = meta.items.get(id)
    if (item === undefined) continue
    for (const box of propertiesOf(meta, item, 'pixi')) {
      // Full box, count, then a byte for each channel.
      for (const depth of bytes.subarray(box.contentAt + 5, box.end)) bits = Math.max(bits, depth)
    }
    for (const { contentAt, end } of propertiesOf(meta, item, 'hvcC')) {
      // ISO/IEC 14496-15, 8.3.3.1: bit_depth_luma_minus8 after 17 bytes.
      if (contentAt + 18 <= end) bits = Math.max(bits, 8 + (bytes.readUInt8(contentAt + 17) & 7))
    }
  }
  return bits
}

function profileOf(bytes: Buffer, meta: Meta, item: Item): Buffer | undefined {
  for (const box of propertiesOf(meta, item, 'colr')) {
    const kind = bytes.toString('latin1', box.contentAt, box.contentAt + 4)
    if (kind === 'prof' || kind === 'rICC')
      return Buffer.from(bytes.subarray(box.contentAt + 4, box.end))
  }
  return undefined
}

function codeOf(bytes: Buffer, meta: Meta, item: Item): ColourCode | undefined {
  for (const box of propertiesOf(meta, item, 'colr')) {
    if (bytes.toString('latin1', box.contentAt, box.contentAt + 4) !== 'nclx') continue
    const read = reader(bytes, box)
    read.number(4)
    return { primaries: read.number(2), transfer: read.number(2) }
  }
  return undefined
}

/**
 * Whether an AV1 picture has brightness only, from 16 to 235 of 255.
 *
 * @see AV1 Codec ISO Media File Format Binding, 2.3.3: `monochrome` in `av1C`; ISO/IEC 23008-12, 6.5.5, and
 *   14496-12, 12.1.5: `full_range_flag` in `nclx`.
 */
function isFilmGrey(bytes: Buffer, meta: Meta, primary: number): boolean {
  const items = [...partsOf(meta, primary)].flatMap((id) => meta.items.get(id) ?? [])
  const boxes = (type: string) => items.flatMap((item) => propertiesOf(meta, item, type))
  const grey = boxes('av1C').some(
    ({ contentAt, end }) => contentAt + 3 <= end && (bytes.readUInt8(contentAt + 2) & 0x10) !== 0,
  )
  const limited = boxes('colr').some(
    ({ contentAt, end }) =>
      contentAt + 11 <= end &&
      bytes.toString('latin1', contentAt, contentAt + 4) === 'nclx' &&
      (bytes.readUInt8(contentAt + 10) & 0x80) === 0,
  )
  return grey && limited
}

function isAlpha(bytes: Buffer, meta: Meta, id: number): boolean {
  const item = meta.items.get(id)
  const [box] = item === undefined ? [] : propertiesOf(meta, item, 'auxC')
  return (
    box !== undefined && /alpha|auxid:1\0/.test(bytes.toString('latin1', box.contentAt, box.end))
  )
}

const boxKinds = new Map([
  ['moov', 'animation'],
  ['mpvd', 'motion-photo'],
  ['uuid', 'other'],
  ['free', 'padding'],
  ['skip', 'padding'],
])

function namePresent(file: {
  bytes: Buffer
  boxes: readonly Box[]
  meta: Meta
  primary: number
}): Set<string> {
  const { bytes, boxes, meta, primary } = file
  const removed = new Set<string>()
  for (const { type, contentAt, end } of boxes) {
    if (['ftyp', 'meta', 'mdat'].includes(type)) continue
    const empty = end === contentAt
    if (!empty) removed.add(boxKinds.get(type) ?? 'other')
  }
  const parts = partsOf(meta, primary)
  for (const [id, item] of meta.items) {
    if (parts.has(id)) {
      if (propertiesOf(meta, item, 'colr').some((box) => isProfile(bytes, box))) removed.add('icc')
      continue
    }
    const kind = itemKind({ bytes, meta, id, item })
    if (kind === undefined) continue
    removed.add(kind)
    if (kind === 'exif') lookIntoExif(bytes, item, removed)
  }
  return removed
}

function isProfile(bytes: Buffer, box: Box): boolean {
  return /^(?:prof|rICC)$/.test(bytes.toString('latin1', box.contentAt, box.contentAt + 4))
}

/** The primary item and all that it is put together from. */
function partsOf(meta: Meta, primary: number): Set<number> {
  const parts = new Set([primary])
  // A set grows while it is gone through, and visits each number once.
  for (const id of parts) {
    for (const { type, from, to } of meta.references) {
      if (type === 'dimg' && from === id) for (const part of to) parts.add(part)
    }
  }
  return parts
}

function itemKind(item: { bytes: Buffer; meta: Meta; id: number; item: Item }): string | undefined {
  const { bytes, meta, id } = item
  switch (item.item.type) {
    case 'Exif':
      return 'exif'
    case 'mime':
      return 'xmp'
    case 'tmap':
      return 'gain-map'
    case 'hvc1':
    case 'av01':
    case 'grid':
    case 'iovl':
    case 'iden':
    case 'jpeg':
      break
    default:
      return 'other'
  }
  const references = meta.references.filter(({ from }) => from === id)
  if (references.some(({ type }) => type === 'thmb')) return 'thumbnail'
  if (references.some(({ type }) => type === 'auxl')) {
    return isAlpha(bytes, meta, id) ? undefined : 'auxiliary'
  }
  // Tiles of a thumbnail or of another picture that is not the primary one.
  return meta.references.some(({ type, to }) => type === 'dimg' && to.includes(id))
    ? undefined
    : 'further-pictures'
}

function lookIntoExif(bytes: Buffer, { extents: [extent] }: Item, removed: Set<string>): void {
  if (extent === undefined || extent.inItemData || extent.bytes < 4) return
  const block = bytes.subarray(extent.at, extent.at + extent.bytes)
  if (block.length < 4) return
  const exif = readExif(block.subarray(4 + block.readUInt32BE(0)))
  if (exif.gps) removed.add('gps')
  if (exif.thumbnail) removed.add('thumbnail')
}
