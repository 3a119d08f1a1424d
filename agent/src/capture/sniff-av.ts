/** Tells films and sounds that have no magic number of their own: by frames that follow one another. */

/** What is to be recognised: its size, and a way to read a range within it. */
type Sniffable = {
  bytes: number
  read: (offset: number, length: number) => Promise<Buffer>
}

export type FoundFrames = {
  format: 'mp3' | 'aac'
  /** Where the first of them begins. */
  offset: number
}

/** Bytes of junk before the first frame that recorders and cut files are forgiven. */
const junkBytesMax = 16 * 1024
/** Four of the largest frames, and the junk. */
const windowBytes = 64 * 1024
const framesInRow = 4

/**
 * Looks for frames of MP3 or ADTS in a row: one header is only twelve set bits, four that agree
 * and lie where each frame ends are no accident.
 *
 * @param start Where to begin, behind a tag.
 */
export async function findFrames(
  source: Sniffable,
  start: number,
): Promise<FoundFrames | undefined> {
  const blank = await blankBytes(source, start)
  // The last zero stays: what follows zeros is junk before frames like any other.
  const from = start + Math.max(0, blank - 1)
  const left = source.bytes - from
  if (left < 8) return undefined
  const window = await source.read(from, Math.min(windowBytes, left))
  const whole = window.length === left
  for (let at = 0; at < Math.min(junkBytesMax, window.length - 4); at++) {
    if (window[at] !== 0xff) continue
    for (const format of ['mp3', 'aac'] as const) {
      // A short file may hold fewer, but then it begins with one and holds nothing else.
      if (isChain(window, at, format, whole && at === 0)) return { format, offset: from + at }
    }
  }
  return undefined
}

/** Programs that take a tag out leave its room empty: at most as much as a cover had. */
const blankBytesMax = 1024 ** 2

async function blankBytes(source: Sniffable, start: number): Promise<number> {
  const first = await source.read(start, Math.min(1, source.bytes - start))
  if (first[0] !== 0) return 0
  const room = await source.read(start, Math.min(blankBytesMax, source.bytes - start))
  const end = room.findIndex((byte) => byte !== 0)
  return end < 0 ? room.length : end
}

function isChain(window: Buffer, from: number, format: 'mp3' | 'aac', whole: boolean): boolean {
  let at = from
  let first: number | undefined
  for (let frame = 0; frame < framesInRow; frame++) {
    if (whole && frame > 0 && isTail(window, at)) return true
    if (at + 7 > window.length) return false
    const read = format === 'mp3' ? readMp3Header(window, at) : readAdtsHeader(window, at)
    if (read === undefined || (first !== undefined && read.fixed !== first)) return false
    first = read.fixed
    at += read.frameBytes
    // A copy that broke off soon: what is missing, the walk over its frames will say.
    if (whole && frame >= 2 && at > window.length) return true
  }
  return true
}

/** The end of the file, or a tag of ID3v1 or APE behind the last frame. */
function isTail(window: Buffer, at: number): boolean {
  if (at === window.length) return true
  return ['TAG', 'APETAGEX', 'LYRICSBEGIN'].some((tag) =>
    window.subarray(at, at + tag.length).equals(Buffer.from(tag)),
  )
}

type FrameHeader = {
  frameBytes: number
  /** The bits that are the same in all frames of one sound. */
  fixed: number
  sampleRateHz: number
  samples: number
  /** 0: said elsewhere. */
  channels: number
}

