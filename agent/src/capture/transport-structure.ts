/** Reads the tables of an MPEG transport stream for the facts that are needed before anything decodes it. */
import { limits } from '@sluice/protocol/limits'
import { corruptMedium, requireLimits, tooLarge, unsupportedMedium } from './av-facts.ts'
import type { AvFacts, Readable, ReadOptions } from './av-facts.ts'
import { foreignCodec } from './film-codecs.ts'
import { findPackets } from './sniff-av.ts'
import type { FoundPackets } from './sniff-av.ts'
import { locatePackets, packetsOf, piecesOf } from './transport-packets.ts'

/** Tables come several times a second; a clock stands in every picture. */
const lookBytes = 4 * 1024 ** 2
/** Program tables of one stream that are read; a broadcast multiplex has tens. */
const programsMax = 16

/** Stream types: pictures, sounds, and what else is known. */
const pictureTypes = new Map([
  [0x01, 'other'],
  [0x02, 'other'],
  [0x10, 'other'],
  [0x1b, 'h264'],
  [0x24, 'hevc'],
  // VC-1.
  [0xea, 'other'],
] as const)
/** Pictures too, but coded as no decoder here knows. */
const foreignTypes = new Map([
  [0x21, 'JPEG 2000'],
  [0x33, 'VVC'],
  [0x42, 'AVS'],
  [0xd1, 'Dirac'],
  [0xd2, 'AVS2'],
  [0xd4, 'AVS3'],
])
const soundTypes = new Set([0x03, 0x04, 0x0f, 0x11, 0x80, 0x81, 0x82, 0x83, 0x84, 0x87])

type Stream = { type: number; pid: number }

/**
 * Pixels and pictures are not in the tables: the decoder is held to them as it runs.
 *
 * @throws SluiceError `media.corrupt` when there are no tables, `media.unsupported` when it is
 *   scrambled or there is nothing to see or hear, `media.too_large`.
 * @see ISO/IEC 13818-1, 2.4.3 and 2.4.4.
 */
export async function readTransport(source: Readable, options: ReadOptions = {}): Promise<AvFacts> {
  const head = await source.read(0, Math.min(lookBytes, source.bytes))
  const packets = findPackets(head.subarray(0, 4096))
  if (packets === undefined) throw corruptMedium('film', { byte: 0 })
  const { packetBytes, offset } = packets
  const endAt = await findLastInStep(source, packets)
  // What lies behind may have been packets as well.
  if (endAt !== undefined && options.salvage !== true) throw corruptMedium('film', { byte: endAt })
  // A packet of M2TS begins with a time stamp; its 0x47 is where the offset points all the same.
  const streams = readTables(head, packets)
  const removed = new Set<string>()
  const pictures = streams.filter(({ type }) => pictureTypes.has(type as 1))
  const sounds = streams.filter(({ type }) => soundTypes.has(type))
  const foreign = foreignTypes.get(streams.find(({ type }) => foreignTypes.has(type))?.type ?? 0)
  if (pictures.length === 0 && foreign !== undefined) {
    throw foreignCodec({ of: 'pictures', name: foreign })
  }
  for (const { type } of streams) {
    if (pictureTypes.has(type as 1) || soundTypes.has(type)) continue
    removed.add(type === 0x15 || type === 0x86 ? 'timed-metadata' : 'other-tracks')
  }
  if (pictures.length + sounds.length > limits.tracksMax) {
    throw tooLarge('film', 'has too many tracks', `${limits.tracksMax} of picture and sound`)
  }
  if (pictures.length > 1 || sounds.length > 1) removed.add('further-tracks')
  const [picture] = pictures
  const clock = (picture ?? sounds[0])?.pid
  const end = endAt ?? source.bytes
  const aligned = alignedAt(Math.max(0, end - lookBytes), packets)
  const tail = await source.read(aligned, Math.max(0, end - aligned))
  const first = clock === undefined ? [] : readClock(head, { packetBytes, offset }, clock)
  const last = clock === undefined ? [] : readClock(tail, { packetBytes, offset: 0 }, clock)
  const facts: AvFacts = {
    durationMs: spanMs(Math.min(...first), Math.max(...last)),
    picture:
      picture === undefined
        ? undefined
        : {
            codec: pictureTypes.get(picture.type as 1) ?? 'other',
            widthPixels: 0,
            heightPixels: 0,
            frames: 0,
            highDynamicRange: picture.type === 0x24 || picture.type === 0x1b ? undefined : false,
            edited: false,
          },
    // Streams of type 6 are private and may be sound: ffmpeg knows.
    sound:
      sounds.length > 0 || streams.some(({ type }) => type === 0x06)
        ? { sampleRateHz: 0, channels: 0 }
        : undefined,
    ...(endAt === undefined ? {} : { endAt }),
    removed: [...removed].toSorted(),
  }
  requireLimits(facts)
  return facts
}

/** The next place where a packet should begin. */
function alignedAt(at: number, { packetBytes, offset }: FoundPackets): number {
  return at + ((((offset - at) % packetBytes) + packetBytes) % packetBytes)
}

/**
 * Where packets stop, when the end of the file holds none: recorders make room beforehand, and what lost its
 * disk has holes. Found by halves: with several holes it is one of their edges.
 */
