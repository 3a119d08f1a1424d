/** A page of Ogg that holds one packet of at most 254 bytes, with its checksum. */
export function oggPage(options: {
  flags: number
  body: Buffer
  serial?: number
  granule?: bigint
  sequence?: number
}): Buffer {
  const { flags, body, serial = 7, granule = 0n, sequence = 0 } = options
  const head = Buffer.alloc(28)
  head.write('OggS', 'latin1')
  head.writeUInt8(flags, 5)
  head.writeBigInt64LE(granule, 6)
  head.writeUInt32LE(serial, 14)
  head.writeUInt32LE(sequence, 18)
  head.writeUInt8(1, 26)
  head.writeUInt8(body.length, 27)
  return withChecksum(Buffer.concat([head, body]))
}

/** The page with a checksum that is right. @see RFC 3533, section 6: CRC-32, not reflected, its own field zero. */
export function withChecksum(page: Buffer): Buffer {
  const copy = Buffer.from(page)
  copy.writeUInt32LE(0, 22)
  let sum = 0
  for (const byte of copy) {
    sum ^= byte << 24
    for (let bit = 0; bit < 8; bit++) sum = sum & 0x80000000 ? (sum << 1) ^ 0x04c11db7 : sum << 1
  }
  copy.writeUInt32LE(sum >>> 0, 22)
  return copy
}