const layer3Kilobits = {
  mpeg1: [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
  mpeg2: [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
}
const mpeg1Hz = [44_100, 48_000, 32_000]

/**
 * The header of an MP3 frame; undefined if it is none, or of free bit rate.
 *
 * @see ISO/IEC 11172-3, 2.4.1.3, and ISO/IEC 13818-3 for the lower sampling frequencies.
 */
export function readMp3Header(bytes: Buffer, at: number): FrameHeader | undefined {
  if (at + 4 > bytes.length) return undefined
  const header = bytes.readUInt32BE(at)
  const version = (header >>> 19) & 3
  if (header >>> 21 !== 0x7ff || version === 1 || ((header >>> 17) & 3) !== 1) return undefined
  const rates = version === 3 ? layer3Kilobits.mpeg1 : layer3Kilobits.mpeg2
  const kilobits = rates[(header >>> 12) & 15] ?? 0
  const baseHz = mpeg1Hz[(header >>> 10) & 3]
  if (kilobits === 0 || baseHz === undefined) return undefined
  const sampleRateHz = version === 3 ? baseHz : version === 2 ? baseHz / 2 : baseHz / 4
  const slots = version === 3 ? 144 : 72
  return {
    frameBytes: Math.floor((slots * kilobits * 1000) / sampleRateHz) + ((header >>> 9) & 1),
    fixed: header & 0xfffe0c00,
    sampleRateHz,
    samples: version === 3 ? 1152 : 576,
    channels: (header >>> 6) & 3 ? (((header >>> 6) & 3) === 3 ? 1 : 2) : 2,
  }
}

const adtsHz = [
  96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8000,
  7350,
]

/** @see ISO/IEC 14496-3, 1.A.2.2: `adts_fixed_header` and `adts_variable_header`. */
export function readAdtsHeader(bytes: Buffer, at: number): FrameHeader | undefined {
  if (at + 7 > bytes.length) return undefined
  const fixed = bytes.readUIntBE(at, 4)
  if (fixed >>> 20 !== 0xfff || ((fixed >>> 17) & 3) !== 0) return undefined
  const sampleRateHz = adtsHz[(fixed >>> 10) & 15]
  const frameBytes =
    ((fixed & 3) << 11) | (bytes.readUInt8(at + 4) << 3) | (bytes.readUInt8(at + 5) >> 5)
  const headBytes = ((fixed >>> 16) & 1) === 1 ? 7 : 9
  if (sampleRateHz === undefined || frameBytes < headBytes) return undefined
  return {
    frameBytes,
    // All but the two highest bits of the length, which end it.
    fixed: fixed & 0xffffffc0,
    sampleRateHz,
    samples: 1024 * ((bytes.readUInt8(at + 6) & 3) + 1),
    channels: (fixed >>> 6) & 7,
  }
}

/** Packets of a transport stream: plain, with a time stamp before (M2TS), with error correction behind. */
const packetBytes = [188, 192, 204]
const packetsInRow = 5

export type FoundPackets = { packetBytes: number; offset: number }

/**
 * Looks for the packets of an MPEG transport stream, which may begin in the middle of one.
 *
 * @param head A few kilobytes of the file's beginning.
 * @see ISO/IEC 13818-1, 2.4.3.2: every packet begins with 0x47.
 */
export function findPackets(head: Buffer): FoundPackets | undefined {
  for (const bytes of packetBytes) {
    // What is no packet comes before them where a stream was cut out of something else.
    for (let offset = 0; offset + bytes * packetsInRow <= head.length; offset++) {
      if (head[offset] !== 0x47) continue
      let row = 1
      while (head[offset + row * bytes] === 0x47) row++
      if (row >= packetsInRow && offset + row * bytes >= head.length)
        return { packetBytes: bytes, offset }
    }
  }
  return undefined
}

/**
 * The DocType of a Matroska file's first element.
 *
 * @see RFC 8794, section 11.2.4, and RFC 9559: `matroska` or `webm`.
 */
export function readDocType(head: Buffer): string | undefined {
  const at = head.subarray(0, 64).indexOf('4282', 'hex')
  if (at < 0 || at + 3 > head.length) return undefined
  const bytes = head.readUInt8(at + 2) & 0x7f
  if (bytes > 16) return undefined
  return head.toString('latin1', at + 3, at + 3 + bytes).replace(/\0+$/, '')
}
