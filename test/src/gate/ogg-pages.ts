/** Takes an Ogg apart into its pages, and puts changed ones together again. */

import { withChecksum } from '@sluice/agent/capture/ogg-page.test-setup'

/** Pages in order, each a copy that may be changed. */
export function oggPages(ogg: Buffer): Buffer[] {
  const pages: Buffer[] = []
  for (let at = 0; at < ogg.length;) {
    const segments = ogg.readUInt8(at + 26)
    const laces = ogg.subarray(at + 27, at + 27 + segments)
    const end = at + 27 + segments + laces.reduce((sum, lace) => sum + lace, 0)
    pages.push(Buffer.from(ogg.subarray(at, end)))
    at = end
  }
  return pages
}

/** One after the other, with checksums that are right. */
export function oggOf(pages: readonly Buffer[]): Buffer {
  return Buffer.concat(pages.map(withChecksum))
}

/** The page with an empty packet before its others. */
export function withEmptyPacket(page: Buffer): Buffer {
  const laces = Buffer.concat([Buffer.of(0), page.subarray(27, 27 + page.readUInt8(26))])
  const head = Buffer.from(page.subarray(0, 27))
  head.writeUInt8(laces.length, 26)
  return Buffer.concat([head, laces, page.subarray(27 + page.readUInt8(26))])
}
