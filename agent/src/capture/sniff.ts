/** Recognises a format by its first bytes, and names what it refuses; it never looks at a file's name. */

export type SourceFormat = 'jpeg' | 'png' | 'webp' | 'mp4' | 'mov' | 'wav' | 'mp3' | 'flac'

export type Found = { supported: true; format: SourceFormat } | { supported: false; name: string }

/** What is to be recognised: its size, and a way to read a range within it. */
export type Sniffable = {
  bytes: number
  read: (offset: number, length: number) => Promise<Buffer>
}

const headBytes = 4096

/** Finds the format from the head, and for tagged sound from what follows the tag. */
export async function sniff(source: Sniffable): Promise<Found> {
  const head = await source.read(0, Math.min(headBytes, source.bytes))
  const tagBytes = id3Bytes(head)
  if (tagBytes === 0) return sniffHead(head)
  if (tagBytes >= source.bytes) return refused('an ID3 tag without sound')
  const behind = await source.read(tagBytes, Math.min(headBytes, source.bytes - tagBytes))
  const found = sniffHead(behind)
  if (found.supported && (found.format === 'mp3' || found.format === 'flac')) return found
  return refused('an ID3 tag before something else than MP3 or FLAC')
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

function sniffHead(head: Buffer): Found {
  if (starts(head, 'ffd8ff')) return accepted('jpeg')
  if (starts(head, '89504e470d0a1a0a')) return accepted('png')
  if (text(head, 0, 4) === 'fLaC') return accepted('flac')
  if (text(head, 0, 4) === 'RIFF') return sniffRiff(head)
  const box = sniffBoxes(head)
  if (box !== undefined) return box
  const known = foreign.find(([magic]) => starts(head, magic))
  if (known !== undefined) return refused(known[1])
  return sniffFrames(head) ?? refused(looksLikeText(head) ? 'text' : 'of an unknown type')
}

function sniffRiff(head: Buffer): Found {
  const form = text(head, 8, 12)
  if (form === 'WEBP') return accepted('webp')
  if (form === 'WAVE') return accepted('wav')
  return refused(form === 'AVI ' ? 'AVI' : 'an unknown RIFF file')
}

/** Major brands that are something else than a film, although they are boxes like one. */
const foreignBrands = new Map([
  ...['heic', 'heix', 'heim', 'heis', 'hevc', 'hevx', 'mif1', 'msf1'].map(
    (brand) => [brand, 'HEIC or HEIF'] as const,
  ),
  ['avif', 'AVIF'],
  ['avis', 'AVIF'],
  ['crx ', 'camera raw (CR3)'],
  ['jxl ', 'JPEG XL'],
  ['jp2 ', 'JPEG 2000'],
  ['M4A ', 'M4A'],
  ['M4B ', 'M4B'],
  ['M4P ', 'M4P'],
  ['f4v ', 'F4V'],
])

const filmBrand = /^(?:iso[m2-9a-d]|mp4[12]|avc1|M4V[ HP]|dash|MSNV|XAVC|mmp4|NDS[A-Z]|cmfc)$/

/** @see ISO/IEC 14496-12, 4.2 and 4.3: size, type, and the brands of `ftyp`. */
function sniffBoxes(head: Buffer): Found | undefined {
  const type = text(head, 4, 8)
  if (type === 'JXL ' || type === 'jP  ') return refused('JPEG XL or JPEG 2000')
  // QuickTime before 2001 had no `ftyp`.
  if (['moov', 'mdat', 'wide', 'pnot'].includes(type)) return accepted('mov')
  if (['free', 'skip'].includes(type) && head.readUInt32BE(0) >= 8) return accepted('mov')
  if (type !== 'ftyp') return undefined
  const end = Math.min(head.readUInt32BE(0), head.length)
  const major = text(head, 8, 12)
  const other = foreignBrands.get(major)
  if (other !== undefined) return refused(other)
  if (major === 'qt  ') return accepted('mov')
  if (major.startsWith('3g')) return refused('3GP')
  for (let at = 8; at + 4 <= end; at += 4) {
    if (at !== 12 && filmBrand.test(text(head, at, at + 4))) return accepted('mp4')
  }
  return refused('an ISO media file of unknown brand')
}

/** Magic in hex and the name people know. */
const foreign: readonly (readonly [string, string])[] = [
  [hex('GIF8'), 'GIF'],
  [hex('BM'), 'BMP'],
  [hex('II*\0'), 'TIFF or camera raw'],
  [hex('MM\0*'), 'TIFF or camera raw'],
  ['ff0a', 'JPEG XL'],
  [hex('%PDF'), 'PDF'],
  [hex('%!PS'), 'PostScript'],
  ['1a45dfa3', 'Matroska or WebM'],
  [hex('OggS'), 'Ogg'],
  [hex('FORM'), 'AIFF'],
  [hex('#!AMR'), 'AMR'],
  [hex('RF64'), 'RF64'],
  [hex('BW64'), 'BW64'],
  [hex('FLV'), 'FLV'],
  ['3026b2758e66cf11', 'WMV or ASF'],
  ['000001ba', 'an MPEG program stream'],
  ['000001b3', 'an MPEG elementary stream'],
  ['060e2b34', 'MXF'],
  [hex('8BPS'), 'PSD'],
  ['762f3101', 'OpenEXR'],
  [hex('#EXTM3U'), 'a playlist'],
  [hex('ffconcat'), 'a playlist'],
  [hex('PK'), 'a ZIP archive'],
  ['1f8b', 'gzip'],
  ['377abcaf271c', 'a 7z archive'],
  ['7f454c46', 'a program'],
  [hex('MZ'), 'a program'],
]

/** @see ISO/IEC 11172-3, 2.4.1.3: frame sync, version, layer, bit rate and sampling frequency. */
function sniffFrames(head: Buffer): Found | undefined {
  if (head.length > 188 && head[0] === 0x47 && head[188] === 0x47) return refused('MPEG-TS')
  if (head.length < 4 || head[0] !== 0xff || (head.readUInt8(1) & 0xe0) !== 0xe0) return undefined
  const layer = (head.readUInt8(1) >> 1) & 3
  if (layer === 0) return refused('AAC')
  const frameBytes = mpegFrameBytes(head.readUInt32BE(0))
  if (layer !== 1) return refused('MPEG sound of another layer than MP3')
  if (frameBytes === undefined) return undefined
  // One frame header is only eleven set bits: a second one must follow where the first frame ends.
  if (head.length < frameBytes + 4) return undefined
  return mpegFrameBytes(head.readUInt32BE(frameBytes)) === undefined ? undefined : accepted('mp3')
}

const layer3Kilobits = {
  mpeg1: [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
  mpeg2: [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
}
const mpeg1Hz = [44_100, 48_000, 32_000]

/** Bytes of an MP3 frame with this header; undefined if it is none, or of free bit rate. */
function mpegFrameBytes(header: number): number | undefined {
  const version = (header >>> 19) & 3
  if (header >>> 21 !== 0x7ff || version === 1 || ((header >>> 17) & 3) !== 1) return undefined
  const rates = version === 3 ? layer3Kilobits.mpeg1 : layer3Kilobits.mpeg2
  const kilobits = rates[(header >>> 12) & 15] ?? 0
  const baseHz = mpeg1Hz[(header >>> 10) & 3]
  if (kilobits === 0 || baseHz === undefined) return undefined
  const sampleRateHz = version === 3 ? baseHz : version === 2 ? baseHz / 2 : baseHz / 4
  const slots = version === 3 ? 144 : 72
  return Math.floor((slots * kilobits * 1000) / sampleRateHz) + ((header >>> 9) & 1)
}

function looksLikeText(head: Buffer): boolean {
  return !head.some((byte) => byte < 9 || (byte > 13 && byte < 32 && byte !== 27))
}

function accepted(format: SourceFormat): Found {
  return { supported: true, format }
}

function refused(name: string): Found {
  return { supported: false, name }
}

function text(bytes: Buffer, start: number, end: number): string {
  return bytes.toString('latin1', start, end)
}

function hex(ascii: string): string {
  return Buffer.from(ascii, 'latin1').toString('hex')
}

function starts(head: Buffer, magic: string): boolean {
  return head.toString('hex', 0, magic.length / 2) === magic
}
