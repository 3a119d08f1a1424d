/** Counts what the compressed data of a GIF's frame hold, without unpacking them: decoders say nothing of pixels that are missing. */

/** Where a run of sub-blocks ends, behind its empty one; undefined when the file ends before. */
export function subBlocksEnd(bytes: Buffer, from: number): number | undefined {
  for (let at = from; at < bytes.length;) {
    const length = bytes.readUInt8(at)
    at += 1 + length
    if (length === 0) return at
  }
  return undefined
}

/** Sub-blocks up to the end of the file, the last one with a length that is true. */
export function cutSubBlocks(bytes: Buffer, from: number): Buffer {
  const blocks = Buffer.from(bytes.subarray(from))
  for (let at = 0; at < blocks.length;) {
    const length = blocks.readUInt8(at)
    if (at + 1 + length > blocks.length) blocks.writeUInt8(blocks.length - at - 1, at)
    at += 1 + length
  }
  return blocks
}

/** What the data of a frame hold. */
export type Codes = {
  /** Where they stop short of the pixels; undefined when all pixels are there, whatever follows them. */
  missingFrom?: number
  /** Whether the last code of a pixel is the last of all; decoders want to see another one. */
  isLast: boolean
}

/**
 * Counts the pixels of a frame.
 *
 * @param codesAt The least size of a code, then the sub-blocks.
 * @see GIF89a Specification, appendix F: clear, end, and codes of at most 12 bits.
 */
export function readCodes(bytes: Buffer, codesAt: number, pixels: number): Codes {
  const codeBits = bytes[codesAt] ?? 0
  if (pixels === 0) return { isLast: false }
  const missing = (from: number): Codes => ({ missingFrom: from, isLast: false })
  if (codeBits < 1 || codeBits > 11) return missing(codesAt)
  const clear = 2 ** codeBits
  const lengths = new Uint16Array(4096).fill(1, 0, clear)
  let next = clear + 2
  let width = codeBits + 1
  let previous = -1
  let counted = 0
  /** Only codes that mean nothing are more than the pixels. */
  let codesLeft = 2 * pixels + clearsMax
  let held = 0
  let heldBits = 0
  let at = codesAt + 1
  for (let length = bytes[at] ?? 0; length > 0; length = bytes[at] ?? 0) {
    const end = Math.min(at + 1 + length, bytes.length)
    for (at += 1; at < end; at++) {
      held |= (bytes[at] ?? 0) << heldBits
      heldBits += 8
      while (heldBits >= width) {
        const code = held & ((1 << width) - 1)
        held >>>= width
        heldBits -= width
        if (codesLeft-- === 0 || code === clear + 1) return missing(at)
        if (code === clear) {
          next = clear + 2
          width = codeBits + 1
          previous = -1
          continue
        }
        if (code > next || (code === next && (previous < 0 || next > 4095))) return missing(at)
        if (previous < 0 && code >= clear) return missing(at)
        if (previous >= 0 && next < 4096) {
          lengths[next] = (lengths[previous] ?? 0) + 1
          next += 1
          if (next === 1 << width && width < 12) width += 1
        }
        counted += lengths[code] ?? 0
        if (counted >= pixels) {
          const bitsLeft = heldBits + 8 * (end - 1 - at + (bytes[end] ?? 0))
          return { isLast: bitsLeft < width }
        }
        previous = code
      }
    }
  }
  return missing(at)
}

/** Writers clear now and then, and at both ends. */
const clearsMax = 100_000
