/** Looks into an EXIF block for the few facts that matter here; it never throws, whatever the bytes are. */
import { orientationOf } from './picture-facts.ts'
import type { Orientation } from './picture-facts.ts'

export type ExifFacts = { orientation: Orientation; gps: boolean; thumbnail: boolean }

/**
 * Reads the first directory of an EXIF block, with or without its `Exif\0\0` in front.
 *
 * @see TIFF 6.0, section 2, and EXIF 2.32, 4.6.3: tag 0x112 is the orientation, 0x8825 points to GPS,
 *   the second directory is the thumbnail.
 */
export function readExif(exif: Buffer): ExifFacts {
  const facts: ExifFacts = { orientation: 1, gps: false, thumbnail: false }
  const tiff = exif.toString('latin1', 0, 6) === 'Exif\0\0' ? exif.subarray(6) : exif
  const order = tiff.toString('latin1', 0, 2)
  if (tiff.length < 8 || (order !== 'II' && order !== 'MM')) return facts
  const little = order === 'II'
  const u16 = (at: number) => (little ? tiff.readUInt16LE(at) : tiff.readUInt16BE(at))
  const u32 = (at: number) => (little ? tiff.readUInt32LE(at) : tiff.readUInt32BE(at))
  const directory = u32(4)
  if (directory + 2 > tiff.length) return facts
  const end = directory + 2 + u16(directory) * 12
  for (let at = directory + 2; at < end && at + 12 <= tiff.length; at += 12) {
    if (u16(at) === 0x8825) facts.gps = true
    // SHORT by the standard; some writers use LONG.
    if (u16(at) === 0x112)
      facts.orientation = orientationOf(u16(at + 2) === 4 ? u32(at + 8) : u16(at + 8))
  }
  facts.thumbnail = end + 4 <= tiff.length && u32(end) !== 0
  return facts
}
