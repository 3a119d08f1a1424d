/** Names the kinds of metadata a picture carries, never their values, so that a manifest can say what went. */
import { contentOf, jpegStructure, pngStructure, webpStructure } from './image-structure.ts'
import type { Piece, Structure } from './image-structure.ts'

const structures = { jpeg: jpegStructure, png: pngStructure, webp: webpStructure }

/** Pieces that are the picture itself. */
const pictureItself = {
  jpeg: /^(?:SOI|APP0|APP14|DQT|SOF\d+|DHT|DAC|DRI|SOS|EOI)$/,
  png: /^(?:IHDR|PLTE|tRNS|IDAT|IEND)$/,
  webp: /^(?:VP8 |VP8L|VP8X|ALPH)$/,
}

/**
 * Lists what is lost when only the pixels of the first picture are kept.
 *
 * @param exif The EXIF block as the decoder found it, for a look at what it contains.
 * @returns Kinds in alphabetical order, such as `exif`, `gps`, `icc`, `trailer`, `xmp`.
 * @throws SluiceError `media.corrupt` when the file is cut short.
 */
export function listRemoved(options: {
  format: 'jpeg' | 'png' | 'webp'
  source: Buffer
  exif: Buffer | undefined
}): string[] {
  const { format, source, exif } = options
  const { pieces, trailingBytes }: Structure = structures[format](source)
  const kinds = new Set<string>()
  for (const piece of pieces) {
    if (!pictureItself[format].test(piece.name)) kinds.add(kindOf(piece, source))
  }
  const jfif = pieces.find((piece) => piece.name === 'APP0')
  // A JFIF header has 18 bytes; a thumbnail makes it longer.
  if (jfif !== undefined && jfif.bytes > 18) kinds.add('thumbnail')
  if (trailingBytes > 0) kinds.add('trailer')
  if (exif !== undefined) {
    kinds.add('exif')
    const { gps, thumbnail } = lookIntoExif(exif)
    if (gps) kinds.add('gps')
    if (thumbnail) kinds.add('thumbnail')
  }
  return [...kinds].toSorted()
}

const chunkKinds = new Map([
  ['COM', 'comment'],
  ['APP11', 'c2pa'],
  ['APP13', 'iptc'],
  ['tEXt', 'text'],
  ['zTXt', 'text'],
  ['iTXt', 'text'],
  ['eXIf', 'exif'],
  ['EXIF', 'exif'],
  ['XMP ', 'xmp'],
  ['iCCP', 'icc'],
  ['ICCP', 'icc'],
  ['tIME', 'time'],
  ['pHYs', 'resolution'],
  ['caBX', 'c2pa'],
  ['C2PA', 'c2pa'],
  ['acTL', 'animation'],
  ['fcTL', 'animation'],
  ['fdAT', 'animation'],
  ['ANIM', 'animation'],
  ['ANMF', 'animation'],
  ...['gAMA', 'cHRM', 'sRGB', 'cICP', 'sBIT', 'bKGD'].map((name) => [name, 'colour'] as const),
])

function kindOf(piece: Piece, source: Buffer): string {
  if (piece.name === 'APP1' || piece.name === 'APP2') {
    const start = contentOf(source, piece).toString('latin1', 4, 40)
    if (start.startsWith('Exif\0')) return 'exif'
    if (start.startsWith('http://ns.adobe.com/')) return 'xmp'
    if (start.startsWith('ICC_PROFILE\0')) return 'icc'
    if (start.startsWith('MPF\0')) return 'further-pictures'
  }
  return chunkKinds.get(piece.name) ?? 'other'
}

/** @see TIFF 6.0, section 2, and EXIF 2.32, 4.6.3: tag 0x8825 points to GPS, IFD1 is the thumbnail. */
function lookIntoExif(exif: Buffer): { gps: boolean; thumbnail: boolean } {
  const tiff = exif.toString('latin1', 0, 6) === 'Exif\0\0' ? exif.subarray(6) : exif
  const little = tiff.toString('latin1', 0, 2) === 'II'
  const u16 = (at: number) => (little ? tiff.readUInt16LE(at) : tiff.readUInt16BE(at))
  const u32 = (at: number) => (little ? tiff.readUInt32LE(at) : tiff.readUInt32BE(at))
  if (tiff.length < 8) return { gps: false, thumbnail: false }
  const directory = u32(4)
  if (directory + 2 > tiff.length) return { gps: false, thumbnail: false }
  const end = directory + 2 + u16(directory) * 12
  let gps = false
  for (let at = directory + 2; at < end && at + 12 <= tiff.length; at += 12) {
    if (u16(at) === 0x8825) gps = true
  }
  return { gps, thumbnail: end + 4 <= tiff.length && u32(end) !== 0 }
}
