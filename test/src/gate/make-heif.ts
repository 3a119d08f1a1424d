/** Writes HEIC files around a picture that ffmpeg codes as HEVC: as telephones do, or as no honest writer does. */

import { execFileSync } from 'node:child_process'

/** A box: size, type, content. */
export function box(type: string, ...content: readonly Buffer[]): Buffer {
  const head = Buffer.alloc(8)
  head.writeUInt32BE(8 + content.reduce((sum, { length }) => sum + length, 0))
  head.write(type, 4, 'latin1')
  return Buffer.concat([head, ...content])
}

function fullBox(
  type: string,
  version: number,
  flags: number,
  ...content: readonly Buffer[]
): Buffer {
  return box(type, u32(version * 2 ** 24 + flags), ...content)
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

export type CodedPicture = {
  widthPixels: number
  heightPixels: number
  /** Configuration box, `hvcC`. */
  configuration: Buffer
  data: Buffer
}

/** Codes one picture, RGB 8 bits, as HEVC without chroma loss. */
export function codeHevc(
  ffmpeg: string,
  picture: { widthPixels: number; heightPixels: number; rgb: Buffer; pixelFormat?: string },
): CodedPicture {
  const { widthPixels, heightPixels, rgb, pixelFormat = 'yuv444p' } = picture
  const film = execFileSync(
    ffmpeg,
    [
      ...[
        '-v',
        'error',
        '-f',
        'rawvideo',
        '-pix_fmt',
        'rgb24',
        '-s',
        `${widthPixels}x${heightPixels}`,
      ],
      ...['-i', 'pipe:0', '-frames:v', '1', '-vf', 'scale=out_color_matrix=bt709:out_range=pc'],
      ...['-pix_fmt', pixelFormat, '-c:v', 'libx265'],
      ...['-x265-params', 'log-level=none:lossless=1:colormatrix=bt709:range=full:info=0'],
      ...['-color_range', 'pc', '-tag:v', 'hvc1', '-movflags', 'frag_keyframe+empty_moov'],
      ...['-f', 'mp4', 'pipe:1'],
    ],
    { input: rgb, maxBuffer: 64 * 1024 ** 2, stdio: ['pipe', 'pipe', 'ignore'] },
  )
  const configurationAt = film.indexOf('hvcC') - 4
  const dataAt = film.indexOf('mdat') + 4
  return {
    widthPixels,
    heightPixels,
    configuration: film.subarray(
      configurationAt,
      configurationAt + film.readUInt32BE(configurationAt),
    ),
    data: film.subarray(dataAt, dataAt - 8 + film.readUInt32BE(dataAt - 8)),
  }
}

export type HeifParts = {
  coded: CodedPicture
  /** Default `hvc1`. */
  coding?: 'hvc1' | 'av01'
  /** Another picture, coded alike, that comes first in the file and is not the one that is shown. */
  before?: Buffer
  brands?: readonly string[]
  /** Quarter turns against the clock. */
  irot?: 0 | 1 | 2 | 3
  /** 0 mirrors top to bottom, 1 left to right. */
  imir?: 0 | 1
  /** Width and height that remain in the middle. */
  clap?: { widthPixels: number; heightPixels: number }
  icc?: Buffer
  nclx?: { primaries: number; transfer: number; matrix: number }
  /** TIFF structure, without `Exif\0\0`. */
  exif?: Buffer
  xmp?: string
  /** Behind the last box. */
  trailer?: Buffer
  /** What `ispe` says in place of the truth. */
  claimedSize?: { widthPixels: number; heightPixels: number }
}

/** @see ISO/IEC 23008-12: one item `hvc1`, its properties, and items of metadata that describe it. */
export function makeHeic(parts: HeifParts): Buffer {
  const { coded, coding = 'hvc1', before, exif, xmp } = parts
  const items: { type: string; data: Buffer }[] = [{ type: coding, data: coded.data }]
  if (before !== undefined) items.unshift({ type: coding, data: before })
  if (exif !== undefined)
    items.push({ type: 'Exif', data: Buffer.concat([u32(6), Buffer.from('Exif\0\0'), exif]) })
  if (xmp !== undefined) items.push({ type: 'mime', data: Buffer.from(xmp) })
  const [major = 'heic', ...others] = parts.brands ?? ['heic', 'mif1', 'heic']
  const ftyp = box('ftyp', Buffer.from(major), u32(0), Buffer.from(others.join('')))
  const build = (dataAt: number) => meta(parts, items, dataAt)
  const dataAt = ftyp.length + build(0).length + 8
  return Buffer.concat([
    ftyp,
    build(dataAt),
    box('mdat', ...items.map(({ data }) => data)),
    parts.trailer ?? Buffer.alloc(0),
  ])
}

function meta(
  parts: HeifParts,
  items: readonly { type: string; data: Buffer }[],
  dataAt: number,
): Buffer {
  const hdlr = fullBox('hdlr', 0, 0, u32(0), Buffer.from('pict'), Buffer.alloc(13))
  const infos = items.map(({ type }, i) =>
    fullBox(
      'infe',
      2,
      0,
      u16(i + 1),
      u16(0),
      Buffer.from(type),
      Buffer.from(type === 'mime' ? '\0application/rdf+xml\0' : '\0'),
    ),
  )
  let at = dataAt
  const locations = items.map(({ data }, i) => {
    const entry = Buffer.concat([u16(i + 1), u16(0), u16(1), u32(at), u32(data.length)])
    at += data.length
    return entry
  })
  const primary = parts.before === undefined ? 1 : 2
  const references = items
    .slice(primary)
    .map((_, i) => box('cdsc', u16(i + 1 + primary), u16(1), u16(primary)))
  return fullBox(
    'meta',
    0,
    0,
    hdlr,
    fullBox('pitm', 0, 0, u16(primary)),
    fullBox('iloc', 0, 0, u16(0x4400), u16(items.length), ...locations),
    fullBox('iinf', 0, 0, u16(items.length), ...infos),
    ...(references.length === 0 ? [] : [fullBox('iref', 0, 0, ...references)]),
    properties(parts),
  )
}

function properties(parts: HeifParts): Buffer {
  const { coded, irot, imir, clap, icc, nclx } = parts
  const size = parts.claimedSize ?? coded
  const list = [
    coded.configuration,
    fullBox('ispe', 0, 0, u32(size.widthPixels), u32(size.heightPixels)),
    fullBox('pixi', 0, 0, Buffer.from([3, 8, 8, 8])),
  ]
  if (icc !== undefined) list.push(box('colr', Buffer.from('prof'), icc))
  if (nclx !== undefined) {
    const codes = [nclx.primaries, nclx.transfer, nclx.matrix].map(u16)
    list.push(box('colr', Buffer.from('nclx'), ...codes, Buffer.from([0x80])))
  }
  if (clap !== undefined) {
    const numbers = [clap.widthPixels, 1, clap.heightPixels, 1, 0, 1, 0, 1]
    list.push(box('clap', ...numbers.map(u32)))
  }
  if (irot !== undefined) list.push(box('irot', Buffer.from([irot])))
  if (imir !== undefined) list.push(box('imir', Buffer.from([imir])))
  const items = parts.before === undefined ? [1] : [1, 2]
  const associations = items.map((id) =>
    Buffer.concat([u16(id), Buffer.from([list.length, ...list.map((_, i) => i + 1)])]),
  )
  return box(
    'iprp',
    box('ipco', ...list),
    fullBox('ipma', 0, 0, u32(items.length), ...associations),
  )
}
