/** Tells recordings that were joined in one transport stream from one that lacks packets, and lets the joined ones follow on. */
import { unsupportedMedium } from './av-facts.ts'
import type { Readable } from './av-facts.ts'
import { locatePackets, packetsOf, piecesOf } from './transport-packets.ts'

/** What a packet's own head says. */
type PacketHead = { pid: number; begins: boolean; counter: number; payloadAt: number }

const nullPid = 0x1fff

/**
 * Follows the counters of all packets. Where they break, nothing is missing if a recording ends and
 * another begins: its tables come first, and then every track with the beginning of a unit, after
 * one that was whole.
 *
 * @returns Whether they break, and nowhere otherwise.
 * @throws SluiceError `media.unsupported` when the pictures go on in another track, which would be lost.
 * @see ISO/IEC 13818-1, 2.4.3.3 (continuity_counter) and 2.4.3.7 (PES_packet_length).
 */
export async function isJoined(source: Readable): Promise<boolean> {
  const packets = await locatePackets(source)
  if (packets === undefined) return false
  const counters = new Counters()
  const recordings = new Recordings()
  for await (const some of piecesOf(source, packets)) {
    for (const packet of packetsOf(some, packets)) {
      // Without its packets in step, nothing can be told.
      if (packet[0] !== 0x47) return false
      const head = readHead(packet)
      if (head === undefined) continue
      recordings.add(packet, head, counters.shiftOf(packet, head) !== 0)
    }
  }
  return recordings.followEachOther()
}

/** The whole file, its counters changed so that each recording follows on the one before. */
export async function* followOn(source: Readable): AsyncGenerator<Buffer> {
  const packets = await locatePackets(source)
  if (packets === undefined) return
  yield await source.read(0, packets.offset)
  const counters = new Counters()
  const shifts = new Map<number, number>()
  for await (const read of piecesOf(source, packets)) {
    const some = Buffer.from(read)
    for (const packet of packetsOf(some, packets)) {
      const head = readHead(packet)
      if (head === undefined) continue
      const { pid, counter } = head
      const shift = ((shifts.get(pid) ?? 0) + counters.shiftOf(packet, head)) & 15
      shifts.set(pid, shift)
      packet.writeUInt8((packet.readUInt8(3) & 0xf0) | ((counter + shift) & 15), 3)
    }
    yield some
  }
}

/** @returns undefined for what has no counter: packets that only fill up, or are none. */
function readHead(packet: Buffer): PacketHead | undefined {
  const pid = packet.readUInt16BE(1) & 0x1fff
  if (packet[0] !== 0x47 || pid === nullPid) return undefined
  const flags = packet.readUInt8(3)
  const hasField = (flags & 0x20) !== 0
  const hasPayload = (flags & 0x10) !== 0
  return {
    pid,
    begins: (packet.readUInt8(1) & 0x40) !== 0,
    counter: flags & 15,
    payloadAt: hasPayload ? (hasField ? 5 + packet.readUInt8(4) : 4) : 188,
  }
}

class Counters {
  readonly #last = new Map<number, number>()

  /** By how much a packet's counter would have to be more to follow on; 0 where it does. */
  shiftOf(packet: Buffer, { pid, counter, payloadAt }: PacketHead): number {
    const last = this.#last.get(pid)
    if (payloadAt >= 188) return 0
    this.#last.set(pid, counter)
    const announced = payloadAt > 5 && (packet.readUInt8(5) & 0x80) !== 0
    // A packet may come twice.
    if (last === undefined || announced || counter === last) return 0
    return (last + 1 - counter) & 15
  }
}

/** Bytes that the unit of a track still lacks; Infinity where it does not say how long it is. */
type Track = { left: number; isPicture: boolean; first: number; last: number }

class Recordings {
  readonly #tracks = new Map<number, Track>()
  /** Tracks since the tables came last, and whether all of them began with a unit then. */
  #since = new Set<number>()
  #allBegan = true
  #broke = false
  #joined = false
  #missing = false
  #count = 0

  add(packet: Buffer, head: PacketHead, breaks: boolean): void {
    this.#count += 1
    const { pid, begins, payloadAt } = head
    if (pid === 0 && begins) this.#endPart()
    if (payloadAt >= 188) return
    const payload = packet.subarray(payloadAt)
    const unit = begins && payload.length >= 6 && payload.readUIntBE(0, 3) === 1
    const known = this.#tracks.get(pid)
    if (known === undefined && !unit) return
    const isFirst = !this.#since.has(pid)
    this.#since.add(pid)
    if (isFirst && !unit) this.#allBegan = false
    if (breaks) {
      this.#broke = true
      const wasWhole = known === undefined || known.left <= 0 || known.left === Infinity
      if (!isFirst || !unit || !wasWhole) this.#missing = true
    }
    const track = known ?? { left: 0, isPicture: false, first: this.#count, last: 0 }
    this.#tracks.set(pid, track)
    track.last = this.#count
    if (!unit) {
      track.left -= payload.length
      return
    }
    track.isPicture = (payload.readUInt8(3) & 0xf0) === 0xe0
    const declared = payload.readUInt16BE(4)
    track.left = declared === 0 ? Infinity : declared + 6 - payload.length
  }

  #endPart(): void {
    if (this.#broke && !this.#allBegan) this.#missing = true
    if (this.#broke) this.#joined = true
    this.#since = new Set()
    this.#allBegan = true
    this.#broke = false
  }

  followEachOther(): boolean {
    this.#endPart()
    const [first, ...others] = [...this.#tracks.values()].filter(({ isPicture }) => isPicture)
    if (first !== undefined && others.some((other) => other.first > first.last)) {
      throw unsupportedMedium(
        'film',
        'a transport stream that goes on with other tracks',
        'Submit the recordings that were joined in it one by one.',
      )
    }
    return this.#joined && !this.#missing
  }
}
