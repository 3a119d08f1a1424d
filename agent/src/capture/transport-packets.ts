/** Hands out the packets of a transport stream, wherever in the file it begins. */
import type { Readable } from './av-facts.ts'
import { findPackets } from './sniff-av.ts'
import type { FoundPackets } from './sniff-av.ts'

/** Some hundred kilobytes at once. */
const packetsAtOnce = 2048

/** @returns undefined when the file does not begin with packets in step. */
export async function locatePackets(source: Readable): Promise<FoundPackets | undefined> {
  return findPackets(await source.read(0, Math.min(4096, source.bytes)))
}

/** The file behind the offset, in pieces that begin with a packet. */
export async function* piecesOf(
  source: Readable,
  { packetBytes, offset }: FoundPackets,
): AsyncGenerator<Buffer> {
  const atOnce = packetBytes * packetsAtOnce
  for (let at = offset; at < source.bytes; at += atOnce)
    yield await source.read(at, Math.min(atOnce, source.bytes - at))
}

/** Every packet of such a piece, of 188 bytes each, whether or not it begins as one should (0x47). */
export function* packetsOf(
  piece: Buffer,
  { packetBytes }: Pick<FoundPackets, 'packetBytes'>,
): Generator<Buffer> {
  for (let at = 0; at + 188 <= piece.length; at += packetBytes) yield piece.subarray(at, at + 188)
}
