/** Reads the little that an operator wants kept of a source's metadata: coarse, by policy, for the manifest and never for the file. */
import type { Captured, MediumKind } from '@sluice/protocol/manifest'
import type { CarryPolicy } from './gate-policy.ts'

/** What is read: the source before anything is taken out of it. */
export type CarrySource = {
  readonly kind: MediumKind
  readonly format: string
  readonly bytes: number
  read(offset: number, length: number): Promise<Buffer>
}

/** As it stands in the source, before it is made coarse. */
type Found = {
  at?: { ms: number; zone: 'utc' | 'unknown' }
  camera?: Captured['camera']
  place?: { latitude: number; longitude: number }
}

/**
 * What the policy lets through, rounded as it says; nothing when it lets through nothing.
 *
 * @throws SluiceError What reading throws; whatever the bytes are is no error.
 */
export async function readCaptured(
  source: CarrySource,
  policy: CarryPolicy,
): Promise<Captured | undefined> {
  if (!isWanted(policy)) return undefined
  const found = source.kind === 'image' ? await readPicture(source) : await readFilm(source)
  const captured = coarse(found, policy)
  return Object.keys(captured).length === 0 ? undefined : captured
}

function isWanted({ captureTimeStepMinutes, camera, regionStepDegrees }: CarryPolicy): boolean {
  return captureTimeStepMinutes !== undefined || camera || regionStepDegrees !== undefined
}

/** Rounds down to the step, and to the middle of a cell of the grid: no step gives away more than it says. */
export function coarse(found: Found, policy: CarryPolicy): Captured {
  const { captureTimeStepMinutes: minutes, regionStepDegrees: step } = policy
  const captured: Captured = {}
  if (minutes !== undefined && found.at !== undefined) {
    const stepMs = minutes * 60_000
    captured.time = {
      fromMs: Math.floor(found.at.ms / stepMs) * stepMs,
      stepMs,
      zone: found.at.zone,
    }
  }
  if (policy.camera && found.camera !== undefined) captured.camera = found.camera
  if (step !== undefined && found.place !== undefined) {
    const middle = (degrees: number) =>
      Number((Math.floor(degrees / step) * step + step / 2).toFixed(3))
    captured.region = {
      latitudeDegrees: Math.max(-90, Math.min(90, middle(found.place.latitude))),
      longitudeDegrees: Math.max(-180, Math.min(180, middle(found.place.longitude))),
      stepDegrees: step,
    }
  }
  return captured
}

// ---------------------------------------------------------------- pictures

const searchBytes = 1024 ** 2
/** An EXIF block with its maker notes and thumbnail. */
const exifBytesMax = 256 * 1024

async function readPicture(source: CarrySource): Promise<Found> {
  const isTiff = source.format === 'tiff'
  const at = isTiff ? 0 : await findExif(source)
  if (at === undefined) return {}
  // The directories of a TIFF may lie anywhere in it; it is as small as all pictures are.
  const bytes = isTiff ? source.bytes : Math.min(exifBytesMax, source.bytes - at)
  const block = await source.read(at, bytes)
  const found = readTags(block)
  block.fill(0)
  return found
}

/**
 * Where the EXIF block begins, whatever the file around it is: JPEG and HEIF have `Exif` and two
 * zeros before it, PNG `eXIf`, WebP `EXIF` and a length.
 */
async function findExif(source: CarrySource): Promise<number | undefined> {
  const overlap = 16
  for (let from = 0; from < source.bytes; from += searchBytes) {
    const piece = await source.read(from, Math.min(searchBytes + overlap, source.bytes - from))
    const text = piece.toString('latin1')
    const found = /(?:Exif\0\0|eXIf|EXIF[^]{4}(?:Exif\0\0)?)(?=II\*\0|MM\0\*)/.exec(text)
    piece.fill(0)
    if (found) return from + found.index + found[0].length
  }
  return undefined
}

type Tag = { type: number; count: number; at: number }

/**
 * Reads a TIFF block as far as it holds together; it never throws, whatever the bytes are.
 *
 * @see TIFF 6.0, section 2; EXIF 2.32, 4.6.4 to 4.6.6.
 */
export function readTags(tiff: Buffer): Found {
  const little = tiff.toString('latin1', 0, 2) === 'II'
  const has = (at: number, bytes: number) => at >= 0 && at + bytes <= tiff.length
  const u16 = (at: number) => (little ? tiff.readUInt16LE(at) : tiff.readUInt16BE(at))
  const u32 = (at: number) => (little ? tiff.readUInt32LE(at) : tiff.readUInt32BE(at))

  function directory(at: number): Map<number, Tag> {
    const tags = new Map<number, Tag>()
    if (!has(at, 2)) return tags
    const end = at + 2 + Math.min(u16(at), 1000) * 12
    for (let entry = at + 2; entry < end && has(entry, 12); entry += 12)
      tags.set(u16(entry), { type: u16(entry + 2), count: u32(entry + 4), at: entry + 8 })
    return tags
  }
  const inner = (tag: Tag | undefined) =>
    tag === undefined ? new Map<number, Tag>() : directory(u32(tag.at))
  function text(tag: Tag | undefined): string {
    if (tag === undefined || tag.type !== 2 || tag.count > 256) return ''
    const at = tag.count <= 4 ? tag.at : u32(tag.at)
    if (!has(at, tag.count)) return ''
    return (
      tiff
        .toString('latin1', at, at + tag.count)
        .split('\0')[0]
        ?.trim() ?? ''
    )
  }
  /** Degrees, minutes and seconds as three fractions. */
  function degrees(tag: Tag | undefined, sign: string): number | undefined {
    if (tag === undefined || tag.type !== 5 || tag.count !== 3) return undefined
    const at = u32(tag.at)
    if (!has(at, 24)) return undefined
    const parts = [0, 8, 16].map((offset) => u32(at + offset) / u32(at + offset + 4))
    const [whole = NaN, minutes = NaN, seconds = NaN] = parts
    const value = whole + minutes / 60 + (Number.isNaN(seconds) ? 0 : seconds / 3600)
    return /^[SW]/i.test(sign) ? -value : value
  }

  if (!has(0, 8)) return {}
  const first = directory(u32(4))
  const exif = inner(first.get(0x8769))
  const gps = inner(first.get(0x8825))
  const at = readDate(
    text(exif.get(0x9003)) || text(first.get(0x132)),
    text(exif.get(0x9011)) || text(exif.get(0x9010)),
  )
  const camera = classOf(`${text(first.get(0x10f))} ${text(first.get(0x110))}`)
  const latitude = degrees(gps.get(2), text(gps.get(1)))
  const longitude = degrees(gps.get(4), text(gps.get(3)))
  return {
    ...(at === undefined ? {} : { at }),
    ...(camera === undefined ? {} : { camera }),
    ...placeOf(latitude, longitude),
  }
}