async function findLastInStep(
  source: Readable,
  packets: FoundPackets,
): Promise<number | undefined> {
  const { packetBytes } = packets
  const lookedAt = 64 * packetBytes
  const look = async (at: number) => {
    const some = await source.read(at, Math.max(0, Math.min(lookedAt, source.bytes - at)))
    const whole = Math.floor(some.length / packetBytes)
    return Array.from({ length: whole }, (_, i) => some[i * packetBytes] === 0x47)
  }
  const inStep = async (at: number) => {
    const found = await look(at)
    return found.filter(Boolean).length * 2 >= found.length
  }
  let good = packets.offset
  let bad = alignedAt(Math.max(0, source.bytes - lookedAt), packets)
  if (bad <= good || (await inStep(bad))) return undefined
  while (bad - good > packetBytes) {
    const middle = alignedAt(Math.floor((good + bad) / 2) - packetBytes + 1, packets)
    if (await inStep(middle)) good = middle
    else bad = middle
  }
  return good + ((await look(good)).lastIndexOf(true) + 1) * packetBytes
}

/**
 * Whether sound is announced and none comes, as of cameras without a microphone; looks at all of it.
 */
export async function isMuteTransport(source: Readable): Promise<boolean> {
  const packets = await locatePackets(source)
  if (packets === undefined) return false
  const streams = readTables(await source.read(0, Math.min(lookBytes, source.bytes)), packets)
  const sounds = streams.filter(({ type }) => soundTypes.has(type) || type === 0x06)
  const pids = new Set(sounds.map(({ pid }) => pid))
  for await (const some of piecesOf(source, packets)) {
    for (const packet of packetsInStep(some, { ...packets, offset: 0 })) {
      if (pids.has(packet.readUInt16BE(1) & 0x1fff) && payloadOf(packet) !== undefined) return false
    }
  }
  return pids.size > 0
}

function* packetsInStep(bytes: Buffer, packets: FoundPackets): Generator<Buffer> {
  for (const packet of packetsOf(bytes.subarray(packets.offset), packets)) {
    if (packet[0] === 0x47) yield packet
  }
}

function readTables(head: Buffer, packets: FoundPackets): Stream[] {
  const tables = new Set<number>()
  const streams = new Map<number, Stream>()
  for (const packet of packetsInStep(head, packets)) {
    const pid = packet.readUInt16BE(1) & 0x1fff
    if ((packet.readUInt8(3) & 0xc0) !== 0 && streams.has(pid)) {
      throw unsupportedMedium('film', 'a scrambled transport stream')
    }
    const section = pid === 0 || tables.has(pid) ? readSection(packet) : undefined
    if (section === undefined) continue
    if (pid === 0) {
      for (let at = 8; at + 4 <= section.length; at += 4) {
        if (section.readUInt16BE(at) !== 0 && tables.size < programsMax) {
          tables.add(section.readUInt16BE(at + 2) & 0x1fff)
        }
      }
      continue
    }
    for (const stream of readProgram(section)) {
      if (streams.size < 64) streams.set(stream.pid, stream)
    }
  }
  if (tables.size === 0) throw corruptMedium('film', { byte: packets.offset })
  return [...streams.values()]
}

/** A section that begins and ends in one packet, without its checksum; longer ones are rare. */
function readSection(packet: Buffer): Buffer | undefined {
  if ((packet.readUInt8(1) & 0x40) === 0) return undefined
  const payload = payloadOf(packet)
  if (payload === undefined || payload.length < 1) return undefined
  const at = 1 + payload.readUInt8(0)
  if (at + 3 > payload.length) return undefined
  const bytes = 3 + (payload.readUInt16BE(at + 1) & 0xfff)
  return payload.subarray(at, Math.min(payload.length, at + bytes - 4))
}

function payloadOf(packet: Buffer): Buffer | undefined {
  const control = (packet.readUInt8(3) >> 4) & 3
  if ((control & 1) === 0) return undefined
  const start = control === 3 ? 5 + packet.readUInt8(4) : 4
  return start < packet.length ? packet.subarray(start) : undefined
}

function readProgram(section: Buffer): Stream[] {
  if (section.length < 12 || section[0] !== 2) return []
  const streams: Stream[] = []
  for (let at = 12 + (section.readUInt16BE(10) & 0xfff); at + 5 <= section.length;) {
    streams.push({ type: section.readUInt8(at), pid: section.readUInt16BE(at + 1) & 0x1fff })
    at += 5 + (section.readUInt16BE(at + 3) & 0xfff)
  }
  return streams
}

/** Presentation times of one stream, in ticks of 90 kHz. */
function readClock(bytes: Buffer, packets: FoundPackets, pid: number): number[] {
  const times: number[] = []
  for (const packet of packetsInStep(bytes, packets)) {
    if ((packet.readUInt16BE(1) & 0x1fff) !== pid || (packet.readUInt8(1) & 0x40) === 0) continue
    const payload = payloadOf(packet)
    if (payload === undefined || payload.length < 14 || payload.readUIntBE(0, 3) !== 1) continue
    if ((payload.readUInt8(7) & 0x80) === 0) continue
    const high = (payload.readUInt8(9) >> 1) & 7
    times.push(
      high * 2 ** 30 + (payload.readUInt16BE(10) >> 1) * 2 ** 15 + (payload.readUInt16BE(12) >> 1),
    )
  }
  return times
}

/** The clock has 33 bits and begins again at zero after a day. */
function spanMs(first: number, last: number): number {
  if (!Number.isFinite(first) || !Number.isFinite(last)) return 0
  const ticks = last >= first ? last - first : last + 2 ** 33 - first
  const durationMs = Math.round(ticks / 90)
  // Joined recordings jump: then the span says nothing.
  return durationMs > limits.videoDurationMsMax ? 0 : durationMs
}