/** EXIF writes local time; only newer cameras say of which zone. */
function readDate(date: string, offset: string): Found['at'] {
  const [, year, month, day, time] = /^(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)/.exec(date) ?? []
  const zone = /^[+-]\d\d:\d\d$/.test(offset) ? offset : undefined
  const ms = Date.parse(`${year}-${month}-${day}T${time}${zone ?? 'Z'}`)
  return isDate(ms) ? { ms, zone: zone === undefined ? 'unknown' : 'utc' } : undefined
}

/** Dates before photography on phones, and those that clocks without a battery show, say nothing. */
function isDate(ms: number): boolean {
  return ms > Date.UTC(1990, 0, 2) && ms < Date.UTC(2100, 0)
}

function placeOf(
  latitude: number | undefined,
  longitude: number | undefined,
): Pick<Found, 'place'> {
  if (latitude === undefined || longitude === undefined) return {}
  // 0, 0 is what devices write that don't know.
  if (!(Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180)) return {}
  return latitude === 0 && longitude === 0 ? {} : { place: { latitude, longitude } }
}

/** What kind of device, by what it calls its maker; a maker of no known kind made a camera. */
function classOf(maker: string): Captured['camera'] {
  if (maker.trim() === '') return undefined
  return classes.find(([pattern]) => pattern.test(maker))?.[1] ?? 'camera'
}

const classes: readonly (readonly [RegExp, NonNullable<Captured['camera']>])[] = [
  [/gopro|insta360|osmo action/i, 'action-camera'],
  [/dji|parrot|autel|skydio/i, 'drone'],
  [/scan|epson|plustek|noritsu/i, 'scanner'],
  [
    /apple|samsung|google|huawei|honor|xiaomi|redmi|oneplus|oppo|realme|vivo|motorola|fairphone|nokia|nothing|lge|htc|asus/i,
    'phone',
  ],
]

// ---------------------------------------------------------------- films

/** The index of a film with its tags; a longer one has them beyond what is looked at. */
const indexBytesMax = 16 * 1024 ** 2
const boxesMax = 10_000
const boxFormats = new Set(['mp4', 'mov', '3gp', 'm4a'])
/** ISO/IEC 14496-12 counts seconds from 1904. */
const epochMs = Date.UTC(1904, 0)

async function readFilm(source: CarrySource): Promise<Found> {
  if (!boxFormats.has(source.format)) return {}
  const index = await findIndex(source)
  return index === undefined ? {} : readIndex(index)
}

async function findIndex(source: CarrySource): Promise<Buffer | undefined> {
  for (let at = 0, count = 0; at + 16 <= source.bytes && count < boxesMax; count += 1) {
    const head = await source.read(at, 16)
    const short = head.readUInt32BE(0)
    const bytes =
      short === 1 ? Number(head.readBigUInt64BE(8)) : short === 0 ? source.bytes - at : short
    if (bytes < 8 || at + bytes > source.bytes) return undefined
    if (head.toString('latin1', 4, 8) === 'moov')
      return source.read(at, Math.min(bytes, indexBytesMax))
    at += bytes
  }
  return undefined
}

/** Looks for the marks themselves: tags of a film lie in a dozen places by now. */
export function readIndex(index: Buffer): Found {
  const text = index.toString('latin1')
  const header = text.indexOf('mvhd')
  const found: Found = {}
  if (header > 0 && header + 24 <= index.length) {
    const long = index[header + 4] === 1
    const seconds = long
      ? Number(index.readBigUInt64BE(header + 8))
      : index.readUInt32BE(header + 8)
    const ms = epochMs + seconds * 1000
    if (isDate(ms)) found.at = { ms, zone: 'utc' }
  }
  const camera = /com\.apple\.quicktime\.make|com\.android\.|samsung/.test(text)
    ? 'phone'
    : /GoPro|GPMF/.test(text)
      ? 'action-camera'
      : /\bDJI\b/.test(text)
        ? 'drone'
        : undefined
  if (camera !== undefined) found.camera = camera
  if (!/\xa9xyz|location\.ISO6709/.test(text)) return found
  // ISO 6709, annex H: latitude, longitude, and maybe a height.
  const [, latitude, longitude] =
    /([+-]\d{2}(?:\.\d{1,8})?)([+-]\d{3}(?:\.\d{1,8})?)(?:[+-][\d.]{1,12})?\//.exec(text) ?? []
  if (latitude === undefined || longitude === undefined) return found
  return { ...found, ...placeOf(Number(latitude), Number(longitude)) }
}
